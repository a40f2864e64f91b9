"""Lines that a command prints while it works."""

from __future__ import annotations

from collections.abc import Callable

from rich.console import Console

Say = Callable[[str], None]


def line_printer(console: Console) -> Say:
    """Return a function that prints one line as it is: no markup, no highlighting, no wrapping."""

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    return say
