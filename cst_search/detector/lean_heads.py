"""Variants of torchvision's detection heads that need less memory, with the same losses and gradients.

Anchors and boxes are always matched for a few boxes at a time (`box_iou`). If a recipe asks for ``recompute``,
`recompute_heads` makes the dense heads keep only their inputs and outputs; the rest is recomputed in the backward pass.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import (
    RetinaNet,
    RetinaNetClassificationHead,
    RetinaNetRegressionHead,
)
from torchvision.models.detection.rpn import RPNHead
from torchvision.ops import boxes as box_ops

from cst_search.backbone.recompute import recompute
from cst_search.memory.dense_heads import IOU_PAIRS
from cst_search.memory.plan import images_at_once


def box_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """Return torchvision's box_iou, (M, 4) and (N, 4) -> (M, N), computed in chunks of a few boxes.

    torchvision's box_iou holds 36 bytes per pair at once: 1 GB for the 270,000 anchors of an 800 px image and 100
    boxes. This one processes at most IOU_PAIRS pairs at once.
    """
    overlaps = boxes.new_empty(len(boxes), len(anchors))
    at_once = max(1, IOU_PAIRS // max(1, len(anchors)))
    for some, out in zip(boxes.split(at_once), overlaps.split(at_once), strict=True):
        out.copy_(box_ops.box_iou(some, anchors))
    return overlaps


class LeanRetinaNet(RetinaNet):
    """torchvision's RetinaNet, with anchors matched by `box_iou`."""

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], anchors: list[Tensor]
    ) -> dict[str, Tensor]:
        matched = [
            self.proposal_matcher(box_iou(target["boxes"], mine))
            if len(target["boxes"])
            else torch.full((len(mine),), -1, dtype=torch.int64, device=mine.device)
            for mine, target in zip(anchors, targets, strict=True)
        ]
        return self.head.compute_loss(targets, head_outputs, anchors, matched)


class _ByLevel(nn.Module):
    """Mixin for a torchvision head that recomputes each feature map of its input on its own.

    Large feature maps are split into a few images at a time to keep the recomputed part small; the gradients of the
    weights are then summed in another order.
    """

    def forward(self, x: list[Tensor]) -> Any:
        levels = []
        for feature in x:
            pieces = feature.split(images_at_once(feature[0].numel())) if torch.is_grad_enabled() else [feature]
            levels.append(_join([recompute(super(_ByLevel, self).forward, [piece]) for piece in pieces], dim=0))
        return _join(levels, dim=1)


class _ByImage(_ByLevel):
    """`_ByLevel` that also recomputes RetinaNet's focal loss, which keeps eight values per logit, image by image."""

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], matched_idxs: list[Tensor]
    ) -> Tensor:
        def one(index: int, logits: Tensor) -> Tensor:
            outputs = {"cls_logits": logits[None]}
            return super(_ByImage, self).compute_loss([targets[index]], outputs, [matched_idxs[index]])  # type: ignore[misc]

        losses = [recompute(one, index, logits) for index, logits in enumerate(head_outputs["cls_logits"])]
        return torch.stack(losses).sum() / len(targets)


class _LossAgain(nn.Module):
    """Mixin for the head of FCOS that recomputes its losses."""

    def compute_loss(self, *args: Any) -> Any:
        return recompute(super().compute_loss, *args)  # type: ignore[misc]


def _join(parts: list[Any], dim: int) -> Any:
    """Join outputs of a head: tensors (B, anchors, ...) along ``dim``, the lists of RPN level by level."""
    if len(parts) == 1:
        return parts[0]
    if isinstance(parts[0], Tensor):
        return torch.cat(parts, dim=dim)
    if isinstance(parts[0], tuple):
        return tuple(_join(list(each), dim) for each in zip(*parts, strict=True))
    if dim == 0:
        return [torch.cat(each) for each in zip(*parts, strict=True)]
    return [item for part in parts for item in part]


@cache
def _mixed(mixin: type[nn.Module], kind: type[nn.Module]) -> type[nn.Module]:
    return type(f"{mixin.__name__[1:]}{kind.__name__}", (mixin, kind), {})


_MIXINS: dict[type[nn.Module], type[nn.Module]] = {
    RPNHead: _ByLevel,
    RetinaNetClassificationHead: _ByImage,
    RetinaNetRegressionHead: _ByLevel,
    FCOSHead: _LossAgain,
    FCOSClassificationHead: _ByLevel,
    FCOSRegressionHead: _ByLevel,
}


def recompute_heads(model: nn.Module) -> None:
    """Make the dense heads of a detector keep only their inputs and outputs, in place.

    Heads that are not torchvision's own classes are left unchanged. Tensors and their names do not change.
    """
    for module in model.modules():
        if type(module) in _MIXINS:
            module.__class__ = _mixed(_MIXINS[type(module)], type(module))  # type: ignore[arg-type]
