"""The SQLite file of a launch is deleted or replaced: its storage goes on with a copy."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from pathlib import Path

import pytest
from studies import make_study, run_one, scored

from cst_search.errors import RunError
from cst_search.study import fast_reads, launch_registry
from cst_search.study.study import Study

BEST = {"cst__reduction": 4, "batch_size": 2, "lr": 0.01}


@pytest.mark.parametrize("log_is_ahead", [True, False])
def test_what_was_asked_for_before_is_told_to_the_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_is_ahead: bool
) -> None:
    """Another study of the same launch goes on with the same copy; in the end it is one plain file."""
    if not log_is_ahead:  # as on a network; SQLite then refuses to write
        monkeypatch.setattr(fast_reads, "_is_local", lambda path: False)
    home = tmp_path / "home"
    one, other = make_study(home), make_study(home, "other")
    said: list[str] = []
    for session in (one, other):
        session.begin_launch()
        assert session.study.storage is not None
        session.study.storage.say = said.append
    run_one(one, scored(0.5), **BEST)
    shutil.rmtree(home)
    for session in (one, other):
        run_one(session, scored(0.6), **(BEST | {"lr": 0.005}))
    for session in (one, other):
        session.end_launch()
    copy = home / f"studies-rescued-{os.getpid()}.db"
    assert said == [f"the storage sqlite:///{home / 'studies.db'} was deleted; all that was in it is in {copy}, "
                    f"and so is what still ends"]  # fmt: skip
    assert one.study.rescued_url() == other.study.rescued_url() == f"sqlite:///{copy}"
    assert [path.name for path in home.iterdir() if "lock" not in path.name] == [copy.name]
    assert [record.map for record in Study.open(f"sqlite:///{copy}", "made").info().trials] == [0.5, 0.6]
    assert [record.map for record in Study.open(f"sqlite:///{copy}", "other").info().trials] == [0.6]


def test_a_sign_of_life_notices_it_and_the_new_file_is_left_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_registry, "BEAT_SECONDS", 0.01)
    session = make_study(tmp_path)
    session.begin_launch()
    with closing(sqlite3.connect(tmp_path / "new.db")) as new:
        new.execute("CREATE TABLE theirs (text)")
    os.replace(tmp_path / "new.db", tmp_path / "studies.db")
    deadline = time.monotonic() + 10
    while session.study.rescued_url() is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    session.end_launch()
    with closing(sqlite3.connect(tmp_path / "studies.db")) as new:
        assert [name for (name,) in new.execute("SELECT name FROM sqlite_master")] == ["theirs"]
        assert new.execute("PRAGMA journal_mode").fetchone() == ("delete",)  # no log of the other file is beside it


@pytest.mark.parametrize(
    ("why", "content", "said"),
    [("another program's", b"", "no such table"), ("no database", b"written over it " * 999, "not a database")],
)
def test_a_file_that_is_written_over_is_one_message(tmp_path: Path, why: str, content: bytes, said: str) -> None:
    """As by `cp`: it is the same file, of which nothing is left to copy."""
    session = make_study(tmp_path)
    run_one(session, scored(0.5), **BEST)
    assert session.study.storage is not None
    session.study.storage.engine.dispose()
    (tmp_path / "studies.db").write_bytes(content)
    with pytest.raises(RunError, match=rf"is damaged, or another program has written into its file: .*{said}"):
        session.study.info()


def test_a_copy_that_cannot_be_made_beside_it_is_made_elsewhere_or_ends_the_search(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, elsewhere = tmp_path / "home", tmp_path / "elsewhere"
    elsewhere.mkdir()
    session = make_study(home)
    session.begin_launch()
    shutil.rmtree(home)
    home.write_text("a file in its place")
    monkeypatch.setattr(tempfile, "tempdir", str(home))
    with pytest.raises(RunError, match=r"studies\.db, was deleted, and it cannot be copied: .*make room"):
        session.study.info()
    monkeypatch.setattr(tempfile, "tempdir", str(elsewhere))
    session.end_launch()
    assert session.study.rescued_url() == f"sqlite:///{elsewhere / f'studies-rescued-{os.getpid()}.db'}"
