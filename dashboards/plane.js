// The plane of a scatter plot: which part of it is seen, and where each trial lies in px. It draws nothing.
"use strict";

const STRIP = 26; // px, for trials without one of the two quantities

/* options: n; columns {key: values}; metrics: quantities [{key, label, short, kind, goal, log, labels, dimension}];
   spread(i, key); visible(i); trained(i): decides the first view; budgets {key: {value, label}}; references [{label,
   values by key}]: what was not trained; paint(i) {filled}. */
class Plane {
  constructor(options) {
    Object.assign(this, options, { view: null });
    this.px = new Float32Array(this.n);
    this.py = new Float32Array(this.n);
    this.radius = new Float32Array(this.n);
  }

  metric(key) {
    return this.metrics.find((metric) => metric.key === key);
  }

  setAxes(x, y, size, shade) {
    Object.assign(this, { x, y, size, shade, view: null });
    this.redraw();
  }

  /* Initial view: set by the trained trials; a budget and other trials may widen it by one span. */
  home(key) {
    if (this.metric(key).kind === "choice") return [-0.5, this.metric(key).labels.length - 0.5];
    const values = this.columns[key], chosen = [], all = [];
    for (let i = 0; i < this.n; i++) {
      if (values[i] === null || !this.visible(i)) continue;
      all.push(values[i]);
      if (this.trained(i)) {
        const spread = this.spread(i, key) ?? 0;
        chosen.push(values[i] - spread, values[i] + spread);
      }
    }
    const { log } = this.metric(key), at = (v) => (log ? Math.log(v) : v), back = (v) => (log ? Math.exp(v) : v);
    let [low, high] = (extent(chosen.length ? chosen : all) ?? [0, 1]).map(at);
    const span = high - low || Math.abs(high) * 0.5 || 1;
    const budget = at(this.budgets[key]?.value);
    const near = all.map(at).filter((v) => v >= low - span && v <= high + span);
    if (budget >= low - span && budget <= high + span) near.push(budget);
    for (const { values } of this.references) if (at(values[key]) >= low - 2 * span && at(values[key]) <= high + 2 * span) near.push(at(values[key]));
    [low, high] = extent([low, high, ...near]);
    const pad = 0.07 * (high - low || span);
    return [back(Math.max(low >= 0 && !log ? 0 : -Infinity, low - pad)), back(high + 1.4 * pad)];
  }

  /* The scale of an axis over a range, which is the view's if none is given. */
  axis(which, range = this.view[which === "x" ? 0 : 1]) {
    return scale(...range, this.metric(this[which]).log);
  }

  /* Ticks of an axis, and their labels: with a unit of their own on a logarithmic one. */
  marks(which, range, n) {
    const { log, kind, labels } = this.metric(this[which]);
    if (kind === "choice") {
      const seen = labels.map((_, k) => k).filter((k) => k >= range[0] && k <= range[1]);
      return [seen, { labels: seen.map((k) => shorten(labels[k], 18)), unit: "" }];
    }
    const at = log ? decades(...range) : ticks(...range, n);
    return [at, log ? { labels: at.map((v) => format(kind, v)), unit: "" } : tickLabels(kind, at)];
  }

  /* Words for the trials that have no value on an axis. */
  without(which) {
    const metric = this.metric(this[which]);
    return metric.dimension ? "absent" : `no ${metric.short}`;
  }

  /* px over which the points of one choice are spread, 0 on an axis of numbers. */
  room(which, long) {
    const [low, high] = this.view[which === "x" ? 0 : 1];
    return this.metric(this[which]).kind === "choice" ? (0.6 * long) / (high - low) : 0;
  }

  zoom(view) {
    this.view = view;
    this.redraw();
  }

  /* Set the view in units of the metrics; compute every point's position in px, NaN if it has none. */
  place() {
    const xs = this.columns[this.x], ys = this.columns[this.y];
    this.view ??= [this.home(this.x), this.home(this.y)];
    const [vx, vy] = this.view;
    let noX = false, noY = false;
    for (let i = 0; i < this.n; i++) {
      if (!this.visible(i)) continue;
      noX ||= xs[i] === null && ys[i] !== null;
      noY ||= ys[i] === null && xs[i] !== null;
    }
    [this.xTicks, this.xText] = this.marks("x", vx, Math.max(2, this.width / (narrow.matches ? 75 : 110)));
    [this.yTicks, this.yText] = this.marks("y", vy, Math.max(2, this.height / 62));
    const left = Math.max(44, 18 + 7 * Math.max(0, ...this.yText.labels.map((t) => t.length)), noY ? 18 + 7.5 * this.without("y").length : 0);
    const widest = 7 * Math.max(0, ...this.xText.labels.map((t) => t.length));
    this.tilted = this.metric(this.x).kind === "choice" && widest > (this.width - left - 14) / Math.max(1, this.xTicks.length) - 8;
    this.below = this.tilted ? 34 + 0.64 * widest : 46; // px under the plot for labels and title
    const box = { left: left + (noX ? STRIP + 6 : 0), right: this.width - 14, top: 34, bottom: this.height - this.below - (noY ? STRIP + 6 : 0) };
    Object.assign(this, { box, noX, noY, labelLeft: left });
    const [ax, ay, wide, tall] = [this.axis("x"), this.axis("y"), box.right - box.left, box.bottom - box.top];
    this.toX = (v) => box.left + ax.to(v) * wide;
    this.toY = (v) => box.bottom - ay.to(v) * tall;
    this.fromX = (p) => ax.from((p - box.left) / wide);
    this.fromY = (p) => ay.from((box.bottom - p) / tall);
    const [roomX, roomY] = [this.room("x", wide), this.room("y", tall)];
    this.outside = 0;
    this.placeless = 0;
    for (let i = 0; i < this.n; i++) {
      const known = this.visible(i) && (xs[i] !== null || ys[i] !== null);
      if (this.visible(i) && !known) this.placeless++;
      let x = xs[i] === null ? box.left - STRIP / 2 - 6 : this.toX(xs[i]) + roomX * jitter(i, 1);
      let y = ys[i] === null ? box.bottom + STRIP / 2 + 6 : this.toY(ys[i]) + roomY * jitter(i, 2);
      const inside = known && (xs[i] === null || (x >= box.left - 1 && x <= box.right + 1)) && (ys[i] === null || (y >= box.top - 1 && y <= box.bottom + 1));
      if (known && !inside) this.outside++;
      if (!inside) x = y = NaN;
      this.px[i] = x;
      this.py[i] = y;
    }
    this.measure();
  }

  /* Radii: logarithmic, because parameters span three orders of magnitude; smaller if there are many trials. */
  measure() {
    const shrink = Math.min(1, (150 / Math.max(1, this.n)) ** 0.22) * (narrow.matches ? 0.75 : 1);
    const values = this.size ? this.columns[this.size] : null;
    const range = values && extent(values.filter((v) => v > 0));
    const u = range && range[1] > range[0] ? scale(...range, true) : null;
    this.radiusOf = (v) => shrink * (u ? 4 + 8 * u.to(v || range[0]) : 5.5);
    this.sizeRange = u ? range : null;
    for (let i = 0; i < this.n; i++) this.radius[i] = Number.isNaN(this.px[i]) ? 0 : this.columns[this.y][i] === null || this.columns[this.x][i] === null ? 4.5 * shrink : this.radiusOf(values?.[i]);
    for (let i = 0; i < this.n; i++) if (this.radius[i] && this.paint(i).filled) this.radius[i] = Math.max(4, this.radius[i]); // keeps the front visible among thousands
    const palette = () => Array.from({ length: MOST_COLOURS }, (_, k) => colour(`kind-${k}`));
    this.shading = this.shade ? shading(this.metric(this.shade), this.columns[this.shade], palette(), colour("grey")) : null;
  }

  /* Members that are non-dominated in the two drawn metrics, from left to right. */
  frontier(members) {
    const [xs, ys] = [this.columns[this.x], this.columns[this.y]];
    const [gx, gy] = [this.metric(this.x).goal === "max" ? -1 : 1, this.metric(this.y).goal === "max" ? -1 : 1];
    const sorted = members.filter((i) => xs[i] !== null && ys[i] !== null).sort((a, b) => gx * (xs[a] - xs[b]) || gy * (ys[a] - ys[b]));
    let best = Infinity;
    const found = sorted.filter((i) => gy * ys[i] < best && ((best = gy * ys[i]), true));
    return gx < 0 ? found.reverse() : found;
  }

  /* Staircase through them in the metrics' units; between two of them, the corner is worse in both metrics. */
  corners(members) {
    const [xs, ys] = [this.columns[this.x], this.columns[this.y]], flip = this.metric(this.x).goal === "max";
    return members.flatMap((i, place) => {
      const before = members[place - 1];
      return [...(place ? [flip ? [xs[before], ys[i]] : [xs[i], ys[before]]] : []), [xs[i], ys[i]]];
    });
  }

  nearest(x, y, reach) {
    let best = -1, least = Infinity;
    for (let i = 0; i < this.n; i++) {
      const distance = Math.hypot(this.px[i] - x, this.py[i] - y) - this.radius[i];
      if (distance < least && distance < reach) [best, least] = [i, distance];
    }
    return best;
  }
}

/* True if a point is inside a polygon, by the crossings of a ray to the right. */
function within(path, x, y) {
  let inside = false;
  for (let i = 0, j = path.length - 1; i < path.length; j = i++) {
    const [[xi, yi], [xj, yj]] = [path[i], path[j]];
    if (yi > y !== yj > y && x < ((xj - xi) * (y - yi)) / (yj - yi) + xi) inside = !inside;
  }
  return inside;
}
