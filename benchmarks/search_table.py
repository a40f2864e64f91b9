"""Real results of random configurations, feasible and not: what `search.py` replays instead of training again.

    python benchmarks/search_table.py --home DIR [--n 240] [--workers 2] [--out benchmarks/results/search-table.json.gz]

Each is trained once at the full length of 9 epochs and evaluated after every epoch, so that its map is known at every
rung, on the schedule that a trial of the full length has. A line a configuration is kept as it ends, in `OUT.jsonl`;
the same command goes on there. The configurations are those of the all-methods space, drawn by their number alone.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import platform
import random
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cst_search.config import load_recipe, load_space
from cst_search.data import load_data
from cst_search.demo import write_demo
from cst_search.memory import predict, worst_input
from cst_search.preparation import image_sizes
from cst_search.trial import run_trial

EPOCHS = 9
SETTINGS = {"image_size_px": 96, "max_size_px": 96, "eval_every": 1, "search_epochs": EPOCHS}


def measure(job: tuple[int, str]) -> dict[str, Any]:
    """One configuration by its number: what it costs, and its map after every epoch."""
    index, home = job
    torch.set_num_threads(1)
    data, _ = load_data(write_demo(Path(home) / "demo-data"))
    config = load_space("petl").sample(random.Random(f"search table {index}"))
    recipe = replace(load_recipe("demo"), **SETTINGS).configured(config)
    shape = worst_input(recipe, image_sizes(data), data.summary()["max_boxes"])
    estimate = asdict(predict(recipe, len(data.class_names), shape))
    begun = time.perf_counter()
    result = run_trial(recipe, data, epochs=EPOCHS)
    return {
        "index": index,
        "config": config,
        "outcome": result.outcome,
        "map": [entry["map"] for entry in result.history],
        "seconds": round(time.perf_counter() - begun, 1),
    } | {key: estimate[key] for key in ("device_bytes", "active_bytes", "trainable_params", "petl_params")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--home", default="cst-runs", help="where the demo's images are drawn")
    parser.add_argument("--n", type=int, default=240)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search-table.json.gz"))
    args = parser.parse_args()
    lines = args.out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = {row["index"] for row in rows}
    data, _ = load_data(write_demo(Path(args.home) / "demo-data"))
    jobs = [(index, args.home) for index in range(args.n) if index not in done]
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
        "settings": SETTINGS,
        "n_classes": len(data.class_names),
        "sizes": image_sizes(data),
        "max_boxes": data.summary()["max_boxes"],
        "rows": sorted(rows, key=lambda row: row["index"]),
    }
    with gzip.open(args.out, "wt") as file:
        json.dump(stamp, file)


if __name__ == "__main__":
    main()
