// The data of the page of one study, made by cst_search/report/page_data.py (page_data), and its words.
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
let current = trials.trial.indexOf(data.suggested); // trial whose details are shown
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
