"""Replay searches on the trained configurations of tables alone: no surrogate answers.

    python benchmarks/search_pool.py benchmarks/results/search-table*.json.gz benchmarks/results/methods-small-*.json \
      [--seeds 10] [--jobs 2]

Whatever a search asks for, it gets the nearest configuration of the pool that it has not had: of the same method while
there is one, by the distance in the sampler's columns. It learns that configuration and its real mAPs, epoch by epoch.
One over the memory budget costs no epoch, but counts as asked for. A search is judged by the hypervolume of its trials
at full length, relative to the front of the whole pool, in a box from the best to the worst of that front; trainable
parameters and working memory on a logarithmic scale. It ends at the last of `SHARES`. The sources of our sampler are
the shipped ones without the pool's data set and without its configurations, each with lengthscales of its own. Since
tables of different data sets share configurations, `--skip-common 20` leaves the first 20 of them to the sources.

A pool of fewer than 20 configurations has no budget, and a search of it no references to begin with: they would be most
of it. Figures are full trials: epochs over the length of a trial.

`Ray Tune + OptunaSearch` is what Ray's searcher is inside: Optuna's default sampler, which is not told of constraints.
It trains configurations over the budget as if memory sufficed, and they do not count.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import moocore
import numpy as np
import optuna
from search import OBJECTIVES, SMALL, Table, read_table, run_all, shipped_priors

from cst_search.commands.study_setup import first_configs
from cst_search.search.early_stopping import Rungs, rung_epochs
from cst_search.search.optuna_space import pick
from cst_search.search.samplers import pareto_sampler
from cst_search.study.parameters import params_of
from cst_search.study.study import ETA

SHARES = (0.8, 0.9, 0.95)  # of the pool's hypervolume: how many epochs until a search has them


class Pool(Table):
    """The configurations of a table, each to be had once."""

    def __init__(self, table: dict[str, Any]) -> None:
        super().__init__(table)
        self.columns = np.vstack([self.codes(config) for config in self.configs])
        self.methods = np.array([config["method"] for config in self.configs])
        self.costs = [self.cost(config) for config in self.configs]
        self.over = np.array([self.violation(config) for config in self.configs])
        self.priors = shipped_priors(self)
        self.first = [] if len(self.configs) < SMALL else first_configs(self.space, self.recipe)
        fixed = min(cost.device_bytes - cost.active_bytes for cost in self.costs)
        self.points = np.array([(-y, math.log(cost.device_bytes - fixed), math.log(cost.trainable_params))
                                for y, cost in zip(self.truth[:, -1], self.costs, strict=True)])  # fmt: skip
        inside = self.points[self.over <= 0]
        best = inside[moocore.is_nondominated(inside)]
        self.low, self.high = best.min(axis=0), best.max(axis=0)
        self.whole = self.volume(np.flatnonzero(self.over <= 0))

    def volume(self, rows: np.ndarray | list[int]) -> float:
        """Return the hypervolume of rows of the table, in the box of the pool's front (1.1 times its length)."""
        unit = (self.points[list(rows)] - self.low) / np.where(self.high > self.low, self.high - self.low, 1.0)
        return float(moocore.hypervolume(unit.reshape(-1, 3), ref=np.full(3, 1.1)))

    def nearest(self, config: dict[str, Any], left: set[int]) -> int:
        """Return the row of ``left`` that is nearest to a configuration, of its method if possible."""
        rows = np.array(sorted(left))
        same = rows[self.methods[rows] == config["method"]]
        rows = same if len(same) else rows
        return int(rows[np.argmin(((self.columns[rows] - self.codes(config)) ** 2).sum(axis=1))])


@dataclass
class Replay:
    """One search on a pool: what it has spent and seen.

    Attributes:
        steps: (epochs spent, share of the pool's hypervolume) after each trial at full length within the budget.
    """

    pool: Pool
    left: set[int]
    epochs: int = 0
    done: list[int] = field(default_factory=list)
    steps: list[tuple[int, float]] = field(default_factory=list)

    def completed(self, row: int) -> None:
        if self.pool.over[row] <= 0:
            self.done.append(row)
            self.steps.append((self.epochs, self.pool.volume(self.done) / self.pool.whole))


def replay(
    pool: Pool, sampler: optuna.samplers.BaseSampler, curves: dict[int, dict[int, float]], eta: int, constrained: bool,
    first: Sequence[dict[str, Any]] = (), until: float = math.inf,
) -> Replay:  # fmt: skip
    """Search until a share of the pool's hypervolume, or all of the pool; with ``eta``, trials are stopped at rungs.

    Those in ``first`` run to their end, as the references of a launch do.
    """
    references: set[int] = set()
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"], sampler=sampler)
    rungs = Rungs(OBJECTIVES, rung_epochs(pool.epochs, eta) if eta else (), eta or ETA)
    run = Replay(pool, set(range(len(pool.configs))))
    stopped: dict[int, tuple[optuna.Trial, int, int]] = {}
    while run.left and not (run.steps and run.steps[-1][1] >= until):
        number = rungs.promotable(list(stopped))
        if number is not None:
            trial, row, at = stopped.pop(number)
        else:
            n_asked = len(pool.configs) - len(run.left)
            trial, row = _ask(study, pool, run.left, first[n_asked] if n_asked < len(first) else None)
            run.left.discard(row)
            at, number = 0, trial.number
            if n_asked < len(first):
                references.add(number)
        cost, over = pool.costs[row], float(pool.over[row])
        if constrained and at == 0:
            trial.set_constraint("memory", over)
            if over > 0:
                study.tell(trial, [-math.inf, cost.device_bytes, cost.trainable_params])
                continue
        while at < pool.epochs:
            at += 1
            run.epochs += 1
            y = float(pool.truth[row, at - 1])
            if at in rungs.epochs:
                curves.setdefault(number, {})[at] = y
                rungs.report(number, at, [y, cost.device_bytes, cost.trainable_params], 0.0)
                if number not in references and not rungs.goes_on(number, at):
                    stopped[number] = trial, row, at
                    break
        else:
            study.tell(trial, [float(pool.truth[row, -1]), cost.device_bytes, cost.trainable_params])
            run.completed(row)
    return run


def _ask(study: optuna.Study, pool: Pool, left: set[int], first: dict[str, Any] | None) -> tuple[optuna.Trial, int]:
    """Return a trial with the parameters of the pool's row that is nearest to what the sampler asks for."""
    asked = first
    if asked is None:
        trial = study.ask()
        asked = pool.space.configure(lambda d: pick(trial, d))
        study.tell(trial, state=optuna.trial.TrialState.FAIL)  # it teaches the sampler nothing
    row = pool.nearest(asked, left)
    study.enqueue_trial(params_of(pool.space, pool.configs[row]))
    trial = study.ask()
    pool.space.configure(lambda d: pick(trial, d))
    return trial, row


Search = Callable[[Pool, int, float], Replay]


def _ours(eta: int, with_prior: bool) -> Search:
    def run(pool: Pool, seed: int, until: float = math.inf) -> Replay:
        curves: dict[int, dict[int, float]] = {}
        priors = pool.priors if with_prior else ()
        sampler = pareto_sampler(pool.spec, pool.space, pool.cost, lambda t: curves.get(t.number, {}), seed, priors)
        return replay(pool, sampler, curves, eta, True, pool.first, until)

    return run


def _stock(make: Callable[[int], optuna.samplers.BaseSampler], *, constrained: bool = True, eta: int = 0) -> Search:
    return lambda pool, seed, until=math.inf: replay(pool, make(seed), {}, eta, constrained, (), until)


def _tpe(seed: int) -> optuna.samplers.BaseSampler:
    return optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True, constant_liar=True)


SEARCHES: dict[str, Search] = {
    "pareto, early stopping": _ours(ETA, True),
    "pareto": _ours(0, True),
    "pareto-no-prior, early stopping": _ours(ETA, False),
    "pareto-no-prior": _ours(0, False),
    "Ray Tune + OptunaSearch": _stock(lambda seed: optuna.samplers.TPESampler(seed=seed), constrained=False),
    "Optuna TPE": _stock(_tpe),
    "Optuna NSGA-II": _stock(lambda seed: optuna.samplers.NSGAIISampler(population_size=16, seed=seed)),
    "Optuna GP": _stock(lambda seed: optuna.samplers.GPSampler(seed=seed, warn_independent_sampling=False)),
    "random": _stock(lambda seed: optuna.samplers.RandomSampler(seed=seed)),
    "random, early stopping": _stock(lambda seed: optuna.samplers.RandomSampler(seed=seed), eta=ETA),
}


@lru_cache(maxsize=1)
def _pool(path: str, skipped: int) -> Pool:
    table = read_table(Path(path))
    rows = [row for row in table["rows"] if not (row.get("key", "").isdigit() and int(row["key"]) < skipped)]
    return Pool(table | {"rows": rows})


def search(job: tuple[str, int, str, int]) -> dict[str, Any]:
    """Run one search with one seed on the pool of one table, without so many of the first rows of all tables."""
    name, seed, path, skipped = job
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    begun = time.process_time()
    pool = _pool(path, skipped)
    run = SEARCHES[name](pool, seed, max(SHARES))
    seconds = round(time.process_time() - begun, 1)
    which = f"{pool.data}, {len(pool.configs)} configurations"
    steps = [(epochs / pool.epochs, share) for epochs, share in run.steps]
    return {"name": name, "seed": seed, "data": which, "seconds": seconds, "steps": steps}


def trials_until(steps: Sequence[tuple[float, float]], share: float) -> float:
    """Return the full trials that a search had spent when it reached a share of the pool's hypervolume."""
    return next((trials for trials, reached in steps if reached >= share), math.inf)


def report(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print and return the median and quartiles of the full trials per data set, search and share."""
    rows = []
    for data in dict.fromkeys(r["data"] for r in results):
        print(f"\n{data}: full trials until a share of the pool's hypervolume, median of seeds (quartiles)\n")
        print("| search | seeds | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |")
        print("|---" * (len(SHARES) + 2) + "|")
        for name in dict.fromkeys(r["name"] for r in results):
            mine = [r for r in results if (r["data"], r["name"]) == (data, name)]
            runs = [r["steps"] for r in sorted(mine, key=lambda r: r["seed"])]
            cells = []
            for share in SHARES:
                found = [trials_until(steps, share) for steps in runs]
                q1, q2, q3 = statistics.quantiles(found, n=4) if len(found) > 1 else found * 3
                cells.append(f"{q2:.3g} ({q1:.3g} to {q3:.3g})")
                rows.append({"data": data, "search": name, "share": share, "trials": found})
            print(f"| {name} | {len(runs)} | " + " | ".join(cells) + " |")
    return rows


def worth_of_sources(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Print and return what sources save per data set: full trials to the last share, without them less with them.

    The mean over seeds, each with and without sources, and its 95 % interval by bootstrap; negative is harm. A search
    that never gets there counts as long as the longest that did, so harm and gain are both understated.
    """
    rng, found = np.random.default_rng(0), []
    by = {(row["data"], row["search"]): np.array(row["trials"]) for row in rows if row["share"] == SHARES[-1]}
    print("\n| data | saved by sources, mean (95 % interval) |\n|---|---|")
    for data in dict.fromkeys(data for data, name in by if {(data, "pareto"), (data, "pareto-no-prior")} <= set(by)):
        pair = np.stack([by[data, "pareto-no-prior"], by[data, "pareto"]])
        saved = -np.diff(np.minimum(pair, pair[np.isfinite(pair)].max(initial=0)), axis=0)[0]
        low, high = np.quantile(rng.choice(saved, (10_000, len(saved))).mean(axis=1), (0.025, 0.975))
        found.append({"data": data, "mean": float(saved.mean()), "low": float(low), "high": float(high)})
        print(f"| {data} | {saved.mean():.1f} ({low:.1f} to {high:.1f}) |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--first-seed", type=int, default=100, help="the sampler was tuned on those below 100")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--skip-common", type=int, default=0, help="rows that all tables share to leave to the sources")
    parser.add_argument("--only", help="names of searches, with semicolons")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/search-pool.json"))
    args = parser.parse_args()
    names = args.only.split(";") if args.only else list(SEARCHES)
    jobs = [
        (name, seed, table, args.skip_common)
        for table in args.tables
        for seed in range(args.first_seed, args.first_seed + args.seeds)
        for name in names
    ]
    results = list(run_all(search, jobs, args.jobs, args.out.with_suffix(".jsonl")))
    stamp = {"optuna": optuna.__version__, "command": " ".join(sys.argv)}
    rows = report(results)
    args.out.write_text(json.dumps(stamp | {"rows": rows, "sources": worth_of_sources(rows)}) + "\n")
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
