"""A bundle as one model of MLflow: its signature, what it loads from, and MLflow's own server in front of it."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow.pyfunc
import numpy as np
import pytest
from mlflow.exceptions import MlflowException
from PIL import Image
from postgres import free_port
from studies import run_cli
from trained_runs import FROZEN, SHIPPED, write_run

from cst_search.config.recipe import Recipe
from cst_search.detector.bundle import Bundle
from cst_search.errors import ConfigError
from cst_search.tracking.served_images import image_files
from cst_search.trial.multi_inference import MultiPredictor

SCORE = 0.05


@dataclass(frozen=True)
class Served:
    """A model that lies elsewhere than it was written, with nothing left of what it was made from.

    Attributes:
        expected: what `MultiPredictor` found in the images with the runs.
    """

    model: Path
    images: list[Path]
    expected: list[dict[str, Any]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory, tiny_recipe: Callable[..., Recipe]) -> Served:
    folder = tmp_path_factory.mktemp("served")
    recipe = tiny_recipe(method="cst", **SHIPPED, **FROZEN)
    runs = [write_run(folder / "runs" / name, recipe, n) for name, n in (("cells", 3), ("cards", 2))]
    images = [folder / f"{i}.png" for i in range(2)]
    for i, path in enumerate(images):
        pixels = np.random.default_rng(i).integers(0, 256, (64, 96 - 20 * i, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
    detectors = MultiPredictor("cpu")
    for path in runs:
        detectors.add(path.name, path)
    expected = [{"tasks": one["tasks"]} for one in detectors.detect(images, SCORE)]
    assert all(task["detections"] for one in expected for task in one["tasks"].values())

    packed = run_cli("pack", *runs, "--mlflow", folder / "written")
    assert packed.code == 0, packed.message
    assert "mlflow models serve -m" in packed.out and not Path("bundle").exists()
    shutil.move(folder / "written", folder / "model")
    shutil.rmtree(folder / "runs")
    return Served(folder / "model", images, expected)


def test_a_small_file_in_base64_is_not_taken_for_a_path() -> None:
    """It may have no slash in 255 characters, which no file name may have."""
    content = bytes(300)
    with image_files([base64.b64encode(content).decode()]) as [file]:
        assert file.read_bytes() == content and file.name == "inputs[0]"  # so a message names its place in the request


def cards_of(expected: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"tasks": {"cards": one["tasks"]["cards"]}} for one in expected]


def test_the_model_runs_the_named_tasks(served: Served) -> None:
    loaded = mlflow.pyfunc.load_model(str(served.model))
    sent = [str(served.images[0]), base64.b64encode(served.images[1].read_bytes()).decode()]
    assert loaded.predict(sent, params={"score": SCORE}) == served.expected
    assert loaded.predict(sent, params={"score": SCORE, "tasks": ["cards"]}) == cards_of(served.expected)
    none = loaded.predict(sent, params={"score": 1.0})
    assert not any(task["detections"] for one in none for task in one["tasks"].values())

    signature = loaded.metadata.signature
    assert signature.inputs.to_dict() == [{"type": "string", "required": True}]
    params = {one.name: (one.dtype.name, one.default, one.shape) for one in signature.params.params}
    assert params == {"score": ("double", 0.5, None), "tasks": ("string", ["cells", "cards"], (-1,))}
    [example] = loaded.input_example
    assert list(loaded.predict([example])[0]["tasks"]) == ["cells", "cards"]


@pytest.mark.parametrize(
    ("params", "says"),
    [
        ({"tasks": ["cells", "cats"]}, "tasks must name some of cells, cards; got 'cats'"),
        ({"tasks": []}, "tasks must name some of cells, cards; got none"),
        ({"tasks": "cells"}, "tasks"),  # what MLflow's signature refuses
        ({"score": "much"}, "score"),
    ],
)
def test_wrong_params_are_named(served: Served, params: dict[str, Any], says: str) -> None:
    with pytest.raises((ConfigError, MlflowException), match=says):
        mlflow.pyfunc.load_model(str(served.model)).predict([str(served.images[0])], params=params)


def test_a_damaged_model_does_not_load(served: Served, tmp_path: Path) -> None:
    shutil.copytree(served.model, tmp_path / "model")
    [file] = (tmp_path / "model").rglob("cards.safetensors")
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ConfigError, match=r"cards\.safetensors is damaged or was exchanged"):
        mlflow.pyfunc.load_model(str(tmp_path / "model"))


def test_a_bundle_becomes_a_model_and_what_is_there_stays(served: Served, tmp_path: Path) -> None:
    [bundle] = [path.parent for path in served.model.rglob("bundle.json")]
    packed = run_cli("pack", bundle, "--mlflow", tmp_path / "again", "--json")
    assert json.loads(packed.out)["mlflow"] == str(tmp_path / "again") and "bundle" not in json.loads(packed.out)
    assert list(mlflow.pyfunc.load_model(str(tmp_path / "again")).metadata.signature.params.params[1].default) == [
        "cells", "cards",
    ]  # fmt: skip
    assert logging.getLogger("mlflow.models.signature").level == logging.CRITICAL  # of a line with date and module
    refused = run_cli("pack", bundle, "--mlflow", tmp_path / "again")
    assert refused.code == 2 and "again: exists; choose another name" in refused.message
    Bundle(tmp_path / "empty").add("one", bundle / "cells.safetensors")
    run_cli("pack", "--drop", "one", "-o", tmp_path / "empty")
    refused = run_cli("pack", tmp_path / "empty", "--mlflow", tmp_path / "none")
    assert refused.code == 2 and "has no tasks; add runs to it first" in refused.message
    assert not (tmp_path / "none").exists()


# --- served ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def address(served: Served, tmp_path: Path) -> Iterator[str]:
    """`mlflow models serve`, as docs/tasks.md shows it, on a free port."""
    address = f"http://127.0.0.1:{free_port()}"
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", str(served.model), "--env-manager", "local",
               "--host", "127.0.0.1", "--port", address.rpartition(":")[2]]  # fmt: skip
    log = tmp_path / "server.log"
    # MLflow starts `uvicorn` by its name: that of this interpreter, wherever its scripts lie
    uvicorn = tmp_path / "bin" / "uvicorn"
    uvicorn.parent.mkdir()
    uvicorn.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m uvicorn "$@"\n')
    uvicorn.chmod(0o755)
    path = f"{uvicorn.parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("w") as file, subprocess.Popen(command, stdout=file, stderr=file, env=environment) as server:
        try:
            wait_for(address, server, log)
            yield address
        finally:
            server.terminate()


def wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and server.poll() is None:
        try:
            urllib.request.urlopen(f"{address}/ping", timeout=10)
            return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"no server after 300 s:\n{log.read_text()[-3000:]}")


def ask(address: str, request: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Send a request; return the status and what was answered."""
    sent = urllib.request.Request(
        f"{address}/invocations", json.dumps(request).encode(), {"Content-Type": "application/json"}
    )
    try:
        with urllib.request.urlopen(sent, timeout=120) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_mlflow_serves_a_bundle(served: Served, address: str) -> None:
    sent = [base64.b64encode(path.read_bytes()).decode() for path in served.images]
    assert ask(address, {"inputs": sent, "params": {"score": SCORE}}) == (200, {"predictions": served.expected})
    some = {"inputs": sent, "params": {"tasks": ["cards"], "score": SCORE}}
    assert ask(address, some) == (200, {"predictions": cards_of(served.expected)})
    status, answer = ask(address, {"inputs": sent, "params": {"tasks": ["cats"]}})
    assert status == 400
    assert answer["stack_trace"].strip().endswith("tasks must name some of cells, cards; got 'cats'")
