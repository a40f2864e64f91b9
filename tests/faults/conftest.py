"""What the fault tests share."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from place import Place

from cst_search.config import write_yaml
from cst_search.recipe import Recipe
from cst_search.record import default_tracking_uri


@pytest.fixture(scope="session")
def flags(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]
) -> Callable[..., list[str]]:
    """``flags(home, **changes of the recipe)`` -> a search of head and lr on the tiny data set: nothing to trace."""
    folder = tmp_path_factory.mktemp("faults")

    def make(home: Path, data: Path | None = None, lr: tuple[float, float] = (1e-3, 2e-2), **changes: Any) -> list[str]:
        shared = {"lr": {"float": list(lr), "log": True}, "batch_size": {"choice": [2, 4]}}
        recipe = tiny_recipe(**({"method": "head", "search_epochs": 2} | changes))
        space = folder / f"space-{recipe.method}-{lr[0]}.yaml"
        write_yaml(space, {"methods": [recipe.method], "shared": shared}, "test")
        path = folder / "-".join(["recipe", *(f"{key}{value}" for key, value in changes.items())])
        write_yaml(path, recipe.to_dict(), "test")
        return ["--data", str(data or tiny_folder), "--recipe", str(path), "--space", str(space),
                "--home", str(home), "--device", "cpu"]  # fmt: skip

    return make


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database: to make one takes seconds."""
    home = tmp_path_factory.mktemp("tables")
    MlflowClient(default_tracking_uri(home)).search_experiments()
    return home / "mlflow.db"


@pytest.fixture
def place(tmp_path: Path, flags: Callable[..., list[str]], tables: Path) -> Place:
    shutil.copy(tables, tmp_path)
    return Place(tmp_path, flags)
