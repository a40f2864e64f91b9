// Quantities of trials that can be an axis or a colour: metrics, and the dimensions that vary. Arithmetic only.
"use strict";

/* Give each dimension a column of all trials: those of single methods come without the others' to keep the data small. */
function expandDimensions(dimensions) {
  const method = dimensions.find((d) => d.key === "method");
  for (const d of dimensions) {
    if (!d.methods) continue;
    const name = d.kind === "choice" ? "codes" : "values", short = d[name].values(), gap = d.kind === "choice" ? -1 : null;
    d[name] = method.codes.map((code) => (d.methods.includes(method.labels[code]) ? short.next().value : gap));
  }
}

/* True if at least two values occur in a column; null is none. */
function varies(values) {
  const known = values.filter((v) => v !== null), [first] = known;
  return known.some((v) => v !== first);
}

const isNumber = (text) => text.trim() !== "" && Number.isFinite(Number(text));

/* A dimension as a quantity. Values of a choice are places among the labels that occur; ordered: they are numbers. */
function quantityOf(d) {
  const base = { key: d.key, label: d.key, short: d.key, title: d.title, methods: d.methods, family: d.key, goal: null, dimension: true };
  if (d.kind === "number") return { ...base, kind: "number", log: d.log && d.values.every((v) => v === null || v > 0), values: d.values };
  const found = new Set(d.codes), used = d.labels.map((_, code) => code).filter((code) => found.has(code));
  const labels = used.map((code) => d.labels[code]), place = new Map(used.map((code, k) => [code, k]));
  return { ...base, kind: "choice", log: false, labels, ordered: labels.every(isNumber), values: d.codes.map((code) => place.get(code) ?? null) };
}

/* Text of a quantity's value. */
const valueText = (quantity, value) => (value === null || value === undefined ? null : quantity.kind === "choice" ? quantity.labels[value] : format(quantity.kind, value));

/* Dimensions of every method, then those of some; each by how much they matter, the usual ones before the others. */
function byImportance(dimensions, important) {
  const usual = ["method", "lr", "batch_size", "image_size_px"];
  const rank = (key) => {
    const matters = important.indexOf(key), known = usual.indexOf(key);
    return matters >= 0 ? matters : important.length + (known >= 0 ? known : usual.length);
  };
  return [...dimensions].sort((a, b) => Boolean(a.methods) - Boolean(b.methods) || rank(a.key) - rank(b.key)); // stable
}

const MOST_COLOURS = 12;

/* Colours of a quantity's values. of(value): a colour, or null for none. Numbers have a ramp over range, choices a
   swatch {label, tone} each; palette: colours for choices that have no order. The rarest of too many choices share one. */
function shading(quantity, values, palette, rest) {
  const range = extent(values);
  if (!range) return null;
  if (quantity.kind !== "choice" || (quantity.ordered && quantity.labels.length > MOST_COLOURS)) {
    const along = scale(...range, (quantity.log || quantity.kind === "count") && range[0] > 0);
    return { range, of: (v) => (v === null ? null : ramp(along.to(v))) };
  }
  const count = quantity.labels.map(() => 0);
  for (const v of values) if (v !== null) count[v]++;
  const frequent = count.map((_, k) => k).sort((a, b) => count[b] - count[a]).slice(0, quantity.labels.length > MOST_COLOURS ? MOST_COLOURS - 1 : MOST_COLOURS).sort((a, b) => a - b);
  const tones = quantity.labels.map(() => rest);
  frequent.forEach((code, k) => (tones[code] = quantity.ordered ? ramp(k / Math.max(1, frequent.length - 1)) : palette[k]));
  const swatches = frequent.map((code) => ({ label: quantity.labels[code], tone: tones[code] }));
  return { swatches, others: quantity.labels.length - frequent.length, of: (v) => (v === null ? null : tones[v]), hollow: !quantity.ordered };
}
