// Where a model goes wrong: classes, confused classes, similarities, hubs.
import { byClass, confusions, hubs, wrongRows } from "./analysis.mjs";
import { csv, percent } from "./codec.mjs";
import {
  $,
  addView,
  css,
  element,
  fill,
  itemClass,
  itemLabel,
  itemName,
  picture,
  plot,
  refresh,
  run,
  save,
  sheets,
} from "./dom.mjs";
import { answers, ranks } from "./queries.mjs";

const LINES = 100; // of a table
const HUBS = 40;

const model = () => Number($("judged").value);
/** @param {number} label */
const classOf = (label) => run.items?.classes[label] ?? "";

/** Lead to the queries of a model with a text in their class or file. @param {string} text @returns {HTMLElement} */
function link(text) {
  const comparison = run.retrieval?.comparisons.findIndex(({ before, without, graph }) =>
    [graph, without, before].includes(model()),
  );
  const to = {
    run: $("run").value || "0",
    view: "queries",
    comparison: `${Math.max(0, comparison ?? 0)}`,
    outcome: "all",
    search: text,
  };
  return element("a", { href: `#${new URLSearchParams(to)}`, textContent: text });
}

/** @param {number} item @param {string} text */
const shown = (item, text) => (sheets.items ? [picture("items", item, 30, text)] : []);

/** @param {(Node | string)[]} parts picture and name */
const named = (...parts) => element("span", { className: "named" }, ...parts);

/** @param {string[]} header @param {(Node | string)[][]} rows */
function table(header, rows) {
  const head = header.map((text) => element("th", { textContent: text, scope: "col" }));
  const body = rows.map((cells) =>
    element("tr", {}, ...cells.map((content) => element("td", {}, content))),
  );
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...body),
  );
}

function draw() {
  const given = answers(model());
  const found = ranks(model());
  const wrong = found.filter((rank) => rank > 1).length;
  const asked = found.filter((rank) => rank > 0).length;
  const total = run.map?.total ?? 0;
  const sampled = given.queries.length < total;
  $("errors-summary").textContent =
    `${wrong.toLocaleString("en")} of ${asked.toLocaleString("en")} queries are wrong ` +
    `(${percent(wrong / asked)})${sampled ? `, a sample of ${total.toLocaleString("en")}` : ""}.`;
  const pairs = confusions(given, found);
  /** @type {Map<number, {label: number, count: number}>} */
  const rivals = new Map();
  for (const { one, other, count } of pairs)
    for (const [label, rival] of [
      [one, other],
      [other, one],
    ])
      if (!rivals.has(label)) rivals.set(label, { label: rival, count });
  /** @type {Map<number, number>} */
  const example = new Map();
  for (const item of Array.from(given.queries))
    if (!example.has(itemLabel(item))) example.set(itemLabel(item), item);
  const pictured = (/** @type {number} */ label) => shown(example.get(label) ?? 0, classOf(label));
  const classes = byClass(given, found).filter((line) => line.right < line.count);
  $("worst").replaceChildren(
    table(
      ["class", "right", "R@1", "taken for, or for it"],
      classes.slice(0, LINES).map(({ label, count, right }) => {
        const rival = rivals.get(label);
        return [
          named(...pictured(label), link(classOf(label))),
          `${right} of ${count}`,
          percent(right / count),
          rival ? named(...pictured(rival.label), classOf(rival.label)) : "",
        ];
      }),
    ),
  );
  $("confused").replaceChildren(
    table(
      ["class", "class", "wrong queries"],
      pairs
        .slice(0, LINES)
        .map(({ one, other, count }) => [
          named(...pictured(one), link(classOf(one))),
          named(...pictured(other), link(classOf(other))),
          String(count),
        ]),
    ),
  );
  drawSimilarities();
  drawHubs(given);
}

function drawSimilarities() {
  const counts = run.retrieval?.models[model()].similarities;
  $("similar-part").hidden = !counts;
  if (!counts) return;
  const step = 2 / counts[0].length;
  const x = counts[0].map((_, i) => -1 + (i + 0.5) * step);
  const traces = counts.map((values, kind) => {
    const total = values.reduce((sum, value) => sum + value, 0) || 1;
    const line = {
      color: css(kind ? "other" : "same"),
      width: 2,
      dash: kind ? "dot" : "solid",
      shape: "hvh",
    };
    const name = kind ? "different classes" : "same class";
    return {
      x,
      y: values.map((value) => (100 * value) / total),
      name,
      mode: "lines",
      fill: "tozeroy",
      line,
    };
  });
  const used = x.filter((_, i) => counts.some((values) => values[i]));
  plot("similar", traces, {
    margin: { l: 48, r: 8, t: 8, b: 44 },
    xaxis: {
      title: { text: "cosine similarity" },
      range: [used[0] - step, 1],
      gridcolor: css("line"),
      zeroline: false,
    },
    yaxis: {
      title: { text: "% of the pairs" },
      gridcolor: css("line"),
      zeroline: false,
      rangemode: "tozero",
    },
    showlegend: true,
    legend: { x: 0.98, xanchor: "right", y: 0.98, bgcolor: "rgba(0,0,0,0)" },
    dragmode: false,
    hovermode: "x unified",
    hoverlabel: { bgcolor: css("panel") },
  });
}

/** @param {import("./analysis.mjs").Answers} given */
function drawHubs(given) {
  const gallery = run.retrieval?.gallery ?? 1;
  const mean = given.nearest.length / gallery;
  $("hubs-explained").textContent =
    `Images that are found again and again. On average one is among the first ${given.k} answers ` +
    `to ${mean.toPrecision(2)} queries; these are the most frequent, with the share that is right.`;
  $("hubs").replaceChildren(
    ...hubs(given)
      .slice(0, HUBS)
      .map(({ item, count, right }) =>
        element(
          "figure",
          { title: itemName(item) },
          picture("items", item, 52, itemClass(item)),
          element("figcaption", { textContent: `${count} · ${percent(right / count)}` }),
        ),
      ),
  );
}

export function startErrors() {
  if (!run.retrieval?.queries.length) return;
  addView("errors", draw);
  const { models } = run.retrieval;
  fill(
    $("judged"),
    models.map(({ name }) => name),
    [...models.keys()],
  );
  $("judged").selectedIndex = models.length - 1;
  $("judged").addEventListener("change", () => refresh("errors"));
  $("wrong-list").addEventListener("click", () => {
    const { names, classes } = run.items ?? { names: [], classes: [] };
    const rows = wrongRows(answers(model()), ranks(model()), names, classes);
    // the mark tells spreadsheets that it is UTF-8
    save(
      `wrong ${models[model()].name}.csv`,
      new Blob(["\ufeff", csv(rows)], { type: "text/csv" }),
    );
  });
}
