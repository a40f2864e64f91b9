"""Training steps that keep less for the backward pass, with the same gradients.

Three ways, two of them choices of a recipe:

``memsave``     PyTorch keeps the input of a frozen convolution, and of a batch norm in eval mode, whenever a gradient
                passes (pytorch#133566), though only the gradient of the weight would need it. And ReLU keeps its whole
                output, of which the backward pass reads one bit a value. `save_memory` drops both. TinyTL (Cai et al.,
                NeurIPS 2020) and memsave_torch (Bhatia and Dangel, 2024) go the same way.
always          Matching anchors and boxes works on some boxes at a time, see `box_iou`.
``checkpoint``  What was not kept is computed again (Chen et al., arXiv 1604.06174), see `recompute`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from torch.utils.checkpoint import checkpoint
from torchvision.models.detection.fcos import FCOSClassificationHead, FCOSHead, FCOSRegressionHead
from torchvision.models.detection.retinanet import (
    RetinaNet,
    RetinaNetClassificationHead,
    RetinaNetRegressionHead,
)
from torchvision.models.detection.rpn import RPNHead
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import boxes as box_ops

from cst_search.memory.training_step import IOU_PAIRS, images_at_once

T = TypeVar("T")

# --- memsave: layers that keep only what their backward pass reads ----------------------------------------------------


class _Conv(torch.autograd.Function):
    """A convolution with a constant weight, which needs nothing but that weight to pass a gradient on."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, conv: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.conv, ctx.shape, ctx.dtype = conv, x.shape, x.dtype
        return F.conv2d(x, weight, None, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        (weight,), conv = ctx.saved_tensors, ctx.conv
        # under autocast the convolution ran in the type of its gradient; the weight is cast again, not kept twice
        grad_x = conv2d_input(
            ctx.shape, weight.to(grad.dtype), grad, conv.stride, conv.padding, conv.dilation, conv.groups
        )
        return grad_x.to(ctx.dtype), None, None


class LeanConv2d(nn.Conv2d):
    """A frozen convolution without bias that does not keep its input; with its weight opened it is the stock one."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad:  # for a moment, in `petl.pruning.fisher`
            return super().forward(x)
        return _Conv.apply(x, self.weight, self)


class _Relu(torch.autograd.Function):
    """ReLU that keeps one bit a value."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, inplace: bool) -> Tensor:
        if inplace:
            ctx.mark_dirty(x)
        out = x.relu_() if inplace else x.relu()
        if ctx.needs_input_grad[0]:
            ctx.save_for_backward(pack_bits(out > 0))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        is_open = unpack_bits(ctx.saved_tensors[0], grad.numel()).view(grad.shape)
        return torch.ops.aten.threshold_backward(grad, is_open.to(grad.dtype), 0), None  # as the stock ReLU does


class LeanReLU(nn.ReLU):
    """ReLU that keeps one bit a value instead of its output."""

    def forward(self, x: Tensor) -> Tensor:
        return _Relu.apply(x, self.inplace) if torch.is_grad_enabled() else super().forward(x)


class _MaxPool(torch.autograd.Function):
    """Max pooling that keeps 4-byte indices and no input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: nn.MaxPool2d) -> Tensor:
        out, indices = F.max_pool2d(
            x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, return_indices=True
        )
        ctx.save_for_backward(indices.int())  # they count within one plane
        ctx.pool, ctx.shape = pool, x.shape
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        pool, shape_only = ctx.pool, grad.new_empty(ctx.shape)

        def pair(value: Any) -> list[int]:
            return [value, value] if isinstance(value, int) else list(value)

        geometry = [pair(value) for value in (pool.kernel_size, pool.stride, pool.padding, pool.dilation)]
        grad_x = torch.ops.aten.max_pool2d_with_indices_backward(
            grad, shape_only, *geometry, pool.ceil_mode, ctx.saved_tensors[0].long()
        )
        return grad_x, None


class LeanMaxPool2d(nn.MaxPool2d):
    """Max pooling that does not keep its input."""

    def forward(self, x: Tensor) -> Tensor:
        return _MaxPool.apply(x, self)


class LeanBatchNorm2d(nn.BatchNorm2d):
    """A frozen batch norm as ``x * scale + shift``, which keeps no input; in training mode it is the stock one."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return super().forward(x)
        assert self.running_mean is not None and self.running_var is not None
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype).reshape(1, -1, 1, 1) + shift.to(x.dtype).reshape(1, -1, 1, 1)


# Eight flags, a byte each, seen as one word; this product moves them together into its top byte (each of the 64 partial
# products falls on a bit of its own, so nothing carries): Warren, Hacker's Delight, "compress".
_GATHER = 0x0102040810204080


def _gathered(words: Tensor) -> Tensor:
    return ((words * _GATHER) >> 56) & 0xFF


def box_iou(boxes: Tensor, anchors: Tensor) -> Tensor:
    """torchvision's box_iou, (M, 4) and (N, 4) -> (M, N), some boxes at a time.

    It holds 36 bytes for each pair at once: 1 GB for the 270,000 anchors of an 800 px image and 100 boxes.
    """
    overlaps = boxes.new_empty(len(boxes), len(anchors))
    at_once = max(1, IOU_PAIRS // max(1, len(anchors)))
    for some, out in zip(boxes.split(at_once), overlaps.split(at_once), strict=True):
        out.copy_(box_ops.box_iou(some, anchors))
    return overlaps


class LeanRetinaNet(RetinaNet):
    """RetinaNet that matches with `box_iou`."""

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


def pack_bits(flags: Tensor) -> Tensor:
    """Flags of any shape -> (ceil(n / 8),) bytes, for `unpack_bits`."""
    flat = flags.reshape(-1)
    if flat.numel() % 8:
        flat = F.pad(flat, (0, 8 - flat.numel() % 8))
    return _gathered(flat.view(torch.int64)).byte()


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """The flags that `pack_bits` was given, (n,)."""
    byte = torch.arange(256, device=packed.device)
    every = ((byte[:, None] >> torch.arange(8, device=packed.device)) & 1).bool().view(torch.int64).view(-1)
    words = torch.empty_like(every).scatter_(0, _gathered(every), every)
    return words[packed.int()].view(torch.bool)[:n]


def save_memory(body: nn.Module) -> None:
    """Let the frozen layers of a body keep only what their backward pass reads. Tensors and their names stay.

    To be called when a method has been applied, which decides what is frozen. The ReLUs of a residual block whose
    convolutions are trained stay as they are: those convolutions keep the ReLUs' outputs anyway.
    """

    def frozen(module: nn.Module) -> bool:
        return not any(p.requires_grad for p in module.parameters(recurse=False))

    for module in body.modules():
        if type(module) is nn.Conv2d and frozen(module) and module.bias is None:
            module.__class__ = LeanConv2d
        elif type(module) is nn.BatchNorm2d and frozen(module):
            module.__class__ = LeanBatchNorm2d
        elif type(module) is nn.MaxPool2d:
            module.__class__ = LeanMaxPool2d
    for block in (body, *(m for m in body.modules() if isinstance(m, BasicBlock | Bottleneck))):
        convs = [child for child in block.children() if type(child) in (nn.Conv2d, LeanConv2d)]
        for child in block.children():
            if type(child) is nn.ReLU and all(frozen(conv) for conv in convs):
                child.__class__ = LeanReLU


# --- checkpoint: what was not kept is computed again ------------------------------------------------------------------


def recompute(function: Callable[..., T], *args: Any) -> T:
    """``function(*args)``, of which only the tensors that come in are kept; the rest is computed again when needed.

    Batch norms update their statistics the first time only.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts)


_again = False


def _contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _second_time()


@contextlib.contextmanager
def _second_time() -> Iterator[None]:
    global _again
    _again = True
    try:
        yield
    finally:
        _again = False


class OnceBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose running statistics do not move when its output is computed again."""

    def forward(self, x: Tensor) -> Tensor:
        if not (_again and self.training):
            return super().forward(x)
        # copies: a checkpoint demands that the same number of tensors is kept the second time
        mean, var = self.running_mean.clone(), self.running_var.clone()  # type: ignore[union-attr]
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=True, eps=self.eps)


class _ByLevel(nn.Module):
    """Mixed into a head of torchvision: a list of feature maps is worked on map by map, each recomputed.

    Of large maps some images at a time, so that what is recomputed stays small. The gradients of the weights are then
    summed in another order.
    """

    def forward(self, x: list[Tensor]) -> Any:
        levels = []
        for feature in x:
            pieces = feature.split(images_at_once(feature[0].numel())) if torch.is_grad_enabled() else [feature]
            levels.append(_join([recompute(super(_ByLevel, self).forward, [piece]) for piece in pieces], dim=0))
        return _join(levels, dim=1)


class _ByImage(_ByLevel):
    """And so is RetinaNet's focal loss image by image, of which it keeps eight values a logit."""

    def compute_loss(
        self, targets: list[dict[str, Tensor]], head_outputs: dict[str, Tensor], matched_idxs: list[Tensor]
    ) -> Tensor:
        def one(index: int, logits: Tensor) -> Tensor:
            outputs = {"cls_logits": logits[None]}
            return super(_ByImage, self).compute_loss([targets[index]], outputs, [matched_idxs[index]])  # type: ignore[misc]

        losses = [recompute(one, index, logits) for index, logits in enumerate(head_outputs["cls_logits"])]
        return torch.stack(losses).sum() / len(targets)


class _LossAgain(nn.Module):
    """Mixed into the head of FCOS: its losses are recomputed."""

    def compute_loss(self, *args: Any) -> Any:
        return recompute(super().compute_loss, *args)  # type: ignore[misc]


def _join(parts: list[Any], dim: int) -> Any:
    """What the head would have returned for all of them: tensors (B, anchors, ...) joined, RPN's lists by level."""
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
    """Let the dense heads of a detector keep their inputs and outputs only. Tensors and their names stay."""
    for module in model.modules():
        if type(module) in _MIXINS:
            module.__class__ = _mixed(_MIXINS[type(module)], type(module))  # type: ignore[arg-type]


def once_norms(model: nn.Module) -> None:
    """Let every batch norm of a model move its statistics once a step."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = OnceBatchNorm2d
