"""What a node lacks, on a machine that has it all but for what a test takes away. `test_cluster.py` asks real nodes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torchvision.models import WeightsEnum

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.demo import write_demo
from cst_search.execution import node_check
from cst_search.execution.node_check import NodeRequirements, inspect_node, requirements_of


@pytest.fixture
def wanted(tiny_folder: Path, tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> NodeRequirements:
    """Of a copy of the tiny data, which a test may change."""
    folder = shutil.copytree(tiny_folder, tmp_path / "set")
    weights = shutil.copy(tiny_recipe().weights, tmp_path / "weights.safetensors")
    recipe = tiny_recipe(data=str(folder), weights=str(weights))
    return requirements_of(recipe, load_data(folder)[0], on_gpus=False)


def test_no_faults_on_the_machine_that_starts_the_search(wanted: NodeRequirements) -> None:
    assert inspect_node(wanted).faults == []
    kinds = {file.what for file in wanted.files}
    assert kinds == {
        "the annotation file of train", "the annotation file of val", "the annotation file of test",
        "an image of train", "an image of val", "an image of test", "the weights",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda set_: (set_ / "train.json").unlink(), "the annotation file of train is not there: {}/train.json"),
        (lambda set_: shutil.rmtree(set_ / "val"), "an image of val is not there: {}/val/0.png (4 of 4"),
        (lambda set_: (set_ / "train" / "3.png").unlink(), "train/3.png (1 of 8 that were looked at)"),
        (lambda set_: (set_ / "val.json").write_text("{}"), "the annotation file of val is another one"),
        # as large as it was, and another picture
        (lambda set_: turn_a_byte(set_ / "train" / "0.png"), "an image of train is another one: {}/train/0.png"),
        (lambda set_: turn_a_byte(set_.parent / "weights.safetensors"), "the weights is another one"),
    ],
)
def test_missing_requirements_are_named(
    wanted: NodeRequirements, tmp_path: Path, change: Callable[[Path], object], fault: str
) -> None:
    change(tmp_path / "set")
    (said,) = inspect_node(wanted).faults
    assert fault.format(tmp_path / "set") in said


def turn_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_copies_are_as_good_as_a_shared_folder(wanted: NodeRequirements, tmp_path: Path) -> None:
    for path in (tmp_path / "set").rglob("*.*"):
        os.utime(path, (1, 1))
    assert inspect_node(wanted).faults == []


def test_many_images_are_sampled(tiny_data: DetectionData, tiny_recipe: Callable[..., Recipe]) -> None:
    many = replace(tiny_data.splits["train"], images=tiny_data.splits["train"].images * 100)
    data = replace(tiny_data, splits={"train": many})
    wanted = requirements_of(tiny_recipe(), data, on_gpus=False)
    assert len(wanted.files) == 1 + 20 + 1 and wanted.recipe is None
    downloaded = replace(tiny_recipe(), weights="IMAGENET")
    assert requirements_of(downloaded, data, on_gpus=False).recipe is downloaded


def test_a_missing_demo_is_drawn(tiny_recipe: Callable[..., Recipe], tmp_path: Path) -> None:
    data, _ = load_data(write_demo(tmp_path / "demo", n_train=6, n_val=6))
    wanted = requirements_of(tiny_recipe(data="demo", weights="none"), data, on_gpus=False)
    assert wanted.files == () and wanted.demo == tmp_path / "demo"
    shutil.rmtree(tmp_path / "demo")
    assert inspect_node(wanted).faults == [] and (tmp_path / "demo" / "train.json").is_file()
    (tmp_path / "file").touch()
    (said,) = inspect_node(replace(wanted, demo=tmp_path / "file" / "demo")).faults
    assert "the demo cannot be drawn" in said


def test_other_versions_are_named(wanted: NodeRequirements, monkeypatch: pytest.MonkeyPatch) -> None:
    base = torch.__version__.partition("+")[0]
    monkeypatch.setattr(torch, "__version__", f"{base}+cu999")  # a build for GPUs is the same version
    assert inspect_node(wanted).faults == []
    monkeypatch.setattr(torch, "__version__", "1.0.0")
    assert inspect_node(wanted).faults == [f"torch is 1.0.0, where the search was started {base}"]


def test_it_says_that_torch_is_missing(wanted: NodeRequirements, tmp_path: Path) -> None:
    """In an interpreter without it: what looks must not need it, nor import what trials alone do."""
    code = f"""
import sys, pickle
from dataclasses import replace
sys.modules["torch"] = None
from cst_search.execution.node_check import inspect_node
wanted = pickle.loads({__import__("pickle").dumps(wanted)!r})
print(inspect_node(wanted).faults, inspect_node(replace(wanted, versions=())).faults)
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "torch cannot be imported" in ran.stdout and ran.stdout.endswith("] []\n")


def test_weights_that_cannot_be_fetched(wanted: NodeRequirements, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    for recipe, named in (
        (Recipe(backbone="resnet18"), "IMAGENET: https://download.pytorch.org/models/resnet18-"),
        (Recipe(detector="fcos"), "COCO: https://download.pytorch.org/models/fcos_resnet50_fpn_coco-"),
    ):
        (fault,) = inspect_node(replace(wanted, recipe=recipe)).faults
        assert fault.startswith(f"weights {named}") and "could not be fetched (no route to host); go online" in fault


def test_gpus(wanted: NodeRequirements, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    (said,) = inspect_node(replace(wanted, on_gpus=True)).faults
    assert "torch sees none" in said
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    facts = type("Facts", (), {"total_memory": 7})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    assert inspect_node(replace(wanted, on_gpus=True)).gpu_bytes == [7, 7]


def test_a_shared_folder_shows(wanted: NodeRequirements, tmp_path: Path) -> None:
    with node_check.token(tmp_path / "home") as token:
        assert inspect_node(replace(wanted, token=token)).is_shared
    assert not inspect_node(replace(wanted, token=token)).is_shared and list((tmp_path / "home").iterdir()) == []
    assert json.dumps(inspect_node(wanted).is_shared) == "false"
