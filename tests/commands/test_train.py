"""What a full training says of the machine before it begins; and an export while it is verified."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest
import torch

from cst_search.commands import export, train


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    yield before
    torch.set_num_threads(before)


def said(load: float, threads: int | None, monkeypatch: pytest.MonkeyPatch, cores: int = 2) -> list[str]:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    monkeypatch.setattr(train, "n_cores", lambda: cores)
    lines: list[str] = []
    train._set_threads(threads, "cpu", lines.append)
    return lines


def test_threads_are_set_and_said(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    assert said(0.1, 2, monkeypatch) == ["on 2 CPU core(s) with 2 thread(s)"]
    assert torch.get_num_threads() == 2
    said(0.1, None, monkeypatch)
    assert torch.get_num_threads() == 2  # as they are


def test_a_busy_machine_is_warned_of(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    (_, note) = said(2.1, 2, monkeypatch)
    assert (
        note.startswith("note: other programs keep this machine busy (load 2.1 on 2 cores)") and "--threads 1" in note
    )
    (_, note) = said(2.1, 1, monkeypatch)
    assert "--threads" not in note  # it is so already
    assert len(said(2.0, 2, monkeypatch)) == 1  # as many as there are cores


def test_a_verification_is_not_silent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "_TELL_SECONDS", 0.02)
    lines: list[str] = []
    with export._telling("verifying trial 3", lines.append):
        while len(lines) < 3:
            time.sleep(0.01)
    n = len(lines)
    assert lines[:3] == ["verifying trial 3 ...", "still verifying, 0s", "still verifying, 0s"]
    time.sleep(0.1)
    assert len(lines) == n  # it is over
