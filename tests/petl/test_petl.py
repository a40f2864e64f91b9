"""The registry of methods, their options, and the closed formula of their parameters."""

from __future__ import annotations

import dataclasses
import itertools
import random
from typing import Any

import pytest
import torch

from cst_search.config.recipe import BACKBONES, DETECTORS, Recipe
from cst_search.detector.build import build_detector, count_parameters
from cst_search.detector.pyramid import Backbone
from cst_search.errors import ConfigError
from cst_search.petl import METHODS, get_method
from cst_search.petl.cst import GATES, GRANULARITIES, INITS, KEEPS, OPERATORS, CstOptions
from cst_search.petl.serial_adapter import KINDS, POSITIONS
from cst_search.petl.side_blocks import BLOCKS, NORMS

# --- the registry ----------------------------------------------------------------------------------------------------


def test_the_registry() -> None:
    assert sorted(METHODS) == [
        "bitfit", "conv_adapter", "conv_lora", "cst", "full", "head", "lst", "norm", "partial", "serial_adapter",
        "side_tuning", "ssf",
    ]  # fmt: skip
    for name, method in METHODS.items():
        assert method.name == name and method.source and 0 < method.lr < 1
        assert method.options() == method.make_options({})  # every option has a default, and the defaults are valid
        known = {f.name for f in dataclasses.fields(method.options)}
        assert set(method.shapeless) <= known
    assert sorted(name for name in METHODS if METHODS[name].side) == ["cst", "head", "lst", "side_tuning"]


def test_an_unknown_method_is_refused_with_those_that_exist() -> None:
    with pytest.raises(ConfigError, match=r"one of bitfit, conv_adapter, conv_lora, cst, full, .*; got 'lora'"):
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
        ("cst", {"keep": "first"}, "keep must be one of all, every_second, last_per_stage"),
        ("cst", {"init": "zero"}, "init must be one of random, prune_l1, prune_fisher"),  # Up_i always is
        ("lst", {"reduction": 0}, "lst: reduction must be"),  # its ranges are cst's, its name is its own
        ("lst", {"operator": "max"}, "has no option 'operator'"),
        ("partial", {"stages": 0}, "stages must be a whole number from 1 to 4; got 0"),
        ("partial", {"stages": 5}, "from 1 to 4"),  # with the stem it is `full`
        ("norm", {"first_stage": 0}, "first_stage must be a stage from 1 to 5"),
        ("bitfit", {"first_stage": 6}, "first_stage must be a stage from 1 to 5"),
        ("ssf", {"after": "conv"}, "after must be one of norm, block"),
        ("ssf", {"init_std": -0.1}, "init_std must be from 0 to 1"),
        ("conv_lora", {"rank": 0}, "rank must be"),  # 0 would be `head`
        ("conv_lora", {"scale": 0.0}, "scale must be above 0"),
        ("conv_lora", {"targets": "1x1"}, "targets must be one of 3x3, all"),
        ("conv_lora", {"first_stage": 1}, "a stage from 2 to 5"),  # the stem is no target
        ("conv_adapter", {"gamma": 0}, "gamma must be"),
        ("conv_adapter", {"kernel": 4}, "kernel must be 3 or 5"),
        ("serial_adapter", {"position": "end"}, "position must be one of transition, front, middle, back"),
        ("serial_adapter", {"kind": "mlp"}, "kind must be one of bottleneck, basic"),
        ("serial_adapter", {"norm": "ln"}, "norm must be one of bn, gn, none"),
        ("side_tuning", {"blocks": -1}, "blocks must be"),
        ("side_tuning", {"gate_init": float("inf")}, "gate_init must be from -10 to 10"),
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
        built = Backbone(recipe)
        built.body.requires_grad_(False)
        get_method(method).apply(built, options)
    parts = [built.body] + ([built.side] if built.side is not None else [])
    n = sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)
    return n, get_method(method).petl_params(built.body.shape(built.used_stages), options)


REDUCTIONS = (1, 2, 3, 4, 7, 8, 16, 32, 64, 256)
DRAWN: dict[str, dict[str, tuple[Any, ...]]] = {
    "cst": {
        "reduction": REDUCTIONS,
        "granularity": GRANULARITIES,
        "block": BLOCKS,
        "norm": NORMS,
        "mtc_stages": tuple(c for n in range(1, 5) for c in itertools.combinations((2, 3, 4, 5), n)),
        "operator": OPERATORS,
        "gate": GATES,
        "keep": KEEPS,
        "init": INITS,
    },
    "lst": {"reduction": REDUCTIONS, "block": BLOCKS, "norm": NORMS, "keep": KEEPS, "init": INITS},
    "side_tuning": {"reduction": REDUCTIONS, "blocks": (0, 1, 2), "norm": NORMS},
    "head": {},
    "full": {},
    "partial": {"stages": (1, 2, 3, 4)},
    "norm": {"first_stage": (1, 2, 3, 4, 5)},
    "bitfit": {"first_stage": (1, 2, 3, 4, 5)},
    "ssf": {"after": ("norm", "block"), "first_stage": (1, 2, 3, 4, 5)},
    "conv_lora": {"rank": (1, 2, 7, 32), "targets": ("3x3", "all"), "first_stage": (2, 3, 4, 5)},
    "conv_adapter": {"gamma": (*REDUCTIONS, 13), "kernel": (3, 5), "first_stage": (2, 3, 4, 5)},
    "serial_adapter": {
        "reduction": REDUCTIONS,
        "position": POSITIONS,
        "kind": KINDS,
        "norm": NORMS,
        "first_stage": (2, 3, 4, 5),
    },
}


def some_options(method: str, rng: random.Random) -> Any:
    return METHODS[method].make_options({name: rng.choice(values) for name, values in DRAWN[method].items()})


def test_every_option_that_changes_a_shape_is_drawn() -> None:
    for name, method in METHODS.items():
        silent = {"gate_init", "temperature", "scale", "init_std"}  # numbers that change no shape
        assert {f.name for f in dataclasses.fields(method.options)} - silent == set(DRAWN[name])


@pytest.mark.parametrize(
    ("method", "seed"),
    # the more there is to draw, the more often
    [(method, seed) for method in sorted(METHODS) for seed in range(16 if len(DRAWN[method]) > 2 else 8)],
)
def test_counted_parameters_equal_the_formula(method: str, seed: int) -> None:
    rng = random.Random(seed)
    backbone, detector = BACKBONES[seed % len(BACKBONES)], DETECTORS[seed % len(DETECTORS)]
    width, weights = rng.choice((0.05, 0.25, 0.3, 1.0)), rng.choice(("none", "DEFAULT"))
    n, formula = counted(backbone, width, detector, weights, method, some_options(method, rng))
    assert n == formula and (n > 0) == (method != "head")


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


# PETL-FACTS 2.3 for the other methods, in percent of the same 23.508 M; serial adapters with a norm behind each 1x1
OTHER_SHARES: list[tuple[str, dict[str, Any], float]] = [
    ("norm", {}, 0.23),
    ("ssf", {}, 0.23),
    ("bitfit", {}, 0.11),
    *(("conv_adapter", {"gamma": g}, p) for g, p in zip((1, 2, 4, 8, 16), (5.54, 2.86, 1.52, 0.85, 0.51), strict=True)),
    *(
        ("conv_lora", {"rank": r}, p)
        for r, p in zip((1, 2, 4, 8, 16, 32), (0.29, 0.58, 1.16, 2.31, 4.63, 9.25), strict=True)
    ),
    *(
        ("conv_lora", {"rank": r, "targets": "all"}, p)
        for r, p in zip((1, 2, 4, 8, 16), (0.47, 0.93, 1.86, 3.72, 7.45), strict=True)
    ),
    *(("serial_adapter", {"reduction": r}, p) for r, p in zip((8, 16, 32, 64), (21.5, 10.8, 5.5, 2.8), strict=True)),
]


@pytest.mark.parametrize(("method", "options", "percent"), OTHER_SHARES)
def test_shares_of_resnet50_of_the_other_methods(method: str, options: dict[str, Any], percent: float) -> None:
    n, formula = counted("resnet50", 1.0, "fasterrcnn", "DEFAULT", method, METHODS[method].make_options(options))
    assert n == formula
    digits = 1 if method == "serial_adapter" else 2
    assert round(100 * n / 23_508_032, digits) == percent


@pytest.mark.parametrize(("method", "n_params"), [("norm", 53_120), ("ssf", 53_120), ("bitfit", 26_560)])
@pytest.mark.parametrize("weights", ["none", "DEFAULT"])  # with BatchNorm2d nothing more is opened
def test_affine_parameters_of_resnet50(method: str, n_params: int, weights: str) -> None:
    n, _ = counted("resnet50", 1.0, "fasterrcnn", weights, method, METHODS[method].options())
    assert n == n_params


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
