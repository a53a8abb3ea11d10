// Put the parts together.
function colours(theme) {
  document.documentElement.dataset.theme = theme;
}

async function start() {
  colours(window.matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light");
  $("notes").append(...data.notes.map((note) => element("li", { textContent: note })));
  await loadSheets();
  for (const part of [startGraph, startHeatmap, startMap, startRetrieval, startResults]) part();
  for (const section of document.querySelectorAll("section:not([hidden])")) {
    $("nav").append(element("a", { href: `#${section.id}`, textContent: section.dataset.title }));
  }
  $("theme").addEventListener("click", () => {
    colours(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
    redraws.forEach((redraw) => redraw());
  });
  document.documentElement.dataset.ready = "yes";
}

start();
