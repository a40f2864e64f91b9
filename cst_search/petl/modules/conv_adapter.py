"""Adapter of the method `conv_adapter`, see `cst_search.petl.conv_adapter`."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cst_search.petl.base import HasBody
from cst_search.petl.conv_adapter import ConvAdapterOptions, adapter_width
from cst_search.petl.modules.layers import (
    add_parallel,
    path,
    residual_blocks,
)


class ConvAdapter(nn.Module):
    """Adapter parallel to a convolution: (B, c_in, H, W) -> (B, c_out, H / stride, W / stride), zero at the start."""

    def __init__(self, conv: nn.Conv2d, options: ConvAdapterOptions) -> None:
        super().__init__()
        width, k = adapter_width(conv.in_channels, options.gamma), options.kernel
        self.spatial = nn.Conv2d(conv.in_channels, width, k, conv.stride[0], k // 2, groups=width)
        self.pointwise = nn.Conv2d(width, conv.out_channels, 1)
        self.scale = nn.Parameter(torch.ones(conv.out_channels, 1, 1))
        nn.init.zeros_(self.pointwise.weight)
        nn.init.zeros_(self.pointwise.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        out = self.pointwise(F.relu(self.spatial(x)))
        return out * self.scale.to(out.dtype)


def apply(backbone: HasBody, options: ConvAdapterOptions) -> None:
    for block in residual_blocks(backbone.body, options.first_stage):
        for conv in path(block):
            if conv.kernel_size == (3, 3):
                add_parallel(conv, ConvAdapter(conv, options))
    backbone.body.grad_from = options.first_stage - 1
