// Curves, the table of all results, and the configuration.
import { plain } from "./codec.mjs";
import { $, addView, css, element, isDark, narrow, palette, plot, run } from "./dom.mjs";

const DASHES = ["solid", "dash", "dot", "dashdot"];

function draw() {
  const hues = isDark() ? [1, 0, 2, 3, 6, 5, 7, 4] : [4, 5, 2, 0, 6, 1, 7, 3];
  run.curves?.forEach(({ title, unit, lines }, number) => {
    const traces = lines.map(({ name, x, y, color: hue, dash }) => ({
      x,
      y,
      name: plain(name),
      mode: "lines+markers",
      marker: { size: 5 },
      line: { color: palette[hues[hue % 8]], dash: DASHES[dash % 4], width: 2 },
    }));
    plot(`curve-${number}`, traces, {
      title: {
        text: `${plain(title)} by epoch${unit ? `, ${unit}` : ""}`,
        font: { size: 14 },
        x: 0.02,
      },
      margin: { l: 45, r: 12, t: 40, b: 30 },
      xaxis: {
        gridcolor: css("line"),
        dtick: Math.max(1, Math.ceil(lines[0].x.length / 10)),
      },
      yaxis: { gridcolor: css("line"), zeroline: false },
      showlegend: true,
      legend: { orientation: "h", y: -0.15, yanchor: "top", font: { size: 11 } },
      hovermode: "x unified",
      hoverlabel: { bgcolor: css("panel"), namelength: -1 },
      dragmode: narrow() ? false : "zoom",
    });
  });
}

export function startTraining() {
  const { curves = [], table, config = [], selection } = run;
  if (!curves.length && !table && !config.length) return;
  addView("training", draw);
  $("curves").append(
    ...curves.map((_, i) => element("div", { id: `curve-${i}`, className: "chart" })),
  );
  $("table-part").hidden = !table;
  if (table) {
    const chosen = selection ? `; weights: ${selection}` : "";
    $("selection").textContent = `Measured on the test classes, in percent${chosen}.`;
    const line = (/** @type {string[]} */ cells, /** @type {string} */ tag) =>
      element("tr", {}, ...cells.map((text) => element(tag, { textContent: text })));
    $("table").append(
      element(
        "table",
        {},
        element("thead", {}, line(table.header, "th")),
        element("tbody", {}, ...table.cells.map((cells) => line(cells, "td"))),
      ),
    );
  }
  $("config-part").hidden = !config.length;
  $("config").append(
    ...config.map(({ name, text }) =>
      element(
        "details",
        {},
        element("summary", { textContent: name }),
        element("pre", { textContent: text, tabIndex: 0 }),
      ),
    ),
  );
}
