"""Fixtures for commands that must be refused."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import Ran, make_study, run_cli, run_one, scored
from wrong_commands import tree

from cst_search.commands import train as training
from cst_search.commands.dataset import dataset_inputs
from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.detector.build import build_detector
from cst_search.detector.weights import save_trained
from cst_search.execution.ray_tune import Ray
from cst_search.execution.workers import InProcess


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_recipe: Callable[..., Recipe],
    tiny_data: DetectionData,
) -> Mapping[str, str]:  # fmt: skip
    """What is sound, for the commands to name. All rows share it, as none may change it."""
    folder = tmp_path_factory.mktemp("sound")
    recipe = tiny_recipe(method="head", data=str(folder / "data"))
    write_yaml(folder / "recipe.yaml", recipe.to_dict(), "test")
    write_yaml(folder / "space.yaml", {"methods": ["head"], "shared": {"lr": {"float": [1e-3, 1e-2]}}}, "test")
    shutil.copytree(tiny_folder, folder / "data")
    (folder / "home").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("kept")
    made = {"recipe": recipe.to_dict(), "data": str(folder / "data"), "inputs": dataset_inputs(tiny_data)}
    session = make_study(folder / "home", **made)
    session.begin_launch()
    run_one(session, scored(0.5, device_bytes=400), cst__reduction=4, batch_size=2, lr=0.01)
    session.end_launch()
    make_study(folder / "home", "empty", **made)
    with torch.random.fork_rng():
        save_trained(build_detector(recipe, 3), recipe, ("a", "b", "c"), folder / "weights.safetensors")
    shutil.copy(folder / "data" / "val" / "0.png", folder / "image.png")
    names = {"data": "data", "recipe": "recipe.yaml", "space": "space.yaml", "home": "home", "full": "full",
             "file": "full/file", "trained": "weights.safetensors", "image": "image.png"}  # fmt: skip
    return {name: str(folder / path) for name, path in names.items()} | {"sound": str(folder)}


@pytest.fixture
def run(
    places: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Ran, set[str]]]:
    """``run(command, files)`` -> what the command line did, and the paths that it made or changed.

    ``files`` lie in {tmp}, the working folder; {gone} is not there; without --home everything would go to {gone}/home.
    """
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("CST_SEARCH_HOME", str(tmp_path / "gone" / "home"))
    monkeypatch.setenv("COLUMNS", "300")

    def begin(*_: Any, **__: Any) -> None:
        raise AssertionError("it began to train")

    for owner, name in ((InProcess, "prepare"), (Ray, "prepare"), (training, "run_trial")):
        monkeypatch.setattr(owner, name, begin)

    def ran(
        command: str, files: Mapping[str, str | bytes] | None = None, as_process: bool = False
    ) -> tuple[Ran, set[str]]:
        for name, content in (files or {}).items():
            path = work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        words = [word.format(**places, tmp=work, gone=tmp_path / "gone") for word in shlex.split(command)]
        folders = (tmp_path, Path(places["sound"]))
        before = [tree(folder) for folder in folders]
        if as_process:
            done = subprocess.run([sys.executable, "-m", "cst_search.cli", *words], capture_output=True, text=True)
            result = Ran(done.returncode, done.stdout, done.stderr)
        else:
            result = run_cli(*words)
        after = [tree(folder) for folder in folders]
        changed = {
            os.path.relpath(path, folder)
            for folder, a, b in zip(folders, before, after, strict=True)
            for path in a.keys() | b.keys()
            if a.get(path, 0) != b.get(path, 0)
        }
        return result, changed

    return ran
