"""Read what users write: recipes and search spaces in YAML, ``name=value`` on the command line.

All faults of a file are reported together, each with its place, the rule and the value.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from pydantic import TypeAdapter, ValidationError

from cst_search.config import catalog
from cst_search.config.recipe import Recipe, written_fields
from cst_search.config.search_space import Space, fit_space, renamed_dimensions
from cst_search.errors import ConfigError, did_you_mean
from cst_search.input_file import MOST_TEXT_BYTES, read_regular

# how a program gives what is a name or a path on the command line, and ``--set``
RecipeLike = str | Path | Recipe
SpaceLike = str | Path | Mapping[str, Any]
Settings = Mapping[str, Any] | Sequence[str]

_MOST_VALUES = 10_000  # of one file, what an alias repeats counted again; the largest shipped one has 300


class _Loader(yaml.SafeLoader):
    """Safe YAML in which ``1e-3`` is a number (YAML 1.2) and a repeated key is an error, not a silent overwrite."""

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, LookupError, ArithmeticError, AttributeError, TypeError) as error:  # month 13, `!!int x`
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"{str(node.value)[:40]!r} is no {kind} ({error})", node.start_mark
            ) from error

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value if isinstance(node, yaml.MappingNode) else ():  # `!!set 3` is said below
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, str) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key if isinstance(key, str) else repr(key))
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+0123456789."),
)


def _parse(text: str) -> Any:
    """The plain values of a YAML text. Raises yaml.YAMLError for whatever is wrong with it."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _n_values(node, {}) > _MOST_VALUES:
            raise yaml.YAMLError(f"it is too large: more than {_MOST_VALUES} values, aliases written out")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    finally:
        loader.dispose()


def _n_values(node: yaml.Node, known: dict[int, int]) -> int:
    """How many values a node is when every alias is written out: nine lists of nine aliases are a billion."""
    if id(node) not in known:
        known[id(node)] = 0  # while it is counted
        inner = node.value if isinstance(node, yaml.CollectionNode) else []
        parts = [part for item in inner for part in (item if isinstance(item, tuple) else (item,))]
        known[id(node)] = 1 + sum(_n_values(part, known) for part in parts)
    elif not known[id(node)]:
        raise yaml.YAMLError("an anchor contains itself")
    return known[id(node)]


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the mapping that a YAML file holds. Raises ConfigError with the line of a syntax error."""
    try:
        content = _parse(read_regular(path, MOST_TEXT_BYTES).decode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: must be a UTF-8 text file: {error.reason} at byte {error.start}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must hold `name: value` lines; it holds {type(content).__name__}")
    return content


def write_yaml(path: Path, content: Mapping[str, Any], header: str) -> None:
    """Write a mapping below comment lines, atomically: a reader sees the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    comment = "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
    part = path.with_name(path.name + ".part")
    part.write_text(comment + yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True), encoding="utf-8")
    part.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


_RECIPE = TypeAdapter(Recipe)


def make_recipe(content: Mapping[str, Any], where: str) -> Recipe:
    """Check a mapping as a recipe, method and options included. Raises ConfigError with every fault."""
    try:
        text = json.dumps(_plain(written_fields(content)), default=str)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    except (TypeError, ValueError, RecursionError) as error:  # an anchor that contains itself
        raise ConfigError(f"{where}: must hold plain values: {error}") from error
    try:
        # through JSON: strict types, and yet a mapping is taken for the dataclass
        recipe = _RECIPE.validate_json(text)
    except ValidationError as error:
        raise ConfigError(f"{where}: " + "; ".join(_say(fault) for fault in error.errors())) from error
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    return recipe


def _say(fault: Any) -> str:
    name = ".".join(str(part) for part in fault["loc"]) or "recipe"
    if fault["type"] == "unexpected_keyword_argument":
        return f"{name} is not a field of a recipe{did_you_mean(name, [f.name for f in fields(Recipe)])}"
    got = repr(fault.get("input"))
    return f"{name}: {fault['msg'][0].lower() + fault['msg'][1:]}; got {got if len(got) <= 100 else got[:97] + '...'}"


def load_recipe(name: RecipeLike) -> Recipe:
    """Return the recipe at a path, or a shipped one by name; a `Recipe` is returned as it is. Raises ConfigError."""
    if isinstance(name, Recipe):
        return name
    path = catalog.find("trials", str(name))
    return make_recipe(read_yaml(path), str(path))


def shown_name(given: RecipeLike | SpaceLike) -> str:
    """Return the name of a recipe or a search space in messages."""
    return str(given) if isinstance(given, str | Path) else "given"


def load_space(name: SpaceLike, recipe: Recipe | None = None) -> Space:
    """Return the search space at a path, a shipped one by name, or the one of a mapping. Raises ConfigError.

    Args:
        recipe: what the space is for, see `search_space.fit_space`; None: the defaults.
    """
    return load_space_for(name, recipe or Recipe())[0]


def load_space_for(name: SpaceLike, recipe: Recipe, starts_trained: bool = True) -> tuple[Space, list[str]]:
    """Return the search space for a recipe, and a note on dimensions that it cannot vary; see `fit_space`."""
    if isinstance(name, Mapping):
        content, where = name, "search space"
    else:
        path = catalog.find("search_spaces", str(name))
        content, where = read_yaml(path), str(path)
    fitted, notes = fit_space(renamed_dimensions(content, where), recipe, where, starts_trained)
    return Space.from_dict(fitted, where=where), notes


def recipe_json_schema() -> dict[str, Any]:
    """Return the JSON Schema of a recipe, for completion in editors."""
    return _RECIPE.json_schema()


def apply_settings(recipe: Recipe, settings: Settings, name: str) -> Recipe:
    """Return the recipe called ``name`` with the ``--set`` values applied, checked. Raises ConfigError."""
    config = parse_settings(settings)
    method = config.get("method", recipe.method)
    strange = [key for key in config if "." in key and key.partition(".")[0] != method]
    if strange:  # of a search space they would be ignored; here they are a typing error
        raise ConfigError(f"--set {strange[0]}: the method is {method!r}, whose options are set as {method}.<option>")
    return make_recipe(recipe.configured(config).to_dict(), f"recipe {name!r} with --set")


def parse_settings(settings: Settings) -> dict[str, Any]:
    """Return the configuration of ``["cst.reduction=8", "lr=1e-3"]``; values are YAML. Raises ConfigError.

    A mapping, ``{"cst.reduction": 8}``, is copied.
    """
    if isinstance(settings, Mapping):
        return dict(settings)
    config: dict[str, Any] = {}
    for setting in settings:
        name, equals, text = setting.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--set takes name=value, for example --set cst.reduction=8; got {setting!r}")
        try:
            config[name.strip()] = _parse(text)
        except yaml.YAMLError as error:
            shown, why = setting if len(setting) <= 100 else setting[:97] + "...", " ".join(str(error).split())
            raise ConfigError(f"--set {shown!r}: the value is not valid YAML: {why}") from error
    return config
