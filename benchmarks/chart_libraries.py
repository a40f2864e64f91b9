"""Measure chart libraries on what the report page needs: 10,000 points under its content policy, without a network.

    npm install --prefix MODULES uplot @observablehq/plot echarts esbuild
    python benchmarks/chart_libraries.py MODULES --out benchmarks/results/chart-libraries-NAME.json

Each library is bundled by esbuild with only the parts that a scatter plot, line charts and, where it has them, parallel
coordinates use. Measured are the bytes that it adds to every page, the first drawing of a scatter plot, and the drawing
after some of the points are dimmed, as brushing does. The last row is the plane of the page itself, and the bytes of
all its scripts. docs/architecture.md has the decision.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from pages import chromium, made_info
from wall import machine

from cst_search.report.html import write_front
from cst_search.report.summary import page_report

POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"  # page.html.j2
)
PAGE = """<!DOCTYPE html><meta charset=utf-8><meta http-equiv="Content-Security-Policy" content="{policy}">
<div id=root style="width:1040px;height:520px"></div><script>{bundle}</script>"""
# each gives draw(root, xs, ys) and dim(chosen)
SOURCES = {
    "uPlot": """import uPlot from "uplot";
let chosen = () => true, plot;
const points = (u) => {
  const [xs, ys] = u.data, { ctx } = u;
  for (let i = 0; i < xs.length; i++) {
    ctx.globalAlpha = chosen(i) ? 0.6 : 0.1;
    ctx.strokeRect(u.valToPos(xs[i], "x", true) - 4, u.valToPos(ys[i], "y", true) - 4, 8, 8);
  }
  return null;
};
globalThis.draw = (root, xs, ys) => (plot = new uPlot({ width: 1040, height: 520, scales: { x: { time: false } },
  series: [{}, { paths: points, points: { show: false } }] }, [xs, ys], root));
globalThis.dim = (some) => ((chosen = some), plot.redraw());""",
    "Observable Plot": """import { dot, lineY, plot, ruleX } from "@observablehq/plot";
let at;
const show = (chosen) => {
  const strokeOpacity = at.xs.map((_, i) => (chosen(i) ? 0.6 : 0.1));
  const points = dot(at.xs, { x: at.xs, y: at.ys, symbol: "square", strokeOpacity });
  at.root.replaceChildren(plot({ width: 1040, height: 520, marks: [ruleX([0.9]), lineY([0, 1]), points] }));
};
globalThis.draw = (root, xs, ys) => ((at = { root, xs, ys }), show(() => true));
globalThis.dim = show;""",
    "ECharts": """import { init, use } from "echarts/core";
import { LineChart, ParallelChart, ScatterChart } from "echarts/charts";
import { AriaComponent, BrushComponent, DataZoomComponent, GridComponent, MarkLineComponent, ParallelComponent,
  TooltipComponent } from "echarts/components";
import { CanvasRenderer } from "echarts/renderers";
use([LineChart, ParallelChart, ScatterChart, AriaComponent, BrushComponent, DataZoomComponent, GridComponent,
  MarkLineComponent, ParallelComponent, TooltipComponent, CanvasRenderer]);
let chart, at;
const data = (chosen) => at.xs.map((x, i) => ({ value: [x, at.ys[i]], itemStyle: { opacity: chosen(i) ? 0.6 : 0.1 } }));
globalThis.draw = (root, xs, ys) => {
  at = { xs, ys };
  chart = init(root);
  chart.setOption({ animation: false, xAxis: { type: "value" }, yAxis: { type: "value" },
    series: [{ type: "scatter", symbol: "rect", symbolSize: 8, data: data(() => true) }] });
};
globalThis.dim = (chosen) => chart.setOption({ series: [{ data: data(chosen) }] });""",
}
TIMES = """async (n) => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const at = (p) => Array.from({ length: n }, (_, i) => (Math.sin(i * p) + 1) / 2);
  const timed = async (call) => {
    const begun = performance.now();
    call();
    await frame();
    return performance.now() - begun;
  };
  const first = await timed(() => draw(document.getElementById("root"), at(12.9).sort((a, b) => a - b), at(78.2)));
  const again = [];
  for (let k = 1; k < 8; k++) again.push(await timed(() => dim((i) => i % 8 < k)));
  return [first, again];
}"""
OURS = """async () => {
  const frame = () => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
  const again = [];
  for (let k = 1; k < 8; k++) {
    const begun = performance.now();
    selection = new Set([...trials.trial.keys()].filter((i) => i % 8 < k));
    judge();
    scatter.redraw();
    await frame();
    again.push(performance.now() - begun);
  }
  return [scatter.drawMs, again];
}"""


def measure(browser: Any, path: Path, times: str, *given: Any) -> dict[str, Any]:
    """Return milliseconds, and the messages and requests of the page, which are none if it keeps to the policy."""
    page, said, asked = browser.new_page(viewport={"width": 1200, "height": 900}), [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    page.wait_for_timeout(1000)
    first, again = page.evaluate(times, *given)
    page.close()
    return {"first_ms": round(first, 1), "dim_ms": round(statistics.median(again), 1), "messages": said[:3],
            "requests": len(asked) - 1}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("modules", type=Path)
    parser.add_argument("--points", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    modules = args.modules.resolve() / "node_modules"
    result: dict[str, Any] = {"machine": machine(), "load": os.getloadavg()[0], "points": args.points, "rows": []}
    with tempfile.TemporaryDirectory() as folder, chromium() as browser:
        result["browser"] = browser.version
        for name, source in SOURCES.items():
            command = [modules / ".bin/esbuild", "--bundle", "--minify", "--format=iife", "--loader=js"]
            built = subprocess.run(
                command, input=source, capture_output=True, text=True, check=True, cwd=modules.parent
            ).stdout.replace("</script", "<\\/script")
            path = Path(folder) / "page.html"
            path.write_text(PAGE.format(policy=POLICY, bundle=built), encoding="utf-8")
            row = {"name": name, "bytes": len(built.encode())} | measure(browser, path, TIMES, args.points)
            result["rows"].append(row)
            print(json.dumps(row))
        path = write_front(page_report(made_info(args.points, seed=1)), Path(folder))["html"]
        scripts = Path(__file__).resolve().parents[1].glob("dashboards/*.js")
        row = {"name": "our own", "bytes": sum(p.stat().st_size for p in scripts)} | measure(browser, path, OURS)
        result["rows"].append(row)
        print(json.dumps(row))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
