// The map of the test classes, and the neighbours of a point in the original space.
import { decode } from "./codec.mjs";
import {
  $,
  addView,
  bareAxis,
  changed,
  color,
  css,
  cutOut,
  element,
  fill,
  itemClass,
  itemLabel,
  itemName,
  narrow,
  picture,
  plot,
  refresh,
  run,
  sheets,
  sign,
} from "./dom.mjs";
import { nearest, queryOf } from "./queries.mjs";

const FEW = 8; // as many classes as there are colours
const [RINGS, RIGHT, WRONG, CHOSEN] = [1, 2, 3, 4]; // traces above the points

let marked = 0; // place in the list of the map's items
/** @type {Map<string, Float32Array>} */
const decoded = new Map();

const map = () => /** @type {NonNullable<Run["map"]>} */ (run.map);
const view = () => map().views[Number($("map-view").value)];

function points() {
  const { points: text } = view();
  const known = decoded.get(text) ?? decode(text, Float32Array);
  decoded.set(text, known);
  return known;
}

/** @param {number} place @returns {number[]} the places on the map of its class */
function ofClass(place) {
  const { items } = map();
  const label = itemLabel(items[place]);
  return [...items.keys()].filter((j) => itemLabel(items[j]) === label);
}

function draw() {
  const { items } = map();
  const at = points();
  const x = items.map((_, i) => at[2 * i]);
  const y = items.map((_, i) => at[2 * i + 1]);
  const few = new Set(items.map(itemLabel)).size <= FEW;
  const extent = (/** @type {number[]} */ values) => Math.max(...values) - Math.min(...values) || 1;
  const pixels = Math.min($("map").clientWidth / extent(x), $("map").clientHeight / extent(y));
  const side = (narrow() ? 14 : 22) / pixels;
  const withPictures = sheets.items && $("map-pictures").checked;
  const images = (withPictures ? view().shown : []).map((i) => ({
    source: cutOut("items", items[i]),
    x: x[i],
    y: y[i],
    xref: "x",
    yref: "y",
    sizex: side,
    sizey: side,
    xanchor: "center",
    yanchor: "middle",
    layer: "below",
  }));
  const colors = few ? items.map((item) => color(itemLabel(item))) : css("faint");
  const empty = { x: [], y: [], hoverinfo: "skip" };
  const ring = (/** @type {string} */ name, /** @type {number} */ size) => ({
    size,
    color: "rgba(0,0,0,0)",
    line: { width: 3, color: css(name) },
  });
  const line = (/** @type {string} */ name, /** @type {string} */ dash) => ({
    ...empty,
    mode: "lines+markers",
    line: { color: css(name), width: 2.5, dash },
    marker: { size: 9, color: css(name) },
  });
  const traces = [
    {
      x,
      y,
      customdata: [...items.keys()],
      mode: "markers",
      hoverinfo: "none",
      marker: { size: few ? 8 : 6, opacity: few ? 0.8 : 0.45, color: colors },
    },
    { ...empty, mode: "markers", marker: ring("mark", 14) },
    line("same", "solid"),
    line("other", "dot"),
    { ...empty, mode: "markers", marker: ring("chosen", 24) },
  ];
  const layout = { xaxis: bareAxis, yaxis: { ...bareAxis, scaleanchor: "x" }, images };
  plot("map", traces, layout, {
    plotly_hover: ({ points: [point] }) => point.customdata !== marked && mark(point.customdata),
    plotly_click: ({ points: [point] }) => choose(point.customdata),
  });
  mark(marked);
}

/** Ring the class of a point, and lead to its neighbours. @param {number} place */
function mark(place) {
  marked = place;
  const { items } = map();
  const at = points();
  const item = items[place];
  const own = ofClass(place);
  const query = queryOf(item);
  const near = query === null ? [] : Array.from(nearest(view().model, query));
  const spots = new Map(items.map((other, i) => [other, i]));
  const xs = own.map((j) => at[2 * j]);
  const ys = own.map((j) => at[2 * j + 1]);
  /** @type {{x: (number | null)[][], y: (number | null)[][]}} */
  const change = { x: [xs, [], [], [at[2 * place]]], y: [ys, [], [], [at[2 * place + 1]]] };
  for (const other of near) {
    const spot = spots.get(other);
    if (spot === undefined) continue;
    const kind = itemLabel(other) === itemLabel(item) ? 1 : 2;
    change.x[kind].push(at[2 * place], at[2 * spot], null);
    change.y[kind].push(at[2 * place + 1], at[2 * spot + 1], null);
  }
  Plotly.restyle("map", change, [RINGS, RIGHT, WRONG, CHOSEN]);
  $("map-class").value = String(itemLabel(item));
  $("map-item").value = String(place);
  card(item, own.length, near, query);
  const there = near.filter((other) => spots.has(other)).length;
  $("map-summary").textContent = near.length
    ? `${there} of its ${near.length} neighbours are on the map.`
    : "";
}

/** @param {number} item @param {number} count @param {number[]} near @param {number | null} query */
function card(item, count, near, query) {
  const list = near.map((other) => {
    const words = element("span", { textContent: itemClass(other) });
    const shown = sheets.items ? [picture("items", other, 36, itemName(other))] : [];
    return element("li", {}, ...shown, sign(itemLabel(other) === itemLabel(item)), words);
  });
  const ask = element("button", { type: "button", textContent: "Show as a query" });
  ask.addEventListener("click", () => {
    location.hash = new URLSearchParams({
      run: $("run").value || "0",
      view: "queries",
      query: String(query),
      outcome: "all",
    }).toString();
  });
  $("map-card").replaceChildren(
    element(
      "div",
      { className: "about" },
      ...(sheets.items ? [picture("items", item, 84, itemName(item))] : []),
      element(
        "div",
        {},
        element("h3", { textContent: itemClass(item) }),
        element("p", { textContent: `${itemName(item)}; ${count} images of its class on the map` }),
      ),
    ),
    element("h4", {
      textContent: near.length
        ? "Nearest by cosine, before the projection"
        : "No answers were recorded for this image.",
    }),
    element("ol", {}, ...list),
    ...(query === null ? [] : [ask]),
  );
}

/** Choose a point for good. @param {number} place */
function choose(place) {
  $("map-item").value = String(place);
  changed($("map-item"));
}

function zoom() {
  const at = points();
  const own = ofClass(marked);
  const range = (/** @type {number} */ axis) => {
    const values = own.map((j) => at[2 * j + axis]);
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const margin = 0.15 * (high - low) || 1;
    return [low - margin, high + margin];
  };
  Plotly.relayout("map", { "xaxis.range": range(0), "yaxis.range": range(1) });
}

function showName() {
  $("map-view-name").textContent = view().name;
}

export function startMap() {
  if (!run.map?.views.length) return;
  addView("map", draw);
  const { items, views, method, total, classes } = run.map;
  const labels = [...new Set(items.map(itemLabel))];
  const part =
    items.length < total
      ? `${items.length.toLocaleString("en")} of ${total.toLocaleString("en")} test images (${labels.length} of ${classes} classes)`
      : `all ${total.toLocaleString("en")} test images`;
  $("map-method").textContent = `It shows ${part} by ${method}.`;
  $("map-pictures-label").hidden = !sheets.items;
  $("map-view").max = $("map-view").value = String(views.length - 1);
  $("map-view-label").hidden = views.length < 2;
  const sorted = labels.sort((a, b) =>
    (run.items?.classes[a] ?? "").localeCompare(run.items?.classes[b] ?? ""),
  );
  fill(
    $("map-class"),
    sorted.map((l) => run.items?.classes[l] ?? ""),
    sorted,
  );
  showName();
  $("map-view").addEventListener("input", () => {
    showName();
    refresh("map");
  });
  $("map-pictures").addEventListener("change", () => refresh("map"));
  $("map-class").addEventListener("change", () =>
    choose(items.findIndex((item) => itemLabel(item) === Number($("map-class").value))),
  );
  $("map-item").addEventListener("change", () => {
    marked = Math.min(Number($("map-item").value), items.length - 1);
    refresh("map");
  });
  $("map-zoom").addEventListener("click", zoom);
  $("map-whole").addEventListener("click", () =>
    Plotly.relayout("map", { "xaxis.autorange": true, "yaxis.autorange": true }),
  );
}
