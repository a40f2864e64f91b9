"""Fixtures for launches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launches import SPACE

from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe


@pytest.fixture(scope="module")
def base(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]
) -> Callable[..., list[str]]:
    """``base(home, space="wide", **changes of the recipe)`` -> the flags of a search on the tiny data set."""
    folder = tmp_path_factory.mktemp("launch")
    write_yaml(folder / "wide.yaml", SPACE, "test")
    # every structure that the survey before a search meets costs a trace
    write_yaml(folder / "lr.yaml", {"methods": ["head"], "shared": {"lr": SPACE["shared"]["lr"]}}, "test")

    def flags(home: Path, space: str = "wide", **changes: Any) -> list[str]:
        recipe = folder / "-".join(["recipe", *map(str, changes.values())])
        write_yaml(recipe, tiny_recipe(**changes).to_dict(), "test")
        return ["--data", str(tiny_folder), "--recipe", str(recipe), "--space", str(folder / f"{space}.yaml"),
                "--home", str(home), "--device", "cpu"]  # fmt: skip

    return flags
