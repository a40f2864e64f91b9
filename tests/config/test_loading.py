"""What people write: shipped files, recipes with faults, hostile YAML, ``--set``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

from cst_search.cli import app
from cst_search.config.loading import (
    apply_settings,
    catalog,
    load_recipe,
    load_space,
    make_recipe,
    parse_settings,
    read_yaml,
    recipe_json_schema,
    write_yaml,
)
from cst_search.config.recipe import Recipe
from cst_search.errors import ConfigError
from cst_search.petl import METHODS, get_method
from cst_search.trial.cost import recomputed_part
from cst_search.units import parse_bytes, parse_count

RECIPES = sorted(catalog.shipped_folder("trials").rglob("*.yaml"))
SPACES = sorted(catalog.shipped_folder("search_spaces").rglob("*.yaml"))


# --- what is shipped ------------------------------------------------------------------------------------------------


def test_files_are_shipped() -> None:
    assert RECIPES and SPACES
    assert [path.stem for path in RECIPES if path.parent.name == "trials"] == catalog.names("trials")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    recipe = load_recipe(str(path))
    get_method(recipe.method).make_options(recipe.options)
    assert make_recipe(recipe.to_dict(), "again") == recipe


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_shipped_space_gives_configurations_that_a_recipe_takes(path: Path) -> None:
    import random

    space, rng = load_space(str(path)), random.Random(0)
    for _ in range(50):
        recipe = Recipe().configured(space.sample(rng))
        get_method(recipe.method).make_options(recipe.options)


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.stem)
def test_every_shipped_space_holds_the_defaults_of_its_methods(path: Path) -> None:
    """A search that begins with the defaults begins inside its space."""
    space = load_space(str(path))
    for name in space.methods:
        method = get_method(name)
        given = {f"{name}.{key}": value for key, value in vars(method.options()).items()} | {"lr": method.lr}
        known = vars(Recipe()) | {"recompute": recomputed_part(Recipe(method=name))} | given
        for dimension in space.by_method[name]:
            assert dimension.contains(known[dimension.key]), (name, dimension)


def test_every_method_has_a_space() -> None:
    assert set(catalog.names("search_spaces")) == {"petl", "quick", *METHODS}
    assert set(load_space("petl").methods) == set(METHODS)
    for name in METHODS:
        assert load_space(name).methods == (name,)


@pytest.mark.parametrize("path", [*RECIPES, *SPACES], ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_first_line_of_a_shipped_file_is_a_command_that_the_command_line_takes(path: Path) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# cst-search "), first
    words = shlex.split(re.sub(r"\s{2,}\(.*\)\s*$", "", first).removeprefix("# cst-search "))
    command = typer.main.get_command(app).commands[words[0]]  # type: ignore[attr-defined]
    given = command.make_context(words[0], words[1:]).params  # a UsageError names an unknown flag
    if given.get("recipe"):
        load_recipe(given["recipe"])
    if given.get("space"):
        load_space(given["space"])
    if given.get("budget_mem"):
        parse_bytes(given["budget_mem"])
    if given.get("budget_params"):
        parse_count(given["budget_params"])


# --- a recipe's faults ----------------------------------------------------------------------------------------------

FAULTS: list[tuple[str, dict[str, Any], str]] = [
    ("a quoted number is not a number", {"epochs": "12"}, "epochs: "),
    ("true is not a number", {"batch_size": True}, "batch_size: "),
    ("half an epoch", {"epochs": 1.5}, "epochs: "),
    ("a text for a number", {"lr": "fast"}, "lr: "),
    ("a number for a text", {"detector": 3}, "detector: "),
    ("a list for a mapping", {"options": [1]}, "options: "),
    ("nothing where a value is needed", {"epochs": None}, "epochs: "),
    ("a typing error in a name", {"epoch": 12}, "epoch is not a field of a recipe"),
    ("a name that is a number", {3: 1}, "3 is not a field of a recipe"),
    ("below the range", {"epochs": 0}, "epochs must be a whole number from 1 to 10000; got 0"),
    (
        "an unknown choice names the known ones",
        {"detector": "yolo"},
        "retinanet, fcos, fasterrcnn_v2, retinanet_v2; got 'yolo'",
    ),
    ("not a number", {"lr": float("nan")}, "lr must be above 0"),
    ("infinity", {"clip_norm": float("inf")}, "clip_norm must be above 0"),
    ("two fields that do not go together", {"image_size_px": 900, "max_size_px": 800}, "max_size_px must be from"),
]


@pytest.mark.parametrize(("why", "content", "said"), FAULTS, ids=[row[0] for row in FAULTS])
def test_a_fault_of_a_recipe_is_named(why: str, content: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_recipe(content, "mine.yaml")
    assert str(caught.value).startswith("mine.yaml: ")
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"epochs": "12", "typo": 1, "width": [1]}, ("epochs", "typo", "width")),  # kinds
        ({"epochs": 0, "width": 9.0, "backbone": "vgg"}, ("epochs", "width", "backbone")),  # ranges
    ],
)
def test_all_faults_are_reported_at_once(content: dict[str, Any], names: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        make_recipe(content, "mine.yaml")
    assert all(name in str(caught.value) for name in names)


def test_the_json_schema_knows_every_field() -> None:
    schema = recipe_json_schema()
    assert set(schema["properties"]) == set(vars(Recipe()))
    assert schema["additionalProperties"] is False


# --- YAML -----------------------------------------------------------------------------------------------------------


def written(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),  # text for YAML 1.1
        ("1E5", 1e5),
        ("-2.5e-3", -2.5e-3),
        (".5e1", 5.0),
        ("3x3", "3x3"),  # a block of the side network
        ("1e", "1e"),
        ("0.1", 0.1),
        ("[2, 3]", [2, 3]),
        ("none", "none"),
        ("null", None),
    ],
)
def test_numbers_are_numbers_and_texts_are_texts(tmp_path: Path, text: str, value: Any) -> None:
    read = read_yaml(written(tmp_path, f"x: {text}\n"))["x"]
    assert (read, type(read)) == (value, type(value))


BAD_FILES: list[tuple[str, str | bytes, str]] = [
    ("a key twice, the second would win", "epochs: 3\nlr: 0.1\nepochs: 4\n", "the key 'epochs' stands twice"),
    ("a key twice further in", "options:\n  reduction: 4\n  reduction: 8\n", "the key 'reduction' stands twice"),
    ("a list", "- epochs: 3\n", "must hold `name: value` lines; it holds list"),
    ("nothing", "", "it holds NoneType"),
    ("only a comment", "# epochs: 3\n", "it holds NoneType"),
    ("a bracket that is not closed", "options: {reduction: 4\n", "is not valid YAML"),
    ("a tab", "options:\n\treduction: 4\n", "is not valid YAML"),
    ("two documents", "epochs: 3\n---\nepochs: 4\n", "is not valid YAML"),
    ("UTF-16, as Windows editors write it", "epochs: 3\n".encode("utf-16"), "must be a UTF-8 text file"),
    ("Latin-1", "# groß\nepochs: 3\n".encode("latin-1"), "must be a UTF-8 text file"),
    ("a control character", b"epochs: \x00\n", "is not valid YAML"),
    ("a mapping as a key", "{a: 1}: 2\n", "is not valid YAML"),
]


@pytest.mark.parametrize(("why", "content", "said"), BAD_FILES, ids=[row[0] for row in BAD_FILES])
def test_a_file_that_is_no_mapping_is_refused(tmp_path: Path, why: str, content: str | bytes, said: str) -> None:
    path = written(tmp_path, content)
    with pytest.raises(ConfigError) as caught:
        load_recipe(str(path))
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "tag",
    ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir", "!!python/name:os.mkdir", "!mine"],
)
def test_a_file_cannot_run_anything(tmp_path: Path, tag: str) -> None:
    trap = tmp_path / "made"
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_yaml(written(tmp_path, f"data: {tag} [{trap}]\n"))
    with pytest.raises(ConfigError, match="is not valid YAML"):
        parse_settings([f"data={tag} [{trap}]"])
    assert not trap.exists()


@pytest.mark.parametrize(
    "content",
    [
        "options: &a {b: *a}\n",  # contains itself
        "2024-01-01: 3\n",  # a key that JSON does not have
        "epochs: 2024-01-01\n",  # a value that JSON does not have
        "options: !!set {a, b}\n",
        "data: !!binary aGVsbG8=\nepochs: x\n",
    ],
)
def test_yaml_values_that_a_recipe_cannot_hold_are_config_errors(tmp_path: Path, content: str) -> None:
    with pytest.raises(ConfigError):
        load_recipe(str(written(tmp_path, content)))


def test_a_folder_or_a_missing_file_is_not_a_recipe(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        read_yaml(tmp_path)
    with pytest.raises(ConfigError, match=r"recipe 'nosuch' is neither a file nor a shipped one; shipped: .*demo"):
        load_recipe("nosuch")
    with pytest.raises(ConfigError, match="is neither a file nor a shipped one"):
        load_recipe("../trials/demo.yaml")  # a shipped name is a bare name; from its folder this path leads to one


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    recipe = Recipe(data="/daten/größe", lr=1e-5, options={"mtc_stages": (2, 5), "block": "3x3"})
    path = tmp_path / "new" / "mine.yaml"
    write_yaml(path, recipe.to_dict(), "cst-search train mine.yaml\nsecond line: not a field")
    assert path.read_text(encoding="utf-8").startswith("# cst-search train mine.yaml\n# second line")
    again = load_recipe(str(path))
    assert again.to_dict() == {**recipe.to_dict(), "options": {"mtc_stages": [2, 5], "block": "3x3"}}
    assert list(path.parent.iterdir()) == [path]  # no half-written file stays


# --- --set ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("setting", "config"),
    [
        ("lr=1e-3", {"lr": 1e-3}),
        ("cst.reduction=8", {"cst.reduction": 8}),
        ("cst.mtc_stages=[2, 3]", {"cst.mtc_stages": [2, 3]}),
        ("hflip=false", {"hflip": False}),
        ("lr=null", {"lr": None}),
        ("data=/a=b", {"data": "/a=b"}),  # only the first = counts
        (" lr = 0.1", {"lr": 0.1}),
        ("data=", {"data": None}),
    ],
)
def test_a_setting_is_read_as_yaml(setting: str, config: dict[str, Any]) -> None:
    assert parse_settings([setting]) == config


def test_the_last_of_several_settings_counts() -> None:
    assert parse_settings(["lr=1", "epochs=2", "lr=3"]) == {"lr": 3, "epochs": 2}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("lr", "--set takes name=value"),
        ("=3", "--set takes name=value"),
        ("lr=[1", "the value is not valid YAML"),
        ("lr={a: 1, a: 2}", "the value is not valid YAML"),
        ("learning_rate=1", "no such dimension: learning_rate"),
        ("options={a: 1}", "no such dimension: options"),  # they are set one by one
        ("origin={a: 1}", "no such dimension: origin"),
        ("width=wide", "width must be a number; got 'wide'"),
        ("epochs=2.5", "epochs must be a whole number; got 2.5"),
        ("epochs=true", "epochs must be a whole number; got True"),
        ("lr=fast", "lr must be a number; got 'fast'"),
        ("data=", "data must be a text; got None"),
        ("hflip=1", "hflip must be true or false; got 1"),
        ("epochs=0", "epochs must be a whole number from 1"),
        ("csr.reduction=8", "--set csr.reduction: the method is 'cst'"),  # a typing error must not be ignored
        ("head.x=8", "--set head.x: the method is 'cst'"),
    ],
)
def test_a_wrong_setting_is_an_error_that_shows_it(setting: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_settings(Recipe(), [setting], "mine")
    assert said in str(caught.value)


@pytest.mark.parametrize("value", ["abc", "[2, x]", "5", "null", "{a: 1}", "-1", ".nan", "[]", "true"])
@pytest.mark.parametrize("option", ["reduction", "mtc_stages", "gate_init", "temperature", "block"])
def test_an_option_of_a_method_takes_its_values_or_is_an_error_of_ours(option: str, value: str) -> None:
    recipe = apply_settings(Recipe(), [f"cst.{option}={value}"], "mine")
    method = get_method("cst")
    try:
        options = method.make_options(recipe.options)
    except ConfigError as error:
        assert option in str(error)
    else:
        assert (option, value) in {("reduction", "5"), ("temperature", "5"), ("gate_init", "5"), ("gate_init", "-1")}
        assert getattr(options, option) == float(value)
