"""`side_tuning`: a small network on the image, merged with the frozen backbone at the end.

Source: Zhang et al., Side-Tuning, ECCV 2020: ``sigmoid(a) base(x) + (1 - sigmoid(a)) side(x)``, one output, the side
network distilled from the base before it is trained. A detector reads a pyramid, so here every level that it reads is
merged, and a level of the side network is the base's plus a projection of its own features, zero at the start: what
distillation brings near the base begins there exactly. With s_i the features of the side network at the grid of C_i:

    side_i = C_i + Up_i(s_i)         Up_i: 1x1, zero at the start: step 0 is the pre-trained detector
    C_i <- sigmoid(a_i) C_i + (1 - sigmoid(a_i)) side_i  =  C_i + (1 - sigmoid(a_i)) Up_i(s_i)

This is our reading for pyramids. The side network sees the image alone, never a feature of the backbone.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from cst_search.backbone.lean_layers import recompute
from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.memory.tape import Tape
from cst_search.memory.tape import Tensor as Shape
from cst_search.memory.training_step import Plan
from cst_search.petl.base import HasBody, Method, SideNetwork, check, one_of, whole
from cst_search.petl.layers import NORMS, block_params, make_block, make_norm, norm_params


@dataclass(frozen=True)
class SideTuningOptions:
    """Attributes:
    reduction: r; the side network has max(1, c_i // r) channels at the grid of C_i.
    blocks: further 3x3 residual blocks at every grid; 0: a fully convolutional net of five layers (the reference's FCN5
        has as many), 1: a small ResNet of nine.
    norm: of the side network: ``gn``, ``bn`` or ``none``.
    gate_init: a at the start; the reference has 0 (half base, half side) or 1.39 (0.8 base).
    """

    reduction: int = 8
    blocks: int = 1
    norm: str = "gn"
    gate_init: float = 0.0

    def __post_init__(self) -> None:
        gate = self.gate_init
        check(
            "side_tuning",
            {
                "reduction": whole(self.reduction, 1, 256),
                "blocks": whole(self.blocks, 0, 4),
                "norm": one_of(self.norm, NORMS),
                "gate_init": (math.isfinite(gate) and abs(gate) <= 10, "from -10 to 10", gate),
            },
        )


class _Residual(nn.Module):
    def __init__(self, norm: str, channels: int) -> None:
        super().__init__()
        self.block = make_block("3x3", norm, channels)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block(x)


class ImageSideNetwork(SideNetwork):
    """Of the features it reads the image alone; its states are the s_i."""

    def __init__(self, shape: BackboneShape, options: SideTuningOptions) -> None:
        super().__init__()
        side = [max(1, c // options.reduction) for c in shape.stage_channels]

        def halve(c_in: int, c_out: int) -> list[nn.Module]:  # 3x3, padded: the grid rounds up, as the backbone's does
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
        """C_i + (1 - sigmoid(a_i)) Up_i(s_i), of C_i's shape."""
        change = self.up[key](state)
        return feature + (1 - torch.sigmoid(self.gates[key])).to(change.dtype) * change


def _apply(backbone: HasBody, options: SideTuningOptions) -> None:
    backbone.side = ImageSideNetwork(backbone.body.shape(backbone.used_stages), options)


def petl_params(shape: BackboneShape, options: SideTuningOptions) -> int:
    """With s_i = max(1, c_i // r), s_0 = 3: 9 s_{i-1} s_i and a norm per layer, the blocks, Up_i, a gate per level."""
    side = [max(1, c // options.reduction) for c in shape.stage_channels]
    total = 27 * side[0] + norm_params(options.norm, side[0])
    for stage in range(2, max(shape.used_stages) + 1):
        before, s = side[stage - 2], side[stage - 1]
        total += 9 * before * s + norm_params(options.norm, s) + options.blocks * block_params("3x3", options.norm, s)
    for stage in shape.used_stages:
        total += (side[stage - 1] + 1) * shape.stage_channels[stage - 1] + 1
    return total


def footprint(shape: BackboneShape, options: SideTuningOptions) -> Plan:
    side = [max(1, c // options.reduction) for c in shape.stage_channels]
    bias = options.norm == "none"

    def halve(tape: Tape, x: Shape, c: int) -> Shape:
        return tape.relu(tape.norm(options.norm, tape.conv(x, c, 3, 2, bias=bias)))

    def run_stage(tape: Tape, x: Shape, stage: int) -> Shape:
        if stage == 2:
            x = halve(tape, x, side[0])
        x = halve(tape, x, side[stage - 1])
        for _ in range(options.blocks):
            x = tape.add(x, tape.side_block("3x3", options.norm, x))
        return x

    def run_side(tape: Tape, features: dict[str, Shape], again: bool) -> dict[str, Shape]:
        states, x = {}, features["image"]
        for stage in range(2, max(shape.used_stages) + 1):
            run = partial(run_stage, tape, x, stage)
            x = tape.recompute(run) if again else run()
            if stage in shape.used_stages:
                states[f"c{stage}"] = x
        return states

    def calibrate(tape: Tape, key: str, feature: Shape, state: Shape) -> Shape:
        change = tape.conv(state, feature.shape[1], 1, bias=True, key=f"up.{key}")
        scaled = tape.op(change.shape, change, save=[change], params=4, key=f"gate.{key}", transient=change.nbytes)
        return tape.add(feature, scaled)

    return Plan(side=run_side, calibrate=calibrate)


METHOD = Method(
    name="side_tuning",
    options=SideTuningOptions,
    lr=3e-3,
    side=True,
    source="Zhang et al., Side-Tuning, ECCV 2020; github.com/jozhang97/side-tuning @dea3456; for pyramids our reading",
    apply=_apply,
    petl_params=petl_params,
    footprint=footprint,
    shapeless=("gate_init",),
)
