// The batch graph: node-link diagram, its controls, and the card of a node.
const view = { graph: null, frames: [], at: 0, iteration: 0, node: null, focus: null, timer: null };
const watchers = []; // told about every change of the graph or of the marked node

const WIDTHS = [0.8, 1.6, 2.8, 4.5];

function unpack(graph) {
  if (graph.points) return graph;
  graph.points = graph.positions.map((text) => decode(text, Float32Array));
  graph.frames.forEach((frame) => {
    const source = decode(frame.source, Uint16Array);
    const target = decode(frame.target, Uint16Array);
    const weight = decode(frame.weight, Uint16Array);
    frame.edges = Array.from(source, (s, e) => ({ s, t: target[e], w: (weight[e] / 65535) * frame.largest }));
    // both directions between two nodes are one line, as heavy as the heavier
    const pairs = new Map();
    for (const { s, t, w } of frame.edges) {
      const key = Math.min(s, t) * graph.n + Math.max(s, t);
      const known = pairs.get(key);
      if (!known) pairs.set(key, { s: Math.min(s, t), t: Math.max(s, t), w });
      else known.w = Math.max(known.w, w);
    }
    frame.pairs = [...pairs.values()].sort((a, b) => b.w - a.w);
    frame.near = Array.from({ length: graph.n }, () => []);
    for (const pair of frame.pairs) {
      frame.near[pair.s].push({ node: pair.t, w: pair.w });
      frame.near[pair.t].push({ node: pair.s, w: pair.w });
    }
  });
  return graph;
}

const label = (i) => (view.graph.labels ? view.graph.labels[i] : null);
const className = (i) => (view.graph.labels ? view.graph.classes[label(i)] : "");
const sameClass = (a, b) => !view.graph.labels || label(a) === label(b);
const current = () => view.frames[Math.min(view.iteration, view.frames.length - 1)];
const points = () => view.graph.points[current().position];

function shownNodes() {
  if (view.focus === null) return null;
  return new Set([view.focus, ...current().near[view.focus].filter(allowed).map((edge) => edge.node)]);
  function allowed({ node, w }) {
    return passes({ s: view.focus, t: node, w });
  }
}

function passes({ s, t, w }) {
  return w >= (Number($("weight").value) / 100) * current().largest
    && $(sameClass(s, t) ? "same" : "other").checked;
}

function draw() {
  const { graph } = view;
  const frame = current();
  const inside = shownNodes();
  const fitting = frame.pairs.filter((pair) => passes(pair) && (!inside || (inside.has(pair.s) && inside.has(pair.t))));
  const edges = fitting.slice(0, Number($("budget").value));
  const at = points();
  const traces = [];
  for (const same of [false, true]) {
    WIDTHS.forEach((width, level) => {
      const x = [];
      const y = [];
      for (const { s, t, w } of edges) {
        const bin = Math.min(WIDTHS.length - 1, Math.floor((w / frame.largest) * WIDTHS.length));
        if (bin !== level || sameClass(s, t) !== same) continue;
        x.push(at[2 * s], at[2 * t], null);
        y.push(at[2 * s + 1], at[2 * t + 1], null);
      }
      const line = { width, color: css(same ? "same" : "other"), dash: same ? "solid" : "dot" };
      traces.push({ x, y, mode: "lines", hoverinfo: "skip", opacity: 0.6, line });
    });
  }
  traces.push({ x: [], y: [], mode: "lines", hoverinfo: "skip", opacity: 0.8, line: { width: 2.5, color: css("mark") } });
  const nodes = [...Array(graph.n).keys()].filter((i) => !inside || inside.has(i));
  const room = Math.min($("graph").clientWidth, $("graph").clientHeight) - 16;
  const withPictures = graph.atlas && ($("pictures").checked || (inside && inside.size <= 60));
  const side = Math.max(8, Math.min(34, (0.5 * room) / Math.sqrt(graph.n))) * (inside ? 1.6 : 1);
  traces.push({
    x: nodes.map((i) => at[2 * i]),
    y: nodes.map((i) => at[2 * i + 1]),
    customdata: nodes,
    mode: "markers",
    hoverinfo: "none",
    marker: {
      size: withPictures ? side + 4 : Math.max(7, side * 0.55),
      symbol: withPictures ? "square" : nodes.map((i) => symbol(label(i))),
      color: nodes.map((i) => color(label(i))),
      line: { width: 1, color: css("back") },
    },
  });
  const range = (axis) => {
    const along = nodes.map((i) => at[2 * i + axis]);
    return [Math.min(...along) - 0.05, Math.max(...along) + 0.05];
  };
  const [across, up] = [range(0), range(1)];
  const wide = (side * Math.max(across[1] - across[0], up[1] - up[0])) / room; // in the plane's units
  const images = !withPictures ? [] : nodes.map((i) => ({
    source: cutOut(graph.atlas, i), x: at[2 * i], y: at[2 * i + 1], xref: "x", yref: "y",
    sizex: wide, sizey: wide, xanchor: "center", yanchor: "middle", layer: "above",
  }));
  Plotly.react("graph", traces, layout({
    xaxis: { ...bareAxis, range: across },
    yaxis: { ...bareAxis, range: up, scaleanchor: "x" },
    images,
  }), settings);
  describe(edges.length, fitting.length, inside);
  mark(view.node);
}

function describe(shown, fitting, inside) {
  const frame = current();
  const total = frame.edges.reduce((sum, edge) => sum + edge.w, 0);
  const own = frame.edges.reduce((sum, edge) => sum + (sameClass(edge.s, edge.t) ? edge.w : 0), 0);
  const parts = [shown < fitting ? `the ${shown} strongest of ${fitting} edges` : `${shown} edges`];
  if (inside) parts.unshift(`neighbourhood of image ${view.graph.nodes[view.focus]} alone: ${inside.size} images`);
  if (view.graph.labels && frame.edges.length) parts.push(`${percent(own / total)} of the weight within a class`);
  if (!frame.edges.length) parts.push("this graph has no edges");
  if (frame.total > frame.edges.length) parts.push(`the page holds ${frame.edges.length} of ${frame.total} directed edges`);
  parts.push(...view.graph.notes);
  $("summary").textContent = `${parts.join(" · ")}.`;
  $("all").disabled = !inside;
}

// Mark a node: its edges in the diagram, its card, its row in the matrix.
function mark(node) {
  view.node = node;
  const x = [];
  const y = [];
  if (node !== null) {
    $("node").value = String(node);
  }
  if (node !== null && node !== view.focus) {
    const at = points();
    const inside = shownNodes();
    for (const { node: other, w } of current().near[node]) {
      if (!passes({ s: node, t: other, w }) || (inside && !inside.has(other))) continue;
      x.push(at[2 * node], at[2 * other], null);
      y.push(at[2 * node + 1], at[2 * other + 1], null);
    }
  }
  card(node);
  Plotly.restyle("graph", { x: [x], y: [y] }, [2 * WIDTHS.length]);
  watchers.forEach((watcher) => watcher("mark"));
}

function card(node) {
  if (node === null) {
    $("card").replaceChildren(element("p", { textContent: "Point at a node, or choose an image above the graph." }));
    return;
  }
  const { graph } = view;
  const near = [...current().near[node]].sort((a, b) => b.w - a.w);
  const own = near.filter((edge) => sameClass(node, edge.node)).length;
  const words = [`Image ${graph.nodes[node]}`];
  const facts = graph.labels ? `${near.length} neighbours, ${own} of the same class.` : `${near.length} neighbours.`;
  const list = near.slice(0, 6).map((edge) => {
    const right = graph.labels && sameClass(node, edge.node);
    const sign = graph.labels ? element("span", { className: `sign${right ? " right" : ""}`, textContent: right ? "✓" : "✗" }) : "";
    const text = `${className(edge.node) || `image ${graph.nodes[edge.node]}`} · ${edge.w.toPrecision(2)}`;
    return element("li", {}, ...(graph.atlas ? [picture(graph.atlas, edge.node, 40, "")] : []), sign, element("span", { textContent: text }));
  });
  $("card").replaceChildren(
    ...(graph.atlas ? [picture(graph.atlas, node, 128, `image ${graph.nodes[node]}`)] : []),
    element("h3", { textContent: className(node) || words[0] }),
    element("p", { textContent: graph.labels ? `${words[0]}. ${facts}` : facts }),
    element("strong", { textContent: list.length ? "Strongest neighbours" : "" }),
    element("ol", {}, ...list),
  );
}

function focus(node) {
  view.focus = node;
  view.node = node;
  draw();
}

function choose(graph) {
  view.graph = unpack(graph);
  view.node = view.focus = null;
  const steps = [...new Set(graph.frames.map((frame) => frame.position))];
  $("step").max = steps.length - 1;
  $("step").value = steps.length - 1;
  $("step-label").hidden = $("play").hidden = steps.length < 2;
  $("same-label").hidden = $("other-label").hidden = !graph.labels;
  $("pictures-label").hidden = !graph.atlas;
  $("pictures").checked = graph.n <= 200;
  fill($("node"), graph.nodes.map((name, i) => `${name}${className(i) ? ` · ${className(i)}` : ""}`), graph.nodes.map((_, i) => i));
  $("node").selectedIndex = -1;
  step(Infinity);
}

function step(iteration = view.iteration) {
  const at = Number($("step").value);
  view.frames = view.graph.frames.filter((frame) => frame.position === at);
  view.iteration = Math.min(iteration, view.frames.length - 1);
  const { epoch } = view.frames[0];
  $("step-value").textContent = epoch === 0 && data.steps !== "step" ? "0 (before)" : String(epoch);
  const blocks = new Set(view.frames.map((frame) => frame.block)).size;
  $("iterations").hidden = view.frames.length < 2;
  $("iterations").replaceChildren($("iterations").firstElementChild, ...view.frames.map((frame, i) => {
    const name = `${blocks > 1 ? `block ${frame.block + 1}, ` : ""}${frame.iteration + 1}`;
    const radio = element("input", { type: "radio", name: "iteration", value: String(i), checked: i === view.iteration });
    radio.addEventListener("change", () => { view.iteration = i; redrawGraph(); });
    return element("label", {}, radio, name);
  }));
  redrawGraph();
}

function redrawGraph() {
  $("weight-value").textContent = `≥ ${((Number($("weight").value) / 100) * current().largest).toPrecision(2)}`;
  draw();
  watchers.forEach((watcher) => watcher("graph"));
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
  $("play").textContent = view.timer ? "■ Stop" : "▶ Play";
}

function walk(event) {
  const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (by) {
    const nodes = [...(shownNodes() || Array(view.graph.n).keys())].sort((a, b) => a - b);
    const place = nodes.indexOf(view.node);
    mark(nodes[(place + by + nodes.length + (place < 0 && by < 0 ? 1 : 0)) % nodes.length]);
  } else if (event.key === "Enter" && view.node !== null) focus(view.node);
  else if (event.key === "Escape") focus(null);
  else return;
  event.preventDefault();
}

function startGraph() {
  if (!data.graphs || !data.graphs.length) return;
  $("graph-section").hidden = false;
  $("unseen").hidden = data.kind !== "run" || data.graphs.some((graph) => graph.notes.length);
  $("step-name").textContent = data.steps === "step" ? "Step" : "Epoch";
  fill($("training"), data.graphs.map((graph) => graph.name), data.graphs.map((_, i) => i));
  $("training-label").hidden = data.graphs.length < 2;
  choose(data.graphs[0]);
  $("graph").on("plotly_hover", ({ points: [point] }) => { if (point.customdata !== view.node) mark(point.customdata); });
  $("graph").on("plotly_click", ({ points: [point] }) => focus(point.customdata));
  $("graph").addEventListener("keydown", walk);
  $("training").addEventListener("change", (event) => choose(data.graphs[event.target.value]));
  $("step").addEventListener("input", () => step());
  $("play").addEventListener("click", play);
  $("all").addEventListener("click", () => focus(null));
  $("node").addEventListener("change", (event) => focus(Number(event.target.value)));
  for (const id of ["weight", "same", "other", "pictures", "budget"]) $(id).addEventListener("input", redrawGraph);
  redraws.push(redrawGraph);
}
