"""Several trained detectors at once: what they share, and that each finds what it finds alone."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from trained_runs import FROZEN, SHIPPED, write_run
from typer.testing import CliRunner

from cst_search.backbone.resnet import FrozenNorm
from cst_search.cli.app import app
from cst_search.config.recipe import Recipe
from cst_search.data.decoding import FORMATS
from cst_search.detector.build import trained_tensors
from cst_search.detector.weights import load_trained
from cst_search.errors import ConfigError
from cst_search.trial import inference, multi_inference
from cst_search.trial.inference import Predictor
from cst_search.trial.multi_inference import MultiPredictor, backbone_of

SIZES = ((96, 64), (64, 64), (60, 90))  # of the images


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    torch.manual_seed(3)
    paths = []
    for i, (width, height) in enumerate(SIZES):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(torch.randint(256, (height, width, 3), dtype=torch.uint8).numpy()).save(paths[-1])
    return paths


@pytest.fixture
def run(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> Callable[..., Path]:
    """Writes a run of the shipped detector whose trained tensors moved away from their start."""

    def make(name: str, n_classes: int = 3, **changes: Any) -> Path:
        return write_run(tmp_path / name, tiny_recipe(**SHIPPED | changes), n_classes)

    return make


@pytest.fixture
def unrounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Has predictors yield their detections as the detector returns them."""
    for module in (inference, multi_inference):
        monkeypatch.setattr(module, "reported", lambda _entry, found, _names, _score: {"found": found})


def alone(runs: Sequence[Path], images: list[Path], batch_size: int) -> dict[str, list[Any]]:
    return {path.name: [one["found"] for one in Predictor(path, "cpu", batch_size).detect(images)] for path in runs}


def together(runs: Sequence[Path], images: list[Path], batch_size: int) -> dict[str, list[Any]]:
    detectors = MultiPredictor("cpu")
    for path in runs:
        detectors.add(path.name, path)
    results = list(detectors.detect(images, batch_size=batch_size))
    return {path.name: [result["tasks"][path.name]["found"] for result in results] for path in runs}


def test_every_method_finds_what_it_finds_alone(run: Callable[..., Path], images: list[Path], unrounded: None) -> None:
    runs = [
        run("cst", method="cst", **FROZEN),
        run("blocks", method="cst", options={"granularity": "block"}, n_classes=2),
        run("lst", method="lst"),
        run("side", method="side_tuning", neck="lora"),
        run("head", method="head", **FROZEN, n_classes=5),
        run("lora", method="conv_lora", **FROZEN),
        run("full", method="full"),
    ]
    expected = alone(runs, images, 2)
    assert together(runs, images, 2) == expected
    assert all(found.scores for found in expected["cst"])


@pytest.mark.parametrize("n", [2, 20])  # five are below
def test_any_number_of_tasks_find_what_they_find_alone(
    n: int, run: Callable[..., Path], images: list[Path], unrounded: None
) -> None:
    runs = [run(f"task-{i}", method="cst", **FROZEN, seed=i) for i in range(n)]
    expected = alone(runs, images[:1], 1)
    assert together(runs, images[:1], 1) == expected
    assert len({repr(found) for found in expected.values()}) == n  # each finds something else


def test_many_tasks_run_their_body_once_and_hold_it_once(
    run: Callable[..., Path], images: list[Path], unrounded: None
) -> None:
    runs = [run(f"task-{i}", method="cst", **FROZEN, seed=i) for i in range(5)]
    assert together(runs, images, 1) == alone(runs, images, 1)
    detectors = MultiPredictor("cpu")
    own, first = 0, 0
    for path in runs:
        detectors.add(path.name, path)
        model = detectors.tasks[path.name].model
        own += sum(tensor.nbytes for tensor in trained_tensors(model).values())
        if not first:
            first = detectors.tensor_bytes() - own
    assert detectors.groups() == [[path.name for path in runs]]
    assert detectors.tensor_bytes() == first + own
    passes: list[str] = []
    for task in detectors.tasks.values():
        backbone_of(task.model).body.register_forward_hook(lambda *_, name=task.name: passes.append(name))
    list(detectors.detect(images))
    assert passes == ["task-0"] * len(images)


def test_what_changes_the_features_has_a_pass_of_its_own(run: Callable[..., Path], images: list[Path]) -> None:
    detectors = MultiPredictor("cpu")
    detectors.add("cst", run("cst", method="cst"))
    detectors.add("head", run("head", method="head"))
    detectors.add("norm", run("norm", method="norm"))
    detectors.add("larger", run("larger", method="cst", image_size_px=96))
    detectors.add("stored", run("stored", method="cst", exif="stored"))
    assert detectors.groups() == [["cst", "head"], ["norm"], ["larger"], ["stored"]]


def test_bodies_that_round_otherwise_have_passes_of_their_own(run: Callable[..., Path]) -> None:
    one, two = (load_trained(run(name, method="head")) for name in ("one", "two"))
    assert multi_inference._group(one.model, one.recipe) == multi_inference._group(two.model, two.recipe)
    norms = [module for module in backbone_of(two.model).body.modules() if isinstance(module, FrozenNorm)]
    norms[0].as_batch_norm = not norms[0].as_batch_norm
    assert multi_inference._group(one.model, one.recipe) != multi_inference._group(two.model, two.recipe)


def test_tasks_come_and_go_while_images_are_read(run: Callable[..., Path], images: list[Path]) -> None:
    detectors = MultiPredictor("cpu")
    detectors.add("one", run("one", method="cst", **FROZEN))
    detectors.add("two", run("two", method="head", n_classes=2))
    alone = [one["detections"] for one in Predictor(run("two", method="head", n_classes=2), "cpu").detect(images, 0.01)]
    going = detectors.detect(images, 0.01)
    first = next(going)
    detectors.drop("one")
    detectors.add("three", run("three", method="lst"))
    rest = list(going)
    assert all(list(found["tasks"]) == ["one", "two"] for found in (first, *rest))
    assert [found["tasks"]["two"]["detections"] for found in (first, *rest)] == alone
    after = list(detectors.detect(images, 0.01))
    assert list(after[0]["tasks"]) == ["two", "three"]
    assert [found["tasks"]["two"]["detections"] for found in after] == alone


def test_names_are_checked(run: Callable[..., Path], images: list[Path]) -> None:
    detectors = MultiPredictor("cpu")
    with pytest.raises(ConfigError, match="add one first"):
        next(detectors.detect(images))
    detectors.add("one", run("one", method="head"))
    with pytest.raises(ConfigError, match="'one' is taken"):
        detectors.add("one", run("one", method="head"))
    with pytest.raises(ConfigError, match="there is no task 'two'; there are one"):
        detectors.drop("two")


def test_the_command_names_tasks_by_their_folders(run: Callable[..., Path], images: list[Path], tmp_path: Path) -> None:
    one, two = run("one", method="cst", **FROZEN), run("two", method="head", n_classes=2)
    arguments = ["predict", str(one), str(two / "weights.safetensors"), str(images[0].parent), "--score", "0.01"]
    found = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path / "drawn"), "--device", "cpu"])
    assert found.exit_code == 0, found.output
    results = json.loads(found.stdout)
    assert f"6 picture(s) in {tmp_path / 'drawn'}, a folder for each task; contact-sheet.png in each" in found.stderr
    assert [result["image"] for result in results] == list(map(str, images))
    for result in results:
        assert list(result["tasks"]) == ["one", "two"]
        for name, path in (("one", one), ("two", two)):
            task = result["tasks"][name]
            [alone] = inference.predict(path, [Path(result["image"])], None, score=0.01, device="cpu")
            assert task["detections"] == alone["detections"]
            with Image.open(task["picture"]) as picture:
                assert Path(task["picture"]).parent.name == name and picture.size == (
                    8 * task["width"],
                    8 * task["height"],
                )


@pytest.mark.parametrize(
    ("paths", "says"),
    [
        (["one"], "name images, or a folder of them, behind the run"),
        (["0.png", "1.png"], "cannot be read"),
        (["nothing", "1.png"], "neither a folder written by `cst-search train` nor its weights file"),
        (["one", "copy/one", "0.png"], "these names occur twice: one; rename a folder"),
        (["one", "nothing.safetensors", "0.png"], "nothing.safetensors"),
    ],
)
def test_the_command_says_what_is_missing(
    run: Callable[..., Path], images: list[Path], tmp_path: Path, paths: list[str], says: str
) -> None:
    run("one", method="head")
    shutil.copytree(tmp_path / "one", tmp_path / "copy" / "one")
    with pytest.raises(ConfigError, match=re.escape(says)):
        runs, rest = multi_inference.split_runs([tmp_path / path for path in paths])
        multi_inference.predict_tasks(runs, rest, None, score=0.5, device="cpu")


def test_a_folder_gives_images_of_every_format_that_is_read(tmp_path: Path) -> None:
    suffix = {"JPEG": "jpg", "PNG": "PNG", "BMP": "bmp", "GIF": "gif", "WEBP": "webp", "TIFF": "tif", "PPM": "ppm",
              "JPEG2000": "jp2"}  # fmt: skip
    files = [tmp_path / f"{format_}.{suffix[format_]}" for format_ in sorted(FORMATS)]
    for path in (*files, tmp_path / "notes.txt"):
        path.touch()
    assert inference.find_images([tmp_path]) == files


def test_only_the_named_tasks_run(run: Callable[..., Path], images: list[Path]) -> None:
    detectors = MultiPredictor("cpu")
    for name, method in (("cst", "cst"), ("head", "head"), ("lora", "conv_lora")):
        detectors.add(name, run(name, method=method, **FROZEN))
    passes: list[str] = []
    for name, task in detectors.tasks.items():
        backbone_of(task.model).body.register_forward_hook(lambda *_, name=name: passes.append(name))
    everything = next(detectors.detect(images[:1]))["tasks"]
    passes.clear()
    [some] = detectors.detect(images[:1], tasks=["head", "cst", "head"])
    assert some["tasks"] == {name: everything[name] for name in ("head", "cst")}
    assert list(some["tasks"]) == ["head", "cst"] and passes == ["cst"]
    for wrong, got in ((["head", "cat"], "got 'cat'"), ([], "got none")):
        with pytest.raises(ConfigError, match=f"tasks must name some of cst, head, lora; {got}"):
            next(detectors.detect(images[:1], tasks=wrong))


def test_bf16_shares_a_body_too(run: Callable[..., Path], images: list[Path], unrounded: None) -> None:
    """The same operations on the same numbers: no tolerance is needed. What bf16 itself moves is another matter."""
    runs = [run(f"task-{i}", method="cst", **FROZEN, seed=i, precision="bf16") for i in range(2)]
    runs.append(run("lora", method="conv_lora", **FROZEN, precision="bf16"))
    expected = alone(runs, images, 1)
    assert together(runs, images, 1) == expected
    exact = alone([run("exact", method="cst", **FROZEN)], images, 1)["exact"]
    rounded = alone([run("exact", method="cst", **FROZEN, precision="bf16")], images, 1)["exact"]
    assert rounded != exact
    for one, other in zip(rounded, exact, strict=True):
        assert max(one.scores) == pytest.approx(max(other.scores), abs=0.02)
