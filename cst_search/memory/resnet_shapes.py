"""Shapes of a ResNet: channels, blocks, convolutions. Standard library only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

# residual blocks in stages 2..5, and the ratio of a block's output channels to those of its 3x3
RESNETS: dict[str, tuple[tuple[int, int, int, int], int]] = {
    "resnet18": ((2, 2, 2, 2), 1),
    "resnet34": ((3, 4, 6, 3), 1),
    "resnet50": ((3, 4, 6, 3), 4),
    "resnet101": ((3, 4, 23, 3), 4),
}


def resnet_planes(width: float) -> tuple[int, int, int, int]:
    """Return the channels of the 3x3 convolutions in stages 2..5; width 1 gives torchvision's."""
    return tuple(max(8, round(64 * width * 2**i / 8) * 8) for i in range(4))


def resnet_shape(name: str, width: float, used_stages: tuple[int, ...], frozen_norm: bool = True) -> BackboneShape:
    """Return the shape of torchvision's ResNet with every channel count multiplied by ``width``."""
    (n_blocks, expansion), planes = RESNETS[name], resnet_planes(width)
    return BackboneShape((planes[0], *(n * expansion for n in planes)), n_blocks, used_stages, frozen_norm)


class ConvShape(NamedTuple):
    """Shape of a convolution: channels in and out, side of the square kernel. A norm of c_out channels follows each."""

    c_in: int
    c_out: int
    kernel: int


@dataclass(frozen=True)
class BlockShape:
    """Shape of a residual block.

    Attributes:
        stage: stage of the block, 2..5.
        path: convolutions in order; two 3x3 (ResNet-18, 34), or 1x1, 3x3, 1x1 (ResNet-50, 101).
        downsample: 1x1 convolution of the shortcut; None if the shortcut has none.
    """

    stage: int
    path: tuple[ConvShape, ...]
    downsample: ConvShape | None

    @property
    def convs(self) -> tuple[ConvShape, ...]:
        return self.path if self.downsample is None else (*self.path, self.downsample)

    @property
    def c_out(self) -> int:
        return self.path[-1].c_out


@dataclass(frozen=True)
class BackboneShape:
    """Shape of a body, as methods and parameter formulas need it.

    Attributes:
        stage_channels: channels of C1..C5.
        stage_blocks: number of residual blocks in each of the stages 2..5.
        used_stages: stages whose feature maps the pyramid reads, e.g. (3, 4, 5).
        frozen_norm: True if the norms are FrozenNorm, whose weight and bias are not parameters.
    """

    stage_channels: tuple[int, ...]
    stage_blocks: tuple[int, ...]
    used_stages: tuple[int, ...]
    frozen_norm: bool = True

    @property
    def n_params(self) -> int:
        """Return the parameters of the body as built, before a method is applied."""
        convs = 147 * self.stage_channels[0]  # the stem: 7 x 7 on three colour channels
        convs += sum(c.c_in * c.c_out * c.kernel**2 for block in self.blocks() for c in block.convs)
        return convs if self.frozen_norm else convs + 2 * self.n_norm_channels()

    def blocks(self, first_stage: int = 2) -> list[BlockShape]:
        """Return the residual blocks from a stage on, in order."""
        found = []
        before, expansion = self.stage_channels[0], self.stage_channels[1] // self.stage_channels[0]
        for stage, (c, n_blocks) in enumerate(zip(self.stage_channels[1:], self.stage_blocks, strict=True), start=2):
            planes = c // expansion
            for j in range(n_blocks):
                c_in = before if j == 0 else c
                path = (
                    (ConvShape(c_in, planes, 3), ConvShape(planes, planes, 3))
                    if expansion == 1
                    else (ConvShape(c_in, planes, 1), ConvShape(planes, planes, 3), ConvShape(planes, c, 1))
                )
                shortcut = j == 0 and (stage > 2 or c_in != c)
                found.append(BlockShape(stage, path, ConvShape(c_in, c, 1) if shortcut else None))
            before = c
        return [block for block in found if block.stage >= first_stage]

    def n_norm_channels(self, first_stage: int = 1) -> int:
        """Return the channels of all norms from a stage on, summed; 1 is the stem."""
        stem = self.stage_channels[0] if first_stage == 1 else 0
        return stem + sum(conv.c_out for block in self.blocks(first_stage) for conv in block.convs)
