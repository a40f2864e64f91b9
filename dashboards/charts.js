// Shared code of the pages' charts: formats, scales, ticks, shapes, a tooltip, and a line chart.
"use strict";

const byId = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
const dark = matchMedia("(prefers-color-scheme: dark)");
const narrow = matchMedia("(max-width: 640px)");
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();

/* An element with attributes and children; text only ever becomes text. */
function make(tag, attributes = {}, ...children) {
  const node = ["svg", "path", "line", "text", "circle", "g", "rect"].includes(tag) ? document.createElementNS(SVG, tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== null && value !== undefined && value !== false) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

// --- formats: as cst_search/units.py ---

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

// --- scales ---

/* Minimum and maximum of an array, gaps ignored; null if it has no values. */
function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const v of values) {
    if (v === null || Number.isNaN(v)) continue;
    if (v < low) low = v;
    if (v > high) high = v;
  }
  return low <= high ? [low, high] : null;
}

/* 0..1 along an axis from low to high, and back. */
function scale(low, high, log = false) {
  const [a, b] = log ? [Math.log(low), Math.log(high)] : [low, high];
  const span = b - a || 1;
  return {
    low, high, log,
    to: (v) => ((log ? Math.log(v) : v) - a) / span,
    from: (u) => (log ? Math.exp(a + u * span) : a + u * span),
  };
}

/* About n round numbers from low to high. */
function ticks(low, high, n) {
  const rough = (high - low) / Math.max(1, n) || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 2.5, 5, 10].find((m) => m * power >= rough * 0.999) ?? 10);
  const found = [];
  for (let i = Math.ceil(low / step - 1e-9); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

/* Round numbers from low to high on a logarithmic axis: as many of each power of ten as give no more than six. */
function decades(low, high) {
  const found = (steps, every) => {
    const all = [];
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++) {
      if (power % every) continue;
      for (const step of steps) all.push(Number((step * 10 ** power).toPrecision(6)));
    }
    return all.filter((v) => v >= low * 0.9999 && v <= high * 1.0001);
  };
  const some = [[[1, 1.5, 2, 3, 4, 5, 7], 1], [[1, 2, 5], 1], [[1, 3], 1], [[1], 1], [[1], 2], [[1], 3]].map((way) => found(...way)).find((all) => all.length <= 6) ?? [];
  return some.length > 2 ? some : ticks(low, high, 4); // a small part of a decade
}

/* Labels of ticks and their unit, with enough decimals that none is rounded. */
function tickLabels(kind, values) {
  const most = Math.max(...values.map(Math.abs), 0);
  const [size, unit] = UNITS[kind]?.find(([n]) => most >= n) ?? [1, ""];
  const scaled = values.map((v) => v / size);
  const step = Math.abs(scaled.length > 1 ? scaled[1] - scaled[0] : scaled[0] ?? 1);
  let digits = 0;
  while (digits < 6 && scaled.some((v) => Math.abs(v - Number(v.toFixed(digits))) > 1e-3 * step)) digits++;
  return { labels: scaled.map((v) => v.toFixed(digits)), unit };
}

/* Fixed offset in -0.5..0.5 that spreads what lies in one category k, which would overlap. */
function jitter(i, k) {
  const x = Math.sin(i * 12.9898 + k * 78.233) * 43758.5453;
  return x - Math.floor(x) - 0.5;
}

// --- shapes: each kind of trial has its own, so that colour is not needed ---

const SHAPES = {
  circle: (c, x, y, r) => c.arc(x, y, r, 0, 2 * Math.PI),
  square: (c, x, y, r) => c.rect(x - 0.86 * r, y - 0.86 * r, 1.72 * r, 1.72 * r),
  up: (c, x, y, r) => polygon(c, [[x, y - r], [x + r, y + 0.85 * r], [x - r, y + 0.85 * r]]),
  down: (c, x, y, r) => polygon(c, [[x, y + r], [x + r, y - 0.85 * r], [x - r, y - 0.85 * r]]),
  diamond: (c, x, y, r) => polygon(c, [[x, y - r], [x + r, y], [x, y + r], [x - r, y]]),
  cross: (c, x, y, r) => { c.moveTo(x - r, y - r); c.lineTo(x + r, y + r); c.moveTo(x - r, y + r); c.lineTo(x + r, y - r); },
};
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3], [4, 2, 1, 2], [12, 5]];
const MARKERS = ["circle", "square", "diamond", "up", "down", "cross"];

function polygon(c, corners) {
  c.moveTo(...corners[0]);
  for (const corner of corners.slice(1)) c.lineTo(...corner);
  c.closePath();
}

/* The same shapes for SVG. */
function shapePath(name, x, y, r) {
  let d = "";
  SHAPES[name]({
    moveTo: (a, b) => (d += `M${a.toFixed(1)} ${b.toFixed(1)}`), lineTo: (a, b) => (d += `L${a.toFixed(1)} ${b.toFixed(1)}`),
    closePath: () => (d += "Z"),
    rect: (a, b, w, h) => (d += `M${a} ${b}h${w}v${h}h${-w}Z`),
    arc: (a, b, q) => (d += `M${a - q} ${b}a${q} ${q} 0 1 0 ${2 * q} 0a${q} ${q} 0 1 0 ${-2 * q} 0Z`),
  }, x, y, r);
  return d;
}

/* Style of line i in a comparison: colour, dash and marker differ. */
const series = (i) => ({ colour: colour(`series-${i % 6}`), dash: DASHES[i % 6], marker: MARKERS[i % 6] });

/* viridis at five points (matplotlib, CC0): its lightness increases throughout, so it is readable without colour vision. */
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function ramp(u) {
  const place = Math.min(0.9999, Math.max(0, u)) * (RAMP.length - 1);
  const [a, b] = [RAMP[Math.floor(place)], RAMP[Math.floor(place) + 1]];
  return `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * (place % 1))).join(",")})`;
}

// --- a canvas in CSS pixels ---

function sized(canvas, width, height) {
  const ratio = window.devicePixelRatio || 1;
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
    canvas.style.width = `${width}px`;
    canvas.style.height = `${height}px`;
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return context;
}

/* Call a function once in the next frame, however often it is requested. */
function frame(call) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      call();
    });
  };
}

// --- the tooltip: lines of text, the first one bold ---

const tip = {
  show(lines, x, y) {
    const box = byId("tip");
    box.replaceChildren(...lines.map((line, i) => make(i ? "div" : "b", {}, line)));
    box.hidden = false;
    const { offsetWidth: width, offsetHeight: height } = box;
    const left = x + 16 + width > document.documentElement.clientWidth ? Math.max(4, x - 16 - width) : x + 16;
    box.style.left = `${left}px`;
    box.style.top = `${Math.max(4, Math.min(y - height / 2, window.innerHeight - height - 4))}px`;
  },
  hide() {
    byId("tip").hidden = true;
  },
};

// --- lines: learning curves, hypervolume ---

/* options: series [{name, points [[x, y]], colour, dash, marker, step, fill}], xLabel, yLabel, xKind, yKind, zero, xRange, say([x, y]) */
function lineChart(root, options) {
  const width = Math.max(200, root.clientWidth), height = root.clientHeight || 200;
  const lines = options.series.filter((line) => line.points.length);
  root.replaceChildren();
  if (!lines.length) {
    root.append(make("p", { class: "caption" }, options.nothing ?? "nothing to draw"));
    return;
  }
  const all = lines.flatMap((line) => line.points);
  const xs = options.xRange ?? extent(all.map((p) => p[0])), ys = extent(all.map((p) => p[1]));
  if (options.zero) ys[0] = Math.min(0, ys[0]);
  const pad = (ys[1] - ys[0]) * 0.07 || Math.abs(ys[1]) * 0.1 || 1;
  const [bottom, top] = [options.zero ? ys[0] : ys[0] - pad, ys[1] + pad];
  const whole = options.xKind === "whole";
  const wide = xs[1] - xs[0] || 1;
  const x = scale(xs[0] - (xs[1] > xs[0] ? 0 : 0.5 * wide), xs[1] + (xs[1] > xs[0] ? 0 : 0.5 * wide)), y = scale(bottom, top);
  const yTicks = ticks(bottom, top, 4), yText = tickLabels(options.yKind, yTicks);
  const xTicks = ticks(x.low, x.high, Math.min(whole ? wide : 99, width / 90)).filter((v) => !whole || Number.isInteger(v)), xText = tickLabels(options.xKind, xTicks);
  const box = { left: 14 + 7 * Math.max(...yText.labels.map((t) => t.length)), right: 14, top: 22, bottom: 36 };
  const inset = lines.some((line) => line.marker) ? 8 : 0; // keeps a marker at the first epoch off the labels
  const px = (v) => box.left + inset + x.to(v) * (width - box.left - box.right - 2 * inset), py = (v) => box.top + (1 - y.to(v)) * (height - box.top - box.bottom);
  const svg = make("svg", { width, height, "aria-hidden": "true" });
  yTicks.forEach((v, i) => svg.append(
    make("line", { x1: box.left, x2: width - box.right, y1: py(v), y2: py(v), class: "grid" }),
    make("text", { x: box.left - 6, y: py(v) + 4, "text-anchor": "end" }, yText.labels[i])));
  xTicks.forEach((v, i) => svg.append(make("text", { x: px(v), y: height - box.bottom + 16, "text-anchor": "middle" }, xText.labels[i])));
  svg.append(make("text", { x: (box.left + width - box.right) / 2, y: height - 4, "text-anchor": "middle" }, options.xLabel + (xText.unit ? `, ${xText.unit}` : "")),
    make("text", { x: 2, y: 11 }, options.yLabel));
  for (const line of lines) {
    let d = "";
    line.points.forEach(([a, b], i) => {
      if (i && line.step) d += `H${px(a).toFixed(1)}`;
      d += `${i ? "L" : "M"}${px(a).toFixed(1)} ${py(b).toFixed(1)}`;
    });
    if (line.fill) svg.append(make("path", { d: `${d}V${py(bottom)}H${px(line.points[0][0])}Z`, fill: line.fill }));
    svg.append(make("path", { d, fill: "none", stroke: line.colour, "stroke-width": 2, "stroke-dasharray": (line.dash ?? []).join(" ") || null }));
    if (line.marker) for (const [a, b] of line.points) svg.append(make("path", { d: shapePath(line.marker, px(a), py(b), 4), fill: line.colour, stroke: line.colour, "stroke-width": 1.4 }));
  }
  svg.addEventListener("pointermove", (event) => {
    const at = svg.getBoundingClientRect();
    let best = null, least = 40 ** 2;
    for (const line of lines) {
      for (const p of line.points) {
        const distance = (px(p[0]) - event.clientX + at.left) ** 2 + 0.2 * (py(p[1]) - event.clientY + at.top) ** 2;
        if (distance < least) [best, least] = [[line, p], distance];
      }
    }
    if (best) tip.show([best[0].name, options.say(best[1])], event.clientX, event.clientY);
    else tip.hide();
  });
  svg.addEventListener("pointerleave", tip.hide);
  root.append(svg);
}
