"""Handle SIGINT, SIGTERM and SIGHUP: the first signal ends a search cleanly and in time, a second one at once."""

from __future__ import annotations

import os
import select
import signal
import threading
import time
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Never

import psutil

from cst_search.visible import visible

GRACE_SECONDS = 15.0
is_ending = threading.Event()  # from the first signal on; Ray's processes may have had it too, and end
_AS_CTRL_C = [number for name in ("SIGTERM", "SIGHUP") if (number := getattr(signal, name, None))]  # Windows has no HUP


@contextmanager
def ends_in_time(go_on: str) -> Iterator[None]:
    """Context in which SIGTERM and SIGHUP act like Ctrl-C: KeyboardInterrupt, or Ray Tune's own handling.

    SIGHUP comes when a terminal is closed; under `nohup` it stays ignored.

    This process and all its children are killed with exit code 130 at a second signal, or if the context is not left
    within `GRACE_SECONDS` of the first. Results are safe in the study's database.

    Args:
        go_on: command that continues the search, for the last message.
    """
    is_ending.clear()
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # The handler of SIGINT changes, and a Python handler waits for the main thread, which may be busy in a library. But
    # Python's own handler, in C, writes the number of every signal into this pipe.
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    old_fd = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    taken = [number for number in _AS_CTRL_C if signal.getsignal(number) != signal.SIG_IGN]
    handler = partial(_interrupt, [fd for fd in (1, 2) if os.isatty(fd)])  # once closed, it is no terminal any more
    old_handlers = {number: signal.signal(number, handler) for number in taken}
    watcher = threading.Thread(target=_watch, args=(reader, go_on), name="signals", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        for number, old_handler in old_handlers.items():
            signal.signal(number, old_handler)
        signal.set_wakeup_fd(old_fd)
        os.close(writer)
        watcher.join()
        os.close(reader)


def _interrupt(terminals: Collection[int], number: int, _: object) -> None:
    """Handle a signal as Ctrl-C. After SIGHUP what is still printed goes nowhere: a closed terminal is an error."""
    if number != signal.SIGTERM:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for fd in terminals:
            os.dup2(nowhere, fd)
        os.close(nowhere)
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a script started this with `&`
        raise KeyboardInterrupt
    signal.raise_signal(signal.SIGINT)


def _watch(reader: int, go_on: str) -> None:
    n_echoes, deadline = 0, None  # an echo: the SIGINT that the handler of the others raises
    while True:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not select.select([reader], [], [], left)[0]:
            end_at_once(f"stopped, as it had not ended within {GRACE_SECONDS:.0f} s of the signal", go_on)
        numbers = os.read(reader, 64)
        if not numbers:
            return
        for number in numbers:
            if number == signal.SIGINT and n_echoes:
                n_echoes -= 1
                continue
            if number != signal.SIGINT and number not in _AS_CTRL_C:
                continue
            n_echoes += number != signal.SIGINT
            if deadline is not None:
                end_at_once("ended at once", go_on)
            is_ending.set()
            deadline = time.monotonic() + GRACE_SECONDS


def end_at_once(how: str, go_on: str, code: int = 130, also: Iterable[psutil.Process] = ()) -> Never:
    """Kill this process, all its children and ``also``, after a last message."""
    with suppress(OSError):  # the terminal may be closed
        os.write(2, visible(f"\n{how}; finished trials are kept; continue with:  {go_on}\n").encode(errors="replace"))
    for child in {*psutil.Process().children(recursive=True), *also}:
        with suppress(psutil.Error):
            child.kill()
    os._exit(code)
