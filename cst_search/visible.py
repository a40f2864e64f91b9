"""Make text that somebody else wrote safe to print: terminal control characters are escaped.

Standard library only. A study's name, a reason or a configuration may come from a database that others write to.
"""

from __future__ import annotations

import re

# control characters but tab and newline, marks of direction (bidi), further ends of lines, and halves of characters,
# which stand for the bytes of a file name that is no text
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2060-\u2069\ufeff\ud800-\udfff]")


_LINE = re.compile("[\t\n]")


def visible(text: str) -> str:
    """Return text with escapes in place of characters that move, hide or reorder others: ESC becomes ``\\x1b``."""
    return _STEERING.sub(_escaped, text)


def in_line(text: str) -> str:
    """Return `visible` text that is a part of a line, such as a name: an end of line in it is shown as ``\\n``."""
    return _LINE.sub(_escaped, visible(text))


def _escaped(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode()
