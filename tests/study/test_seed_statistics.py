"""Means over seeds, noise and verdicts, on numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest

from cst_search.errors import StudyError
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.records import Budget, StudyInfo, TrialRecord
from cst_search.study.seed_statistics import Noise, Sample
from cst_search.study.verdicts import quality, verdicts

# map over memory:
#   .6 |                  A
#   .5 |            B
#   .4 |                  D: dominated by A
#   .3 |      C
#      +------+-----+-----+---
#            100   200   300
TRIALS = {"A": (0.6, 300), "B": (0.5, 200), "C": (0.3, 100), "D": (0.4, 300)}
A, B, C, D = range(4)
EPOCHS = 5


def make_info(
    repeats: dict[int, list[float | None]], epochs: int = EPOCHS, names: str = "map,device_bytes"
) -> StudyInfo:
    """The drawing, and maps of repeats by trial; None: it failed."""
    trials = tuple(
        TrialRecord(i, "complete", {"method": "cst"}, map=value, map50=value + 0.1, device_bytes=size, feasible=True,
                    trainable_params=7, ran=True)
        for i, (value, size) in enumerate(TRIALS.values())
    )  # fmt: skip
    again = [(trial, i + 1, value) for trial, values in repeats.items() for i, value in enumerate(values)]
    return StudyInfo(
        name="drawn",
        objectives=tuple(OBJECTIVES[name] for name in names.split(",")),
        budget=Budget(),
        reference_point={name: {"map": 0.0, "map50": 0.0}.get(name, 400.0) for name in names.split(",")},
        recipe={"search_epochs": EPOCHS, "epochs": 18, "seed": 0},
        space={},
        data="demo",
        seed=0,
        sampler="tpe",
        target_device="x",
        started="2026-01-01T00:00:00+00:00",
        trials=trials,
        repeats=tuple(
            TrialRecord(10 + i, "failed" if value is None else "complete", {"method": "cst"}, map=value,
                        map50=None if value is None else value + 0.1, device_bytes=1, feasible=True, ran=True,
                        repeat_of=trial, seed=seed, repeat_epochs=epochs)
            for i, (trial, seed, value) in enumerate(again)
        ),
    )  # fmt: skip


# --- one sample, and the noise of all -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "own", "mean", "std", "new"),
    [
        ((0.6, 0.4, 0.5), True, 0.5, 0.1, 0.45),
        ((0.6, 0.4, 0.5), False, 0.5, 0.1, 0.5),  # none of them chose the point
        ((0.6, 0.4), True, 0.5, math.sqrt(0.02), 0.4),  # n - 1 = 1
        ((0.6,), True, 0.6, None, None),
        ((), False, None, None, None),
    ],
)
def test_a_sample(values: tuple[float, ...], own: bool, mean: float, std: float, new: float) -> None:
    sample = Sample(values, own)
    assert (sample.n, sample.mean, sample.std, sample.new_mean) == (
        len(values), pytest.approx(mean), pytest.approx(std), pytest.approx(new)
    )  # fmt: skip


def test_noise_is_pooled_with_its_degrees_of_freedom() -> None:
    # squares about the means: 0.01 + 0 + 0.01 and 0.01 + 0.01; the single one says nothing
    found = Noise.of([Sample((0.4, 0.5, 0.6)), Sample((0.2, 0.4)), Sample((0.9,))])
    assert found is not None and (found.std, found.dof) == (pytest.approx(math.sqrt(0.04 / 3)), 3)
    assert Noise.of([Sample((0.9,)), Sample(())]) is None


@pytest.mark.parametrize(
    ("dof", "t"),
    [(1, 12.706), (4, 2.776), (10, 2.228), (30, 2.042), (500, 2.042)],  # NIST/SEMATECH e-Handbook, 1.3.6.7.2
)
def test_the_least_significant_difference(dof: int, t: float) -> None:
    assert Noise(0.1, dof).least_difference(3, 2) == pytest.approx(t * 0.1 * math.sqrt(1 / 3 + 1 / 2))


# --- the front after a confirmation ---------------------------------------------------------------------------------


def test_without_repeats_nothing_changes() -> None:
    info = make_info({})
    assert [r.trial for r in info.front()] == [A, B, C]
    assert (info.brief(info.trials[A])["n_seeds"], info.brief(info.trials[A])["map_mean"]) == (1, 0.6)
    assert info.brief(info.trials[A])["map_std"] is None


def test_a_point_counts_with_the_mean_over_its_seeds() -> None:
    info = make_info({A: [0.3, 0.45], B: [0.5, 0.5]})  # A: (0.6 + 0.3 + 0.45) / 3 = 0.45 at more memory than B
    assert [r.trial for r in info.front()] == [B, C]
    assert info.best_map() == pytest.approx(0.5)
    entry = info.brief(info.trials[A])
    assert (entry["map"], entry["n_seeds"]) == (0.6, 3)  # its own value keeps its key
    assert entry["map_mean"] == pytest.approx(0.45) and entry["map_std"] == pytest.approx(0.15)
    assert entry["map50_mean"] == pytest.approx(0.55)
    # the box from (0, 400 bytes) to (1, 0): 0.3 up to 200, 0.5 up to 400
    assert info.hypervolume() == pytest.approx((0.3 * 100 + 0.5 * 200) / 400)
    assert info.knee() in (B, C)


def test_a_lucky_repeat_is_no_point_of_its_own() -> None:
    """Its memory of 1 byte and its map of 0.8 would beat everything."""
    info = make_info({C: [0.8]})
    assert [r.trial for r in info.front()] == [A, C]  # C: 0.55 at 100
    assert info.counts() == {
        "total": 4, "complete": 4, "infeasible": 0, "failed": 0, "pruned": 0, "running": 0, "interrupted": 0,
        "repeats": 1,
    }  # fmt: skip
    assert info.n_ran() == 4
    assert info.hypervolume() < 0.5


def test_a_dominated_trial_may_come_onto_the_front() -> None:
    assert [r.trial for r in make_info({A: [0.1, 0.1]}).front()] == [B, C]
    assert [r.trial for r in make_info({A: [0.1, 0.1], B: [0.1, 0.1]}).front()] == [D, C]


def test_a_repeat_that_failed_is_no_value() -> None:
    assert make_info({A: [None, 0.2]}).brief(make_info({}).trials[A])["n_seeds"] == 2
    assert make_info({A: [None]}).front() == make_info({}).front()


def test_another_length_is_kept_apart() -> None:
    info = make_info({A: [0.7, 0.7], B: [0.8, 0.8]}, epochs=18)
    assert [r.trial for r in info.front()] == [A, B, C]
    assert info.hypervolume() == make_info({}).hypervolume()
    assert info.over_seeds(info.trials[A]).values == (0.6,)
    assert info.over_seeds(info.trials[A], "map", 18).values == (0.7, 0.7)  # without the trial's own, of 5 epochs
    assert [r.trial for r in info.front(18)] == [B]  # of those that have that length
    assert [v.text for v in verdicts(info, [A, B, C], 18)] == [
        "dominated by trial 1", "on the front", "no run completed",
    ]  # fmt: skip


def test_map50_is_a_mean_too_where_it_is_the_objective() -> None:
    info = make_info({A: [0.3, 0.45]}, names="map50,device_bytes")
    assert quality(info) == "map50"
    assert [r.trial for r in info.front()] == [B, C]


def test_costs_alone_cannot_be_confirmed() -> None:
    with pytest.raises(StudyError, match="has the objectives device_bytes, which are the same with every seed"):
        quality(make_info({}, names="device_bytes"))


# --- verdicts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "repeats", "expected"),
    [
        # every std 0.01, dof 6, t 2.447: LSD of 3 and 3 is 0.01998
        (
            "all apart",
            {A: [0.59, 0.61], B: [0.49, 0.51], C: [0.29, 0.31]},
            ["on the front", "on the front", "on the front"],
        ),
        (
            "A costs more than B and is not surely better",
            {A: [0.45, 0.49], B: [0.50, 0.53], C: [0.3, 0.3]},  # 0.5133, 0.51
            ["on the front, within noise of trial 1", "on the front", "on the front"],
        ),
        (
            "A fell below B, perhaps",
            {A: [0.45, 0.44], B: [0.50, 0.53], C: [0.3, 0.3]},  # 0.4967
            ["dominated by trial 1, within noise", "on the front", "on the front"],
        ),
        (
            "the spread of A is taken for that of all",
            {A: [0.2, 0.2], B: [0.50, 0.51], C: [0.3, 0.31]},  # noise 0.133: LSD 0.267, B 0.503 and C 0.303
            ["dominated by trial 1, within noise", "on the front, within noise of trial 2", "on the front"],
        ),
        ("one seed more each", {A: [0.6], B: [0.5], C: [0.3]}, ["on the front", "on the front", "on the front"]),
        (
            "rivals of one seed",
            {B: [0.31, 0.28]},  # B 0.3633, C 0.3, D 0.4: noise 0.119 of dof 2
            [
                "on the front, within noise of trial 3 (one seed), not confirmed",
                "on the front, within noise of trial 2 (one seed)",
                "on the front, not confirmed",
            ],
        ),
    ],
)  # fmt: skip
def test_verdicts(why: str, repeats: dict[int, list[float | None]], expected: list[str]) -> None:
    assert [v.text for v in verdicts(make_info(repeats), [A, B, C])] == expected


def test_a_difference_above_the_noise_is_a_plain_verdict() -> None:
    info = make_info({B: [0.5, 0.5], C: [0.61, 0.6]})
    info = replace(info, trials=tuple(replace(r, map=0.605 if r.trial == C else r.map) for r in info.trials))
    (verdict,) = verdicts(info, [B])
    assert verdict.text == "dominated by trial 2"
    assert verdict.difference == pytest.approx(0.5 - 0.605)
    # squares: C 2 * 0.005^2; dof 4, t 2.776
    assert verdict.least == pytest.approx(2.776 * math.sqrt(5e-5 / 4) * math.sqrt(2 / 3))


def test_without_a_second_seed_nothing_is_said_of_noise() -> None:
    for verdict in verdicts(make_info({}), [A, D]):
        assert verdict.least is None and not verdict.in_noise
    assert [v.text for v in verdicts(make_info({}), [A, D])] == [
        "on the front, not confirmed", "dominated by trial 0 (one seed), not confirmed",
    ]  # fmt: skip


def test_identical_trials_are_both_on_the_front() -> None:
    info = make_info({})
    info = replace(info, trials=(*info.trials, replace(info.trials[A], trial=4)))
    first, second, third = verdicts(info, [A, 4, D])
    assert (first.on_front, first.rival, second.on_front, second.rival) == (True, 4, True, A)
    assert third.rival == A  # of equal ones the first
    assert first.difference == 0.0
