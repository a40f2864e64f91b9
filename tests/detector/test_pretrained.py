"""Where a detector's tensors come from: a whole detector, a body, a run; and what classes take over."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.models import WeightsEnum
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from cst_search.backbone.resnet import BODY
from cst_search.config.recipe import Recipe
from cst_search.detector.build import build_detector, trained_tensors
from cst_search.detector.class_rows import coco_labels, matching_labels
from cst_search.detector.registry import DETECTORS, get_detector
from cst_search.detector.weights import save_trained
from cst_search.errors import ConfigError

Make = Callable[..., Recipe]
State = dict[str, Tensor]
KNOWN = ("disc", "cat", "traffic light", "square")  # of the weights; labels 1 to 4
NEW = ("Squares", "bar", "disc")  # of the data


def noisy(model: nn.Module) -> State:
    """A detector's tensors, none of which is zero or as it was initialised."""
    state = {name: value.clone() for name, value in model.state_dict().items()}
    for name, value in state.items():
        if value.is_floating_point():
            value += 0.1 * torch.rand_like(value) if name.endswith("running_var") else 0.1 * torch.randn_like(value)
    return state


@pytest.fixture(params=sorted(DETECTORS))
def whole(request: pytest.FixtureRequest, tiny_recipe: Make, tmp_path: Path) -> tuple[Recipe, State]:
    """(a recipe that starts from the file of a whole detector, the file's tensors)."""
    recipe = tiny_recipe(detector=request.param, method="head", weights=str(tmp_path / "w.safetensors"))
    state = noisy(build_detector(tiny_recipe(detector=request.param, method="head", weights="none"), len(KNOWN)))
    metadata = {"class_names": json.dumps(KNOWN)}
    save_file({name: value.half() for name, value in state.items()}, recipe.weights, metadata=metadata)
    return recipe, {name: value.half().to(value.dtype) for name, value in state.items()}


def class_tensors(recipe: Recipe) -> set[str]:
    layers = get_detector(recipe.detector).class_layers
    return {f"{layer.name}.{kind}" for layer in layers for kind in ("weight", "bias")}


def test_a_whole_detector_is_loaded_but_for_its_class_layers(whole: tuple[Recipe, State]) -> None:
    recipe, given = whole
    model: Any = build_detector(recipe, len(NEW), NEW)
    state, by_class = model.state_dict(), class_tensors(recipe)
    assert by_class and all(torch.equal(state[name], given[name]) for name in state if name not in by_class)
    assert model.backbone.start == (
        f"weights: {recipe.weights}, a whole detector; its rows for 2 of 3 classes (Squares, disc)"
    )


def test_rows_of_known_classes_are_copied_and_others_are_new(whole: tuple[Recipe, State]) -> None:
    recipe, given = whole
    matched = build_detector(recipe, len(NEW), NEW).state_dict()
    fresh = build_detector(Recipe(**(vars(recipe) | {"class_init": "new"})), len(NEW), NEW).state_dict()
    for layer in get_detector(recipe.detector).class_layers:
        for kind in ("weight", "bias"):
            name = f"{layer.name}.{kind}"
            rest = given[name].shape[1:]
            anchors = len(given[name]) // (5 * layer.per_label)
            rows = matched[name].view(anchors, 4, layer.per_label, *rest)
            known = given[name].view(anchors, 5, layer.per_label, *rest)
            new = fresh[name].view(anchors, 4, layer.per_label, *rest)
            for label, known_label in ((0, 0), (1, 4), (3, 1)):  # background, Squares -> square, disc -> disc
                assert torch.equal(rows[:, label], known[:, known_label])
                assert not torch.equal(new[:, label], known[:, known_label])
            assert torch.equal(rows[:, 2], new[:, 2])  # bar


def test_without_names_no_row_but_the_background_is_known(whole: tuple[Recipe, State]) -> None:
    recipe, given = whole
    names = class_tensors(recipe)
    named, unnamed = (build_detector(recipe, 3, names).state_dict() for names in (NEW, ()))
    assert all(not torch.equal(named[name], unnamed[name]) for name in names)
    build_detector(recipe, len(KNOWN), KNOWN)
    assert all(torch.equal(build_detector(recipe, 4, KNOWN).state_dict()[name], given[name]) for name in names)


def test_the_hash_covers_neck_and_heads_once_they_are_not_trained(whole: tuple[Recipe, State]) -> None:
    recipe, given = whole
    frozen = Recipe(**(vars(recipe) | {"head": "predictor"}))
    before: list[Any] = [build_detector(each, 3, NEW).backbone for each in (recipe, frozen)]
    name = "backbone.fpn.inner_blocks.0.0.weight"
    given[name][0] += 1
    save_file(given, recipe.weights, metadata={"class_names": json.dumps(KNOWN)})
    after: list[Any] = [build_detector(each, 3, NEW).backbone for each in (recipe, frozen)]
    assert [b.body_hash for b in before] == [b.body_hash for b in after] == [before[0].base_hash] * 2
    assert before[0].base_hash == after[0].base_hash
    assert before[1].base_hash != after[1].base_hash


def test_a_body_alone_below_its_name_in_a_detector(whole: tuple[Recipe, State]) -> None:
    recipe, given = whole
    save_file({name: value for name, value in given.items() if name.startswith(BODY)}, recipe.weights)
    model: Any = build_detector(recipe, 3, NEW)
    state = model.state_dict()
    assert all(torch.equal(state[name], given[name]) for name in state if name.startswith(BODY))
    assert model.backbone.start == f"weights: {recipe.weights}, the body alone; neck and heads start random"
    for change in ({"neck": "frozen"}, {"head": "norm"}):
        with pytest.raises(ConfigError, match=r"they hold a body alone; .* would leave random layers untrained"):
            build_detector(Recipe(**(vars(recipe) | change)), 3, NEW)


def test_a_detector_of_another_architecture_gives_its_body_and_says_so(tiny_recipe: Make, tmp_path: Path) -> None:
    path = tmp_path / "w.pt"
    torch.save(build_detector(tiny_recipe(detector="retinanet", method="head"), 3).state_dict(), path)
    recipe = tiny_recipe(detector="fasterrcnn", weights=str(path), method="head")
    start = build_detector(recipe, 3, NEW).backbone.start
    assert f"weights: {path}, the body alone (their pyramid and heads are another detector's: " in str(start)
    with pytest.raises(ConfigError, match=r"another detector's: .*; head predictor would leave random layers"):
        build_detector(Recipe(**(vars(recipe) | {"head": "predictor"})), 3, NEW)


@pytest.mark.parametrize("text", ["7", "{", '["one"]'])
def test_class_names_that_are_none(tiny_recipe: Make, tmp_path: Path, text: str) -> None:
    model = build_detector(tiny_recipe(method="head"), 3)
    save_file(model.state_dict(), tmp_path / "w.safetensors", metadata={"class_names": text})
    with pytest.raises(ConfigError, match="class_names"):
        build_detector(tiny_recipe(weights=str(tmp_path / "w.safetensors"), method="head"), 3, NEW)


# --- runs ------------------------------------------------------------------------------------------------------------


def run_of(recipe: Recipe, path: Path) -> nn.Module:
    """Write what `cst-search train` writes, of a detector whose trained tensors have moved."""
    model = build_detector(recipe, len(KNOWN), KNOWN)
    with torch.no_grad():
        for value in trained_tensors(model).values():
            if value.is_floating_point():
                value += 0.02 * torch.rand_like(value)
    save_trained(model, recipe, KNOWN, path)
    return model.eval()


@pytest.mark.parametrize("method", ["head", "full", "conv_lora", "norm"])
def test_a_run_is_a_start(tiny_recipe: Make, tmp_path: Path, method: str) -> None:
    """Its method is merged, so that a detector of the same classes predicts the same."""
    run = run_of(tiny_recipe(method=method), tmp_path / "run" / "weights.safetensors")
    images = [torch.rand(3, 64, 80), torch.rand(3, 96, 70)]
    for weights in (tmp_path / "run", tmp_path / "run" / "weights.safetensors"):
        recipe = tiny_recipe(method="head", weights=str(weights), head="predictor")
        model = build_detector(recipe, len(KNOWN), KNOWN).eval()
        with torch.no_grad():
            features, expected = model.backbone(torch.stack([images[0]])), run.backbone(torch.stack([images[0]]))
        for level in expected:
            torch.testing.assert_close(features[level], expected[level], rtol=1e-4, atol=1e-5)
        state = model.state_dict()
        assert all(torch.equal(state[k], v) for k, v in run.state_dict().items() if k.startswith("head."))
        assert "its rows for 4 of 4 classes" in str(model.backbone.start)


def test_a_run_that_cannot_be_merged_is_no_start(tiny_recipe: Make, tmp_path: Path) -> None:
    run_of(tiny_recipe(method="cst"), tmp_path / "weights.safetensors")
    with pytest.raises(ConfigError, match=r"a run of method cst, which cannot be merged .* those that can: head, "):
        build_detector(tiny_recipe(weights=str(tmp_path)), 3, NEW)


def test_a_run_of_a_run(tiny_recipe: Make, tmp_path: Path) -> None:
    """Its base is merged too; one that names itself ends in a message."""
    first, second = tmp_path / "1" / "weights.safetensors", tmp_path / "2" / "weights.safetensors"
    run_of(tiny_recipe(method="norm"), first)
    run_of(tiny_recipe(method="head", weights=str(first)), second)
    build_detector(tiny_recipe(weights=str(second)), 3, NEW)
    run_of(tiny_recipe(method="head", weights=str(second)), first)
    with pytest.raises(ConfigError, match="were trained from themselves"):
        build_detector(tiny_recipe(weights=str(first)), 3, NEW)


# --- torchvision's ---------------------------------------------------------------------------------------------------


def test_the_names_of_labels_are_torchvisions() -> None:
    assert list(coco_labels()) == FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]


def test_one_message_offline(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(self: object, **options: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(WeightsEnum, "get_state_dict", offline)
    with pytest.raises(ConfigError) as raised:
        build_detector(Recipe(detector="fcos"), 3)
    assert str(raised.value) == (
        "weights COCO: https://download.pytorch.org/models/fcos_resnet50_fpn_coco-99b0c9b7.pth could not be fetched "
        "(no route to host); go online once, or fetch it elsewhere and give its path as weights"
    )


COCO = coco_labels()


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("person", "person"),
        ("People", "person"),
        ("Traffic_Lights", "traffic light"),
        ("traffic-light", "traffic light"),
        ("TrafficLight", "traffic light"),
        ("buses", "bus"),
        ("Wine Glasses", "wine glass"),
        ("knives", "knife"),
        ("ski", "skis"),
        ("mice", "mouse"),
        ("lights", None),
        ("as", None),
        ("N/A", None),
        ("", None),
        ("__background__", None),
    ],
)
def test_names_that_mean_the_same(name: str, known: str | None) -> None:
    found = [COCO[label] for mine, label in matching_labels([name], COCO) if mine == 1]
    assert found == ([] if known is None else [known])


def test_a_label_of_the_same_number_comes_first() -> None:
    assert matching_labels(COCO[1:], COCO) == [(i, i) for i in range(91)]  # N/A stands there several times
    assert matching_labels(["cats", "cat"], ("", "dog", "cats", "cat")) == [(0, 0), (1, 2), (2, 3)]
    assert matching_labels(["cat"], ()) == []
