// Results table, curves and configuration.
const dashes = ["solid", "dash", "dot", "dashdot"];

function drawCurves() {
  $("curves").hidden = !data.curves.length;
  const dark = document.documentElement.dataset.theme === "dark";
  const hues = dark ? [1, 0, 2, 3, 6, 5, 7, 4] : [4, 5, 2, 0, 6, 1, 7, 3];
  data.curves.forEach(({ title, lines }, number) => {
    Plotly.react(`curve-${number}`, lines.map(({ name, x, y, color: hue, dash }) => ({
      x, y, name: plain(name), mode: "lines+markers", marker: { size: 5 },
      line: { color: palette[hues[hue % 8]], dash: dashes[dash % 4], width: 2 },
    })), layout({
      title: { text: `${plain(title)}, by epoch`, font: { size: 14 } },
      margin: { l: 45, r: 12, t: 40, b: 30 },
      xaxis: { gridcolor: css("line"), dtick: Math.max(1, Math.ceil(lines[0].x.length / 10)) },
      yaxis: { gridcolor: css("line"), zeroline: false },
      showlegend: true, legend: { orientation: "h", y: -0.15, yanchor: "top", font: { size: 11 } },
      hovermode: "x unified", hoverlabel: { bgcolor: css("panel"), namelength: -1 },
      dragmode: narrow() ? false : "zoom",
    }), { ...settings, displayModeBar: false });
  });
}

function startResults() {
  $("selection").textContent = `Measured on the test classes, in percent${data.selection ? `; weights: ${data.selection}` : ""}.`;
  if (data.table) {
    const line = (cells, tag) => element("tr", {}, ...cells.map((text) => element(tag, { textContent: text })));
    $("table").append(element("table", {}, element("thead", {}, line(data.table.header, "th")),
      element("tbody", {}, ...data.table.cells.map((cells) => line(cells, "td")))));
  }
  if (data.table || (data.curves && data.curves.length)) {
    $("results-section").hidden = false;
    data.curves = data.curves || [];
    // all at once: each plot takes the width that its frame has in the end
    $("curves").append(...data.curves.map((_, i) => element("div", { id: `curve-${i}`, className: "chart" })));
    drawCurves();
    redraws.push(drawCurves);
  }
  if (data.config && data.config.length) {
    $("config-section").hidden = false;
    $("config").append(...data.config.map(({ name, text }) =>
      element("details", {}, element("summary", { textContent: name }), element("pre", { textContent: text, tabIndex: 0 }))));
  }
}
