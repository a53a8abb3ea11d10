// The batch graph: node-link diagram or matrix, its controls, and the card of a node.
import { nodeCard } from "./card.mjs";
import { decode, percent } from "./codec.mjs";
import {
  $,
  addView,
  bareAxis,
  changed,
  color,
  css,
  cutOut,
  fill,
  page,
  plot,
  refresh,
  run,
  symbol,
} from "./dom.mjs";
import { unpackEdges, weightWithin } from "./edges.mjs";
import { drawMatrix, markMatrix } from "./matrix.mjs";

/**
 * @typedef {GraphFrame & import("./edges.mjs").Edges} Frame
 */
const WIDTHS = [0.8, 1.6, 2.8, 4.5];
// traces: other classes and the same class by width, then these
const [MARKED, CHOSEN] = [2 * WIDTHS.length, 2 * WIDTHS.length + 2];

/**
 * @typedef {object} View
 * @property {BatchGraph} graph
 * @property {Frame[]} frames of the chosen epoch
 * @property {number} node the marked one
 * @property {number | null} focus the node whose neighbours are shown alone
 * @property {ReturnType<typeof setInterval> | null} timer
 */
/** @type {View} */
const view = { graph: run.graphs[0], frames: [], node: 0, focus: null, timer: null };
/** @type {Map<GraphFrame, Frame>} */
const unpacked = new Map();

/** @param {GraphFrame} frame */
function unpack(frame) {
  const known = unpacked.get(frame);
  if (known) return known;
  const made = { ...frame, ...unpackEdges(frame, view.graph.n) };
  unpacked.set(frame, made);
  return made;
}

/** @param {number} i */
const label = (i) => view.graph.labels?.[i] ?? null;
/** @param {number} i */
const className = (i) => (view.graph.labels ? view.graph.classes[view.graph.labels[i]] : "");
/** @param {number} a @param {number} b */
const sameClass = (a, b) => label(a) === label(b);
const current = () => view.frames[Math.min($("iteration").value, view.frames.length - 1)];
const isMatrix = () => $("drawn").value === "matrix";

/** @type {Map<string, Float32Array>} */
const positions = new Map();
function points() {
  const text = view.graph.positions[current().position];
  const known = positions.get(text) ?? decode(text, Float32Array);
  positions.set(text, known);
  return known;
}

/** @param {import("./edges.mjs").Edge} edge */
function passes({ s, t, w }) {
  const heavy = w >= ($("weight").value / 100) * current().largest;
  return heavy && $(sameClass(s, t) ? "same" : "other").checked;
}

/** The chosen node and its neighbours, or null if all nodes are shown. */
function shownNodes() {
  const { focus } = view;
  if (focus === null) return null;
  const near = current().near[focus].filter(({ node, w }) => passes({ s: focus, t: node, w }));
  return new Set([focus, ...near.map((edge) => edge.node)]);
}

/** The smallest interval with all nodes, and room for half a picture. @param {number[]} values @param {number} room in pixels @param {number} side in pixels */
function around(values, room, side) {
  const [low, high] = [Math.min(...values), Math.max(...values)];
  const margin = ((side + 10) / 2 / Math.max(1, room - side)) * (high - low || 1);
  return [low - margin, high + margin];
}

function drawDiagram() {
  const { graph } = view;
  const frame = current();
  const { focus } = view;
  const inside = shownNodes();
  const fitting = frame.pairs.filter(
    (pair) => passes(pair) && (focus === null || pair.s === focus || pair.t === focus),
  );
  const edges = fitting.slice(0, Number($("budget").value));
  const at = points();
  const traces = [];
  for (const same of [false, true]) {
    WIDTHS.forEach((width, level) => {
      const [x, y] = [/** @type {(number | null)[]} */ ([]), /** @type {(number | null)[]} */ ([])];
      for (const { s, t, w } of edges) {
        const share = Math.floor((w / frame.largest) * WIDTHS.length);
        if (Math.min(WIDTHS.length - 1, share) !== level || sameClass(s, t) !== same) continue;
        x.push(at[2 * s], at[2 * t], null);
        y.push(at[2 * s + 1], at[2 * t + 1], null);
      }
      const line = { width, color: css(same ? "same" : "other"), dash: same ? "solid" : "dot" };
      traces.push({ x, y, mode: "lines", hoverinfo: "skip", opacity: 0.6, line });
    });
  }
  const heavy = { width: 2.5, color: css("mark") };
  traces.push({ x: [], y: [], mode: "lines", hoverinfo: "skip", opacity: 0.8, line: heavy });
  const nodes = [...Array(graph.n).keys()].filter((i) => !inside || inside.has(i));
  const [width, height] = [$("graph").clientWidth - 16, $("graph").clientHeight - 16];
  const withPictures = graph.atlas && ($("pictures").checked || (inside && inside.size <= 60));
  const gap = Math.sqrt((width * height) / nodes.length); // between neighbours in the plane
  const side = Math.max(8, Math.min(inside ? 56 : 26, 0.32 * gap));
  const [x, y] = [nodes.map((i) => at[2 * i]), nodes.map((i) => at[2 * i + 1])];
  traces.push({
    x,
    y,
    customdata: nodes,
    mode: "markers",
    hoverinfo: "none",
    marker: {
      size: withPictures ? side + 4 : Math.max(7, side * 0.6),
      symbol: withPictures ? "square" : nodes.map((i) => symbol(label(i))),
      color: nodes.map((i) => color(label(i))),
      line: { width: 1, color: css("back") },
    },
  });
  traces.push({
    x: [],
    y: [],
    mode: "markers",
    hoverinfo: "skip",
    marker: {
      size: side + 14,
      symbol: withPictures ? "square" : "circle",
      color: "rgba(0,0,0,0)",
      line: { width: 3.5, color: css("chosen") },
    },
  });
  const [across, up] = [around(x, width, side), around(y, height, side)];
  const images = nodes.map((i) => ({
    source: withPictures ? cutOut(graph.atlas ?? "", i) : "",
    x: at[2 * i],
    y: at[2 * i + 1],
    xref: "x",
    yref: "y",
    sizex: (side / width) * (across[1] - across[0]),
    sizey: (side / height) * (up[1] - up[0]),
    sizing: "stretch",
    xanchor: "center",
    yanchor: "middle",
    layer: "above",
  }));
  const layout = {
    xaxis: { ...bareAxis, range: across },
    yaxis: { ...bareAxis, range: up },
    images: withPictures ? images : [],
  };
  plot("graph", traces, layout, {
    plotly_hover: ({ points: [point] }) => point.customdata !== view.node && mark(point.customdata),
    plotly_click: ({ points: [point] }) => choose(point.customdata, true),
  });
  describe(edges.length, fitting.length, inside);
}

function draw() {
  $("weight-value").textContent =
    `≥ ${(($("weight").value / 100) * current().largest).toPrecision(2)}`;
  $("graph").hidden = isMatrix();
  $("heatmap").hidden = !isMatrix();
  if (isMatrix()) {
    drawMatrix(view.graph, current(), {
      hover: (node) => node !== view.node && view.focus === null && mark(node),
      click: (node) => choose(node, true),
    });
    describe(current().pairs.length, current().pairs.length, null);
  } else drawDiagram();
  mark(view.node);
}

/** @param {number} shown @param {number} fitting @param {Set<number> | null} inside */
function describe(shown, fitting, inside) {
  const frame = current();
  const { graph } = view;
  const parts = [shown < fitting ? `the ${shown} strongest of ${fitting} edges` : `${shown} edges`];
  if (inside && view.focus !== null)
    parts.unshift(`image ${graph.nodes[view.focus]} and its ${inside.size - 1} neighbours alone`);
  if (graph.labels && frame.edges.length)
    parts.push(`${percent(weightWithin(frame.edges, graph.labels))} of the weight within a class`);
  if (!frame.edges.length) parts.push("this graph has no edges");
  if (frame.total > frame.edges.length)
    parts.push(`the page holds ${frame.edges.length} of ${frame.total} directed edges`);
  parts.push(...graph.notes);
  $("summary").textContent = `${parts.join(" · ")}.`;
}

/** Mark a node: ring and edges in the diagram, its card, its row in the matrix. @param {number} node */
function mark(node) {
  view.node = node;
  if (view.focus === null) $("node").value = String(node);
  const at = points();
  const x = [];
  const y = [];
  for (const { node: other, w } of view.focus === null ? current().near[node] : []) {
    if (!passes({ s: node, t: other, w })) continue;
    x.push(at[2 * node], at[2 * other], null);
    y.push(at[2 * node + 1], at[2 * other + 1], null);
  }
  $("card").replaceChildren(...nodeCard(view.graph, current(), node));
  if (isMatrix()) markMatrix(node);
  else {
    const change = { x: [x, [at[2 * node]]], y: [y, [at[2 * node + 1]]] };
    Plotly.restyle("graph", change, [MARKED, CHOSEN]);
  }
}

/** Choose a node for good. @param {number} node @param {boolean} alone */
function choose(node, alone) {
  $("node").value = String(node);
  $("alone").checked = alone;
  changed($("node"));
}

function chosen() {
  view.node = Number($("node").value);
  view.focus = $("alone").checked ? view.node : null;
  refresh("graph");
}

/** @param {BatchGraph} graph */
function openGraph(graph) {
  view.graph = graph;
  view.node = 0;
  view.focus = null;
  unpacked.clear();
  const last = Math.max(...graph.frames.map((frame) => frame.position));
  $("step").max = $("step").value = String(last);
  $("step-row").hidden = last < 1;
  $("same-label").hidden = $("other-label").hidden = $("edge-legend").hidden = !graph.labels;
  $("pictures-label").hidden = !graph.atlas;
  $("pictures").checked = graph.n <= 200;
  $("alone").checked = false;
  const names = graph.nodes.map((name, i) => (className(i) ? `${name} · ${className(i)}` : name));
  fill($("node"), names, [...names.keys()]);
  step();
  $("iteration").selectedIndex = view.frames.length - 1;
  refresh("graph");
}

function step() {
  const at = Number($("step").value);
  const iteration = $("iteration").selectedIndex;
  view.frames = view.graph.frames.filter((frame) => frame.position === at).map(unpack);
  const { epoch } = view.frames[0];
  $("step-value").textContent = epoch === 0 && run.steps !== "step" ? "before" : String(epoch);
  const blocks = new Set(view.frames.map((frame) => frame.block)).size;
  const names = view.frames.map(
    (frame) => `${blocks > 1 ? `block ${frame.block + 1}, ` : ""}${frame.iteration + 1}`,
  );
  fill($("iteration"), names, [...names.keys()]);
  $("iteration").selectedIndex = Math.min(Math.max(iteration, 0), names.length - 1);
  $("iteration-label").hidden = names.length < 2;
  refresh("graph");
}

function play() {
  if (view.timer) {
    clearInterval(view.timer);
    view.timer = null;
  } else {
    if ($("step").value === $("step").max) $("step").value = "0";
    view.timer = setInterval(() => {
      if ($("step").value === $("step").max) return play();
      $("step").value = String(Number($("step").value) + 1);
      return step();
    }, 900);
    step();
  }
  $("play").textContent = view.timer ? "■" : "▶";
  $("play").setAttribute("aria-label", view.timer ? "Stop" : "Play");
}

/** @param {KeyboardEvent} event */
function walk(event) {
  /** @type {Record<string, number>} */
  const ways = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 };
  const by = ways[event.key];
  if (by) {
    const nodes = [...(shownNodes() ?? Array(view.graph.n).keys())].sort((a, b) => a - b);
    const place = nodes.indexOf(view.node);
    mark(nodes[(place + by + nodes.length) % nodes.length]);
  } else if (event.key === "Enter") choose(view.node, true);
  else if (event.key === "Escape") choose(view.node, false);
  else return;
  event.preventDefault();
}

export function startGraph() {
  if (!run.graphs.length) return;
  addView("graph", draw);
  $("unseen").hidden = page.kind !== "run" || run.graphs.some((graph) => graph.notes.length);
  $("step-name").textContent = run.steps === "step" ? "Step" : "Epoch";
  fill(
    $("training"),
    run.graphs.map((graph) => graph.name),
    [...run.graphs.keys()],
  );
  $("training-label").hidden = run.graphs.length < 2;
  openGraph(run.graphs[0]);
  $("graph").addEventListener("keydown", walk);
  $("training").addEventListener("change", () => openGraph(run.graphs[$("training").value]));
  $("step").addEventListener("input", step);
  $("play").addEventListener("click", play);
  for (const id of ["node", "alone"]) $(id).addEventListener("change", chosen);
  for (const id of ["drawn", "iteration", "weight", "same", "other", "pictures", "budget"])
    $(id).addEventListener("input", () => refresh("graph"));
}
