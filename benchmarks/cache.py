"""Measure the benefit of the disk cache: trials without it, with an empty one, and with one filled by another trial.

    python benchmarks/cache.py --data BCCD --recipe small --out benchmarks/results/cache-bccd.json
    python benchmarks/cache.py --out benchmarks/results/cache-demo.json

Each round runs the three trials of a method one after the other in this process, so that load on the machine affects
them alike. The result is the median of the ratios within a round. Losses and mAPs must be equal. A finished round is
kept in a .jsonl beside --out, and the same command resumes from there.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from dataclasses import replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cst_search import __version__
from cst_search.config.loading import load_recipe
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.demo import write_demo
from cst_search.data.disk_cache import Cache, taken_bytes
from cst_search.trial.run import run_trial
from cst_search.units import format_bytes

BOUND_BYTES = 20 * 10**9
KINDS = ("off", "empty", "filled")


def run(recipe: Recipe, data: DetectionData, epochs: int, device: str, cache: Cache | None) -> dict[str, Any]:
    """One trial: seconds of each epoch by the clock and of this process, losses, the last map."""
    clocks = [(time.perf_counter(), time.process_time())]

    def report(_: dict[str, Any]) -> None:
        clocks.append((time.perf_counter(), time.process_time()))

    result = run_trial(recipe, data, epochs=epochs, device=device, report=report, cache=cache)
    wall, cpu = ([after[n] - before[n] for before, after in pairwise(clocks)] for n in (0, 1))
    return {
        "outcome": result.outcome,
        "wall_seconds": wall,
        "cpu_seconds": cpu,
        "loss": [entry["loss"] for entry in result.history],
        "map": result.map,
        "notes": result.notes,
    }


def run_round(recipe: Recipe, data: DetectionData, epochs: int, device: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="cst-search-cache-") as folder:
        cache = Cache(Path(folder), BOUND_BYTES)
        found: dict[str, Any] = {}
        for kind in KINDS:
            found[kind] = run(recipe, data, epochs, device, None if kind == "off" else cache)
        by_kind: dict[str, int] = {}
        for path in Path(folder).glob("*.slots"):
            name = path.name.partition("-")[0]
            by_kind[name] = by_kind.get(name, 0) + path.stat().st_blocks * 512
        return found | {"bytes": by_kind, "taken_bytes": taken_bytes(Path(folder))}


def summarise(method: str, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians over the rounds; ``percent`` of the trial without a cache in the same round."""

    def whole(each: dict[str, Any], kind: str, clock: str) -> float:
        return sum(each[kind][clock])

    pairs = [(each["off"], each[kind]) for each in rounds for kind in KINDS[1:]]
    row: dict[str, Any] = {
        "method": method,
        "rounds": len(rounds),
        "feature_bytes": max(each["bytes"].get("features", 0) for each in rounds),
        "pixel_bytes": max(each["bytes"].get("pixels", 0) for each in rounds),
        "loss_difference": max(abs(a - b) for off, on in pairs for a, b in zip(off["loss"], on["loss"], strict=True)),
        "map_difference": max(abs(off["map"] - on["map"]) for off, on in pairs),
        "notes": [each["empty"]["notes"] for each in rounds],
    }
    for kind in KINDS:
        row[kind] = {
            "first_epoch_seconds": median(each[kind]["wall_seconds"][0] for each in rounds),
            "later_epoch_seconds": median(s for each in rounds for s in each[kind]["wall_seconds"][1:]),
        }
        for clock in ("wall", "cpu"):
            ratios = [whole(each, kind, f"{clock}_seconds") / whole(each, "off", f"{clock}_seconds") for each in rounds]
            row[kind] |= {
                f"{clock}_percent": 100 * median(ratios),
                f"{clock}_percent_low": 100 * min(ratios),
                f"{clock}_percent_high": 100 * max(ratios),
            }
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Aligned Markdown; whole trials in percent of the trial without a cache, with the lowest and highest round."""

    def percent(found: dict[str, float], clock: str) -> str:
        low, high = found[f"{clock}_percent_low"], found[f"{clock}_percent_high"]
        return f"{found[f'{clock}_percent']:.0f} % ({low:.0f}..{high:.0f})"

    lines = [["method", "epoch 1 off", "empty", "filled", "later epochs off", "empty", "filled", "trial, empty",
              "CPU time", "trial, filled", "CPU time", "maps", "images", "loss differs", "map differs"]]  # fmt: skip
    for row in rows:
        lines.append(
            [row["method"]]
            + [f"{row[kind]['first_epoch_seconds']:.2f} s" for kind in KINDS]
            + [f"{row[kind]['later_epoch_seconds']:.2f} s" for kind in KINDS]
            + [percent(row[kind], clock) for kind in KINDS[1:] for clock in ("wall", "cpu")]
            + [format_bytes(row["feature_bytes"]), format_bytes(row["pixel_bytes"])]
            + [f"{row['loss_difference']:.1g}", f"{row['map_difference']:.1g}"]
        )
    lines.insert(1, ["---"] * len(lines[0]))
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "| " + " | ".join(cell.ljust(n) for cell, n in zip(line, widths, strict=True)) + " |" for line in lines
    )


def cut(data: DetectionData, limit: int | None) -> DetectionData:
    splits = {name: replace(split, images=split.images[:limit]) for name, split in data.splits.items()}
    return replace(data, splits=splits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="COCO-format folder [the demo]")
    parser.add_argument("--recipe", default="demo", help="a shipped name or a YAML file [%(default)s]")
    parser.add_argument("--methods", default="cst,head,lst", help="[%(default)s]")
    parser.add_argument("--epochs", type=int, default=5, help="[%(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="[%(default)s]")
    parser.add_argument("--limit", type=int, help="images of each split, to try it out")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU [%(default)s]")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as folder:
        data, _ = load_data(args.data or write_demo(Path(folder) / "demo"), skip_bad=True)
        data = cut(data, args.limit)
        base = load_recipe(args.recipe)
        journal = args.out.with_suffix(".jsonl")
        kept = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
        for n in range(args.rounds):
            for method in args.methods.split(","):
                if any((each["method"], each["round"]) == (method, n) for each in kept):
                    continue
                recipe = replace(base, method=method, options={}, seed=n)
                each = {"method": method, "round": n, **run_round(recipe, data, args.epochs, args.device)}
                kept.append(each)
                with journal.open("a") as file:
                    print(json.dumps(each), file=file)
                print(f"round {n + 1} of {args.rounds}, {method}: {each['empty']['notes']}", flush=True)
    rows = [summarise(m, [each for each in kept if each["method"] == m]) for m in args.methods.split(",")]
    on_gpu = torch.cuda.is_available() and args.device != "cpu"
    stamp = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name() if on_gpu else platform.processor() or platform.machine(),
        "versions": {"cst_search": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "data": Path(args.data).name if args.data else "demo",
        "recipe": replace(base, data="").to_dict(),
        "epochs": args.epochs,
        "threads": args.threads,
        "limit": args.limit,
    }
    args.out.write_text(json.dumps(stamp | {"rows": rows, "rounds": kept}, indent=1) + "\n")
    journal.unlink()
    print(table(rows))


if __name__ == "__main__":
    main()
