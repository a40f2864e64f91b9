"""Handle SIGINT and SIGTERM: the first signal ends a search cleanly and in time, a second one at once."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Never

import psutil

from cst_search.visible import visible

GRACE_SECONDS = 15.0


@contextmanager
def ends_in_time(go_on: str) -> Iterator[None]:
    """Context in which SIGTERM acts like Ctrl-C: KeyboardInterrupt, or Ray Tune's own handling.

    This process and all its children are killed with exit code 130 at a second signal, or if the context is not left
    within `GRACE_SECONDS` of the first. Results are safe in the study's database.

    Args:
        go_on: command that continues the search, for the last message.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # The handler of SIGINT changes, and a Python handler waits for the main thread, which may be busy in a library. But
    # Python's own handler, in C, writes the number of every signal into this pipe.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    old_handler = signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    watcher = threading.Thread(target=_watch, args=(reader, go_on), name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old_handler)
        signal.set_wakeup_fd(old_fd)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _watch(reader: int, go_on: str) -> None:
    n_echoes, deadline = 0, None  # an echo: the SIGINT that the handler of SIGTERM raises
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            end_at_once(f"not over {GRACE_SECONDS:.0f} s after the signal, so ended", go_on)
        numbers = os.read(reader, 64)
        if not numbers:
            return
        for number in numbers:
            if number == signal.SIGINT and n_echoes:
                n_echoes -= 1
                continue
            if number not in (signal.SIGINT, signal.SIGTERM):
                continue
            n_echoes += number == signal.SIGTERM
            if deadline is not None:
                end_at_once("ended at once", go_on)
            deadline = time.monotonic() + GRACE_SECONDS


def end_at_once(how: str, go_on: str, code: int = 130) -> Never:
    """Kill this process and all its children, after a last message."""
    os.write(2, visible(f"\n{how}; what is finished is kept; go on with:  {go_on}\n").encode(errors="replace"))
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            child.kill()
    os._exit(code)
