// What the answers to the queries say of a model: ranks, classes, confusions, hubs.

/**
 * The answers of a model. An item is an image; `nearest` holds k of them for each query.
 * @typedef {object} Answers
 * @property {number} k
 * @property {ArrayLike<number>} queries the items that are queries
 * @property {ArrayLike<number>} labels of all items
 * @property {ArrayLike<number>} nearest
 * @property {ArrayLike<number> | null} ranks of the first right answer, 0 without one; null if unknown
 */

/**
 * The rank of the first right answer to each query: from the k answers that are known, else as it
 * was recorded, or k + 1. It is 0 where no other image has the query's class.
 * @param {Answers} answers
 * @returns {number[]}
 */
export function firstRight({ k, queries, labels, nearest, ranks }) {
  return Array.from(queries, (item, q) => {
    for (let i = 0; i < k; i++) if (labels[nearest[q * k + i]] === labels[item]) return i + 1;
    if (!ranks) return k + 1;
    return ranks[q] === 0 ? 0 : Math.max(k + 1, ranks[q]);
  });
}

/**
 * Numbers of the queries that the first answers of two models divide: wrong then right, and right
 * then wrong.
 * @param {number[]} before ranks
 * @param {number[]} after ranks
 */
export function outcomes(before, after) {
  const all = [...after.keys()];
  return {
    mended: all.filter((q) => after[q] === 1 && before[q] !== 1),
    broken: all.filter((q) => after[q] !== 1 && before[q] === 1),
    wrong: all.filter((q) => after[q] > 1),
    all,
  };
}

/**
 * How often the first answer is right, by class; the worst first.
 * @param {Answers} answers
 * @param {number[]} ranks
 */
export function byClass({ queries, labels }, ranks) {
  /** @type {Map<number, {label: number, count: number, right: number}>} */
  const found = new Map();
  ranks.forEach((rank, q) => {
    if (rank === 0) return;
    const label = labels[queries[q]];
    const line = found.get(label) ?? { label, count: 0, right: 0 };
    line.count += 1;
    if (rank === 1) line.right += 1;
    found.set(label, line);
  });
  return [...found.values()].sort(
    (a, b) => a.right / a.count - b.right / b.count || b.count - a.count,
  );
}

/**
 * Pairs of classes that are taken for each other by the first answer; the most frequent first.
 * @param {Answers} answers
 * @param {number[]} ranks
 */
export function confusions({ k, queries, labels, nearest }, ranks) {
  /** @type {Map<string, {one: number, other: number, count: number, queries: number[]}>} */
  const found = new Map();
  ranks.forEach((rank, q) => {
    if (rank < 2) return;
    const pair = [labels[queries[q]], labels[nearest[q * k]]].sort((a, b) => a - b);
    const line = found.get(`${pair}`) ?? { one: pair[0], other: pair[1], count: 0, queries: [] };
    line.count += 1;
    line.queries.push(q);
    found.set(`${pair}`, line);
  });
  return [...found.values()].sort((a, b) => b.count - a.count);
}

/**
 * Hubs: how often each image is among the k answers, and how often rightly; most frequent first.
 * @param {Answers} answers
 */
export function hubs({ k, queries, labels, nearest }) {
  /** @type {Map<number, {item: number, count: number, right: number}>} */
  const found = new Map();
  for (let i = 0; i < nearest.length; i++) {
    const item = nearest[i];
    const line = found.get(item) ?? { item, count: 0, right: 0 };
    line.count += 1;
    if (labels[item] === labels[queries[Math.floor(i / k)]]) line.right += 1;
    found.set(item, line);
  }
  return [...found.values()].sort((a, b) => b.count - a.count);
}

/**
 * The wrong queries as rows of a table, the worst first.
 * @param {Answers} answers
 * @param {number[]} ranks
 * @param {string[]} names of all items
 * @param {string[]} classes by label
 * @returns {(string | number)[][]}
 */
export function wrongRows({ k, queries, labels, nearest, ranks: known }, ranks, names, classes) {
  const wrong = [...ranks.keys()].filter((q) => ranks[q] > 1).sort((a, b) => ranks[b] - ranks[a]);
  return [
    ["image", "class", "rank_of_first_right", "first_answer", "class_of_first_answer"],
    ...wrong.map((q) => {
      const item = queries[q];
      const first = nearest[q * k];
      const rank = known || ranks[q] <= k ? ranks[q] : `> ${k}`;
      return [names[item], classes[labels[item]], rank, names[first], classes[labels[first]]];
    }),
  ];
}
