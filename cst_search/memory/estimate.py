"""What one training step will need, before it runs: no GPU, no weights, no data.

The step is replayed in shapes alone (`tape.py`, `footprint.py`), which gives the peak of its live tensors, and of the
workspaces of cuDNN and cuBLAS, to within a few percent of a real one in a few milliseconds. Around it:

    active   = weights + optimiser state + max(step, update) + cuBLAS's workspaces
    reserved = active * FRAGMENTATION + SLACK_BYTES
    device   = reserved + CONTEXT_BYTES
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from cst_search.config.recipe import Recipe, resolve_recompute
from cst_search.data.coco import resized_hw
from cst_search.detector.build import get_detector
from cst_search.memory.correction import Correction
from cst_search.memory.resnet_shapes import BackboneShape, resnet_shape
from cst_search.memory.tape import Tape
from cst_search.memory.training_step import Plan, Step, neck_and_head_params, training_step
from cst_search.petl import get_method


def _constants() -> dict[str, float]:
    """The lines ``name: value`` of memory.yaml, read without PyYAML: a trial must run without it."""
    lines = (Path(__file__).parent / "memory.yaml").read_text().splitlines()
    pairs = (line.split(":") for line in lines if line and not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


_DEVICE = _constants()
CONTEXT_BYTES = int(_DEVICE["context_bytes"])
FRAGMENTATION = _DEVICE["fragmentation"]
SLACK_BYTES = int(_DEVICE["slack_bytes"])
BLAS_WORKSPACE_BYTES = int(_DEVICE["blas_workspace_bytes"])
# CUDA's caching allocator rounds every request up to this (kMinBlockSize in c10/cuda/CUDACachingAllocator.h)
_BLOCK_BYTES = 512
# what autocast on CUDA runs in four bytes (PyTorch, "Automatic Mixed Precision", CUDA ops that autocast to float32)
CUDA_FP32_OPS = frozenset({"group_norm", "bce", "pow"})

_TARGET_DEVICE = "CUDA GPU (generic)"


@dataclass(frozen=True)
class InputShape:
    """The worst training batch: padded height and width in pixels, and the most boxes in one image."""

    height_px: int
    width_px: int
    max_boxes: int


@dataclass(frozen=True)
class Estimate:
    """Predicted memory of one training step in bytes; ``breakdown`` adds up to ``device_bytes``."""

    device_bytes: int
    reserved_bytes: int
    active_bytes: int
    trainable_params: int
    petl_params: int
    breakdown: Mapping[str, int]
    target_device: str = _TARGET_DEVICE

    def corrected(self, correction: Correction) -> Estimate:
        """With what a study has learned about its device; the context stays as stated."""
        reserved = round(self.reserved_bytes * correction.factor)
        change = reserved - self.reserved_bytes
        if not change:
            return self
        parts = dict(self.breakdown, correction=change)
        return replace(self, reserved_bytes=reserved, device_bytes=self.device_bytes + change, breakdown=parts)


# fields of a recipe that change no tensor's shape, and a value for each
_SHAPELESS: dict[str, Any] = {
    "lr": None, "weight_decay": 0.0, "seed": 0, "epochs": 1, "search_epochs": 1, "warmup": 0.0, "data": "demo",
    "hflip": True, "eval_every": 1, "loader_workers": 0, "clip_norm": 1.0,
}  # fmt: skip


def worst_input(recipe: Recipe, sizes: tuple[tuple[int, int], ...] = (), max_boxes: int = 100) -> InputShape:
    """The largest padded batch that a dataset can give.

    Args:
        sizes: distinct (height, width) of the dataset's images in pixels; empty: the largest that the recipe allows, in
            landscape (COCO: 800 x 1344).
        max_boxes: the most boxes in one image (COCO's training images: 93).

    torchvision scales the short side to image_size_px unless the long side would pass max_size_px, pads a batch to its
    largest height and width, and rounds up to a multiple of 32.
    """
    if not sizes:
        sizes = ((recipe.image_size_px, recipe.max_size_px),)
    resized = [resized_hw(h, w, recipe.image_size_px, recipe.max_size_px) for h, w in sizes]
    height, width = max(h for h, _ in resized), max(w for _, w in resized)
    return InputShape(-(-height // 32) * 32, -(-width // 32) * 32, max_boxes)


def predict(recipe: Recipe, n_classes: int, shape: InputShape | None = None) -> Estimate:
    """Predict the memory of training a recipe.

    Args:
        n_classes: without background.
        shape: of the worst batch, from `worst_input`.

    Raises:
        ConfigError: the method or its options are wrong.
    """
    shape = worst_input(recipe) if shape is None else shape
    # what does not change a shape must not cost another trace
    method = get_method(recipe.method)
    method.make_options(recipe.options)  # refuses what is wrong, also where it changes no shape
    options = {name: value for name, value in recipe.options.items() if name not in method.shapeless}
    plain = replace(
        recipe, options=options, origin=None, accumulate=min(recipe.accumulate, 2),
        weights="none" if recipe.weights == "none" else "demo", **_SHAPELESS,
    )  # fmt: skip
    return _predict(json.dumps(plain.to_dict(), sort_keys=True), n_classes, shape)


def depends_on(key: str) -> bool:
    """Whether a prediction depends on a key of a configuration (``lr``, ``cst.reduction``), see `Recipe.configured`."""
    method, dot, option = key.partition(".")
    return option not in get_method(method).shapeless if dot else key not in _SHAPELESS


@lru_cache(maxsize=4096)
def _predict(recipe_json: str, n_classes: int, shape: InputShape) -> Estimate:
    values: dict[str, Any] = json.loads(recipe_json)
    step = predict_step(Recipe.from_dict(values), n_classes, shape)
    active = step.active_bytes
    reserved = round(active * FRAGMENTATION) + SLACK_BYTES
    device = reserved + CONTEXT_BYTES
    breakdown = {**step.parts, "allocator": reserved - active, "context": CONTEXT_BYTES}
    return Estimate(device, reserved, active, step.trainable_params, step.petl_params, breakdown)


@dataclass(frozen=True)
class StepBytes:
    """A training step in bytes: ``parts`` add up to its peak of live tensors; ``kept``: by autograd, of the forward."""

    parts: Mapping[str, int]
    kept: int
    petl_params: int
    trainable_params: int

    @property
    def active_bytes(self) -> int:
        return sum(self.parts.values())


def predict_step(
    recipe: Recipe,
    n_classes: int,
    shape: InputShape,
    *,
    fp32_ops: frozenset[str] = CUDA_FP32_OPS,
    block: int = _BLOCK_BYTES,
    sums_in_place: bool = True,
    workspaces: bool = True,
) -> StepBytes:
    """The arithmetic itself; by default for CUDA's rules of autocast, its allocator's rounding, its workspaces."""
    method = get_method(recipe.method)
    step, plan = describe(recipe, n_classes, shape)
    petl_params = method.petl_params(step.shape, method.make_options(recipe.options))
    head_params = neck_and_head_params(step)
    trainable = 4 * (petl_params + head_params)
    weights = 4 * (_body_values(step.shape, plan, petl_params) + head_params)

    adds_up = recipe.accumulate > 1  # then the gradients of the first step are there when the second runs
    tape = Tape(
        half=recipe.precision != "fp32", fp32_ops=fp32_ops, block=block, adds_up=adds_up, sums_in_place=sums_in_place,
        conv_copies=workspaces,
    )  # fmt: skip
    kept = training_step(tape, step, plan)
    peak = tape.peak + (trainable if adds_up else 0)
    images = recipe.batch_size * 3 * shape.height_px * shape.width_px * 4
    # AdamW's foreach update holds the gradients and one temporary list beside its two states
    update = images + 2 * trainable
    parts = {"weights": weights, "optimiser": 2 * trainable, "images": images}
    if peak >= update:
        parts |= {"activations": kept, "gradients_and_transients": peak - images - kept}
    else:
        parts |= {"gradients": trainable, "update_transients": trainable}
    if plan.start is not None:
        before = Tape(
            half=tape.half, fp32_ops=fp32_ops, block=block, drops=True, sums_in_place=sums_in_place,
            conv_copies=workspaces,
        )  # fmt: skip
        start = start_pass(before, step, plan.start)
        if weights + start > sum(parts.values()):  # there is no optimiser yet
            parts, kept = {"weights": weights, "start": start}, 0
    if workspaces and tape.multiplies:
        parts["blas_workspace"] = BLAS_WORKSPACE_BYTES
    return StepBytes(parts, kept, petl_params, petl_params + head_params)


def start_pass(tape: Tape, step: Step, plan: Plan) -> int:
    """Peak of live bytes of `petl.Method.prepare`: one image, forward and backward, on a tape that drops gradients.

    Somewhat above the real one, where the pyramid and the heads are frozen.
    """
    training_step(tape, replace(step, batch=1), plan)
    return tape.peak


def describe(recipe: Recipe, n_classes: int, shape: InputShape) -> tuple[Step, Plan]:
    """What the arithmetic needs to know of a recipe."""
    detector = get_detector(recipe.detector)
    backbone = resnet_shape(recipe.backbone, recipe.width, recipe.used_stages, frozen_norm=recipe.weights != "none")
    method = get_method(recipe.method)
    plan = method.footprint(backbone, method.make_options(recipe.options))
    step = Step(
        heads=detector.heads,
        head_params=detector.head_params,
        pooled=detector.pooled,
        shape=backbone,
        channels=recipe.fpn_channels,
        head_convs=recipe.head_convs,
        n_classes=n_classes,
        batch=recipe.batch_size,
        height_px=shape.height_px,
        width_px=shape.width_px,
        max_boxes=shape.max_boxes,
        memsave=recipe.memsave,
        recompute=resolve_recompute(recipe.recompute, has_side=plan.side is not None),
    )
    return step, plan


def _body_values(shape: BackboneShape, plan: Plan, petl_params: int) -> int:
    """Values of parameters and buffers of body and side network."""
    # four a channel of a norm: weight, bias, mean and variance, be they parameters or buffers
    own = shape.n_params + (4 if shape.frozen_norm else 2) * shape.n_norm_channels()
    opened = plan.trained_from <= 5 or plan.norm in ("bias", "affine")
    return own if opened else own + petl_params
