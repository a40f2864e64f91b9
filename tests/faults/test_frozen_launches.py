"""A frozen launch (SIGSTOP, a suspended machine): others do not wait as long as it sleeps, and nothing counts twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest
from searches import Place
from studies import make_study

from cst_search.errors import RunError
from cst_search.study import storage, study_lock
from cst_search.study.storage import open_storage

HOLDS = """
    import sys, time
    from cst_search.study.storage import open_storage
    for _ in range(2):
        with open_storage(sys.argv[1]).alone("one study") as is_held:
            print("inside", flush=True)
            sys.stdin.readline()
            print(is_held(), flush=True)
"""


def test_the_lock_of_a_process_that_waits_sleeps_or_dies(storage_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for with a line that names it; once it is frozen its lock is taken, and it notices as it wakes."""
    made = open_storage(storage_url, make=True)
    said: list[str] = []
    made.say = said.append
    command = [sys.executable, "-c", textwrap.dedent(HOLDS), storage_url]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    entered = threading.Event()

    def start_to_enter() -> threading.Thread:
        def enter() -> None:
            with made.alone("one study"):
                entered.set()

        entered.clear()
        thread = threading.Thread(target=enter, daemon=True)
        thread.start()
        return thread

    try:
        assert process.stdout is not None and process.stdin is not None
        assert process.stdout.readline() == "inside\n"
        monkeypatch.setattr(study_lock, "SAY_SECONDS", 0.2)
        monkeypatch.setattr(study_lock, "_LOOK_SECONDS", 0.1)
        with monkeypatch.context() as patch, pytest.raises(RunError, match=rf"held by process {process.pid} on .* for"):
            patch.setattr(study_lock, "MOST_SECONDS", 0.4)
            with made.alone("one study"):
                pass
        assert len(said) == 1 and f"waiting for the lock of the study, held by process {process.pid} on " in said[0]

        monkeypatch.setattr(storage, "DEAD_SECONDS", 1.0)
        thread = start_to_enter()
        assert not entered.wait(1.5), "it works, though slowly"
        process.send_signal(signal.SIGSTOP)
        assert entered.wait(30)
        thread.join(30)
        assert f"is taken from process {process.pid}" in said[-1]
        process.send_signal(signal.SIGCONT)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "False\n"  # it is not alone any more

        assert process.stdout.readline() == "inside\n"
        thread = start_to_enter()
        assert not entered.wait(0.5)
        process.kill()
        assert entered.wait(30)
        thread.join(30)
    finally:
        process.kill()
        process.wait()


def test_who_waits_as_a_study_is_made_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is on show yet that could: the line goes to standard error."""
    monkeypatch.setattr(study_lock, "SAY_SECONDS", 0.05)
    monkeypatch.setattr(study_lock, "_LOOK_SECONDS", 0.01)
    holder = open_storage(f"sqlite:///{tmp_path / 'studies.db'}", make=True)
    with holder.alone("made"):
        thread = threading.Thread(target=make_study, args=[tmp_path], daemon=True)
        thread.start()
        said, deadline = "", time.monotonic() + 60
        while not said and time.monotonic() < deadline:
            said = capsys.readouterr().err
            time.sleep(0.01)
    thread.join(60)
    assert said.startswith(f"waiting for the lock of the study, held by process {os.getpid()} on "), said


def test_a_launch_that_slept_finds_its_trials_taken(place: Place) -> None:
    """The next launch is let in after a while, and takes up its trials; both go on when it wakes."""
    with place.search("--in-process", trials=10, seconds=0.3) as first:
        first.until("trial 1 started")
        first.kill(signal.SIGSTOP)
        refused = place.search("--in-process", trials=10, seconds=0.3, command="resume")
        with refused as second:
            assert second.wait() == 2 and f"worked on by process {first.pid} on this host" in second.output
        time.sleep(6)  # made_up.py has it dead after 5 s
        with place.search("--in-process", trials=10, seconds=0.3, command="resume") as second:
            second.until("trial 1 started (again)")
            os.kill(first.pid, signal.SIGCONT)
            assert second.wait() == 0, second.output
        assert first.wait() == 0, first.output
    assert "another launch took it up" in first.output
    place.check(10, {})
    assert place.runs() == dict.fromkeys(place.finished(), 1)
