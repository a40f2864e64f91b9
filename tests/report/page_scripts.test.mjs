// Arithmetic of the report page's scripts (dashboards/*.js) without a browser: `node --test tests/report/`.
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";
import vm from "node:vm";

/* What the scripts define when they are run one after another, as the page runs them; none of these draws. */
const FILES = ["formats", "scales", "quantities", "plane", "parallel", "table"];
const NAMES = "format, ticks, tickLabels, decades, scale, ramp, jitter, expandDimensions, varies, quantityOf, valueText, byImportance, shading, Plane, within, axisOf, axisLabels, valueAt, csv";
const source = FILES.map((name) => readFileSync(new URL(`../../dashboards/${name}.js`, import.meta.url), "utf8")).join("\n");
const page = vm.runInNewContext(`const narrow = { matches: false }, colour = (name) => name;\n${source}\n;({ ${NAMES} })`);
const same = (found, wanted) => assert.deepEqual(JSON.parse(JSON.stringify(found)), wanted); // of another context

test("values have the text that cst_search/units.py gives them", () => {
  const texts = JSON.parse(process.env.UNITS ?? "{}"); // {kind: [[value, text]]}, see test_page_scripts.py
  for (const [kind, pairs] of Object.entries(texts)) for (const [value, text] of pairs) assert.equal(page.format(kind, value), text);
  assert.equal(page.format("share", 0.5716), "0.572");
  assert.equal(page.format("number", 0.00012), "1.2e-4");
  assert.equal(page.format("bytes", null), "-");
});

test("no tick is rounded", () => { // at 2.5, 5 and 7.5 GB it must not say 3, 5 and 8
  for (const [kind, low, high, n, wanted] of [
    ["bytes", 2e9, 8.5e9, 3, ["2.5", "5.0", "7.5"]],
    ["bytes", 2e9, 4.4e9, 3, ["2", "3", "4"]],
    ["bytes", 584e6, 587e6, 3, ["584", "585", "586", "587"]],
    ["number", 0.3, 0.4, 4, ["0.300", "0.325", "0.350", "0.375", "0.400"]],
    ["share", 0.31, 0.32, 2, ["0.310", "0.315", "0.320"]],
  ]) same(page.tickLabels(kind, page.ticks(low, high, n)).labels, wanted);
  for (const [log, low, high, wanted] of [
    [true, 1e-4, 2e-2, ["1e-4", "3e-4", "0.001", "0.003", "0.01"]],
    [true, 1e-6, 0.1, ["1e-6", "1e-5", "1e-4", "0.001", "0.01", "0.1"]],
    [true, 3e-3, 4e-3, ["0.003", "0.00325", "0.0035", "0.00375", "0.004"]],
    [false, -1.39, 1.39, ["-1", "0", "1"]],
  ]) {
    const found = page.axisLabels(page.axisOf({ kind: "number", format: "number", log, low, high }, 0, null));
    same(found.map(([, text]) => text), wanted);
    assert.ok(found.every(([u]) => u >= 0 && u <= 1));
  }
});

test("a scale leads there and back", () => {
  for (const log of [false, true]) {
    const along = page.scale(2, 50, log);
    assert.ok(Math.abs(along.from(along.to(7)) - 7) < 1e-12);
    same([along.to(2), along.to(50)], [0, 1]);
  }
});

// --- quantities ---

const METHOD = { key: "method", kind: "choice", labels: ["cst", "lst", "head"], codes: [0, 2, 0, 2], methods: null };

test("dimensions of single methods get a place for every trial", () => {
  const own = { key: "cst.r", title: "r", kind: "choice", labels: ["1", "2", "4"], codes: [2, 0], methods: ["cst"] };
  const gate = { key: "cst.g", title: "g", kind: "number", values: [0.1, 0.2], methods: ["cst"] };
  page.expandDimensions([METHOD, own, gate]);
  same([own.codes, gate.values], [[2, -1, 0, -1], [0.1, null, 0.2, null]]);
  const quantity = page.quantityOf(own);
  same([quantity.values, quantity.labels, quantity.ordered, quantity.goal], [[1, null, 0, null], ["1", "4"], true, null]);
  assert.equal(page.valueText(quantity, 1), "4");
  assert.equal(page.valueText(quantity, null), null);
  same(page.quantityOf(METHOD).labels, ["cst", "head"]); // lst was not tried
});

test("what is equal in all trials does not vary, whether some lack it or not", () => {
  same([[1, 1], [null, 1], [null, null], [], [1, 2], [null, 0, 1]].map(page.varies), [false, false, false, false, true, true]);
});

test("a logarithmic dimension with a zero is drawn linearly", () => {
  assert.equal(page.quantityOf({ key: "wd", kind: "number", log: true, values: [0, 1e-3] }).log, false);
  assert.equal(page.quantityOf({ key: "wd", kind: "number", log: true, values: [1e-4, null] }).log, true);
});

test("dimensions of every method come first, then what matters, then the usual ones", () => {
  const all = ["augment", "cst.r", "lr", "neck", "method"].map((key) => ({ key, methods: key === "cst.r" ? ["cst"] : null }));
  same(page.byImportance(all, ["cst.r", "neck"]).map((d) => d.key), ["neck", "method", "lr", "augment", "cst.r"]);
  same(page.byImportance(all, []).map((d) => d.key), ["method", "lr", "augment", "neck", "cst.r"]);
});

test("colours: a ramp for numbers, one for each choice, grey for the rarest of too many", () => {
  const palette = Array.from({ length: 12 }, (_, k) => `p${k}`);
  const numbers = page.shading({ kind: "number", log: true }, [1e-4, 1e-2, null], palette, "rest");
  same([numbers.range, numbers.of(null), numbers.of(1e-4)], [[1e-4, 1e-2], null, "rgb(68,1,84)"]);
  assert.equal(numbers.of(1e-3), "rgb(33,145,140)"); // the middle of a logarithmic ramp
  const methods = page.shading({ kind: "choice", labels: ["cst", "head"] }, [0, 1, 1, null], palette, "rest");
  same([methods.swatches, methods.others, methods.of(1), methods.hollow], [[{ label: "cst", tone: "p0" }, { label: "head", tone: "p1" }], 0, "p1", true]);
  const sizes = page.shading({ kind: "choice", labels: ["2", "4", "8"], ordered: true }, [0, 1, 2], palette, "rest");
  same([sizes.of(0), sizes.of(2), sizes.hollow], ["rgb(68,1,84)", "rgb(253,231,37)", false]);
  const many = Array.from({ length: 20 }, (_, k) => `m${k}`), values = many.flatMap((_, k) => Array(k + 1).fill(k));
  const crowd = page.shading({ kind: "choice", labels: many }, values, palette, "rest");
  same([crowd.swatches.length, crowd.others, crowd.of(8), crowd.of(9)], [11, 9, "rest", "p0"]); // m9 to m19 are the most frequent
  assert.equal(page.shading({ kind: "number" }, [null], palette, "rest"), null);
});

// --- the plane ---

const METRICS = [
  { key: "memory", label: "memory", short: "memory", kind: "bytes", goal: "min", log: false },
  { key: "map", label: "mAP", short: "mAP", kind: "share", goal: "max", log: false },
  { key: "speed", label: "speed", short: "speed", kind: "number", goal: "max", log: false },
  { key: "method", label: "method", short: "method", kind: "choice", goal: null, labels: ["cst", "lst", "head"], dimension: true },
];
const COLUMNS = { memory: [2e9, 4e9, 3e9, 9e9, null], map: [0.3, 0.4, 0.2, null, null], speed: [5, 1, 3, 2, 4], method: [0, 1, 2, 2, null] };

function plane(options = {}, x = "memory", y = "map") {
  const made = new page.Plane({ n: 5, columns: COLUMNS, metrics: METRICS, spread: () => null, visible: () => true, trained: (i) => COLUMNS.map[i] !== null, budgets: {}, references: [], paint: () => ({}), ...options });
  Object.assign(made, { width: 800, height: 500, redraw() {} });
  made.setAxes(x, y, null, null);
  made.place();
  return made;
}

test("the view holds what was trained; a budget and a reference widen it, but not to any length", () => {
  const [low, high] = plane().view[0];
  assert.ok(low < 2e9 && high > 4e9 && high < 9e9);
  assert.equal(plane().outside, 1);
  const budget = (value) => plane({ budgets: { memory: { value, label: "" } } }).view[0][1];
  assert.ok(budget(5.5e9) > 5.5e9 && budget(50e9) === high);
  const reference = (memory) => plane({ references: [{ label: "full", values: { memory } }] }).view[0][1];
  assert.ok(reference(7.9e9) > 7.9e9 && reference(8.1e9) === high);
});

test("a trial lies at its values, in a strip without one of them, and nowhere without both", () => {
  const made = plane(), [x, y] = [made.toX(4e9), made.toY(0.4)];
  assert.ok(Math.abs(made.px[1] - x) < 1e-3 && Math.abs(made.py[1] - y) < 1e-3);
  assert.ok(Number.isNaN(made.px[4]) && made.placeless === 1);
  made.zoom([[1e9, 1e10], [0, 1]]);
  made.place();
  assert.ok(made.noY && made.py[3] > made.box.bottom && !Number.isNaN(made.px[3]));
  assert.ok(Math.abs(made.fromX(made.toX(5e9)) - 5e9) < 1);
  assert.equal(made.nearest(made.px[1] + 3, made.py[1] - 3, 8), 1);
  assert.equal(made.nearest(made.px[1] + 60, made.py[1], 8), -1);
});

test("trials of one choice lie around its place, and no further than half way to the next", () => {
  const made = plane({}, "method", "map");
  same(made.view[0], [-0.5, 2.5]);
  same(made.xText.labels, ["cst", "lst", "head"]);
  for (const i of [0, 1, 2]) assert.ok(Math.abs(made.fromX(made.px[i]) - COLUMNS.method[i]) < 0.5);
  assert.ok(made.room("x", 300) < 100 && made.room("y", 300) === 0); // of 300 px each of the three has 100
  assert.equal(made.without("x"), "absent");
  assert.equal(made.without("y"), "no mAP");
});

for (const [x, y] of [["memory", "map"], ["map", "memory"], ["speed", "map"], ["speed", "memory"]]) {
  test(`the line of ${y} over ${x} joins what nothing beats`, () => {
    const n = 60, draw = (k) => Array.from({ length: n }, (_, i) => page.jitter(i, k) + 1);
    const columns = { memory: draw(1), map: draw(2), speed: draw(3) }, members = [...Array(n).keys()];
    const made = plane({ n, columns }, x, y), line = made.frontier(members);
    const sign = (key) => (METRICS.find((m) => m.key === key).goal === "max" ? -1 : 1), cost = (key, i) => sign(key) * columns[key][i];
    const beaten = (i) => members.some((j) => j !== i && cost(x, j) <= cost(x, i) && cost(y, j) <= cost(y, i));
    same([...line].sort((a, b) => a - b), members.filter((i) => !beaten(i)));
    same(line, [...line].sort((a, b) => columns[x][a] - columns[x][b])); // from left to right
    const corners = made.corners(line);
    assert.equal(corners.length, 2 * line.length - 1);
    for (let k = 1; k < corners.length; k += 2) { // each is worse than both of its neighbours
      [x, y].forEach((key, axis) => assert.ok(sign(key) * corners[k][axis] >= Math.max(sign(key) * corners[k - 1][axis], sign(key) * corners[k + 1][axis])));
    }
  });
}

test("marks grow with a metric, by its logarithm", () => {
  const made = plane();
  made.size = "memory";
  made.measure();
  same(made.sizeRange, [2e9, 9e9]);
  const [small, middle, large] = [2e9, Math.sqrt(18) * 1e9, 9e9].map((v) => made.radiusOf(v));
  assert.ok(small < middle && Math.abs(middle - (small + large) / 2) < 1e-9);
});

test("a lasso holds what its line goes round", () => {
  const path = [[0, 0], [10, 0], [10, 10], [5, 2], [0, 10]]; // with a notch from above
  same([[5, 1], [1, 5], [9, 5], [5, 5], [11, 5]].map(([x, y]) => page.within(path, x, y)), [true, true, true, false, false]);
});

// --- parallel coordinates, CSV ---

test("an axis of choices has a place for each, and says its values to a screen reader", () => {
  const axis = page.axisOf({ kind: "choice", labels: ["1", "2", "4", "8"] }, 3, (i) => [0, 3, -1][i]);
  same([...axis.u.slice(0, 2)], [0.125, 0.875]);
  assert.ok(Number.isNaN(axis.u[2]) && axis.someAbsent);
  assert.equal(page.valueAt(axis, 0.5, 1), "2"); // the upper end takes in what lies below it
  assert.equal(page.valueAt(axis, 0.5, 0), "4");
});

test("cells of the CSV keep their text, and none is a formula", () => {
  same(page.csv(["a,b"], [['say "x"'], ["=1+1"], [-2], [null], ["two\nlines"]]).split("\r\n"), ['"a,b"', '"say ""x"""', "'=1+1", "-2", "", '"two\nlines"', ""]);
});
