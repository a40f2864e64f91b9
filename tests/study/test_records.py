"""The record of a study as plain values: front, counts, knee, and the shapes that other programs rely on."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from typing import Any

import pytest
from studies import DRAWN, drawn_info

from cst_search.errors import ConfigError
from cst_search.memory.estimate import CONTEXT_BYTES, CONTEXT_WITH_BLAS_BYTES
from cst_search.report.summary import front_report, page_report
from cst_search.study import pareto
from cst_search.study.fast_reads import StoredTrial
from cst_search.study.objectives import OBJECTIVES, choose_objectives
from cst_search.study.records import Budget, StudyInfo, TrialRecord, common_reference
from cst_search.study.tally import Tally
from cst_search.study.trial_attributes import SUGGESTED, Suggested, trial_record
from cst_search.study.wording import describe, shared_values, shared_words

NAMES = [row[0] for row in DRAWN]


def on_front(info: StudyInfo) -> list[str]:
    return [NAMES[record.trial - 10] for record in info.front()]


def test_the_front_of_the_drawing() -> None:
    assert on_front(drawn_info()) == ["A", "B", "C", "F"]  # best map first; equals are both on it


def test_with_memory_alone_the_smallest_feasible_one_is_the_front() -> None:
    info = drawn_info(objectives=(OBJECTIVES["device_bytes"],), reference_point={"device_bytes": 600.0})
    assert on_front(info) == ["F"]  # what failed, was pruned or runs is smaller still


def test_a_complete_trial_that_is_not_feasible_is_not_on_the_front() -> None:
    info = drawn_info()
    trials = tuple(replace(r, feasible=r.feasible and r.trial != 10) for r in info.trials)
    assert on_front(replace(info, trials=trials)) == ["B", "C", "F"]


def test_knee_and_hypervolume_of_the_drawing() -> None:
    info = drawn_info()
    # scaled to the front, (map, memory) from the ideal: A (0, 1), B (1/3, 1/3), F (1, 0)
    assert NAMES[info.knee() - 10] == "B"  # type: ignore[operator]
    # the dominated part of the box from (map 1, 0 bytes) to (0, 600): 0.3 up to 200, 0.5 up to 400, 0.6 up to 600
    assert info.hypervolume() == pytest.approx((0.3 * 100 + 0.5 * 200 + 0.6 * 200) / 600)


def test_counts() -> None:
    assert drawn_info().counts() == {
        "total": 13, "complete": 7, "infeasible": 2, "failed": 1, "pruned": 1, "running": 1, "interrupted": 1,
        "repeats": 0,
    }  # fmt: skip
    # towards --trials counts what ended and had a worker: neither the rejected one nor those still open
    assert drawn_info().n_ran() == 10


def test_a_tally_is_the_study_in_whatever_order_its_trials_end() -> None:
    """Against the whole study, each time anew. Trials end in random order, some at a time, some never."""
    rng = random.Random(0)
    for _ in range(40):
        n = rng.randint(1, 30)
        trials = tuple(
            replace(
                drawn_info().trials[0],
                trial=i,
                state=(state := rng.choice(["complete", "complete", "infeasible", "failed", "pruned"])),
                map=rng.randint(1, 9) / 10,
                device_bytes=rng.randint(1, 8) * 100,
                feasible=state == "complete",
                ran=rng.random() < 0.8,
            )
            for i in range(n)
        )
        order = rng.sample(range(n), rng.randint(0, n))
        tally, done = Tally(drawn_info()), []
        while order:
            new = [order.pop() for _ in range(min(len(order), rng.randint(1, 3)))]
            done += new
            first_unfinished = next(i for i in range(n + 1) if i not in done)
            tally.add([trials[i] for i in new], first_unfinished)
            info = drawn_info(trials=tuple(trials[i] for i in sorted(done)))
            assert sorted(tally.front.members) == sorted(record.trial for record in info.front())
            assert tally.front.volume == pytest.approx(info.hypervolume())
            assert tally.n_rejected == sum(not record.ran for record in info.trials)
            growth = drawn_info(trials=trials[:first_unfinished])
            expected = pareto.hypervolume_by_trial(growth.values(), growth.objectives, growth.reference)
            assert [number for number, _ in tally.volumes] == list(range(first_unfinished))
            assert [volume for _, volume in tally.volumes] == pytest.approx(expected)


def test_a_promoted_trial_enters_the_hypervolume_curve_late() -> None:
    made = drawn_info().trials[0]
    first, second, third = (replace(made, trial=i, map=q, device_bytes=400) for i, q in enumerate((0.5, 0.3, 0.6)))
    tally = Tally(drawn_info())
    tally.add([second, third], first_running=3)  # the first waits
    tally.add([first], first_running=3)
    assert [number for number, _ in tally.volumes] == [1, 2, 2] and tally.volumes[1] == tally.volumes[2]
    tally.add([replace(first, trial=3, map=0.7)], first_running=3)  # the fourth may not be given yet
    assert len(tally.volumes) == 3 and tally.front.volume > tally.volumes[-1][1]


def test_a_tally_counts_the_mean_over_seeds() -> None:
    made = drawn_info().trials[0]
    lucky, steady = (replace(made, trial=i, map=q, device_bytes=400) for i, q in enumerate((0.5, 0.4)))
    again = replace(lucky, trial=2, map=0.1, repeat_of=0, seed=1, repeat_epochs=3)
    info = drawn_info(trials=(lucky, steady), repeats=(again,), recipe={"search_epochs": 3})
    tally = Tally(info)
    tally.add([lucky, again, steady], first_running=3)
    assert tally.front.members == [record.trial for record in info.front()] == [1]
    assert tally.front.volume == info.hypervolume() and [number for number, _ in tally.volumes] == [0, 1]


def test_an_empty_study() -> None:
    info = drawn_info(trials=())
    report = front_report(info)
    assert (report["front"], report["knee"], report["hypervolume"]) == ([], None, 0.0)
    counts = ("total", "complete", "infeasible", "failed", "pruned", "running", "repeats")
    assert report["trials"] == dict.fromkeys(counts, 0)
    assert page_report(info)["all"] == []


def test_by_number() -> None:
    assert drawn_info().by_number(13).map == 0.5  # type: ignore[union-attr]
    assert drawn_info().by_number(0) is None


# --- working memory -------------------------------------------------------------------------------------------------


def with_context(info: StudyInfo, context_bytes: int) -> StudyInfo:
    """The same study on a device whose context takes this much."""
    trials = tuple(
        replace(r, context_bytes=context_bytes, device_bytes=(r.device_bytes or 0) + context_bytes) for r in info.trials
    )
    reference = {**info.reference_point, "device_bytes": info.reference_point["device_bytes"] + context_bytes}
    return replace(info, trials=trials, reference_point=reference)


def test_the_context_changes_neither_front_nor_knee_nor_hypervolume() -> None:
    info = drawn_info()
    fixed = with_context(info, 800_000_000)
    assert fixed.trials[0].working_bytes == info.trials[0].working_bytes == info.trials[0].device_bytes
    assert on_front(fixed) == on_front(info) and fixed.knee() == info.knee()
    assert fixed.hypervolume() == info.hypervolume()
    assert common_reference([fixed, info]) == info.reference


def test_the_hypervolume_of_working_memory_is_that_of_device_memory_by_a_factor_of_the_study() -> None:
    fixed = with_context(drawn_info(), 400)
    device = [[r[0], r[1] + 400] for r in fixed.values()]
    points = list(fixed.reference_point.values())
    assert pareto.hypervolume(device, fixed.objectives, points) == pytest.approx(
        fixed.hypervolume() * (1 - 400 / points[1])
    )


def test_a_budget_below_the_context_leaves_an_empty_front_and_no_fault() -> None:
    info = drawn_info(reference_point={"map": 0.0, "device_bytes": 5e8}, trials=())
    assert info.context_bytes == CONTEXT_BYTES and info.reference == [0.0, 1.0]
    assert info.hypervolume() == 0.0 and info.suggested_pick() == "best"
    assert info.suggested() is None and info.picked("knee") is None


@pytest.mark.parametrize(
    ("stored", "working"),
    [
        ({"breakdown": {"weights": 1, "context": 500}}, 400),  # of a version with another constant
        ({"breakdown": {"weights": 1, "blas_context": 100, "context": 500}}, 400),  # cuBLAS is no fixed cost
        ({"breakdown": {"weights": 900}}, 900),  # the parts add up to the whole, so there is no context in it
        ({}, 900 - CONTEXT_WITH_BLAS_BYTES),
    ],
)
def test_working_memory_is_derived_from_what_is_stored(stored: dict[str, Any], working: int) -> None:
    estimate = dict.fromkeys(("reserved_bytes", "active_bytes", "trainable_params", "petl_params"), 1)
    suggested = Suggested(config={}, estimate={**estimate, "device_bytes": 900, **stored}, launch=None)
    trial = StoredTrial(1, 0, "RUNNING", {SUGGESTED: suggested.to_dict()})
    assert trial_record(trial, (), 1, Budget()).working_bytes == working


@pytest.mark.parametrize(
    ("points", "pick"),
    [
        ([(0.3, 200), (0.5, 400), (0.6, 600)], "knee"),
        ([(0.3, 200), (0.45, 250), (0.6, 600)], "best"),  # the knee keeps three quarters of mAP
        ([(0.3, 200), (0.6, 600)], "best"),  # each is the best of something
        ([(0.3, 1000), (0.5, 1004), (0.6, 1008)], "best"),  # memory tells nothing apart
        ([(0.5999, 200), (0.6, 400), (0.6001, 600)], "knee"),  # mAP does not either, but memory does
        ([], "best"),
    ],
)
def test_the_suggested_pick(points: list[tuple[float, int]], pick: str) -> None:
    made = drawn_info().trials[0]
    trials = tuple(replace(made, trial=i, map=q, device_bytes=used) for i, (q, used) in enumerate(points))
    info = drawn_info(trials=trials)
    assert info.suggested_pick() == pick
    trials_of_front = [record.trial for record in info.front()]
    wanted = [info.knee()] if pick == "knee" else trials_of_front[:1]
    assert [record.trial for record in (info.suggested(),) if record is not None] == wanted


def test_no_cost_among_the_objectives_leaves_the_best() -> None:
    assert drawn_info(objectives=(OBJECTIVES["map"],), reference_point={"map": 0.0}).suggested_pick() == "best"


# --- small parts ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("budget", "memory", "params", "expected"),
    [
        (Budget(600, 100), 600, 100, (0.0, 0.0)),  # exactly on the budget is within it
        (Budget(600, 100), 660, 50, (0.1, -0.5)),
        (Budget(None, 100), 10**12, 150, (0.0, 0.5)),  # unbounded
        (Budget(600, None), None, 10**12, (0.0, 0.0)),  # unknown
    ],
)
def test_violations_are_relative_and_always_all_there(
    budget: Budget, memory: int | None, params: int, expected: tuple[float, float]
) -> None:
    found = budget.violations({"device_bytes": memory, "trainable_params": params})
    assert list(found) == ["memory", "params"]
    assert tuple(found.values()) == pytest.approx(expected)


def test_other_bounds_count_where_a_budget_has_them() -> None:
    costs = {"device_bytes": 660, "trainable_params": 50, "delta_bytes": 300, "flops": 9 * 10**9}
    assert Budget(600).violations(costs) == pytest.approx({"memory": 0.1, "params": 0.0})
    found = Budget(600, delta_bytes=200, flops=10**10).violations(costs)
    assert found == pytest.approx({"memory": 0.1, "params": 0.0, "delta": 0.5, "flops": -0.1})
    assert list(found) == ["memory", "params", "delta", "flops"]
    assert Budget(flops=10).violations({"flops": None})["flops"] == 0  # unknown: a trial of an earlier version


@pytest.mark.parametrize(
    ("state", "feasible", "quality", "is_known"),
    [
        ("complete", True, 0.5, True),
        ("complete", False, 0.5, False),
        ("infeasible", False, 0.5, False),
        ("pruned", True, 0.5, False),
        ("failed", False, None, False),
    ],
)
def test_only_a_complete_feasible_trial_has_values(
    state: str, feasible: bool, quality: float | None, is_known: bool
) -> None:
    record = TrialRecord(0, state, {}, map=quality, device_bytes=1, feasible=feasible)
    values = record.values((OBJECTIVES["map"], OBJECTIVES["device_bytes"]))
    assert values == [0.5, 1.0] if is_known else all(math.isnan(value) for value in values)


@pytest.mark.parametrize("text", ["", ",", "map,map", "mAP", "map;device_bytes", "map,loss"])
def test_wrong_objectives_are_refused_with_the_known_ones(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--objectives takes different names from map, device_bytes"):
        choose_objectives(text)


def test_objectives_keep_their_order() -> None:
    assert [o.name for o in choose_objectives(" petl_params , map")] == ["petl_params", "map"]


def test_a_configuration_in_words() -> None:
    assert describe(drawn_info().trials[0].config) == "cst, lr 0.012, reduction 8, mtc_stages [4,5]"
    assert describe({}) == "?"
    config = {"method": "cst", "cst.reduction": 8, "cst.block": "3x3", "batch_size": 4, "lr": 0.1}
    assert describe(config) == "cst, lr 0.1, batch 4, reduction 8, block 3x3"
    assert describe(config, 3) == "cst, lr 0.1, batch 4, reduction 8"
    assert describe(config, leave_out=("batch_size", "cst.block")) == "cst, lr 0.1, reduction 8"
    assert describe(config, 3, order=["method", "ssf.x", "cst.block", "lr"]) == "cst, lr 0.1, batch 4, block 3x3"


def test_what_all_trials_share_does_not_tell_them_apart() -> None:
    first = {"method": "cst", "lr": 0.1, "batch_size": 4, "cst.reduction": 8}
    second = {"method": "ssf", "lr": 0.2, "batch_size": 4}
    assert shared_values([first, second]) == {"batch_size": 4}  # the reduction tells the first one's method more
    assert shared_values([first, first | {"lr": 0.3}]) == {"batch_size": 4, "cst.reduction": 8}  # never the method
    assert shared_values([first]) == shared_values([]) == {}
    assert shared_words({"batch_size": 4, "lr": 0.1}) == "in all of them: lr 0.1, batch 4" and not shared_words({})
