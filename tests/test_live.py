"""What a person sees while a search runs, where trials are stopped and go on."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from cst_search.live import View
from cst_search.results import TrialRecord
from cst_search.suggest import Suggestion

ESTIMATE = {"device_bytes": 500_000_000, "trainable_params": 1000}


def suggestion(trial: int, promoted_from: int | None = None) -> Suggestion:
    return Suggestion(trial, {"method": "head", "lr": 0.01}, ESTIMATE, promoted_from=promoted_from)


def stopped(trial: int, **changes: Any) -> TrialRecord:
    values: dict[str, Any] = {
        "map": 0.25, "device_bytes": 500_000_000, "trainable_params": 1000, "seconds": 2.0, "ran": True,
        "reason": "stopped after epoch 1 of 9", "waits": True, "state": "pruned", "config": {"method": "head"},
        "history": [{"epoch": 1}],
    }  # fmt: skip
    return TrialRecord(trial=trial, **values | changes)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_a_promoted_trial_counts_once(is_terminal: bool) -> None:
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=140)
    view = View(console, title="x", n_trials=4, n_workers=1, n_done=1, epochs=9, on_finished=lambda: (0.5, 0))
    # trial 0 was stopped by an earlier launch, trial 1 by this one
    view.started(suggestion(1))
    view.finished(stopped(1))
    assert view._n_finished() == 2
    view.started(suggestion(0, promoted_from=1))
    assert view._n_finished() == 1
    view.finished(stopped(0, state="complete", reason=None, waits=False))
    view.started(suggestion(1, promoted_from=1))
    assert view._n_finished() == 1
    console.print(view._render())
    view.finished(stopped(1, reason="stopped after epoch 3 of 9"))
    assert view._n_finished() == 2
    console.print(view._render())
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert "pruned" in text and "running" in text
    if not is_terminal:
        assert "trial 1 pruned: map 0.250, 500 MB, 1k trainable, 2s, stopped after epoch 1 of 9 | 2 of 4" in text
        assert "trial 1 started (goes on after epoch 1): head" in text
