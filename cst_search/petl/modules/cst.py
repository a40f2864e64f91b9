"""Side network of `cst` and `lst`: a ladder of reduced blocks, fused with the backbone by MTC gates.

See `cst_search.petl.cst` for the formulas, and `cst_search.petl.lst`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cst_search.backbone.recompute import recompute
from cst_search.backbone.resnet import Body
from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.petl.base import HasBody
from cst_search.petl.cst import CstOptions, kept_blocks, side_channels
from cst_search.petl.modules.layers import (
    make_block,
    make_norm,
    residual_blocks,
)
from cst_search.petl.modules.pruning import fisher, l1, prune
from cst_search.petl.modules.side_network import SideNetwork


class Mtc(nn.Module):
    """Gate that fuses the reduced feature map u with the side state t, both (B, C, H, W). Operators: see `petl.cst`."""

    def __init__(self, operator: str, gate: str, channels: int, gate_init: float, temperature: float) -> None:
        super().__init__()
        self.operator, self.temperature = operator, temperature
        if operator != "sum":
            shape = (1,) if gate == "scalar" else (channels, 1, 1)
            self.gate = nn.Parameter(torch.full(shape, gate_init * temperature))

    def opening(self) -> Tensor:
        """Return the gate's opening: sigmoid(a / T), or tanh(a / T) for the tanh operator."""
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
    """Step of the side network: reduce the feature map, fuse it with the side state, apply the side block."""

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
        t = F.avg_pool2d(h, 2, ceil_mode=True) if self.halves else h  # ceil, like the backbone's strided 3x3
        if self.trans is not None:
            t = self.trans(t)
        z = self.mtc(u, t)
        return z + self.block(z)


class Ladder(SideNetwork):
    """Ladder of side blocks, one per stage or per residual block; its states are the h_i."""

    def __init__(self, shape: BackboneShape, options: CstOptions) -> None:
        super().__init__()
        self.out_stages = shape.used_stages
        first = side_channels(shape.stage_channels[0], options)
        self.stem = nn.Sequential(
            nn.Conv2d(shape.stage_channels[0], first, 1, bias=options.norm == "none"), make_norm(options.norm, first)
        )
        self.keys: list[str] = []
        self.nodes = nn.ModuleList()
        before = first
        last = max(shape.used_stages)
        for stage in range(2, last + 1):
            c_backbone = shape.stage_channels[stage - 1]
            c = side_channels(c_backbone, options)
            n = shape.stage_blocks[stage - 2]
            kept = kept_blocks(n, options)
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
            self.up[f"c{stage}"] = nn.Conv2d(side_channels(c_backbone, options), c_backbone, 1)
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
        """Return C_i + Up_i(h_i), of C_i's shape."""
        return feature + self.up[key](state)


# convolutions of a residual block from which the dense ones of a side block are pruned; other kinds have none
_COUNTERPARTS = {"3x3": ("conv2",), "bottleneck": ("conv1", "conv2", "conv3")}


def _counterparts(side: Ladder, body: Body, kind: str) -> Iterator[tuple[nn.Conv2d, nn.Conv2d]]:
    """Yield (convolution of a side block, convolution of the residual block beside it to prune it from).

    Convolutions without a counterpart stay random: depth-wise and 1x1 side blocks, and in a bottleneck all but the 3x3
    where the backbone (ResNet-18, 34) has no bottlenecks. The ladders (Down_i) are random, as in Ladder Side-Tuning.
    """
    for key, node in zip(side.keys, side.nodes, strict=True):
        stage, _, j = key.removeprefix("c").partition(".")
        block = residual_blocks(body, int(stage))[: body.stage_blocks[int(stage) - 2]][int(j or -1)]
        convs = [layer for layer in node.block.children() if isinstance(layer, nn.Conv2d)]  # type: ignore[union-attr]
        for conv, name in zip(convs, _COUNTERPARTS.get(kind, ()), strict=False):
            source = getattr(block, name, None)
            if source is not None and source.kernel_size == conv.kernel_size:
                yield conv, source


def apply(backbone: HasBody, options: CstOptions) -> None:
    backbone.body.taps_blocks = options.granularity == "block" and options.keep != "last_per_stage"
    side = Ladder(backbone.body.shape(backbone.used_stages), options)
    if options.init == "prune_l1":
        for conv, source in _counterparts(side, backbone.body, options.block):
            prune(conv, source, l1(source))
    backbone.side = side


def prepare(backbone: HasBody, options: CstOptions, losses: Iterator[Tensor]) -> None:
    """Prune the side blocks by Fisher information, which needs training data."""
    if options.init != "prune_fisher":
        return
    assert isinstance(backbone.side, Ladder)
    pairs = list(_counterparts(backbone.side, backbone.body, options.block))
    if not pairs:
        return
    found = fisher(backbone, [source for _, source in pairs], losses)
    for (conv, source), importance in zip(pairs, found, strict=True):
        prune(conv, source, importance)
