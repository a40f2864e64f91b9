// One trial of the page and those it is compared with: figures, learning curves, export. And the hypervolume.
"use strict";

function open(i, adds) {
  if (adds) pin(i);
  current = i;
  detail();
  scatter.redraw();
  table.redraw();
  byId("spoken").textContent = `trial ${trials.trial[i]} is shown below the plot`;
}

function pin(i) {
  const place = pinned.indexOf(i);
  if (place >= 0) pinned.splice(place, 1);
  else if (pinned.length < MOST_PINNED) pinned.push(i);
  else byId("spoken").textContent = `at most ${MOST_PINNED} trials are compared`;
}

function detail() {
  const panel = byId("detail");
  panel.hidden = current < 0;
  if (current < 0) return;
  const i = current;
  byId("detail-title").textContent = `Trial ${trials.trial[i]}`;
  byId("detail-state").textContent = stateText(i) + (trials.trial[i] === data.knee ? ", the knee" : "");
  const said = [reason(i), ...(data.remarks[i] ?? [])].filter(Boolean);
  byId("detail-reason").replaceChildren(...said.map((text) => make("p", { class: "caption" }, text)));
  const fact = (label, text) => make("div", {}, make("dt", {}, label), make("dd", {}, text));
  byId("detail-figures").replaceChildren(...told.filter((m) => data.columns[m.key][i] !== null).map((m) => {
    const off = spread(i, m.key);
    const source = m.key === "working_bytes" ? `, ${data.sources[trials.source[i]]}` : "";
    return fact(m.short + source, metricText(data.columns, m, i) + (off === null ? "" : ` \u00b1 ${format(m.kind, off)} (${data.seeds[i].n} seeds)`));
  }));
  byId("detail-config").replaceChildren(...configuration(i).map(([key, text]) => fact(key, text)));
  const exportable = data.states[trials.state[i]] === "complete";
  byId("export").hidden = !exportable;
  byId("no-export").hidden = exportable;
  byId("command").value = `cst-search export ${data.quoted_study} --pick trial=${trials.trial[i]} -o best.yaml`;
  byId("copied").textContent = "";
  byId("pin").textContent = pinned.includes(i) ? "Do not compare" : "Compare";
  byId("pin").setAttribute("aria-pressed", String(pinned.includes(i)));
  const compared = [...pinned, ...(pinned.includes(i) ? [] : [i])];
  byId("pins").replaceChildren(...compared.map((j, k) => {
    const look = series(k);
    const sample = make("svg", { width: 34, height: 12, "aria-hidden": "true" }, make("path", { d: "M0 6H34", stroke: look.colour, "stroke-width": 2, "stroke-dasharray": look.dash.join(" ") || null }), make("path", { d: shapePath(look.marker, 17, 6, 4), fill: look.colour, stroke: look.colour }));
    const chip = make("span", { class: "chip" }, sample, `trial ${trials.trial[j]}`);
    if (pinned.includes(j)) {
      const remove = make("button", { type: "button", "aria-label": `do not compare trial ${trials.trial[j]}` }, "\u00d7");
      remove.addEventListener("click", () => {
        pin(j);
        detail();
        scatter.redraw();
        byId("pin").focus();
      });
      chip.append(remove);
    }
    return chip;
  }));
  const epochs = extent(compared.flatMap((j) => ["map", "loss"].flatMap((key) => curve(j, key).map(([epoch]) => epoch))));
  for (const [id, key, label] of [["curve-map", "map", "mAP"], ["curve-loss", "loss", "training loss"]]) {
    lineChart(byId(id), {
      series: compared.map((j, k) => ({ name: `trial ${trials.trial[j]}`, points: curve(j, key), ...series(k) })),
      xLabel: "epoch", xRange: epochs, yLabel: label, xKind: "whole", yKind: "number", nothing: `no ${label} was recorded`,
      say: ([epoch, value]) => `${label} ${value} after epoch ${epoch}`,
    });
  }
  byId("curves").setAttribute("aria-label", `Learning curves of ${compared.map((j) => `trial ${trials.trial[j]}`).join(", ")}`);
}

/* [[epoch, value]] of a trial; epochs are 1, 2, ... unless they are given. */
function curve(i, key) {
  const values = data.curves[key][i] ?? [], epochs = data.curves.epochs[i];
  return values.map((v, k) => [epochs ? epochs[k] : k + 1, v]).filter(([, v]) => v !== null);
}

// --- hypervolume, importance ---

function hypervolume() {
  const root = byId("hypervolume");
  if (!root) return;
  const byTime = document.querySelector("[name=volume]:checked").value === "hours";
  let spent = 0;
  const hours = data.columns.seconds.map((s) => (spent += (s ?? 0) / 3600));
  const points = data.volumes.map(([i, v]) => [byTime ? hours[i] : trials.trial[i], v]);
  const end = [byTime ? hours[n - 1] : trials.trial[n - 1], data.volumes.at(-1)[1]];
  lineChart(root, {
    series: [{ name: "hypervolume", points: [...(byTime ? [[0, 0]] : []), ...points, end], colour: colour("accent"), fill: colour("soft"), step: true }],
    xLabel: byTime ? `${data.worker} hours` : "trial", yLabel: "", xKind: byTime ? "number" : "whole", yKind: "number", zero: true,
    say: ([x, v]) => `${v.toFixed(4)} after ${byTime ? `${x.toFixed(3)} ${data.worker} hours` : `trial ${x}`}`,
  });
}
