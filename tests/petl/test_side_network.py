"""The side network: MTC's operators, its equations, and the ladder and side-tuning built of it."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cst_search.backbone.resnet import Body
from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.detector.pyramid import Backbone
from cst_search.petl import METHODS
from cst_search.petl.cst import GATES, GRANULARITIES, OPERATORS, CstOptions
from cst_search.petl.lst import LstOptions
from cst_search.petl.modules.cst import Ladder, Mtc
from cst_search.petl.modules.layers import make_block, make_norm
from cst_search.petl.modules.side_tuning import ImageSideNetwork
from cst_search.petl.side_blocks import BLOCKS, NORMS
from cst_search.petl.side_tuning import SideTuningOptions

# --- MTC -------------------------------------------------------------------------------------------------------------


def fused(operator: str, u: float, t: float, a: float, temperature: float) -> float:
    """The operators once more, from the docstring's table, with the standard library."""
    sigmoid = 1 / (1 + math.exp(-a / temperature))
    return {
        "max": t + sigmoid * (max(u, t) - t),
        "lst": sigmoid * u + (1 - sigmoid) * t,
        "tanh": t + math.tanh(a / temperature) * u,
        "sum": u + t,
    }[operator]


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("temperature", [0.05, 0.1, 1.0])
def test_operators_follow_their_formulas(operator: str, gate: str, temperature: float) -> None:
    mtc = Mtc(operator, gate, 3, 0.0, temperature)
    a = [0.02, 0.02, 0.02] if gate == "scalar" else [-0.07, 0.0, 0.11]
    if operator != "sum":
        with torch.no_grad():
            mtc.gate.copy_(torch.tensor(a[: mtc.gate.numel()]).reshape(mtc.gate.shape))
    u, t = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    z = mtc(u, t)
    for b, c, y, x in itertools.product(*map(range, z.shape)):
        expected = fused(operator, float(u[b, c, y, x]), float(t[b, c, y, x]), a[c], temperature)
        assert float(z[b, c, y, x].detach()) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("gate", GATES)
@pytest.mark.parametrize("temperature", [0.01, 0.05, 0.1, 1.0, 10.0])
@pytest.mark.parametrize("gate_init", [-1.39, 0.0, 0.3, 1.39])
@pytest.mark.parametrize(
    ("operator", "function"), [("max", torch.sigmoid), ("lst", torch.sigmoid), ("tanh", torch.tanh)]
)
def test_the_opening_at_the_start_does_not_depend_on_the_temperature(
    operator: str, function: Any, gate_init: float, temperature: float, gate: str
) -> None:
    opening = Mtc(operator, gate, 4, gate_init, temperature).opening()
    assert opening.shape == ((1,) if gate == "scalar" else (4, 1, 1))
    torch.testing.assert_close(opening, torch.full_like(opening, float(function(torch.tensor(gate_init)))))


@pytest.mark.parametrize(
    ("gate_init", "opening"),
    [
        (0.0, 0.5),  # Ladder Side-Tuning's alpha = 0 with its T = 0.1, our defaults
        (-1.39, 0.2),  # the ends of the search range, as CstOptions documents them
        (1.39, 0.8),
    ],
)
def test_documented_openings(gate_init: float, opening: float) -> None:
    options = CstOptions(gate_init=gate_init)
    assert options.temperature == 0.1
    mtc = Mtc("lst", "scalar", 1, options.gate_init, options.temperature)
    assert float(mtc.opening().detach()) == pytest.approx(opening, abs=1e-3)


def test_a_smaller_temperature_moves_the_gate_faster() -> None:
    moved = []
    for temperature in (0.05, 1.0):
        mtc = Mtc("max", "scalar", 1, 0.0, temperature)
        with torch.no_grad():
            mtc.gate += 0.01  # one step of AdamW with lr 0.01, whatever the gradient
        moved.append(float(mtc.opening().detach()) - 0.5)
    assert moved[0] > 10 * moved[1] > 0


@pytest.mark.parametrize(
    ("gate_init", "expected"),
    [(-10.0, "t"), (10.0, "max")],  # closed: the side network alone; open: the maximum across the transition
)
def test_the_ends_of_the_max_gate(gate_init: float, expected: str) -> None:
    u, t = torch.randn(1, 2, 8, 8), torch.randn(1, 2, 8, 8)
    z = Mtc("max", "scalar", 2, gate_init, 0.1)(u, t)
    torch.testing.assert_close(z, t if expected == "t" else torch.maximum(u, t), atol=1e-3, rtol=0)


# --- the side network ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [1, 2, 3, 4, 5, 8, 12, 16, 64, 96, 100, 512])
def test_group_norm_has_at_least_four_channels_a_group(channels: int) -> None:
    norm = make_norm("gn", channels)
    assert isinstance(norm, nn.GroupNorm) and channels % norm.num_groups == 0 and norm.num_groups <= 32
    assert channels // norm.num_groups >= min(4, channels)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_group_norm_hands_its_kernel_one_type(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    """CUDA's kernel refuses an input and a weight of two types, which a CPU's does not mind."""
    norm, seen = make_norm("gn", 8), set[torch.dtype]()
    plain = F.group_norm

    def watched(x: torch.Tensor, groups: int, weight: torch.Tensor, bias: torch.Tensor, eps: float) -> torch.Tensor:
        seen.update((x.dtype, weight.dtype, bias.dtype))
        return plain(x, groups, weight, bias, eps)

    monkeypatch.setattr(F, "group_norm", watched)
    x = torch.randn(2, 8, 4, 4, dtype=dtype)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = norm(x)
    assert out.dtype == dtype and seen == {dtype}
    out.float().square().sum().backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in norm.parameters())


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_keep_the_shape(kind: str, norm: str, channels: int) -> None:
    x = torch.randn(2, channels, 5, 7)
    assert make_block(kind, norm, channels)(x).shape == x.shape


def side_network(options: CstOptions, detector: str = "fasterrcnn", backbone: str = "resnet18") -> tuple[Body, Any]:
    body = Body(backbone, 0.125)
    body.taps_blocks = options.granularity == "block"
    used = (2, 3, 4, 5) if detector == "fasterrcnn" else (3, 4, 5)
    return body, Ladder(body.shape(used), options)


def calibrated(side: Any, features: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The features as the pyramid reads them."""
    states = side(features)
    return dict(features) | {key: side.calibrate(key, features[key], state) for key, state in states.items()}


def reference(side: Ladder, features: dict[str, torch.Tensor], o: CstOptions) -> dict[str, torch.Tensor]:
    """The docstring's equations, stage granularity, written out with the network's own layers."""
    out, h = dict(features), side.stem(features["c1"])
    for i in (2, 3, 4, 5):
        node: Any = side.nodes[i - 2]
        u = node.down_norm(node.down(features[f"c{i}"]))
        t = node.trans(F.avg_pool2d(h, 2, ceil_mode=True) if i > 2 else h)
        if i in o.mtc_stages:
            g = torch.sigmoid(node.mtc.gate / o.temperature)
            z = t + g * (torch.maximum(u, t) - t)
        else:
            z = u + t
        h = z + node.block(z)
        if f"c{i}" in side.up:
            out[f"c{i}"] = features[f"c{i}"] + side.up[f"c{i}"](h)
    return out


@pytest.mark.parametrize("size", [(64, 64), (65, 97)])  # odd: the halved side state must meet the backbone's grid
@pytest.mark.parametrize("stages", [(2, 3, 4, 5), (3, 5)])
def test_the_side_network_follows_its_equations(size: tuple[int, int], stages: tuple[int, ...]) -> None:
    options = CstOptions(mtc_stages=stages, gate_init=0.7)
    body, side = side_network(options)
    for up in side.up.values():
        nn.init.normal_(up.weight, std=0.1)
    features = body(torch.randn(2, 3, *size))
    out, expected = calibrated(side, features), reference(side, features, options)
    assert list(out) == list(features)
    for key in features:
        torch.testing.assert_close(out[key], expected[key], rtol=1e-5, atol=1e-5)
    assert all(not torch.equal(out[f"c{i}"], features[f"c{i}"]) for i in (2, 3, 4, 5))


@pytest.mark.parametrize("detector", DETECTORS)
def test_only_what_the_pyramid_reads_is_calibrated(detector: str) -> None:
    body, side = side_network(CstOptions(granularity="block"), detector)
    for up in side.up.values():
        nn.init.normal_(up.weight)
    features = body(torch.randn(1, 3, 64, 64))
    changed = {key for key, value in calibrated(side, features).items() if not torch.equal(value, features[key])}
    assert changed == {f"c{i}" for i in side.out_stages}


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("detector", ["fasterrcnn", "fcos"])  # FCOS does not read C2, yet its node feeds the next
def test_no_parameter_is_dead(detector: str, granularity: str, operator: str) -> None:
    # with the gate ajar: at gate_init 0 `tanh` is shut, and only its gate has a gradient in the first step
    options = CstOptions(reduction=1, granularity=granularity, operator=operator, norm="none", gate_init=0.5)
    body, side = side_network(options, detector)
    for up in side.up.values():
        nn.init.normal_(up.weight)
    out = calibrated(side, body(torch.randn(2, 3, 96, 96)))
    sum((out[f"c{i}"] ** 2).sum() for i in side.out_stages).backward()
    dead = [name for name, p in side.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


def test_gates_exist_only_where_mtc_is() -> None:
    _, side = side_network(CstOptions(mtc_stages=(3, 5)))
    assert [name for name, _ in side.named_parameters() if name.endswith("gate")] == [
        "nodes.1.mtc.gate",
        "nodes.3.mtc.gate",
    ]


# --- LST -------------------------------------------------------------------------------------------------------------


def test_the_ladder_has_the_published_gate() -> None:
    """Sung et al.: sigmoid(alpha / T), alpha = 0 and T = 0.1 at the start, one scalar for every layer."""
    built = Backbone(Recipe(backbone="resnet34", width=0.125, weights="none"))
    METHODS["lst"].apply(built, LstOptions())
    side: Any = built.side
    assert len(side.nodes) == 3 + 4 + 6 + 3
    for node in side.nodes:
        assert node.mtc.gate.shape == (1,) and node.mtc.gate.item() == 0 and node.mtc.temperature == 0.1
        assert node.mtc.opening().item() == 0.5
    u, h = torch.randn(1, 2, 3, 3), torch.randn(1, 2, 3, 3)
    for alpha in (-0.2, 0.0, 0.05):
        mtc = side.nodes[0].mtc
        nn.init.constant_(mtc.gate, alpha)
        g = 1 / (1 + math.exp(-alpha / 0.1))
        torch.testing.assert_close(mtc(u, h), g * u + (1 - g) * h)


def test_the_ladder_follows_its_equation() -> None:
    """h_i = Block_i(g u_i + (1 - g) h_{i-1}), here with a residual around the block, at every residual block."""
    built = Backbone(Recipe(backbone="resnet18", width=0.125, weights="none"))
    METHODS["lst"].apply(built, LstOptions(norm="none", reduction=2))
    side: Any = built.side.eval()
    for up in side.up.values():
        nn.init.normal_(up.weight)
    features = built.body(torch.randn(1, 3, 64, 64))
    h = side.stem(features["c1"])
    for key, node in zip(("c2.0", "c2", "c3.0", "c3", "c4.0", "c4", "c5.0", "c5"), side.nodes, strict=True):
        if key in ("c3.0", "c4.0", "c5.0"):
            h = F.avg_pool2d(h, 2)
        t = node.trans(h) if key.endswith(".0") else h
        z = 0.5 * node.down(features[key]) + 0.5 * t
        h = z + F.relu(node.block[0](z))
    torch.testing.assert_close(calibrated(side, features)["c5"], features["c5"] + side.up["c5"](h))


# --- Side-Tuning -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gate_init", [0.0, 1.39])
def test_side_tuning_merges_base_and_side(gate_init: float) -> None:
    body = Body("resnet18", 0.125)
    side = ImageSideNetwork(body.shape((3, 4, 5)), SideTuningOptions(reduction=2, gate_init=gate_init)).eval()
    for up in side.up.values():
        nn.init.normal_(up.weight)
    image = torch.randn(1, 3, 65, 97)  # odd: its grids must meet those of the backbone
    features = body(image)
    features["image"] = image
    out = calibrated(side, features)
    assert list(out) == list(features)
    assert torch.equal(out["c1"], features["c1"]) and torch.equal(out["c2"], features["c2"])  # FCOS does not read C2
    x, share = image, 1 / (1 + math.exp(-gate_init))
    for key in ("c2", "c3", "c4", "c5"):
        x = side.stages[key](x)
        if key != "c2":
            from_side = features[key] + side.up[key](x)
            torch.testing.assert_close(out[key], share * features[key] + (1 - share) * from_side)


def test_the_reference_number_of_layers() -> None:
    def n_convs(blocks: int) -> int:
        side = ImageSideNetwork(Body("resnet18", 0.125).shape((2, 3, 4, 5)), SideTuningOptions(blocks=blocks))
        return sum(isinstance(m, nn.Conv2d) for m in side.stages.modules())

    assert [n_convs(blocks) for blocks in (0, 1)] == [5, 9]  # the reference's FCN5; a small ResNet
