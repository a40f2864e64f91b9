// A line chart in SVG: learning curves, hypervolume, what storage buys.
"use strict";

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
