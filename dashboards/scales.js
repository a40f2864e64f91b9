// Scales, ticks and their labels, colours along a scale. Arithmetic only.
"use strict";

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

/* viridis at five points (matplotlib, CC0): its lightness increases throughout, so it is readable without colour vision. */
const RAMP = [[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]];
function ramp(u) {
  const place = Math.min(0.9999, Math.max(0, u)) * (RAMP.length - 1);
  const [a, b] = [RAMP[Math.floor(place)], RAMP[Math.floor(place) + 1]];
  return `rgb(${a.map((v, i) => Math.round(v + (b[i] - v) * (place % 1))).join(",")})`;
}
