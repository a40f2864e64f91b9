// Parallel coordinates: a line per trial over the dimensions and the metrics. An axis is brushed by pointer or keyboard.
"use strict";

const AXIS_PX = 104, ABSENT = -0.12; // position of trials that lack the dimension, as a share of the axis below its end
const LINES_A_FRAME = 600; // keeps frames short

/* axes: [{key, title, method, kind: "choice", labels} or {kind: "number", format, log, low, high, values}], u: places
   0..1, NaN for absent. options: n; active(i); paint(i) {colour, rank}; visible(i); brushed(). */
class Parallel {
  constructor(root, options) {
    Object.assign(this, options, { root, brushes: new Map(), shown: [], generation: 0 });
    this.inner = make("div", { class: "axes" });
    this.back = make("canvas", { "aria-hidden": "true" });
    this.front = make("canvas", { "aria-hidden": "true" });
    this.inner.append(this.back, this.front);
    root.append(this.inner);
    this.redraw = frame(() => this.draw());
    this.redrawFront = frame(() => this.drawFront());
    new ResizeObserver(() => this.layout()).observe(root);
  }

  /* True if a trial is inside every brush; a trial without the dimension is not. */
  inside(i) {
    for (const [axis, [low, high]] of this.brushes) if (!(axis.u[i] >= low && axis.u[i] <= high)) return false;
    return true;
  }

  show(axes) {
    for (const axis of this.shown) axis.node?.remove();
    this.shown = axes;
    for (const axis of axes) this.inner.append((axis.node = this.axis(axis)));
    axes.forEach((axis, k) => axis.thumbs.forEach((thumb) => (thumb.tabIndex = k ? -1 : 0)));
    this.layout();
  }

  layout() {
    if (!this.root.clientWidth || !this.shown.length) return;
    this.height = this.root.clientHeight;
    this.width = Math.max(this.root.clientWidth - 2, this.shown.length * AXIS_PX);
    this.topPx = 50;
    this.long = this.height - this.topPx - (this.shown.some((axis) => axis.someAbsent) ? 54 : 24);
    this.inner.style.width = `${this.width}px`;
    const pitch = this.width / this.shown.length;
    this.shown.forEach((axis, k) => {
      axis.x = pitch * (k + 0.32);
      axis.node.style.left = `${axis.x - 18}px`;
      axis.node.style.setProperty("--pitch", `${Math.min(pitch - 8, 0.68 * pitch + 18)}px`); // the last one ends at the edge
      const last = k === this.shown.length - 1;
      axis.node.style.setProperty("--tick", `${(last ? 0.68 * pitch : pitch - 9) - 9}px`); // up to the edge, or to the next axis
      axis.track.style.top = `${this.topPx}px`;
      axis.track.style.height = `${this.long}px`;
      this.place(axis);
    });
    this.redraw();
  }

  /* One axis: its name, labels, the track that a pointer drags along, and two thumbs for the keyboard. */
  axis(axis) {
    const track = make("div", { class: "track" }), bar = make("div", { class: "brush" });
    const thumbs = ["from", "to"].map((end, which) => {
      const thumb = make("div", { class: `thumb ${end}`, role: "slider", "aria-orientation": "vertical", "aria-label": `${axis.key} ${end}`, "aria-valuemin": 0, "aria-valuemax": 100 });
      thumb.addEventListener("keydown", (event) => this.key(event, axis, which));
      return thumb;
    });
    track.append(bar, ...thumbs);
    for (const [u, text] of axisLabels(axis)) {
      const label = make("span", { class: "tick" }, text);
      label.style.bottom = `${100 * u}%`;
      track.append(label);
    }
    if (axis.someAbsent) {
      const label = make("span", { class: "tick absent", title: "trials that do not have it pass here" }, "absent");
      label.style.bottom = `${100 * ABSENT}%`;
      track.append(label);
    }
    track.addEventListener("pointerdown", (event) => this.drag(event, axis, thumbs.indexOf(event.target)));
    const title = make("div", { class: "title", title: axis.key }, make("small", {}, axis.method ?? ""), make("span", {}, axis.title));
    Object.assign(axis, { track, bar, thumbs });
    return make("div", { class: "axis", role: "group", "aria-label": axis.key }, title, track);
  }

  drag(event, axis, thumb) {
    if (event.button) return;
    event.preventDefault();
    const { track } = axis;
    const u = (e) => Math.min(1, Math.max(0, 1 - (e.clientY - track.getBoundingClientRect().top) / this.long));
    const [low, high] = this.brushes.get(axis) ?? [0, 1];
    const fixed = thumb === 0 ? high : thumb === 1 ? low : u(event), began = event.clientY;
    track.setPointerCapture(event.pointerId);
    const move = (e) => Math.abs(e.clientY - began) > 3 && this.brush(axis, [Math.min(fixed, u(e)), Math.max(fixed, u(e))]);
    const up = (e) => {
      track.removeEventListener("pointermove", move);
      if (Math.abs(e.clientY - began) <= 3 && thumb < 0) this.brush(axis, null);
      axis.thumbs[Math.max(0, thumb)].focus({ preventScroll: true });
    };
    track.addEventListener("pointermove", move);
    track.addEventListener("pointerup", up, { once: true });
    track.addEventListener("pointercancel", up, { once: true });
  }

  key(event, axis, which) {
    const [low, high] = this.brushes.get(axis) ?? [0, 1];
    const step = axis.kind === "choice" ? 1 / axis.labels.length : 0.02;
    const far = { PageUp: 5 * step, PageDown: -5 * step, ArrowUp: step, ArrowDown: -step, Home: -2, End: 2 }[event.key];
    if (far !== undefined) {
      const ends = [low, high];
      ends[which] = which ? Math.max(low, Math.min(1, high + far)) : Math.min(high, Math.max(0, low + far));
      this.brush(axis, ends);
    } else if (event.key === "Escape") this.brush(axis, null);
    else if (event.key === "ArrowRight" || event.key === "ArrowLeft") {
      const next = this.shown[this.shown.indexOf(axis) + (event.key === "ArrowRight" ? 1 : -1)];
      if (!next) return;
      for (const thumb of axis.thumbs) thumb.tabIndex = -1;
      for (const thumb of next.thumbs) thumb.tabIndex = 0;
      next.thumbs[which].focus();
    } else return;
    event.preventDefault();
  }

  /* ends: [low, high] along the axis, null: all. */
  brush(axis, ends) {
    if (ends && (ends[0] > 0 || ends[1] < 1)) this.brushes.set(axis, ends);
    else this.brushes.delete(axis);
    if (axis.node?.isConnected) this.place(axis);
    this.brushed();
  }

  clear() {
    this.brushes.clear();
    for (const axis of this.shown) this.place(axis);
  }

  place(axis) {
    const ends = this.brushes.get(axis);
    const [low, high] = ends ?? [0, 1];
    axis.bar.hidden = !ends;
    axis.bar.style.bottom = `${100 * low}%`;
    axis.bar.style.height = `${100 * (high - low)}%`;
    axis.thumbs.forEach((thumb, which) => {
      const u = which ? high : low;
      thumb.style.bottom = `${100 * u}%`;
      thumb.setAttribute("aria-valuenow", Math.round(100 * u));
      thumb.setAttribute("aria-valuetext", ends ? valueAt(axis, u, which) : "all");
    });
  }

  draw() {
    const c = sized(this.back, this.width, this.height), everything = this.everything();
    this.trace(c, ++this.generation, (i) => this.visible(i), (i) => (everything ? null : { colour: colour("grid"), alpha: this.n > 500 ? 0.25 : 0.8 }));
    this.drawFront();
  }

  everything() {
    for (let i = 0; i < this.n; i++) if (this.visible(i) && !this.active(i)) return false;
    return true;
  }

  drawFront() {
    const everything = this.everything();
    if (everything !== this.was) {
      this.was = everything;
      return this.draw();
    }
    const c = sized(this.front, this.width, this.height);
    let n = 0;
    for (let i = 0; i < this.n; i++) n += this.active(i);
    const faint = Math.min(0.55, Math.max(0.02, 60 / n));
    this.trace(c, (this.tracing = (this.tracing ?? 0) + 1), (i) => this.active(i), (i) => ({ colour: this.paint(i).colour, alpha: this.paint(i).filled ? 0.9 : faint, width: this.paint(i).filled ? 1.6 : 1 }));
  }

  /* Draw lines in slices, one per frame, the front last and on top. A later call cancels this one. */
  trace(c, token, wanted, look) {
    const isBack = c === this.back.getContext("2d");
    const chosen = [];
    for (let i = 0; i < this.n; i++) if (wanted(i)) chosen.push(i);
    chosen.sort((a, b) => this.paint(a).rank - this.paint(b).rank);
    const xs = this.shown.map((axis) => axis.x), top = this.topPx, long = this.long;
    const slice = (from) => {
      if (token !== (isBack ? this.generation : this.tracing)) return;
      for (const i of chosen.slice(from, from + LINES_A_FRAME)) {
        const style = look(i);
        if (!style) return;
        c.strokeStyle = style.colour;
        c.globalAlpha = style.alpha;
        c.lineWidth = style.width ?? 1;
        c.beginPath();
        this.shown.forEach((axis, k) => {
          const u = Number.isNaN(axis.u[i]) ? ABSENT : axis.u[i] + axis.spread * jitter(i, k);
          c[k ? "lineTo" : "moveTo"](xs[k], top + (1 - u) * long);
        });
        c.stroke();
      }
      if (from + LINES_A_FRAME < chosen.length) requestAnimationFrame(() => slice(from + LINES_A_FRAME));
    };
    slice(0);
    c.globalAlpha = 1;
  }
}

/* Axis of a dimension or a metric, with every trial's position on it. */
function axisOf(base, n, valueOf) {
  const axis = { ...base, u: new Float32Array(n), someAbsent: false, spread: 0 };
  if (axis.kind === "choice") {
    for (let i = 0; i < n; i++) axis.u[i] = (valueOf(i) ?? -1) < 0 ? NaN : (valueOf(i) + 0.5) / axis.labels.length;
    axis.spread = n > 40 ? 0.55 / axis.labels.length : 0;
  } else {
    const numbers = [];
    for (let i = 0; i < n; i++) if (valueOf(i) !== null) numbers.push(valueOf(i));
    const [least, most] = extent(numbers) ?? [axis.low ?? 0, axis.high ?? 1]; // no values: the method was not tried
    axis.low = axis.low ?? least;
    axis.high = axis.high ?? most;
    axis.low = Math.min(axis.low, least);
    axis.high = Math.max(axis.high, most);
    axis.log = Boolean(axis.log) && axis.low > 0;
    axis.scale = scale(axis.low, axis.high, axis.log);
    const single = axis.low === axis.high;
    for (let i = 0; i < n; i++) axis.u[i] = valueOf(i) === null ? NaN : single ? 0.5 : axis.scale.to(valueOf(i));
  }
  axis.someAbsent = axis.u.some(Number.isNaN);
  return axis;
}

function axisLabels(axis) {
  if (axis.kind === "choice") {
    const all = axis.labels.map((label, k) => [(k + 0.5) / axis.labels.length, label]);
    return all.length <= 14 ? all : all.filter((_, k) => k % Math.ceil(all.length / 14) === 0);
  }
  if (axis.low === axis.high) return [[0.5, format(axis.format, axis.low)]];
  const round = axis.log ? decades(axis.low, axis.high) : ticks(axis.low, axis.high, 4);
  return round.map((v) => [axis.scale.to(v), format(axis.format, v)]);
}

function valueAt(axis, u, which) {
  if (axis.kind !== "choice") return format(axis.format, axis.scale.from(u));
  const n = axis.labels.length;
  const k = which ? Math.floor(u * n - 0.5 + 1e-6) : Math.ceil(u * n - 0.5 - 1e-6);
  return axis.labels[Math.min(n - 1, Math.max(0, k))];
}
