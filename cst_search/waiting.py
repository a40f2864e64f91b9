"""Lines that say what a command waits for, so that nobody takes a busy machine for a program that hangs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import TracebackType

from cst_search.cores import busy_words
from cst_search.units import format_seconds

SAY_SECONDS = 10.0  # until the first line; each next one comes after twice the time
_LOOK_SECONDS = 0.2


class Waiting:
    """Context that says what this process waits for, from some seconds on, and whether the machine is busy.

    Args:
        what: what is waited for, e.g. ``Ray to start``.
        say: prints a line; called from another thread.
        remedy: what the user can do if the machine is not busy.
        is_here: True if the wait is for something on this machine, so that its load matters.
    """

    def __init__(self, what: str, say: Callable[[str], None], remedy: str = "", *, is_here: bool = True) -> None:
        self._what, self._say, self._remedy, self._is_here = what, say, remedy, is_here
        self._only_if_busy = False
        self._begun, self._next = time.monotonic(), SAY_SECONDS
        self._over = threading.Event()
        self._lock = threading.Lock()  # a line is not printed after what it waits for has come
        self._thread = threading.Thread(target=self._tell, name="waiting", daemon=True)

    def __enter__(self) -> Waiting:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, traceback: TracebackType | None) -> None:
        self.over()

    def now_for(self, what: str, *, only_if_busy: bool = False) -> None:
        """Wait for something else from now on.

        Args:
            only_if_busy: say nothing on a machine that is not busy: what is waited for may well take long.
        """
        with self._lock:
            self._what, self._only_if_busy = what, only_if_busy
            self._begun, self._next = time.monotonic(), SAY_SECONDS

    def over(self) -> None:
        """Say no more: what was waited for is there."""
        with self._lock:
            self._over.set()

    def _tell(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            with self._lock:
                waited = time.monotonic() - self._begun
                if waited < self._next or self._over.is_set():
                    continue
                self._next *= 2
                busy = busy_words() if self._is_here else ""
                if busy or not self._only_if_busy:
                    self._say(self._line(waited, busy))

    def _line(self, waited: float, busy: str) -> str:
        line = f"waiting for {self._what}, {format_seconds(waited)} so far"
        if busy:
            return f"{line}: this machine is busy ({busy}); it goes on by itself, and Ctrl-C ends it"
        return f"{line}; {self._remedy or 'Ctrl-C ends it'}"
