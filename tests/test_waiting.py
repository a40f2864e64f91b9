"""What a command says while it waits."""

from __future__ import annotations

import time

import pytest

from cst_search import waiting
from cst_search.waiting import Waiting


@pytest.fixture
def busy(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The load, of which a test can change the only item."""
    words = ["load 9.0 on 2 cores"]
    monkeypatch.setattr(waiting, "SAY_SECONDS", 0.05)
    monkeypatch.setattr(waiting, "_LOOK_SECONDS", 0.005)
    monkeypatch.setattr(waiting, "busy_words", lambda: words[0])
    return words


def until(lines: list[str], n: int) -> None:
    deadline = time.monotonic() + 30
    while len(lines) < n:
        assert time.monotonic() < deadline, lines
        time.sleep(0.005)


def test_it_says_for_what_and_why_again_and_again_until_it_is_over(busy: list[str]) -> None:
    lines: list[str] = []
    begun = time.monotonic()
    with Waiting("Ray to start", lines.append, "do this") as one:
        until(lines, 3)
        assert time.monotonic() - begun >= 0.05 * 4, "each line comes after twice the time"
        assert lines[0] == (
            "waiting for Ray to start, 0s so far: this machine is busy (load 9.0 on 2 cores); it goes on by itself, "
            "and Ctrl-C ends it"
        )
        busy[0] = ""
        one.now_for("the workers to start")
        until(lines, 4)
        assert lines[3] == "waiting for the workers to start, 0s so far; do this"
        one.now_for("an epoch", only_if_busy=True)
        time.sleep(0.2)
        assert len(lines) == 4, "an epoch may take long"
        busy[0] = "load 9.0 on 2 cores"
        until(lines, 5)
        one.over()
        n = len(lines)
        time.sleep(0.2)
    assert len(lines) == n


def test_the_load_here_says_nothing_of_a_cluster(busy: list[str]) -> None:
    lines: list[str] = []
    with Waiting("the workers to start", lines.append, is_here=False):
        until(lines, 1)
    assert lines[0] == "waiting for the workers to start, 0s so far; Ctrl-C ends it"


def test_what_comes_soon_is_not_said(busy: list[str]) -> None:
    lines: list[str] = []
    with Waiting("Ray to start", lines.append):
        pass
    time.sleep(0.1)
    assert lines == []
