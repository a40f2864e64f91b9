"""ONNX files: onnxruntime finds what the detectors find, with one pass through each body and each tensor held once."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from studies import run_cli
from trained_runs import FROZEN, SHIPPED, write_run

from cst_search.config.recipe import DETECTORS, GROUP_NORM_DETECTORS, Recipe
from cst_search.data.resize import resized_hw
from cst_search.petl import get_method, method_names
from cst_search.trial import multi_inference
from cst_search.trial.engine import Detections
from cst_search.trial.multi_inference import MultiPredictor

onnx = pytest.importorskip("onnx", reason="ONNX files need the extra `onnx`, which `test` includes")
import onnxruntime  # noqa: E402

from cst_search.deployment.image_graph import image_graph  # noqa: E402
from cst_search.deployment.onnx_file import METADATA  # noqa: E402

SMALL_HW = ((48, 64), (64, 64), (90, 61), (33, 200))
BOX_PX, SCORE = 1e-3, 1e-4  # by which a box and a score may differ


def session(model: Any) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1  # threads of its pool spin as they wait, beside those of other tests
    content = model if isinstance(model, bytes) else str(model)
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


# --- the image -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size_hw",
    [
        (480, 640), (64, 64), (61, 97), (1, 9),
        (37, 500),  # the long side limits
        (50, 33),  # becomes larger
        (700, 900),  # many pixels make one
    ],
)  # fmt: skip
def test_an_image_is_resized_as_predict_resizes_it(size_hw: tuple[int, int]) -> None:
    sizes = [(64, 96), (128, 170), (240, 400)]
    pixels = np.random.default_rng(0).integers(0, 256, (*size_hw, 3), dtype=np.uint8)
    found = session(image_graph(sizes, 8).SerializeToString()).run(None, {"image": pixels})
    for i, (size, most) in enumerate(sizes):
        height, width = resized_hw(*size_hw, size, most)
        resized = Image.fromarray(pixels).resize((width, height), Image.Resampling.BILINEAR)
        expected = np.divide(np.asarray(resized).transpose(2, 0, 1), np.float32(255), dtype=np.float32)
        assert np.array_equal(found[2 * i], expected)
        back = [size_hw[1] / width, size_hw[0] / height] * 2
        assert found[2 * i + 1] == pytest.approx(back, rel=1e-6)


# --- the detectors ---------------------------------------------------------------------------------------------------


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    """Six images of five shapes, one of them black."""
    paths = []
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (*SMALL_HW[i % len(SMALL_HW)], 3), dtype=np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(pixels if i else np.zeros((40, 70, 3), np.uint8)).save(paths[-1])
    return paths


def check_equal(found: Sequence[np.ndarray], expected: Detections) -> None:
    """Check that the detections of an image are the same; those with nearly equal scores may change places."""
    boxes, scores, labels = found
    assert len(boxes) == len(scores) == len(labels) == len(expected.scores)
    left = list(range(len(boxes)))
    for box, score, label in zip(expected.boxes_xyxy, expected.scores, expected.labels, strict=True):
        same = [
            i for i in left
            if labels[i] == label and abs(scores[i] - score) < SCORE and np.abs(boxes[i] - box).max() < BOX_PX
        ]  # fmt: skip
        assert same, f"nothing found like label {label}, score {score}, {box}"
        left.remove(same[0])


def check_file(file: Path, runs: Sequence[Path], images: Sequence[Path], monkeypatch: pytest.MonkeyPatch) -> int:
    """Check that a file finds what the runs find in the images. Returns the number of detections."""
    monkeypatch.setattr(multi_inference, "reported", lambda _entry, found, _names, _score: {"found": found})
    detectors, n = MultiPredictor("cpu"), 0
    for run in runs:
        detectors.add(run.name, run)
    ready = session(file)
    names = [output.name for output in ready.get_outputs()]
    outputs = {name: task["outputs"] for name, task in described(file)["tasks"].items()}
    for image, result in zip(images, detectors.detect(list(images)), strict=True):
        found = dict(zip(names, ready.run(None, {"image": np.asarray(Image.open(image))}), strict=True))
        for name, task in result["tasks"].items():
            check_equal([found[output] for output in outputs[name]], task["found"])
            n += len(task["found"].scores)
    return n


def described(file: Path) -> Mapping[str, Any]:
    [entry] = [one for one in onnx.load(file).metadata_props if one.key == METADATA]
    return json.loads(entry.value)


def pack(file: Path, *runs: Path) -> Path:
    packed = run_cli("pack", *runs, "--onnx", file)
    assert packed.code == 0, packed.message
    return file


def test_every_method_and_every_detector_is_exported(
    tmp_path: Path, tiny_recipe: Callable[..., Recipe], images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every method that leaves something behind when it is merged, on the detectors in turn: a task takes 2 s."""
    methods = [name for name in method_names() if get_method(name).merge is None]
    recipes = [
        tiny_recipe(detector=name, method=method, fpn_channels=64 if name in GROUP_NORM_DETECTORS else 16)
        for method, name in zip(methods, cycle(DETECTORS))
    ]
    runs = [write_run(tmp_path / "runs" / recipe.method, recipe, 2) for recipe in recipes]
    assert len({recipe.detector for recipe in recipes}) == len(DETECTORS)
    file = pack(tmp_path / "all.onnx", *runs)
    assert list(described(file)["tasks"]) == methods
    assert check_file(file, runs, images[:4], monkeypatch) > 100


def test_tasks_on_one_body_share_its_pass_and_its_tensors(
    tmp_path: Path, tiny_recipe: Callable[..., Recipe], images: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Low-rank updates of a neck and a head are merged, which must leave those of the others as they are."""
    recipes = {
        "one": tiny_recipe(method="cst", **SHIPPED, **FROZEN),
        "two": tiny_recipe(method="head", **SHIPPED, **FROZEN),
        "lora": tiny_recipe(method="cst", **SHIPPED, neck="lora", head="lora"),
        "inside": tiny_recipe(method="conv_lora", **SHIPPED, neck="lora", head="lora"),
        "other": tiny_recipe(method="cst", **SHIPPED | {"image_size_px": 80}, **FROZEN),
    }
    runs = [write_run(tmp_path / name, recipe, 2 if name == "two" else 3) for name, recipe in recipes.items()]
    file = pack(tmp_path / "all.onnx", *runs)
    assert check_file(file, runs, images, monkeypatch) > 1000
    assert described(file)["tasks"]["two"] == {
        "classes": ["a", "b"], "outputs": ["two.boxes", "two.scores", "two.labels"],
    }  # fmt: skip
    graph = onnx.load(file).graph
    stems = [node for node in graph.node if node.op_type == "Conv" and is_stem(node)]
    assert len(stems) == 2  # one for each size: low-rank updates begin behind it
    large = [onnx.numpy_helper.to_array(tensor).tobytes() for tensor in graph.initializer]
    large = [content for content in large if len(content) > 1000]
    assert len(large) == len(set(large)) > 100


def is_stem(node: Any) -> bool:
    """Return whether a convolution is the first of a body: 7x7."""
    return any(one.name == "kernel_shape" and list(one.ints) == [7, 7] for one in node.attribute)


# --- the command -----------------------------------------------------------------------------------------------------


def test_a_bundle_and_its_onnx_file_are_written_together(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> None:
    run = write_run(tmp_path / "one", tiny_recipe(method="head"))
    both = run_cli("pack", run, "-o", tmp_path / "bundle", "--onnx", tmp_path / "both.onnx", "--json")
    said = json.loads(both.out)
    assert (said["bundle"], said["onnx"]) == (str(tmp_path / "bundle"), str(tmp_path / "both.onnx"))
    again = pack(tmp_path / "new" / "again.onnx", tmp_path / "bundle")
    assert described(again) == described(tmp_path / "both.onnx")
    assert [output.name for output in session(again).get_outputs()] == ["boxes", "scores", "labels"]
    refused = run_cli("pack", run, "--onnx", again)
    assert refused.code == 2 and "again.onnx: exists; choose another name" in refused.message


def test_what_cannot_be_exported_is_one_message(
    tmp_path: Path, tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path / "one", tiny_recipe(method="head"))

    def refuse(*arguments: Any, **options: Any) -> None:
        raise RuntimeError("Exporting the operator 'aten::odd' is not supported\nmore")

    monkeypatch.setattr(torch.onnx, "export", refuse)
    refused = run_cli("pack", run, "--onnx", tmp_path / "one.onnx")
    assert refused.code == 2 and not (tmp_path / "one.onnx").exists()
    assert "fcos with head cannot be exported (RuntimeError: Exporting the operator 'aten::odd'" in refused.message
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    refused = run_cli("pack", run, "--onnx", tmp_path / "one.onnx")
    assert refused.code == 2 and "--onnx needs onnxruntime: pip install 'cst-search[onnx]'" in refused.message
