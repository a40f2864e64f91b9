"""The console that all output for people goes through: tables, lines, messages, live progress."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.text import Text

from cst_search.visible import visible


class PlainConsole(Console):
    """A console that shows text as it is: no markup, and nothing in it steers the terminal (`visible`)."""

    def __init__(self, **options: Any) -> None:
        super().__init__(markup=False, emoji=False, **options)

    def render_str(self, text: str, **options: Any) -> Text:
        """Return the text of a string: a line, a cell, a title."""
        return super().render_str(visible(text), **options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Return the segments of anything; what a table holds comes here cell by cell."""
        if isinstance(renderable, Text) and (shown := visible(renderable.plain)) != renderable.plain:
            renderable = Text(shown, renderable.style, justify=renderable.justify, overflow=renderable.overflow)
        return super().render(renderable, options)
