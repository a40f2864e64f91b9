"""`channel_attention`: every residual block's output, scaled channel by channel by what the whole image says.

    y <- 2 sigmoid(W2 ReLU(W1 mean(y))) * y        mean: over height and width; W1: c to max(1, c / r); W2: back

The gate is Hu et al., Squeeze-and-Excitation Networks, CVPR 2018 (arXiv 1709.01507), equations 2 to 4; they train it
with the network from the start, inside the block. Behind the block of a network that is trained already it is our
reading: with W2 and its bias zero at the start, and the factor 2, step 0 is the pre-trained detector.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cst_search.petl import (
    BackboneShape,
    HasBody,
    MemoryPlan,
    Method,
    ShapeTensor,
    Tape,
    add_behind,
    check,
    from_stage,
    path,
    residual_blocks,
    whole,
)


@dataclass(frozen=True)
class ChannelAttentionOptions:
    """Attributes:
    reduction: r; the gate is max(1, c // r) wide.
    first_stage: from this stage on; stages before it keep no activation.
    """

    reduction: int = 16
    first_stage: int = 2

    def __post_init__(self) -> None:
        check(
            "channel_attention",
            {"reduction": whole(self.reduction, 1, 256), "first_stage": from_stage(self.first_stage, 2)},
        )


def _width(channels: int, options: ChannelAttentionOptions) -> int:
    return max(1, channels // options.reduction)


class Gate(nn.Module):
    """(B, c, H, W) -> the same; the identity at the start."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.squeeze, self.excite = nn.Linear(channels, width), nn.Linear(width, channels)
        nn.init.zeros_(self.excite.weight)
        nn.init.zeros_(self.excite.bias)

    def forward(self, y: Tensor) -> Tensor:
        scale = 2 * torch.sigmoid(self.excite(torch.relu(self.squeeze(y.mean((2, 3))))))
        return y * scale.to(y.dtype)[:, :, None, None]


def _apply(backbone: HasBody, options: ChannelAttentionOptions) -> None:
    for block in residual_blocks(backbone.body, options.first_stage):
        channels = path(block)[-1].out_channels
        add_behind(block, Gate(channels, _width(channels, options)))
    # a gradient is needed from this stage on, counted from 0
    backbone.body.grad_from = options.first_stage - 1


def petl_params(shape: BackboneShape, options: ChannelAttentionOptions) -> int:
    """With width w: c w + w, then w c + c, per block."""
    total = 0
    for block in shape.blocks(options.first_stage):
        c, w = block.c_out, _width(block.c_out, options)
        total += c * w + w + w * c + c
    return total


def footprint(shape: BackboneShape, options: ChannelAttentionOptions) -> MemoryPlan:
    """The operations of `Gate.forward` in shapes: what each gives, and what autograd keeps for its backward."""

    def behind(tape: Tape, y: ShapeTensor, stage: int) -> ShapeTensor:
        if stage < options.first_stage:
            return y
        b, c, _, _ = y.shape
        mean = tape.op((b, c), y, transient=y.nbytes)  # its gradient is as large as y
        hidden = tape.relu(tape.linear(mean, _width(c, options)), inplace=False)
        scale = tape.pointwise(tape.pointwise(tape.linear(hidden, c), save_out=True))
        # the product keeps both; the gradient of the scale is summed up from one of y's size
        return tape.op(y.shape, y, scale, save=[y, scale], transient=y.nbytes)

    return MemoryPlan(grad_from=options.first_stage - 1, behind=behind)


METHOD = Method(
    name="channel_attention",
    options=ChannelAttentionOptions,
    lr=1e-3,
    side=False,
    source="Hu et al., Squeeze-and-Excitation Networks, CVPR 2018, arXiv 1709.01507; behind a frozen block our reading",
    apply=_apply,
    petl_params=petl_params,
    footprint=footprint,
)
