"""What a refused command must say, and that it left every file as it was."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from studies import Ran

# which images of a data set were decoded is kept, so that the check after the correction is quick
REMEMBERED = {"gone", "gone/home", "gone/home/checked-images.json", "home/checked-images.json"}
# flags with which a launch would be over in seconds, if it took what it must not take
TINY = "launch --data {data} --recipe {recipe} --space {space} --device cpu --in-process --trials 1"


NESTED = "[" * 5000


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Every path below a folder with its content; links are not followed. Of a SQLite file what is in its tables."""

    def content(path: Path) -> bytes | str | None:
        if path.is_symlink() or not path.is_file():
            return os.readlink(path) if path.is_symlink() else None
        found = path.read_bytes()
        if not found.startswith(b"SQLite format 3"):
            return found
        with closing(sqlite3.connect(path)) as database:
            return "\n".join(database.iterdump())

    return {str(path): content(path) for path in folder.rglob("*")}


def check(ran: Ran, said: tuple[str, ...], where: Mapping[str, str]) -> None:
    """One message that says what must be said, and exit code 2."""
    assert ran.code == 2, ran
    assert "Traceback" not in ran.out + ran.err
    lines = ran.err.splitlines()
    if lines[0].startswith("cst-search: "):
        assert sum(line.startswith("cst-search: ") for line in lines) == 1
    else:  # typer's, of flags that it reads by itself
        assert lines[0].startswith("Usage: ") and ran.err.count(" Error ") == 1
    for part in said:
        assert part.format(**where) in ran.message, ran.message
