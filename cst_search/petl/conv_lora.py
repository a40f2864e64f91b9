"""`conv_lora`: a low-rank update of frozen convolutions, in loralib's form.

    W + (alpha / r) * view(B A)      A: (r k, c_in k), B: (c_out k, r k), B zero at the start

The sum is formed at every step, so the convolution itself costs the same as before; merging stores the sum.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cst_search.lazy import deferred
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape, ConvShape
from cst_search.memory.tape import ShapeTensor, Tape
from cst_search.petl.base import Method, check, from_stage, one_of, whole


@dataclass(frozen=True)
class ConvLoraOptions:
    """Options of `conv_lora`.

    Attributes:
        rank: rank r of the update.
        scale: alpha / r. Given as the quotient, so that it means the same at every rank.
        targets: convolutions that get an update, the ``3x3`` ones or ``all`` (never the stem's).
        first_stage: first stage with updates; earlier stages keep no activations.
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


def petl_params(shape: BackboneShape, options: ConvLoraOptions) -> int:
    """Return r k^2 (c_in + c_out) per target convolution, summed."""
    return sum(
        options.rank * conv.kernel**2 * (conv.c_in + conv.c_out)
        for block in shape.blocks(options.first_stage)
        for conv in block.convs
        if options.targets == "all" or conv.kernel == 3
    )


def footprint(shape: BackboneShape, options: ConvLoraOptions) -> MemoryPlan:
    def conv(tape: Tape, x: ShapeTensor, stage: int, conv: ConvShape, stride: int) -> ShapeTensor | None:
        if stage < options.first_stage or (options.targets == "3x3" and conv.kernel != 3):
            return None
        return tape.lora_conv(x, conv.c_out, conv.kernel, stride, options.rank)

    return MemoryPlan(grad_from=options.first_stage - 1, conv=conv)


_MODULES = "cst_search.petl.modules.conv_lora"

METHOD = Method(
    name="conv_lora",
    options=ConvLoraOptions,
    lr=1e-3,
    side=False,
    source="Hu et al., LoRA, ICLR 2022; Conv2d of github.com/microsoft/LoRA, loralib/layers.py @0771c1e",
    apply=deferred(_MODULES, "apply"),
    petl_params=petl_params,
    footprint=footprint,
    shapeless=("scale",),
    merge=deferred(_MODULES, "merge"),
)
