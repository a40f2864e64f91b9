"""URLs of databases: any path, and no database for two."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from studies import make_study, run_cli

from cst_search.errors import ConfigError
from cst_search.study import database_urls
from cst_search.study.database_urls import check_apart, sqlite_file, sqlite_url
from cst_search.study.study import default_storage
from cst_search.tracking.connection import default_tracking_uri, open_experiment


def test_a_home_may_have_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Studies and MLflow each write into their own file there, and nowhere else."""
    monkeypatch.chdir(tmp_path)
    home = tmp_path / "a?b #c%41 d'\u00e9\""
    make_study(home, "one")
    client, experiment = open_experiment(default_tracking_uri(home), "one #%41?", home / "artifacts")
    run = client.create_run(experiment).info.run_id
    client.log_text(run, "text", "note.txt")
    assert [found.path for found in client.list_artifacts(run)] == ["note.txt"]
    assert os.listdir(tmp_path) == [home.name]
    assert sorted(os.listdir(home)) == ["artifacts", "mlflow.db", "studies.db", "studies.db.lock"]
    ran = run_cli("list", "--home", home)
    assert ran.code == 0 and "one" in ran.out


def test_usual_urls_are_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    assert default_storage(Path("/h o/\u00e9#1")) == "sqlite:////h o/\u00e9#1/studies.db"
    assert sqlite_file("sqlite:///a/b.db") == Path("a/b.db")
    assert [sqlite_file(url) for url in ("sqlite://", "sqlite:///:memory:", "postgresql://h/x")] == [None] * 3
    monkeypatch.setattr(database_urls.sqlalchemy, "make_url", lambda url: database_urls.sqlalchemy.URL.create(
        "sqlite", database=url.partition(":///")[2]))  # fmt: skip
    with pytest.raises(ConfigError, match="use another folder"):
        sqlite_url(Path("/a?b.db"))


@pytest.mark.parametrize(
    ("why", "storage", "uri", "apart"),
    [
        ("the same text", "sqlite:////h/x.db", "sqlite:////h/x.db", False),
        ("through another folder", "sqlite:////h/x.db", "sqlite:////h/i/../x.db", False),
        ("another driver", "sqlite:////h/x.db", "sqlite+pysqlite:////h/x.db", False),
        ("another user", "postgresql://a:p@h/x", "postgresql+psycopg://b@h:5432/x", False),
        ("two files", "sqlite:////h/x.db", "sqlite:////h/y.db", True),
        ("two databases", "postgresql://h/x", "postgresql://h/y", True),
        ("two servers", "postgresql://h/x", "postgresql://h:5433/x", True),
        ("two schemas", "postgresql://h/x", "postgresql://h/x?options=-csearch_path%3Dm", True),
        ("a server of MLflow", "sqlite:////h/x.db", "http://h:5000", True),
    ],
)
def test_studies_and_mlflow_do_not_share_a_database(why: str, storage: str, uri: str, apart: bool) -> None:
    if apart:
        check_apart(storage, uri)
        return
    with pytest.raises(ConfigError, match=r"databases of their own.*give another --storage"):
        check_apart(storage, uri)


@pytest.mark.parametrize(
    "command", ["launch", "confirm one", "sync one", "train recipe.yaml --out out", "doctor --no-ray"],
)  # fmt: skip
def test_every_command_refuses_one_database_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_study(tmp_path, "one")
    (tmp_path / "recipe.yaml").write_text("data: /nowhere\n")
    (tmp_path / "link.db").symlink_to(tmp_path / "studies.db")
    ran = run_cli(*command.split(), "--home", tmp_path, "--tracking-uri", "sqlite:///link.db")
    assert ran.code == (1 if "doctor" in command else 2) and "databases of their own" in ran.message + ran.out, ran
