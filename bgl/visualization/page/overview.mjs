// The first view: what was run, and what came out.
import { unpackEdges, weightWithin } from "./edges.mjs";
import { percent } from "./codec.mjs";
import { $, addView, element, page, run } from "./dom.mjs";

const COLUMNS = ["R@1", "Δ", "MAP@R", "Δ", "seeds", "epoch", "minutes"];
const KINDS = ["figure", "gain", "figure", "gain"];

/** @param {Arm} arm */
function cells(arm) {
  const values = [arm.recall, arm.recall_gain, arm.map, arm.map_gain];
  return [...values, arm.seeds, arm.epoch, arm.minutes].map((text, i) =>
    element("td", { textContent: text, className: KINDS[i] ?? "" }),
  );
}

/** The arms of all runs of the page, the shown run's first column leading to its views. */
function table() {
  const several = page.runs.length > 1;
  const head = ["", ...COLUMNS].map((text) => element("th", { textContent: text, scope: "col" }));
  const body = page.runs.flatMap(({ name, overview }, number) => {
    const title = element("a", { href: `#run=${number}`, textContent: name });
    const group = element("th", { scope: "rowgroup", colspan: COLUMNS.length + 1 }, title);
    const lines = (overview?.arms ?? []).map((arm) =>
      element(
        "tr",
        { className: arm.trained ? "" : "faint" },
        element("th", { textContent: arm.name, scope: "row" }),
        ...cells(arm),
      ),
    );
    return several ? [element("tr", { className: "group" }, group), ...lines] : lines;
  });
  return element(
    "table",
    {},
    element("thead", {}, element("tr", {}, ...head)),
    element("tbody", {}, ...body),
  );
}

/** What the other views hold, in a number each. @returns {[string, string, string][]} */
function tour() {
  /** @type {[string, string, string][]} */
  const stops = [];
  const graph = run.graphs[0];
  if (graph?.labels) {
    const last = graph.frames[graph.frames.length - 1];
    const first = graph.frames.filter((frame) => frame.position === 0).pop() ?? last;
    const [before, after] = [first, last].map((frame) =>
      percent(weightWithin(unpackEdges(frame, graph.n).edges, graph.labels ?? [])),
    );
    const share = first === last ? after : `${before} → ${after}`;
    stops.push([
      "graph",
      share,
      `of the weight joins images of one class${first === last ? "" : ", before → after training"}`,
    ]);
  }
  if (run.map)
    stops.push([
      "map",
      run.map.items.length.toLocaleString("en"),
      "test images on a map, by similarity",
    ]);
  if (run.retrieval) {
    const { queries, models } = run.retrieval;
    stops.push([
      "queries",
      queries.length.toLocaleString("en"),
      "queries with the nearest images of each model",
    ]);
    stops.push([
      "errors",
      models[models.length - 1].name,
      "its worst classes, confused classes and hubs",
    ]);
  }
  if (run.curves?.length)
    stops.push([
      "training",
      `${run.curves.length}`,
      "curves over the epochs, all results, configuration",
    ]);
  return stops;
}

export function startOverview() {
  const { overview } = run;
  if (!overview) return;
  addView("overview", () => {});
  $("facts").append(
    ...overview.facts.map(([name, text]) =>
      element(
        "div",
        {},
        element("dt", { textContent: name }),
        element("dd", { textContent: text }),
      ),
    ),
  );
  $("measured").textContent = overview.measured;
  if (page.runs.some((other) => other.overview?.arms.length)) $("arms").append(table());
  $("remarks").append(...overview.remarks.map((text) => element("li", { textContent: text })));
  $("tour").append(
    ...tour().map(([view, value, text]) =>
      element(
        "a",
        { href: `#view=${view}`, "data-view": view },
        element("span", { textContent: $(`${view}-section`).dataset.title }),
        element("strong", { textContent: value }),
        element("span", { textContent: text }),
      ),
    ),
  );
}
