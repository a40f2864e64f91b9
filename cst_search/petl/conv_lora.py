"""`conv_lora`: a low-rank change of frozen convolutions, in loralib's form.

    W + (alpha / r) * view(B A)      A: (r k, c_in k), B: (c_out k, r k), B zero at the start

The sum is formed at every step, so a convolution costs what it did, and merging writes it down.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cst_search.memory.resnet_shapes import BackboneShape, ConvShape
from cst_search.memory.tape import Tape
from cst_search.memory.tape import Tensor as Shape
from cst_search.memory.training_step import Plan
from cst_search.petl.base import HasBody, Method, check, from_stage, one_of, whole
from cst_search.petl.layers import modules_from, replace_all


@dataclass(frozen=True)
class ConvLoraOptions:
    """Attributes:
    rank: r.
    scale: alpha / r. Given as the quotient, so that it means the same at every rank.
    targets: the ``3x3`` convolutions, or ``all`` (the stem's never is one).
    first_stage: from this stage on; stages before it keep no activation.
    """

    rank: int = 8
    scale: float = 1.0
    targets: str = "3x3"
    first_stage: int = 2

    def __post_init__(self) -> None:
        check(
            "conv_lora",
            {
                "rank": whole(self.rank, 1, 256),
                "scale": (math.isfinite(self.scale) and 0 < self.scale <= 100, "above 0, at most 100", self.scale),
                "targets": one_of(self.targets, ("3x3", "all")),
                "first_stage": from_stage(self.first_stage, 2),
            },
        )


class LoraConv2d(nn.Conv2d):
    """A frozen convolution without bias and its low-rank change; ``weight`` is the frozen one."""

    def __init__(self, conv: nn.Conv2d, rank: int, scale: float) -> None:
        c_out, c_in, k, _ = conv.weight.shape
        super().__init__(c_in, c_out, k, conv.stride, conv.padding, bias=False)  # type: ignore[arg-type]
        self.weight = conv.weight
        self.scale = scale
        self.lora_A = nn.Parameter(torch.empty(rank * k, c_in * k))
        self.lora_B = nn.Parameter(torch.zeros(c_out * k, rank * k))
        nn.init.kaiming_uniform_(self.lora_A, a=math.sqrt(5))  # loralib: as nn.Linear

    def summed(self) -> Tensor:
        """The weight that it computes with, (c_out, c_in, k, k)."""
        return self.weight + self.scale * (self.lora_B @ self.lora_A).view(self.weight.shape)

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.summed(), None)

    def merged(self) -> nn.Conv2d:
        c_out, c_in, k, _ = self.weight.shape
        conv = nn.Conv2d(c_in, c_out, k, self.stride, self.padding, bias=False)  # type: ignore[arg-type]
        conv.weight = nn.Parameter(self.summed().detach(), requires_grad=False)
        return conv


def _apply(backbone: HasBody, options: ConvLoraOptions) -> None:
    for parent, name, module in modules_from(backbone.body, options.first_stage):
        if isinstance(module, nn.Conv2d) and (options.targets == "all" or module.kernel_size == (3, 3)):
            setattr(parent, name, LoraConv2d(module, options.rank, options.scale))
    backbone.body.grad_from = options.first_stage - 1


def petl_params(shape: BackboneShape, options: ConvLoraOptions) -> int:
    """r k^2 (c_in + c_out) per convolution that is a target."""
    return sum(
        options.rank * conv.kernel**2 * (conv.c_in + conv.c_out)
        for block in shape.blocks(options.first_stage)
        for conv in block.convs
        if options.targets == "all" or conv.kernel == 3
    )


def footprint(shape: BackboneShape, options: ConvLoraOptions) -> Plan:
    def conv(tape: Tape, x: Shape, stage: int, conv: ConvShape, stride: int) -> Shape | None:
        if stage < options.first_stage or (options.targets == "3x3" and conv.kernel != 3):
            return None
        return tape.lora_conv(x, conv.c_out, conv.kernel, stride, options.rank)

    return Plan(grad_from=options.first_stage - 1, conv=conv)


METHOD = Method(
    name="conv_lora",
    options=ConvLoraOptions,
    lr=1e-3,
    side=False,
    source="Hu et al., LoRA, ICLR 2022; Conv2d of github.com/microsoft/LoRA, loralib/layers.py @0771c1e",
    apply=_apply,
    petl_params=petl_params,
    footprint=footprint,
    shapeless=("scale",),
    merge=lambda backbone, options: replace_all(backbone.body, LoraConv2d, LoraConv2d.merged),
)
