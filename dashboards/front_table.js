// Table of trials of the page, and their CSV.
"use strict";

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
