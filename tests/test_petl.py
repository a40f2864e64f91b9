"""The PETL methods: options, the operators of MTC, and the closed formula of their parameters."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cst_search.backbone import Body
from cst_search.detector import Backbone, build_detector, count_parameters
from cst_search.errors import ConfigError
from cst_search.petl import METHODS, get_method
from cst_search.petl.cst import (
    BLOCKS,
    GATES,
    GRANULARITIES,
    NORMS,
    OPERATORS,
    CstOptions,
    Mtc,
    SideNetwork,
    _block,
    _norm,
)
from cst_search.recipe import BACKBONES, DETECTORS, Recipe

# --- the registry ----------------------------------------------------------------------------------------------------


def test_the_registry() -> None:
    assert set(METHODS) == {"cst", "full", "head"}
    for name, method in METHODS.items():
        assert method.name == name and method.source and 0 < method.lr < 1
        assert method.options() == method.make_options({})  # every option has a default, and the defaults are valid
    assert [name for name in METHODS if METHODS[name].side] == ["cst", "head"]


def test_an_unknown_method_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match="one of cst, full, head; got 'lora'"):
        get_method("lora")


@pytest.mark.parametrize(
    ("method", "options", "says"),
    [
        ("cst", {"reductoin": 8}, "has no option 'reductoin'; it has reduction, granularity"),
        ("head", {"reduction": 8}, "has no option 'reduction'; it has none"),
        ("cst", {"reduction": 0}, "reduction must be a whole number from 1 to 256; got 0"),
        ("cst", {"reduction": 8.0}, "reduction must be a whole number"),  # a float channel count fails much later
        ("cst", {"granularity": "layer"}, "granularity must be one of stage, block"),
        ("cst", {"block": "5x5"}, "block must be one of 3x3, depthwise, bottleneck, 1x1"),
        ("cst", {"norm": "ln"}, "norm must be one of bn, gn, none"),
        ("cst", {"operator": "min"}, "operator must be one of max, lst, tanh, sum"),
        ("cst", {"gate": "spatial"}, "gate must be one of scalar, channel"),
        ("cst", {"mtc_stages": []}, "non-empty"),
        ("cst", {"mtc_stages": [1, 2]}, "subset of 2, 3, 4, 5"),  # C1 has no transition before it
        ("cst", {"mtc_stages": [3, 2]}, "ascending"),  # one set, one way to write it
        ("cst", {"mtc_stages": [2, 2]}, "ascending"),
        ("cst", {"gate_init": float("nan")}, "gate_init must be from -10 to 10"),
        ("cst", {"temperature": 0.0}, "temperature must be from 0.01 to 10"),
    ],
)
def test_wrong_options_are_refused(method: str, options: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        get_method(method).make_options(options)
    assert says in str(raised.value)


def test_all_wrong_options_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        get_method("cst").make_options({"reduction": 0, "block": "5x5", "temperature": 0})
    assert all(word in str(raised.value) for word in ("reduction", "block", "temperature"))


def test_lists_from_yaml_and_json_become_tuples() -> None:
    assert get_method("cst").make_options({"mtc_stages": [3, 5]}).mtc_stages == (3, 5)


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
    norm = _norm("gn", channels)
    assert isinstance(norm, nn.GroupNorm) and channels % norm.num_groups == 0 and norm.num_groups <= 32
    assert channels // norm.num_groups >= min(4, channels)


@pytest.mark.parametrize("channels", [1, 3, 16])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("kind", BLOCKS)
def test_blocks_keep_the_shape(kind: str, norm: str, channels: int) -> None:
    x = torch.randn(2, channels, 5, 7)
    assert _block(kind, norm, channels)(x).shape == x.shape


def side_network(options: CstOptions, detector: str = "fasterrcnn", backbone: str = "resnet18") -> tuple[Body, Any]:
    body = Body(backbone, 0.125)
    body.taps_blocks = options.granularity == "block"
    used = (2, 3, 4, 5) if detector == "fasterrcnn" else (3, 4, 5)
    return body, SideNetwork(body.shape(used), options)


def reference(side: SideNetwork, features: dict[str, torch.Tensor], o: CstOptions) -> dict[str, torch.Tensor]:
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
    out, expected = side(features), reference(side, features, options)
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
    changed = {key for key, value in side(features).items() if not torch.equal(value, features[key])}
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
    out = side(body(torch.randn(2, 3, 96, 96)))
    sum((out[f"c{i}"] ** 2).sum() for i in side.out_stages).backward()
    dead = [name for name, p in side.named_parameters() if p.grad is None or not p.grad.abs().max() > 0]
    assert dead == []


def test_gates_exist_only_where_mtc_is() -> None:
    _, side = side_network(CstOptions(mtc_stages=(3, 5)))
    assert [name for name, _ in side.named_parameters() if name.endswith("gate")] == [
        "nodes.1.mtc.gate",
        "nodes.3.mtc.gate",
    ]


# --- parameters ------------------------------------------------------------------------------------------------------


def counted(backbone: str, width: float, detector: str, weights: str, method: str, options: Any) -> tuple[int, int]:
    """(counted, formula)."""
    recipe = Recipe(
        detector=detector,
        backbone=backbone,
        width=width,
        weights=weights,
        fpn_channels=64,
        method=method,
        options=dataclasses.asdict(options),
    )
    with torch.device("meta"):
        built = Backbone(recipe, shapes_only=True)
        built.body.requires_grad_(False)
        get_method(method).apply(built, options)
    parts = [built.body] + ([built.side] if built.side is not None else [])
    n = sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)
    return n, get_method(method).petl_params(built.body.shape(built.used_stages), options)


def some_options(rng: random.Random) -> CstOptions:
    stages = [s for s in (2, 3, 4, 5) if rng.random() < 0.6] or [rng.choice((2, 3, 4, 5))]
    return CstOptions(
        reduction=rng.choice((1, 2, 3, 4, 7, 8, 16, 32, 64, 256)),
        granularity=rng.choice(GRANULARITIES),
        block=rng.choice(BLOCKS),
        norm=rng.choice(NORMS),
        mtc_stages=tuple(stages),
        operator=rng.choice(OPERATORS),
        gate=rng.choice(GATES),
    )


@pytest.mark.parametrize("seed", range(40))
def test_counted_parameters_equal_the_formula(seed: int) -> None:
    rng = random.Random(seed)
    backbone, detector = BACKBONES[seed % len(BACKBONES)], DETECTORS[seed % len(DETECTORS)]
    width, weights = rng.choice((0.05, 0.25, 1.0)), rng.choice(("none", "DEFAULT"))
    n, formula = counted(backbone, width, detector, weights, "cst", some_options(rng))
    assert n == formula > 0


@pytest.mark.parametrize("weights", ["none", "DEFAULT"])  # DEFAULT: FrozenNorm, whose affine part is no parameter
@pytest.mark.parametrize("method", ["head", "full"])
def test_counted_parameters_of_the_baselines(method: str, weights: str) -> None:
    n, formula = counted("resnet50", 1.0, "fasterrcnn", weights, method, METHODS[method].options())
    expected = {"head": 0, "full": 23_508_032 - (53_120 if weights == "DEFAULT" else 0)}  # PETL-FACTS 2.3
    assert n == formula == expected[method]


# PETL-FACTS 2.3: share of ResNet-50's 23.508 M (affine part of its norms counted) of a side network with one 3x3 block
# per stage or per block, ladder and up-projection; for Faster R-CNN, whose pyramid reads C2..C5. Norms, biases and
# gates move it by less than 0.02: for norm none it is 25.9, 9.5, 3.9, 1.7, 0.8 and 25.9, 9.9, 4.2, 1.9.
SHARES = [
    ("stage", 4, 26.0),
    ("stage", 8, 9.5),
    ("stage", 16, 3.9),
    ("stage", 32, 1.7),
    ("stage", 64, 0.8),
    ("block", 8, 26.0),
    ("block", 16, 9.9),
    ("block", 32, 4.2),
    ("block", 64, 1.9),
]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("granularity", "reduction", "percent"), SHARES)
def test_shares_of_resnet50(granularity: str, reduction: int, percent: float, norm: str) -> None:
    options = CstOptions(reduction=reduction, granularity=granularity, norm=norm)
    n, formula = counted("resnet50", 1.0, "fasterrcnn", "DEFAULT", "cst", options)
    assert n == formula
    assert round(100 * n / 23_508_032, 1) == pytest.approx(percent, abs=0.11)


def test_count_parameters_adds_neck_and_head() -> None:
    recipe = Recipe(detector="retinanet", backbone="resnet18", width=0.125, fpn_channels=32, weights="none")
    with torch.device("meta"):
        model = build_detector(recipe, 3, shapes_only=True)
    petl, trainable = count_parameters(model)
    rest = sum(p.numel() for part in (model.backbone.fpn, model.head) for p in part.parameters())
    assert petl > 0 and trainable == petl + rest
