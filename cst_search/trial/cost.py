"""The cost of a configuration before it runs: predicted memory and exact parameters. Needs no torch.

Joins what recipe, method and detector say of their shapes with the arithmetic of `cst_search.memory`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import Any

from cst_search.config.recipe import READING_FIELDS, Recipe
from cst_search.detector.base import images_evaluated_at_once
from cst_search.detector.registry import get_detector
from cst_search.memory.allocator import MIN_BLOCK_BYTES, expands_segments
from cst_search.memory.estimate import (
    CUDA_FP32_OPS,
    Estimate,
    InputShape,
    StepBytes,
    estimate_of,
    process_context_of,
    step_bytes,
    worst_input,
)
from cst_search.memory.evaluation import with_evaluation
from cst_search.memory.gpu_costs import GENERIC, GpuCosts
from cst_search.memory.inference import INFERENCE_FIGURES, InferenceCost, inference_cost
from cst_search.memory.plan import MemoryPlan, StepShape
from cst_search.memory.resnet_shapes import BackboneShape, resnet_shape
from cst_search.memory.tape import Tape
from cst_search.petl import get_method

# fields of a recipe that change no tensor's shape, and a value for each
_SHAPELESS: dict[str, Any] = {
    "lr": None, "weight_decay": 0.0, "seed": 0, "epochs": 1, "search_epochs": 1, "warmup": 0.0, "data": "demo",
    "hflip": True, "augment": "none", "scale_jitter": None, "photometric": None, "class_init": "match",
    "eval_every": 1, "loader_workers": 0, "clip_norm": 1.0, "detections_per_image": None,
    **{name: getattr(Recipe(), name) for name in READING_FIELDS},
}  # fmt: skip


def predict(
    recipe: Recipe,
    n_classes: int,
    shape: InputShape | None = None,
    *,
    evaluates: bool = True,
    gpu: GpuCosts = GENERIC,
) -> Estimate:
    """Predict the memory of training a recipe, and what its trained detector costs on one image.

    Args:
        n_classes: without background.
        shape: of the worst batch, from `worst_input`.
        evaluates: False for a process that trains only.
        gpu: costs of the GPU that it is for.

    Raises:
        ConfigError: the method or its options are wrong.
    """
    shape = shape or worst_input(recipe)
    n_detections = recipe.max_detections if evaluates else None
    trained = _predict(_shapes_of(recipe), n_classes, shape, n_detections, expands_segments(), gpu)
    return replace(trained, **_inference_figures(recipe, n_classes, shape))


def predict_roughly(
    recipe: Recipe,
    n_classes: int,
    shape: InputShape | None = None,
    *,
    inference: bool = False,
    gpu: GpuCosts = GENERIC,
) -> Estimate:
    """Predict training as `predict` does, in less than half the time: a factor stands for the simulated allocator.

    Args:
        inference: True to predict the cost of the trained detector too.
        gpu: as in `predict`.
    """
    shape = shape or worst_input(recipe)
    trained = _predict_roughly(_shapes_of(recipe), n_classes, shape, gpu)
    return replace(trained, **_inference_figures(recipe, n_classes, shape)) if inference else trained


def _inference_figures(recipe: Recipe, n_classes: int, shape: InputShape) -> dict[str, Any]:
    """Return the fields of an estimate that are of the trained detector."""
    cost = _predict_inference(_shapes_of(recipe), n_classes, shape, recipe.max_detections)
    return {name: getattr(cost, name) for name in INFERENCE_FIGURES}


@dataclass(frozen=True)
class _Shapes:
    """Inputs of a prediction; ``key`` is equal for equal shapes."""

    key: str
    recipe: Recipe = field(compare=False)  # without what changes no shape, which must not cost another trace


def _shapes_of(recipe: Recipe) -> _Shapes:
    method = get_method(recipe.method)
    method.make_options(recipe.options)  # refuses what is wrong, also where it changes no shape
    options = {name: value for name, value in recipe.options.items() if name not in method.shapeless}
    plain = replace(
        recipe, options=options, origin=None, accumulate=min(recipe.accumulate, 2),
        weights=_start(recipe), recompute=recomputed_part(recipe), **_SHAPELESS,
    )  # fmt: skip
    return _Shapes(json.dumps(vars(plain), sort_keys=True, default=dict), plain)


def _start(recipe: Recipe) -> str:
    """Return weights that stand for all that start a detector alike: whole, its body alone, or from random numbers."""
    if recipe.weights_kind == "none":
        return "none"
    return "demo-detector" if recipe.has_trained_detector else "demo"


def depends_on(key: str) -> bool:
    """Return whether a prediction depends on a key of a configuration, such as ``cst.reduction``."""
    method, dot, option = key.partition(".")
    return option not in get_method(method).shapeless if dot else key not in _SHAPELESS


@lru_cache(maxsize=4096)
def _predict(
    shapes: _Shapes, n_classes: int, shape: InputShape, n_detections: int | None, expandable: bool, gpu: GpuCosts
) -> Estimate:
    """Predict training, and evaluation with up to ``n_detections`` an image; None: there is none."""
    step = predict_step(shapes.recipe, n_classes, shape, gpu=gpu, traced=True)
    if n_detections is not None:
        step = _evaluated(step, replace(shapes.recipe, detections_per_image=n_detections), n_classes, shape)
    return estimate_of(step, expandable=expandable, gpu=gpu)


def _evaluated(trained: StepBytes, recipe: Recipe, n_classes: int, shape: InputShape) -> StepBytes:
    """Return the bytes of a trial, which evaluates too."""
    step, plan = describe(recipe, n_classes, shape)
    step = replace(step, batch=images_evaluated_at_once(recipe.batch_size, recipe.max_detections))
    rules: dict[str, Any] = {"fp32_ops": CUDA_FP32_OPS, "block": MIN_BLOCK_BYTES, "conv_copies": True}
    tape = Tape(half=recipe.precision != "fp32", trace=[], **rules)
    return with_evaluation(trained, tape, step, plan)


@lru_cache(maxsize=4096)
def _predict_roughly(shapes: _Shapes, n_classes: int, shape: InputShape, gpu: GpuCosts) -> Estimate:
    return estimate_of(predict_step(shapes.recipe, n_classes, shape, gpu=gpu), gpu=gpu)


@lru_cache(maxsize=4096)
def _predict_inference(shapes: _Shapes, n_classes: int, shape: InputShape, max_detections: int) -> InferenceCost:
    return predict_inference(replace(shapes.recipe, detections_per_image=max_detections), n_classes, shape)


def predict_step(
    recipe: Recipe,
    n_classes: int,
    shape: InputShape,
    *,
    fp32_ops: frozenset[str] = CUDA_FP32_OPS,
    block: int = MIN_BLOCK_BYTES,
    sums_in_place: bool = True,
    workspaces: bool = True,
    gpu: GpuCosts = GENERIC,
    traced: bool = False,
) -> StepBytes:
    """Predict the live bytes of one training step of a recipe; options as in `memory.estimate.step_bytes`."""
    method = get_method(recipe.method)
    step, plan = describe(recipe, n_classes, shape)
    return step_bytes(
        step,
        plan,
        method.petl_params(step.shape, method.make_options(recipe.options)),
        half=recipe.precision != "fp32",
        accumulates=recipe.accumulate > 1,
        fp32_ops=fp32_ops,
        block=block,
        sums_in_place=sums_in_place,
        workspaces=workspaces,
        gpu=gpu,
        traced=traced,
    )


def predict_inference(
    recipe: Recipe,
    n_classes: int,
    shape: InputShape | None = None,
    *,
    holds_features: bool = False,
    fp32_ops: frozenset[str] = CUDA_FP32_OPS,
    block: int = MIN_BLOCK_BYTES,
    workspaces: bool = True,
) -> InferenceCost:
    """Predict the cost of detection in the largest image with a recipe's trained detector.

    Args:
        n_classes: without background.
        shape: of the worst batch, from `worst_input`.
        holds_features: True if the feature maps of the body are held to the end, for other tasks.
        fp32_ops, block, workspaces: as in `memory.estimate.step_bytes`.

    Raises:
        ConfigError: the method or its options are wrong.
    """
    method = get_method(recipe.method)
    step, plan = describe(recipe, n_classes, (shape or worst_input(recipe)).image)
    return inference_cost(
        step,
        plan,
        method.petl_params(step.shape, method.make_options(recipe.options)),
        shares_body=method.side,
        holds_features=holds_features,
        new_tape=partial(Tape, half=recipe.precision != "fp32", fp32_ops=fp32_ops, block=block, conv_copies=workspaces),
        workspaces=workspaces,
    )


def context_bytes(recipe: Recipe, n_classes: int, *, gpu: GpuCosts = GENERIC) -> int:
    """Return the CUDA context of a process that trains a recipe, with cuBLAS where it is loaded."""
    # what runs does not depend on the size
    small = InputShape(64, 64, 1)
    return process_context_of(predict_roughly(replace(recipe, batch_size=1), n_classes, small, gpu=gpu).breakdown)


def backbone_shape(recipe: Recipe) -> BackboneShape:
    """Return the shape of a recipe's backbone."""
    return resnet_shape(recipe.backbone, recipe.width, recipe.used_stages, frozen_norm=recipe.frozen_norm)


def memory_plan(recipe: Recipe) -> MemoryPlan:
    """Return the changes that a recipe's method makes to the training step, in shapes."""
    method = get_method(recipe.method)
    return method.footprint(backbone_shape(recipe), method.make_options(recipe.options))


def recomputed_part(recipe: Recipe) -> str:
    """Return what a recipe recomputes where no budget decides: ``none``, ``neck`` or ``all``."""
    return recipe.recomputed_part(has_side=memory_plan(recipe).side is not None)


def with_recompute(
    config: Mapping[str, Any],
    recipe: Recipe,
    device_bytes: Callable[[dict[str, Any]], int],
    budget_bytes: int | None,
    *,
    spares_memory: bool = False,
) -> dict[str, Any]:
    """Return a configuration of a recipe with what ``recompute: auto`` stands for; unchanged if it is not ``auto``.

    It is the first of none, neck and all that is within the budget; if none is, the one that needs least.

    Args:
        device_bytes: predicted device memory of a configuration.
        budget_bytes: None: no budget.
        spares_memory: True if less memory is an aim of its own: then a side network, which is there to save memory, is
            recomputed in any case.
    """
    configured = recipe.configured(config)
    if configured.recompute != "auto" or configured.origin is not None:
        return dict(config)
    has_side = spares_memory and memory_plan(configured).side is not None
    choices = [dict(config) | {"recompute": part} for part in ("none", "neck", "all")[has_side:]]
    if budget_bytes is None:
        return choices[0]
    fitting = (choice for choice in choices if device_bytes(choice) <= budget_bytes)
    return next(fitting, None) or min(choices, key=device_bytes)


def with_former_recompute(config: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    """Return the configuration of a stored trial with what it recomputed.

    Earlier versions did not store it where it was ``auto``: ``neck`` with a side network.
    """
    if config.get("recompute", recipe.recompute) != "auto":
        return dict(config)
    has_side = memory_plan(recipe.configured(config)).side is not None
    return {**config, "recompute": "neck" if has_side else "none"}


def describe(recipe: Recipe, n_classes: int, shape: InputShape) -> tuple[StepShape, MemoryPlan]:
    """Return a recipe's training step and its method's changes to it, in shapes."""
    detector, plan = get_detector(recipe.detector), memory_plan(recipe)
    step = StepShape(
        heads=detector.heads,
        head_layers=detector.head_layers,
        tower=None if detector.tower is None else detector.tower(recipe),
        pooled=detector.pooled,
        shape=backbone_shape(recipe),
        channels=recipe.fpn_channels,
        n_classes=n_classes,
        batch=recipe.batch_size,
        height_px=shape.height_px,
        width_px=shape.width_px,
        max_boxes=shape.max_boxes,
        memsave=recipe.memsave,
        recompute=recomputed_part(recipe),
        neck=recipe.neck,
        head=recipe.head,
        lora_rank=recipe.lora_rank,
        p6_from_c5=detector.p6_from_c5,
        neck_norm=detector.neck_norm,
        fixed_norms=recipe.has_trained_detector,
        detect=detector.detect,
        max_detections=recipe.max_detections,
        fixed_body_norms=recipe.weights_kind != "none",
    )
    return step, plan
