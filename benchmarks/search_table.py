"""Train configurations of the all-methods space on a data set, and store the results that benchmarks/search.py replays.

    python benchmarks/search_table.py --data DIR [--common 60] [--own 40] [--image-size 128] [--jobs 1] [--out FILE]

Trials start from the shipped trained detector (recipe `small`, in bf16, images of at most 128 px by default). The first
60 configurations are the same for every data set, at another image size too; 40 more are drawn for the data set by its
name. Each is trained once at full length and evaluated after every epoch, so its mAP is known at every rung, on the
schedule of a full-length trial. Each result is a line in `FILE.jsonl` as it ends; the same command resumes from there.
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
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from cst_search.commands.dataset import image_sizes
from cst_search.config.loading import load_recipe, load_space
from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.disk_cache import Cache
from cst_search.memory.estimate import worst_input
from cst_search.trial.cost import predict
from cst_search.trial.run import run_trial

RECIPE, SPACE = "small", "petl"
SIDE_PX = 128  # the recipe's 240 px take four times as long, and a table has 100 trainings


def settings(epochs: int, data: DetectionData, side_px: int = SIDE_PX) -> dict[str, Any]:
    """Return the changed fields of the recipe: small images of the shape that the data's have, in bf16."""
    height, width = max(image_sizes(data), key=lambda hw: max(hw) / min(hw))
    longest = math.ceil(side_px * max(height, width) / min(height, width))
    return {
        "image_size_px": side_px, "max_size_px": longest, "precision": "bf16", "eval_every": 1, "search_epochs": epochs
    }  # fmt: skip


@dataclass(frozen=True)
class Job:
    """One configuration to train: ``key`` seeds the draw and names the row."""

    key: str
    folder: Path
    epochs: int
    side_px: int
    cache: Cache


def measure(job: Job) -> dict[str, Any]:
    """Train one configuration. Returns its costs and its mAP after every epoch."""
    torch.set_num_threads(1)
    data, _ = load_data(job.folder)
    base = replace(load_recipe(RECIPE), **settings(job.epochs, data, job.side_px))
    config = load_space(SPACE, base).sample(random.Random(f"search table {job.key}"))
    recipe = base.configured(config)
    shape = worst_input(recipe, image_sizes(data), data.summary()["max_boxes"])
    estimate = asdict(predict(recipe, len(data.class_names), shape))
    begun = time.perf_counter()
    result = run_trial(recipe, data, epochs=job.epochs, cache=job.cache)
    return {
        "key": job.key,
        "config": config,
        "outcome": result.outcome,
        "map": [entry["map"] for entry in result.history if "map" in entry],
        "seconds": round(time.perf_counter() - begun, 1),
    } | {key: estimate[key] for key in ("device_bytes", "active_bytes", "trainable_params", "petl_params")}


def keys(name: str, n_common: int, n_own: int) -> list[str]:
    """Return the keys of a table's rows: those of all tables first."""
    return [str(i) for i in range(n_common)] + [f"{name} {i}" for i in range(n_own)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="a folder that cst-search launch --data takes")
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--common", type=int, default=60, help="configurations that all tables share")
    parser.add_argument("--own", type=int, default=40, help="further configurations, of this data set alone")
    parser.add_argument("--image-size", type=int, default=SIDE_PX, help="shortest side in pixels")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, a thread each")
    parser.add_argument("--cache", type=Path, default=Path("cst-runs/cache"), help="where features are cached")
    parser.add_argument(
        "--out",
        type=Path,
        help="[default: benchmarks/results/search-table-NAME.json.gz, of another image size NAME-SIZE]",
    )
    args = parser.parse_args()
    name = args.data.name
    size = "" if args.image_size == SIDE_PX else f"-{args.image_size}"  # rows of two sizes must not meet in one file
    out = args.out or Path(f"benchmarks/results/search-table-{name}{size}.json.gz")
    lines = out.with_suffix(".jsonl")
    rows = [json.loads(line) for line in lines.read_text().splitlines()] if lines.exists() else []
    done = {row["key"] for row in rows}
    data, _ = load_data(args.data)
    wanted = keys(name, args.common, args.own)
    cache = Cache(args.cache, 4 * 10**9, len(wanted))
    jobs = [Job(key, args.data, args.epochs, args.image_size, cache) for key in wanted if key not in done]
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool, lines.open("a") as kept:
        for row in pool.imap_unordered(measure, jobs):
            rows.append(row)
            print(json.dumps(row), file=kept, flush=True)
            last = row["map"][-1] if row["map"] else math.nan
            print(
                f"[{len(rows)}/{len(wanted)}] {row['config']['method']}: {last:.3f} in {row['seconds']} s", flush=True
            )
    base = replace(load_recipe(RECIPE), **settings(args.epochs, data, args.image_size))
    stamp = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "space": dict(load_space(SPACE, base).source),
        "recipe": RECIPE,
        "data": name,
        "settings": settings(args.epochs, data, args.image_size),
        "n_classes": len(data.class_names),
        "sizes": image_sizes(data),
        "max_boxes": data.summary()["max_boxes"],
        "rows": sorted((row for row in rows if row["key"] in wanted), key=lambda row: wanted.index(row["key"])),
    }
    with gzip.open(out, "wt") as file:
        json.dump(stamp, file)


if __name__ == "__main__":
    main()
