"""Measure what a suggestion of `pareto` costs in large studies, here and in an earlier revision, in one run.

    python benchmarks/suggestion.py [--before REVISION] [--trials 100,1000,10000] [--repeat 20] [--spaces quick,petl]

A study of n made-up trials is kept in memory; every second one was stopped early. Each suggestion is made while two
trials run, and one of them is told before the next, as in a search on two workers. The figures are milliseconds of CPU
time of one thread: median and 90th percentile. They include the reading of trials in memory, but no database
(`large.py` has that) and no storing.

The earlier revision is exported by `git archive` and measured in processes of its own, in turn with this one. "equal"
is the share of suggestions that are the same in both.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parent.parent
N_STRUCTURES = 300  # configurations of different cost among the made-up trials


@dataclass(frozen=True)
class Case:
    """What one process measures."""

    space: str
    sources: bool
    n: int
    repeat: int


def measure(case: Case) -> dict[str, Any]:
    """Return the CPU milliseconds of each suggestion, and the suggested configurations."""
    import numpy as np
    import optuna
    from optuna.trial import TrialState, create_trial

    from cst_search.commands.budget_survey import Estimator, survey_costs
    from cst_search.commands.study_setup import reference_point
    from cst_search.config.loading import load_recipe, load_space
    from cst_search.search.optuna_space import distributions, layout, pick
    from cst_search.search.samplers import make_sampler
    from cst_search.search.sources import sources_of
    from cst_search.study import study as studies
    from cst_search.study.objectives import choose_objectives
    from cst_search.study.parameters import value_of
    from cst_search.study.records import Budget, StudySpec
    from cst_search.trial.cost import depends_on

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    recipe = load_recipe("demo")
    space = load_space(case.space, recipe)
    estimate = Estimator(recipe, 6, ((128, 128),), 8)
    survey = survey_costs(space, recipe, estimate)
    budget = Budget(memory_bytes=statistics.median_low(survey.device_bytes))
    objectives = choose_objectives("map,device_bytes,trainable_params")
    reference = reference_point(survey, budget)
    spec = StudySpec(
        objectives=objectives, budget=budget, reference_point={o.name: reference[o.name] for o in objectives},
        recipe=recipe.to_dict(), space=json.loads(json.dumps(space.source)), data="made up", seed=0, sampler="pareto",
        target_device="cpu", prior=("shipped/",) if case.sources else (),
    )  # fmt: skip
    rng, codes, of = np.random.default_rng(0), layout(space), distributions(space)
    free = codes.mask([d.name for d in space.dimensions() if not depends_on(d.key)])
    structures = codes.draw(N_STRUCTURES, rng)

    def config_of(params: Mapping[str, Any]) -> dict[str, Any]:
        return space.configure(lambda d: value_of(d, params[d.name]))

    costs = [estimate.roughly(config_of(codes.params(row))) for row in structures]
    which = rng.integers(N_STRUCTURES, size=case.n)
    rows = codes.like(np.where(free, np.nan, structures[which]), 0.0, rng)
    weights = rng.normal(size=codes.n_encoded) / np.sqrt(codes.n_encoded)
    curves: dict[int, dict[int, float]] = {}

    def result(row: Any) -> float:
        return float(0.4 + 0.2 * np.tanh(codes.encode(row[None])[0] @ weights) + 0.01 * rng.normal())

    trials = []
    for i, (row, cost) in enumerate(zip(rows, (costs[j] for j in which), strict=True)):
        params, y = codes.params(row), result(row)
        curves[i] = {3: 0.8 * y}
        ends = i % 2 == 0
        trials.append(create_trial(
            state=TrialState.COMPLETE if ends else TrialState.PRUNED, params=params,
            distributions={name: of[name] for name in params},
            values=[y, float(cost.device_bytes), float(cost.trainable_params)] if ends else None,
        ))  # fmt: skip
    with mock.patch.object(studies, "open_storage", lambda url, make=False: optuna.storages.InMemoryStorage()):
        made = studies.Study.create("", "made up", spec)
    sampler = make_sampler(
        spec, space, estimate, lambda t: curves.get(t.number, {}), 1, estimate.roughly,
        sources_of(made) if case.sources else (),
    )  # fmt: skip
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    study.add_trials(trials)
    found: list[float] = []
    suggested: list[dict[str, Any]] = []
    running: list[tuple[optuna.Trial, float, Any]] = []
    for i in range(case.repeat + 2):
        begun = time.process_time()
        trial = study.ask()
        config = space.configure(lambda d, trial=trial: pick(trial, d))
        if i >= 2:  # the first two read all trials
            found.append(1000 * (time.process_time() - begun))
        suggested.append(config)
        running.append((trial, result(codes.row(trial.params)), estimate.roughly(config)))
        if len(running) > 2:
            old, y, cost = running.pop(0)
            study.tell(old, [y, float(cost.device_bytes), float(cost.trainable_params)])
    return {"ms": found, "suggested": json.loads(json.dumps(suggested))}


def in_process(package: Path, case: Case) -> dict[str, Any]:
    """Return what `measure` returns with the package in a folder."""
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    words = [sys.executable, __file__, "--case", json.dumps(asdict(case))]
    there = os.environ | threads | {"PYTHONPATH": str(package)}
    ended = subprocess.run(words, env=there, check=True, capture_output=True, text=True)
    return json.loads(ended.stdout.splitlines()[-1])


def compared(case: Case, sides: Mapping[str, Path]) -> dict[str, Any]:
    """Return the figures of a case on each side, and how many suggestions are equal."""
    row: dict[str, Any] = asdict(case)
    runs = {side: in_process(package, case) for side, package in sides.items()}
    for side, run in runs.items():
        deciles = statistics.quantiles(run["ms"], n=10)
        row[side] = {"median": round(statistics.median(run["ms"]), 1), "p90": round(deciles[8], 1)}
    if "before" in runs:
        pairs = list(zip(runs["now"]["suggested"], runs["before"]["suggested"], strict=True))
        row["equal"] = sum(one == other for one, other in pairs) / len(pairs)
    return row


def show(row: Mapping[str, Any]) -> str:
    now, before = row["now"], row.get("before")
    words = f"| `{row['space']}` | {'with' if row['sources'] else 'without'} | {row['n']:,} "
    words += f"| {now['median']:.0f} | {now['p90']:.0f} |"
    if before is not None:
        ratios = [before[key] / now[key] for key in ("median", "p90")]
        words += f" {before['median']:.0f} ({ratios[0]:.1f}) | {before['p90']:.0f} ({ratios[1]:.1f}) "
        words += f"| {row['equal']:.0%} |"
    return words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--before", help="revision to compare with")
    parser.add_argument("--trials", default="100,1000,10000")
    parser.add_argument("--spaces", default="quick,petl")
    parser.add_argument("--repeat", type=int, default=20)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--case", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measure(Case(**json.loads(args.case)))))
        return
    base = Case("", False, 0, args.repeat)
    cases = [
        replace(base, space=space, sources=sources, n=int(n))
        for space in args.spaces.split(",")
        for sources in (False, True)
        for n in args.trials.split(",")
    ]
    with tempfile.TemporaryDirectory() as folder:
        sides = {"now": ROOT}
        if args.before:
            sides["before"] = Path(folder)
            archive = subprocess.run(["git", "-C", str(ROOT), "archive", args.before, "cst_search", "search_spaces",
                                      "trials"], check=True, capture_output=True)  # fmt: skip
            subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
        print(
            "| space | sources | trials | median, ms | p90 |"
            + " before (ratio) | p90 before | equal |" * bool(args.before)
        )
        print("|---" * (8 if args.before else 5) + "|")
        rows = []
        for case in cases:
            rows.append(compared(case, sides))
            print(show(rows[-1]), flush=True)
    if args.out:
        stamp = {"command": " ".join(sys.argv), "cpus": os.cpu_count(), "load": os.getloadavg()}
        args.out.write_text(json.dumps(stamp | {"rows": rows}) + "\n")


if __name__ == "__main__":
    main()
