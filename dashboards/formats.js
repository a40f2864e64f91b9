// Text of values, as cst_search/units.py. Arithmetic only.
"use strict";

const UNITS = {
  bytes: [[1e12, "TB"], [1e9, "GB"], [1e6, "MB"], [1e3, "kB"], [1, "B"]],
  count: [[1e9, "B"], [1e6, "M"], [1e3, "k"], [1, ""]],
  flops: [[1e12, "TFLOP"], [1e9, "GFLOP"], [1e6, "MFLOP"]],
  seconds: [[3600, "h"], [60, "min"], [1, "s"]],
};

function format(kind, value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  if (kind === "share") return value.toFixed(3);
  if (kind === "seconds") {
    const s = Math.round(value);
    if (s >= 3600) return `${Math.floor(s / 3600)}h${String(Math.floor((s % 3600) / 60)).padStart(2, "0")}m`;
    return s >= 60 ? `${Math.floor(s / 60)}m${String(s % 60).padStart(2, "0")}s` : `${s}s`;
  }
  if (kind === "bytes" || kind === "count" || kind === "flops") {
    const [size, unit] = UNITS[kind].find(([n]) => Math.abs(value) >= n * 0.9995) ?? UNITS[kind].at(-1);
    const number = Math.abs(value) / size < 999.5 ? Number((value / size).toPrecision(3)) : Math.round(value / size);
    return `${number}${kind === "count" ? "" : " "}${unit}`;
  }
  if (value !== 0 && Math.abs(value) < 1e-3) return Number(value.toPrecision(3)).toExponential();
  return String(Number.isInteger(value) ? value : Number(value.toPrecision(3)));
}

/* A metric of trial i; of memory the working memory and the whole. */
function metricText(columns, metric, i) {
  const value = columns[metric.key][i], whole = columns.device_bytes[i], text = format(metric.kind, value);
  return metric.key === "working_bytes" && value !== null && value !== whole ? `${text} of ${format("bytes", whole)}` : text;
}

const shorten = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}\u2026` : text);
