"""Time training steps with and without recomputation, side by side on one core.

    python benchmarks/recompute.py --out benchmarks/results/recompute-cpu.json

Each method with a side network is trained twice, with `recompute: neck` (what `auto` was in earlier versions) and with
`none` (what it is without a budget), beside `head`, a frozen forward pass and a step of neck and head alone. All are in
one process, and rounds alternate their order. The time is that of the CPU, which other programs do not lengthen much.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from dataclasses import replace
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch
from methods_measure import Timed

from cst_search.config.loading import load_recipe

METHODS = ("cst", "lst", "side_tuning")


def measure(image_size_px: int, batch_size: int, n_rounds: int, n_steps: int) -> list[dict[str, float]]:
    """Return for each round the CPU seconds of each side, by name."""
    torch.set_num_threads(1)
    base = replace(
        load_recipe("small"), image_size_px=image_size_px, max_size_px=image_size_px, batch_size=batch_size
    )  # fmt: skip
    recipes = {"head": base.configured({"method": "head", "recompute": "none"})} | {
        f"{method} {part}": base.configured({"method": method, "recompute": part})
        for method in METHODS for part in ("neck", "none")
    }  # fmt: skip
    sides = {name: Timed(recipe, None, n_steps, "cpu") for name, recipe in recipes.items()}
    for side in sides.values():
        side.train()  # warm-up

    def seconds(side: Timed) -> float:
        begun = time.process_time()
        side.train()
        return time.process_time() - begun

    names = list(sides)
    return [{name: seconds(sides[name]) for name in (names if n % 2 == 0 else names[::-1])} for n in range(n_rounds)]


def ratios(rounds: list[dict[str, float]], name: str, beside: str) -> list[float]:
    """Return the lowest, median and highest ratio of two sides in the same round."""
    found = sorted(each[name] / each[beside] for each in rounds)
    return [round(value, 3) for value in (found[0], median(found), found[-1])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    rounds = measure(args.image_size, args.batch_size, args.rounds, args.steps)
    rows: dict[str, Any] = {
        method: {
            "neck_of_head": ratios(rounds, f"{method} neck", "head"),
            "none_of_head": ratios(rounds, f"{method} none", "head"),
            "none_of_neck": ratios(rounds, f"{method} none", f"{method} neck"),
        }
        for method in METHODS
    }
    for method, row in rows.items():
        print(method, *(f"{name} {middle} ({low} to {high})" for name, (low, middle, high) in row.items()), sep="  ")
    if args.out:
        kept = {name: value for name, value in vars(args).items() if name != "out"}
        about = {"date": date.today().isoformat(), "torch": torch.__version__, "load": round(load, 1), **kept}
        args.out.write_text(json.dumps(about | {"ratios": rows, "cpu_seconds": rounds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
