"""Who goes on at a rung."""

from __future__ import annotations

import math

import pytest

from cst_search.search.early_stopping import Rungs, order, rung_epochs
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
        ([], [], [], "nobody"),
        ([[0.2, 5.0], [0.5, 5.0], [0.3, 5.0]], [0, 0, 0], [1, 2, 0], "equal costs: by map"),
        ([[0.5, 9.0], [0.1, 1.0], [0.1, 9.0]], [0, 0, 0], [0, 1, 2], "a cheap one is not beaten by a better dear one"),
        ([[0.9, 1.0], [0.1, 9.0], [0.8, 1.0]], [0.2, 0, 0.1], [1, 2, 0], "the infeasible last, the nearest first"),
        ([[math.nan, 1.0], [0.1, 1.0]], [0, 0], [1, 0], "no map is the worst map"),
        (
            [[0.5, 5.0], [0.2, 1.0], [0.4, 3.9], [0.8, 9.0]],
            [0] * 4,
            [1, 3, 0, 2],
            "in one front: ends, then the lonely",
        ),
        ([[0.5, 5.0], [0.5, 5.0]], [0, 0], [0, 1], "equals: as they came"),
    ],
)
def test_order(values: list[list[float]], violations: list[float], expected: list[int], why: str) -> None:
    assert order(values, violations, TWO) == expected, why


def reported(*maps: float, rungs: Rungs | None = None, epoch: int = 1, cost: float = 1.0) -> Rungs:
    rungs = rungs or Rungs(TWO, (1, 3), 3)
    for trial, y in enumerate(maps):
        rungs.report(trial, epoch, [y, cost], 0.0)
    return rungs


def test_the_best_third_goes_on() -> None:
    rungs = reported(0.1, 0.6, 0.3, 0.5, 0.2, 0.4)
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
    for trial, (y, cost) in enumerate([(0.6, 9.0), (0.59, 9.1), (0.58, 9.2), (0.57, 9.3), (0.56, 9.4), (0.1, 1.0)]):
        rungs.report(trial, 1, [y, cost], 0.0)
    assert [t for t in range(6) if rungs.goes_on(t, 1)] == [0, 5]


def test_stopped_trials_are_promoted_as_others_arrive() -> None:
    rungs = reported(0.5, 0.4)  # one place: trial 1 stops
    assert rungs.promotable([1]) is None
    for trial, y in ((2, 0.1), (3, 0.1), (4, 0.1), (5, 0.1)):
        rungs.report(trial, 1, [y, 1.0], 0.0)
    assert rungs.promotable([1, 2, 3, 4, 5]) == 1  # two places now
    rungs.report(1, 3, [0.45, 1.0], 0.0)  # it went on to the next rung, and was stopped there
    rungs.report(0, 3, [0.6, 1.0], 0.0)
    assert rungs.promotable([1, 2, 3, 4, 5]) is None


def test_the_infeasible_is_never_promoted_before_the_feasible() -> None:
    rungs = Rungs(TWO, (1,), eta=2)
    rungs.report(0, 1, [0.9, 1.0], 0.5)
    rungs.report(1, 1, [0.1, 1.0], 0.0)
    assert rungs.promotable([0, 1]) == 1
