"""The database of a running search vanishes, or is damaged. Nothing that was finished is lost, and nothing lies."""

from __future__ import annotations

import json
import os
import re
import shutil
import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import optuna
import pytest
import sqlalchemy
from searches import Place
from studies import fake_estimate, make_study, run_cli, run_one, scored

from cst_search.commands import launch
from cst_search.commands.options import LaunchOptions
from cst_search.errors import RunError, StudyError
from cst_search.search.session import SearchSession
from cst_search.study import launch_registry
from cst_search.study.study import Study, default_storage


@pytest.mark.parametrize("how", ["deleted with its home", "replaced"])
def test_the_file_of_the_studies_vanishes(place: Place, how: str) -> None:
    """The search ends with what it has in a copy, from which `resume` goes on; once on Ray."""
    folder = place.home / "database"
    folder.mkdir()
    place.storage = f"sqlite:///{folder / 'studies.db'}"
    workers = ["--workers", "2"] if how == "replaced" else ["--in-process"]
    with place.search(*workers, trials=12, seconds=0.4 if how == "replaced" else 0.2) as one:
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
    copy = re.search(r"continue with:  cst-search resume faults .*--storage (\S+)", one.output)
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


def test_a_study_is_deleted_while_a_launch_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As optuna-dashboard can. Whatever the launch does next is the same message, its heartbeat too."""
    faults: list[object] = []
    monkeypatch.setattr(threading, "excepthook", faults.append)
    monkeypatch.setattr(launch_registry, "BEAT_SECONDS", 0.01)
    session = make_study(tmp_path)
    session.begin_launch()
    trial = session.ask(fake_estimate)  # type: ignore[arg-type]
    assert trial is not None
    optuna.delete_study(study_name="made", storage=session.study.url)
    for step in (lambda: session.progress(trial.trial, {"epoch": 1, "loss": 1.0}), session.study.info,
                 lambda: session.tell(trial.trial, scored(0.4)), lambda: session.ask(fake_estimate),
                 session.end_launch):  # fmt: skip
        with pytest.raises(RunError, match=r"the study is not in the storage .* any more: another program"):
            step()
    assert faults == []


def test_a_storage_that_can_only_be_read(tmp_path: Path) -> None:
    """A file of another user's, a replica of PostgreSQL. A search on it does not begin; one that runs ends."""
    make_study(tmp_path)
    study = Study.open(default_storage(tmp_path), "made")
    storage = study.storage
    assert storage is not None
    session = SearchSession(study)

    def only_read(on: bool) -> None:
        storage.engine.dispose()
        act = sqlalchemy.event.listen if on else sqlalchemy.event.remove
        act(storage.engine, "connect", query_only)

    only_read(True)
    with pytest.raises(StudyError, match=r"cannot be written: attempt to write a readonly database; .* the right"):
        storage.set_study_user_attr(1, "key", "value")
    only_read(False)
    session.begin_launch()
    only_read(True)
    with pytest.raises(RunError, match=r"cannot be written: attempt to write a readonly database; .* are kept"):
        session.ask(fake_estimate)  # type: ignore[arg-type]


def test_a_report_that_cannot_be_written_can_be_later(tmp_path: Path) -> None:
    """A disk is full at the end of a search of hours, say. Here a file is in the place of the study's folder."""
    info = make_study(tmp_path).study.info()
    (tmp_path / "made").touch()
    said = rf"study made are kept, .* {tmp_path}/made: File exists; .*  cst-search sync made --home {tmp_path}$"
    with pytest.raises(RunError, match=said):
        launch._write_report(info, LaunchOptions(home=tmp_path))


def query_only(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA query_only = ON")


# table, key, its value, what the message says; `made` is the study, and has one trial
DAMAGE = [
    ("study", "cst_study", "null", "cst_study is damaged: it must be an object, and is null"),
    ("study", "cst_study", '["spec"]', 'cst_study is damaged: it must be an object, and is ["spec"]'),
    ("study", "cst_study", '{"format": 3, "version": "1"}', "cst_study is damaged, as it has no 'started'"),
    ("study", "cst_study", "{broken", "is damaged: it is not JSON"),
    ("study", "cst_study", '{"format": 99}', "was written by cst-search of a later version, which is newer; update"),
    ("study", "cst_study", '{"format": "3"}', "'format' of cst_study is damaged: it must be a whole number"),
    ("spec", "objectives", '["map", "beauty"]', "the spec in cst_study is damaged, with: 'beauty'"),
    ("spec", "budget", '{"memory_bytes": "6GB"}', "'memory_bytes' of the budget is damaged: it must be a number"),
    ("spec", "budget", '{"pages": 3}', "the spec in cst_study is damaged, with: 'pages'"),
    ("spec", "recipe", '{"search_epochs": []}', "'search_epochs' of the recipe is damaged"),
    ("spec", "space", "{}", "space of study 'made': `methods` must be a list"),
    ("study", "cst_launch:%", "null", "is damaged: it must be an object, and is null"),
    ("study", "cst_launch:%", '{"host": "here"}', "is damaged, as it has no 'pid'"),
    ("trial", "cst_suggested", "[1]", "trial 0: cst_suggested is damaged: it must be an object, and is [1]"),
    ("trial", "cst_suggested", "{}", "trial 0: cst_suggested is damaged, as it has no 'config'"),
    ("trial", "cst_suggested", '{"config": {}, "estimate": {}, "launch": "a"}', "of cst_suggested is damaged, as"),
    ("trial", "cst_result", "{broken", "cst_result of the trial with id 1 is damaged: '{broken' is not JSON"),
    ("trial", "cst_result", '{"state": "lost"}', "trial 0: cst_result is damaged: there is no state 'lost'"),
    ("trial", "cst_result", '{"state": "complete", "map": "high"}', "'map' of cst_result is damaged: it must be"),
    ("trial", "cst_result", '{"state": "failed", "history": [{"epoch": 1, "loss": "low"}]}', "'loss' of an epoch of"),
]  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with the studies `made` and `other`, of one trial each."""
    home = tmp_path_factory.mktemp("sound")
    for name in ("made", "other"):
        session = make_study(home, name)
        session.begin_launch()
        session.describe_launch({"trials": 1})
        run_one(session, scored(0.5), cst__reduction=4, batch_size=2, lr=0.01)
        session.end_launch()
        assert session.study.storage is not None
        session.study.storage.engine.dispose()
    return home / "studies.db"


@pytest.mark.parametrize(("where", "key", "value", "said"), DAMAGE, ids=[f"{row[1]} {row[2]}" for row in DAMAGE])
def test_a_damaged_study_is_one_message_and_the_others_are_listed(
    sound: Path, tmp_path: Path, where: str, key: str, value: str, said: str
) -> None:
    shutil.copy(sound, tmp_path)
    with closing(sqlite3.connect(tmp_path / "studies.db")) as database, database:
        if where == "spec":
            (text,) = database.execute(
                "SELECT value_json FROM study_user_attributes WHERE key = 'cst_study'"
            ).fetchone()
            stamp = json.loads(text)
            stamp["spec"][key] = json.loads(value)
            where, key, value = "study", "cst_study", json.dumps(stamp)
        change = f"UPDATE {where}_user_attributes SET value_json = ? WHERE key LIKE ? AND {where}_id = 1"
        assert database.execute(change, (value, key)).rowcount == 1
    for command in (["status", "made"], ["resume", "made", "--in-process"], ["list"]):
        ran = run_cli(*command, "--home", tmp_path)
        assert (ran.code, ran.err.count("study 'made'")) == (2, 1), (command, ran)
        assert said in ran.message, command
    assert "other" in ran.out
    listed = json.loads(run_cli("list", "--json", "--home", tmp_path).out)
    assert [one["study"] for one in listed] == ["other", "made"] and said.split(": ")[-1] in listed[1]["error"]
