"""Predicted cost of inference against detection with real detectors on a CPU."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import prediction

from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.detector.build import build_detector, merge, trained_tensors
from cst_search.detector.registry import get_detector
from cst_search.memory.estimate import InputShape, worst_input
from cst_search.memory.inference import InferenceCost
from cst_search.petl import METHODS
from cst_search.trial import cost
from cst_search.trial.cost import predict, predict_inference

Make = Callable[..., Recipe]
SHAPE = InputShape(128, 192, 5)


class Real(NamedTuple):
    flops: int
    peak_bytes: int
    weights_bytes: int
    delta_bytes: int


def _detector(recipe: Recipe) -> Any:
    """Build a detector; one with regions gives as many as it can, as if no two of them overlapped."""
    torch.manual_seed(0)
    model: Any = build_detector(recipe, 3, shapes_only=True).eval()
    prediction._calm(model)
    if hasattr(model, "rpn"):
        model.rpn.nms_thresh = 1.0
        torch.nn.init.zeros_(model.rpn.head.bbox_pred.weight)
    return model


def measured(recipe: Recipe) -> Real:
    """Count operations, live tensors and sizes of a real detector on one image of exactly SHAPE."""
    model = _detector(recipe)
    own = [*model.parameters(), *model.buffers()]
    counter, live = FlopCounterMode(display=False), prediction.LiveBytes(own)
    with torch.no_grad():
        with counter:
            model([torch.rand(3, SHAPE.height_px, SHAPE.width_px)])
        with live, torch.autocast("cpu", dtype=torch.bfloat16, enabled=recipe.precision != "fp32"):
            images = [torch.rand(3, SHAPE.height_px, SHAPE.width_px)]
            model(images)
    return Real(counter.get_total_flops(), live.peak, _n_bytes(own), _n_bytes(trained_tensors(model).values()))


def _n_bytes(tensors: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def predicted(recipe: Recipe, **options: Any) -> InferenceCost:
    """Predict by the rules of a CPU under a dispatch mode, as `prediction.predicted_step` does."""
    rules: dict[str, Any] = {"fp32_ops": prediction.CPU_FP32_OPS, "block": 1, "workspaces": False}
    return predict_inference(recipe, 3, SHAPE, **rules, **options)


def sized(make: Make, **changes: Any) -> Recipe:
    """Images of exactly SHAPE, so that the transform neither resizes nor pads."""
    return make(**({"image_size_px": SHAPE.height_px, "max_size_px": SHAPE.width_px, "precision": "fp32"} | changes))


def _check(recipe: Recipe) -> None:
    real, guess = measured(recipe), predicted(recipe)
    assert guess.flops == real.flops
    assert guess.delta_bytes == real.delta_bytes
    assert guess.weights_bytes == pytest.approx(real.weights_bytes, abs=8 * 100)  # counters of norms
    assert guess.peak_bytes == pytest.approx(real.peak_bytes, rel=0.015)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("method", sorted(METHODS))
def test_costs_are_those_of_a_real_detector(tiny_recipe: Make, detector: str, method: str) -> None:
    _check(sized(tiny_recipe, detector=detector, method=method))


@pytest.mark.parametrize(
    "changes",
    [
        {"backbone": "resnet50", "fpn_channels": 96, "head_convs": 3, "width": 0.25},
        {"method": "cst", "options": {"granularity": "block", "norm": "bn", "block": "depthwise"}},  # statistics
        {"method": "cst", "options": {"block": "bottleneck", "norm": "none", "operator": "tanh", "gate": "channel"}},
        {"method": "lst", "options": {"keep": "every_second"}, "backbone": "resnet50"},
        {"method": "side_tuning", "options": {"blocks": 0, "norm": "bn"}},
        {"method": "conv_lora", "options": {"targets": "all", "rank": 3}, "backbone": "resnet50"},
        {"method": "serial_adapter", "options": {"position": "middle", "norm": "bn"}, "backbone": "resnet50"},
        {"method": "conv_adapter", "options": {"kernel": 5, "first_stage": 4}},
        {"method": "ssf", "options": {"after": "block"}},
        {"method": "full", "weights": "none"},  # a body whose statistics are learned
        {"method": "partial", "options": {"stages": 2}, "weights": "none"},
        {"method": "norm", "weights": "none"},
        {"detector": "fasterrcnn_v2", "weights": "none", "method": "full"},
        {"detector": "fasterrcnn_v2", "weights": "IMAGENET"},  # norms of the neck learn, those of the body do not
        {"detector": "fasterrcnn_v2", "neck": "norm", "head": "predictor", "weights": "demo-detector"},
        {"detector": "retinanet_v2", "neck": "lora", "head": "lora", "lora_rank": 2, "weights": "demo-detector"},
        {"detector": "fasterrcnn", "neck": "frozen", "head": "lora", "weights": "demo-detector"},
        {"detector": "fasterrcnn", "detections_per_image": 600},  # more regions
        {"detector": "retinanet", "memsave": False, "recompute": "none"},
        {"detector": "retinanet", "recompute": "all", "method": "norm"},
    ],
    ids=str,
)
def test_costs_are_real_for_other_choices(tiny_recipe: Make, changes: dict[str, Any]) -> None:
    _check(sized(tiny_recipe, **changes))


@pytest.mark.parametrize("detector", DETECTORS)
def test_peak_under_autocast(tiny_recipe: Make, detector: str) -> None:
    recipe = sized(tiny_recipe, detector=detector, precision="bf16")
    assert predicted(recipe).peak_bytes == pytest.approx(measured(recipe).peak_bytes, rel=0.06)


@pytest.mark.parametrize("detector", DETECTORS)
def test_whole_detector_is_its_state_after_merging(tiny_recipe: Make, detector: str) -> None:
    recipe = sized(tiny_recipe, detector=detector, method="conv_lora")
    model = _detector(recipe)
    merge(model, recipe)
    assert predicted(recipe).detector_bytes == _n_bytes(model.state_dict().values())


def test_base_is_what_the_tasks_start_from(tiny_recipe: Make) -> None:
    whole = predicted(sized(tiny_recipe, weights="demo-detector"))
    body = predicted(sized(tiny_recipe, weights="IMAGENET"))
    model = _detector(sized(tiny_recipe, weights="IMAGENET"))
    assert whole.base_bytes == whole.detector_bytes
    assert body.base_bytes == _n_bytes(model.backbone.body.state_dict().values())


def test_the_body_is_one_part_of_the_operations(tiny_recipe: Make) -> None:
    recipe = sized(tiny_recipe)
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        _detector(recipe).backbone.body(torch.rand(1, 3, SHAPE.height_px, SHAPE.width_px))
    assert predicted(recipe).body_flops == counter.get_total_flops()


@pytest.mark.parametrize("method", sorted(METHODS))
def test_tasks_share_the_pass_of_a_body_that_stays_as_it_is(tiny_recipe: Make, method: str) -> None:
    one = predicted(sized(tiny_recipe, method=method))
    shares = method in ("cst", "lst", "side_tuning", "head")
    assert one.marginal_flops == one.flops - (one.body_flops if shares else 0)
    tasks = one.on_one_base(5)
    assert tasks.flops == one.flops + 4 * one.marginal_flops
    assert tasks.storage_bytes == one.base_bytes + 5 * one.delta_bytes
    assert tasks.inference_bytes == one.inference_bytes + 4 * one.delta_bytes


def test_whole_detectors_share_nothing(tiny_recipe: Make) -> None:
    one = predicted(sized(tiny_recipe, method="full"))
    tasks = one.apart(5)
    assert (tasks.flops, tasks.storage_bytes) == (5 * one.flops, 5 * one.detector_bytes)
    assert tasks.inference_bytes == 5 * one.weights_bytes + one.peak_bytes


def test_held_feature_maps_add_to_the_peak_behind_the_body(tiny_recipe: Make) -> None:
    # heads that need more than the body, so that the peak lies behind it
    recipe = sized(tiny_recipe, detector="fasterrcnn", fpn_channels=128)
    alone, held = predicted(recipe), predicted(recipe, holds_features=True)
    with torch.no_grad():
        features = _detector(recipe).backbone.body(torch.rand(1, 3, SHAPE.height_px, SHAPE.width_px))
    assert held.peak_bytes - alone.peak_bytes == _n_bytes(features.values())


def test_one_image_is_the_largest_and_no_batch(tiny_recipe: Make) -> None:
    """A batch of upright and lying images is padded to a square that no image has."""
    recipe = tiny_recipe(image_size_px=128, max_size_px=192, batch_size=4)
    both = worst_input(recipe, ((100, 150), (150, 100), (100, 100)))
    lying = worst_input(recipe, ((100, 150),))
    assert (both.height_px, both.width_px) == (192, 192)
    assert predict_inference(recipe, 3, both).flops == predict_inference(recipe, 3, lying).flops
    assert predict_inference(dataclasses.replace(recipe, batch_size=1), 3, lying) == predict_inference(recipe, 3, lying)


def test_estimate_has_the_figures_of_the_trained_detector(tiny_recipe: Make) -> None:
    recipe = tiny_recipe(detector="fasterrcnn")
    more = dataclasses.replace(recipe, detections_per_image=900)
    one = predict_inference(recipe, 3)
    guess = predict(recipe, 3)
    assert (guess.delta_bytes, guess.inference_bytes) == (one.delta_bytes, one.inference_bytes)
    assert (guess.flops, guess.marginal_flops) == (one.flops, one.marginal_flops)
    assert predict(more, 3).flops > guess.flops  # more regions, which training does not have
    assert predict(more, 3).device_bytes == guess.device_bytes


def test_heads_stand_for_detection_where_a_detector_says_nothing_of_it(
    tiny_recipe: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = sized(tiny_recipe)
    told = predicted(recipe)
    monkeypatch.setattr(cost, "get_detector", lambda name: dataclasses.replace(get_detector(name), detect=None))
    untold = predicted(recipe)
    assert untold.flops == told.flops and untold.peak_bytes >= told.peak_bytes
