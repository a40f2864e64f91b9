"""A machine that is busy: Ray and its workers come up late, and the search says so and goes on."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
from searches import Place, Search


def started(one: Search, name: str, seconds: float = 120) -> psutil.Process:
    """A process of the search, once it is there."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and one.process.poll() is None:
        for process in one.relatives():
            try:
                if any(word.endswith(name) for word in process.cmdline()[:3]):
                    return process
            except psutil.Error:
                pass
        time.sleep(0.01)
    raise AssertionError(f"no {name}:\n{one.output}")


@contextmanager
def frozen(process: psutil.Process) -> Iterator[None]:
    process.send_signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.send_signal(signal.SIGCONT)


def test_what_comes_up_late_is_waited_for_with_a_line(place: Place) -> None:
    """The raylet is frozen, then a worker that it starts. 1.5 s stand for the 10 s until the first line."""
    with place.search("--workers", "1", trials=3, env={"SAY_SECONDS": "1.5"}) as one:
        with frozen(started(one, "/raylet")):
            one.until("waiting for Ray to start, ")
        with frozen(started(one, "default_worker.py")):
            one.until("waiting for the workers to start, ")
        assert one.wait() == 0, one.output
    place.check(3, {})


def test_who_waits_can_be_stopped(place: Place) -> None:
    with place.search("--workers", "1", trials=3, env={"SAY_SECONDS": "1"}) as one:
        raylet = started(one, "/raylet")
        raylet.send_signal(signal.SIGSTOP)
        one.until("waiting for Ray to start, ")
        begun = time.monotonic()
        one.kill(signal.SIGINT)
        assert one.wait(40) == 130, one.output
        assert time.monotonic() - begun < 20
    assert "cst-search resume faults" in one.output


def test_workers_are_not_below_other_programs(place: Place) -> None:
    """Ray gives them niceness 15. They also have the policy of the launch's threads: `cores.wait_passively`."""
    with place.search("--workers", "1", trials=50, seconds=0.2) as one:
        one.until(lambda: len(place.notes()) >= 2)
        worker = psutil.Process(place.notes()[-1]["pid"])
        assert worker.nice() == psutil.Process(one.pid).nice() < 15
        assert worker.environ()["OMP_WAIT_POLICY"] == "PASSIVE"
