// The adjacency as a matrix, linked to the graph.
let order = [];

function drawHeatmap(what) {
  const { graph } = view;
  if (what === "mark") {
    if (!$("heatmap").data) return;
    const row = order.indexOf(view.node);
    const line = (from, to) => ({ type: "rect", x0: from[0], x1: from[1], y0: to[0], y1: to[1], line: { color: css("other"), width: 1.5 } });
    const all = [-0.5, graph.n - 0.5];
    Plotly.relayout("heatmap", { shapes: row < 0 ? [] : [line(all, [row - 0.5, row + 0.5]), line([row - 0.5, row + 0.5], all)] });
    return;
  }
  order = [...Array(graph.n).keys()];
  if (graph.labels) order.sort((a, b) => graph.labels[a] - graph.labels[b] || a - b);
  const place = new Uint16Array(graph.n);
  order.forEach((node, i) => { place[node] = i; });
  const z = order.map(() => new Float32Array(graph.n));
  for (const { s, t, w } of current().edges) z[place[t]][place[s]] = w;
  const dark = document.documentElement.dataset.theme === "dark";
  const scale = dark ? [[0, css("back")], [1, "#ffe14d"]] : [[0, "#ffffff"], [1, "#00204d"]];
  Plotly.react("heatmap", [{
    type: "heatmap", z, colorscale: scale, hoverinfo: "none", zmin: 0, zmax: current().largest,
    colorbar: { thickness: 12, title: { text: "weight", side: "right" } },
  }], layout({
    xaxis: { title: { text: "source image" }, showticklabels: false, ticks: "", showgrid: false, zeroline: false },
    yaxis: { title: { text: "target image" }, showticklabels: false, ticks: "", showgrid: false, zeroline: false, autorange: "reversed", scaleanchor: "x", constrain: "domain" },
    margin: { l: 36, r: 8, t: 30, b: 36 },
  }), settings);
  drawHeatmap("mark");
}

function startHeatmap() {
  if (!view.graph) return;
  watchers.push(drawHeatmap);
  drawHeatmap("graph");
  $("heatmap").on("plotly_hover", ({ points: [point] }) => {
    const node = order[Math.round(point.y)];
    if (node !== view.node && !shownNodes()) mark(node);
  });
  $("heatmap").on("plotly_click", ({ points: [point] }) => focus(order[Math.round(point.y)]));
}
