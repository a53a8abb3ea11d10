// Put the views together: which is shown, in which colours, and what the address says.
import { fromHash, toHash } from "./address.mjs";
import {
  $,
  changed,
  element,
  fill,
  isDark,
  loadSheets,
  page,
  refresh,
  run,
  showView,
  views,
} from "./dom.mjs";
import { startErrors } from "./errors.mjs";
import { startGraph } from "./graph.mjs";
import { startMap } from "./map.mjs";
import { startOverview } from "./overview.mjs";
import { startQueries } from "./queries.mjs";
import { startTraining } from "./training.mjs";

/** @param {boolean} dark */
function colours(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  $("theme").textContent = dark ? "☀" : "☾";
  $("theme").title = dark ? "Light colours" : "Dark colours";
  $("theme").setAttribute("aria-label", $("theme").title);
  refresh();
}

/** @type {HTMLInputElement[]} the controls whose values the address keeps, in their order */
const kept = [...document.querySelectorAll("[data-keep]")].map(
  (control) => /** @type {any} */ (control),
);

/** @param {HTMLInputElement} control */
const valueOf = (control) =>
  control.type === "checkbox" ? String(control.checked) : control.value;

function chosen() {
  const [view] = views().filter((name) => !$(`${name}-section`).hidden);
  return { view, ...Object.fromEntries(kept.map((control) => [control.id, valueOf(control)])) };
}

/** @param {Record<string, string>} defaults */
function keepAddress(defaults) {
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  const write = () => {
    clearTimeout(timer);
    timer = setTimeout(() => {
      const hash = toHash(chosen(), defaults);
      if (hash !== location.hash)
        history.replaceState(null, "", hash || location.pathname + location.search);
    }, 150);
  };
  for (const kind of ["input", "change"]) document.addEventListener(kind, write);
  return write;
}

/** Bring the page to what an address says. @param {Record<string, string>} wanted */
function restore(wanted) {
  for (const control of kept) {
    const value = wanted[control.id];
    if (control.id === "run" || value === undefined || value === valueOf(control)) continue;
    if (control.type === "checkbox") control.checked = value === "true";
    else control.value = value;
    if (control instanceof HTMLSelectElement && control.selectedIndex < 0)
      control.selectedIndex = 0;
    changed(control);
  }
  if (views().includes(wanted.view)) showView(wanted.view);
}

/** Save the drawn one of some charts. @param {string[]} ids */
function savePicture(ids) {
  const [id] = ids.filter((name) => !$(name).hidden);
  const { clientWidth: width, clientHeight: height } = $(id);
  Plotly.downloadImage(id, {
    format: "png",
    scale: 2,
    width,
    height,
    filename: `${run.name} ${id}`,
  });
}

async function start() {
  const preference = window.matchMedia("(prefers-color-scheme: dark)");
  colours(preference.matches);
  $("notes").append(...run.notes.map((note) => element("li", { textContent: note })));
  $("run-label").hidden = page.runs.length < 2;
  fill(
    $("run"),
    page.runs.map(({ name }) => name),
    [...page.runs.keys()],
  );
  $("run").value = String(page.runs.indexOf(run));
  await loadSheets();
  for (const view of [
    startOverview,
    startGraph,
    startMap,
    startQueries,
    startErrors,
    startTraining,
  ])
    view();
  $("nav").hidden = views().length < 2;
  for (const name of views()) {
    const title = $(`${name}-section`).dataset.title;
    $("nav").append(element("a", { href: `#view=${name}`, "data-view": name, textContent: title }));
  }
  if (views().length) showView(views()[0]);
  const defaults = { ...chosen(), run: "0" };
  restore(fromHash(location.hash));
  const write = keepAddress(defaults);
  for (const link of document.querySelectorAll("a[data-view]"))
    link.addEventListener("click", (event) => {
      event.preventDefault();
      showView(/** @type {HTMLElement} */ (link).dataset.view ?? "");
      window.scrollTo(0, 0);
      write();
    });
  $("theme").addEventListener("click", () => colours(!isDark()));
  preference.addEventListener("change", () => colours(preference.matches));
  $("run").addEventListener("change", () => {
    location.hash = `#run=${$("run").value}&view=${chosen().view}`;
  });
  window.addEventListener("hashchange", () => {
    const wanted = fromHash(location.hash);
    if (page.runs.length > 1 && (wanted.run ?? "0") !== String(page.runs.indexOf(run)))
      location.reload();
    else restore({ ...defaults, ...wanted });
  });
  for (const button of document.querySelectorAll("[data-picture]"))
    button.addEventListener("click", () =>
      savePicture((button.getAttribute("data-picture") ?? "").split(" ")),
    );
  /** @type {ReturnType<typeof setTimeout> | undefined} */
  let timer;
  window.addEventListener("resize", () => {
    clearTimeout(timer);
    timer = setTimeout(() => refresh(), 200);
  });
  document.documentElement.dataset.ready = "yes";
}

start();
