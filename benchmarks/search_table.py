"""Train random configurations, feasible and not, and store the results that benchmarks/search.py replays.

    python benchmarks/search_table.py --home DIR [--n 240] [--workers 2] [--out benchmarks/results/search-table.json.gz]
    python benchmarks/search_table.py --data BCCD --first 1000 --n 100 --epochs 6 --eval-every 3 --out OUT  (as a prior)

Each configuration is trained once at full length and evaluated after every epoch, so its mAP is known at every rung, on
the schedule of a full-length trial. Each result is a line in `OUT.jsonl` as it ends; the same command resumes from
there. Configurations come from the all-methods space and depend on their number alone; `--first` selects others.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import multiprocessing
import platform
import random
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cst_search.commands.dataset import image_sizes
from cst_search.config.loading import load_recipe, load_space
from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.demo import write_demo
from cst_search.data.disk_cache import Cache
from cst_search.memory.estimate import worst_input
from cst_search.trial.cost import predict
from cst_search.trial.run import run_trial

SIDE_PX = 96


def settings(epochs: int, eval_every: int, data: DetectionData) -> dict[str, Any]:
    """Fields of the demo's recipe: small images of the shape that the data's have."""
    height, width = max(image_sizes(data), key=lambda hw: max(hw) / min(hw))
    longest = math.ceil(SIDE_PX * max(height, width) / min(height, width))
    return {"image_size_px": SIDE_PX, "max_size_px": longest, "eval_every": eval_every, "search_epochs": epochs}


def measure(job: tuple[int, Path, int, int, Cache]) -> dict[str, Any]:
    """One configuration by its number: what it costs, and its map after every epoch."""
    index, folder, epochs, eval_every, cache = job
    torch.set_num_threads(1)
    data, _ = load_data(folder)
    config = load_space("petl").sample(random.Random(f"search table {index}"))
    recipe = replace(load_recipe("demo"), **settings(epochs, eval_every, data)).configured(config)
    shape = worst_input(recipe, image_sizes(data), data.summary()["max_boxes"])
    estimate = asdict(predict(recipe, len(data.class_names), shape))
    begun = time.perf_counter()
    result = run_trial(recipe, data, epochs=epochs, cache=cache)
    return {
        "index": index,
        "config": config,
        "outcome": result.outcome,
        "map": [entry["map"] for entry in result.history if "map" in entry],
        "seconds": round(time.perf_counter() - begun, 1),
    } | {key: estimate[key] for key in ("device_bytes", "active_bytes", "trainable_params", "petl_params")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", default="cst-runs", help="where the demo's images are drawn")
    parser.add_argument("--data", type=Path, help="a folder in COCO format; the demo's images without it")
    parser.add_argument("--epochs", type=int, default=9)
    parser.add_argument("--eval-every", type=int, default=1, help="epochs; the last one is always evaluated")
    parser.add_argument("--first", type=int, default=0, help="number of the first configuration")
    parser.add_argument("--n", type=int, default=240)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search-table.json.gz"))
    args = parser.parse_args()
    lines = args.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = {row["index"] for row in rows}
    folder = args.data or write_demo(Path(args.home) / "demo-data")
    data, _ = load_data(folder)
    numbers = range(args.first, args.first + args.n)
    cache = Cache(Path(args.home) / "cache", 4 * 10**9, args.n)
    jobs = [(index, folder, args.epochs, args.eval_every, cache) for index in numbers if index not in done]
    with multiprocessing.get_context("spawn").Pool(args.workers) as pool, lines.open("a") as kept:
        for row in pool.imap_unordered(measure, jobs):
            rows.append(row)
            print(json.dumps(row), file=kept, flush=True)
            print(
                f"[{len(rows)}/{args.n}] {row['config']['method']}: {row['map'][-1:]} in {row['seconds']} s", flush=True
            )
    stamp = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "space": "petl",
        "recipe": "demo",
        "data": args.data.name if args.data else "demo",
        "settings": settings(args.epochs, args.eval_every, data),
        "n_classes": len(data.class_names),
        "sizes": image_sizes(data),
        "max_boxes": data.summary()["max_boxes"],
        "rows": sorted(rows, key=lambda row: row["index"]),
    }
    with gzip.open(args.out, "wt") as file:
        json.dump(stamp, file)


if __name__ == "__main__":
    main()
