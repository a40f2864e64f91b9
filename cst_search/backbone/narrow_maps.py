"""Correct weight gradients for convolutions on narrow feature maps, in bf16 on a CPU.

oneDNN leaves parts of such a gradient unwritten, taps of the kernel that see nothing but padding: they hold whatever
the memory held before. Seen with PyTorch 2.14 on a CPU with AVX-512 BF16, where the map is narrower than the stride,
and for kernels above 3. An example is P7 of a 64 px image, a 3x3 convolution of stride 2 on one pixel. fp32 is right,
and GPUs do not use oneDNN. `guard` makes these convolutions compute in fp32 where the map is that narrow.
"""

from __future__ import annotations

from types import MethodType

import torch
from torch import Tensor, nn


def guard(model: nn.Module) -> None:
    """Make convolutions run in fp32 on maps that are too narrow, in place. Classes, tensors and names do not change."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and module.groups == 1 and not isinstance(module.padding, str):
            kernel, stride = max(module.kernel_size), max(module.stride)
            if kernel > 3 or (kernel > 1 and stride > 1):
                module._conv_forward = MethodType(_conv_forward, module)  # type: ignore[method-assign]


def _conv_forward(conv: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Compute a convolution, in fp32 if it is at risk; stands in for `nn.Conv2d._conv_forward`."""
    compute = type(conv)._conv_forward
    if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu") or not _is_at_risk(conv, x):
        return compute(conv, x, weight, bias)
    with torch.autocast("cpu", enabled=False):
        y = compute(conv, x.float(), weight.float(), None if bias is None else bias.float())
    return y.to(torch.get_autocast_dtype("cpu"))


def _is_at_risk(conv: nn.Conv2d, x: Tensor) -> bool:
    for side in (0, 1):
        size, kernel, stride = x.shape[2 + side], conv.kernel_size[side], conv.stride[side]
        if size < stride or (kernel > 3 and has_unused_tap(size, kernel, stride, int(conv.padding[side]))):
            return True
    return False


def has_unused_tap(size: int, kernel: int, stride: int, padding: int) -> bool:
    """Return whether some tap of a kernel never meets a pixel, along one side of a map of ``size`` pixels."""
    if size >= kernel + stride:
        return False
    starts = range(-padding, size + padding - kernel + 1, stride)
    return any(all(not 0 <= start + tap < size for start in starts) for tap in range(kernel))
