"""Which dimensions matter: found where they do, silent where nothing can be said."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from pages import made_info

from cst_search.study.importance import _MOST, FEWEST, explained, importance, order_of, that_matter
from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.wording import mattered_words


def scored(info: StudyInfo, value: Callable[[TrialRecord], float]) -> StudyInfo:
    """The study with other mAPs."""
    trials = tuple(replace(r, map=None if r.map is None else value(r)) for r in info.trials)
    return replace(info, trials=trials, repeats=())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", lambda record: 0.5 - abs(record.config["lr"] - 2e-3) * 20),  # best in the middle
        ("batch_size", lambda record: 0.5 if record.config["batch_size"] == 4 else 0.2),
        ("method", lambda record: 0.5 if record.config["method"] == "cst" else 0.2),
    ],
)
def test_the_decisive_dimension_comes_first_and_is_above_chance(
    name: str, value: Callable[[TrialRecord], float]
) -> None:
    found = importance(scored(made_info(200, seed=3), value))
    first, *others = found["dimensions"]
    assert first["key"] == name and first["share"] > max(0.6, 4 * first["noise"])
    assert all(row["share"] < 0.1 for row in others)
    assert order_of(found)[0] == name and len(that_matter(found)) <= 2


def test_a_dimension_does_not_get_the_credit_of_its_method() -> None:
    """Good methods have low learning rates here, and the learning rate does nothing."""
    rng = random.Random(0)
    trials = []
    for i in range(80):
        good = i % 2
        config = {"method": "cst" if good else "full", "lr": rng.uniform(0, 1) + 2 * (1 - good)}
        trials.append((config, good + rng.uniform(0, 0.1)))
    assert order_of(explained(trials)) == ["method"]


def test_a_small_effect_beside_a_large_one_is_seen() -> None:
    """Shuffled are the ranks without what the method explains, which is most of them here."""
    rng = random.Random(0)
    trials = [
        ({"method": m, "lr": lr, "x": rng.random()}, m + 0.4 * lr + rng.gauss(0, 0.2))
        for m in (0, 1, 2) for lr in (0, 1) for _ in range(10)
    ]  # fmt: skip
    found = explained(trials)
    assert order_of(found) == ["method", "lr"]
    method, lr, _ = found["dimensions"]
    assert lr["share"] < method["noise"]


def test_noise_alone_is_within_chance() -> None:
    rng = random.Random(0)
    info = made_info(60)
    studies = [scored(info, lambda _: rng.random()) for _ in range(40)]
    assert sum(bool(that_matter(importance(info))) for info in studies) <= 4  # 2 are expected


def test_a_dimension_of_some_methods_names_them() -> None:
    rows = {row["key"]: row["methods"] for row in importance(made_info(150))["dimensions"]}
    assert rows["cst.reduction"] == ["cst"] and rows["lr"] is None and rows["method"] is None


def test_the_same_every_time_and_bounded() -> None:
    info = made_info(120)
    assert importance(info) == importance(info)
    trials = [({"lr": float(i % 7)}, float(i % 7)) for i in range(5 * _MOST)]
    found = explained(trials)
    assert found["n"] == _MOST and found["dimensions"][0]["share"] > 0.9


def test_too_few_trials_say_nothing() -> None:
    info = made_info(60)
    trained = [record for record in info.trials if record.feasible and record.state in ("complete", "pruned")]
    few = importance(replace(info, trials=tuple(trained[: FEWEST - 1])))
    assert (few["n"], few["fewest"], few["dimensions"], mattered_words(few)) == (FEWEST - 1, FEWEST, [], "")
    enough = importance(replace(info, trials=tuple(trained[:FEWEST])))
    assert enough["dimensions"] and mattered_words(enough).startswith("what mattered for mAP: method ")


def test_infeasible_and_failed_trials_do_not_count() -> None:
    info = made_info(120)
    others = tuple(replace(r, map=0.99) if r.state in ("infeasible", "failed", "running") else r for r in info.trials)
    assert importance(replace(info, trials=others)) == importance(info)


def test_a_pruned_trial_over_the_budget_does_not_count() -> None:
    info = made_info(120)
    over = {record.trial for record in info.trials if record.state == "pruned"}
    assert over
    rest = tuple(r for r in info.trials if r.trial not in over)
    marked = tuple(replace(r, feasible=False, map=0.99) if r.trial in over else r for r in info.trials)
    assert importance(replace(info, trials=marked)) == importance(replace(info, trials=rest))


def test_the_same_map_everywhere_tells_nothing() -> None:
    assert importance(scored(made_info(120), lambda _: 0.3))["dimensions"] == []


def test_a_failed_training_counts_with_an_map_of_zero() -> None:
    info = scored(made_info(120), lambda record: 0.0 if record.config["batch_size"] == 4 else 0.2)
    assert order_of(importance(info))[0] == "batch_size"
