"""What one training step will need, before it runs: no GPU, no weights, no data.

The dense part (backbone, side network, pyramid, heads, focal loss) is traced with fake tensors, which have shapes and
no contents: every tensor that autograd saves is counted once, by storage. What depends on the data (matching ground
truth to anchors) is a formula of the anchors and of the largest number of boxes. A trace takes a few hundred
milliseconds; what does not change shapes (learning rate, gates, seed ...) shares one.

    active   = weights + optimiser state + max(forward and backward, update)
    reserved = active * FRAGMENTATION + WORKSPACE_BYTES
    device   = reserved + CONTEXT_BYTES
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torchvision.ops import sigmoid_focal_loss

from cst_search.data import resized_hw
from cst_search.detector import build_detector, count_parameters
from cst_search.petl import get_method
from cst_search.recipe import Recipe

# The three device constants are stated, not fitted: no GPU was at hand when they were chosen (see docs/memory.md).
# CUDA context with cuDNN and cuBLAS handles loaded. Reported for recent cards and CUDA 12-13: roughly 0.3 to 0.6 GB.
CONTEXT_BYTES = 500_000_000
# The caching allocator hands out blocks from 2 and 20 MiB segments and rounds requests: what it holds over what lives.
FRAGMENTATION = 1.10
# cuDNN's convolution workspaces and cuBLAS's own (8 MiB a handle and stream before Hopper, 32 MiB on it).
WORKSPACE_BYTES = 64_000_000

# Matching one image keeps, for every pair of box and anchor, about nine 4-byte values at once: two corners and an
# intersection (x, y each), area, union and IoU in box_iou; centre offsets and four side distances in FCOS.
_MATCH_BYTES = 36
_ROIS_PER_IMAGE = 512  # torchvision's box_batch_size_per_image
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
        recipe, options=options, lr=None, weight_decay=0.0, seed=0, epochs=1, search_epochs=1, warmup=0.0,
        accumulate=1, origin=None, data="demo", hflip=True, eval_every=1, loader_workers=0, clip_norm=1.0,
        weights="none" if recipe.weights == "none" else "demo",
    )  # fmt: skip
    return _predict(json.dumps(plain.to_dict(), sort_keys=True), n_classes, shape)


@lru_cache(maxsize=4096)
def _predict(recipe_json: str, n_classes: int, shape: InputShape) -> Estimate:
    values: dict[str, Any] = json.loads(recipe_json)
    recipe = Recipe(**values)
    with torch.device("meta"):
        model = build_detector(recipe, n_classes, shapes_only=True)
    petl_params, trainable_params = count_parameters(model)
    weights = sum(_nbytes(t) for t in (*model.parameters(), *model.buffers()))
    trainable = sum(_nbytes(p) for p in model.parameters() if p.requires_grad)

    saved, largest, n_anchors = _trace(recipe, n_classes, shape)
    images = recipe.batch_size * 3 * shape.height_px * shape.width_px * 4
    # the loaded images and the padded batch live side by side while torchvision's transform stacks them
    anchors = recipe.batch_size * n_anchors * 4 * 4
    matching = _MATCH_BYTES * n_anchors * max(1, shape.max_boxes)
    # at the turn from forward to backward all saved tensors live, with the gradients of one large output and its input
    step = saved + anchors + max(matching, 2 * largest)
    # AdamW's foreach update holds gradients and one temporary list beside its two states
    update = 2 * trainable
    optimiser = 2 * trainable
    active = weights + optimiser + 2 * images + max(step, update)
    reserved = round(active * FRAGMENTATION) + WORKSPACE_BYTES
    device = reserved + CONTEXT_BYTES
    step_parts = (
        {"activations": saved, "matching_and_transients": step - saved}
        if step >= update
        else {"gradients": trainable, "update_transients": update - trainable}
    )
    breakdown = {
        "weights": weights,
        "optimiser": optimiser,
        "images": 2 * images,
        **step_parts,
        "workspace_and_fragmentation": reserved - active,
        "context": CONTEXT_BYTES,
    }
    return Estimate(device, reserved, active, trainable_params, petl_params, breakdown)


def _nbytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _trace(recipe: Recipe, n_classes: int, shape: InputShape) -> tuple[int, int, int]:
    """(bytes that autograd saves, bytes of the largest of them, anchors an image) of one forward pass."""
    saved: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage  # held, so that its address is not given to another
        return tensor

    # autocast's effect on what is saved is that of the GPU it stands for: bf16 or fp16, two bytes either way
    half = recipe.precision != "fp32"
    with FakeTensorMode():
        model = build_detector(recipe, n_classes, shapes_only=True).train()
        own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        images = torch.empty(recipe.batch_size, 3, shape.height_px, shape.width_px)
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor),
            torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
        ):
            n_anchors = _forward(model, recipe, images, n_classes)
        sizes = [storage.nbytes() for key, storage in saved.items() if key not in own]
    return sum(sizes), max(sizes, default=0), n_anchors


def _forward(model: nn.Module, recipe: Recipe, images: Tensor, n_classes: int) -> int:
    """The dense part of a training step, losses included where they are dense. Returns the anchors an image."""
    features = list(model.backbone(images).values())  # type: ignore[operator]
    if recipe.detector == "fasterrcnn":
        objectness, _ = model.rpn.head(features)  # type: ignore[union-attr, operator]
        rois = torch.empty(recipe.batch_size * _ROIS_PER_IMAGE, recipe.fpn_channels, 7, 7, requires_grad=True)
        # RoIAlign runs in fp32; its output is what the first linear layer keeps
        model.roi_heads.box_predictor(model.roi_heads.box_head(rois.clone()))  # type: ignore[union-attr, operator]
        return sum(o.shape[1] * o.shape[2] * o.shape[3] for o in objectness)
    out = model.head(features)  # type: ignore[operator]
    logits = out["cls_logits"]
    if recipe.detector == "retinanet":  # one image after the other, each through its mask of valid anchors
        for one in logits:
            sigmoid_focal_loss(one.clone(), torch.zeros_like(one), reduction="sum")
    else:
        sigmoid_focal_loss(logits, torch.zeros_like(logits), reduction="sum")
    return int(logits.shape[1])
