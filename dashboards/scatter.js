// A scatter plot of trials: a plane that answers to pointer, touch and keyboard.
"use strict";

/* options as DrawnPlane, and: lines of a tooltip describe(i); say(i); start(): trial at which the keyboard begins;
   pick(i, adds); select(set or null). */
class Scatter extends DrawnPlane {
  constructor(root, options) {
    super(root, options);
    this.mode = null;
    root.addEventListener("pointerdown", (event) => this.down(event));
    root.addEventListener("pointermove", (event) => this.move(event));
    root.addEventListener("pointerup", (event) => this.up(event));
    root.addEventListener("pointercancel", () => this.cancel());
    root.addEventListener("pointerleave", () => this.point(-1));
    root.addEventListener("dblclick", () => this.zoom(null));
    root.addEventListener("keydown", (event) => this.key(event));
    root.addEventListener("blur", () => this.point(-1));
  }

  // --- pointer ---

  at(event) {
    const box = this.root.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
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
