// What the pages' charts share: elements, colours, shapes, a canvas, a tooltip.
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
