"""Which dimensions matter: found where they do, silent where nothing can be said."""

from __future__ import annotations

from dataclasses import replace

import pytest
from pages import made_info

from cst_search.report import importance as module
from cst_search.report.importance import FEWEST, importance
from cst_search.study.records import StudyInfo, TrialRecord


def quadratic(n: int, name: str = "lr") -> StudyInfo:
    """mAP depends on one dimension alone."""
    info = made_info(n, seed=3)

    def value(record: TrialRecord) -> float:
        given = record.config[name]
        return 0.5 - abs(given - 2e-3) * 20 if name == "lr" else 0.5 if given == 4 else 0.2

    trials = tuple(replace(record, map=value(record) if record.state == "complete" else None) for record in info.trials)
    return replace(info, trials=trials, repeats=())


@pytest.mark.parametrize("name", ["lr", "batch_size"])
def test_the_decisive_dimension_comes_first_and_is_above_chance(name: str) -> None:
    found = importance(quadratic(200, name))["dimensions"]
    assert found[0]["key"] == name
    assert found[0]["share"] > 2 * found[0]["noise"] and found[0]["share"] > 0.4
    assert sum(row["share"] for row in found) == pytest.approx(1, abs=0.01)
    above = [row["key"] for row in found if row["share"] > row["noise"]]
    assert len(above) <= len(found) / 4  # 1 in 20 by chance, and what goes with the method's own range of lr


def test_pure_noise_is_mostly_within_chance() -> None:
    info = made_info(200, seed=5)
    shuffled = sorted(info.trials, key=lambda record: hash((record.trial * 7919) % 211))
    maps = iter([record.map for record in shuffled if record.state == "complete"])
    trials = tuple(replace(r, map=next(maps) if r.state == "complete" else None) for r in info.trials)
    found = importance(replace(info, trials=trials, repeats=()))["dimensions"]
    assert sum(row["share"] > row["noise"] for row in found) <= len(found) / 4


def test_a_dimension_of_some_methods_names_them() -> None:
    rows = {row["key"]: row["methods"] for row in importance(made_info(150))["dimensions"]}
    assert rows["cst.reduction"] == ["cst"] and rows["lr"] is None and rows["method"] is None


def test_the_same_every_time_and_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST", 60)
    info = made_info(120)
    first = importance(info)
    assert first == importance(info)
    assert first["n"] == 60 and first["of"] == sum(
        r.feasible and r.state in ("complete", "pruned") for r in info.trials
    )
    assert first["best"] >= module.FEWEST_BEST
    assert first != importance(info, seed=1)


def test_too_few_trials_give_no_dimensions() -> None:
    info = made_info(60)
    trained = [record for record in info.trials if record.feasible and record.state in ("complete", "pruned")]
    few = importance(replace(info, trials=tuple(trained[: FEWEST - 1])))
    assert (few["n"], few["fewest"], few["dimensions"]) == (FEWEST - 1, FEWEST, [])
    assert importance(replace(info, trials=tuple(trained[:FEWEST])))["dimensions"]


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
    info = made_info(120)
    trials = tuple(replace(record, map=None if record.map is None else 0.3) for record in info.trials)
    assert importance(replace(info, trials=trials, repeats=()))["dimensions"] == []
