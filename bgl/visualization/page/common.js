// Data, pictures and colours that all parts of the page share.
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function decode(text, Kind) {
  const letters = atob(text);
  const bytes = new Uint8Array(letters.length);
  for (let i = 0; i < letters.length; i++) bytes[i] = letters.charCodeAt(i);
  return new Kind(bytes.buffer);
}

// Texts only ever become text nodes: a label with markup in it is shown, not run.
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || name === "role" || name === "for") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

function fill(select, names, values = names) {
  select.replaceChildren(...names.map((name, i) => element("option", { textContent: name, value: values[i] })));
}

// plotly reads a little markup in its texts: take its meaning away.
const plain = (text) => String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;");

function percent(share) {
  return Number.isFinite(share) ? `${(100 * share).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %` : "–";
}

// --- pictures: each atlas is one sheet, decoded once ---

const sheets = {};

async function loadSheets() {
  for (const [name, { src, side, columns }] of Object.entries(data.atlases)) {
    const blob = new Blob([decode(src.split(",")[1], Uint8Array)], { type: "image/webp" });
    const bitmap = await createImageBitmap(blob);
    sheets[name] = { side, columns, bitmap, url: URL.createObjectURL(blob), cut: new Map() };
  }
}

// A picture as an HTML element, `size` pixels wide.
function picture(atlas, slot, size, alt) {
  const sheet = sheets[atlas];
  if (!sheet || slot < 0) return element("span", { className: "picture word", textContent: alt });
  const made = element("span", { className: "picture", role: "img", "aria-label": alt, title: alt });
  const scale = size / sheet.side;
  Object.assign(made.style, {
    width: `${size}px`,
    height: `${size}px`,
    backgroundImage: `url(${sheet.url})`,
    backgroundSize: `${sheet.bitmap.width * scale}px ${sheet.bitmap.height * scale}px`,
    backgroundPosition: `${-(slot % sheet.columns) * size}px ${-Math.floor(slot / sheet.columns) * size}px`,
  });
  return made;
}

// A picture as a data URI of its own, for plotly.
function cutOut(atlas, slot) {
  const sheet = sheets[atlas];
  if (!sheet.cut.has(slot)) {
    const canvas = element("canvas", { width: sheet.side, height: sheet.side });
    const x = (slot % sheet.columns) * sheet.side;
    const y = Math.floor(slot / sheet.columns) * sheet.side;
    canvas.getContext("2d").drawImage(sheet.bitmap, x, y, sheet.side, sheet.side, 0, 0, sheet.side, sheet.side);
    sheet.cut.set(slot, canvas.toDataURL("image/png"));
  }
  return sheet.cut.get(slot);
}

// --- colours ---

// Okabe and Ito's palette: told apart with any kind of colour vision
const palette = ["#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7", "#999999"];
const symbols = ["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "x", "star"];
const color = (label) => (label === null ? palette[1] : palette[label % palette.length]);
const symbol = (label) => (label === null ? symbols[0] : symbols[Math.floor(label / palette.length) % symbols.length]);
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
const narrow = () => window.innerWidth <= 800;

function layout(extra) {
  return {
    paper_bgcolor: css("back"),
    plot_bgcolor: css("back"),
    font: { color: css("text"), family: "system-ui, sans-serif", size: 12 },
    margin: { l: 8, r: 8, t: 8, b: 8 },
    showlegend: false,
    dragmode: narrow() ? false : "pan",
    hovermode: "closest",
    ...extra,
  };
}

const bareAxis = { visible: false, fixedrange: false, zeroline: false };
const settings = {
  displaylogo: false,
  responsive: true,
  displayModeBar: narrow() ? false : "hover",
  modeBarButtons: [["zoomIn2d", "zoomOut2d", "resetScale2d"]],
};

const redraws = []; // called when the colours change
