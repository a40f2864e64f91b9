"""Side network of the method `side_tuning`, see `cst_search.petl.side_tuning`."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from cst_search.backbone.recompute import recompute
from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.petl.base import HasBody
from cst_search.petl.modules.layers import (
    make_block,
    make_norm,
)
from cst_search.petl.modules.side_network import SideNetwork
from cst_search.petl.side_tuning import SideTuningOptions


class _Residual(nn.Module):
    def __init__(self, norm: str, channels: int) -> None:
        super().__init__()
        self.block = make_block("3x3", norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class ImageSideNetwork(SideNetwork):
    """Side network that reads only the image; its states are the s_i."""

    def __init__(self, shape: BackboneShape, options: SideTuningOptions) -> None:
        super().__init__()
        side = [max(1, c // options.reduction) for c in shape.stage_channels]

        def halve(c_in: int, c_out: int) -> list[nn.Module]:  # padded 3x3: the grid rounds up, like the backbone's
            conv = nn.Conv2d(c_in, c_out, 3, stride=2, padding=1, bias=options.norm == "none")
            return [conv, make_norm(options.norm, c_out), nn.ReLU(inplace=True)]

        self.stages = nn.ModuleDict()
        for stage in range(2, max(shape.used_stages) + 1):
            layers = halve(3, side[0]) if stage == 2 else []
            layers += halve(side[stage - 2], side[stage - 1])
            layers += [_Residual(options.norm, side[stage - 1]) for _ in range(options.blocks)]
            self.stages[f"c{stage}"] = nn.Sequential(*layers)
        self.up = nn.ModuleDict()
        self.gates = nn.ParameterDict()
        for stage in shape.used_stages:
            up = nn.Conv2d(side[stage - 1], shape.stage_channels[stage - 1], 1)
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)  # type: ignore[arg-type]
            self.up[f"c{stage}"] = up
            self.gates[f"c{stage}"] = nn.Parameter(torch.tensor(options.gate_init))

    def forward(self, features: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        states: OrderedDict[str, Tensor] = OrderedDict()
        x = features["image"]
        for key, stage in self.stages.items():
            x = recompute(stage, x) if self.recompute else stage(x)
            if key in self.up:
                states[key] = x
        return states

    def calibrate(self, key: str, feature: Tensor, state: Tensor) -> Tensor:
        """Return C_i + (1 - sigmoid(a_i)) Up_i(s_i), of C_i's shape."""
        change = self.up[key](state)
        return feature + (1 - torch.sigmoid(self.gates[key])).to(change.dtype) * change


def apply(backbone: HasBody, options: SideTuningOptions) -> None:
    backbone.side = ImageSideNetwork(backbone.body.shape(backbone.used_stages), options)
