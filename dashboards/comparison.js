// Fronts of several studies in one plane, each with its own colour, dashes and shape.
"use strict";

const data = JSON.parse(byId("data").textContent);
const { metrics, columns } = data;
const n = data.trial.length;
const shown = metrics.filter((metric) => columns[metric.key].some((v) => v !== null));
const hidden = new Set();
const visible = (i) => !hidden.has(data.study[i]);
const spread = (i, key) => data.seeds[i]?.[`${key}_std`] ?? null;
let looks = [];
const readLooks = () => (looks = data.studies.map((_, k) => ({ ...series(k), shape: series(k).marker, filled: true, rank: k })));

function describe(i) {
  const figures = shown.filter((m) => m.key !== "device_bytes" && columns[m.key][i] !== null).map((m) => `${m.short} ${metricText(columns, m, i)}${spread(i, m.key) === null ? "" : ` \u00b1 ${format(m.kind, spread(i, m.key))}`}`);
  return [`${data.studies[data.study[i]]}: trial ${data.trial[i]}`, ...figures, ...data.config[i].slice(0, 12)];
}

const scatter = new Scatter(byId("front"), {
  n, columns, metrics, spread, visible, active: visible, describe, budgets: data.budgets, references: [],
  paint: (i) => looks[data.study[i]],
  trained: () => true,
  lines: () => data.studies.map((name, k) => ({ members: data.study.flatMap((s, i) => (s === k && !hidden.has(k) ? [i] : [])), colour: looks[k].colour, dash: looks[k].dash, label: name })),
  rings: () => [],
  say: (i) => (byId("spoken").textContent = describe(i).join("; ")),
  pick: () => {},
  select: () => {},
  viewed: () => {
    const said = ["A line joins the points of a study that none of its own beats in the two drawn metrics; its others are on its front for a third."];
    if (scatter.outside) said.push(`${scatter.outside} ${scatter.outside === 1 ? "point lies" : "points lie"} outside this view.`);
    if (Object.keys(data.seeds).length) said.push("Points with a bar were confirmed: drawn at the mean over their seeds, one standard deviation up and down.");
    byId("notes").replaceChildren(...said.map((note) => make("li", {}, note)));
  },
});

function chooseAxes() {
  scatter.setAxes(byId("x").value, byId("y").value, null, null);
  byId("front").setAttribute("aria-label", `Scatter plot: ${scatter.metric(scatter.y).label} against ${scatter.metric(scatter.x).label}, ${n} points of ${data.studies.length} studies. Arrow keys move between points.`);
}

function legend() {
  byId("legend").replaceChildren(...data.studies.map((name, k) => {
    const sample = make("svg", { width: 40, height: 14, "aria-hidden": "true" }, make("path", { d: "M0 7H40", stroke: looks[k].colour, "stroke-width": 2, "stroke-dasharray": looks[k].dash.join(" ") || null }), make("path", { d: shapePath(looks[k].shape, 20, 7, 5), fill: looks[k].colour, stroke: looks[k].colour }));
    const button = make("button", { type: "button", "aria-pressed": String(!hidden.has(k)), title: "show or hide" }, sample, name);
    button.addEventListener("click", () => {
      if (!hidden.delete(k)) hidden.add(k);
      button.setAttribute("aria-pressed", String(!hidden.has(k)));
      scatter.redraw();
    });
    return button;
  }));
}

/* The best mAP at every storage budget, for both goals; a step goes up where a better plan fits. */
function storage() {
  if (!data.storage) return;
  const lines = data.storage.goals.map((goal, k) => ({ ...goal, ...series(k), points: goal.plans.map((plan) => [plan.bytes, plan[goal.key], plan]), step: true }));
  byId("goals").replaceChildren(...lines.map((line) => {
    const sample = make("svg", { width: 40, height: 14, "aria-hidden": "true" }, make("path", { d: "M0 7H40", stroke: line.colour, "stroke-width": 2, "stroke-dasharray": line.dash.join(" ") || null }), make("path", { d: shapePath(line.marker, 20, 7, 4), fill: line.colour, stroke: line.colour }));
    return make("span", {}, sample, ` ${line.name} mAP\u2003`);
  }));
  lineChart(byId("storage"), {
    series: lines, xLabel: "all tasks together", yLabel: "mAP", xKind: "bytes", yKind: "share",
    say: ([bytes, , plan]) => `${format("bytes", bytes)}: mean ${format("share", plan.mean)}, worst ${format("share", plan.worst)}; ${plan.trials.map((trial, i) => `${data.storage.studies[i]} trial ${trial}`).join(", ")}`,
  });
}

function start() {
  readLooks();
  legend();
  scatter.redraw();
  storage();
}

for (const id of ["x", "y"]) {
  byId(id).append(...shown.map((m) => make("option", { value: m.key, selected: m.key === data.axes[id] }, m.label)));
  byId(id).addEventListener("change", chooseAxes);
}
byId("home").addEventListener("click", () => scatter.zoom(null));
scatter.setMode("zoom", false);
start();
chooseAxes();
dark.addEventListener("change", start);
narrow.addEventListener("change", start);
