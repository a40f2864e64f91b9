"""`side_tuning`: a small side network on the image, merged with the frozen backbone at the end.

Source: Zhang et al., Side-Tuning, ECCV 2020: ``sigmoid(a) base(x) + (1 - sigmoid(a)) side(x)``, one output, the side
network distilled from the base before it is trained. A detector reads a pyramid, so here every level is merged. A level
of the side network is the base's plus a projection of its own feature map, zero at the start: distillation only brings
the side network near the base, this starts exactly there. With s_i the side network's feature map at the grid of C_i:

    side_i = C_i + Up_i(s_i)         Up_i: 1x1, zero at the start: step 0 is the pre-trained detector
    C_i <- sigmoid(a_i) C_i + (1 - sigmoid(a_i)) side_i  =  C_i + (1 - sigmoid(a_i)) Up_i(s_i)

This is our reading for pyramids. The side network sees only the image, never a feature map of the backbone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from cst_search.lazy import deferred
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.memory.tape import ShapeTensor, Tape
from cst_search.petl.base import Method, check, one_of, whole
from cst_search.petl.side_blocks import NORMS, block_params, norm_params


@dataclass(frozen=True)
class SideTuningOptions:
    """Options of `side_tuning`.

    Attributes:
        reduction: reduction r; the side network has max(1, c_i // r) channels at the grid of C_i.
        blocks: further 3x3 residual blocks at every grid; 0: a fully convolutional net of five layers (as many as the
            reference's FCN5), 1: a small ResNet of nine.
        norm: norm of the side network, ``gn``, ``bn`` or ``none``.
        gate_init: initial a; the reference uses 0 (half base, half side) or 1.39 (0.8 base).
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


def petl_params(shape: BackboneShape, options: SideTuningOptions) -> int:
    """Return the parameters of the side network in closed form.

    With s_i = max(1, c_i // r), s_0 = 3: 9 s_{i-1} s_i and a norm per layer, the blocks, Up_i, a gate per level.
    """
    side = [max(1, c // options.reduction) for c in shape.stage_channels]
    total = 27 * side[0] + norm_params(options.norm, side[0])
    for stage in range(2, max(shape.used_stages) + 1):
        before, s = side[stage - 2], side[stage - 1]
        total += 9 * before * s + norm_params(options.norm, s) + options.blocks * block_params("3x3", options.norm, s)
    for stage in shape.used_stages:
        total += (side[stage - 1] + 1) * shape.stage_channels[stage - 1] + 1
    return total


def footprint(shape: BackboneShape, options: SideTuningOptions) -> MemoryPlan:
    side = [max(1, c // options.reduction) for c in shape.stage_channels]
    bias = options.norm == "none"

    def halve(tape: Tape, x: ShapeTensor, c: int) -> ShapeTensor:
        return tape.relu(tape.norm(options.norm, tape.conv(x, c, 3, 2, bias=bias)))

    def run_stage(tape: Tape, x: ShapeTensor, stage: int) -> ShapeTensor:
        if stage == 2:
            x = halve(tape, x, side[0])
        x = halve(tape, x, side[stage - 1])
        for _ in range(options.blocks):
            x = tape.add(x, tape.side_block("3x3", options.norm, x))
        return x

    def run_side(tape: Tape, features: dict[str, ShapeTensor], again: bool) -> dict[str, ShapeTensor]:
        states, x = {}, features["image"]
        for stage in range(2, max(shape.used_stages) + 1):
            run = partial(run_stage, tape, x, stage)
            x = tape.recompute(run) if again else run()
            if stage in shape.used_stages:
                states[f"c{stage}"] = x
        return states

    def calibrate(tape: Tape, key: str, feature: ShapeTensor, state: ShapeTensor) -> ShapeTensor:
        change = tape.conv(state, feature.shape[1], 1, bias=True, key=f"up.{key}")
        scaled = tape.op(change.shape, change, save=[change], params=4, key=f"gate.{key}", transient=change.nbytes)
        return tape.add(feature, scaled)

    return MemoryPlan(side=run_side, calibrate=calibrate)


_MODULES = "cst_search.petl.modules.side_tuning"

METHOD = Method(
    name="side_tuning",
    options=SideTuningOptions,
    lr=3e-3,
    side=True,
    source="Zhang et al., Side-Tuning, ECCV 2020; github.com/jozhang97/side-tuning @dea3456; for pyramids our reading",
    apply=deferred(_MODULES, "apply"),
    petl_params=petl_params,
    footprint=footprint,
    shapeless=("gate_init",),
)
