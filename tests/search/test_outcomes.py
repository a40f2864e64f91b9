"""How a session records what came of a trial, and what Optuna is told of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from sessions import (
    CONSTRAINTS,
    as_optuna_has_it,
    ask,
    in_memory,
    objectives,
)
from studies import (
    make_study,
    run_one,
    scored,
)

from cst_search.study.records import Budget
from cst_search.study.study import Study

OUTCOMES: list[tuple[str, dict[str, Any], str, TrialState, list[float] | None, tuple[float, float]]] = [
    # why, result, our state, optuna's, its values, constraints (memory, finite)
    ("complete, memory predicted", scored(0.4), "complete", TrialState.COMPLETE, [0.4, 300, 1100], (-0.7, 0)),
    (
        "complete, memory measured",
        scored(0.4, device_bytes=900, trainable_params=1100),
        "complete",
        TrialState.COMPLETE,
        [0.4, 900, 1100],
        (-0.1, 0),
    ),
    (
        "measured over the budget",
        scored(0.9, device_bytes=1100),
        "infeasible",
        TrialState.COMPLETE,
        [0.9, 1100, 1100],
        (0.1, 0),
    ),
    (
        "out of memory, said to be within the budget",
        {"outcome": "oom", "reason": "CUDA out of memory"},
        "infeasible",
        TrialState.COMPLETE,
        [-math.inf, 300, 1100],
        (0.1, 0),
    ),
    (
        "out of memory with a measured peak",
        {"outcome": "oom", "reason": "CUDA out of memory", "device_bytes": 1500},
        "infeasible",
        TrialState.COMPLETE,
        [-math.inf, 1500, 1100],
        (0.5, 0),
    ),
    (
        "out of memory, held and refused add up to less than the budget",  # another process had the rest of the GPU
        {
            "outcome": "oom",
            "reason": "CUDA out of memory",
            "device_bytes": 400,
            "limit_bytes": 900,
            "held_bytes": 200,
            "asked_bytes": 100,
            "stage": "training, epoch 1",
        },
        "infeasible",
        TrialState.COMPLETE,
        [-math.inf, 400, 1100],
        (0.1, 0),
    ),
    (
        "out of a limit below the budget",  # by what it needed above the limit at least
        {
            "outcome": "oom",
            "reason": "CUDA out of memory",
            "device_bytes": 700,
            "limit_bytes": 400,
            "held_bytes": 380,
            "asked_bytes": 220,
            "stage": "training, epoch 1",
        },
        "infeasible",
        TrialState.COMPLETE,
        [-math.inf, 700, 1100],
        (0.5, 0),
    ),
    (
        "a process on a CPU out of its limit",  # its bytes are not the GPU's: those stay predicted
        {"outcome": "oom", "reason": "std::bad_alloc", "limit_bytes": 400, "held_bytes": 399, "stage": "building"},
        "infeasible",
        TrialState.COMPLETE,
        [-math.inf, 300, 1100],
        (0.1, 0),
    ),
    (
        "the loss is not finite",
        {"outcome": "nonfinite", "reason": "loss is nan at step 3", "map": 0.8, "map50": 0.9},
        "failed",
        TrialState.COMPLETE,
        [-math.inf, 300, 1100],
        (-0.7, 1),
    ),
    ("a fault", {"outcome": "failed", "reason": "ValueError: x"}, "failed", TrialState.FAIL, None, (0, 0)),
    ("complete without a score", scored(0.4, map=None), "failed", TrialState.FAIL, None, (0, 0)),
]


@pytest.mark.parametrize(
    ("why", "result", "state", "told", "values", "constraints"), OUTCOMES, ids=[row[0] for row in OUTCOMES]
)
def test_how_an_outcome_is_recorded(
    tmp_path: Path,
    why: str,
    result: dict[str, Any],
    state: str,
    told: TrialState,
    values: list[float] | None,
    constraints: tuple[float, float],
) -> None:
    session = make_study(tmp_path)
    record = run_one(session, result, cst__reduction=8, batch_size=2)
    assert (record.state, record.ran) == (state, True)
    assert record.feasible == (state == "complete")
    assert record == Study.open(session.study.url, session.study.name).info().trials[0]
    assert record.memory_source == ("measured" if "device_bytes" in result else "predicted")
    if state != "complete" and result.get("reason"):
        assert result["reason"] in record.reason  # type: ignore[operator]
    stored = as_optuna_has_it(session)[0]
    assert (stored.state, stored.values) == (told, values)
    if told == TrialState.COMPLETE:
        found = stored.constraints
        assert (found["memory"], found["finite"]) == (pytest.approx(constraints[0]), constraints[1])
    assert [record.trial for record in session.study.info().front()] == ([0] if state == "complete" else [])


def test_oom_reason_states_held_memory_stage_and_limit(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    figures = {"limit_bytes": 5_500_000_000, "held_bytes": 5_310_000_000, "asked_bytes": 10**9}
    record = run_one(session, {"outcome": "oom", "reason": "no memory", "stage": "training, epoch 2", **figures})
    assert record.reason == "out of memory (training, epoch 2): no memory; it held 5.31 GB of 5.5 GB"


@pytest.mark.parametrize("sampler", ["tpe", "nsga2"])
def test_a_sampler_learns_from_running_out(sampler: str) -> None:
    """What is let through by the prediction and runs out is suggested less and less: here batches of 8."""
    session = in_memory(sampler=sampler, budget=Budget(10_000, None), objectives=objectives("map"))
    session.begin_launch()
    ran_out = []
    for _ in range(60):
        suggestion = ask(session)
        ran_out.append(suggestion.config["batch_size"] == 8)
        # the larger batch would be the better one, were there the memory
        result = {"outcome": "oom", "reason": "x"} if ran_out[-1] else scored(0.1 * suggestion.config["batch_size"])
        session.tell(suggestion.trial, result)
    assert sum(ran_out[:20]) >= 4 and sum(ran_out[-20:]) < sum(ran_out[:20])


def test_every_finished_trial_has_the_same_constraints(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    for _, result, *_ in OUTCOMES:
        run_one(session, result)
    finished = [trial for trial in as_optuna_has_it(session) if trial.state == TrialState.COMPLETE]
    assert len(finished) >= 6
    for trial in finished:
        assert list(trial.constraints) == sorted(["0", *CONSTRAINTS])  # the GP sampler takes them by position
        assert trial.constraints["0"] == max(trial.constraints.values())


@pytest.mark.parametrize(
    "names", [("map", "device_bytes"), ("map", "device_bytes", "trainable_params"), ("device_bytes", "map50")]
)
def test_optuna_and_we_agree_on_the_front(names: tuple[str, ...], tmp_path: Path) -> None:
    session = make_study(tmp_path, objectives=objectives(*names), seed=3)
    for quality in (0.2, 0.5, 0.5, 0.1, 0.45, 0.3, 0.5):
        run_one(session, scored(quality))
    run_one(session, scored(0.31, device_bytes=150))
    run_one(session, scored(0.95, device_bytes=1001))  # the best, and over the budget
    run_one(session, {"outcome": "nonfinite", "reason": "nan", "device_bytes": 1})
    run_one(session, {"outcome": "oom", "reason": "no memory"})
    run_one(session, {"outcome": "failed", "reason": "a fault"})
    run_one(session, scored(0.6), cst__reduction=8, batch_size=2, lr=0.01)  # two equal points
    run_one(session, scored(0.6), cst__reduction=8, batch_size=2, lr=0.02)
    ask(session)  # still running
    theirs = optuna.load_study(study_name=session.study.name, storage=session.study.url).best_trials
    assert {trial.number for trial in theirs} == {record.trial for record in session.study.info().front()}
    assert len(theirs) >= 3
