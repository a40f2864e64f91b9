// Dimensions of the page: which axes the parallel coordinates show.
"use strict";

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
