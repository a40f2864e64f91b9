"""`cst`: Calibration Side-Tuning, a light side network beside the frozen backbone.

Source: Feng Chen, "CST: Calibration Side-Tuning for Parameter and Memory Efficient Transfer Learning", arXiv
2402.12736. Its abstract gives the idea (a lightweight side network; Maximal Transition Calibration, MTC, a gate that
fuses backbone and side features), but no formula was available to us. This is our reading of it; we claim no figure of
the paper.

With C_i the frozen feature map of stage (or block) i, r the reduction, h_1 = Down_1(C_1):

    u_i = Norm(Down_i(C_i))                      1x1 convolution, c_i -> c_i / r: the reduced feature map
    t_i = Trans_i(h_{i-1})                       2x2 mean where the stage halves the grid, then 1x1 to c_i / r
    z_i = MTC(u_i, t_i)  for i in mtc_stages, else u_i + t_i
    h_i = z_i + ReLU(Norm(Conv(z_i)))            the side block
    C_i <- C_i + Up_i(h_i)                       1x1 convolution, zero at the start: step 0 is the pre-trained detector

Only the levels that the pyramid reads have an Up_i. Nothing re-enters the backbone, so no gradient crosses it.

MTC operators, with the gate g = sigmoid(a / T) (Ladder Side-Tuning's form; its defaults a = 0, T = 0.1):
    max   z = t + g * (max(u, t) - t)      ours: closed, side network alone; open, the maximum across the transition
    lst   z = g * u + (1 - g) * t          Sung et al., LST, NeurIPS 2022 (arXiv 2206.06522)
    tanh  z = t + tanh(a / T) * u          Diao et al., SHERL, ECCV 2024 (arXiv 2407.07523)
    sum   z = u + t                        no gate
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

from cst_search.errors import ConfigError, did_you_mean
from cst_search.lazy import deferred
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape, ConvShape
from cst_search.memory.tape import ShapeTensor, Tape
from cst_search.petl.base import Method
from cst_search.petl.side_blocks import BLOCKS, NORMS, block_params, norm_params

OPERATORS = ("max", "lst", "tanh", "sum")
GATES = ("scalar", "channel")
GRANULARITIES = ("stage", "block")
KEEPS = ("all", "every_second", "last_per_stage")
INITS = ("random", "prune_l1", "prune_fisher")


@dataclass(frozen=True)
class CstOptions:
    """Options of `cst`.

    Attributes:
        reduction: reduction r; the side network has max(1, c_i // r) channels beside the backbone's c_i.
        granularity: one side block per ``stage`` or per residual ``block``.
        block: kind of the side blocks: ``3x3``; ``depthwise`` (3x3 depth-wise, then 1x1); ``bottleneck`` (1x1 to a
            quarter, 3x3, 1x1); ``1x1``.
        norm: norm of the side network: batch, group (batch-size independent), or none.
        mtc_stages: stages with a gate, a non-empty subset of 2..5.
        operator: MTC operator, see the module.
        gate: one gate per fusion (``scalar``) or one per channel.
        gate_init: initial logit a / T, so that the gate starts at sigmoid(gate_init) for any T.
            (-1.39 and 1.39 give an opening of 0.2 and 0.8; Side-Tuning starts at either 0.5 or 0.8.)
        temperature: temperature T; with a smaller T the gate moves faster at the same learning rate.
        keep: residual blocks that get a side block, where the granularity is ``block``: ``all``; ``every_second``,
            counted back from the last block of a stage, which the pyramid reads (Ladder Side-Tuning drops every second
            layer of T5-large); ``last_per_stage`` (its pattern 3, 7, 11 of 12 layers), the same as granularity
            ``stage``.
        init: initialisation of the side blocks: ``random``; ``prune_l1``, ``prune_fisher``: residual blocks of the
            backbone, pruned to the most important channels by magnitude or by Fisher information, see `petl.pruning`.
            Up_i starts at zero with all three.
    """

    reduction: int = 4
    granularity: str = "stage"
    block: str = "3x3"
    norm: str = "gn"
    mtc_stages: tuple[int, ...] = (2, 3, 4, 5)
    operator: str = "max"
    gate: str = "scalar"
    gate_init: float = 0.0
    temperature: float = 0.1
    keep: str = "all"
    init: str = "random"

    def __post_init__(self) -> None:
        faults = []
        for name, allowed in (
            ("granularity", GRANULARITIES),
            ("block", BLOCKS),
            ("norm", NORMS),
            ("operator", OPERATORS),
            ("gate", GATES),
            ("keep", KEEPS),
            ("init", INITS),
        ):
            if getattr(self, name) not in allowed:
                value = getattr(self, name)
                near = did_you_mean(str(value), allowed)
                faults.append(f"{name} must be one of {', '.join(allowed)}; got {value!r}{near}")
        if not (isinstance(self.reduction, int) and 1 <= self.reduction <= 256):
            faults.append(f"reduction must be a whole number from 1 to 256; got {self.reduction!r}")
        stages = self.mtc_stages
        if not stages or list(stages) != sorted(set(stages)) or not set(stages) <= {2, 3, 4, 5}:
            faults.append(f"mtc_stages must be a non-empty ascending subset of 2, 3, 4, 5; got {list(stages)!r}")
        if not (math.isfinite(self.gate_init) and abs(self.gate_init) <= 10):
            faults.append(f"gate_init must be from -10 to 10; got {self.gate_init!r}")
        if not 0.01 <= self.temperature <= 10:
            faults.append(f"temperature must be from 0.01 to 10; got {self.temperature!r}")
        if faults:
            raise ConfigError("cst: " + "; ".join(faults))


def side_channels(channels: int, options: CstOptions) -> int:
    return max(1, channels // options.reduction)


def kept_blocks(n_blocks: int, options: CstOptions) -> list[int]:
    """Return the indices of the blocks of a stage that have a side block; the last block always has one."""
    if options.granularity == "stage" or options.keep == "last_per_stage":
        return [n_blocks - 1]
    step = 2 if options.keep == "every_second" else 1
    return list(range(n_blocks - 1, -1, -step))[::-1]


def petl_params(shape: BackboneShape, options: CstOptions) -> int:
    """Return the parameters of the side network in closed form (a test compares it with the module).

    With s_i = max(1, c_i // r): stem c_1 s_1; Up s_i c_i + c_i; per node Down c_i s_i, the block and the gate;
    Trans s_{i-1} s_i + s_i where a stage begins; two affine parameters, or a bias, per channel of Down and stem.
    """
    channel = {i + 1: c for i, c in enumerate(shape.stage_channels)}
    side = {i: side_channels(c, options) for i, c in channel.items()}
    total = channel[1] * side[1] + norm_params(options.norm, side[1])
    for stage in range(2, max(shape.used_stages) + 1):
        s = side[stage]
        gated = stage in options.mtc_stages and options.operator != "sum"
        gate = (1 if options.gate == "scalar" else s) if gated else 0
        node = channel[stage] * s + norm_params(options.norm, s) + gate + block_params(options.block, options.norm, s)
        total += len(kept_blocks(shape.stage_blocks[stage - 2], options)) * node + side[stage - 1] * s + s
    return total + sum(side[i] * channel[i] + channel[i] for i in shape.used_stages)


def footprint(shape: BackboneShape, options: CstOptions) -> MemoryPlan:
    o, bias = options, options.norm == "none"
    side = [side_channels(c, o) for c in shape.stage_channels]

    def mtc(tape: Tape, stage: int, u: ShapeTensor, t: ShapeTensor) -> ShapeTensor:
        operator = o.operator if stage in o.mtc_stages else "sum"
        gate = 4 * (1 if o.gate == "scalar" else u.shape[1])
        if operator == "sum":
            return tape.add(u, t)
        if operator == "tanh":
            return tape.add(t, tape.op(u.shape, u, save=[u], params=gate, transient=u.nbytes))
        if operator == "max":  # the comparison keeps both inputs, as much as two masks
            u = tape.pointwise(u, t, save=[u, t])
        # lerp: the gradient of the gate is a product over both ends
        return tape.op(t.shape, t, u, save=[t, u], params=gate, transient=2 * t.nbytes)

    def node(tape: Tape, feature: ShapeTensor, h: ShapeTensor, stage: int, halves: bool, moves: bool) -> ShapeTensor:
        c = side[stage - 1]
        u = tape.norm(o.norm, tape.conv(feature, c, 1, bias=bias))
        t = tape.op((*h.shape[:2], *u.shape[2:]), h, save=[h]) if halves else h
        if moves:
            t = tape.conv(t, c, 1, bias=True)
        z = mtc(tape, stage, u, t)
        return tape.add(z, tape.side_block(o.block, o.norm, z))

    def run_side(tape: Tape, features: dict[str, ShapeTensor], again: bool) -> dict[str, ShapeTensor]:
        h = tape.norm(o.norm, tape.conv(features["c1"], side[0], 1, bias=bias))
        states = {}
        for stage in range(2, max(shape.used_stages) + 1):
            n = shape.stage_blocks[stage - 2]
            kept = kept_blocks(n, o)
            for j in kept:
                key = f"c{stage}" if j == n - 1 else f"c{stage}.{j}"
                enters = j == kept[0]
                run = partial(node, tape, features[key], h, stage, enters and stage > 2, enters)
                h = tape.recompute(run) if again else run()
            if stage in shape.used_stages:
                states[f"c{stage}"] = h
        return states

    def calibrate(tape: Tape, key: str, feature: ShapeTensor, state: ShapeTensor) -> ShapeTensor:
        return tape.add(feature, tape.conv(state, feature.shape[1], 1, bias=True, key=f"up.{key}"))

    return MemoryPlan(
        side=run_side,
        calibrate=calibrate,
        taps=o.granularity == "block" and o.keep != "last_per_stage",
        start=_fisher_pass(shape, o) if o.init == "prune_fisher" else None,
    )


def _fisher_pass(shape: BackboneShape, options: CstOptions) -> MemoryPlan | None:
    """Describe `pruning.fisher` as shapes: residual blocks are recomputed and keep what the sources' gradients need."""
    kernels = {"3x3": (3,), "bottleneck": (1, 3) if len(shape.blocks()[0].path) == 3 else (3,)}.get(options.block)
    if kernels is None:
        return None

    def conv(tape: Tape, x: ShapeTensor, stage: int, conv: ConvShape, stride: int) -> ShapeTensor | None:
        return tape.conv(x, conv.c_out, conv.kernel, stride) if conv.kernel in kernels else None

    return MemoryPlan(grad_from=1, conv=conv, recompute=True)


_MODULES = "cst_search.petl.modules.cst"

METHOD = Method(
    name="cst",
    options=CstOptions,
    lr=3e-3,
    side=True,
    source="Chen, arXiv 2402.12736 (idea; our reading of it, see cst_search/petl/cst.py); learning rate: LST's 3e-3",
    apply=deferred(_MODULES, "apply"),
    petl_params=petl_params,
    footprint=footprint,
    shapeless=("gate_init", "temperature"),
    prepare=deferred(_MODULES, "prepare"),
)
