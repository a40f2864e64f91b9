"""Judge `--until converged`: after how many trials it ends a search, and what it gives away against going on.

    python benchmarks/converged.py [--seeds 10] [--first-seed 300] [--trials 100] [--jobs 2]

Searches by `pareto`, without early stopping, on the measured tables that `search.py` replays. Results have the noise
that different seeds have. The hypervolume is that of the noiseless values at the study's reference point, as a share of
what the same search has after all trials.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from search import OBJECTIVES, Ledger, _world, optuna_search, run_all

from cst_search.commands.study_setup import first_configs
from cst_search.search.samplers import pareto_sampler
from cst_search.study.outlook import Outlook, has_converged
from cst_search.study.parameters import params_of
from cst_search.study.pareto import hypervolume

CASES = {
    "demo": ("benchmarks/results/search-table.json.gz", "gp"),
    "demo, trees": ("benchmarks/results/search-table.json.gz", "trees"),
    "bccd": ("benchmarks/results/search-table-bccd.json.gz", "gp"),
}
CONTEXT_BYTES = 564_000_000  # in the device bytes of the tables


def search(job: tuple[str, bool, int, int]) -> dict[str, Any]:
    """Run one search to its end, and find where it would have ended."""
    case, with_prior, seed, n_trials = job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    world = _world(*CASES[case])
    sampler = pareto_sampler(
        world.spec, world.space, world.cost, lambda t: {}, seed, world.priors if with_prior else ()
    )
    ledger = Ledger(world, np.random.default_rng(seed))
    outlooks: list[Outlook] = []
    said: list[tuple[int, float, float]] = []  # (trials so far, what ten more gain, noise)
    stop: list[int] = []
    suggest = sampler.sample_relative

    def watched(study: optuna.Study, *rest: Any) -> dict[str, Any]:
        found = suggest(study, *rest)
        n = ledger.epochs // world.epochs
        if sampler.outlook is not None:
            outlooks.append(sampler.outlook)
            said.append((n, sampler.outlook.of_next, sampler.outlook.noise))
        if not stop and has_converged(outlooks, n):
            stop.append(n)
        return found

    sampler.sample_relative = watched  # type: ignore[method-assign]
    first = [params_of(world.space, config) for config in first_configs(world.space, world.recipe)]
    optuna_search(world, ledger, sampler, n_trials * world.epochs, {}, first=first)
    volumes = [_volume(world.reference, ledger.steps, n * world.epochs) for n in range(n_trials + 1)]
    return {"case": case, "prior": with_prior, "seed": seed, "stop": stop[0] if stop else None, "said": said,
            "volumes": volumes}  # fmt: skip


def _volume(reference: Mapping[str, float], steps: Sequence[tuple[float, ...]], epochs: int) -> float:
    rows = [(y, device - CONTEXT_BYTES, params) for at, y, device, params in steps if at <= epochs]
    worst = [reference["map"], reference["device_bytes"] - CONTEXT_BYTES, reference["trainable_params"]]
    return hypervolume(rows, OBJECTIVES, worst) if rows else 0.0


def report(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Print and return a row for each case: where searches ended, what they kept, what was said and what came."""
    rows = []
    print("| table | prior | ended | after trials: median (least to most) | hypervolume kept: median, least |")
    print("|---" * 5 + "|")
    for case, prior in dict.fromkeys((r["case"], r["prior"]) for r in results):
        runs = [r for r in results if (r["case"], r["prior"]) == (case, prior)]
        ended = [r for r in runs if r["stop"] is not None]
        after = sorted(r["stop"] for r in ended)
        kept = sorted(r["volumes"][r["stop"]] / r["volumes"][-1] for r in ended)
        row = {"case": case, "prior": prior, "searches": len(runs), "after": after, "kept": kept}
        words = "-"
        if ended:
            words = f"{statistics.median(after):.0f} ({after[0]} to {after[-1]}) | "
            words += f"{statistics.median(kept):.1%}, {kept[0]:.1%}"
        print(f"| {case} | {'yes' if prior else 'no'} | {len(ended)} of {len(runs)} | {words} |")
        rows.append(row | {"calibration": _calibration(runs)})
    for row in rows:
        print(row["case"], row["prior"], row["calibration"])
    return rows


def _calibration(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, float]]:
    """Return, by ranges of trials, medians of what ten more trials were to gain, and of what they gained."""
    found = []
    for low, high in ((5, 20), (20, 40), (40, 90)):
        pairs = [
            (most, r["volumes"][n + 10] / r["volumes"][n] - 1, noise)
            for r in runs for n, most, noise in r["said"]
            if low <= n < high and n + 10 < len(r["volumes"]) and r["volumes"][n] > 0
        ]  # fmt: skip
        if pairs:
            said, came, noise = (statistics.median(column) for column in zip(*pairs, strict=True))
            over = sum(one > most for most, one, _ in pairs) / len(pairs)
            found.append({"from": low, "said": said, "came": came, "noise": noise, "came more": over})
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=400, help="the rule was chosen on seeds 300 to 305")
    parser.add_argument("--trials", type=int, default=100)
    parser.add_argument("--cases", default=";".join(CASES))
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/converged.json"))
    args = parser.parse_args()
    jobs = [
        (case, prior, seed, args.trials)
        for case in args.cases.split(";")
        for seed in range(args.first_seed, args.first_seed + args.seeds)
        for prior in (True, False)
    ]
    results = list(run_all(search, jobs, args.jobs, args.out.with_suffix(".jsonl")))
    rows = report(results)
    stamp = {"command": " ".join(sys.argv), "cpus": os.cpu_count(), "optuna": optuna.__version__}
    args.out.write_text(json.dumps(stamp | {"rows": rows}) + "\n")


if __name__ == "__main__":
    main()
