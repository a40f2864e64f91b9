"""torchvision's detectors over a ResNet + FPN, with a PETL method in place.

Modules and tensors keep torchvision's names (``backbone.body.*``, ``backbone.fpn.*``, ``rpn.*``, ``head.*`` ...); the
side network of a method stands apart as ``backbone.side.*``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cst_search.backbone.lean_layers import FixedBatchNorm2d, save_memory
from cst_search.backbone.narrow_maps import guard
from cst_search.backbone.recompute import once_norms
from cst_search.backbone.resnet import STAGES, FrozenNorm
from cst_search.config.recipe import Recipe
from cst_search.detector.lean_heads import recompute_heads
from cst_search.detector.parts import merge_low_rank, set_trained_parts
from cst_search.detector.pretrained import Labels, Start, fix_norms, load_start, read_start
from cst_search.detector.pyramid import Backbone
from cst_search.detector.registry import get_detector
from cst_search.detector.trained_file import TrainedFile
from cst_search.errors import ConfigError
from cst_search.petl import get_method, method_names


def build_detector(
    recipe: Recipe, n_classes: int, class_names: Sequence[str] = (), *, shapes_only: bool = False
) -> nn.Module:
    """Build the detector of a recipe with its method applied, ready to train.

    Args:
        n_classes: number of classes without background; labels are 1..n_classes.
        class_names: their names, label 1 first, for `class_init: match`; empty: unknown.
        shapes_only: True to read no weights; for counting parameters, under ``torch.device("meta")`` or with fake
            tensors.

    Raises:
        ConfigError: unknown method or option, or weights that do not fit.
    """
    method, detector = get_method(recipe.method), get_detector(recipe.detector)
    options = method.make_options(recipe.options)
    torch.manual_seed(recipe.seed)
    backbone = Backbone(recipe, pooled=detector.pooled, p6_from_c5=detector.p6_from_c5, neck_norm=detector.neck_norm)
    # neck and head first, then the method: their initial values do not depend on the method's random numbers
    model = detector.build(backbone, n_classes + 1, recipe)
    if shapes_only:
        fix_norms(model, recipe, whole=recipe.has_trained_detector)
    else:
        labels = Labels(n_classes + 1, tuple(class_names))
        load_start(model, detector, recipe, start_of(recipe), labels)
    backbone.body.requires_grad_(False)
    method.apply(backbone, options)
    set_trained_parts(model, recipe, detector)
    if recipe.memsave:
        save_memory(backbone.body)
    _recompute(model, backbone, recipe.recomputed_part(has_side=backbone.side is not None))
    guard(model)
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
    norms = [module for module in model.modules() if isinstance(module, nn.BatchNorm2d)]
    statistics = [(buffer, buffer.clone()) for norm in norms for buffer in norm.buffers()]
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
        for buffer, before in statistics:  # those of pyramid and heads that start random follow the images
            buffer.copy_(before)


def _recompute(model: nn.Module, backbone: Backbone, what: str) -> None:
    """Turn on recomputation in the backward pass: ``none``, ``neck`` or ``all``."""
    if what == "none":
        return
    once_norms(model)
    recompute_heads(model)
    backbone.fpn.recompute = True
    if backbone.side is not None:
        backbone.side.recompute = True
    backbone.body.recompute = what == "all"


def check_weights(recipe: Recipe, class_names: Sequence[str]) -> tuple[str, bool]:
    """Read the weights of a recipe, downloaded if need be.

    Returns:
        What the detector starts from, as a line for the user, and whether pyramid and heads start trained.

    Raises:
        ConfigError: they cannot be had, or do not fit.
    """
    backbone = build_detector(recipe, len(class_names), class_names).backbone
    assert isinstance(backbone, Backbone)
    return backbone.start, backbone.starts_trained


def restored(file: TrainedFile) -> nn.Module:
    """Build the detector of a file of `cst-search train`, with its trained tensors.

    Raises:
        ConfigError: another base than the one it was trained on, or tensors that do not fit.
    """
    model = build_detector(file.recipe, len(file.class_names), file.class_names)
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    # a random base (`weights: none`) is drawn again from the recipe's seed; the hash tells whether it is the same
    if backbone.base_hash != file.base_hash:
        raise ConfigError(
            f"{str(file.path)!r} was trained on a base with hash {file.base_hash}, but weights "
            f"{file.recipe.weights!r} give {backbone.base_hash}; put the same weights in place"
        )
    own, tensors = trained_tensors(model), file.tensors
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or extra or wrong:
        raise ConfigError(
            f"{str(file.path)!r} does not fit its recipe: missing {missing[:3]}, unknown {extra[:3]}, shape {wrong[:3]}"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    return model


def start_of(recipe: Recipe) -> Start | None:
    """Read what a recipe's detector starts from; None: random numbers. Raises ConfigError."""
    return read_start(recipe, _start_of_run)


def _start_of_run(file: TrainedFile) -> Start:
    """Return a trained run as the start of another: its whole detector, with the method merged into it."""
    if get_method(file.recipe.method).merge is None:
        raise ConfigError(
            f"weights {str(file.path)!r} are a run of method {file.recipe.method}, which cannot be merged into the "
            f"detector, so no other run can start from it; those that can: {', '.join(_mergeable())}"
        )
    model = restored(file)
    merge(model, file.recipe)
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    norm: Any = backbone.body.bn1
    batch_norm = not isinstance(norm, FrozenNorm) or norm.as_batch_norm
    return Start(f"run {file.path}", model.state_dict(), ("", *file.class_names), norm.eps, batch_norm)


def _mergeable() -> list[str]:
    return [name for name in method_names() if get_method(name).merge is not None]


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
        able = ", ".join(_mergeable())
        raise ConfigError(f"method {method.name!r} cannot be merged into the backbone; those that can: {able}")
    method.merge(backbone, method.make_options(recipe.options))
    merge_low_rank(model)
    backbone.body.requires_grad_(False)
    if recipe.memsave:
        save_memory(backbone.body)
    backbone.body.grad_from = len(STAGES)
    backbone.body.train(backbone.body.training)


def _learns_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and not isinstance(module, FixedBatchNorm2d)


def trained_tensors(model: nn.Module) -> OrderedDict[str, Tensor]:
    """Return exactly the tensors that training changes: trainable parameters, and statistics of norms not frozen."""
    live = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    for name, module in model.named_modules():
        if _learns_statistics(module) and any(p.requires_grad for p in module.parameters()):
            live |= {f"{name}.{buffer}" for buffer, _ in module.named_buffers()}
    return OrderedDict((name, value) for name, value in model.state_dict().items() if name in live)
