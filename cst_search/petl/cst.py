"""`cst`: Calibration Side-Tuning, a light side network beside the frozen backbone.

Source: Feng Chen, "CST: Calibration Side-Tuning for Parameter and Memory Efficient Transfer Learning", arXiv
2402.12736. Its abstract gives the idea (a lightweight side network; Maximal Transition Calibration, MTC, a gate that
fuses backbone and side features) but no formula was available to us: this is our reading of it, and we claim no figure
of the paper.

With C_i the frozen feature of stage (or block) i, r the reduction, h_1 = Down_1(C_1):

    u_i = Norm(Down_i(C_i))                      1x1 convolution, c_i -> c_i / r: the reduced view of the backbone
    t_i = Trans_i(h_{i-1})                       2x2 mean where the stage halves the grid, then 1x1 to c_i / r
    z_i = MTC(u_i, t_i)  for i in mtc_stages, else u_i + t_i
    h_i = z_i + ReLU(Norm(Conv(z_i)))            the side block
    C_i <- C_i + Up_i(h_i)                       1x1 convolution, zero at the start: step 0 is the pre-trained detector

Only what the pyramid reads gets an Up_i. Nothing re-enters the backbone, so no gradient crosses it.

MTC operators, with the gate g = sigmoid(a / T) (Ladder Side-Tuning's form; its defaults a = 0, T = 0.1):
    max   z = t + g * (max(u, t) - t)      ours: closed, the side network alone; open, the maximum across the transition
    lst   z = g * u + (1 - g) * t          Sung et al., LST, NeurIPS 2022 (arXiv 2206.06522)
    tanh  z = t + tanh(a / T) * u          Diao et al., SHERL, ECCV 2024 (arXiv 2407.07523)
    sum   z = u + t                        no gate
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cst_search.backbone.lean_layers import recompute
from cst_search.backbone.resnet import Body
from cst_search.errors import ConfigError
from cst_search.memory.resnet_shapes import BackboneShape, ConvShape
from cst_search.memory.tape import Tape
from cst_search.memory.tape import Tensor as Shape
from cst_search.memory.training_step import Plan
from cst_search.petl.base import HasBody, Method, SideNetwork
from cst_search.petl.layers import BLOCKS, NORMS, block_params, make_block, make_norm, norm_params, residual_blocks
from cst_search.petl.pruning import fisher, l1, prune

OPERATORS = ("max", "lst", "tanh", "sum")
GATES = ("scalar", "channel")
GRANULARITIES = ("stage", "block")
KEEPS = ("all", "every_second", "last_per_stage")
INITS = ("random", "prune_l1", "prune_fisher")


@dataclass(frozen=True)
class CstOptions:
    """The design choices of CST.

    Attributes:
        reduction: r; the side network has max(1, c_i // r) channels beside c_i.
        granularity: one side block per ``stage`` or per residual ``block``.
        block: ``3x3``; ``depthwise`` (3x3 depth-wise, then 1x1); ``bottleneck`` (1x1 to a quarter, 3x3, 1x1); ``1x1``.
        norm: of the side network: batch, group (batch-size independent), or none.
        mtc_stages: stages with the gate, a non-empty subset of 2..5.
        operator: of MTC, see the module.
        gate: one gate per fusion (``scalar``) or one per channel.
        gate_init: the logit a / T at the start, so that the gate opens with sigmoid(gate_init) whatever T is.
            (-1.39 and 1.39 are an opening of 0.2 and 0.8; Side-Tuning starts at either 0.5 or 0.8.)
        temperature: T; a small one makes the gate move faster for the same learning rate.
        keep: residual blocks that get a side block, where the granularity is ``block``: ``all``; ``every_second``,
            counted back from the last of a stage, which the pyramid reads (Ladder Side-Tuning drops every second layer
            of T5-large); ``last_per_stage`` (its pattern 3, 7, 11 of 12 layers), the same as granularity ``stage``.
        init: of the side blocks: ``random``; ``prune_l1``, ``prune_fisher``: residual blocks of the backbone, pruned to
            what matters most by magnitude or by Fisher information, see `petl.pruning`. Up_i is zero with all three.
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
                faults.append(f"{name} must be one of {', '.join(allowed)}; got {getattr(self, name)!r}")
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


class Mtc(nn.Module):
    """The gate that fuses the backbone's view u with the side state t, both (B, C, H, W). See the module's table."""

    def __init__(self, operator: str, gate: str, channels: int, gate_init: float, temperature: float) -> None:
        super().__init__()
        self.operator, self.temperature = operator, temperature
        if operator != "sum":
            shape = (1,) if gate == "scalar" else (channels, 1, 1)
            self.gate = nn.Parameter(torch.full(shape, gate_init * temperature))

    def opening(self) -> Tensor:
        """sigmoid(a / T), or tanh(a / T) for the tanh operator."""
        logit = self.gate / self.temperature
        return torch.tanh(logit) if self.operator == "tanh" else torch.sigmoid(logit)

    def forward(self, u: Tensor, t: Tensor) -> Tensor:
        if self.operator == "sum":
            return u + t
        g = self.opening().to(u.dtype)
        if self.operator == "lst":
            return torch.lerp(t, u, g)
        if self.operator == "tanh":
            return t + g * u
        return torch.lerp(t, torch.maximum(u, t), g)


class _Node(nn.Module):
    """One side step: reduce the backbone's feature, fuse it with the side state, transform."""

    def __init__(
        self, c_backbone: int, c_before: int, c: int, halves: bool, moves: bool, mtc: bool, o: CstOptions
    ) -> None:
        super().__init__()
        self.down = nn.Conv2d(c_backbone, c, 1, bias=o.norm == "none")
        self.down_norm = make_norm(o.norm, c)
        self.halves = halves
        self.trans = nn.Conv2d(c_before, c, 1, bias=True) if moves else None
        self.mtc = Mtc(o.operator if mtc else "sum", o.gate, c, o.gate_init, o.temperature)
        self.block = make_block(o.block, o.norm, c)

    def forward(self, feature: Tensor, h: Tensor) -> Tensor:
        u = self.down_norm(self.down(feature))
        t = F.avg_pool2d(h, 2, ceil_mode=True) if self.halves else h  # ceil: as the backbone's strided 3x3 rounds
        if self.trans is not None:
            t = self.trans(t)
        z = self.mtc(u, t)
        return z + self.block(z)


class Ladder(SideNetwork):
    """The nodes, stage by stage or block by block; its states are the h_i."""

    def __init__(self, shape: BackboneShape, options: CstOptions) -> None:
        super().__init__()
        self.out_stages = shape.used_stages
        first = _side_channels(shape.stage_channels[0], options)
        self.stem = nn.Sequential(
            nn.Conv2d(shape.stage_channels[0], first, 1, bias=options.norm == "none"), make_norm(options.norm, first)
        )
        self.keys: list[str] = []
        self.nodes = nn.ModuleList()
        before = first
        last = max(shape.used_stages)
        for stage in range(2, last + 1):
            c_backbone = shape.stage_channels[stage - 1]
            c = _side_channels(c_backbone, options)
            n = shape.stage_blocks[stage - 2]
            kept = _kept(n, options)
            for j in kept:
                enters = j == kept[0]
                self.keys.append(f"c{stage}" if j == n - 1 else f"c{stage}.{j}")
                self.nodes.append(
                    _Node(c_backbone, before, c, enters and stage > 2, enters, stage in options.mtc_stages, options)
                )
                before = c
        self.up = nn.ModuleDict()
        for stage in shape.used_stages:
            c_backbone = shape.stage_channels[stage - 1]
            self.up[f"c{stage}"] = nn.Conv2d(_side_channels(c_backbone, options), c_backbone, 1)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="linear")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.up.values():
            assert isinstance(module, nn.Conv2d)
            nn.init.zeros_(module.weight)

    def forward(self, features: OrderedDict[str, Tensor]) -> OrderedDict[str, Tensor]:
        states: OrderedDict[str, Tensor] = OrderedDict()
        h = self.stem(features["c1"])
        for key, node in zip(self.keys, self.nodes, strict=True):
            h = recompute(node, features[key], h) if self.recompute else node(features[key], h)
            if key in self.up:
                states[key] = h
        return states

    def calibrate(self, key: str, feature: Tensor, state: Tensor) -> Tensor:
        """C_i + Up_i(h_i), of C_i's shape."""
        return feature + self.up[key](state)


def _side_channels(channels: int, options: CstOptions) -> int:
    return max(1, channels // options.reduction)


def _kept(n_blocks: int, options: CstOptions) -> list[int]:
    """Indices of the blocks of a stage that have a side block; the last always has."""
    if options.granularity == "stage" or options.keep == "last_per_stage":
        return [n_blocks - 1]
    step = 2 if options.keep == "every_second" else 1
    return list(range(n_blocks - 1, -1, -step))[::-1]


# the convolutions of a residual block that the dense ones of a side block are pruned from; others have no counterpart
_COUNTERPARTS = {"3x3": ("conv2",), "bottleneck": ("conv1", "conv2", "conv3")}


def _counterparts(side: Ladder, body: Body, kind: str) -> Iterator[tuple[nn.Conv2d, nn.Conv2d]]:
    """(convolution of a side block, that of the residual block beside it which it can be pruned from).

    What has no counterpart stays random: depth-wise and 1x1 side blocks, and in a bottleneck all but the 3x3 where the
    backbone (ResNet-18, 34) has no bottlenecks. The ladders (Down_i) are random, as in Ladder Side-Tuning.
    """
    for key, node in zip(side.keys, side.nodes, strict=True):
        stage, _, j = key.removeprefix("c").partition(".")
        block = residual_blocks(body, int(stage))[: body.stage_blocks[int(stage) - 2]][int(j or -1)]
        convs = [layer for layer in node.block.children() if isinstance(layer, nn.Conv2d)]  # type: ignore[union-attr]
        for conv, name in zip(convs, _COUNTERPARTS.get(kind, ()), strict=False):
            source = getattr(block, name, None)
            if source is not None and source.kernel_size == conv.kernel_size:
                yield conv, source


def _apply(backbone: HasBody, options: CstOptions) -> None:
    backbone.body.taps_blocks = options.granularity == "block" and options.keep != "last_per_stage"
    side = Ladder(backbone.body.shape(backbone.used_stages), options)
    if options.init == "prune_l1":
        for conv, source in _counterparts(side, backbone.body, options.block):
            prune(conv, source, l1(source))
    backbone.side = side


def prepare(backbone: HasBody, options: CstOptions, losses: Iterator[Tensor]) -> None:
    """Prune by Fisher information, which needs data."""
    if options.init != "prune_fisher":
        return
    assert isinstance(backbone.side, Ladder)
    pairs = list(_counterparts(backbone.side, backbone.body, options.block))
    if not pairs:
        return
    found = fisher(backbone, [source for _, source in pairs], losses)
    for (conv, source), importance in zip(pairs, found, strict=True):
        prune(conv, source, importance)


def petl_params(shape: BackboneShape, options: CstOptions) -> int:
    """The parameters of the side network, in closed form (pinned to the module by a test).

    With s_i = max(1, c_i // r): stem c_1 s_1; Up s_i c_i + c_i; per node Down c_i s_i, the block and the gate;
    Trans s_{i-1} s_i + s_i where a stage begins; two affine parameters, or a bias, per channel of Down and stem.
    """
    channel = {i + 1: c for i, c in enumerate(shape.stage_channels)}
    side = {i: _side_channels(c, options) for i, c in channel.items()}
    total = channel[1] * side[1] + norm_params(options.norm, side[1])
    for stage in range(2, max(shape.used_stages) + 1):
        s = side[stage]
        gated = stage in options.mtc_stages and options.operator != "sum"
        gate = (1 if options.gate == "scalar" else s) if gated else 0
        node = channel[stage] * s + norm_params(options.norm, s) + gate + block_params(options.block, options.norm, s)
        total += len(_kept(shape.stage_blocks[stage - 2], options)) * node + side[stage - 1] * s + s
    return total + sum(side[i] * channel[i] + channel[i] for i in shape.used_stages)


def footprint(shape: BackboneShape, options: CstOptions) -> Plan:
    o, bias = options, options.norm == "none"
    side = [_side_channels(c, o) for c in shape.stage_channels]

    def mtc(tape: Tape, stage: int, u: Shape, t: Shape) -> Shape:
        operator = o.operator if stage in o.mtc_stages else "sum"
        gate = 4 * (1 if o.gate == "scalar" else u.shape[1])
        if operator == "sum":
            return tape.add(u, t)
        if operator == "tanh":
            return tape.add(t, tape.op(u.shape, u, save=[u], params=gate, transient=u.nbytes))
        if operator == "max":  # keeps two masks' worth of comparison: both inputs
            u = tape.pointwise(u, t, save=[u, t])
        # lerp: the gradient of the gate is a product over both ends
        return tape.op(t.shape, t, u, save=[t, u], params=gate, transient=2 * t.nbytes)

    def node(tape: Tape, feature: Shape, h: Shape, stage: int, halves: bool, moves: bool) -> Shape:
        c = side[stage - 1]
        u = tape.norm(o.norm, tape.conv(feature, c, 1, bias=bias))
        t = tape.op((*h.shape[:2], *u.shape[2:]), h, save=[h]) if halves else h
        if moves:
            t = tape.conv(t, c, 1, bias=True)
        z = mtc(tape, stage, u, t)
        return tape.add(z, tape.side_block(o.block, o.norm, z))

    def run_side(tape: Tape, features: dict[str, Shape], again: bool) -> dict[str, Shape]:
        h = tape.norm(o.norm, tape.conv(features["c1"], side[0], 1, bias=bias))
        states = {}
        for stage in range(2, max(shape.used_stages) + 1):
            n = shape.stage_blocks[stage - 2]
            kept = _kept(n, o)
            for j in kept:
                key = f"c{stage}" if j == n - 1 else f"c{stage}.{j}"
                enters = j == kept[0]
                run = partial(node, tape, features[key], h, stage, enters and stage > 2, enters)
                h = tape.recompute(run) if again else run()
            if stage in shape.used_stages:
                states[f"c{stage}"] = h
        return states

    def calibrate(tape: Tape, key: str, feature: Shape, state: Shape) -> Shape:
        return tape.add(feature, tape.conv(state, feature.shape[1], 1, bias=True, key=f"up.{key}"))

    return Plan(
        side=run_side,
        calibrate=calibrate,
        taps=o.granularity == "block" and o.keep != "last_per_stage",
        start=_fisher_pass(shape, o) if o.init == "prune_fisher" else None,
    )


def _fisher_pass(shape: BackboneShape, options: CstOptions) -> Plan | None:
    """`pruning.fisher` as shapes: residual blocks are recomputed, and keep what the gradients of the sources need."""
    kernels = {"3x3": (3,), "bottleneck": (1, 3) if len(shape.blocks()[0].path) == 3 else (3,)}.get(options.block)
    if kernels is None:
        return None

    def conv(tape: Tape, x: Shape, stage: int, conv: ConvShape, stride: int) -> Shape | None:
        return tape.conv(x, conv.c_out, conv.kernel, stride) if conv.kernel in kernels else None

    return Plan(grad_from=1, conv=conv, recompute=True)


METHOD = Method(
    name="cst",
    options=CstOptions,
    lr=3e-3,
    side=True,
    source="Chen, arXiv 2402.12736 (idea; our reading of it, see cst_search/petl/cst.py); learning rate: LST's 3e-3",
    apply=_apply,
    petl_params=petl_params,
    footprint=footprint,
    shapeless=("gate_init", "temperature"),
    prepare=prepare,
)
