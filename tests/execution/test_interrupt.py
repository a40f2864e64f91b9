"""SIGHUP: a terminal that is closed ends a search as SIGTERM does, and with `nohup` it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cst_search.commands.search_loop import run_trials
from cst_search.execution.interrupt import ends_in_time, is_ending

SEARCH = """
    import sys, time
    from pathlib import Path
    from cst_search.execution.interrupt import ends_in_time
    with ends_in_time("resume"):
        try:
            print("ready", flush=True)
            while True:  # a signal just before a long sleep is heard after it
                time.sleep(0.1)
        except KeyboardInterrupt:
            print("stopped", flush=True)
            Path(sys.argv[1]).write_text("reported")
"""


@pytest.mark.parametrize("ctrl_c", [signal.SIG_DFL, signal.SIG_IGN], ids=["foreground", "started with &"])
def test_a_closed_terminal_ends_it_with_its_report(tmp_path: Path, ctrl_c: signal.Handlers) -> None:
    ours, theirs = os.openpty()
    command = [sys.executable, "-c", textwrap.dedent(SEARCH), str(tmp_path / "report")]

    def begin() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may have been started with `nohup`
        signal.signal(signal.SIGINT, ctrl_c)
        os.login_tty(theirs)

    process = subprocess.Popen(command, preexec_fn=begin, pass_fds=[theirs])
    try:
        os.close(theirs)
        assert b"ready" in os.read(ours, 100)
        os.close(ours)
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait()
    assert (tmp_path / "report").read_text() == "reported"


def test_nohup_stays_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with ends_in_time("resume"):
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class View(nullcontext[None]):
    say = staticmethod(print)


def test_a_signal_between_two_trials_is_an_interruption() -> None:
    """Ray Tune then ends its loop as at the end of a search. A search of another thread is not concerned afterwards."""
    session = SimpleNamespace(end_launch=lambda: None)
    loop = SimpleNamespace(run=lambda *jobs: is_ending.set())
    setup: Any = SimpleNamespace(workers=loop, machines=SimpleNamespace(cluster=None))
    view: Any = View()
    job: Any = SimpleNamespace(session=session)
    with ends_in_time(""):
        assert run_trials([job], setup, view, "")
    loop.run = lambda *jobs: None
    with ThreadPoolExecutor(1) as pool:
        assert not pool.submit(within, run_trials, [job], setup, view, "").result()


def within(function: Callable[..., bool], *given: Any) -> bool:
    with ends_in_time(""):
        return function(*given)
