"""Neck and heads of a trained detector: how much of them is trained. The modes are described in `memory.parts`.

Frozen layers keep only what their backward pass reads (`backbone.lean_layers`), since gradients cross them on their way
to the side network. Tensors keep torchvision's names; ``lora`` adds ``lora_A.weight`` and ``lora_B.weight`` to a layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, TwoMLPHead

from cst_search.backbone.lean_layers import LeanBatchNorm2d, LeanConv2d, LeanReLU, lean_relu
from cst_search.config.recipe import Recipe
from cst_search.detector.base import Detector
from cst_search.errors import ConfigError

_NORMS = (nn.GroupNorm, nn.BatchNorm2d)


def neck_of(model: nn.Module) -> nn.Module:
    """Return the feature pyramid of a detector."""
    return model.backbone.fpn  # type: ignore[union-attr, return-value]


def heads_of(model: nn.Module) -> list[nn.Module]:
    """Return the modules of a detector behind its pyramid."""
    return [child for name, child in model.named_children() if name not in ("backbone", "transform")]


def last_layers(model: nn.Module, detector: Detector) -> list[nn.Module]:
    """Return the modules that give classes and boxes. Raises ConfigError if the detector has none of a name."""
    modules = dict(model.named_modules())
    missing = [name for name in detector.last_layers if name not in modules]
    if missing:
        raise ConfigError(f"detector {detector.name!r} names last layers that it does not have: {', '.join(missing)}")
    return [modules[name] for name in detector.last_layers]


def set_trained_parts(model: nn.Module, recipe: Recipe, detector: Detector) -> None:
    """Freeze neck and heads as the recipe says, and add the low-rank updates, in place.

    Initial values of the updates depend on the recipe's seed alone.

    Raises:
        ConfigError: the detector does not have the last layers that it names.
    """
    last = set(last_layers(model, detector))
    parts = [(neck_of(model), recipe.neck), *((head, recipe.head) for head in heads_of(model))]
    with torch.random.fork_rng([]):
        torch.manual_seed(recipe.seed)
        for part, mode in parts:
            if mode != "train":
                layers = [module for module in part.modules() if module not in last]
                _set_trained(layers, mode, recipe.lora_rank)
                if recipe.memsave:
                    _make_lean(part, layers, relus=mode != "lora")


def _set_trained(layers: Iterable[nn.Module], mode: str, rank: int) -> None:
    for layer in layers:
        for name, parameter in layer.named_parameters(recurse=False):
            per_channel = name == "bias" or isinstance(layer, _NORMS)
            parameter.requires_grad_(mode == "norm" and per_channel)
        if mode == "lora" and isinstance(layer, nn.Conv2d | nn.Linear):
            add_low_rank(layer, rank)


def _make_lean(part: nn.Module, layers: Iterable[nn.Module], *, relus: bool) -> None:
    """Replace frozen layers by lean ones, in place; ``relus``: ReLUs too, except those that a last layer reads."""
    for layer in layers:
        if type(layer) is nn.Conv2d:
            layer.__class__ = LeanConv2d
        elif isinstance(layer, nn.BatchNorm2d) and not layer.weight.requires_grad:
            layer.__class__ = LeanBatchNorm2d
            layer.train(False)
        elif type(layer) is TwoMLPHead and relus:
            layer.__class__ = LeanTwoMLPHead
    for tower in _towers(part) if relus else ():
        for relu in [module for module in tower.modules() if type(module) is nn.ReLU][:-1]:
            relu.__class__ = LeanReLU


def _towers(part: nn.Module) -> Iterator[nn.Module]:
    """Yield torchvision's towers of layers; last layers read the result of each."""
    for name, module in part.named_modules():
        if name.rpartition(".")[2] == "conv" or type(module) is FastRCNNConvFCHead:
            yield module


class LeanTwoMLPHead(TwoMLPHead):
    """torchvision's box head whose first ReLU keeps one bit per value instead of its result."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.fc7(lean_relu(self.fc6(x.flatten(start_dim=1)))))


# --- low-rank updates ------------------------------------------------------------------------------------------------


def add_low_rank(layer: nn.Conv2d | nn.Linear, rank: int) -> None:
    """Make a layer return ``layer(x) + B (A x)``, in place; B is zero at the start.

    The form of PEFT's LoRA layers (Hu et al., ICLR 2022): A is a convolution of the layer's kernel and stride, B a 1x1.
    `petl.modules.conv_lora` sums weights instead, as loralib does; here a tower runs on every level of the pyramid and
    would keep a sum for each.
    """
    if isinstance(layer, nn.Linear):
        low: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
        high: nn.Module = nn.Linear(rank, layer.out_features, bias=False)
    else:
        shape = (layer.kernel_size, layer.stride, layer.padding)
        low = nn.Conv2d(layer.in_channels, rank, *shape, bias=False)  # type: ignore[arg-type]
        high = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
    nn.init.kaiming_uniform_(low.weight, a=math.sqrt(5))  # type: ignore[arg-type]  # as loralib and PEFT
    nn.init.zeros_(high.weight)  # type: ignore[arg-type]
    layer.lora_A, layer.lora_B = low, high
    layer.lora_hook = layer.register_forward_hook(_low_rank)  # type: ignore[assignment]


def _low_rank(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return out.add_(layer.lora_B(layer.lora_A(args[0])))  # type: ignore[operator]


@torch.no_grad()
def merge_low_rank(model: nn.Module) -> None:
    """Add every low-rank update to the weight of its layer, W + B A, and remove it, in place."""
    for layer in [module for module in model.modules() if hasattr(module, "lora_hook")]:
        low, high = layer.lora_A.weight, layer.lora_B.weight  # type: ignore[union-attr]
        layer.weight += torch.einsum("or,r...->o...", high.flatten(1), low)  # type: ignore[operator]
        layer.lora_hook.remove()  # type: ignore[operator, union-attr]
        del layer.lora_A, layer.lora_B, layer.lora_hook
