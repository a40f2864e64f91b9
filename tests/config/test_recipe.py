"""A recipe: its rules, and a configuration laid over it."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

from cst_search.config.augmentation import Augmentation
from cst_search.config.recipe import BACKBONES, DETECTORS, PRECISIONS, Recipe
from cst_search.errors import ConfigError


def test_the_defaults_are_a_valid_recipe() -> None:
    assert Recipe().method == "cst"


def test_a_recipe_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Recipe().lr = 1.0  # type: ignore[misc]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"detector": "yolo"},
            "detector must be one of fasterrcnn, retinanet, fcos, fasterrcnn_v2, retinanet_v2; got 'yolo'",
        ),
        ({"backbone": "vgg16"}, "backbone must be one of resnet18"),
        ({"precision": "fp8"}, "precision must be one of auto, fp32, bf16, fp16"),
        ({"width": 0.01}, "width must be from 0.05 to 4"),
        ({"width": float("nan")}, "width must be"),  # NaN fails every comparison
        ({"weights": ""}, "weights must be DEFAULT"),
        ({"fpn_channels": 4}, "fpn_channels must be a whole number from 8"),
        ({"fpn_channels": 100}, "a multiple of 8"),
        # torchvision's FCOS tower has GroupNorm(32, channels): 48 cannot be divided, and with 32 a level of 1 x 1 pixel
        # (P7 of images up to 128 px) in a batch of one image has a single value to normalise, which torch refuses
        ({"fpn_channels": 48, "detector": "fcos"}, "a multiple of 32 from 64 on for fcos"),
        ({"fpn_channels": 32, "detector": "fcos"}, "a multiple of 32 from 64 on for fcos"),
        ({"head_convs": 0}, "head_convs must be"),
        ({"anchor_scale": 0.0}, "anchor_scale must be"),
        ({"image_size_px": 31}, "image_size_px must be"),  # C5 has stride 32
        ({"image_size_px": 900, "max_size_px": 800}, "max_size_px must be from image_size_px"),
        ({"epochs": 0}, "epochs must be"),
        ({"search_epochs": 0}, "search_epochs must be"),
        ({"batch_size": 0}, "batch_size must be"),
        ({"accumulate": 0}, "accumulate must be"),
        ({"eval_every": 0}, "eval_every must be"),
        ({"loader_workers": -1}, "loader_workers must be"),
        ({"seed": -1}, "seed must be"),
        ({"seed": 2**31}, "seed must be"),  # beyond what numpy's generator takes with the others
        ({"lr": 0.0}, "lr must be above 0"),
        ({"lr": float("inf")}, "lr must be above 0"),
        ({"weight_decay": -0.1}, "weight_decay must be"),
        ({"augment": "much"}, "augment must be one of none, light, strong; got 'much'"),
        ({"scale_jitter": 0.8}, "scale_jitter must be a factor from 1 to 4"),
        ({"scale_jitter": float("nan")}, "scale_jitter must be a factor from 1 to 4"),
        ({"photometric": 1.1}, "photometric must be a strength from 0 to 1"),
        ({"warmup": 1.0}, "warmup must be a share from 0 to 0.9"),  # nothing left for the cosine
        ({"clip_norm": 0.0}, "clip_norm must be above 0"),
        ({"clip_norm": float("inf")}, "clip_norm must be above 0"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_rule(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Recipe(**changes)
    assert says in str(raised.value)
    assert repr(next(iter(changes.values()))) in str(raised.value) or len(changes) > 1


@pytest.mark.parametrize(
    "changes",
    [
        {"fpn_channels": 8, "detector": "retinanet"},  # the least
        {"fpn_channels": 64, "detector": "fcos"},
        {"image_size_px": 64, "max_size_px": 64},  # square
        {"warmup": 0},
        {"weight_decay": 0},
        {"lr": None},  # the method's prior
        {"scale_jitter": 1, "photometric": 0},  # neither
        {"scale_jitter": 4.0, "photometric": 1.0},
        {"seed": 2**31 - 1},
        *({"detector": name} for name in DETECTORS),
        *({"backbone": name} for name in BACKBONES),
        *({"precision": name} for name in PRECISIONS),
    ],
)
def test_the_ends_of_the_ranges_are_allowed(changes: dict[str, Any]) -> None:
    Recipe(**changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, Augmentation(1.0, 0.0)),
        ({"augment": "light"}, Augmentation(1.25, 0.4)),
        ({"augment": "strong"}, Augmentation(2.0, 1.0)),
        ({"augment": "strong", "photometric": 0.0}, Augmentation(2.0, 0.0)),
        ({"augment": "light", "scale_jitter": 1}, Augmentation(1, 0.4)),
        ({"scale_jitter": 1.5}, Augmentation(1.5, 0.0)),  # without a preset
    ],
)
def test_what_is_given_beside_a_preset_replaces_its_part(changes: dict[str, Any], expected: Augmentation) -> None:
    assert Recipe(**changes).augmentation == expected
    assert expected.changes_images == bool(changes)


def test_colour_ranges_of_the_presets() -> None:
    """Hue moves from half the strength on, so not with ``light``."""
    light, strong = (Recipe(augment=name).augmentation.colour_ranges for name in ("light", "strong"))
    assert light == pytest.approx({"brightness": 0.05, "contrast": 0.2, "saturation": 0.2, "hue": 0.0})
    assert strong == {"brightness": 0.125, "contrast": 0.5, "saturation": 0.5, "hue": 0.05}
    assert Recipe(photometric=0.75).augmentation.colour_ranges["hue"] == 0.025


def test_all_faults_are_said_at_once() -> None:
    with pytest.raises(ConfigError) as raised:
        Recipe(detector="yolo", batch_size=0, lr=-1.0)
    assert all(word in str(raised.value) for word in ("detector", "batch_size", "lr"))


BASE = Recipe(method="cst", options={"reduction": 8, "norm": "none"}, lr=1e-3)


@pytest.mark.parametrize(
    ("config", "changed"),
    [
        ({}, {}),  # nothing laid over it: the same recipe
        ({"lr": 3e-3, "batch_size": 2}, {"lr": 3e-3, "batch_size": 2}),
        ({"cst.reduction": 16}, {"options": {"reduction": 16, "norm": "none"}}),  # the recipe's other options stay
        ({"method": "cst", "cst.block": "1x1"}, {"options": {"reduction": 8, "norm": "none", "block": "1x1"}}),
        ({"method": "head"}, {"method": "head", "options": {}}),  # another method starts from its own defaults
        # a conditional space may carry options of methods that were not chosen
        ({"method": "head", "cst.reduction": 16}, {"method": "head", "options": {}}),
        ({"full.depth": 3}, {}),
        ({"lr": None}, {"lr": None}),
        ({"image_size_px": 1200}, {"image_size_px": 1200}),  # the bound of the long side stays, 1333
        ({"image_size_px": 1600}, {"image_size_px": 1600, "max_size_px": 2666}),  # 1600 * 1333 / 800
        ({"image_size_px": 1600, "max_size_px": 1700}, {"image_size_px": 1600, "max_size_px": 1700}),
    ],
)
def test_a_configuration_changes_what_it_names_and_nothing_else(
    config: dict[str, Any], changed: dict[str, Any]
) -> None:
    assert BASE.configured(config) == dataclasses.replace(BASE, **changed)


def test_configuring_leaves_the_recipe_as_it_was() -> None:
    before = BASE.to_dict()
    BASE.configured({"cst.reduction": 64, "lr": 1.0})
    assert BASE.to_dict() == before


@pytest.mark.parametrize("key", ["learning_rate", "options", "origin"])  # the last two are no dimensions
def test_a_dimension_that_does_not_exist_is_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"no such dimension: {key}; a recipe has .*lr"):
        BASE.configured({key: 1})


def test_a_configured_recipe_is_checked_again() -> None:
    with pytest.raises(ConfigError, match="batch_size"):
        BASE.configured({"batch_size": 0})


@pytest.mark.parametrize("origin", [None, {"study": "s", "trial": 3}])
def test_to_dict_is_plain_and_complete(origin: dict[str, Any] | None) -> None:
    recipe = dataclasses.replace(BASE, origin=origin)
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert ("origin" in recipe.to_dict()) == (origin is not None)  # a recipe of one's own says nothing of an origin
