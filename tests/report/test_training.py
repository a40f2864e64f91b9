"""What a person sees while a full training runs."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from cst_search.report import training
from cst_search.report.training import TrainingProgress


def test_a_line_every_half_minute_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=120)
    with TrainingProgress(console, n_epochs=4) as progress:
        for step in range(1, 11):  # two steps of ten seconds in each epoch, after a first one that also prepares
            progress(1 + (step - 1) // 5, 1 + (step - 1) % 5, 5)
            now[0] += 10
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == [
        "epoch 1/4, step 4/5, about 2m40s left",
        "epoch 2/4, step 2/5, about 2m10s left",
        "epoch 2/4, step 5/5, about 1m40s left",
    ]


def test_a_resumed_training_counts_its_own_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(training.time, "monotonic", lambda: now[0])
    console = Console(file=io.StringIO(), width=120)
    progress = TrainingProgress(console, n_epochs=4)
    now[0] = 40.0
    progress(4, 1, 10)
    now[0] = 80.0
    progress(4, 5, 10)  # four steps in 40 s, five are left
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == ["epoch 4/4, step 1/10, time left unknown", "epoch 4/4, step 5/10, about 50s left"]


def test_on_a_terminal_it_is_one_line() -> None:
    size = {"width": 100, "height": 30, "_environ": {"TERM": "xterm"}}
    console = Console(file=io.StringIO(), force_terminal=True, color_system=None, **size)
    with TrainingProgress(console, n_epochs=2) as progress:
        progress(1, 1, 3)
        progress(1, 2, 3)
        assert progress._status is not None and str(progress._status.status).startswith("epoch 1/2, step 2/3, about")
