"""Bundles: what is stored once, what is checked, and that tasks find what their runs find."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from studies import run_cli
from trained_runs import FROZEN, SHIPPED, write_run

from cst_search.config.recipe import Recipe
from cst_search.detector.build import start_of
from cst_search.detector.bundle import MANIFEST, Bundle
from cst_search.detector.pretrained import save_start, start_identity
from cst_search.errors import ConfigError
from cst_search.trial.inference import Predictor
from cst_search.trial.multi_inference import MultiPredictor


@pytest.fixture
def run(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> Callable[..., Path]:
    """Writes a run whose trained tensors moved away from their start."""

    def make(name: str, n_classes: int = 3, **changes: Any) -> Path:
        return write_run(tmp_path / "runs" / name, tiny_recipe(**{"method": "cst", **changes}), n_classes)

    return make


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)).save(path)
    return path


def test_tasks_of_a_bundle_find_what_their_runs_find_wherever_it_is(
    run: Callable[..., Path], image: Path, tmp_path: Path
) -> None:
    runs = [
        run("shipped", **SHIPPED, **FROZEN),
        run("other", 2, method="head", **SHIPPED, **FROZEN),
        run("body", method="conv_lora"),  # on a body from a file
        run("random", weights="none"),
    ]
    bundle = Bundle(tmp_path / "bundle")
    for path in runs:
        bundle.add(path.name, path)
    assert [task["base"] is None for task in bundle.tasks.values()] == [False, False, False, True]
    assert bundle.tasks["shipped"]["base"] == bundle.tasks["other"]["base"] and len(bundle.bases) == 2
    assert bundle.total_bytes() == sum(p.stat().st_size for p in bundle.folder.iterdir() if p.name != MANIFEST)

    expected = {path.name: next(Predictor(path, "cpu").detect([image], 0.01))["detections"] for path in runs}
    weights = Path(Recipe.from_dict(json.loads(_metadata(runs[2])["recipe"])).weights)
    moved = tmp_path / "elsewhere"
    shutil.move(tmp_path / "bundle", moved)
    hidden = weights.with_suffix(".hidden")
    weights.rename(hidden)  # on another machine the file that the run started from is not there
    try:
        detectors = MultiPredictor("cpu")
        detectors.add_bundle(moved)
        [found] = list(detectors.detect([image], 0.01))
    finally:
        hidden.rename(weights)
    assert {name: task["detections"] for name, task in found["tasks"].items()} == expected
    assert all(expected.values())


def _metadata(run: Path) -> dict[str, str]:
    from cst_search.detector.trained_file import read_metadata

    return read_metadata(run / "weights.safetensors")


def test_a_start_is_the_same_after_it_was_saved(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> None:
    start = start_of(tiny_recipe(**SHIPPED))
    assert start is not None
    changed = start._replace(norm_eps=0.0, batch_norm=not start.batch_norm)  # as torchvision's Faster R-CNN has it
    for one in (start, changed):
        path = tmp_path / "start.safetensors"
        save_start(one, path)
        again = start_of(tiny_recipe(**SHIPPED | {"weights": str(path)}))
        assert again is not None and start_identity(again) == start_identity(one)
        assert (again.norm_eps, again.batch_norm, again.labels) == (one.norm_eps, one.batch_norm, one.labels)
        assert again.tensors.keys() == one.tensors.keys()
        assert all(torch.equal(again.tensors[name], one.tensors[name]) for name in one.tensors)
    for part in ("norm_eps", "batch_norm"):
        assert start_identity(start._replace(**{part: getattr(changed, part)})) != start_identity(start)


def test_tasks_come_and_go_and_the_files_of_others_stay(run: Callable[..., Path], tmp_path: Path) -> None:
    bundle = Bundle(tmp_path / "bundle")
    bundle.add("one", run("one", **SHIPPED, **FROZEN))
    bundle.add("two", run("two", **SHIPPED, **FROZEN))
    before = {path.name: path.stat().st_mtime_ns for path in bundle.folder.iterdir() if path.name != MANIFEST}
    again = Bundle(tmp_path / "bundle")
    again.add("three", run("three"))
    again.drop("two")
    now = {path.name: path.stat().st_mtime_ns for path in bundle.folder.iterdir() if path.name != MANIFEST}
    assert before["one.safetensors"] == now["one.safetensors"] and "two.safetensors" not in now
    assert len(again.bases) == 2 and before.keys() & now.keys() == before.keys() - {"two.safetensors"}
    again.drop("one")
    assert [path.name for path in sorted(bundle.folder.iterdir())] == sorted(
        [MANIFEST, "three.safetensors", *(base["file"] for base in Bundle(bundle.folder).bases.values())]
    )
    assert len(Bundle(bundle.folder).bases) == 1


def test_a_change_that_fails_at_one_run_changes_nothing(run: Callable[..., Path], tmp_path: Path) -> None:
    bundle = Bundle(tmp_path / "bundle")
    bundle.add("one", run("one", **SHIPPED, **FROZEN))
    before = {path.name: path.read_bytes() for path in bundle.folder.iterdir()}
    two = run("two", **SHIPPED, **FROZEN)
    for runs, drop, says in (
        ([("two", two), ("three", tmp_path / "nothing")], ["one"], "nothing is neither a folder"),
        ([("two", two)], ["one", "three"], "has no task 'three'"),
        ([("two", two), ("One", two)], [], "has a task 'one' already"),  # one file where case does not count
        ([("two", two), ("Two", two)], [], "twice: two, Two"),
        ([("two", two), ("three", bundle.folder)], [], "is a bundle, and only runs can be added"),
    ):
        with pytest.raises(ConfigError, match=says):
            bundle.change(runs, drop)
        assert {path.name: path.read_bytes() for path in bundle.folder.iterdir()} == before
    bundle.change([("One", two)], ["one", "one"])
    assert list(Bundle(bundle.folder).tasks) == ["One"]
    bundle.check()


@pytest.fixture
def packed(run: Callable[..., Path], tmp_path: Path) -> Path:
    bundle = Bundle(tmp_path / "bundle")
    bundle.add("one", run("one", **SHIPPED, **FROZEN))
    bundle.add("two", run("two", **SHIPPED, **FROZEN))
    return bundle.folder


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads((folder / MANIFEST).read_text())
    change(content)
    (folder / MANIFEST).write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda folder: damage(folder / "two.safetensors"), "two.safetensors is damaged or was exchanged"),
        (lambda folder: damage(next(folder.glob("base-*"))), "is damaged or was exchanged"),
        (lambda folder: (folder / "one.safetensors").unlink(), "one.safetensors is missing"),
        (lambda folder: shutil.copy(folder / "one.safetensors", folder / "two.safetensors"), "was exchanged"),
        (lambda folder: (folder / MANIFEST).write_text("{"), "no manifest that this version reads"),
        (lambda folder: (folder / MANIFEST).write_bytes(b'{"tasks": "\xff"}'), "no manifest that this version reads"),
        (lambda folder: edit(folder, lambda c: c.update(format="cst-search/bundle-9")), "cst-search/bundle-9"),
        (lambda folder: edit(folder, lambda c: c["tasks"]["one"].update(file="../secret")), "'../secret'"),
        (lambda folder: edit(folder, lambda c: c["tasks"]["one"].update(base="base-0")), "task 'one'"),
        (lambda folder: edit(folder, lambda c: c["bases"].clear()), "task 'one'"),
        (lambda folder: edit(folder, lambda c: c["tasks"].clear()), "has no tasks; add runs to it first"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named_and_nothing_is_loaded(packed: Path, harm: Callable[[Path], object], says: str) -> None:
    harm(packed)
    detectors = MultiPredictor("cpu")
    with pytest.raises(ConfigError) as caught:
        detectors.add_bundle(packed)
    assert says in str(caught.value) and detectors.tasks == {}


def test_a_folder_that_is_no_bundle_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no bundle"):
        MultiPredictor("cpu").add_bundle(tmp_path / "nothing")


def test_a_delta_of_another_base_is_refused(packed: Path, run: Callable[..., Path], tmp_path: Path) -> None:
    """The manifest is right about the bytes, and wrong about what they stand on."""
    other = Bundle(tmp_path / "other")
    other.add("three", run("three", **SHIPPED | {"weights": "demo"}))
    [base] = other.bases

    def exchange(content: dict[str, Any]) -> None:
        content["bases"][base] = other.bases[base]
        content["tasks"]["two"]["base"] = base

    shutil.copy(other.folder / other.bases[base]["file"], packed)
    edit(packed, exchange)
    detectors = MultiPredictor("cpu")
    with pytest.raises(ConfigError, match="hold a body alone"):
        detectors.add_bundle(packed)
    assert detectors.tasks == {}


def test_the_command_packs_and_predict_reads_it(run: Callable[..., Path], image: Path, tmp_path: Path) -> None:
    one, two = run("one", **SHIPPED, **FROZEN), run("two", **SHIPPED, **FROZEN)
    folder = tmp_path / "bundle"
    packed = run_cli("pack", one, two, "-o", folder)
    assert packed.code == 0 and "2 task(s) on 1 base(s)" in " ".join(packed.err.split() + packed.out.split())
    found = run_cli("predict", folder, image, "--no-draw", "--score", "0.01", "--device", "cpu")
    assert found.code == 0
    [result] = json.loads(found.out)
    [alone] = json.loads(run_cli("predict", two, image, "--no-draw", "--score", "0.01", "--device", "cpu").out)
    assert result["tasks"]["two"]["detections"] == alone["detections"]
    dropped = json.loads(run_cli("pack", "--drop", "one", "-o", folder, "--json").out)
    assert list(dropped["tasks"]) == ["two"] and not (folder / "one.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "name runs to pack, or tasks to take out"),
        (["runs/one", "copy/one"], "must be folders of different names; twice: one"),
        (["runs/one", "-o", "runs"], "must be a bundle or a new folder"),
        (["nothing"], "neither a folder written by `cst-search train` nor its weights file"),
        (["--drop", "one"], "is no bundle, so there is no task to drop; name its folder with -o"),
        (["runs/o n e"], "the name of a task must be of a-z"),
    ],
)
def test_wrong_input_of_the_command_is_named(
    run: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], says: str
) -> None:
    run("one")
    for name in ("copy/one", "runs/o n e"):
        shutil.copytree(tmp_path / "runs" / "one", tmp_path / name)
    monkeypatch.chdir(tmp_path)
    found = run_cli("pack", *arguments)
    assert found.code == 2 and says in found.message
