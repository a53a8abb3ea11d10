// Elements, pictures, colours and charts that all views of the page share.
import { chosenRun } from "./address.mjs";
import { decode } from "./codec.mjs";

/** @param {string} id @returns {any} the element, of whatever kind it is */
export const $ = (id) => document.getElementById(id);

/** @type {Page} */
export const page = JSON.parse($("data").textContent);
export const run = page.runs[chosenRun(location.hash, page.runs.length)];

/**
 * Make an element. Texts only ever become text nodes: a label with markup in it is shown, not run.
 * @param {string} tag
 * @param {Record<string, any>} properties those with a dash are attributes
 * @param {(Node | string)[]} children
 * @returns {any}
 */
export function element(tag, properties = {}, ...children) {
  /** @type {any} */
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "colspan") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/**
 * Offer choices.
 * @param {HTMLSelectElement} select
 * @param {string[]} names
 * @param {(string | number)[]} values
 */
export function fill(select, names, values = names) {
  const options = names.map((name, i) =>
    element("option", { textContent: name, value: values[i] }),
  );
  select.replaceChildren(...options);
}

/** Tell the page about a value that was set by the program, as if a hand had. @param {any} control */
export function changed(control) {
  for (const kind of ["input", "change"]) control.dispatchEvent(new Event(kind, { bubbles: true }));
}

/** @param {boolean} right @returns {HTMLElement} */
export const sign = (right) =>
  element("span", { className: right ? "sign right" : "sign", textContent: right ? "✓" : "✗" });

/** Hand a file to the reader. @param {string} name @param {Blob} blob */
export function save(name, blob) {
  const url = URL.createObjectURL(blob);
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}

// --- pictures: each atlas is one sheet, decoded once ---

/** @type {Record<string, {side: number, columns: number, bitmap: ImageBitmap, url: string, cut: Map<number, string>}>} */
export const sheets = {};

export async function loadSheets() {
  for (const [name, { src, side, columns }] of Object.entries(run.atlases)) {
    const blob = new Blob([decode(src.split(",")[1], Uint8Array)], { type: "image/webp" });
    const bitmap = await createImageBitmap(blob);
    sheets[name] = { side, columns, bitmap, url: URL.createObjectURL(blob), cut: new Map() };
  }
}

/**
 * A picture as an HTML element.
 * @param {string} atlas
 * @param {number} slot
 * @param {number} size in pixels
 * @param {string} alt
 * @returns {HTMLElement}
 */
export function picture(atlas, slot, size, alt) {
  const sheet = sheets[atlas];
  if (!sheet) return element("span", { className: "picture word", textContent: alt });
  const made = element("span", {
    className: "picture",
    role: "img",
    "aria-label": alt,
    title: alt,
  });
  const scale = size / sheet.side;
  const [across, down] = [slot % sheet.columns, Math.floor(slot / sheet.columns)];
  Object.assign(made.style, {
    width: `${size}px`,
    height: `${size}px`,
    backgroundImage: `url(${sheet.url})`,
    backgroundSize: `${sheet.bitmap.width * scale}px ${sheet.bitmap.height * scale}px`,
    backgroundPosition: `${-across * size}px ${-down * size}px`,
  });
  return made;
}

/** A picture as a data URI of its own, for plotly. @param {string} atlas @param {number} slot */
export function cutOut(atlas, slot) {
  const { side, columns, bitmap, cut } = sheets[atlas];
  const known = cut.get(slot);
  if (known) return known;
  const canvas = element("canvas", { width: side, height: side });
  const [x, y] = [(slot % columns) * side, Math.floor(slot / columns) * side];
  canvas.getContext("2d").drawImage(bitmap, x, y, side, side, 0, 0, side, side);
  const uri = canvas.toDataURL("image/png");
  cut.set(slot, uri);
  return uri;
}

// --- items: the test images ---

/** @param {number} item */
export const itemLabel = (item) => run.items?.labels[item] ?? -1;
/** @param {number} item */
export const itemClass = (item) => run.items?.classes[itemLabel(item)] ?? "";
/** @param {number} item */
export const itemName = (item) => run.items?.names[item] ?? "";

// --- colours ---

// Okabe and Ito's palette: told apart with any kind of colour vision
export const palette = [
  "#e69f00",
  "#56b4e9",
  "#009e73",
  "#f0e442",
  "#0072b2",
  "#d55e00",
  "#cc79a7",
  "#999999",
];
const symbols = [
  "circle",
  "square",
  "diamond",
  "triangle-up",
  "triangle-down",
  "cross",
  "x",
  "star",
];
/** @param {number | null} label */
export const color = (label) => palette[label === null ? 1 : label % palette.length];
/** @param {number | null} label */
export const symbol = (label) =>
  symbols[label === null ? 0 : Math.floor(label / palette.length) % symbols.length];
/** @param {string} name of a variable of the style sheet */
export const css = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
export const isDark = () => document.documentElement.dataset.theme === "dark";
export const narrow = () => window.innerWidth <= 800;

// --- charts ---

export const bareAxis = { visible: false, fixedrange: false, zeroline: false };

/**
 * Draw a chart, and listen to it from its first drawing on.
 * @param {string} id
 * @param {object[]} traces
 * @param {object} layout
 * @param {Record<string, (event: any) => void>} events
 */
export function plot(id, traces, layout, events = {}) {
  const first = !$(id).on;
  const common = {
    paper_bgcolor: css("back"),
    plot_bgcolor: css("back"),
    font: { color: css("text"), family: "system-ui, sans-serif", size: 12 },
    margin: { l: 8, r: 8, t: 8, b: 8 },
    showlegend: false,
    dragmode: narrow() ? false : "pan",
    hovermode: "closest",
  };
  const settings = {
    displaylogo: false,
    responsive: false, // views draw themselves anew: see main.mjs
    displayModeBar: !narrow() && "hover",
    modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d"]],
  };
  const drawn = { ...common, ...layout };
  if (drawn.dragmode !== "pan") settings.displayModeBar = false; // it would cover the title
  Plotly.react(id, traces, drawn, settings);
  if (first) for (const [name, answer] of Object.entries(events)) $(id).on(name, answer);
}

// --- views: one is shown at a time, and drawn when it is ---

/** @type {Map<string, () => void>} */
const draws = new Map();
/** @type {Set<string>} */
const stale = new Set();
let open = "";

/** Add a view. @param {string} name @param {() => void} draw */
export function addView(name, draw) {
  draws.set(name, draw);
  stale.add(name);
}

export const views = () => [...draws.keys()];

/** Draw a view anew, at once if it is shown; without a name, all of them. @param {string[]} names */
export function refresh(...names) {
  for (const name of names.length ? names : views()) stale.add(name);
  if (stale.delete(open)) draws.get(open)?.();
}

/** @param {string} name */
export function showView(name) {
  open = name;
  for (const other of views()) $(`${other}-section`).hidden = other !== name;
  for (const link of $("nav").children) {
    if (link.dataset.view === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (stale.delete(name)) draws.get(name)?.();
}
