"""Measure how lucky a front is: train its points again with other seeds.

    python benchmarks/optimism.py TABLE... --data FOLDER [--seeds 4] [--jobs 2] --out FILE.json

A table of `search_table.py` is a search with random suggestions, one seed each. Its front keeps the best of many
values, so its points are partly luck. Each is trained again with fresh seeds, as `confirm` does. The optimism of a
front is the mean over its points of the value that is handed over, less the mean of fresh seeds that had no part in it:

    unconfirmed    the value of the search; all fresh seeds judge
    confirmed      as after `confirm --seeds 3`: the mean of the search and two fresh seeds; points that these means
                   dominate are gone; the other fresh seeds judge; the mean over all choices of two

Each result is a line in `FILE.jsonl` as it ends; the same command resumes from there. FOLDER has a data set by each
table's name.
"""

from __future__ import annotations

import argparse
import gzip
import json
import math
import multiprocessing
from dataclasses import dataclass, replace
from datetime import date
from itertools import combinations
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch

from cst_search.config.loading import load_recipe
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import load_data
from cst_search.data.disk_cache import Cache
from cst_search.study.objectives import choose_objectives
from cst_search.study.pareto import front
from cst_search.trial.run import run_trial

OBJECTIVES = choose_objectives("map,device_bytes,trainable_params")
N_CONFIRMING = 2  # fresh seeds of `confirm --seeds 3`


@dataclass(frozen=True)
class Job:
    """A row of a table and the seed to train it with."""

    name: str
    row: dict[str, Any]
    seed: int
    base: Recipe
    folder: Path
    cache: Cache


def train(job: Job) -> dict[str, Any]:
    """Train a row's configuration with another seed."""
    torch.set_num_threads(1)
    data, _ = load_data(job.folder)
    recipe = replace(job.base.configured(job.row["config"]), seed=job.seed)
    result = run_trial(recipe, data, epochs=recipe.search_epochs, cache=job.cache)
    return {"table": job.name, "key": job.row["key"], "seed": job.seed, "map": result.history[-1]["map"]}


def front_rows(rows: list[dict[str, Any]], maps: list[float]) -> list[int]:
    """Return the indices of the rows on the front, by these mAPs and the rows' costs."""
    values = [[value, row["device_bytes"], row["trainable_params"]] for row, value in zip(rows, maps, strict=True)]
    return front(values, OBJECTIVES)


def optimism(points: list[dict[str, Any]], fresh: list[list[float]]) -> dict[str, float]:
    """Return the optimism of a front, see the module, and the share of points that stay on it when confirmed.

    Args:
        points: rows of the front.
        fresh: for each point its mAP with each fresh seed.
    """
    search = [row["map"][-1] for row in points]
    unconfirmed = mean(value - mean(found) for value, found in zip(search, fresh, strict=True))
    confirmed, kept = [], []
    for chosen in combinations(range(len(fresh[0])), N_CONFIRMING):
        judging = [i for i in range(len(fresh[0])) if i not in chosen]
        means = [mean([value, *(found[i] for i in chosen)]) for value, found in zip(search, fresh, strict=True)]
        stay = front_rows(points, means)
        kept.append(len(stay) / len(points))
        confirmed.append(mean(means[i] - mean(fresh[i][j] for j in judging) for i in stay))
    return {"unconfirmed": unconfirmed, "confirmed": mean(confirmed), "kept": mean(kept)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", type=Path, nargs="+")
    parser.add_argument("--data", type=Path, required=True, help="folder of data sets")
    parser.add_argument("--seeds", type=int, default=4, help="fresh seeds of each point, at least 3")
    parser.add_argument("--jobs", type=int, default=1, help="trainings at a time, a thread each")
    parser.add_argument("--cache", type=Path, default=Path("cst-runs/cache"), help="where features are cached")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    if args.seeds <= N_CONFIRMING:
        parser.error(f"--seeds must be at least {N_CONFIRMING + 1}: {N_CONFIRMING} confirm, the others judge")
    journal = args.out.with_suffix(".jsonl")
    lines = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    done = {(line["table"], line["key"], line["seed"]): line["map"] for line in lines}
    fronts, jobs = {}, []
    for path in args.tables:
        with gzip.open(path, "rt") as file:
            table = json.load(file)
        rows = [row for row in table["rows"] if row["map"] and math.isfinite(row["map"][-1])]
        points = [rows[i] for i in front_rows(rows, [row["map"][-1] for row in rows])]
        name = table["data"]
        fronts[name] = (len(rows), points)
        cache = Cache(args.cache, 4 * 10**9, len(points))
        base = replace(load_recipe(table["recipe"]), **table["settings"])
        jobs += [
            Job(name, row, seed, base, args.data / name, cache)
            for row in points for seed in range(1, args.seeds + 1) if (name, row["key"], seed) not in done
        ]  # fmt: skip
    with multiprocessing.get_context("spawn").Pool(args.jobs) as pool, journal.open("a") as kept:
        for line in pool.imap_unordered(train, jobs):
            done[line["table"], line["key"], line["seed"]] = line["map"]
            print(json.dumps(line), file=kept, flush=True)
            print(f"{line['table']}, row {line['key']!r}, seed {line['seed']}: {line['map']:.3f}", flush=True)
    found = []
    for name, (n_rows, points) in fronts.items():
        fresh = [[done[name, row["key"], seed] for seed in range(1, args.seeds + 1)] for row in points]
        noise = math.sqrt(mean(stdev(each) ** 2 for each in fresh))
        row = {"data": name, "configurations": n_rows, "points": len(points), "noise": noise, **optimism(points, fresh)}
        found.append({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()})
        found[-1]["fresh"] = {row["key"]: [row["map"][-1], *each] for row, each in zip(points, fresh, strict=True)}
        print(*(f"{key} {value}" for key, value in found[-1].items() if key != "fresh"), sep="  ")
    args.out.write_text(json.dumps({"date": date.today().isoformat(), "seeds": args.seeds, "sets": found}) + "\n")


if __name__ == "__main__":
    main()
