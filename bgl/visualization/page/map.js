// The map of the test classes.
let mapMarked = null; // item under the pointer

const mapView = () => data.map.views[Number($("map-view").value)];
const itemLabel = (item) => data.items.labels[item];
const itemName = (item) => data.items.classes[itemLabel(item)];

function drawMap() {
  const { items } = data.map;
  const chosen = mapView();
  chosen.at = chosen.at || decode(chosen.points, Float32Array);
  const at = chosen.at;
  const withPictures = sheets.items && $("map-pictures").checked;
  const room = Math.min($("map").clientWidth, $("map").clientHeight);
  const x = items.map((_, i) => at[2 * i]);
  const y = items.map((_, i) => at[2 * i + 1]);
  const extent = Math.max(Math.max(...x) - Math.min(...x), Math.max(...y) - Math.min(...y)) || 1;
  const side = ((narrow() ? 15 : 28) / room) * extent;
  const images = !withPictures ? [] : chosen.shown.map((i) => ({
    source: cutOut("items", items[i]), x: x[i], y: y[i], xref: "x", yref: "y",
    sizex: side, sizey: side, xanchor: "center", yanchor: "middle", layer: "above",
  }));
  Plotly.react("map", [{
    x, y, customdata: items.map((_, i) => i), mode: "markers", hoverinfo: "none",
    marker: { size: 7, opacity: 0.75, color: items.map((item) => color(itemLabel(item))), symbol: items.map((item) => symbol(itemLabel(item))) },
  }, {
    x: [], y: [], mode: "markers", hoverinfo: "skip",
    marker: { size: 16, color: "rgba(0,0,0,0)", line: { width: 3, color: css("mark") } },
  }], layout({ xaxis: bareAxis, yaxis: { ...bareAxis, scaleanchor: "x" }, images }), settings);
  markMap(mapMarked);
}

// Ring the class of a point, and show its images beside the map.
function markMap(i) {
  mapMarked = i;
  if (i === null) {
    $("map-card").replaceChildren(element("p", { textContent: "Point at an image, or choose a class above the map." }));
    Plotly.restyle("map", { x: [[]], y: [[]] }, [1]);
    return;
  }
  const { items } = data.map;
  const { at } = mapView();
  const own = items.map((_, j) => j).filter((j) => itemLabel(items[j]) === itemLabel(items[i]));
  Plotly.restyle("map", { x: [own.map((j) => at[2 * j])], y: [own.map((j) => at[2 * j + 1])] }, [1]);
  $("map-class").value = String(itemLabel(items[i]));
  $("map-card").replaceChildren(
    ...(sheets.items ? [picture("items", items[i], 96, itemName(items[i]))] : []),
    element("h3", { textContent: itemName(items[i]) }),
    element("p", { textContent: `${own.length} images of this class on the map, ringed.` }),
    ...(sheets.items ? own.map((j) => picture("items", items[j], 40, itemName(items[j]))) : []),
  );
}

function startMap() {
  if (!data.map || !data.map.views.length) return;
  $("map-section").hidden = false;
  $("map-pictures-label").hidden = !sheets.items;
  fill($("map-view"), data.map.views.map((v) => v.name), data.map.views.map((_, i) => i));
  $("map-view").selectedIndex = data.map.views.length - 1;
  const labels = [...new Set(data.map.items.map(itemLabel))];
  fill($("map-class"), labels.map((l) => data.items.classes[l]), labels);
  $("map-class").selectedIndex = -1;
  drawMap();
  $("map").on("plotly_hover", ({ points: [point] }) => markMap(point.customdata));
  $("map").on("plotly_click", ({ points: [point] }) => markMap(point.customdata));
  $("map-view").addEventListener("change", drawMap);
  $("map-pictures").addEventListener("change", drawMap);
  $("map-class").addEventListener("change", (event) =>
    markMap(data.map.items.findIndex((item) => itemLabel(item) === Number(event.target.value))));
  redraws.push(drawMap);
}
