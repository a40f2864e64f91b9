"""Shell completion of half-typed words. It must be fast (no torch, no Optuna) and never raises an error."""

from __future__ import annotations

import io
import os
import sqlite3
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, redirect_stdout
from dataclasses import MISSING, fields
from functools import wraps
from pathlib import Path

import typer

Words = list[str]


@contextmanager
def as_bash_asked() -> Iterator[None]:
    """Adapt completion to bash, which splits words at "=" (COMP_WORDBREAKS): ``method=c`` arrives as three words.

    Bash replaces only the last part. So the parts are joined for the completion, and the answers are cut to that part.
    """
    if os.environ.get("_CST_SEARCH_COMPLETE") != "complete_bash":
        yield
        return
    text, place = os.environ.get("COMP_WORDS", ""), int(os.environ.get("COMP_CWORD", 0))
    between = "\n" if "\n" in text else " "
    joined: Words = []
    now, known = 0, ""  # index of the word being typed, and the part of it that bash keeps
    for i, part in enumerate(text.split(between)):
        if joined and (part == "=" or joined[-1].endswith("=")):
            before = joined.pop()
        else:
            before = ""
        joined.append(before + part)
        if i == place:
            now, known = len(joined) - 1, before + "=" * (part == "=")
    os.environ |= {"COMP_WORDS": between.join(joined), "COMP_CWORD": str(now)}
    answer = io.StringIO()
    try:
        with redirect_stdout(answer):
            yield
    finally:
        sys.stdout.write("".join(line.removeprefix(known) for line in answer.getvalue().splitlines(keepends=True)))


def _never_fails(function: Callable[[typer.Context, str], Iterable[str]]) -> Callable[[typer.Context, str], Words]:
    @wraps(function)
    def complete(ctx: typer.Context, incomplete: str) -> Words:
        try:
            return sorted(word for word in set(function(ctx, incomplete)) if word.startswith(incomplete))
        except Exception:  # a traceback would appear in the middle of the line
            return []

    return complete


@_never_fails
def studies(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Names of the studies in the SQLite storage of --home. A server is not asked, as it may be slow."""
    from cst_search.config.catalog import home_of

    path = home_of(ctx.params.get("home")) / "studies.db"
    if ctx.params.get("storage") or not path.is_file():
        return []
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=1)) as connection:
        return [name for (name,) in connection.execute("SELECT study_name FROM studies")]


@_never_fails
def recipes(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    return [*_shipped("trials"), *_files(incomplete)]


@_never_fails
def spaces(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    return [*_shipped("search_spaces"), *_files(incomplete)]


@_never_fails
def shipped(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    return [*_shipped("trials"), *_shipped("search_spaces")]


@_never_fails
def settings(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Fields of a recipe, their values if there are few, and the method options that shipped spaces vary."""
    from cst_search.config.recipe import (
        AUGMENTATIONS,
        BACKBONES,
        BOX_FORMS,
        CLASS_INITS,
        CROWD_CHOICES,
        DETECTORS,
        EXIF_CHOICES,
        HEAD_CHOICES,
        NECK_CHOICES,
        PRECISIONS,
        RECOMPUTE_CHOICES,
        ROTATED_CHOICES,
        SIZES_CHOICES,
        TRUNCATED_CHOICES,
        WEIGHT_NAMES,
        Recipe,
    )

    name, equals, _ = incomplete.partition("=")
    choices = {
        "detector": DETECTORS, "backbone": BACKBONES, "precision": PRECISIONS, "recompute": RECOMPUTE_CHOICES,
        "method": _methods(), "memsave": ("true", "false"), "hflip": ("true", "false"),
        "augment": AUGMENTATIONS, "neck": NECK_CHOICES, "head": HEAD_CHOICES, "class_init": CLASS_INITS,
        "exif": EXIF_CHOICES, "truncated": TRUNCATED_CHOICES,
        "sizes": SIZES_CHOICES, "boxes": BOX_FORMS, "crowd": CROWD_CHOICES, "rotated": ROTATED_CHOICES,
        "weights": WEIGHT_NAMES,
    }  # fmt: skip
    if equals:
        return [f"{name}={value}" for value in choices.get(name, ())]
    own = [f"{field.name}=" for field in fields(Recipe) if field.name not in ("options", "origin")]
    meant = [field for field in fields(Recipe) if f"{field.name}=" in own and field.name.startswith(name)]
    if len(meant) == 1:  # with text after the "=", so that no shell moves on to the next word
        default = [] if meant[0].default in (MISSING, None) else [str(meant[0].default)]
        own += [f"{meant[0].name}={value}" for value in choices.get(meant[0].name, default)]
    return (
        own
        + [f"{option}=" for option in (_options(name.partition(".")[0]) if "." in name else ())]
        + ([f"{method}." for method in _methods()] if "." not in name else [])
    )


@_never_fails
def methods(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    """Method names in a list with commas, for --compare."""
    before, comma, _ = incomplete.rpartition(",")
    used = before.split(",")
    return [f"{before}{comma}{name}" for name in _methods() if name not in used] + ([] if comma else ["all"])


@_never_fails
def picks(ctx: typer.Context, incomplete: str) -> Iterable[str]:
    return ["knee", "best", "trial="]


def one_of(*words: str) -> Callable[[typer.Context, str], Words]:
    return _never_fails(lambda ctx, incomplete: words)


def _shipped(kind: str) -> list[str]:
    from cst_search.config import catalog

    return catalog.names(kind)  # type: ignore[arg-type]


def _files(incomplete: str) -> list[str]:
    """YAML files and folders, as a shell would offer them."""
    folder = Path(incomplete).parent if not incomplete.endswith("/") else Path(incomplete)
    prefix = incomplete[: incomplete.rindex("/") + 1] if "/" in incomplete else ""
    found = [path for path in folder.iterdir() if path.is_dir() or path.suffix in (".yaml", ".yml")]
    return [f"{prefix}{path.name}{'/' if path.is_dir() else ''}" for path in found if not path.name.startswith(".")]


def _methods() -> list[str]:
    """Names of the built-in methods, from the search spaces of the same names (a test holds that each has one).

    The shipped spaces ``petl`` (all methods) and ``quick`` are not named after a method.
    """
    from cst_search import plugins

    return [name for name in _shipped("search_spaces") if name not in ("petl", "quick")] + list(
        plugins.names("methods")
    )


def _options(method: str) -> list[str]:
    import yaml  # `config.loading.read_yaml` would load pydantic, a quarter of a second

    from cst_search.config import catalog

    content = yaml.safe_load(catalog.shipped("search_spaces", method).read_text(encoding="utf-8"))
    return [f"{method}.{name}" for name in content.get(method, {})]
