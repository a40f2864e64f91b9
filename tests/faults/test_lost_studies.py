"""The database of a running search vanishes, or is damaged. Nothing that was finished is lost, and nothing lies."""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing

import pytest
from searches import Place


@pytest.mark.parametrize("how", ["deleted with its home", "replaced"])
def test_the_file_of_the_studies_vanishes(place: Place, how: str) -> None:
    """The search ends with what it has in a copy, from which `resume` goes on."""
    folder = place.home / "database"
    folder.mkdir()
    place.storage = f"sqlite:///{folder / 'studies.db'}"
    with place.search("--in-process", trials=12, seconds=0.2) as one:
        one.until(lambda: len(place.finished()) >= 2)
        before = place.finished()
        if how != "replaced":
            for path in place.home.iterdir():
                if path.name != "notes.jsonl":  # which made-up trials write
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        else:
            with closing(sqlite3.connect(folder / "other.db")) as other:
                other.execute("CREATE TABLE other (text)")
            os.replace(folder / "other.db", folder / "studies.db")
        assert one.wait(60) == 1, one.output
    copy = re.search(r"go on with:  cst-search resume faults .*--storage (\S+)", one.output)
    assert copy is not None, one.output
    if how == "replaced":
        with closing(sqlite3.connect(folder / "studies.db")) as other:  # it is left alone
            assert [name for (name,) in other.execute("SELECT name FROM sqlite_master")] == ["other"]
    place.storage = copy.group(1)
    at_the_end = place.finished()
    assert before.items() <= at_the_end.items() and len(before) < len(at_the_end) < 12
    if how == "replaced":
        return
    place.run("--in-process", trials=12, command="resume")
    place.check(12, at_the_end)
