"""Who goes on at a rung."""

from __future__ import annotations

import math

import pytest

from cst_search.search.early_stopping import Rungs, rung_epochs
from cst_search.study.objectives import OBJECTIVES

TWO = (OBJECTIVES["map"], OBJECTIVES["device_bytes"])


@pytest.mark.parametrize(
    ("epochs", "eta", "expected"),
    [
        (9, 2, (3, 5)),  # 4.5 and 2.25; 1.125 would tell nothing
        (9, 3, (3,)),
        (24, 2, (6, 12)),
        (5, 3, (2,)),
        (2, 2, ()),  # the first epoch is no rung
        (1, 3, ()),
    ],
)
def test_rungs(epochs: int, eta: int, expected: tuple[int, ...]) -> None:
    assert rung_epochs(epochs, eta) == expected


@pytest.mark.parametrize(
    ("values", "violations", "expected", "why"),
    [
        ([[0.2, 5.0], [0.5, 5.0], [0.3, 5.0]], [0, 0, 0], [1, 2, 0], "equal costs: by map"),
        ([[0.5, 9.0], [0.1, 1.0], [0.1, 9.0]], [0, 0, 0], [0, 1, 2], "a cheap one is not beaten by a better dear one"),
        ([[0.9, 1.0], [0.1, 9.0], [0.8, 1.0]], [0.2, 0, 0.1], [1, 2, 0], "the infeasible last, the nearest first"),
        ([[math.nan, 1.0], [0.1, 1.0]], [0, 0], [1, 0], "no map is the worst map"),
        ([[0.5, 5.0], [0.2, 1.0], [0.4, 3.9], [0.8, 9.0]], [0] * 4, [3, 1, 2, 0], "by the lead over what costs less"),
        ([[0.5, 5.0], [0.5, 5.0]], [0, 0], [0, 1], "equals: as they came"),
        ([[0.9, 1.0], [0.3, 2.0]], [0.5, 0], [1, 0], "what is over the budget is no rival"),
    ],
)
def test_order(values: list[list[float]], violations: list[float], expected: list[int], why: str) -> None:
    rungs = Rungs(TWO, (1,), 1)
    for trial, (each, over) in enumerate(zip(values, violations, strict=True)):
        rungs.report(trial, 1, each, over)
    found = []
    while (best := rungs.promotable([trial for trial in range(len(values)) if trial not in found])) is not None:
        found.append(best)
    assert found == expected, why


@pytest.mark.parametrize("reverse", [False, True])
def test_who_is_close_to_the_best_of_what_costs_no_more_goes_on(reverse: bool) -> None:
    """At 0.8 of it, that is; in whatever order they come."""
    rungs = Rungs(TWO, (1,), 100)
    trials = list(enumerate([(0.5, 5.0), (0.41, 5.0), (0.39, 5.0), (0.31, 4.0), (0.2, 4.0), (0.7, 9.0), (0.5, 9.0)]))
    for trial, values in reversed(trials) if reverse else trials:
        rungs.report(trial, 1, values, 0.0)
    assert [t for t, _ in trials if rungs.goes_on(t, 1)] == [0, 1, 3, 5]


@pytest.mark.parametrize("first", [0, 1])
def test_what_is_over_the_budget_stops_nobody_whichever_comes_first(first: int) -> None:
    rungs = Rungs(TWO, (1,), 100)
    for trial in (first, 1 - first, 2):
        values, over = [([0.3, 2.0], 0.0), ([0.9, 1.0], 0.5), ([0.5, 3.0], 0.0)][trial]
        rungs.report(trial, 1, values, over)
    assert [trial for trial in range(3) if rungs.goes_on(trial, 1)] == [0, 2]


def test_several_costs_must_all_be_no_higher_for_a_rival() -> None:
    three = (*TWO, OBJECTIVES["trainable_params"])
    rungs = Rungs(three, (1,), 100)
    for trial, values in enumerate([(0.5, 5.0, 5.0), (0.1, 4.0, 9.0), (0.1, 9.0, 4.0), (0.1, 9.0, 9.0)]):
        rungs.report(trial, 1, values, 0.0)
    assert [t for t in range(4) if rungs.goes_on(t, 1)] == [0, 1, 2]


def test_with_two_qualities_the_better_one_counts() -> None:
    rungs = Rungs((*TWO, OBJECTIVES["map50"]), (1,), 100)
    for trial, values in enumerate([(0.5, 5.0, 0.7), (0.1, 5.0, 0.6), (0.1, 5.0, 0.2)]):
        rungs.report(trial, 1, values, 0.0)
    assert [t for t in range(3) if rungs.goes_on(t, 1)] == [0, 1]


def test_without_a_quality_one_in_eta_goes_on() -> None:
    rungs = Rungs((OBJECTIVES["device_bytes"],), (1,), 2)
    for trial in range(4):
        rungs.report(trial, 1, [1.0], 0.0)
    assert [t for t in range(4) if rungs.goes_on(t, 1)] == [0, 1]


def test_the_first_report_of_a_rung_counts() -> None:
    rungs = reported(0.5, 0.1)
    rungs.report(1, 1, [0.9, 1.0], 0.0)
    assert not rungs.goes_on(1, 1)


def reported(*maps: float, rungs: Rungs | None = None, epoch: int = 1, cost: float = 1.0) -> Rungs:
    rungs = rungs or Rungs(TWO, (1, 3), 3)
    for trial, y in enumerate(maps):
        rungs.report(trial, epoch, [y, cost], 0.0)
    return rungs


def test_the_best_third_goes_on() -> None:
    rungs = reported(0.1, 0.6, 0.3, 0.4, 0.2, 0.35)
    assert [t for t in range(6) if rungs.goes_on(t, 1)] == [1, 3]


def test_the_first_trial_continues_and_nothing_stops_between_rungs() -> None:
    rungs = reported(0.3)
    assert rungs.goes_on(0, 1)
    rungs.report(1, 2, [0.0, 1.0], 0.0)
    assert rungs.goes_on(1, 2)
    rungs.report(1, 1, [0.1, 1.0], 0.0)
    assert not rungs.goes_on(1, 1)


def test_a_cheap_model_is_compared_with_its_own_kind() -> None:
    rungs = Rungs(TWO, (1, 3), 3)
    for trial, (y, cost) in enumerate([(0.6, 9.0), (0.4, 9.1), (0.3, 9.2), (0.2, 9.3), (0.15, 9.4), (0.1, 1.0)]):
        rungs.report(trial, 1, [y, cost], 0.0)
    assert [t for t in range(6) if rungs.goes_on(t, 1)] == [0, 5]


def test_stopped_trials_are_promoted_as_others_arrive() -> None:
    rungs = reported(0.5, 0.3)  # one place: trial 1 stops
    assert rungs.promotable([1]) is None
    for trial, y in ((2, 0.1), (3, 0.1), (4, 0.1), (5, 0.1)):
        rungs.report(trial, 1, [y, 1.0], 0.0)
    assert rungs.promotable([1, 2, 3, 4, 5]) == 1  # two places now
    rungs.report(1, 3, [0.35, 1.0], 0.0)  # it went on to the next rung, and was stopped there
    rungs.report(0, 3, [0.6, 1.0], 0.0)
    assert rungs.promotable([1, 2, 3, 4, 5]) is None


def test_the_infeasible_is_never_promoted_before_the_feasible() -> None:
    rungs = Rungs(TWO, (1,), eta=2)
    rungs.report(0, 1, [0.9, 1.0], 0.5)
    rungs.report(1, 1, [0.1, 1.0], 0.0)
    assert rungs.promotable([0, 1]) == 1
