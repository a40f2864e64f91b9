"""SIGHUP: a terminal that is closed ends a search as SIGTERM does, and with `nohup` it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cst_search.execution.interrupt import ends_in_time

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
