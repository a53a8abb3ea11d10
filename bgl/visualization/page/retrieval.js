// The retrieval browser: a query, and its nearest images under several models.
const PAGE = 120; // query buttons at a time
const retrieval = { query: null, outcome: "mended", limit: PAGE };

const compared = () => data.retrieval.comparisons[Number($("retrieval-view").value)];

function nearest(model, q) {
  const all = data.retrieval.models[model];
  all.ids = all.ids || decode(all.nearest, Uint16Array);
  return all.ids.subarray(q * data.retrieval.k, (q + 1) * data.retrieval.k);
}

const right = (model, q) => itemLabel(nearest(model, q)[0]) === itemLabel(data.retrieval.queries[q]);

function outcomes() {
  const { before, without, graph } = compared();
  const all = data.retrieval.queries.map((_, q) => q);
  const base = without ?? before;
  const lists = { all };
  if (graph !== null && base !== null) {
    lists.mended = all.filter((q) => right(graph, q) && !right(base, q));
    lists.broken = all.filter((q) => !right(graph, q) && right(base, q));
  }
  return lists;
}

function drawQueries() {
  const lists = outcomes();
  if (!lists[retrieval.outcome]) retrieval.outcome = "all";
  const { by } = compared();
  const names = { mended: `mended by the ${by}`, broken: `broken by the ${by}`, all: "all" };
  $("outcome").replaceChildren($("outcome").firstElementChild, ...["mended", "broken", "all"].filter((name) => lists[name]).map((name) => {
    const radio = element("input", { type: "radio", name: "outcome", value: name, checked: name === retrieval.outcome });
    radio.addEventListener("change", () => {
      Object.assign(retrieval, { outcome: name, limit: PAGE, query: null });
      drawQueries();
      document.querySelector(`input[name="outcome"][value="${name}"]`).focus();
    });
    return element("label", {}, radio, `${names[name]} (${lists[name].length})`);
  }));
  const wanted = $("search").value.trim().toLowerCase();
  const found = lists[retrieval.outcome].filter((q) => itemName(data.retrieval.queries[q]).toLowerCase().includes(wanted));
  const shown = found.slice(0, retrieval.limit);
  $("queries").replaceChildren(...shown.map((q) => {
    const item = data.retrieval.queries[q];
    const button = element("button", { type: "button", "aria-pressed": String(q === retrieval.query) }, picture("items", item, 44, itemName(item)));
    button.dataset.query = q;
    button.addEventListener("click", () => ask(q));
    return button;
  }));
  $("more").textContent = found.length ? `${shown.length} of ${found.length} queries. ` : "No such query.";
  if (shown.length < found.length) {
    const more = element("button", { type: "button", textContent: "Show more" });
    more.addEventListener("click", () => { retrieval.limit += PAGE; drawQueries(); });
    $("more").append(more);
  }
  if (retrieval.query === null && shown.length) ask(shown[0]);
  else if (!shown.length) $("answer").replaceChildren();
}

function ask(q) {
  retrieval.query = q;
  for (const button of $("queries").children) button.setAttribute("aria-pressed", String(Number(button.dataset.query) === q));
  const item = data.retrieval.queries[q];
  const { before, without, graph } = compared();
  const titles = compared().titles ?? ["Before training", "Without graph", "With graph"];
  const columns = [before, without, graph].map((model, i) => [titles[i], model]);
  $("answer").replaceChildren(
    element("div", { className: "query" }, picture("items", item, 96, itemName(item)),
      element("div", {}, element("strong", { textContent: itemName(item) }), element("br"), data.items.names[item])),
    element("div", { className: "answers" }, ...columns.map(([name, model]) => {
      if (model === null) return element("div", {}, element("h3", { textContent: name }), element("p", { textContent: "This run has no such model." }));
      return element("div", {}, element("h3", { textContent: `${name} (${data.retrieval.models[model].name})` }),
        element("ol", {}, ...Array.from(nearest(model, q), (other) => {
          const good = itemLabel(other) === itemLabel(item);
          const framed = picture("items", other, 56, itemName(other));
          framed.classList.add("framed");
          framed.classList.toggle("right", good);
          framed.style.boxSizing = "content-box";
          return element("li", { title: itemName(other) }, framed, element("br"), element("span", { className: `sign${good ? " right" : ""}`, textContent: good ? "✓" : "✗" }));
        })));
    })),
  );
}

function startRetrieval() {
  if (!data.retrieval || !data.retrieval.queries.length) return;
  $("retrieval-section").hidden = false;
  fill($("retrieval-view"), data.retrieval.comparisons.map((c) => c.name), data.retrieval.comparisons.map((_, i) => i));
  if (!outcomes().mended?.length) retrieval.outcome = "all";
  drawQueries();
  $("retrieval-view").addEventListener("change", () => { retrieval.query = null; drawQueries(); });
  $("search").addEventListener("input", () => { Object.assign(retrieval, { limit: PAGE, query: null }); drawQueries(); });
}
