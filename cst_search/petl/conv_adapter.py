"""`conv_adapter`: a light convolution parallel to every 3x3 convolution of the residual blocks.

    conv(x) + scale * W2 ReLU(W1 x)      W1: k x k, c_in / gamma outputs and as many groups; W2: 1x1

The layers, their biases and the scale follow the reference repository. The reference adds the adapter of a bottleneck
after the norm and ReLU that follow the 3x3, and the adapter of a basic block before the norm. Here the adapter is
always added to the convolution's output, before the norm, which is the paper's "convolution parallel". W2 starts at
zero (in the reference: at random), so that step 0 is the pre-trained detector.
"""

from __future__ import annotations

from dataclasses import dataclass

from cst_search.lazy import deferred
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape, ConvShape
from cst_search.memory.tape import ShapeTensor, Tape
from cst_search.petl.base import Method, check, from_stage, whole


@dataclass(frozen=True)
class ConvAdapterOptions:
    """Options of `conv_adapter`.

    Attributes:
        gamma: reduction; the adapter is c_in / gamma wide (the next smaller width that divides c_in).
        kernel: kernel size k, 3 or 5.
        first_stage: first stage with adapters; earlier stages keep no activations.
    """

    gamma: int = 8
    kernel: int = 3
    first_stage: int = 2

    def __post_init__(self) -> None:
        check(
            "conv_adapter",
            {
                "gamma": whole(self.gamma, 1, 256),
                "kernel": (self.kernel in (3, 5), "3 or 5", self.kernel),
                "first_stage": from_stage(self.first_stage, 2),
            },
        )


def adapter_width(c_in: int, gamma: int) -> int:
    return next(width for width in range(max(1, c_in // gamma), 0, -1) if c_in % width == 0)


def petl_params(shape: BackboneShape, options: ConvAdapterOptions) -> int:
    """Return, per 3x3 convolution and with width w: (c_in k^2 + w) + (w c_out + c_out) + c_out, summed."""
    total = 0
    for block in shape.blocks(options.first_stage):
        for c_in, c_out, kernel in block.path:
            if kernel == 3:
                w = adapter_width(c_in, options.gamma)
                total += c_in * options.kernel**2 + w + w * c_out + 2 * c_out
    return total


def footprint(shape: BackboneShape, options: ConvAdapterOptions) -> MemoryPlan:
    def beside(tape: Tape, x: ShapeTensor, stage: int, place: int, conv: ConvShape, stride: int) -> ShapeTensor | None:
        if stage < options.first_stage or conv.kernel != 3:
            return None
        width = adapter_width(conv.c_in, options.gamma)
        out = tape.relu(tape.conv(x, width, options.kernel, stride, bias=True, groups=width), inplace=False)
        out = tape.conv(out, conv.c_out, 1, bias=True)
        return tape.op(out.shape, out, save=[out], params=4 * conv.c_out, transient=out.nbytes)

    return MemoryPlan(grad_from=options.first_stage - 1, beside=beside)


_MODULES = "cst_search.petl.modules.conv_adapter"

METHOD = Method(
    name="conv_adapter",
    options=ConvAdapterOptions,
    lr=1e-3,
    side=False,
    source="Chen et al., Conv-Adapter, arXiv 2208.07463; github.com/Hhhhhhao/Conv-Adapter @97e1fc8 (gamma 8, lr 1e-3)",
    apply=deferred(_MODULES, "apply"),
    petl_params=petl_params,
    footprint=footprint,
)
