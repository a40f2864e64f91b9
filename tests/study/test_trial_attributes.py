"""What a study stores with a trial, and the record read from it."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import pytest
from studies import fake_estimate

from cst_search.study.fast_reads import StoredTrial
from cst_search.study.objectives import OF_INFERENCE
from cst_search.study.records import Budget
from cst_search.study.trial_attributes import PROGRESS, RESULT, SUGGESTED, Progress, Suggested, trial_record
from cst_search.trial.result import FIGURES, Outcome, TrialFigures, TrialResult

CONFIG = {"method": "cst", "batch_size": 2, "cst.reduction": 8}
SUGGESTION = Suggested(config=CONFIG, estimate=asdict(fake_estimate(CONFIG)), launch="a")


def stored(state: str, **attributes: Any) -> StoredTrial:
    return StoredTrial(1, 0, state, {SUGGESTED: SUGGESTION.to_dict(), **attributes})


@pytest.mark.parametrize("name", FIGURES)
def test_a_record_has_every_figure_of_the_result(name: str) -> None:
    (kind,) = [str(field.type) for field in fields(TrialFigures) if field.name == name]
    history = [{"epoch": 1}] if name == "history" else ["the figure"]
    by_kind = {"str": "the figure", "Seq": history, "Map": {"the": "figure"}}
    figure = by_kind.get(kind[:3], 99)
    result = TrialResult(Outcome.COMPLETE, 10, 20).to_dict() | {"state": "complete", name: figure}
    assert getattr(trial_record(stored("COMPLETE", **{RESULT: result}), set(), 2, Budget()), name) == figure


def test_bytes_that_were_not_measured_are_the_predicted_ones() -> None:
    result = TrialResult(Outcome.COMPLETE, 77, 77, reserved_bytes=5).to_dict() | {"state": "complete"}
    record = trial_record(stored("COMPLETE", **{RESULT: result}), set(), 2, Budget())
    assert (record.device_bytes, record.reserved_bytes, record.active_bytes) == (300, 5, 500)
    assert (record.trainable_params, record.petl_params) == (1100, 10)  # those that the budget was applied to


def test_a_trial_of_an_earlier_version_has_no_cost_of_inference() -> None:
    record = trial_record(stored("RUNNING"), {"a"}, 4, Budget())
    assert (record.delta_bytes, record.inference_bytes, record.flops, record.marginal_flops) == (
        4400, 700, 1_100_000_000, 10**9,
    )  # fmt: skip
    plain = SUGGESTION.to_dict()
    plain["estimate"] = {name: value for name, value in plain["estimate"].items() if name not in OF_INFERENCE}
    record = trial_record(StoredTrial(1, 0, "RUNNING", {SUGGESTED: plain}), {"a"}, 4, Budget(delta_bytes=1))
    assert {getattr(record, name) for name in OF_INFERENCE} == {None} and record.trainable_params == 1100


def test_figures_of_a_running_trial_are_the_last_of_any_epoch() -> None:
    history = [{"epoch": 1, "loss": 2.0, "map": 0.3, "device_bytes": 9}, {"epoch": 2, "loss": 1.0, "map": None}]
    record = trial_record(stored("RUNNING", **{PROGRESS: Progress(history).to_dict()}), {"a"}, 4, Budget())
    assert (record.state, record.loss, record.map, record.device_bytes) == ("running", 1.0, 0.3, 9)
    assert (record.memory_source, record.ran, record.history) == ("measured", True, history)
    assert trial_record(stored("RUNNING"), set(), 4, Budget()).state == "interrupted"


@pytest.mark.parametrize(
    ("state", "budget", "feasible"),
    [
        ("complete", Budget(300, 1100), True),
        ("pruned", Budget(), True),
        ("pruned", Budget(300, 1100), True),  # exactly the budget
        ("pruned", Budget(299, None), False),  # by its 300 bytes
        ("pruned", Budget(None, 1099), False),  # by its 1100 parameters
        ("infeasible", Budget(10**12, None), False),  # out of memory: its bytes are only those that it reached
        ("failed", Budget(), False),
    ],
)
def test_a_trial_is_feasible_if_it_kept_its_budget(state: str, budget: Budget, feasible: bool) -> None:
    trial = stored("COMPLETE", **{RESULT: {"state": state}})
    assert trial_record(trial, set(), 2, budget).feasible == feasible
