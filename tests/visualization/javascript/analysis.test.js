// What the page computes, without a browser.
import assert from "node:assert/strict";
import test from "node:test";

import { chosenRun, fromHash, toHash } from "../../../bgl/visualization/page/address.mjs";
import {
  byClass,
  confusions,
  firstRight,
  hubs,
  outcomes,
  wrongRows,
} from "../../../bgl/visualization/page/analysis.mjs";
import { csv, decode, percent, plain } from "../../../bgl/visualization/page/codec.mjs";
import { unpackEdges, weightWithin } from "../../../bgl/visualization/page/edges.mjs";

const encode = (array) => Buffer.from(array.buffer).toString("base64");

// items 0 1 2 of class 0, items 3 4 of class 1, item 5 alone in class 2
const answers = {
  k: 2,
  queries: [0, 1, 2, 3, 4, 5],
  labels: [0, 0, 0, 1, 1, 2],
  nearest: Uint16Array.of(1, 2, 3, 0, 3, 4, 4, 0, 2, 1, 4, 3),
  ranks: Int32Array.of(1, 2, 4, 1, 5, 0),
};
const ranks = [1, 2, 4, 1, 5, 0];

test("ranks come from the answers, then from what was recorded", () => {
  assert.deepEqual(firstRight(answers), ranks);
  assert.deepEqual(firstRight({ ...answers, ranks: null }), [1, 2, 3, 1, 3, 3]);
  const inconsistent = { ...answers, ranks: Int32Array.of(9, 9, 1, 9, 1, 0) }; // equal similarities
  assert.deepEqual(firstRight(inconsistent), [1, 2, 3, 1, 3, 0]);
});

test("a query is mended or broken by its first answer", () => {
  const { mended, broken, wrong, all } = outcomes([1, 3, 2, 1], [2, 1, 4, 1]);
  assert.deepEqual(
    { mended, broken, wrong, all },
    { mended: [1], broken: [0], wrong: [0, 2], all: [0, 1, 2, 3] },
  );
});

test("classes are sorted by their share of right answers", () => {
  assert.deepEqual(byClass(answers, ranks), [
    { label: 0, count: 3, right: 1 },
    { label: 1, count: 2, right: 1 },
  ]); // the class of one image has no right answer: it is left out
});

test("confused classes are counted in both directions", () => {
  assert.deepEqual(confusions(answers, ranks), [
    { one: 0, other: 1, count: 3, queries: [1, 2, 4] },
  ]);
});

test("hubs are counted over all answers", () => {
  const found = hubs(answers);
  assert.equal(
    found.reduce((sum, { count }) => sum + count, 0),
    answers.nearest.length,
  );
  assert.deepEqual(found[0], { item: 3, count: 3, right: 0 });
  assert.deepEqual(
    found.find(({ item }) => item === 1),
    { item: 1, count: 2, right: 1 },
  );
});

test("wrong images are listed with their first answer, the worst first", () => {
  const names = ["a", "b", "c", "d", "e", "f"];
  const classes = ["zero", "one", "two"];
  assert.deepEqual(wrongRows(answers, ranks, names, classes).slice(1), [
    ["e", "one", 5, "c", "zero"],
    ["c", "zero", 4, "d", "one"],
    ["b", "zero", 2, "d", "one"],
  ]);
  const unknown = { ...answers, ranks: null };
  assert.equal(wrongRows(unknown, firstRight(unknown), names, classes)[1][2], "> 2");
});

test("CSV keeps separators, quotes and line ends, and runs no formula", () => {
  const rows = [
    ["a,b", 'say "x"', "two\nlines"],
    ["=1+1", -1, "@x"],
  ];
  assert.equal(csv(rows), '"a,b","say ""x""","two\nlines"\r\n\'=1+1,-1,\'@x\r\n');
});

test("edges: the two directions between two nodes are one line, as heavy as the heavier", () => {
  const frame = {
    source: encode(Uint16Array.of(0, 1, 2)),
    target: encode(Uint16Array.of(1, 0, 1)),
    weight: encode(Uint16Array.of(65535, 13107, 26214)),
    largest: 0.5,
  };
  const { edges, pairs, near } = unpackEdges(frame, 3);
  assert.equal(edges.length, 3);
  assert.deepEqual(
    pairs.map(({ s, t }) => [s, t]),
    [
      [0, 1],
      [1, 2],
    ],
  );
  assert.ok(Math.abs(pairs[0].w - 0.5) < 1e-9 && Math.abs(pairs[1].w - 0.2) < 1e-9);
  assert.deepEqual(
    near.map((list) => list.map(({ node }) => node)),
    [[1], [0, 2], [1]],
  );
  assert.ok(Math.abs(weightWithin(edges, [0, 0, 1]) - 0.75) < 1e-9);
});

test("the address holds what differs from the page as it opens", () => {
  const defaults = { view: "overview", step: "3", search: "" };
  assert.equal(toHash(defaults, defaults), "");
  const chosen = { view: "map", step: "3", search: "a&b=c #é" };
  const hash = toHash(chosen, defaults);
  assert.deepEqual(fromHash(hash), { view: "map", search: "a&b=c #é" });
  assert.deepEqual(fromHash(""), {});
});

test("an address of a run that is not there means the first one", () => {
  assert.deepEqual(
    ["", "#run=1", "#run=2", "#run=-1", "#run=x", "#run=0.5"].map((hash) => chosenRun(hash, 2)),
    [0, 1, 0, 0, 0, 0],
  );
});

test("texts and numbers", () => {
  assert.deepEqual([...decode(encode(Float32Array.of(0.5, -2)), Float32Array)], [0.5, -2]);
  assert.equal(plain('<b>&amp;"'), '&lt;b>&amp;amp;"');
  assert.deepEqual([0.5, 0.031, 0, NaN].map(percent), ["50 %", "3.1 %", "0 %", "–"]);
});
