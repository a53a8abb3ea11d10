// The edges of a learned graph, from the payload's arrays.
import { decode } from "./codec.mjs";

/**
 * An edge from s to t of weight w.
 * @typedef {{s: number, t: number, w: number}} Edge
 */
/**
 * @typedef {object} Edges
 * @property {Edge[]} edges with their direction
 * @property {Edge[]} pairs the heavier edge of each two nodes, heaviest first
 * @property {{node: number, w: number}[][]} near the neighbours of each node, heaviest first
 */

/**
 * @param {GraphFrame} frame
 * @param {number} n number of nodes
 * @returns {Edges}
 */
export function unpackEdges(frame, n) {
  const source = decode(frame.source, Uint16Array);
  const target = decode(frame.target, Uint16Array);
  const weight = decode(frame.weight, Uint16Array);
  const edges = Array.from(source, (s, e) => ({
    s,
    t: target[e],
    w: (weight[e] / 65535) * frame.largest,
  }));
  /** @type {Map<number, Edge>} */
  const strongest = new Map();
  for (const { s, t, w } of edges) {
    const key = Math.min(s, t) * n + Math.max(s, t);
    const known = strongest.get(key);
    if (known) known.w = Math.max(known.w, w);
    else strongest.set(key, { s: Math.min(s, t), t: Math.max(s, t), w });
  }
  const pairs = [...strongest.values()].sort((a, b) => b.w - a.w);
  /** @type {{node: number, w: number}[][]} */
  const near = Array.from({ length: n }, () => []);
  for (const { s, t, w } of pairs) {
    near[s].push({ node: t, w });
    near[t].push({ node: s, w });
  }
  return { edges, pairs, near };
}

/**
 * The share of the weight between nodes of one class.
 * @param {Edge[]} edges
 * @param {number[]} labels
 */
export function weightWithin(edges, labels) {
  let own = 0;
  let total = 0;
  for (const { s, t, w } of edges) {
    total += w;
    if (labels[s] === labels[t]) own += w;
  }
  return own / total;
}
