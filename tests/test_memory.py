"""The prediction against what a real training step keeps, and the rules that a search relies on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from cst_search import memory
from cst_search.detector import build_detector, count_parameters
from cst_search.errors import ConfigError
from cst_search.memory import CONTEXT_BYTES, FRAGMENTATION, WORKSPACE_BYTES, InputShape, predict, worst_input
from cst_search.petl import METHODS
from cst_search.recipe import DETECTORS, Recipe

Make = Callable[..., Recipe]
SHAPE = InputShape(128, 192, 5)

families = pytest.mark.parametrize("detector", DETECTORS)
methods = pytest.mark.parametrize("method", sorted(METHODS))

# --- against the truth -----------------------------------------------------------------------------------------------


def saved_by_a_real_step(recipe: Recipe, shape: InputShape) -> int:
    """Bytes of all storages that autograd holds when the losses of the real detector are done, but its own tensors."""
    model = build_detector(recipe, 3).train()
    own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    images = list(torch.rand(recipe.batch_size, 3, shape.height_px, shape.width_px))
    corner = torch.rand(shape.max_boxes, 2) * torch.tensor([shape.width_px, shape.height_px]) * 0.6
    target = {"boxes": torch.cat([corner, corner + 24], 1), "labels": torch.ones(shape.max_boxes, dtype=torch.int64)}
    half = recipe.precision != "fp32"
    with (
        torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
    ):
        losses = model(images, [dict(target) for _ in images])
    assert all(torch.isfinite(loss) for loss in losses.values())
    return sum(storage.nbytes() for key, storage in saved.items() if key not in own)


def real(make: Make, **changes: Any) -> Recipe:
    """Images of exactly SHAPE, so that the transform neither resizes nor pads."""
    return make(image_size_px=SHAPE.height_px, max_size_px=SHAPE.width_px, width=0.25, head_convs=2, **changes)


# Observed: 0.99 to 1.01 for all of these. What is left: matched boxes and indices, which are not traced.
TOLERANCE = 0.02


@families
@methods
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_predicted_activations_are_those_of_a_real_step(
    tiny_recipe: Make, detector: str, method: str, precision: str
) -> None:
    recipe = real(tiny_recipe, detector=detector, method=method, precision=precision)
    truth = saved_by_a_real_step(recipe, SHAPE)
    saved, _, _ = memory._trace(recipe, 3, SHAPE)
    print(f"{detector} {method} {precision}: predicted {saved / 1e6:.3f} MB, real {truth / 1e6:.3f} MB")
    assert saved == pytest.approx(truth, rel=TOLERANCE)


@pytest.mark.parametrize(
    "changes",
    [
        {"options": {"granularity": "block", "norm": "none"}},  # more nodes
        {"options": {"norm": "bn", "block": "depthwise", "operator": "lst", "gate": "channel"}},
        {"options": {"reduction": 64, "block": "bottleneck", "operator": "tanh", "mtc_stages": [5]}},
        {"weights": "none", "method": "full"},  # BatchNorm keeps its input, FrozenNorm does not
        {"backbone": "resnet50", "method": "full"},  # the other residual block
        {"batch_size": 3},
    ],
    ids=str,
)
def test_and_so_they_are_for_other_choices(tiny_recipe: Make, changes: dict[str, Any]) -> None:
    recipe = real(tiny_recipe, detector="retinanet", precision="fp32", **changes)
    saved, _, _ = memory._trace(recipe, 3, SHAPE)
    assert saved == pytest.approx(saved_by_a_real_step(recipe, SHAPE), rel=TOLERANCE)


@families
@pytest.mark.parametrize(
    ("method", "weights"),
    [*((method, {}) for method in sorted(METHODS)), ("full", {"weights": "none"})],  # none: the norms are trained too
)
def test_parameters_are_those_of_the_built_model(
    tiny_recipe: Make, detector: str, method: str, weights: dict[str, str]
) -> None:
    recipe = tiny_recipe(detector=detector, method=method, **weights)
    estimate = predict(recipe, 3, SHAPE)
    assert (estimate.petl_params, estimate.trainable_params) == count_parameters(build_detector(recipe, 3))


@families
def test_the_anchors_are_counted_as_torchvision_makes_them(tiny_recipe: Make, detector: str) -> None:
    recipe = real(tiny_recipe, detector=detector)
    model: Any = build_detector(recipe, 3).train()
    generator = model.rpn.anchor_generator if detector == "fasterrcnn" else model.anchor_generator
    seen: list[Tensor] = []
    generator.register_forward_hook(lambda module, args, out: seen.extend(out))
    model([torch.rand(3, 128, 192)], [{"boxes": torch.tensor([[1.0, 1, 50, 50]]), "labels": torch.tensor([1])}])
    assert memory._trace(recipe, 3, SHAPE)[2] == len(seen[0])


# --- rules -----------------------------------------------------------------------------------------------------------


@families
@methods
def test_the_breakdown_adds_up(tiny_recipe: Make, detector: str, method: str) -> None:
    estimate = predict(tiny_recipe(detector=detector, method=method), 3, SHAPE)
    assert sum(estimate.breakdown.values()) == estimate.device_bytes
    assert all(isinstance(part, int) and part >= 0 for part in estimate.breakdown.values())
    assert estimate.reserved_bytes == round(estimate.active_bytes * FRAGMENTATION) + WORKSPACE_BYTES
    assert estimate.device_bytes == estimate.reserved_bytes + CONTEXT_BYTES


@pytest.mark.parametrize(("size", "part"), [(SHAPE, "gradients"), (InputShape(512, 512, 5), "activations")])
def test_the_larger_of_step_and_update_counts(tiny_recipe: Make, size: InputShape, part: str) -> None:
    """Faster R-CNN's box head has so many parameters that on small images the update is the peak."""
    shapes = {"fpn_channels": 64, "batch_size": 1} if part == "gradients" else {"batch_size": 8}
    estimate = predict(tiny_recipe(detector="fasterrcnn", **shapes), 3, size)
    assert part in estimate.breakdown
    assert sum(estimate.breakdown.values()) == estimate.device_bytes


@families
@pytest.mark.parametrize("method", ["cst", "full"])
def test_more_images_more_pixels_and_more_boxes_need_more(tiny_recipe: Make, detector: str, method: str) -> None:
    recipe = tiny_recipe(detector=detector, method=method)

    def need(batch_size: int, side: int, max_boxes: int) -> int:
        sized = dataclasses.replace(recipe, batch_size=batch_size)
        return predict(sized, 3, InputShape(side, side, max_boxes)).active_bytes

    base = need(4, 128, 5)
    assert need(1, 128, 5) < base < need(4, 192, 5)
    assert base < need(4, 128, 100_000)  # matching is a formula of the boxes, and no peak while they are few


@pytest.mark.parametrize(
    ("detector", "backbone"), [*((family, "resnet18") for family in DETECTORS), ("fasterrcnn", "resnet50")]
)
def test_head_needs_less_than_cst_and_cst_less_than_full(detector: str, backbone: str) -> None:
    """The point of a side network; at the width, size and precision of a real study."""
    recipe = Recipe(detector=detector, backbone=backbone, batch_size=2, precision="fp32", weights="none")
    shape = InputShape(320, 480, 20)
    need = {m: predict(dataclasses.replace(recipe, method=m), 3, shape).active_bytes for m in METHODS}
    assert need["head"] < need["cst"] < need["full"]


def test_half_precision_needs_less(tiny_recipe: Make) -> None:
    need = {
        p: predict(tiny_recipe(precision=p), 3, InputShape(512, 512, 5)).active_bytes
        for p in ("fp32", "bf16", "fp16", "auto")
    }
    assert need["bf16"] < need["fp32"]
    assert need["fp16"] == need["auto"] == need["bf16"]  # two bytes either way


@pytest.mark.parametrize(
    "changes",
    [
        {"lr": 0.5},
        {"weight_decay": 0.3},
        {"seed": 9},
        {"epochs": 50, "search_epochs": 7},
        {"warmup": 0.5},
        {"accumulate": 8},  # micro-batches are what memory sees
        {"clip_norm": 1.5},
        {"hflip": False},
        {"origin": {"study": "s"}},
        {"options": {"gate_init": 1.0, "temperature": 0.5}},
        {"data": "elsewhere"},
    ],
    ids=str,
)
def test_what_changes_no_shape_costs_no_trace(
    tiny_recipe: Make, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    recipe = tiny_recipe()
    expected = predict(recipe, 3, SHAPE)

    def no_trace(*args: Any) -> None:
        raise AssertionError("traced again")

    monkeypatch.setattr(memory, "_trace", no_trace)
    assert predict(dataclasses.replace(recipe, **changes), 3, SHAPE) == expected


@pytest.mark.parametrize(
    "changes",
    [{"batch_size": 5}, {"method": "head"}, {"options": {"reduction": 2}}, {"precision": "bf16"}, {"weights": "none"}],
    ids=str,
)
def test_what_changes_a_shape_changes_the_estimate(tiny_recipe: Make, changes: dict[str, Any]) -> None:
    shape = InputShape(512, 512, 5)
    # BatchNorm in a stage that is trained keeps what FrozenNorm does not
    base = tiny_recipe(precision="fp32", method="full" if "weights" in changes else "cst")
    assert predict(dataclasses.replace(base, **changes), 3, shape).active_bytes != predict(base, 3, shape).active_bytes


def test_predicting_reads_no_weights_and_no_data() -> None:
    recipe = Recipe(weights="/nowhere/at/all.pt", data="/nowhere/either", backbone="resnet18")
    assert predict(recipe, 3, SHAPE).device_bytes > CONTEXT_BYTES


@pytest.mark.parametrize("option", [{"reduction": 0}, {"gate_init": 99.0}, {"temperature": 0.0}], ids=str)
def test_a_wrong_option_is_refused_also_where_it_changes_no_shape(tiny_recipe: Make, option: dict[str, Any]) -> None:
    predict(tiny_recipe(), 3, SHAPE)  # what is remembered must not hide it
    with pytest.raises(ConfigError, match=next(iter(option))):
        predict(tiny_recipe(options=option), 3, SHAPE)


# --- the worst batch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_size", "max_size"),
    [(64, 96), (800, 1333), (333, 500), (600, 600)],  # the last: the long side always decides
)
@pytest.mark.parametrize(
    "sizes",
    [
        ((480, 640),),
        ((640, 480),),
        ((480, 640), (640, 480)),  # both: the batch is padded to a square that no image has
        ((100, 1000),),  # a panorama: bound by max_size
        ((37, 53), (211, 97), (64, 64)),
        ((1, 1),),
    ],
    ids=str,
)
def test_the_worst_input_is_torchvisions_padded_batch(
    image_size: int, max_size: int, sizes: tuple[tuple[int, int], ...]
) -> None:
    recipe = Recipe(image_size_px=image_size, max_size_px=max_size)
    transform = GeneralizedRCNNTransform(image_size, max_size, [0.0] * 3, [1.0] * 3)
    resized = [memory.resized_hw(h, w, image_size, max_size) for h, w in sizes]  # as CocoImages hands them over
    batch, _ = transform([torch.zeros(3, h, w) for h, w in resized])
    worst = worst_input(recipe, sizes, max_boxes=7)
    assert (worst.height_px, worst.width_px, worst.max_boxes) == (*batch.tensors.shape[2:], 7)


def test_without_a_dataset_the_largest_that_the_recipe_allows() -> None:
    assert worst_input(Recipe()) == InputShape(800, 1344, 100)  # COCO, as its docstring says
    assert predict(Recipe(backbone="resnet18"), 3) == predict(Recipe(backbone="resnet18"), 3, worst_input(Recipe()))
