"""Convolution of the method `conv_lora`, see `cst_search.petl.conv_lora`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from cst_search.petl.base import HasBody
from cst_search.petl.conv_lora import ConvLoraOptions
from cst_search.petl.modules.layers import (
    modules_from,
    replace_all,
)


class LoraConv2d(nn.Conv2d):
    """Frozen convolution without bias, plus a low-rank update; ``weight`` is the frozen one."""

    def __init__(self, conv: nn.Conv2d, rank: int, scale: float) -> None:
        c_out, c_in, k, _ = conv.weight.shape
        super().__init__(c_in, c_out, k, conv.stride, conv.padding, bias=False)  # type: ignore[arg-type]
        self.weight = conv.weight
        self.scale = scale
        self.lora_A = nn.Parameter(torch.empty(rank * k, c_in * k))
        self.lora_B = nn.Parameter(torch.zeros(c_out * k, rank * k))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # as loralib, which follows nn.Linear

    def summed(self) -> Tensor:
        """Return the effective weight W + scale B A, (c_out, c_in, k, k)."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A).view(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.summed(), None)

    def merged(self) -> nn.Conv2d:
        c_out, c_in, k, _ = self.weight.shape
        conv = nn.Conv2d(c_in, c_out, k, self.stride, self.padding, bias=False)  # type: ignore[arg-type]
        conv.weight = nn.Parameter(self.summed().detach(), requires_grad=False)
        return conv


def apply(backbone: HasBody, options: ConvLoraOptions) -> None:
    for parent, name, module in modules_from(backbone.body, options.first_stage):
        if isinstance(module, nn.Conv2d) and (options.targets == "all" or module.kernel_size == (3, 3)):
            setattr(parent, name, LoraConv2d(module, options.rank, options.scale))
    backbone.body.grad_from = options.first_stage - 1


def merge(backbone: HasBody, options: ConvLoraOptions) -> None:
    """Replace every LoraConv2d by a plain convolution with the weight W + scale B A."""
    replace_all(backbone.body, LoraConv2d, LoraConv2d.merged)
