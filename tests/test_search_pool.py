"""Searches replayed on the trained configurations of a table alone (benchmarks/search_pool.py)."""

from __future__ import annotations

import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "benchmarks"))
import search_pool
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
