"""Frozen layers that keep only what their backward pass reads, with the same gradients (a recipe's ``memsave``).

PyTorch keeps the input of a frozen convolution, and of a batch norm in eval mode, whenever a gradient passes through
(pytorch#133566), although only the gradient of the weight would need it. ReLU keeps its whole output, of which the
backward pass reads one bit per value. `save_memory` avoids both, as do TinyTL (Cai et al., NeurIPS 2020) and
memsave_torch (Bhatia and Dangel, 2024). Activation checkpointing, the other way to keep less, is in `recompute`.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input
from torchvision.models.resnet import BasicBlock, Bottleneck

T = TypeVar("T")


class _Conv(torch.autograd.Function):
    """Convolution with a constant weight; its backward pass needs only the weight. The bias may be trained."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, conv: nn.Conv2d) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.conv, ctx.shape, ctx.dtype = conv, x.shape, x.dtype
        return F.conv2d(x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, Tensor | None, None]:
        (weight,), conv = ctx.saved_tensors, ctx.conv
        grad_x = grad_bias = None
        if ctx.needs_input_grad[2]:
            grad_bias = grad.sum((0, 2, 3)).to(conv.bias.dtype)
        if ctx.needs_input_grad[0]:
            # under autocast the convolution ran in the dtype of its gradient; the weight is cast again, not kept twice
            weight = weight.to(grad.dtype)
            grad_x = conv2d_input(ctx.shape, weight, grad, conv.stride, conv.padding, conv.dilation, conv.groups)
            grad_x = grad_x.to(ctx.dtype)
        return grad_x, None, grad_bias, None


class LeanConv2d(nn.Conv2d):
    """Convolution with a frozen weight that does not keep its input; a trainable weight makes it the stock one."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad:  # temporarily, in `petl.pruning.fisher`
            return super().forward(x)
        return _Conv.apply(x, self.weight, self.bias, self)


class _Relu(torch.autograd.Function):
    """ReLU that keeps one bit per value."""

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


def lean_relu(x: Tensor, inplace: bool = False) -> Tensor:
    """Return ``x.relu()``, keeping one bit per value instead of the result."""
    return _Relu.apply(x, inplace) if torch.is_grad_enabled() else F.relu(x, inplace)


class LeanReLU(nn.ReLU):
    """ReLU that keeps one bit per value instead of its output."""

    def forward(self, x: Tensor) -> Tensor:
        return lean_relu(x, self.inplace)


class _MaxPool(torch.autograd.Function):
    """Max pooling that keeps 4-byte indices and not its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pool: nn.MaxPool2d) -> Tensor:
        out, indices = F.max_pool2d(
            x, pool.kernel_size, pool.stride, pool.padding, pool.dilation, pool.ceil_mode, return_indices=True
        )
        ctx.save_for_backward(indices.int())  # indices within one plane fit in 4 bytes
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
    """Max pooling that keeps 4-byte indices instead of its input."""

    def forward(self, x: Tensor) -> Tensor:
        return _MaxPool.apply(x, self)


class _BatchNorm(torch.autograd.Function):
    """Batch norm with constant statistics; its backward pass reads its input for the gradient of the weight alone."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, mean: Tensor, var: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x if ctx.needs_input_grad[3] else None, mean, var, weight)
        ctx.eps = eps
        return F.batch_norm(x, mean, var, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, mean, var, weight = ctx.saved_tensors
        of_x, _, _, of_weight, of_bias, _ = ctx.needs_input_grad
        if of_weight:
            mask = [of_x, True, of_bias]
            grads = torch.ops.aten.native_batch_norm_backward(
                grad, x, weight, mean, var, None, None, False, ctx.eps, mask
            )
            return grads[0], None, None, grads[1], grads[2] if of_bias else None, None
        grad_x = grad_bias = None
        if of_x:
            scale = weight * (var + ctx.eps).rsqrt()
            grad_x = grad * scale.to(grad.dtype).reshape(1, -1, 1, 1)
        if of_bias:
            grad_bias = grad.sum((0, 2, 3)).to(weight.dtype)
        return grad_x, None, None, None, grad_bias, None


def constant_batch_norm(norm: Any, x: Tensor) -> Tensor:
    """Return what ``F.batch_norm`` gives in eval mode, to the bit; ``x`` is kept only if the weight is trained.

    Args:
        norm: a BatchNorm2d or FrozenBatchNorm2d.
    """
    return _BatchNorm.apply(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, norm.eps)


class FixedBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that is always in eval mode: its statistics are those of the weights it was loaded from."""

    def train(self, mode: bool = True) -> FixedBatchNorm2d:
        super().train(False)
        return self


class LeanBatchNorm2d(FixedBatchNorm2d):
    """Frozen batch norm in eval mode that does not keep its input."""

    def forward(self, x: Tensor) -> Tensor:
        if self.weight.requires_grad:  # temporarily, as in `LeanConv2d`
            return super().forward(x)
        return constant_batch_norm(self, x)


def fix_statistics(module: nn.Module) -> None:
    """Make every BatchNorm2d below a module use and keep the statistics that it has, in place."""
    for child in module.modules():
        if type(child) is nn.BatchNorm2d:
            child.__class__ = FixedBatchNorm2d
            child.train(False)


# Eight flags of one byte each, read as one 64-bit word. The product gathers them in its top byte; each of the 64
# partial products falls on a bit of its own, so nothing carries (Warren, Hacker's Delight, "compress").
_GATHER = 0x0102040810204080


def _gathered(words: Tensor) -> Tensor:
    return ((words * _GATHER) >> 56) & 0xFF


def pack_bits(flags: Tensor) -> Tensor:
    """Pack n flags of any shape into (ceil(n / 8),) bytes, one bit per flag; see `unpack_bits`."""
    flat = flags.reshape(-1)
    if flat.numel() % 8:
        flat = F.pad(flat, (0, 8 - flat.numel() % 8))
    return _gathered(flat.view(torch.int64)).byte()


def unpack_bits(packed: Tensor, n: int) -> Tensor:
    """Return the n flags that `pack_bits` packed, flattened to (n,)."""
    byte = torch.arange(256, device=packed.device)
    every = ((byte[:, None] >> torch.arange(8, device=packed.device)) & 1).bool().view(torch.int64).view(-1)
    words = torch.empty_like(every).scatter_(0, _gathered(every), every)
    return words[packed.int()].view(torch.bool)[:n]


def save_memory(body: nn.Module) -> None:
    """Replace the frozen layers of a body by lean ones, in place.

    Call it after the PETL method has been applied, since the method decides which layers are frozen. The ReLUs of a
    residual block with trained convolutions are left alone: those convolutions keep the ReLUs' outputs anyway. Tensors
    and their names do not change.
    """

    def frozen(module: nn.Module) -> bool:
        return not any(p.requires_grad for p in module.parameters(recurse=False))

    for module in body.modules():
        if type(module) is nn.Conv2d and frozen(module) and module.bias is None:
            module.__class__ = LeanConv2d
        elif type(module) in (nn.BatchNorm2d, FixedBatchNorm2d) and frozen(module):
            module.__class__ = LeanBatchNorm2d
            module.train(False)
        elif type(module) is nn.MaxPool2d:
            module.__class__ = LeanMaxPool2d
    for block in (body, *(m for m in body.modules() if isinstance(m, BasicBlock | Bottleneck))):
        convs = [child for child in block.children() if type(child) in (nn.Conv2d, LeanConv2d)]
        for child in block.children():
            if type(child) is nn.ReLU and all(frozen(conv) for conv in convs):
                child.__class__ = LeanReLU
