// Draws what cst_search/dashboard.py (picture) decided, in the page's colours, and sorts the table.
"use strict";

const picture = JSON.parse(document.getElementById("picture").textContent);
const hidden = new Set();
const narrow = matchMedia("(max-width: 640px)");
const dark = matchMedia("(prefers-color-scheme: dark)");
const touch = matchMedia("(pointer: coarse)").matches;
const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue("--" + name).trim();
const config = {
  responsive: true,
  displaylogo: false,
  displayModeBar: touch ? false : "hover",
  modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
  showSendToCloud: false, // plotly.js 4 would offer to upload the data to cloud.plotly.com
  plotlyServerURL: "",
};

function layout() {
  const line = { gridcolor: colour("grid"), linecolor: colour("grid"), zeroline: false };
  return {
    font: { family: getComputedStyle(document.body).fontFamily, color: colour("muted"), size: narrow.matches ? 11 : 13 },
    paper_bgcolor: "rgba(0,0,0,0)",
    plot_bgcolor: "rgba(0,0,0,0)",
    margin: { l: 10, r: 12, t: 34, b: 48 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: colour("grey"), activecolor: colour("ink") },
    showlegend: false,
    dragmode: touch ? false : "zoom", // a finger on the chart scrolls the page
    hovermode: "closest",
    hoverlabel: { align: "left", bgcolor: colour("card"), bordercolor: colour("muted"), font: { family: getComputedStyle(document.body).fontFamily, color: colour("ink"), size: 12 } },
    xaxis: { ...line }, yaxis: { ...line, automargin: true },
    shapes: [], annotations: [],
  };
}

function markers(group, points, strip) {
  const front = group.key === "front";
  return {
    type: "scatter", mode: "markers", meta: group.key, visible: !hidden.has(group.key),
    x: points.map((p) => p.x),
    y: points.map((p) => (strip ? 0 : p.y)),
    yaxis: strip ? "y2" : "y",
    hovertext: points.map((p) => p.hover), hoverinfo: "text",
    error_y: {
      visible: points.length > 0 && points[0].spread !== null, array: points.map((p) => p.spread),
      color: front ? colour("accent") : colour("grey"), thickness: 1.5, width: 5,
    },
    marker: {
      symbol: group.symbol, size: points.map((p) => p.size), opacity: front || points.length < 100 ? 1 : 0.6,
      color: front ? colour("accent") : colour("grey"),
      line: front ? { color: colour("card"), width: 1.5 } : { width: 1.4 },
    },
  };
}

function drawFront() {
  const element = document.getElementById("front");
  if (!element) return;
  const trained = (p) => p.y !== null;
  const strip = picture.groups.some((group) => !group.points.every(trained));
  const empty = !picture.groups.some((group) => group.points.some(trained));
  const traces = [{
    type: "scatter", mode: "lines", meta: "front", visible: !hidden.has("front"), hoverinfo: "skip",
    x: picture.line.map((p) => p[0]), y: picture.line.map((p) => p[1]),
    line: { shape: "hv", color: colour("accent"), width: 2 },
  }];
  if (picture.knee) {
    traces.push({
      type: "scatter", mode: "markers", meta: "front", visible: !hidden.has("front"), hoverinfo: "skip",
      x: [picture.knee.x], y: [picture.knee.y],
      marker: { symbol: "circle-open", size: picture.knee.size + 9, color: colour("ink"), line: { width: 2 } },
    });
  }
  for (const group of picture.groups) {
    // apart from those with a bar: of a point without one plotly draws a bar of no length
    for (const bar of [false, true]) {
      traces.push(markers(group, group.points.filter((p) => trained(p) && (p.spread !== null) === bar), false));
    }
    // an empty trace would do to draw the strip's axis over the plot's
    if (strip) traces.push(markers(group, group.points.filter((p) => !trained(p)), true));
  }
  const look = layout();
  Object.assign(look.xaxis, { title: { text: picture.x_label }, anchor: strip ? "y2" : "y" });
  Object.assign(look.yaxis, { title: { text: picture.y_label }, domain: [strip ? 0.13 : 0, 1] });
  if (picture.x_range) look.xaxis.range = picture.x_range;
  if (picture.y_range) look.yaxis.range = picture.y_range;
  if (empty) Object.assign(look.yaxis, { showticklabels: false, range: [0, 1] });
  if (strip) {
    look.yaxis2 = { domain: [0, 0.09], range: [-1, 1], fixedrange: true, automargin: true, showgrid: false, zeroline: false, showline: false,
      tickvals: [0], ticktext: ["no mAP"] };
    look.shapes.push({ type: "rect", xref: "paper", yref: "paper", x0: 0, x1: 1, y0: 0, y1: 0.09, layer: "below",
      line: { width: 0 }, fillcolor: colour("page") });
  }
  if (picture.knee && !hidden.has("front")) {
    look.annotations.push({
      x: picture.knee.x, y: picture.knee.y, text: `<b>${picture.knee.label}</b>`, font: { color: colour("ink") },
      ax: 40 * picture.knee.side, ay: -44, standoff: picture.knee.size / 2 + 5, arrowhead: 0, arrowwidth: 1.5, arrowcolor: colour("ink"),
    });
  }
  if (picture.budget) {
    look.shapes.push({ type: "line", x0: picture.budget.x, x1: picture.budget.x, yref: "paper", y0: 0, y1: 1,
      line: { color: colour("limit"), width: 2, dash: "dash" } });
    look.annotations.push({ x: picture.budget.x, y: 1, yref: "paper", yanchor: "bottom", showarrow: false,
      text: `<b>${picture.budget.label}</b>`, font: { color: colour("limit") } });
  }
  Plotly.react(element, traces, look, config);
}

function drawHypervolume() {
  const element = document.getElementById("hypervolume");
  if (!element) return;
  const look = layout();
  look.margin.t = 8;
  Object.assign(look.xaxis, { title: { text: "trial" }, showgrid: false });
  Object.assign(look.yaxis, { rangemode: "tozero" });
  const trace = {
    type: "scatter", mode: "lines", line: { shape: "hv", color: colour("accent"), width: 2 }, fill: "tozeroy",
    fillcolor: colour("soft"), hovertemplate: "trial %{x}: %{y:.4f}<extra></extra>",
    x: picture.hypervolume.map((p) => p[0]), y: picture.hypervolume.map((p) => p[1]),
  };
  Plotly.react(element, [trace], look, { ...config, displayModeBar: false });
}

function draw() {
  drawFront();
  drawHypervolume();
}

for (const button of document.querySelectorAll("[data-group]")) {
  button.addEventListener("click", () => {
    const key = button.dataset.group;
    if (!hidden.delete(key)) hidden.add(key);
    button.setAttribute("aria-pressed", String(!hidden.has(key)));
    drawFront();
  });
}

for (const header of document.querySelectorAll("th")) {
  header.addEventListener("click", () => {
    const descending = header.getAttribute("aria-sort") === "ascending";
    for (const other of header.parentNode.children) other.removeAttribute("aria-sort");
    header.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const body = header.closest("table").tBodies[0];
    const key = (row) => {
      const cell = row.cells[header.cellIndex];
      return cell.dataset.value === undefined ? cell.textContent : Number(cell.dataset.value) || 0;
    };
    const rows = [...body.rows].sort((a, b) => {
      const [x, y] = [key(a), key(b)];
      return typeof x === "number" ? x - y : x.localeCompare(y);
    });
    body.append(...(descending ? rows.reverse() : rows));
  });
}

draw();
dark.addEventListener("change", draw);
narrow.addEventListener("change", draw);
