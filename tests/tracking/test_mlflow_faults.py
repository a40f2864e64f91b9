"""Where MLflow cannot be reached, or its database is not whole: one warning, and the search goes on."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import postgres as postgres_of_tests
import pytest
from mlflow import MlflowClient
from mlflow_runs import SETTINGS, on_front, runs, tagged
from studies import make_study, open_session, run_cli, run_one, scored

from cst_search.commands.search_loop import follow
from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.search.session import SearchSession
from cst_search.tracking import connection
from cst_search.tracking.connection import CallQueue, default_tracking_uri
from cst_search.tracking.mlflow_record import MlflowRecord

pytestmark = pytest.mark.usefixtures("at_once")


def test_a_deleted_experiment_is_one_warning(session: SearchSession, record: Any, uri: str) -> None:
    record(session)
    client = MlflowClient(uri)
    client.delete_experiment(client.get_experiment_by_name(session.study.name).experiment_id)  # type: ignore[union-attr]
    (warning,) = record(session)
    assert "was deleted in MLflow; restore it there" in warning


def test_a_database_appears_whole_or_not_at_all(
    session: SearchSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch that was killed while MLflow made its tables left a file that MLflow never took again."""
    path = tmp_path / "new" / "mlflow.db"
    seen: list[bool] = []
    original = MlflowClient.search_experiments

    def look(self: MlflowClient, *arguments: Any, **options: Any) -> Any:
        found = original(self, *arguments, **options)
        seen.append(path.exists())
        return found

    monkeypatch.setattr(MlflowClient, "search_experiments", look)
    mirror = MlflowRecord(f"sqlite:///{path}", tmp_path / "artifacts", warn=pytest.fail)
    mirror.sync(session.study.info())
    assert mirror.close()
    assert seen == [False]
    assert [file.name for file in path.parent.iterdir()] == ["mlflow.db"]
    assert tagged(f"sqlite:///{path}", session) == on_front(session)


def test_what_a_killed_launch_left_of_a_database_is_removed(tmp_path: Path) -> None:
    home, hour = socket.gethostname(), 3600
    left = {f"{home}-4194305-1": 0, "4194305-1": 2 * hour, "elsewhere-1-1": 2 * hour}  # name -> seconds since
    kept = {f"{home}-{os.getpid()}-1": 2 * hour, "elsewhere-1-2": 0}
    for name, age in (left | kept).items():
        part = tmp_path / f"mlflow.db.{name}.part"
        part.touch()
        os.utime(part, (time.time() - age,) * 2)
    (tmp_path / f"mlflow.db.{home}-4194305-1.part-journal").touch()
    (tmp_path / "mlflow.db").touch()
    connection._make_database(default_tracking_uri(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", *(f"mlflow.db.{name}.part" for name in kept)}


def test_a_close_that_runs_out_of_time_says_how_to_deliver_the_rest() -> None:
    """And what MLflow logs of its own, SQL and tracebacks, is not printed."""
    said: list[str] = []
    go = threading.Event()
    calls = CallQueue("http://nowhere", said.append)
    calls.studies |= {"made", "of mine"}
    calls.put(lambda: bool(go.wait(30)))
    assert not calls.close(0.05)
    go.set()
    assert said == ["MLflow has not taken everything within 0 s; the rest is delivered by:  "
                    "cst-search sync made 'of mine'"]  # fmt: skip
    assert not logging.getLogger("mlflow.store.db.utils").isEnabledFor(logging.ERROR)


# --- a server that is not there -------------------------------------------------------------------------------------

SECRET = "hunter2"


@pytest.mark.parametrize(
    "address", [f"http://me:{SECRET}@127.0.0.1:9", f"http://me:{SECRET}@127.0.0.1:9/", f"nosuch://me:{SECRET}@host"]
)
def test_a_fault_is_one_line_without_the_password(
    session: SearchSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    warnings: list[str] = []
    mirror = MlflowRecord(address, tmp_path / "artifacts", warn=warnings.append)
    mirror.start(session.study.info(), session.describe_launch(SETTINGS))
    for _ in range(3):
        mirror.sync(session.study.info())
    assert not mirror.close()
    (warning,) = warnings
    assert "MLflow did not take a record" in warning and "the study keeps it" in warning
    assert SECRET not in warning and "\n" not in warning


def test_a_launch_ends_well_without_its_server_and_the_next_one_delivers(
    tmp_path: Path, tiny_folder: Path, tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    home = tmp_path / "home"
    write_yaml(tmp_path / "recipe.yaml", tiny_recipe(method="head").to_dict(), "test")
    write_yaml(
        tmp_path / "space.yaml", {"methods": ["head"], "shared": {"lr": {"float": [1e-3, 1e-2], "log": True}}}, "test"
    )
    command = ["launch", "--in-process", "--data", tiny_folder, "--recipe", tmp_path / "recipe.yaml", "--space",
               tmp_path / "space.yaml", "--study", "lonely", "--home", home]  # fmt: skip
    ran = run_cli(*command, "--trials", 2, "--tracking-uri", f"http://me:{SECRET}@127.0.0.1:9")
    assert ran.code == 0
    assert ran.out.count("MLflow did not take a record") == 1
    assert "http://me:***@127.0.0.1:9" in ran.out
    session = open_session(f"sqlite:///{home / 'studies.db'}", "lonely")
    assert session.study.info().counts()["complete"] == 2
    assert (home / "lonely" / "front.json").exists()
    for path in home.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in ran.out + ran.err

    ran = run_cli(*command, "--trials", 3, "--tracking-uri", uri)
    assert (ran.code, "did not take" in ran.out) == (0, False)
    assert [int(run.data.tags["cst.trial"]) for run in runs(uri, session)] == [0, 1, 2]
    assert tagged(uri, session) == on_front(session)
    assert (home / "artifacts" / "lonely").is_dir()  # a bare database: not into ./mlruns of the current folder


def test_concurrent_launches_record_each_trial_once(uri: str, tmp_path: Path, request: Any) -> None:
    """Two at work bring their own, each told of both; one dies without, and the other brings the rest at its end."""
    first = make_study(tmp_path, request.node.name)
    first.begin_launch(shares_machine=True)
    second = open_session(first.study.url, first.study.name)
    second.begin_launch(shares_machine=True)
    warnings: list[str] = []
    mirrors = [MlflowRecord(uri, tmp_path / "artifacts", warn=warnings.append) for _ in range(2)]
    for session, mirror in zip((first, second), mirrors, strict=True):
        mirror.start(session.study.info(), session.describe_launch(SETTINGS))
    reports = [follow(session.study, mirror) for session, mirror in zip((first, second), mirrors, strict=True)]
    for turn in range(4):
        run_one((first, second)[turn % 2], scored(0.1 * turn))
        for session in (first, second):
            session.study.info()  # reads of the other's
        for report in reports:
            report()
    mirrors[0].sync(first.study.info())
    silent = run_one(second, scored(0.9))  # of which its mirror is not told
    second.end_launch()
    mirrors[1].close()
    assert not warnings
    info = first.study.info()
    mirrors[0].sync(info)
    mirrors[0].finish(first.study.info(), {}, "FINISHED")
    assert mirrors[0].close()
    found = {int(run.data.tags["cst.trial"]): run for run in runs(uri, first)}
    wanted = [r.trial for r in info.trials if r.state not in ("running", "interrupted")]
    assert len(runs(uri, first)) == len(found) and sorted(found) == wanted and silent.trial in found
    parents = {run.data.tags["cst.launch"]: run.info.run_id for run in runs(uri, first, "launch")}
    assert len(parents) == 2
    for record in info.trials:
        assert found[record.trial].data.tags["mlflow.parentRunId"] == parents[record.launch or ""]


def test_mlflow_in_postgresql(session: SearchSession, record: Any, postgres: Any, tmp_path: Path) -> None:
    """Without a server between: all of it, again and again; the password stays in the address."""
    uri = str(postgres.database("mlflow"))
    (tmp_path / "report.txt").write_text("the front")
    mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=pytest.fail)
    launch = session.describe_launch(SETTINGS)
    for _ in range(2):
        mirror.start(session.study.info(), launch)
        mirror.sync(session.study.info())
        mirror.finish(session.study.info(), {"pareto": [tmp_path / "report.txt"]}, "FINISHED")
    assert mirror.close()
    children, (parent,) = runs(uri, session), runs(uri, session, "launch")
    assert len(children) == len([r for r in session.study.info().trials if r.state != "running"])
    assert tagged(uri, session) == on_front(session)
    assert (tmp_path / "artifacts" / session.study.name / parent.info.run_id / "artifacts/pareto/report.txt").is_file()
    everything = str([run.to_dictionary() for run in (*children, parent)])
    assert postgres_of_tests.PASSWORD not in everything and parent.info.status == "FINISHED"
