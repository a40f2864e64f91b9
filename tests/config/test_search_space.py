"""Search spaces: what is refused, what is drawn, and that a study draws the same kind of configurations."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from studies import SPACE, fake_estimate, make_study

from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space, fit_space
from cst_search.errors import ConfigError
from cst_search.study.records import Budget
from cst_search.study.study import Study

# --- faults ---------------------------------------------------------------------------------------------------------


def one(rule: Any) -> dict[str, Any]:
    return {"methods": ["cst"], "cst": {"reduction": rule}}


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("nothing", {}, "`methods` must be a list"),
    ("one method is a list too", {"methods": "cst"}, "`methods` must be a list"),
    ("no method", {"methods": []}, "`methods` must be a list"),
    ("a method that is no name", {"methods": [3]}, "`methods` must be a list"),
    ("a method twice", {"methods": ["cst", "cst"]}, "methods has a name twice"),
    ("a section of a method that is not listed", {"methods": ["cst"], "head": {}}, "no such section: head"),
    ("a section that is no mapping", {"methods": ["cst"], "cst": [1]}, "cst must hold"),
    ("shared that is no mapping", {"methods": ["cst"], "shared": 3}, "shared must hold"),
    ("a shared option of a method", {"methods": ["cst"], "shared": {"reduction": {"choice": [4]}}}, "shared.reduction"),
    ("the dataset cannot vary", {"methods": ["cst"], "shared": {"data": {"choice": ["a", "b"]}}}, "shared.data"),
    ("nor can the length", {"methods": ["cst"], "shared": {"epochs": {"int": [1, 9]}}}, "shared.epochs"),
    ("a bare list", one([4, 8]), "cst.reduction must be one of {choice"),
    ("two kinds", one({"choice": [4], "int": [1, 2]}), "cst.reduction must be one of {choice"),
    ("an unknown kind", one({"uniform": [1, 2]}), "cst.reduction must be one of {choice"),
    ("an unknown key", one({"int": [1, 2], "step": 1}), "cst.reduction must be one of {choice"),
    ("no choices", one({"choice": []}), "choice needs a list"),
    ("a choice that is no list", one({"choice": 4}), "choice needs a list"),
    ("a choice twice", one({"choice": [4, 8, 4]}), "choices must differ"),
    ("1 and 1.0 are the same", one({"choice": [1, 1.0]}), "choices must differ"),
    ("a choice with log", one({"choice": [4, 8], "log": True}), "choices must differ and have no log"),
    ("a mapping as a choice", one({"choice": [{"a": 1}]}), "a choice is a value or a list of values"),
    ("lists in a list", one({"choice": [[[2], [3]]]}), "a choice is a value or a list of values"),
    ("one bound", one({"int": [4]}), "int needs [low, high]"),
    ("three bounds", one({"int": [1, 2, 3]}), "int needs [low, high]"),
    ("bounds the wrong way round", one({"int": [8, 4]}), "int needs [low, high]"),
    ("equal bounds", one({"float": [1, 1]}), "float needs [low, high]"),
    ("fractions for int", one({"int": [1.5, 4]}), "int needs [low, high]"),
    ("texts as bounds", one({"float": ["1", "2"]}), "float needs [low, high]"),
    ("true as a bound", one({"int": [False, True]}), "int needs [low, high]"),
    ("no number", one({"float": [float("nan"), 1]}), "float needs [low, high]"),
    ("without end", one({"float": [0, float("inf")]}), "float needs [low, high]"),
    ("log from zero", one({"float": [0, 1], "log": True}), "needs low above 0"),
    ("log that is no yes or no", one({"float": [1, 2], "log": "yes"}), "log is true or false"),
]


@pytest.mark.parametrize(("why", "content", "said"), BAD, ids=[row[0] for row in BAD])
def test_a_fault_of_a_space_is_named(why: str, content: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Space.from_dict(content, "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ")
    assert said in str(caught.value)


def test_all_faults_are_reported_at_once() -> None:
    content = {
        "methods": ["cst"],
        "lora": {},
        "shared": {"lr": {"float": [1, 0]}, "speed": {"choice": [1]}},
        "cst": {"reduction": {"choice": []}},
    }
    with pytest.raises(ConfigError) as caught:
        Space.from_dict(content)
    assert all(name in str(caught.value) for name in ("lora", "shared.lr", "shared.speed", "cst.reduction"))


@pytest.mark.parametrize("section", [None, {}])  # YAML: `shared:` with nothing below it
def test_empty_sections_are_allowed(section: Any) -> None:
    space = Space.from_dict({"methods": ["head"], "shared": section, "head": section})
    assert space.sample(random.Random(0)) == {"method": "head"}


# --- drawing --------------------------------------------------------------------------------------------------------

KINDS = Space.from_dict(
    {
        "methods": ["cst"],
        "shared": {
            "lr": {"float": [1e-5, 1e-1], "log": True},
            "weight_decay": {"float": [-1.0, 1.0]},
            "batch_size": {"int": [1, 3]},
            "accumulate": {"int": [1, 64], "log": True},
            "precision": {"choice": ["fp32", "bf16"]},
            "hflip": {"choice": [True, False]},
            "augment": {"choice": ["none", "light", "strong"]},
            "scale_jitter": {"choice": [None, 1.5]},
            "photometric": {"float": [0.0, 1.0]},
        },
        "cst": {"mtc_stages": {"choice": [[2, 3], [5]]}},
    }
)


def test_what_is_drawn_is_inside_and_reaches_every_value() -> None:
    rng = random.Random(0)
    drawn = [KINDS.sample(rng) for _ in range(400)]
    dimensions = {d.key: d for d in KINDS.by_method["cst"]}
    for config in drawn:
        assert list(config) == ["method", *dimensions] == KINDS.keys()
        assert all(dimension.contains(config[key]) for key, dimension in dimensions.items())
    values = {key: {config[key] for config in drawn} for key in dimensions}
    assert values["batch_size"] == {1, 2, 3} and all(type(value) is int for value in values["batch_size"])
    assert values["cst.mtc_stages"] == {(2, 3), (5,)}
    assert values["hflip"] == {True, False}
    assert values["augment"] == {"none", "light", "strong"} and values["scale_jitter"] == {None, 1.5}
    # half of a log range lies below its geometric mean
    assert 150 < sum(config["lr"] < 1e-3 for config in drawn) < 250
    assert 150 < sum(config["weight_decay"] < 0 for config in drawn) < 250


@pytest.mark.parametrize(
    ("key", "value", "is_inside"),
    [
        ("lr", 1e-5, True),  # both ends belong to it
        ("lr", 1e-1, True),
        ("lr", 0.11, False),
        ("lr", True, False),
        ("lr", "0.01", False),
        ("batch_size", 4, False),
        ("cst.mtc_stages", (5,), True),
        ("cst.mtc_stages", (2,), False),
        ("precision", "fp16", False),
    ],
)
def test_contains(key: str, value: Any, is_inside: bool) -> None:
    dimension = next(d for d in KINDS.by_method["cst"] if d.key == key)
    assert dimension.contains(value) is is_inside


def test_a_configuration_has_the_dimensions_of_its_method_only() -> None:
    space, rng = Space.from_dict(SPACE), random.Random(1)
    drawn = [space.sample(rng) for _ in range(100)]
    assert {config["method"] for config in drawn} == {"cst", "head"}
    for config in drawn:
        own = {"cst.reduction", "cst.mtc_stages"} if config["method"] == "cst" else set()
        assert set(config) == {"method", "batch_size", "lr"} | own
    assert space.keys() == ["method", "cst.reduction", "cst.mtc_stages", "batch_size", "lr"]


def test_a_methods_own_range_replaces_the_shared_one() -> None:
    space, rng = Space.from_dict(SPACE), random.Random(2)
    assert [d.name for d in space.by_method["head"]] == ["head.lr", "batch_size"]
    assert [d.name for d in space.by_method["cst"]] == ["cst.reduction", "cst.mtc_stages", "batch_size", "lr"]
    for config in (space.sample(rng) for _ in range(100)):
        low, high = (1e-4, 5e-4) if config["method"] == "head" else (1e-3, 2e-2)
        assert low <= config["lr"] <= high
        assert Recipe().configured(config).lr == config["lr"]  # the key stays that of the recipe


def test_a_single_method_is_not_a_dimension() -> None:
    seen = []
    KINDS.configure(lambda dimension: seen.append(dimension.name) or dimension.sample(random.Random(0)))  # type: ignore[func-returns-value]
    assert "method" not in seen


# --- through a study ------------------------------------------------------------------------------------------------


def test_a_study_hands_out_and_gives_back_the_configurations_of_its_space(tmp_path: Path) -> None:
    session = make_study(tmp_path, budget=Budget())
    asked = [session.ask(fake_estimate) for _ in range(25)]  # type: ignore[arg-type]
    configs = [suggestion.config for suggestion in asked if suggestion is not None]
    assert {config["method"] for config in configs} == {"cst", "head"}
    space = Space.from_dict(SPACE)
    for config in configs:
        for dimension in space.by_method[config["method"]]:
            assert dimension.contains(config[dimension.key]), (dimension, config)
        # with what the recipe's `recompute: auto` stands for
        assert set(config) == {"method", "recompute"} | {d.key for d in space.by_method[config["method"]]}
    # read again from the database: the same values of the same types, tuples included
    records = Study.open(session.study.url, session.study.name).info().trials
    assert [record.config for record in records] == configs
    assert any(isinstance(config.get("cst.mtc_stages"), tuple) for config in configs)
    assert Study.open(session.study.url, session.study.name).space == space


# --- a space for one recipe -------------------------------------------------------------------------------------------

LEVERS = {
    "methods": ["cst", "head"],
    "shared": {"image_size_px": {"times": [0.5, 0.75, 1.0]}, "neck": {"choice": ["train", "frozen"]}},
    "head": {"head": {"choice": ["train", "predictor"]}, "weight_decay": {"times": [0.5, 2]}},
}


def test_times_is_a_choice_among_multiples_of_the_recipes_value() -> None:
    recipe = Recipe(image_size_px=150, max_size_px=200, weight_decay=1e-3)
    fitted, notes = fit_space(LEVERS, recipe, "space")
    space = Space.from_dict(fitted)
    choices = {d.key: d.choices for d in space.by_method["head"]}
    assert choices["image_size_px"] == (75, 112, 150) and notes == []
    assert choices["weight_decay"] == (5e-4, 2e-3)
    assert "times" in LEVERS["shared"]["image_size_px"]  # type: ignore[index]  # the given space is left as it is


def test_equal_multiples_are_one_choice() -> None:
    space = {"methods": ["head"], "shared": {"batch_size": {"times": [0.1, 0.5, 1]}}}
    fitted, _ = fit_space(space, Recipe(batch_size=2), "space")
    assert fitted["shared"]["batch_size"] == {"choice": [1, 2]}


def test_neck_and_head_are_left_out_where_they_start_random() -> None:
    fitted, notes = fit_space(LEVERS, Recipe(weights="IMAGENET"), "space")
    keys = Space.from_dict(fitted).keys()
    assert "neck" not in keys and "head" not in keys and "image_size_px" in keys
    assert notes == ["neck and head not varied: weights IMAGENET leave neck and heads random, all is trained"]


SHAPES = {
    "methods": ["head"],
    "shared": {
        "fpn_channels": {"choice": [64, 128]},
        "head_convs": {"choice": [2, 4]},
        "width": {"choice": [0.5, 1.0]},
        "lr": {"float": [1e-3, 1e-2]},
    },
}


@pytest.mark.parametrize(
    ("fields", "varied", "says"),
    [
        ({"weights": "none", "detector": "fcos"}, {"fpn_channels", "head_convs", "width"}, []),
        ({"weights": "none", "detector": "retinanet"}, {"fpn_channels", "width"}, ["head_convs not varied: the heads"]),
        ({"weights": "COCO"}, {"width"}, ["fpn_channels and head_convs not varied: weights COCO are a trained"]),
        ({"weights": "body.pt"}, set(), ["width not varied", "fpn_channels and head_convs not varied"]),
    ],
)
def test_shapes_vary_only_where_no_weights_fix_them(fields: dict[str, Any], varied: set[str], says: list[str]) -> None:
    fitted, notes = fit_space(SHAPES, Recipe(**fields), "space")
    assert set(Space.from_dict(fitted).keys()) - {"method"} == varied | {"lr"}
    assert len(notes) == len(says) and all(text in note for text, note in zip(says, notes, strict=True))


def test_a_body_file_leaves_neck_and_heads_free() -> None:
    fitted, _ = fit_space(SHAPES, Recipe(weights="body.pt", detector="fcos"), "space", starts_trained=False)
    assert set(Space.from_dict(fitted).keys()) - {"method"} == {"fpn_channels", "head_convs", "lr"}


@pytest.mark.parametrize(
    ("name", "rule", "says"),
    [
        ("hflip", {"times": [1]}, "shared.hflip: times needs a field of the recipe that holds a number"),
        ("nothing", {"times": [1]}, "shared.nothing: times needs a field"),
        ("lr", {"times": [1]}, "shared.lr: times needs a field"),  # none: the method's prior
        ("batch_size", {"times": []}, "shared.batch_size must be {times"),
        ("batch_size", {"times": [0, 1]}, "shared.batch_size must be {times"),
        ("batch_size", {"times": [1], "log": True}, "shared.batch_size must be {times"),
        ("batch_size", {"times": ["1"]}, "shared.batch_size must be {times"),
    ],
)
def test_wrong_multiples_are_refused(name: str, rule: Any, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        fit_space({"methods": ["head"], "shared": {name: rule}}, Recipe(), "space")
    assert says in str(caught.value)
