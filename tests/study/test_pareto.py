"""Fronts, hypervolumes and knees, by hand, by brute force and drawn."""

from __future__ import annotations

import math
import time
from itertools import pairwise

import numpy as np
import pytest

from cst_search.errors import ConfigError
from cst_search.study import pareto
from cst_search.study.objectives import OBJECTIVES, Objective
from cst_search.study.pareto import GrowingFront, front, hypervolume, hypervolume_by_trial, knee, tells_apart

NAN = math.nan
MAP_MEMORY = [OBJECTIVES["map"], OBJECTIVES["device_bytes"]]
THREE = [OBJECTIVES["map"], OBJECTIVES["device_bytes"], OBJECTIVES["trainable_params"]]


def dominates(a, b, objectives) -> bool:
    """The definition, written out: no worse in all, better in one."""
    gains = [x - y if objective.goal == "max" else y - x for x, y, objective in zip(a, b, objectives, strict=True)]
    return all(gain >= 0 for gain in gains) and any(gain > 0 for gain in gains)


def brute_front(rows, objectives) -> list[int]:
    known = [i for i, row in enumerate(rows) if not any(math.isnan(x) for x in row)]
    return [i for i in known if not any(dominates(rows[j], rows[i], objectives) for j in known)]


def random_rows(rng: np.random.Generator, n: int, m: int) -> np.ndarray:
    """A coarse grid, so that equal values and duplicates are common; one row in ten has a NaN."""
    rows = rng.integers(0, 8, size=(n, m)) / 10
    rows[rng.random(n) < 0.1, 0] = NAN
    return rows


# ---------------------------------------------------------------- front


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], []),  # nothing has finished
        ([[0.3, 4e9]], [0]),  # one point
        ([[0.3, 4e9], [0.4, 3e9]], [1]),  # more mAP with less memory
        ([[0.3, 4e9], [0.4, 5e9]], [0, 1]),  # a trade
        ([[0.3, 4e9], [0.3, 5e9]], [0]),  # same mAP, less memory
        ([[0.3, 4e9], [0.4, 4e9]], [1]),  # same memory, more mAP
        ([[0.3, 4e9], [0.2, 5e9], [0.3, 4e9]], [0, 2]),  # duplicates of a front point are all kept
        ([[0.3, 4e9], [NAN, 1e9]], [0]),  # unknown mAP is never on the front, however small the memory
        ([[0.3, NAN], [NAN, NAN]], []),  # nothing known
        ([[0.3, math.inf], [math.inf, 4e9], [0.2, 5e9]], [2]),  # an infinity is no measurement
    ],
)
def test_front_of_a_hand_made_table(rows, expected):
    assert front(rows, MAP_MEMORY) == expected


def test_front_of_a_drawn_example():
    #   mAP
    #   0.5 |             e
    #   0.4 |       c   f
    #   0.3 |     b
    #   0.2 |   a     d
    #       +---------------- memory, GB
    #           1 2 3 4 5 6
    rows = [[0.2, 1], [0.3, 2], [0.4, 3], [0.2, 4], [0.5, 6], [0.4, 5]]
    assert front(rows, MAP_MEMORY) == [0, 1, 2, 4]  # d and f are behind c


def test_third_objective_brings_a_point_onto_the_front():
    rows = [[0.4, 3e9, 9e6], [0.3, 4e9, 1e6]]
    assert front([row[:2] for row in rows], MAP_MEMORY) == [0]
    assert front(rows, THREE) == [0, 1]


@pytest.mark.parametrize(("goal", "expected"), [("max", [1, 2]), ("min", [0])])
def test_front_with_one_objective_is_the_best_with_its_ties(goal, expected):
    assert front([[1.0], [3.0], [3.0], [NAN]], [Objective("score", goal)]) == expected


@pytest.mark.parametrize("objectives", [MAP_MEMORY, THREE, THREE[1:], [*THREE, OBJECTIVES["map50"]]])
@pytest.mark.parametrize("n", [1, 5, 60])
def test_front_agrees_with_the_definition(objectives, n):
    rng = np.random.default_rng(n)
    for _ in range(20):
        rows = random_rows(rng, n, len(objectives))
        assert front(rows, objectives) == brute_front(rows, objectives)


def test_wrong_number_of_columns_is_refused():
    with pytest.raises(ValueError, match=r"n x 2.*\(1, 3\)"):
        front([[0.1, 0.2, 0.3]], MAP_MEMORY)


def test_values_are_not_changed():
    rows = np.array([[0.3, 4e9], [0.4, 5e9]])
    before = rows.copy()
    front(rows, MAP_MEMORY), hypervolume(rows, MAP_MEMORY, [0, 1e10]), knee(rows, MAP_MEMORY)
    np.testing.assert_array_equal(rows, before)


# ---------------------------------------------------------------- hypervolume


@pytest.mark.parametrize(
    ("rows", "reference", "expected"),
    [
        ([], [0, 10], 0.0),  # nothing yet
        ([[0.4, 5]], [0, 10], 0.4 * 0.5),  # one box
        ([[1.0, 0]], [0, 10], 1.0),  # the ideal dominates the whole box
        ([[0.4, 5], [0.2, 2]], [0, 10], 0.4 * 0.5 + 0.2 * 0.3),  # two steps of a staircase
        ([[0.4, 5], [0.2, 2], [0.1, 6]], [0, 10], 0.26),  # a dominated point adds nothing
        ([[0.4, 5], [0.4, 5]], [0, 10], 0.2),  # nor does a duplicate
        ([[0.4, 10]], [0, 10], 0.0),  # on the edge of the box: no volume
        ([[0.4, 12], [0.2, 2]], [0, 10], 0.2 * 0.8),  # beyond the reference: out
        ([[0.0, 1]], [0, 10], 0.0),  # no mAP at all
        ([[0.3, 5]], [0.2, 10], 0.1 / 0.8 * 0.5),  # a reference above zero: (0.3 - 0.2) / (1 - 0.2)
        ([[NAN, 5], [0.4, 5]], [0, 10], 0.2),  # unknown adds nothing
        ([[0.5, -1]], [0, 10], 0.5),  # beyond the ideal counts as ideal: never above 1
    ],
)
def test_hypervolume_by_hand(rows, reference, expected):
    assert hypervolume(rows, MAP_MEMORY, reference) == pytest.approx(expected, abs=1e-12)


def test_hypervolume_by_hand_in_three_dimensions():
    # boxes 0.5 x 0.5 x 0.5 and 0.25 x 0.75 x 0.5 overlap in 0.25 x 0.5 x 0.5
    rows = [[0.5, 5, 50], [0.25, 2.5, 50]]
    assert hypervolume(rows, THREE, [0, 10, 100]) == pytest.approx(0.125 + 0.09375 - 0.0625)


def test_hypervolume_of_one_objective_is_a_length():
    assert hypervolume([[0.3], [0.45]], [OBJECTIVES["map"]], [0.0]) == pytest.approx(0.45)


def test_hypervolume_does_not_depend_on_the_unit():
    in_bytes = hypervolume([[0.4, 5e9], [0.2, 2e9]], MAP_MEMORY, [0, 6e9])
    in_gigabytes = hypervolume([[0.4, 5], [0.2, 2]], MAP_MEMORY, [0, 6])
    assert in_bytes == pytest.approx(in_gigabytes)


@pytest.mark.parametrize("objectives", [MAP_MEMORY, THREE])
def test_hypervolume_agrees_with_counting_cells(objectives):
    """On a grid of tenths the volume is a number of cells."""
    rng = np.random.default_rng(7)
    m = len(objectives)
    rows = random_rows(rng, 12, m)
    centres = np.stack(np.meshgrid(*[np.arange(10) / 10 + 0.05] * m, indexing="ij"), axis=-1).reshape(-1, m)
    covered = [any(dominates(row, cell, objectives) for row in rows if not np.isnan(row).any()) for cell in centres]
    assert hypervolume(rows, objectives, [0.0] + [1.0] * (m - 1)) == pytest.approx(np.mean(covered))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ([1.0, 10], "map: must be below 1"),  # nothing can be better than mAP 1
        ([0.0, 0.0], "device_bytes: must be above 0"),  # nor smaller than nothing
        ([0.0, NAN], "device_bytes"),  # NaN is no reference
        ([0.0, math.inf], "device_bytes"),  # an infinite box has no shares
        ([2.0, -1.0], "map.*; device_bytes"),  # all faults at once
        ([0.0], "needs 2 values"),
    ],
)
def test_impossible_reference_point_is_refused(reference, message):
    with pytest.raises(ConfigError, match=message):
        hypervolume([[0.4, 5]], MAP_MEMORY, reference)


# ---------------------------------------------------------------- hypervolume over the trials


def test_hypervolume_by_trial_by_hand():
    rows = [[NAN, 3], [0.2, 2], [0.1, 6], [0.4, 5], [0.4, 5], [0.9, 11]]
    # infeasible, first box, dominated, a second step, duplicate, beyond the reference
    expected = [0, 0.16, 0.16, 0.26, 0.26, 0.26]
    assert hypervolume_by_trial(rows, MAP_MEMORY, [0, 10]) == pytest.approx(expected)


def test_hypervolume_by_trial_of_nothing():
    assert hypervolume_by_trial([], MAP_MEMORY, [0, 10]) == []


@pytest.mark.parametrize("objectives", [MAP_MEMORY, THREE])
def test_hypervolume_by_trial_equals_the_prefixes_and_never_falls(objectives):
    rng = np.random.default_rng(3)
    rows = rng.random((80, len(objectives)))
    rows[::9, 0] = NAN
    reference = [0.1] + [0.9] * (len(objectives) - 1)
    curve = hypervolume_by_trial(rows, objectives, reference)
    assert curve == pytest.approx([hypervolume(rows[: i + 1], objectives, reference) for i in range(len(rows))])
    assert all(later >= earlier for earlier, later in pairwise(curve))
    assert 0 <= curve[-1] <= 1


@pytest.mark.parametrize("objectives", [THREE[:1], MAP_MEMORY, THREE])
def test_incremental_front_equals_batch_front(objectives):
    """Rows with NaN, infinities, equals, outside the reference point and beyond the ideal; after every one."""
    rng, m = np.random.default_rng(4), len(objectives)
    reference = [0.1] + [0.9] * (m - 1)
    for _ in range(30):
        rows = np.round(rng.random((40, m)) * 1.3 - 0.1, 1)  # a coarse grid: equals are frequent
        rows[rng.random(rows.shape) < 0.03] = NAN
        rows[rng.random(rows.shape) < 0.03] = math.inf
        growing = GrowingFront(objectives, reference)
        for i, row in enumerate(rows):
            expected = front(rows[: i + 1], objectives)
            assert growing.add(i, row) == (i in expected)
            assert growing.members == expected
            assert growing.volume == pytest.approx(hypervolume(rows[: i + 1], objectives, reference))


def test_dominated_or_equal_rows_do_not_recompute_the_volume(monkeypatch):
    counted = []
    volume = pareto._volume
    monkeypatch.setattr(pareto, "_volume", lambda units: counted.append(len(units)) or volume(units))
    growing = GrowingFront(MAP_MEMORY, [0, 1])
    for row in ([0.5, 0.5], [0.5, 0.5], [0.4, 0.5], [0.5, 0.6], [NAN, 0.1], [0.1, 2.0], [0.6, 0.6]):
        growing.add(tuple(row), row)
    assert counted == [1, 3]


def test_ten_thousand_trials_are_quick():
    rows = np.random.default_rng(0).random((10_000, 3))
    started = time.perf_counter()
    curve = hypervolume_by_trial(rows, THREE, [0, 1, 1])
    assert time.perf_counter() - started < 10  # 0.1 s on a free core; the bound is for a crowded machine
    assert curve[-1] == pytest.approx(hypervolume(rows, THREE, [0, 1, 1]))


# ---------------------------------------------------------------- knee


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([], None),  # an empty front
        ([[NAN, 1]], None),  # nothing known
        ([[NAN, 1], [0.3, 4]], 1),  # one point is its own knee; the index counts all rows
        ([[0.2, 1], [0.4, 2], [0.5, 9]], 1),  # nearly all of the mAP for little memory
        ([[0.2, 1], [0.4, 2], [0.5, 9], [0.3, 8]], 1),  # a dominated point does not move it
        ([[0.2, 1], [0.5, 9]], 1),  # two ends are equally far: the higher mAP
        ([[0.4, 4], [0.4, 4]], 0),  # duplicates: the earlier row
        ([[0.2, 0], [0.3, 1], [0.4, 2], [0.5, 3]], 2),  # (2/3, 1/3) and (1/3, 2/3) are mirrored: again the higher mAP
        ([[0.2, 1], [0.4, math.inf]], 0),  # infinite memory is no measurement
    ],
)
def test_knee_of_a_hand_made_table(rows, expected):
    assert knee(rows, MAP_MEMORY) == expected


def test_knee_ties_go_to_map_wherever_its_column_is():
    assert knee([[1, 0.2], [9, 0.5]], [OBJECTIVES["device_bytes"], OBJECTIVES["map"]]) == 1


def test_knee_is_on_the_front_and_does_not_depend_on_the_unit():
    rng = np.random.default_rng(11)
    for _ in range(20):
        rows = rng.random((30, 3))
        chosen = knee(rows, THREE)
        assert chosen in front(rows, THREE)
        assert chosen == knee(rows * [1.0, 1e9, 1e6], THREE)


@pytest.mark.parametrize(
    ("memory", "expected"),
    [
        ([100, 150, 200], 1),
        ([1000, 1005, 1010.2], 1),  # 1 % of the largest value, and a little more
        ([1000, 1005, 1009.9], 2),  # below 1 %: only mAP counts
        ([0, 0, 0], 2),
    ],
)
def test_knee_ignores_an_objective_that_spans_less_than_a_hundredth_of_its_value(memory, expected):
    assert knee(list(zip((0.30, 0.31, 0.32), memory, strict=True)), MAP_MEMORY) == expected


def test_objectives_that_tell_points_apart():
    points = [[0.5, 1000, 7, 0], [0.3, 1005, 7, 0], [0.4, 1002, 7, 0]]
    assert tells_apart(points).tolist() == [True, False, False, False]
    assert tells_apart(-np.array(points)).tolist() == [True, False, False, False]  # signs do not matter
    assert tells_apart(points[:1]).tolist() == [False] * 4


def test_knee_of_one_objective_is_the_best():
    assert knee([[0.2], [0.5], [0.3]], [OBJECTIVES["map"]]) == 1


def test_the_objectives_on_offer():
    assert {name: objective.goal for name, objective in OBJECTIVES.items()} == {
        "map": "max",
        "map50": "max",
        "device_bytes": "min",
        "trainable_params": "min",
        "petl_params": "min",
        "delta_bytes": "min",
        "inference_bytes": "min",
        "flops": "min",
        "marginal_flops": "min",
    }
    assert all(name == objective.name for name, objective in OBJECTIVES.items())
