"""Time training steps of all methods on one core, side by side, with and without recomputation.

    python benchmarks/recompute.py --out benchmarks/results/recompute-cpu.json

Each method is trained as `recompute: auto` trains it without a budget, those with a side network also with
`recompute: neck`, which `auto` was for them in earlier versions. `head` is a frozen forward pass and a step of neck and
heads alone. All are in one process, and rounds alternate their order. The time is that of the CPU, which other programs
do not lengthen much. Then a step of `cst` is profiled with both.
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
from torch.profiler import ProfilerActivity, profile

from cst_search.config.loading import load_recipe
from cst_search.config.recipe import Recipe
from cst_search.petl import method_names

SIDE_METHODS = ("cst", "lst", "side_tuning")
# operators of a profile, by what their names contain, the first that fits; all others are "other"
OPERATORS = {
    "convolution, backward": ("convolution_backward",),
    "convolution, forward": ("convolution",),
    "norm, forward and backward": ("batch_norm", "group_norm"),
    "update": ("foreach", "adam"),
}


def recipes(base: Recipe) -> dict[str, Recipe]:
    """Return what is timed, by name: each method, and those with a side network with `neck` recomputed too."""
    found = {name: base.configured({"method": name, "recompute": "none"}) for name in method_names()}
    return found | {f"{name}, neck": base.configured({"method": name, "recompute": "neck"}) for name in SIDE_METHODS}


def measure(sides: dict[str, Timed], n_rounds: int) -> list[dict[str, float]]:
    """Return for each round the CPU seconds of each side, by name."""

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


def profiled(side: Timed, n_steps: int) -> dict[str, float]:
    """Return the CPU milliseconds of a step by operator, see OPERATORS; nested ones count once."""
    with profile(activities=[ProfilerActivity.CPU]) as found:
        side.train()
    shares = dict.fromkeys((*OPERATORS, "other"), 0.0)
    for event in found.key_averages():
        name = event.key.lower()
        kind = next((kind for kind, parts in OPERATORS.items() if any(part in name for part in parts)), "other")
        shares[kind] += event.self_cpu_time_total / 1000 / n_steps
    return {kind: round(milliseconds, 1) for kind, milliseconds in shares.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image-size", type=int, default=320)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    load = os.getloadavg()[0]
    torch.set_num_threads(1)
    base = replace(
        load_recipe("small"), image_size_px=args.image_size, max_size_px=args.image_size, batch_size=args.batch_size
    )  # fmt: skip
    sides = {name: Timed(recipe, None, args.steps, "cpu") for name, recipe in recipes(base).items()}
    for side in sides.values():
        side.train()  # warm-up
    rounds = measure(sides, args.rounds)
    rows: dict[str, Any] = {name: {"of_head": ratios(rounds, name, "head"), "of_full": ratios(rounds, name, "full")}
                            for name in sides}  # fmt: skip
    for name, row in rows.items():
        print(name, *(f"{what} {middle} ({low} to {high})" for what, (low, middle, high) in row.items()), sep="  ")
    profiles = {name: profiled(sides[name], args.steps) for name in ("head", "cst", "cst, neck")}
    for name, shares in profiles.items():
        print(f"{name}, ms of a step:", shares)
    if args.out:
        kept = {name: value for name, value in vars(args).items() if name != "out"}
        about = {"date": date.today().isoformat(), "torch": torch.__version__, "load": round(load, 1), **kept}
        found = {"ratios": rows, "profile_ms": profiles, "cpu_seconds": rounds}
        args.out.write_text(json.dumps(about | found, indent=1) + "\n")


if __name__ == "__main__":
    main()
