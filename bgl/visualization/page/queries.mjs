// The answers to the queries under several models, side by side.
import { firstRight, outcomes } from "./analysis.mjs";
import { decode } from "./codec.mjs";
import {
  $,
  addView,
  changed,
  element,
  fill,
  itemClass,
  itemLabel,
  itemName,
  picture,
  refresh,
  run,
  sign,
} from "./dom.mjs";

const PAGE = 120; // query buttons at a time
let limit = PAGE;

const retrieval = () => /** @type {NonNullable<Run["retrieval"]>} */ (run.retrieval);
const comparison = () => retrieval().comparisons[Number($("comparison").value)];

/** @type {Map<number, import("./analysis.mjs").Answers>} */
const unpacked = new Map();
/** @type {Map<number, number[]>} */
const ranked = new Map();

/** The answers of a model. @param {number} model @returns {import("./analysis.mjs").Answers} */
export function answers(model) {
  const known = unpacked.get(model);
  if (known) return known;
  const { k, queries, models } = retrieval();
  const { nearest: text, ranks: recorded } = models[model];
  const made = {
    k,
    queries,
    labels: run.items?.labels ?? [],
    nearest: decode(text, Uint16Array),
    ranks: recorded === null ? null : decode(recorded, Int32Array),
  };
  unpacked.set(model, made);
  return made;
}

/** The rank of the first right answer to each query. @param {number} model @returns {number[]} */
export function ranks(model) {
  const known = ranked.get(model) ?? firstRight(answers(model));
  ranked.set(model, known);
  return known;
}

/** @param {number} model @param {number} q */
export function nearest(model, q) {
  const { k, nearest: all } = answers(model);
  return Array.from({ length: k }, (_, i) => all[q * k + i]);
}

/** @type {Map<number, number> | null} */
let places = null;
/** The number of the query that an item is, or null. @param {number} item */
export function queryOf(item) {
  places ??= new Map(run.retrieval?.queries.map((query, q) => [query, q]));
  return places.get(item) ?? null;
}

/** @param {number} model @param {number} q */
export function rankText(model, q) {
  const rank = ranks(model)[q];
  const { k, ranks: exact } = answers(model);
  if (rank === 0) return "no other image of the class";
  return rank > k && !exact ? `> ${k}` : rank.toLocaleString("en");
}

/** The models of a comparison: what the queries are judged by, and against what. */
function pair() {
  const { before, without, graph } = comparison();
  const after = graph ?? without ?? before ?? 0;
  const base = [without, before].find((model) => model !== null && model !== after) ?? null;
  return { after, base };
}

/** @returns {Record<string, number[]>} lists of queries */
function lists() {
  const { after, base } = pair();
  const { mended, broken, wrong, all } = outcomes(ranks(base ?? after), ranks(after));
  return base === null ? { wrong, all } : { mended, broken, wrong, all };
}

/** Offer the lists of queries, with their sizes. */
function offer() {
  const { by, graph, without } = comparison();
  const found = lists();
  const kept = $("outcome").value;
  /** @type {Record<string, string>} */
  const names = {
    mended: `mended by the ${by}`,
    broken: `broken by the ${by}`,
    wrong: "wrong",
    all: "all",
  };
  const keys = Object.keys(found);
  fill(
    $("outcome"),
    keys.map((key) => `${names[key]} (${found[key].length.toLocaleString("en")})`),
    keys,
  );
  $("outcome").value = keys.includes(kept)
    ? kept
    : (keys.find((key) => found[key].length) ?? "all");
  const against =
    by === "graph" ? "without the graph" : by === "refinement" ? "as trained" : "before training";
  const now =
    graph === null || without === null
      ? "after training"
      : by === "refinement"
        ? "refined"
        : "with it";
  $("mended-means").textContent = !found.mended
    ? ""
    : `Mended: the first answer is wrong ${against} and right ${now}; broken: the reverse. ` +
      (by === "graph"
        ? "Two trainings that differ only in their seed mend and break some, too."
        : "");
}

function shownQueries() {
  const { after } = pair();
  const by = ranks(after);
  const { queries } = retrieval();
  const wanted = $("search").value.trim().toLowerCase();
  const found = lists()[$("outcome").value].filter((q) =>
    `${itemClass(queries[q])} ${itemName(queries[q])}`.toLowerCase().includes(wanted),
  );
  /** @type {Record<string, (a: number, b: number) => number>} */
  const orders = {
    worst: (a, b) => by[b] - by[a],
    best: (a, b) => by[a] - by[b],
    class: (a, b) => itemClass(queries[a]).localeCompare(itemClass(queries[b])),
    file: (a, b) => a - b,
  };
  return found.sort(orders[$("sort").value]);
}

function draw() {
  const { queries } = retrieval();
  const { after } = pair();
  const found = shownQueries();
  const shown = found.slice(0, limit);
  const chosen =
    $("query").value === "" ? shown[0] : Math.min(Number($("query").value), queries.length - 1);
  $("queries").replaceChildren(
    ...shown.map((q) => {
      const item = queries[q];
      const title = `${itemClass(item)}, rank ${rankText(after, q)}`;
      const pressed = String(q === chosen);
      const button = element("button", {
        type: "button",
        "aria-pressed": pressed,
        "data-query": q,
      });
      button.append(picture("items", item, 44, title));
      button.addEventListener("click", () => {
        $("query").value = String(q);
        changed($("query"));
      });
      return button;
    }),
  );
  const count = found.length.toLocaleString("en");
  $("more").textContent = found.length ? `${shown.length} of ${count} queries. ` : "No such query.";
  if (shown.length < found.length) {
    const more = element("button", { type: "button", textContent: "Show more" });
    more.addEventListener("click", () => {
      limit += PAGE;
      refresh("queries");
    });
    $("more").append(more);
  }
  if (chosen === undefined) $("answer").replaceChildren();
  else ask(chosen);
}

/** @param {number} q */
function ask(q) {
  for (const button of $("queries").children)
    button.setAttribute("aria-pressed", String(Number(button.dataset.query) === q));
  const { queries, models } = retrieval();
  const item = queries[q];
  const { before, without, graph, titles } = comparison();
  const words = titles ?? [
    "Before training",
    "Without graph",
    graph === null ? "After training" : "With graph",
  ];
  const columns = [before, without, graph].flatMap((model, i) =>
    model === null ? [] : [{ title: words[i], model }],
  );
  $("answer").replaceChildren(
    element(
      "div",
      { className: "about" },
      picture("items", item, 72, itemClass(item)),
      element(
        "div",
        {},
        element("h3", { textContent: itemClass(item) }),
        element("p", { textContent: itemName(item) }),
      ),
    ),
    element(
      "div",
      { className: "answers" },
      ...columns.map(({ title, model }) =>
        element(
          "div",
          {},
          element("h4", { textContent: `${title} (${models[model].name})` }),
          element("p", { textContent: `First right answer: ${rankText(model, q)}` }),
          element("ol", {}, ...nearest(model, q).map((other) => answer(item, other))),
        ),
      ),
    ),
  );
}

/** @param {number} item @param {number} other */
function answer(item, other) {
  const right = itemLabel(other) === itemLabel(item);
  const framed = picture("items", other, 44, itemClass(other));
  framed.classList.add("framed");
  framed.classList.toggle("right", right);
  const name = element("span", { className: "name", textContent: itemClass(other) });
  return element("li", { title: itemName(other) }, framed, sign(right), name);
}

export function startQueries() {
  if (!run.retrieval?.queries.length) return;
  addView("queries", draw);
  const { comparisons } = run.retrieval;
  fill(
    $("comparison"),
    comparisons.map((c) => c.name),
    [...comparisons.keys()],
  );
  $("comparison-label").hidden = comparisons.length < 2;
  offer();
  $("comparison").addEventListener("change", () => {
    offer();
    refresh("queries");
  });
  for (const id of ["comparison", "outcome", "sort", "search"])
    $(id).addEventListener("input", () => {
      limit = PAGE;
      $("query").value = "";
      refresh("queries");
    });
  $("query").addEventListener("change", () => refresh("queries"));
}
