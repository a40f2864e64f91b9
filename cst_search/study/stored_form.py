"""Check what a study has stored: another program, a person or a failing disk may have changed it."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import NoneType
from typing import Any

from cst_search.errors import StudyError

NUMBER = (int, float)
NUMBER_OR_NONE = (int, float, NoneType)
_WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", NUMBER: "a number",
          NUMBER_OR_NONE: "a number or null", (str, NoneType): "a text or null", (dict, NoneType): "an object or null",
          (list, NoneType): "a list or null"}  # fmt: skip


class DamagedError(StudyError):
    """A stored value no longer has the form in which it was written."""


@contextmanager
def read_of(what: str) -> Iterator[None]:
    """Context that adds to a `DamagedError` whose stored values were read, e.g. ``study 'first'``, and what to do."""
    try:
        yield
    except DamagedError as error:
        raise DamagedError(f"{what}: {error}; restore the database from a copy, or search anew") from None


def check_object(value: Any, name: str, **kinds: Any) -> dict[str, Any]:
    """Return a stored JSON object that has these keys, with values of these types. Raises DamagedError."""
    check_kind(value, name, dict)
    for key, kind in kinds.items():
        if key not in value:
            raise DamagedError(f"{name} is damaged, as it has no {key!r}")
        if not isinstance(value[key], kind):
            check_kind(value[key], f"{key!r} of {name}", kind)
    return dict(value)


def check_optional(value: Mapping[str, Any], name: str, kinds: Mapping[str, Any]) -> None:
    """Check the types of those keys of an object that it has. Raises DamagedError."""
    for key, kind in kinds.items():
        if key in value and not isinstance(value[key], kind):
            check_kind(value[key], f"{key!r} of {name}", kind)


def check_kind(value: Any, name: str, kind: Any) -> None:
    """Raise DamagedError unless a value is of a type, or of one of several."""
    if not isinstance(value, kind):
        raise DamagedError(f"{name} is damaged: it must be {_WORDS[kind]}, and is {json.dumps(value)[:60]}")
