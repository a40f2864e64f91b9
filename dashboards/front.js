// The report of one study: the data of cst_search/report/page_data.py (page_data) in linked views.
"use strict";

const data = JSON.parse(byId("data").textContent);
const { trials, metrics } = data;
const n = trials.trial.length;
expandDimensions(data.dimensions);
const groupOf = (i) => data.groups[trials.group[i]];
const has = (key) => data.columns[key].some((v) => v !== null);
const shown = metrics.filter((metric) => has(metric.key));
const dimensions = data.dimensions.map(quantityOf).filter((d) => varies(d.values) && !metrics.some((m) => m.key === d.key));
const ordered = byImportance(dimensions, data.important);
const quantities = [...metrics, ...dimensions];
const columns = { ...data.columns, ...Object.fromEntries(dimensions.map((d) => [d.key, d.values])) };
const told = shown.filter((metric) => metric.key !== "device_bytes"); // in words it stands beside the working memory
const hidden = new Set(); // kinds of trials that the legend hides
let selection = null; // trials selected in the scatter plot, or null
let current = trials.trial.indexOf(data.knee); // trial whose details are shown
const pinned = []; // trials whose curves are compared with it
const MOST_PINNED = 6;

const GROUP_LOOK = { front: ["circle", 6], dominated: ["square", 3], infeasible: ["up", 2], pruned: ["down", 4], failed: ["cross", 1], unfinished: ["diamond", 0] };
const looks = {};
function readLooks() {
  for (const [key, [shape, rank]] of Object.entries(GROUP_LOOK)) looks[key] = { shape, rank, filled: key === "front", faint: key === "infeasible", colour: colour(key === "front" ? "accent" : "grey") };
}

const visible = (i) => !hidden.has(groupOf(i).key);
let activity = new Uint8Array(n);
function judge() {
  for (let i = 0; i < n; i++) activity[i] = visible(i) && parallel.inside(i) && (selection === null || selection.has(i)) ? 1 : 0;
}
const active = (i) => activity[i] === 1;

/* Standard deviation of a metric over the seeds of a confirmed trial. */
const spread = (i, key) => data.seeds[i]?.[`${key}_std`] ?? null;

function dimensionText(dimension, i) {
  if (dimension.kind === "choice") return dimension.codes[i] < 0 ? null : dimension.labels[dimension.codes[i]];
  return dimension.values[i] === null ? null : format("number", dimension.values[i]);
}
const configuration = (i) => data.dimensions.map((d) => [d.key, dimensionText(d, i)]).filter(([, text]) => text !== null);
const stateText = (i) => data.states[trials.state[i]] + (groupOf(i).key === "front" ? ", on the front" : "");
const reason = (i) => data.reasons[trials.reason[i]] ?? null;

function describe(i) {
  const lines = [`trial ${trials.trial[i]}: ${stateText(i)}`];
  if (reason(i)) lines.push(shorten(reason(i), 140));
  for (const metric of told) {
    const off = spread(i, metric.key);
    if (data.columns[metric.key][i] === null) continue;
    const source = metric.key === "working_bytes" ? ` (${data.sources[trials.source[i]]})` : "";
    lines.push(`${metric.short} ${metricText(data.columns, metric, i)}${source}${off === null ? "" : ` \u00b1 ${format(metric.kind, off)}, ${data.seeds[i].n} seeds`}`);
  }
  const rest = configuration(i);
  lines.push(...rest.slice(0, 12).map(([key, text]) => shorten(`${key} = ${text}`, 70)));
  if (rest.length > 12) lines.push(`and ${rest.length - 12} more: click`);
  return lines;
}

// --- the scatter ---

const frontMembers = () => {
  const found = [];
  for (let i = 0; i < n; i++) if (data.complete[trials.group[i]]) found.push(i);
  return found;
};
const members = frontMembers();
const untrained = data.references.filter((one) => one.trial === null);

/* The knee, what a search is compared with if it was trained, and the trials that are shown or compared. */
function rings() {
  const names = new Map([current, ...pinned].map((i) => [i, []]));
  for (const [trial, name] of [[data.knee, "knee"], ...data.references.map((one) => [one.trial, one.label])]) {
    const i = trials.trial.indexOf(trial);
    names.set(i, [...(names.get(i) ?? []), name]);
  }
  return [...names].filter(([i]) => i >= 0 && visible(i)).map(([i, said]) => ({ i, label: `${said.join(", ")}${said.length ? ": " : ""}trial ${trials.trial[i]}` }));
}

const scatter = new Scatter(byId("front"), {
  n, columns, metrics: quantities, spread, visible, active, describe, budgets: data.budgets, references: untrained,
  paint: (i) => looks[groupOf(i).key],
  trained: (i) => data.columns.map[i] !== null,
  lines: () => (hidden.has("front") || !scatter.metric(scatter.x).goal || !scatter.metric(scatter.y).goal ? [] : [{ members, colour: colour("accent"), dash: [] }]),
  rings,
  start: () => (current >= 0 ? current : members[0]),
  say: (i) => (byId("spoken").textContent = describe(i).join("; ")),
  pick: (i, adds) => open(i, adds),
  select: (set) => {
    selection = set;
    refresh();
  },
  viewed: notes,
});

/* Metrics for the size of marks, the first that no axis shows: a mark must not grow along an axis. */
const sizes = [data.axes.size, ...data.objectives, "trainable_params"].filter((key) => key && has(key));

function chooseAxes() {
  const value = (id) => byId(id).value || null;
  const taken = ["x", "y"].map((id) => scatter.metric(value(id)).family), free = (key) => !taken.includes(scatter.metric(key).family);
  for (const option of byId("size").options) option.disabled = option.value !== "" && !free(option.value);
  if (value("size") && !free(value("size"))) byId("size").value = sizes.find(free) ?? "";
  scatter.setAxes(value("x"), value("y"), value("size"), value("shade"));
  byId("front").setAttribute("aria-label", `Scatter plot: ${scatter.metric(scatter.y).label} against ${scatter.metric(scatter.x).label}. Arrow keys move between trials, Enter shows one, Space compares it.`);
}

/* Options of a select: the metrics, then the dimensions, first those of every method. */
function fillQuantities(id, chosen, none) {
  const option = (quantity) => make("option", { value: quantity.key, selected: quantity.key === chosen }, quantity.label);
  const groups = [["metrics", shown], ["dimensions", ordered.filter((d) => !d.methods)], ["dimensions of some methods", ordered.filter((d) => d.methods)]];
  byId(id).append(...(none ? [make("option", { value: "" }, none)] : []), ...groups.filter(([, some]) => some.length).map(([label, some]) => make("optgroup", { label }, ...some.map(option))));
}

function fillAxes() {
  const method = dimensions.find((d) => d.key === "method");
  fillQuantities("x", data.axes.x);
  fillQuantities("y", data.axes.y);
  byId("size").append(make("option", { value: "" }, "the same"), ...shown.map((m) => make("option", { value: m.key, selected: m.key === data.axes.size }, m.label)));
  fillQuantities("shade", method && method.labels.length <= MOST_COLOURS ? "method" : null, "kind of trial");
  for (const [id, other] of [["x", "y"], ["y", "x"]]) {
    let before = byId(id).value;
    byId(id).addEventListener("change", () => { // the same quantity on both axes: swap them
      if (byId(id).value === byId(other).value) byId(other).value = before;
      before = byId(id).value;
      chooseAxes();
    });
    byId(other).addEventListener("change", () => (before = byId(id).value));
  }
  for (const id of ["size", "shade"]) byId(id).addEventListener("change", chooseAxes);
}

/* Caption: how to read this plane, and what it does not show. */
function notes() {
  const { x, y } = scatter, said = [], plane = new Set([x, y]);
  const others = data.objectives.filter((key) => !plane.has(key)).map((key) => scatter.metric(key).label);
  const both = [...plane].every((key) => data.objectives.includes(key));
  const aimless = [x, y].map((key) => scatter.metric(key)).filter((quantity) => !quantity.goal).map((quantity) => quantity.label);
  if (data.knee !== null && aimless.length) said.push(`No value of ${aimless.join(" or ")} is better in itself, so there is no line. Filled circles are on the front.`);
  else if (data.knee !== null && both && others.length) said.push(`The front also weighs ${others.join(" and ")}, which this plane does not show: the line joins only the trials that nothing beats in the two drawn metrics; the other filled circles are on the front for the rest.`);
  else if (data.knee !== null && both) said.push("The line is the front: whatever lies on its worse side is beaten by a point on it.");
  else if (data.knee !== null) said.push("The line joins the complete trials that nothing beats in the two drawn metrics. The search did not aim at both of them, so this is no front of the study.");
  for (const [key, budget] of Object.entries(data.budgets)) {
    if (!plane.has(key)) continue;
    const [low, high] = scatter.view[key === x ? 0 : 1];
    if (budget.value < low || budget.value > high) said.push(`The ${budget.label} is ${budget.value > high ? "above" : "below"} this view.`);
  }
  for (const { label, values } of untrained) {
    for (const key of plane) {
      if (values[key] === undefined) continue;
      const [low, high] = scatter.view[key === x ? 0 : 1], where = values[key] > high ? ", above this view" : values[key] < low ? ", below this view" : "";
      said.push(`No trial of ${label} was completed within the budget; its ${scatter.metric(key).label} is predicted: ${format(scatter.metric(key).kind, values[key])}${where}.`);
    }
  }
  const choices = [x, y].map((key) => scatter.metric(key)).filter((quantity) => quantity.kind === "choice");
  if (choices.length) said.push(`Trials of one ${choices.map((quantity) => quantity.label).join(" and ")} are spread so that they do not cover each other.`);
  if (scatter.outside) said.push(`${scatter.outside} ${scatter.outside === 1 ? "trial lies" : "trials lie"} outside this view.`);
  if (scatter.noY) said.push(`The strip at the bottom holds trials without ${scatter.metric(y).short}${scatter.metric(y).dimension ? "" : ": not trained, failed or not finished"}.`);
  if (scatter.noX) said.push(`The strip at the left holds trials without ${scatter.metric(x).short}.`);
  if (scatter.placeless) said.push(`${scatter.placeless} ${scatter.placeless === 1 ? "trial has" : "trials have"} neither of the two and cannot be drawn.`);
  said.push(...data.notes);
  byId("notes").replaceChildren(...said.map((note) => make("li", {}, note)));
  keys();
}

/* Legend of sizes and colours. It is made anew only if it changes, so that a button in it keeps the focus. */
function keys() {
  const root = byId("keys"), { shading } = scatter, wanted = JSON.stringify([scatter.size, scatter.sizeRange, scatter.shade, shading, dark.matches]);
  if (root.dataset.of !== wanted) {
    root.dataset.of = wanted;
    root.replaceChildren(...(scatter.sizeRange ? sizeKeys() : []), ...(shading ? colourKeys(scatter.metric(scatter.shade), shading) : []));
  }
  for (const button of root.querySelectorAll("button")) button.setAttribute("aria-pressed", String(singled(scatter.shade, button.dataset.value)));
}

function sizeKeys() {
  const metric = scatter.metric(scatter.size), [low, high] = scatter.sizeRange;
  const circles = [low, Math.sqrt(low * high), high].map((v) => {
    const r = scatter.radiusOf(v);
    return make("span", {}, make("svg", { width: 2 * r, height: 2 * r, viewBox: "-1 -1 2 2", "aria-hidden": "true" }, make("circle", { r: 1 })), format(metric.kind, v));
  });
  return [make("span", { class: "sizes" }, `size: ${metric.short}`, ...circles)];
}

/* A ramp, or a button for each choice, which singles its trials out. */
function colourKeys(quantity, { range, swatches, others }) {
  const title = `colour: ${quantity.short}`;
  if (range) {
    const bar = make("i", { class: "ramp", "aria-hidden": "true" });
    bar.style.background = `linear-gradient(90deg, ${[0, 0.25, 0.5, 0.75, 1].map(ramp).join(",")})`;
    return [make("span", {}, title, make("span", {}, valueText(quantity, range[0]), bar, valueText(quantity, range[1])))];
  }
  const buttons = swatches.map(({ label, tone }) => {
    const dot = make("i", { class: "dot", "aria-hidden": "true" });
    dot.style.background = tone;
    const button = make("button", { type: "button", "data-value": label, title: `choose the trials of ${quantity.key} ${label}` }, dot, shorten(label, 24));
    button.addEventListener("click", () => single(quantity.key, label));
    return button;
  });
  return [make("span", {}, title), ...buttons, ...(others ? [make("span", {}, make("i", { class: "dot rest" }), `${others} others`)] : [])];
}

/* True if only the trials of one value of a choice are chosen; choose them, or all again. */
function singled(key, label) {
  const axis = axes.find((one) => one.key === key), k = axis.labels.indexOf(label), size = axis.labels.length;
  const [low, high] = parallel.brushes.get(axis) ?? [0, 1];
  return size > 1 && low === k / size && high === (k + 1) / size;
}

function single(key, label) {
  const axis = axes.find((one) => one.key === key), k = axis.labels.indexOf(label), size = axis.labels.length;
  parallel.brush(axis, singled(key, label) ? null : [k / size, (k + 1) / size]);
}

// --- parallel coordinates ---

const parallel = new Parallel(byId("parallel"), { n, active, visible, paint: (i) => looks[groupOf(i).key], brushed: refreshSoon() });
const axes = [ // the objectives first, then the dimensions that matter most, so that these are in sight if not all are
  ...shown.filter((m) => data.objectives.includes(m.key)).map((m) => axisOf({ key: m.key, title: m.short, kind: "number", format: m.kind, log: m.log || m.kind === "count", metric: true }, n, (i) => data.columns[m.key][i])),
  ...ordered.map((one) => data.dimensions.find((d) => d.key === one.key)).map((d) => axisOf({ ...d, title: d.title, method: d.owner, format: "number" }, n, d.kind === "choice" ? (i) => d.codes[i] : (i) => d.values[i])),
];
const methodAxis = axes.find((axis) => axis.key === "method");
const FEWEST_DIMENSIONS = 4; // on a narrow screen they scroll

function refreshSoon() {
  const later = frame(() => refresh());
  return () => later();
}

/* The axes that are chosen: as many of the first as fit, those of every method, those of one method, or all. */
function chosenAxes() {
  const which = byId("dimensions").value;
  if (which === "*") return axes;
  if (which) return axes.filter((axis) => axis.metric || !axis.methods || axis.methods.includes(which));
  const fitting = Math.floor(byId("parallel").clientWidth / AXIS_PX), objectives = axes.filter((axis) => axis.metric).length;
  return axes.slice(0, Math.max(fitting, objectives + FEWEST_DIMENSIONS));
}

function showAxes() {
  const some = chosenAxes();
  if (some.length !== parallel.shown.length || some.some((axis, k) => axis !== parallel.shown[k])) parallel.show(some);
  byId("axes-shown").textContent = some.length < axes.length ? `${some.length} of ${axes.length} axes` : "";
}

let ofMethod = false; // a method's dimensions are shown, and its trials chosen

function chooseDimensions() {
  showAxes();
  const k = methodAxis?.labels.indexOf(byId("dimensions").value) ?? -1, size = methodAxis?.labels.length;
  if (k >= 0 || ofMethod) parallel.brush(methodAxis, k < 0 ? null : [k / size, (k + 1) / size]);
  ofMethod = k >= 0;
}

function fillDimensions() {
  const tried = methodAxis ? dimensions.find((d) => d.key === "method").labels : [];
  byId("dimensions").append(make("option", { value: "" }, "that matter most"), ...tried.map((m) => make("option", { value: m }, `of ${m}`)), make("option", { value: "*" }, "all"));
  byId("dimensions").addEventListener("change", chooseDimensions);
  chooseDimensions();
}

// --- one trial ---

function open(i, adds) {
  if (adds) pin(i);
  current = i;
  detail();
  scatter.redraw();
  table.redraw();
  byId("spoken").textContent = `trial ${trials.trial[i]} is shown below the plot`;
}

function pin(i) {
  const place = pinned.indexOf(i);
  if (place >= 0) pinned.splice(place, 1);
  else if (pinned.length < MOST_PINNED) pinned.push(i);
  else byId("spoken").textContent = `at most ${MOST_PINNED} trials are compared`;
}

function detail() {
  const panel = byId("detail");
  panel.hidden = current < 0;
  if (current < 0) return;
  const i = current;
  byId("detail-title").textContent = `Trial ${trials.trial[i]}`;
  byId("detail-state").textContent = stateText(i) + (trials.trial[i] === data.knee ? ", the knee" : "");
  const said = [reason(i), ...(data.remarks[i] ?? [])].filter(Boolean);
  byId("detail-reason").replaceChildren(...said.map((text) => make("p", { class: "caption" }, text)));
  const fact = (label, text) => make("div", {}, make("dt", {}, label), make("dd", {}, text));
  byId("detail-figures").replaceChildren(...told.filter((m) => data.columns[m.key][i] !== null).map((m) => {
    const off = spread(i, m.key);
    const source = m.key === "working_bytes" ? `, ${data.sources[trials.source[i]]}` : "";
    return fact(m.short + source, metricText(data.columns, m, i) + (off === null ? "" : ` \u00b1 ${format(m.kind, off)} (${data.seeds[i].n} seeds)`));
  }));
  byId("detail-config").replaceChildren(...configuration(i).map(([key, text]) => fact(key, text)));
  const exportable = data.states[trials.state[i]] === "complete";
  byId("export").hidden = !exportable;
  byId("no-export").hidden = exportable;
  byId("command").value = `cst-search export ${data.quoted_study} --pick trial=${trials.trial[i]} -o best.yaml`;
  byId("copied").textContent = "";
  byId("pin").textContent = pinned.includes(i) ? "Do not compare" : "Compare";
  byId("pin").setAttribute("aria-pressed", String(pinned.includes(i)));
  const compared = [...pinned, ...(pinned.includes(i) ? [] : [i])];
  byId("pins").replaceChildren(...compared.map((j, k) => {
    const look = series(k);
    const sample = make("svg", { width: 34, height: 12, "aria-hidden": "true" }, make("path", { d: "M0 6H34", stroke: look.colour, "stroke-width": 2, "stroke-dasharray": look.dash.join(" ") || null }), make("path", { d: shapePath(look.marker, 17, 6, 4), fill: look.colour, stroke: look.colour }));
    const chip = make("span", { class: "chip" }, sample, `trial ${trials.trial[j]}`);
    if (pinned.includes(j)) {
      const remove = make("button", { type: "button", "aria-label": `do not compare trial ${trials.trial[j]}` }, "\u00d7");
      remove.addEventListener("click", () => {
        pin(j);
        detail();
        scatter.redraw();
        byId("pin").focus();
      });
      chip.append(remove);
    }
    return chip;
  }));
  const epochs = extent(compared.flatMap((j) => ["map", "loss"].flatMap((key) => curve(j, key).map(([epoch]) => epoch))));
  for (const [id, key, label] of [["curve-map", "map", "mAP"], ["curve-loss", "loss", "training loss"]]) {
    lineChart(byId(id), {
      series: compared.map((j, k) => ({ name: `trial ${trials.trial[j]}`, points: curve(j, key), ...series(k) })),
      xLabel: "epoch", xRange: epochs, yLabel: label, xKind: "whole", yKind: "number", nothing: `no ${label} was recorded`,
      say: ([epoch, value]) => `${label} ${value} after epoch ${epoch}`,
    });
  }
  byId("curves").setAttribute("aria-label", `Learning curves of ${compared.map((j) => `trial ${trials.trial[j]}`).join(", ")}`);
}

/* [[epoch, value]] of a trial; epochs are 1, 2, ... unless they are given. */
function curve(i, key) {
  const values = data.curves[key][i] ?? [], epochs = data.curves.epochs[i];
  return values.map((v, k) => [epochs ? epochs[k] : k + 1, v]).filter(([, v]) => v !== null);
}

// --- hypervolume, importance ---

function hypervolume() {
  const root = byId("hypervolume");
  if (!root) return;
  const byTime = document.querySelector("[name=volume]:checked").value === "hours";
  let spent = 0;
  const hours = data.columns.seconds.map((s) => (spent += (s ?? 0) / 3600));
  const points = data.volumes.map(([i, v]) => [byTime ? hours[i] : trials.trial[i], v]);
  const end = [byTime ? hours[n - 1] : trials.trial[n - 1], data.volumes.at(-1)[1]];
  lineChart(root, {
    series: [{ name: "hypervolume", points: [...(byTime ? [[0, 0]] : []), ...points, end], colour: colour("accent"), fill: colour("soft"), step: true }],
    xLabel: byTime ? `${data.worker} hours` : "trial", yLabel: "", xKind: byTime ? "number" : "whole", yKind: "number", zero: true,
    say: ([x, v]) => `${v.toFixed(4)} after ${byTime ? `${x.toFixed(3)} ${data.worker} hours` : `trial ${x}`}`,
  });
}

// --- the table ---

const number = (key) => (i) => data.columns[key][i];
const varied = told.filter((m) => varies(data.columns[m.key]));
const metricColumn = (m) => ({
  key: m.key, title: m.short, number: true, value: number(m.key), descending: m.goal === "max",
  cell: (i) => metricText(data.columns, m, i) + (spread(i, m.key) === null ? "" : ` \u00b1 ${format(m.kind, spread(i, m.key))}`),
});
const dimensionColumn = (d) => ({ key: d.key, title: d.key, number: d.kind === "number" || d.ordered, value: (i) => d.values[i], cell: (i) => valueText(d, d.values[i]) ?? "-" });
const ofEvery = dimensions.filter((d) => !d.methods), ofSome = dimensions.filter((d) => d.methods);
/* The dimensions of a trial's own method, by their names within it. */
const options = (i) => ofSome.filter((d) => d.values[i] !== null).map((d) => `${d.title} ${valueText(d, d.values[i])}`).join(", ");
const table = new Table(byId("trials"), [
  {
    key: "trial", title: "trial", number: true, value: (i) => trials.trial[i],
    cell: (i) => {
      const button = make("button", { type: "button", class: "trial", "data-trial": trials.trial[i], "aria-label": `show trial ${trials.trial[i]}` }, String(trials.trial[i]));
      const cell = document.createDocumentFragment();
      if (trials.trial[i] === data.knee) cell.append(make("em", {}, "knee"), " ");
      cell.append(button);
      return cell;
    },
  },
  { key: "state", title: "state", value: (i) => groupOf(i).name, cell: (i) => groupOf(i).name },
  ...ofEvery.filter((d) => d.key === "method").map(dimensionColumn),
  ...varied.filter((m) => data.objectives.includes(m.key)).map(metricColumn),
  ...ofEvery.filter((d) => d.key !== "method").map(dimensionColumn),
  ...(ofSome.length ? [{ key: "options", title: "options of the method", class: "config", value: options, cell: options }] : []),
  ...varied.filter((m) => !data.objectives.includes(m.key)).map(metricColumn),
], {
  n, active, open: (i) => {
    open(i);
    byId("detail-title").focus();
  },
  keep: (i) => (byId("state").value === "" || groupOf(i).key === byId("state").value) && (!byId("brushed").checked || active(i)),
  marked: (i) => (i === current ? "current" : trials.trial[i] === data.knee ? "knee" : ""),
});

function fillTable() {
  const groups = data.groups.filter((group) => trials.group.includes(data.groups.indexOf(group)));
  byId("state").append(make("option", { value: "" }, "all"), ...groups.map((group) => make("option", { value: group.key, selected: group.key === "front" }, group.name)));
  byId("state").addEventListener("change", refresh);
  byId("brushed").addEventListener("change", refresh);
  byId("csv").addEventListener("click", download);
  table.sort(Math.max(0, table.columns.findIndex((column) => column.key === data.axes.x)), false);
  byId("constants").textContent = constants();
}

/* What is equal in all trials, which has no column: metrics, and dimensions that every trial has. */
function constants() {
  const ofMetrics = told.filter((m) => !varies(data.columns[m.key]) && data.columns[m.key].every((v) => v !== null)).map((m) => `${m.short} ${metricText(data.columns, m, 0)}`);
  const ofDimensions = data.dimensions.filter((d) => (d.codes ?? d.values).every((v) => v !== null && v === (d.codes ?? d.values)[0] && v !== -1)).map((d) => `${d.key} ${dimensionText(d, 0)}`);
  const all = [...ofDimensions, ...ofMetrics];
  return all.length ? `Equal in all trials, without a column: ${all.join(", ")}.` : "";
}

/* All trials as CSV: a file, or text to copy if a frame's sandbox forbids downloads. */
function download() {
  const seeded = ["map", "map50"]; // a confirmed trial's column has the mean; the CSV also has the trial's own value
  const header = ["trial", "state", "on_front", ...metrics.map((m) => m.key), "n_seeds", ...seeded.flatMap((k) => [`${k}_mean`, `${k}_std`]), "memory_source", "reason", ...data.dimensions.map((d) => d.key)];
  const rows = trials.trial.map((trial, i) => [
    trial, data.states[trials.state[i]], groupOf(i).key === "front", ...metrics.map((m) => data.seeds[i]?.[m.key] ?? data.columns[m.key][i]),
    data.seeds[i]?.n ?? 1, ...seeded.flatMap((k) => [data.columns[k][i], spread(i, k)]),
    data.sources[trials.source[i]], reason(i), ...data.dimensions.map((d) => (d.kind === "choice" ? dimensionText(d, i) : d.values[i])),
  ]);
  const text = csv(header, rows);
  if (window.parent !== window) {
    byId("csv-text").value = text;
    byId("csv-frame").hidden = false;
    byId("csv-text").focus();
    byId("csv-text").select();
    return;
  }
  const link = make("a", { href: URL.createObjectURL(new Blob([text], { type: "text/csv" })), download: `${data.study}.csv` });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// --- together ---

function refresh() {
  judge();
  scatter.redraw();
  parallel.redrawFront();
  table.update();
  byId("trials").classList.toggle("one-kind", byId("state").value !== ""); // its column would say the same in each row
  let count = 0;
  for (let i = 0; i < n; i++) count += activity[i];
  const all = trials.group.filter((g) => !hidden.has(data.groups[g].key)).length;
  byId("chosen").textContent = count === all ? `all ${n === all ? "" : `${all} shown of `}${n} trials` : `${count} of ${all} trials chosen`;
  byId("clear").disabled = selection === null && parallel.brushes.size === 0;
  byId("count").textContent = `${table.order.length} of ${n}`;
}

function setMode(mode, on) {
  for (const button of document.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", String(button.dataset.mode === mode && on));
  scatter.setMode(on ? mode : null, on && matchMedia("(pointer: coarse)").matches);
}

function paintAll() {
  readLooks();
  scatter.redraw();
  parallel.redraw();
  detail();
  hypervolume();
}

for (const button of document.querySelectorAll("[data-group]")) {
  button.addEventListener("click", () => {
    const { group } = button.dataset;
    if (!hidden.delete(group)) hidden.add(group);
    button.setAttribute("aria-pressed", String(!hidden.has(group)));
    parallel.redraw();
    refresh();
  });
}
for (const button of document.querySelectorAll("[data-mode]")) button.addEventListener("click", () => setMode(button.dataset.mode, button.getAttribute("aria-pressed") !== "true"));
for (const radio of document.querySelectorAll("[name=volume]")) radio.addEventListener("change", hypervolume);
byId("clear").addEventListener("click", () => {
  selection = null;
  parallel.clear();
  if (ofMethod) byId("dimensions").value = "";
  ofMethod = false;
  showAxes();
  refresh();
});
byId("home").addEventListener("click", () => scatter.zoom(null));
byId("pin").addEventListener("click", () => {
  pin(current);
  detail();
  scatter.redraw();
});
byId("copy").addEventListener("click", () => copy(byId("command"), byId("copied")));
byId("csv-copy").addEventListener("click", () => copy(byId("csv-text"), byId("csv-copied")));

readLooks();
fillAxes();
chooseAxes();
fillDimensions();
fillTable();
setMode("box", !matchMedia("(pointer: coarse)").matches);
refresh();
detail();
hypervolume();
dark.addEventListener("change", paintAll);
narrow.addEventListener("change", paintAll);
let width = window.innerWidth;
addEventListener("resize", frame(() => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  showAxes();
  detail();
  hypervolume();
}));
