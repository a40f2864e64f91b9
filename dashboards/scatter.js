// A scatter plot of trials on canvas: any two quantities, budgets, the front's line; pointer, touch and keyboard.
"use strict";

const STRIP = 26; // px, for trials without one of the two metrics

/* options: n; columns {key: values}; metrics, or quantities.js, [{key, label, kind, goal, log, labels}]; spread(i, key);
   paint(i) {shape, colour, filled, faint, rank}; visible(i); active(i); lines() [{members, colour, dash, label}]; rings() [{i, label}]; budgets {key:
   {value, label}}; references [{label, values by key}]: what was not trained; trained(i): decides the first view; lines of a tooltip describe(i); pick(i, adds); select(set or
   null); viewed(). */
class Scatter {
  constructor(root, options) {
    Object.assign(this, options, { root, mode: null, view: null, hover: -1, drag: null });
    this.base = make("canvas", { "aria-hidden": "true" });
    this.top = make("canvas", { "aria-hidden": "true" });
    root.append(this.base, this.top);
    this.px = new Float32Array(this.n);
    this.py = new Float32Array(this.n);
    this.radius = new Float32Array(this.n);
    this.redraw = frame(() => this.draw());
    this.redrawTop = frame(() => this.drawTop());
    new ResizeObserver(this.redraw).observe(root);
    root.addEventListener("pointerdown", (event) => this.down(event));
    root.addEventListener("pointermove", (event) => this.move(event));
    root.addEventListener("pointerup", (event) => this.up(event));
    root.addEventListener("pointercancel", () => this.cancel());
    root.addEventListener("pointerleave", () => this.point(-1));
    root.addEventListener("dblclick", () => this.zoom(null));
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("blur", () => this.point(-1));
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

  draw() {
    const started = performance.now();
    this.width = this.root.clientWidth;
    this.height = this.root.clientHeight;
    if (!this.width || !this.x) return;
    this.place();
    const c = sized(this.base, this.width, this.height), { box } = this;
    const [ink, muted, grid, page] = ["ink", "muted", "grid", "page"].map(colour);
    c.font = `${narrow.matches ? 11 : 13}px system-ui, sans-serif`;
    c.fillStyle = page;
    if (this.noY) c.fillRect(box.left, box.bottom + 6, box.right - box.left, STRIP);
    if (this.noX) c.fillRect(box.left - STRIP - 6, box.top, STRIP, box.bottom - box.top);
    this.shadeOverBudget(c);
    c.strokeStyle = grid;
    c.lineWidth = 1;
    c.beginPath();
    for (const v of this.xTicks) { c.moveTo(this.toX(v), box.top); c.lineTo(this.toX(v), box.bottom); }
    for (const v of this.yTicks) { c.moveTo(box.left, this.toY(v)); c.lineTo(box.right, this.toY(v)); }
    c.stroke();
    c.fillStyle = muted;
    c.textAlign = "center";
    this.xTicks.forEach((v, i) => this.drawLabel(c, this.xText.labels[i], this.toX(v)));
    const better = { max: " (higher is better)", min: " (lower is better)" };
    const title = (metric, unit) => metric.label + (unit ? `, ${unit}` : "") + (metric.log ? ", logarithmic" : "") + (better[metric.goal] ?? "");
    c.fillText(title(this.metric(this.x), this.xText.unit), (box.left + box.right) / 2, this.height - 8);
    c.textAlign = "right";
    this.yTicks.forEach((v, i) => c.fillText(this.yText.labels[i], this.labelLeft - 8, this.toY(v) + 4));
    if (this.noY) c.fillText(this.without("y"), this.labelLeft - 8, box.bottom + STRIP / 2 + 10);
    c.textAlign = "left";
    c.fillText(title(this.metric(this.y), this.yText.unit), 4, 14);
    if (this.noX) {
      c.save();
      c.translate(box.left - STRIP / 2 - 2, box.bottom - 8);
      c.rotate(-Math.PI / 2);
      c.fillText(this.without("x"), 0, 0);
      c.restore();
    }
    this.drawFront(c);
    this.drawPoints(c);
    this.drawBudgets(c);
    this.drawReferences(c);
    this.drawNames(c);
    this.drawRings(c, ink);
    this.drawTop();
    this.drawMs ?? performance.mark("drawn"); // the first time; benchmarks/page.py reads both
    this.drawMs = performance.now() - started;
    this.viewed(this);
  }

  /* A label of the x axis, tilted where they would overlap. */
  drawLabel(c, text, x) {
    if (!this.tilted) return c.fillText(text, x, this.height - 28);
    c.save();
    c.translate(x + 4, this.height - this.below + 14);
    c.rotate(-0.7);
    c.textAlign = "right";
    c.fillText(text, 0, 0);
    c.restore();
  }

  /* Shade what is over a budget, to the right of it or above it. */
  shadeOverBudget(c) {
    const { box } = this, [x, y] = [this.budgets[this.x], this.budgets[this.y]];
    c.fillStyle = colour("page");
    if (x && this.toX(x.value) < box.right) c.fillRect(Math.max(box.left, this.toX(x.value)), box.top, box.right - Math.max(box.left, this.toX(x.value)), box.bottom - box.top);
    if (y && this.toY(y.value) > box.top) c.fillRect(box.left, box.top, box.right - box.left, Math.min(box.bottom, this.toY(y.value)) - box.top);
  }

  drawBudgets(c) {
    for (const [key, { value, label }] of Object.entries(this.budgets)) this.drawLimit(c, { [key]: value }, label, "limit", [7, 5], "bold");
  }

  /* Costs of what was not trained, dotted; their labels one below the other. */
  drawReferences(c) {
    this.references.forEach(({ values, label }, k) => this.drawLimit(c, values, label, "muted", [2, 4], "italic", 14 + 17 * k));
  }

  /* A line at a value of the x or the y axis with its label: above the plot or at the end of the line, or down px in it. */
  drawLimit(c, values, label, tone, dash, style, down = 0) {
    const { box } = this, x = values[this.x] === undefined ? NaN : this.toX(values[this.x]), y = values[this.y] === undefined ? NaN : this.toY(values[this.y]);
    const upright = x >= box.left && x <= box.right;
    if (!upright && !(y >= box.top && y <= box.bottom)) return;
    c.save();
    c.strokeStyle = c.fillStyle = colour(tone);
    c.lineWidth = 2;
    c.setLineDash(dash);
    c.font = `${style} ${narrow.matches ? 11 : 13}px system-ui, sans-serif`;
    c.beginPath();
    c.moveTo(...(upright ? [x, box.top] : [box.left, y]));
    c.lineTo(...(upright ? [x, box.bottom] : [box.right, y]));
    c.stroke();
    const wide = c.measureText(label).width, half = wide / 2; // the whole label stays inside
    c.textAlign = "center";
    if (!upright) this.rimmed(c, label, box.right - half, y - 6);
    else if (!down) this.rimmed(c, label, Math.max(box.left + half, Math.min(x, box.right - half)), box.top - 6);
    else this.rimmed(c, label, x + 6 + wide > box.right ? x - 6 - half : x + 6 + half, box.top + down);
    c.restore();
  }

  /* Text with a rim, which keeps it readable over points. */
  rimmed(c, text, x, y, most) {
    c.save();
    c.setLineDash([]);
    c.strokeStyle = colour("card");
    c.lineWidth = 4;
    c.lineJoin = "round";
    c.strokeText(text, x, y, most);
    c.fillText(text, x, y, most);
    c.restore();
  }

  drawFront(c) {
    const { box } = this;
    c.save();
    c.beginPath();
    c.rect(box.left, box.top, box.right - box.left, box.bottom - box.top);
    c.clip();
    for (const line of this.lines()) {
      const corners = this.corners(this.frontier(line.members));
      c.strokeStyle = line.colour;
      c.setLineDash(line.dash);
      c.lineWidth = 2;
      c.beginPath();
      corners.forEach(([x, y], place) => c[place ? "lineTo" : "moveTo"](this.toX(x), this.toY(y)));
      c.stroke();
    }
    c.restore();
  }

  /* Name of a line at its end, moved down if another is there. */
  drawNames(c) {
    const flip = this.metric(this.x).goal === "max", taken = [];
    c.save();
    c.font = "bold 12px system-ui, sans-serif";
    for (const line of this.lines()) {
      const members = line.label ? this.frontier(line.members) : [], i = members[flip ? 0 : members.length - 1];
      if (i === undefined || Number.isNaN(this.px[i])) continue;
      const wide = Math.min(220, c.measureText(line.label).width), toLeft = this.px[i] + wide + 12 > this.box.right;
      const x = toLeft ? this.px[i] - wide - 12 : this.px[i] + 12;
      let y = this.py[i] - 8;
      while (taken.some((other) => Math.abs(other.y - y) < 15 && x < other.x + other.wide && other.x < x + wide)) y += 15;
      taken.push({ x, y, wide });
      c.fillStyle = line.colour;
      c.textAlign = "left";
      this.rimmed(c, line.label, x, y, 220);
    }
    c.restore();
  }

  drawPoints(c) {
    const many = this.n > 300, xs = this.columns[this.x], ys = this.columns[this.y];
    const order = [];
    for (let i = 0; i < this.n; i++) if (!Number.isNaN(this.px[i])) order.push(i);
    const active = new Uint8Array(this.n), paints = new Array(this.n);
    for (const i of order) { active[i] = this.active(i) ? 1 : 0; paints[i] = this.paint(i); }
    order.sort((a, b) => active[a] - active[b] || paints[a].rank - paints[b].rank);
    const [card, ink, grey] = ["card", "ink", "grey"].map(colour);
    for (const i of order) {
      const paint = paints[i], x = this.px[i], y = this.py[i], r = this.radius[i];
      const { shading } = this, tone = shading && !paint.faint ? shading.of(this.columns[this.shade][i]) : null, plain = shading ? grey : paint.colour;
      c.globalAlpha = active[i] ? (paint.faint ? 0.5 : paint.filled || !many ? 1 : 0.6) : 0.13;
      const spread = xs[i] !== null && ys[i] !== null ? [this.spread(i, this.x), this.spread(i, this.y)] : [null, null];
      if (spread[0] !== null || spread[1] !== null) this.drawBars(c, i, spread, paint.colour);
      c.beginPath();
      SHAPES[paint.shape](c, x, y, r);
      c.lineWidth = paint.filled ? 1.5 : 1.4;
      if (paint.filled || (tone && !shading.hollow && paint.shape !== "cross")) {
        c.fillStyle = tone ?? plain;
        c.fill();
        c.strokeStyle = !shading ? card : paint.filled ? ink : paint.colour; // both ends of the ramp are close to a background
      } else c.strokeStyle = tone ?? plain;
      c.stroke();
    }
    c.globalAlpha = 1;
  }

  drawBars(c, i, [dx, dy], tone) {
    const [x, y] = [this.columns[this.x][i], this.columns[this.y][i]];
    c.strokeStyle = tone;
    c.lineWidth = 1.5;
    c.beginPath();
    if (dy !== null) {
      for (const end of [this.toY(y - dy), this.toY(y + dy)]) { c.moveTo(this.px[i] - 5, end); c.lineTo(this.px[i] + 5, end); }
      c.moveTo(this.px[i], this.toY(y - dy)); c.lineTo(this.px[i], this.toY(y + dy));
    }
    if (dx !== null) {
      for (const end of [this.toX(x - dx), this.toX(x + dx)]) { c.moveTo(end, this.py[i] - 5); c.lineTo(end, this.py[i] + 5); }
      c.moveTo(this.toX(x - dx), this.py[i]); c.lineTo(this.toX(x + dx), this.py[i]);
    }
    c.stroke();
  }

  drawRings(c, ink) {
    c.save();
    c.font = `bold ${narrow.matches ? 11 : 13}px system-ui, sans-serif`;
    const taken = [];
    for (const { i, label } of this.rings()) {
      if (Number.isNaN(this.px[i])) continue;
      const [x, y, r] = [this.px[i], this.py[i], this.radius[i] + 5], wide = c.measureText(label).width + 8;
      // for memory against mAP the upper left is always free; otherwise take any free corner
      const places = [[-34, -38], [34, -38], [-34, 38], [34, 38], [-60, -70], [60, 70], [60, -70], [-60, 70]].map(([dx, dy]) => ({ dx, dy, left: dx < 0 ? x + dx - wide : x + dx, top: y + dy - (dy < 0 ? 17 : 0) }));
      const free = (p) => p.left > this.box.left && p.left + wide < this.box.right && p.top > this.box.top && p.top + 17 < this.box.bottom;
      const clear = (p) => taken.every((t) => p.left + wide < t.left || p.left > t.left + t.wide || Math.abs(p.top - t.top) > 18);
      const { dx, dy, left, top } = places.find((p) => free(p) && clear(p)) ?? places.find(free) ?? places[0];
      taken.push({ left, top, wide });
      c.strokeStyle = ink;
      c.lineWidth = 2;
      c.beginPath();
      c.arc(x, y, r, 0, 2 * Math.PI);
      c.moveTo(x + 0.67 * r * Math.sign(dx), y + 0.75 * r * Math.sign(dy));
      c.lineTo(x + dx, y + dy);
      c.stroke();
      c.textAlign = dx < 0 ? "right" : "left";
      c.fillStyle = ink;
      this.rimmed(c, label, x + dx, y + dy + (dy < 0 ? -4 : 13));
    }
    c.restore();
  }

  /* Draw what follows the pointer on its own canvas, so that 10,000 points are not redrawn. */
  drawTop() {
    if (!this.box) return;
    const c = sized(this.top, this.width, this.height);
    c.strokeStyle = colour("ink");
    c.lineWidth = 2.5;
    if (this.hover >= 0 && !Number.isNaN(this.px[this.hover])) {
      c.beginPath();
      c.arc(this.px[this.hover], this.py[this.hover], this.radius[this.hover] + 3, 0, 2 * Math.PI);
      c.stroke();
    }
    if (this.drag?.moved && this.mode !== "pan") {
      c.fillStyle = colour("accent");
      c.strokeStyle = colour("accent");
      c.lineWidth = 1.5;
      c.beginPath();
      if (this.mode === "lasso") polygon(c, this.drag.path);
      else c.rect(this.drag.x, this.drag.y, this.drag.toX - this.drag.x, this.drag.toY - this.drag.y);
      c.globalAlpha = 0.12;
      c.fill();
      c.globalAlpha = 1;
      c.stroke();
    }
  }

  // --- pointer ---

  at(event) {
    const box = this.root.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  }

  nearest(x, y, reach) {
    let best = -1, least = Infinity;
    for (let i = 0; i < this.n; i++) {
      const distance = Math.hypot(this.px[i] - x, this.py[i] - y) - this.radius[i];
      if (distance < least && distance < reach) [best, least] = [i, distance];
    }
    return best;
  }

  point(i, event) {
    if (i !== this.hover) {
      this.hover = i;
      this.redrawTop();
    }
    this.root.style.cursor = i >= 0 ? "pointer" : this.mode === "pan" ? "grab" : this.mode ? "crosshair" : "default";
    if (i < 0) return tip.hide();
    const box = this.root.getBoundingClientRect();
    tip.show(this.describe(i), event?.clientX ?? box.left + this.px[i], event?.clientY ?? box.top + this.py[i]);
  }

  down(event) {
    if (event.button) return;
    const [x, y] = this.at(event);
    this.drag = { x, y, toX: x, toY: y, path: [[x, y]], moved: false, view: this.view, scroll: event.pointerType === "touch" && !this.touch };
    if (!this.drag.scroll) this.root.setPointerCapture(event.pointerId);
  }

  move(event) {
    const [x, y] = this.at(event);
    const { drag } = this;
    if (!drag) return event.pointerType === "touch" ? undefined : this.point(this.nearest(x, y, 8), event);
    if (Math.hypot(x - drag.x, y - drag.y) > 5) drag.moved = true;
    if (!drag.moved || drag.scroll || !this.mode) return;
    tip.hide();
    Object.assign(drag, { toX: x, toY: y });
    drag.path.push([x, y]);
    if (this.mode === "pan") {
      const { box } = this, shifts = [(drag.x - x) / (box.right - box.left), (y - drag.y) / (box.bottom - box.top)];
      this.zoom(["x", "y"].map((which, k) => {
        const axis = this.axis(which, drag.view[k]);
        return [axis.from(shifts[k]), axis.from(1 + shifts[k])];
      }));
    } else this.redrawTop();
  }

  up(event) {
    const { drag } = this;
    this.drag = null;
    if (!drag) return;
    const [x, y] = this.at(event);
    if (!drag.moved) {
      const i = this.nearest(x, y, event.pointerType === "touch" ? 22 : 8);
      if (i >= 0) this.pick(i, event.shiftKey || event.ctrlKey || event.metaKey);
      else this.select(null);
      if (event.pointerType === "touch") this.point(i, event);
    } else if (!drag.scroll && this.mode === "zoom") {
      const [xa, xb] = [drag.x, x].sort((a, b) => a - b), [ya, yb] = [drag.y, y].sort((a, b) => a - b);
      if (xb - xa > 5 && yb - ya > 5) this.zoom([[this.fromX(xa), this.fromX(xb)], [this.fromY(yb), this.fromY(ya)]]);
    } else if (!drag.scroll && (this.mode === "box" || this.mode === "lasso")) {
      const inside = this.mode === "lasso" ? (a, b) => within(drag.path, a, b) : (a, b) => (a - drag.x) * (a - x) <= 0 && (b - drag.y) * (b - y) <= 0;
      const found = new Set();
      for (let i = 0; i < this.n; i++) if (!Number.isNaN(this.px[i]) && inside(this.px[i], this.py[i])) found.add(i);
      this.select(found.size ? found : null);
    }
    this.redrawTop();
  }

  cancel() {
    this.drag = null;
    this.redrawTop();
  }

  /* Effect of dragging: box, lasso, zoom or pan. Touch scrolls the page until one of them is selected. */
  setMode(mode, touch) {
    Object.assign(this, { mode, touch });
    this.root.style.touchAction = touch ? "none" : "pan-y";
  }

  // --- keyboard ---

  key(event) {
    const along = { ArrowRight: ["px", 1], ArrowLeft: ["px", -1], ArrowUp: ["py", -1], ArrowDown: ["py", 1] }[event.key];
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (along || event.key === "Home" || event.key === "End") {
      const places = along ? this[along[0]] : this.px;
      const order = [];
      for (let i = 0; i < this.n; i++) if (!Number.isNaN(places[i]) && this.active(i)) order.push(i);
      order.sort((a, b) => places[a] - places[b] || a - b);
      if (!order.length) return;
      const now = order.indexOf(this.hover), first = this.start?.() ?? order[0];
      let next = event.key === "Home" ? order[0] : event.key === "End" ? order[order.length - 1] : now < 0 ? (order.includes(first) ? first : order[0]) : order[Math.min(order.length - 1, Math.max(0, now + along[1]))];
      this.point(next);
      this.say(next);
    } else if ((event.key === "Enter" || event.key === " ") && this.hover >= 0) this.pick(this.hover, event.shiftKey || event.key === " ");
    else if (event.key === "Escape") this.select(null);
    else if (event.key === "+" || event.key === "-") this.scaleBy(event.key === "+" ? 0.7 : 1 / 0.7);
    else if (event.key === "0") this.zoom(null);
    else return;
    event.preventDefault();
  }

  scaleBy(factor) {
    const { box } = this, at = [(this.px[this.hover] - box.left) / (box.right - box.left), (box.bottom - this.py[this.hover]) / (box.bottom - box.top)];
    this.zoom(["x", "y"].map((which, k) => {
      const axis = this.axis(which), about = this.hover >= 0 ? at[k] : 0.5;
      return [0, 1].map((end) => axis.from(about + (end - about) * factor));
    }));
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
