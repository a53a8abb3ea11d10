// What the panel of the batch graph says of a node.
import { element, picture, sign } from "./dom.mjs";

const LISTED = 6; // neighbours

/**
 * @param {BatchGraph} graph
 * @param {import("./edges.mjs").Edges} frame
 * @param {number} node
 * @returns {Node[]}
 */
export function nodeCard({ labels, classes, nodes, atlas }, { edges, near }, node) {
  const nameOf = (/** @type {number} */ i) => (labels ? classes[labels[i]] : "");
  const own = (/** @type {number} */ i) => labels?.[i] === labels?.[node];
  const sources = edges.filter((edge) => edge.t === node).length;
  const targets = edges.filter((edge) => edge.s === node).length;
  const image = `Image ${nodes[node]}`;
  const same = near[node].filter((edge) => own(edge.node)).length;
  const among = `${near[node].length} neighbours${labels ? `, ${same} of its class` : ""}`;
  const list = near[node].slice(0, LISTED).map((edge) => {
    const text = `${nameOf(edge.node) || `image ${nodes[edge.node]}`} · ${edge.w.toPrecision(2)}`;
    return element(
      "li",
      {},
      ...(atlas ? [picture(atlas, edge.node, 40, "")] : []),
      ...(labels ? [sign(own(edge.node))] : []),
      element("span", { textContent: text }),
    );
  });
  return [
    element(
      "div",
      { className: "about" },
      ...(atlas ? [picture(atlas, node, 84, image)] : []),
      element(
        "div",
        {},
        element("h3", { textContent: nameOf(node) || image }),
        element("p", { textContent: nameOf(node) ? image : "" }),
      ),
    ),
    element("p", {
      textContent: `${among}: it takes messages from ${sources} and sends to ${targets}.`,
    }),
    ...(list.length ? [element("h4", { textContent: "Strongest" })] : []),
    element("ol", {}, ...list),
  ];
}
