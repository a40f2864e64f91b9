"""Searches replayed on the trained configurations of a table alone (benchmarks/search_pool.py)."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import search_pool
from search import Table, read_table
from search_pool import SEARCHES, Pool, trials_until

from cst_search.config.loading import load_recipe, load_space
from cst_search.memory.estimate import worst_input
from cst_search.trial.cost import predict_step

EPOCHS, SIZES, N = 6, [[64, 96]], 20
SETTINGS = {"image_size_px": 64, "max_size_px": 96, "eval_every": 1, "search_epochs": EPOCHS}


def table(data: str) -> dict[str, Any]:
    """Make a table as benchmarks/search_table.py writes it: real costs, and mAPs by the configuration's number."""
    base = replace(load_recipe("small"), **SETTINGS)
    space = load_space("quick", base)
    rows = []
    for i in range(N):
        config = json.loads(json.dumps(space.sample(random.Random(i))))
        recipe = base.configured(config)
        step = predict_step(recipe, 3, worst_input(recipe, SIZES, 20), workspaces=False)
        curve = [(i + 1) / N * epoch / EPOCHS for epoch in range(1, EPOCHS + 1)]
        device = round(1.10 * step.active_bytes) + 564_000_000
        cost = {"device_bytes": device, "trainable_params": step.trainable_params}
        rows.append({"key": str(i), "config": config, "map": curve} | cost)
    return {"space": dict(space.source), "recipe": "small", "data": data, "settings": SETTINGS, "n_classes": 3,
            "sizes": SIZES, "max_boxes": 20, "rows": rows}  # fmt: skip


@pytest.fixture(scope="module")
def pool() -> Pool:
    return Pool(table("a"))


@pytest.mark.parametrize("name", ["pareto", "Optuna TPE", "random"])
def test_a_search_has_each_configuration_of_the_pool_once(pool: Pool, name: str) -> None:
    run = SEARCHES[name](pool, 1)
    within = [i for i in range(N) if pool.over[i] <= 0]
    assert 0 < len(within) < N  # the budget is the median of the costs
    assert sorted(run.done) == within and run.epochs == EPOCHS * len(within)
    assert run.steps[-1] == (run.epochs, pytest.approx(1.0))


def test_a_search_that_knows_no_constraint_trains_them_all(pool: Pool) -> None:
    run = SEARCHES["Ray Tune + OptunaSearch"](pool, 1)
    assert run.epochs == EPOCHS * N and sorted(run.done) == [i for i in range(N) if pool.over[i] <= 0]


def test_early_stopping_spends_fewer_epochs(pool: Pool) -> None:
    assert SEARCHES["random, early stopping"](pool, 1).epochs < SEARCHES["random"](pool, 1).epochs


def test_the_nearest_is_of_the_same_method_while_there_is_one(pool: Pool) -> None:
    everything = set(range(N))
    for i, config in enumerate(pool.configs):
        assert pool.nearest(config, everything) == i
        others = everything - {i}
        same = {k for k in others if pool.methods[k] == pool.methods[i]}
        assert pool.nearest(config, others) in (same or others)


def test_trials_until_a_share() -> None:
    steps = [(6, 0.5), (12, 0.9), (18, 1.0)]
    assert [trials_until(steps, share) for share in (0.4, 0.9, 0.95)] == [6, 12, 18]
    assert trials_until(steps[:1], 0.9) == math.inf


def test_the_report_has_quartiles(capsys: pytest.CaptureFixture[str]) -> None:
    runs = [{"name": "random", "data": "a", "seed": s, "steps": [(6 * s, 1.0)]} for s in (1, 2, 3)]
    assert search_pool.report(runs)[0]["trials"] == [6, 12, 18]
    assert "| random | 3 | 12 (6 to 18) |" in capsys.readouterr().out


def test_what_sources_save_is_paired_by_seed() -> None:
    rows = [{"data": "a", "search": name, "share": 0.95, "trials": trials}
            for name, trials in (("pareto", [2, 3, 3]), ("pareto-no-prior", [5, math.inf, 2]))]  # fmt: skip
    (found,) = search_pool.worth_of_sources(rows)
    assert found["mean"] == pytest.approx((3 + 2 - 1) / 3)  # infinity counts as 5, the longest that got there
    assert -1 <= found["low"] < found["mean"] < found["high"] <= 3


def test_older_tables_and_comparisons_of_methods_are_read() -> None:
    """A table without a dimension of today's space is searched without it; a small one has no budget."""
    results = Path(search_pool.__file__).parent / "results"
    older = Table(read_table(results / "search-table-bccd.json.gz"))
    assert len(older.configs) == 101 and older.budget.memory_bytes is not None
    assert {"neck", "accumulate"}.isdisjoint(d.key for d in older.space.dimensions())
    small = Table(read_table(results / "methods-small-chess.json"))
    assert (small.data, len(small.configs), small.budget.memory_bytes) == ("chess", 16, None)
    assert small.truth[0, -1] == pytest.approx((0.5197 + 0.5244 + 0.5101) / 3, abs=1e-4)  # of three seeds
    for one in (older, small):  # every configuration is one of the space
        assert np.isfinite(np.vstack([one.codes(config) for config in one.configs])).all()
