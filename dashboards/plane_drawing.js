// Drawing of a plane on canvas: axes, budgets, the front's line, points, rings, labels.
"use strict";

/* options as Plane, and: paint(i) {shape, colour, filled, faint, rank}; active(i); lines() [{members, colour, dash,
   label}]; rings() [{i, label}]; viewed(): called when all is drawn. */
class DrawnPlane extends Plane {
  constructor(root, options) {
    super(options);
    Object.assign(this, { root, hover: -1, drag: null });
    this.base = make("canvas", { "aria-hidden": "true" });
    this.top = make("canvas", { "aria-hidden": "true" });
    root.append(this.base, this.top);
    this.redraw = frame(() => this.draw());
    this.redrawTop = frame(() => this.drawTop());
    new ResizeObserver(this.redraw).observe(root);
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

  /* The first of those places for a label, `wide` across, that hide the fewest points; one beside its line if there is. */
  leastCovering(places, wide) {
    const covered = places.map(({ left, top, moved }) => {
      let count = moved ? 0.5 : 0;
      for (let i = 0; i < this.n; i++) if (this.px[i] > left - 4 && this.px[i] < left + wide + 4 && this.py[i] > top - 4 && this.py[i] < top + 21) count++;
      return count;
    });
    return places[covered.indexOf(Math.min(...covered))];
  }

  drawRings(c, ink) {
    c.save();
    c.font = `bold ${narrow.matches ? 11 : 13}px system-ui, sans-serif`;
    const rings = this.rings().filter(({ i }) => !Number.isNaN(this.px[i]));
    const taken = rings.map(({ i }) => ({ left: this.px[i] - this.radius[i] - 5, top: this.py[i] - this.radius[i] - 5, wide: 2 * this.radius[i] + 10, high: 2 * this.radius[i] + 10 }));
    for (const { i, label } of rings) {
      const [x, y, r] = [this.px[i], this.py[i], this.radius[i] + 5], wide = c.measureText(label).width + 8;
      // for memory against mAP the upper left is always free; otherwise take any free corner
      const places = [[-34, -38], [34, -38], [-34, 38], [34, 38], [-60, -70], [60, 70], [60, -70], [-60, 70]].map(([dx, dy]) => {
        const wanted = dx < 0 ? x + dx - wide : x + dx, left = Math.max(this.box.left, Math.min(this.box.right - wide, wanted));
        return { dx, dy, left, moved: left !== wanted, top: y + dy - (dy < 0 ? 17 : 0) };
      });
      const free = (p) => p.top > this.box.top && p.top + 17 < this.box.bottom;
      const clear = (p) => taken.every((t) => p.left + wide < t.left || p.left > t.left + t.wide || p.top + 18 < t.top || p.top > t.top + t.high + 1);
      const possible = [places.filter((p) => free(p) && clear(p)), places.filter(free), places].find((some) => some.length);
      const { dx, dy, left, top } = this.leastCovering(possible, wide);
      taken.push({ left, top, wide, high: 17 });
      c.strokeStyle = ink;
      c.lineWidth = 2;
      c.beginPath();
      c.arc(x, y, r, 0, 2 * Math.PI);
      c.moveTo(x + 0.67 * r * Math.sign(dx), y + 0.75 * r * Math.sign(dy));
      c.lineTo(x + dx, y + dy);
      c.stroke();
      c.textAlign = "left";
      c.fillStyle = ink;
      this.rimmed(c, label, left + 4, y + dy + (dy < 0 ? -4 : 13));
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
}
