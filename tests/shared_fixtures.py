"""What several tests share: databases, servers and searches. What trials need is in trial_fixtures.py."""

from __future__ import annotations

import shutil
import sqlite3
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import postgres as postgres_of_tests
import pytest
import sqlalchemy
from mlflow import MlflowClient
from mlflow.store.db import utils as mlflow_databases
from searches import Place

from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.tracking.connection import default_tracking_uri


@pytest.fixture(scope="session")
def postgres() -> Iterator[postgres_of_tests.Server]:
    """A PostgreSQL server; tests that need it are skipped where it is not installed."""
    if postgres_of_tests.find_binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres_of_tests.server() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def storage_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A new, empty storage, in each kind of database."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'studies.db'}"
    server = request.getfixturevalue("postgres")
    return str(server.database(f"test-{uuid.uuid4().hex[:8]}"))


# --- searches in processes of their own -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def fault_flags(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]
) -> Callable[..., list[str]]:
    """``fault_flags(home, **changes of the recipe)`` -> a search on the tiny data set with nothing to trace."""
    folder = tmp_path_factory.mktemp("faults")

    def make(home: Path, data: Path | None = None, lr: tuple[float, float] = (1e-3, 2e-2), **changes: Any) -> list[str]:
        shared = {"lr": {"float": list(lr), "log": True}, "batch_size": {"choice": [2, 4]}}
        recipe = tiny_recipe(**({"method": "head", "search_epochs": 2} | changes))
        space = folder / f"space-{recipe.method}-{lr[0]}.yaml"
        write_yaml(space, {"methods": [recipe.method], "shared": shared}, "test")
        path = folder / "-".join(["recipe", *(f"{key}{value}" for key, value in changes.items())])
        write_yaml(path, recipe.to_dict(), "test")
        return ["--data", str(data or tiny_folder), "--recipe", str(path), "--space", str(space),
                "--home", str(home), "--device", "cpu", "--sampler", "random"]  # fmt: skip

    return make


@pytest.fixture(scope="session", autouse=True)
def _new_mlflow_databases_are_copies(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """MLflow takes a new database through all its former versions, which takes a second: the first one is copied."""
    make, model = mlflow_databases._initialize_tables, tmp_path_factory.mktemp("tables") / "model.db"

    def copy(engine: sqlalchemy.Engine) -> None:
        path = engine.url.database
        if engine.dialect.name != "sqlite" or path in (None, "", ":memory:"):
            make(engine)
            return
        if not model.exists():
            make(sqlalchemy.create_engine(f"sqlite:///{model}"))
        with closing(sqlite3.connect(model)) as source, closing(sqlite3.connect(path)) as target:
            source.backup(target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mlflow_databases, "_initialize_tables", copy)
        yield


@pytest.fixture(scope="session")
def mlflow_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database, for processes that would make their own."""
    home = tmp_path_factory.mktemp("tables")
    MlflowClient(default_tracking_uri(home)).search_experiments()
    return home / "mlflow.db"


@pytest.fixture
def traps(tmp_path: Path) -> tuple[Path, Path]:
    """A folder of modules with the names of libraries, and the file that one of them writes when it is imported."""
    folder, sprung = tmp_path / "traps", tmp_path / "sprung"
    folder.mkdir()
    for name in ("torch", "numpy", "PIL", "pycocotools", "cst_search", "sqlalchemy"):
        (folder / f"{name}.py").write_text(f"open({str(sprung)!r}, 'a').write(__name__)\nraise ImportError(__file__)\n")
    return folder, sprung


@pytest.fixture
def place(tmp_path: Path, fault_flags: Callable[..., list[str]], mlflow_tables: Path) -> Place:
    shutil.copy(mlflow_tables, tmp_path)
    return Place(tmp_path, fault_flags)
