"""torchvision's detectors over a ResNet + FPN, with a PETL method in place.

Modules and tensors keep torchvision's names (``backbone.body.*``, ``backbone.fpn.*``, ``rpn.*``, ``head.*`` ...); the
side network of a method stands apart as ``backbone.side.*``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cst_search.backbone.lean_layers import save_memory
from cst_search.backbone.recompute import once_norms
from cst_search.backbone.resnet import STAGES
from cst_search.config.recipe import Recipe, resolve_recompute
from cst_search.detector.lean_heads import recompute_heads
from cst_search.detector.parts import merge_low_rank, set_trained_parts
from cst_search.detector.pyramid import Backbone
from cst_search.detector.registry import get_detector
from cst_search.errors import ConfigError
from cst_search.petl import get_method, method_names


def build_detector(recipe: Recipe, n_classes: int, *, shapes_only: bool = False) -> nn.Module:
    """Build the detector of a recipe with its method applied, ready to train.

    Args:
        n_classes: number of classes without background; labels are 1..n_classes.
        shapes_only: True to read no weights; for counting parameters, under ``torch.device("meta")`` or with fake
            tensors.

    Raises:
        ConfigError: unknown method or option, or weights that do not fit.
    """
    method, detector = get_method(recipe.method), get_detector(recipe.detector)
    options = method.make_options(recipe.options)
    torch.manual_seed(recipe.seed)
    backbone = Backbone(recipe, shapes_only, pooled=detector.pooled)
    # neck and head first, then the method: their initial values do not depend on the method's random numbers
    model = detector.build(backbone, n_classes + 1, recipe)
    backbone.body.requires_grad_(False)
    method.apply(backbone, options)
    set_trained_parts(model, recipe, detector)
    if recipe.memsave:
        save_memory(backbone.body)
    _recompute(model, backbone, recipe.recompute)
    return model


def prepare(model: nn.Module, recipe: Recipe, losses: Iterator[Tensor]) -> None:
    """Run `petl.Method.prepare` of the recipe's method, if it has one, on training images; most methods have none.

    Call it before the optimiser is made, on the training device. It does not affect later random numbers.

    Args:
        losses: training losses of single images, as `trial.engine.losses` makes them; drawn only as far as needed.
    """
    method = get_method(recipe.method)
    if method.prepare is None:
        return
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    trained = [p for p in model.parameters() if p.requires_grad]
    device = trained[0].device
    try:
        for parameter in trained:  # gradients not needed here would take memory
            parameter.requires_grad_(False)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(recipe.seed)  # Faster R-CNN samples regions at random
            method.prepare(backbone, method.make_options(recipe.options), losses)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _recompute(model: nn.Module, backbone: Backbone, what: str) -> None:
    """Turn on recomputation in the backward pass for the parts named by a recipe's ``recompute``."""
    what = resolve_recompute(what, has_side=backbone.side is not None)
    if what == "none":
        return
    once_norms(model)
    recompute_heads(model)
    backbone.fpn.recompute = True
    if backbone.side is not None:
        backbone.side.recompute = True
    backbone.body.recompute = what == "all"


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """Return (petl_params, trainable_params): parameters added to or opened in the backbone, and all trained ones."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    parts = [backbone.body] + ([backbone.side] if backbone.side is not None else [])
    petl = sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)
    return petl, trainable


def merge(model: nn.Module, recipe: Recipe) -> None:
    """Merge the recipe's trained method into the body, and low-rank updates of neck and heads, in place.

    The output stays the same. The detector then holds only torchvision's tensors, as one of method ``head`` does.

    Raises:
        ConfigError: an exact merge is impossible for this method or its options.
    """
    method, backbone = get_method(recipe.method), model.backbone
    assert isinstance(backbone, Backbone)
    if method.merge is None:
        able = ", ".join(name for name in method_names() if get_method(name).merge is not None)
        raise ConfigError(f"method {method.name!r} cannot be merged into the backbone; those that can: {able}")
    method.merge(backbone, method.make_options(recipe.options))
    merge_low_rank(model)
    backbone.body.requires_grad_(False)
    if recipe.memsave:
        save_memory(backbone.body)
    backbone.body.grad_from = len(STAGES)
    backbone.body.train(backbone.body.training)


def trained_tensors(model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return exactly the tensors that training changes: trainable parameters, and statistics of norms not frozen."""
    live = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d) and any(p.requires_grad for p in module.parameters()):
            live |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers()}
    return OrderedDict((name, value) for name, value in model.state_dict().items() if name in live)
