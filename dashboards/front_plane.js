// The plane of the page: its axes and colours, its caption and its legend.
"use strict";

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
      said.push(`No trial of ${label} was completed within the budget. Predicted ${scatter.metric(key).label}: ${format(scatter.metric(key).kind, values[key])}${where}.`);
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
