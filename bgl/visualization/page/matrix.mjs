// The adjacency of a batch graph as a matrix.
import { css, isDark, plot } from "./dom.mjs";

/** @type {number[]} the nodes from the top row to the bottom row, by class */
let order = [];

/**
 * @param {BatchGraph} graph
 * @param {GraphFrame & import("./edges.mjs").Edges} frame
 * @param {{hover: (node: number) => void, click: (node: number) => void}} answers for a row's node
 */
export function drawMatrix({ n, labels }, frame, { hover, click }) {
  order = [...Array(n).keys()];
  if (labels) order.sort((a, b) => labels[a] - labels[b] || a - b);
  const place = new Uint16Array(n);
  order.forEach((node, i) => {
    place[node] = i;
  });
  const z = order.map(() => new Float32Array(n));
  for (const { s, t, w } of frame.edges) z[place[t]][place[s]] = w;
  const axis = { showticklabels: false, ticks: "", showgrid: false, zeroline: false };
  const trace = {
    type: "heatmap",
    z,
    colorscale: [
      [0, css("back")],
      [1, isDark() ? "#ffe14d" : "#00204d"],
    ],
    hoverinfo: "none",
    zmin: 0,
    zmax: frame.largest,
    colorbar: { thickness: 12, title: { text: "weight", side: "right" } },
  };
  const layout = {
    xaxis: {
      ...axis,
      title: { text: "from image (sorted by class)", standoff: 6 },
      constrain: "domain",
    },
    yaxis: {
      ...axis,
      title: { text: "to image (sorted by class)", standoff: 6 },
      autorange: "reversed",
      scaleanchor: "x",
      constrain: "domain",
    },
    margin: { l: 40, r: 8, t: 12, b: 40 },
  };
  plot("heatmap", [trace], layout, {
    plotly_hover: ({ points: [point] }) => hover(order[Math.round(point.y)]),
    plotly_click: ({ points: [point] }) => click(order[Math.round(point.y)]),
  });
}

/** Frame the row and the column of a node. @param {number} node */
export function markMatrix(node) {
  const row = order.indexOf(node);
  const line = { color: css("other"), width: 1.5 };
  const all = { from: -0.5, to: order.length - 0.5 };
  const own = { from: row - 0.5, to: row + 0.5 };
  const shapes = [
    { x: all, y: own },
    { x: own, y: all },
  ].map(({ x, y }) => ({ type: "rect", x0: x.from, x1: x.to, y0: y.from, y1: y.to, line }));
  Plotly.relayout("heatmap", { shapes });
}
