"""Measure the report page: its size, the time to write it, and a browser's time to show it and to react.

    python benchmarks/page.py --out benchmarks/results/page-NAME.json     (about 2 minutes; --plotly: 1 more)

Uses made-up studies in the space of twelve methods (tests/pages.py) and a headless Chromium without a GPU, so the CPU
draws what follows the pointer. ``--plotly`` (pip install plotly) draws the same scatter plot with plotly.js, as an
earlier page did.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))

from pages import chromium, made_info
from wall import machine

from cst_search.report.html import write_front
from cst_search.report.labels import plain
from cst_search.report.page_data import page_data
from cst_search.report.summary import page_report
from cst_search.study.importance import importance

# JavaScript that each action runs in a frame; k counts frames
ACTIONS = {
    "pan": "scatter.zoom([[v[0][0] + k * d, v[0][1] + k * d], v[1]])",
    "hover": "scatter.point(order[k % order.length])",
    "brush": "parallel.brush(axis, [k / 60, 1])",
    "axes": "(byId('x').value = ['seconds', 'trainable_params', 'working_bytes'][k % 3], chooseAxes())",
    "scroll": "byId('trials').scrollTop = 200 * k",
}
FRAMES = """async ([action, n]) => {
  const frame = () => new Promise((done) => requestAnimationFrame(done));
  byId("state").value = ""; refresh(); await frame(); await frame();
  const v = scatter.view, d = (v[0][1] - v[0][0]) / 100, axis = axes.find((a) => a.key === "lr");
  const order = [...trials.trial.keys()].filter((i) => !isNaN(scatter.px[i]));
  const step = new Function("k", "v", "d", "axis", "order", `return ${action}`);
  const took = [];
  for (let k = 1; k <= n; k++) {
    const begun = performance.now();
    step(k, v, d, axis, order);
    await frame(); await frame();            // asked for in the first, drawn when the second begins
    took.push((performance.now() - begun) / 2);
  }
  return took;
}"""


def in_browser(path: Path, browser: Any, repeat: int) -> dict[str, Any]:
    """Measure milliseconds from navigation to first paint and to the drawn chart, and per frame during actions."""
    firsts, drawn = [], []
    for _ in range(repeat):
        page = browser.new_page(viewport={"width": 1200, "height": 900}, bypass_csp=True)  # FRAMES makes a function
        page.goto(path.as_uri())
        page.wait_for_function("performance.getEntriesByName('drawn').length > 0")
        entry = "performance.getEntriesByName({!r})[0].startTime"
        page.wait_for_function("performance.getEntriesByName('first-contentful-paint').length > 0")
        firsts.append(page.evaluate(entry.format("first-contentful-paint")))
        drawn.append(page.evaluate(entry.format("drawn")))
        if len(drawn) < repeat:
            page.close()
    frames = {}
    for name, action in ACTIONS.items():
        took = page.evaluate(FRAMES, [action, 40])
        frames[name] = {"median_ms": round(statistics.median(took), 1), "worst_ms": round(max(took), 1)}
    found = {
        "first_contentful_paint_ms": round(statistics.median(firsts), 1),
        "chart_drawn_ms": round(statistics.median(drawn), 1),
        "drawing_all_points_ms": round(page.evaluate("scatter.drawMs"), 1),
        "frame": frames,
        "heap_bytes": page.evaluate("performance.memory.usedJSHeapSize"),
    }
    page.close()
    return found


def measure(n: int, folder: Path, browser: Any, repeat: int) -> dict[str, Any]:
    info = made_info(n, seed=1)
    seconds, report = timed(lambda: page_report(info), repeat)
    found: dict[str, Any] = {"trials": n, "page_report": seconds}
    found["of_that_importance"], _ = timed(lambda: importance(info), repeat)
    found["write_html_png_json"], paths = timed(lambda: write_front(report, folder / str(n)), repeat)
    found["of_that_columns"], data = timed(lambda: page_data(plain(report)), repeat)
    found["bytes"] = {path.name: path.stat().st_size for path in paths.values()}
    found["bytes_of_data"] = len(json.dumps(data, separators=(",", ":")))
    return found | in_browser(paths["html"], browser, repeat)


def timed(call: Callable[[], Any], repeat: int) -> tuple[dict[str, float], Any]:
    """Return median wall and CPU seconds of a call, and its result. CPU time is more telling on a busy machine."""
    walls, cpus = [], []
    for _ in range(repeat):
        wall, cpu = time.perf_counter(), time.process_time()
        result = call()
        walls.append(time.perf_counter() - wall)
        cpus.append(time.process_time() - cpu)
    return {"wall_s": round(statistics.median(walls), 3), "cpu_s": round(statistics.median(cpus), 3)}, result


def with_plotly(n: int, folder: Path, browser: Any) -> dict[str, Any]:
    """Measure plotly.js with the same number of points: size, first drawing, and a changed opacity for half of them."""
    from plotly.offline import get_plotlyjs

    library = get_plotlyjs()
    found: dict[str, Any] = {"trials": n, "library_bytes": len(library.encode())}
    for kind in ("scatter", "scattergl"):
        path = folder / f"plotly-{kind}-{n}.html"
        path.write_text(
            f"<!DOCTYPE html><meta charset=utf-8><div id=plot style='height:520px'></div>"
            f"<script>{library}</script><script>"
            f"const n = {n}, at = (p) => Array.from({{ length: n }}, (_, i) => (Math.sin(i * p) + 1) / 2);"
            f"const trace = {{ type: '{kind}', mode: 'markers', x: at(12.9), y: at(78.2),"
            "marker: { symbol: 'square-open', size: at(3.3).map((v) => 8 + 8 * v), opacity: 0.6 } };"
            "const begun = performance.now(), frame = () => new Promise((done) => requestAnimationFrame(done));"
            "window.first = Plotly.newPlot('plot', [trace], {}).then(frame).then(() => performance.now() - begun);"
            "window.again = async (k) => { const t = performance.now(); await Plotly.restyle('plot',"
            "{ 'marker.opacity': [trace.x.map((v) => (v > k / 9 ? 1 : 0.1))] }); await frame();"
            "return performance.now() - t; };</script>"
        )
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.goto(path.as_uri())
        first = page.evaluate("window.first")
        again = [page.evaluate("(k) => window.again(k)", k) for k in range(1, 8)]
        found[kind] = {"first_ms": round(first, 1), "brush_ms": round(statistics.median(again), 1)}
        page.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", default="100,1000,10000")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--plotly", action="store_true", help="plotly.js for comparison")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    sizes = [int(n) for n in args.trials.split(",")]
    result: dict[str, Any] = {"machine": machine(), "load": [os.getloadavg()[0]], "rows": []}
    with tempfile.TemporaryDirectory(prefix="page-") as folder, chromium() as browser:
        result["browser"] = browser.version
        for n in sizes:
            row = measure(n, Path(folder), browser, args.repeat)
            result["rows"].append(row)
            result["load"].append(os.getloadavg()[0])
            print(json.dumps(row))
        if args.plotly:
            result["plotly"] = [with_plotly(n, Path(folder), browser) for n in sizes]
            print(json.dumps(result["plotly"]))
    if args.out:
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
