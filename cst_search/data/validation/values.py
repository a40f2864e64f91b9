"""Values of a JSON document: whole numbers, finite numbers and texts, also where a number is written as text."""

from __future__ import annotations

import json
import math
import re
from typing import Any

_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_SHOWN_CHARS = 60


def whole(value: Any) -> int | None:
    """Return a whole number as int (640, 640.0 and "640" -> 640), or None for anything else and beyond 64 bits."""
    if type(value) is int and -(2**63) < value < 2**63:  # nearly all
        return value
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,19}\s*", value, re.ASCII):
        value = int(value)  # a float would lose digits of large ids
    number = value if isinstance(value, int) and not isinstance(value, bool) else finite(value)
    if number is None or not abs(number) < 2**63:
        return None
    return int(number) if isinstance(number, int) or number.is_integer() else None


def finite(value: Any) -> float | None:
    """Return a finite number, also one written as text ("12.5"), or None for anything else."""
    if type(value) is float:  # nearly all
        return value if math.isfinite(value) else None
    if isinstance(value, str) and len(value) <= 40 and _NUMBER.fullmatch(value):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON integers have any length
        return None


def is_text(value: Any) -> bool:
    """Return True for text that is not blank and that a file name and a terminal accept.

    JSON may escape a lone surrogate, which neither does.
    """
    return isinstance(value, str) and bool(value.strip()) and not any("\ud800" <= c <= "\udfff" for c in value)


def shown(value: Any) -> str:
    """Return a value as JSON writes it, at most `_SHOWN_CHARS` long, for messages."""
    try:
        text = json.dumps(value)
    except (ValueError, RecursionError):  # nested too deeply, or an integer of more digits than Python prints
        text = f"a {type(value).__name__}"
    return text if len(text) <= _SHOWN_CHARS else text[: _SHOWN_CHARS - 3] + "..."
