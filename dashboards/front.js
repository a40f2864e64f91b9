// The views of the page together: what is chosen in one fades in all. Starts the page.
"use strict";

function refresh() {
  judge();
  scatter.redraw();
  parallel.redrawFront();
  table.update();
  byId("trials").classList.toggle("one-kind", byId("state").value !== ""); // its column would say the same in each row
  let count = 0;
  for (let i = 0; i < n; i++) count += activity[i];
  const all = trials.group.filter((g) => !hidden.has(data.groups[g].key)).length;
  byId("chosen").textContent = count === all ? `all ${n === all ? "" : `${all} shown of `}${n} trials` : `${count} of ${all} trials chosen`;
  byId("clear").disabled = selection === null && parallel.brushes.size === 0;
  byId("count").textContent = `${table.order.length} of ${n}`;
}

function setMode(mode, on) {
  for (const button of document.querySelectorAll("[data-mode]")) button.setAttribute("aria-pressed", String(button.dataset.mode === mode && on));
  scatter.setMode(on ? mode : null, on && matchMedia("(pointer: coarse)").matches);
}

function paintAll() {
  readLooks();
  scatter.redraw();
  parallel.redraw();
  detail();
  hypervolume();
}

for (const button of document.querySelectorAll("[data-group]")) {
  button.addEventListener("click", () => {
    const { group } = button.dataset;
    if (!hidden.delete(group)) hidden.add(group);
    button.setAttribute("aria-pressed", String(!hidden.has(group)));
    parallel.redraw();
    refresh();
  });
}
for (const button of document.querySelectorAll("[data-mode]")) button.addEventListener("click", () => setMode(button.dataset.mode, button.getAttribute("aria-pressed") !== "true"));
for (const radio of document.querySelectorAll("[name=volume]")) radio.addEventListener("change", hypervolume);
byId("clear").addEventListener("click", () => {
  selection = null;
  parallel.clear();
  if (ofMethod) byId("dimensions").value = "";
  ofMethod = false;
  showAxes();
  refresh();
});
byId("home").addEventListener("click", () => scatter.zoom(null));
byId("pin").addEventListener("click", () => {
  pin(current);
  detail();
  scatter.redraw();
});
for (const button of document.querySelectorAll("[data-method-trial]")) {
  button.addEventListener("click", () => {
    open(trials.trial.indexOf(Number(button.dataset.methodTrial)));
    byId("detail-title").focus();
  });
}
byId("copy").addEventListener("click", () => copy(byId("command"), byId("copied")));
byId("csv-copy").addEventListener("click", () => copy(byId("csv-text"), byId("csv-copied")));

readLooks();
fillAxes();
chooseAxes();
fillDimensions();
fillTable();
setMode("box", !matchMedia("(pointer: coarse)").matches);
refresh();
detail();
hypervolume();
dark.addEventListener("change", paintAll);
narrow.addEventListener("change", paintAll);
let width = window.innerWidth;
addEventListener("resize", frame(() => {
  if (window.innerWidth === width) return;
  width = window.innerWidth;
  showAxes();
  detail();
  hypervolume();
}));
