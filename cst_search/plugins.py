"""Plug-ins: methods, detectors and data formats of other packages, found by entry points. Standard library only.

A package declares them in its pyproject.toml. Once it is installed they are available, in trials on Ray too:

    [project.entry-points."cst_search.methods"]
    channel_attention = "my_method:METHOD"      # a petl.Method of that name

    [project.entry-points."cst_search.detectors"]
    my_detector = "my_package:DETECTOR"         # a detector.Detector of that name

    [project.entry-points."cst_search.formats"]
    my_format = "my_package:FORMAT"             # a data.formats.DataFormat of that name

examples/my-method is such a package. It is not imported before one of its names is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal, TypeVar

from cst_search.errors import ConfigError, check_choice

Kind = Literal["methods", "detectors", "formats"]
KINDS: tuple[Kind, ...] = ("methods", "detectors", "formats")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Plugin:
    """Entry point of a plug-in: ``package`` is its distribution, ``value`` the object as ``module:attribute``."""

    kind: Kind
    name: str
    package: str
    version: str
    value: str
    entry: EntryPoint

    @property
    def source(self) -> str:
        return f"{self.package} {self.version}"


@cache
def found(kind: Kind) -> tuple[Plugin, ...]:
    """Return all plug-ins of a kind, sorted by name. A package found on the path twice counts once."""
    plugins: dict[tuple[str, str], Plugin] = {}
    for entry in entry_points(group=f"cst_search.{kind}"):
        package, version = (entry.dist.name, entry.dist.version) if entry.dist else ("?", "")
        plugins.setdefault((entry.name, package), Plugin(kind, entry.name, package, version, entry.value, entry))
    return tuple(plugins[key] for key in sorted(plugins))


def names(kind: Kind) -> tuple[str, ...]:
    """Return the names of the plug-ins of a kind, each once."""
    return tuple(dict.fromkeys(plugin.name for plugin in found(kind)))


def of_name(kind: Kind, name: str, ours: bool) -> Plugin | None:
    """Return the plug-in called ``name``; None if there is none.

    Raises ConfigError if the name is taken, by a built-in one or by another package.

    Args:
        ours: True if a built-in method or detector has this name.
    """
    claims = [plugin for plugin in found(kind) if plugin.name == name]
    if len(claims) + ours > 1:
        owners = [*(["cst-search"] if ours else []), *(plugin.source for plugin in claims)]
        raise ConfigError(
            f"the name {name!r} of {kind} is brought by {' and by '.join(owners)}; "
            f"rename one, or pip uninstall {claims[-1].package}"
        )
    return claims[0] if claims else None


def get(kind: Kind, name: str, wanted: type[_T], ours: Mapping[str, _T]) -> _T:
    """Return the built-in object or plug-in called ``name``. Raises ConfigError, listing the known names."""
    plugin = of_name(kind, name, ours=name in ours)
    if plugin is not None:
        value: _T = load(plugin, wanted)  # type: ignore[arg-type]  # a class is hashable
        return value
    if name not in ours:
        known = sorted({*ours, *names(kind)})
        check_choice(kind.removesuffix("s"), name, known)
    return ours[name]


@cache
def load(plugin: Plugin, wanted: type[Any]) -> Any:
    """Import the object of a plug-in. Raises ConfigError, naming its package, on a failed import or a wrong object.

    Args:
        wanted: required class, a dataclass with a field ``name``, which must be the plug-in's name.
    """
    where = f"{plugin.kind.removesuffix('s')} {plugin.name!r} of package {plugin.source} ({plugin.value})"
    remedy = f"mend the package, or pip uninstall {plugin.package}"
    try:
        value = plugin.entry.load()
    except Exception as error:  # the plug-in's code may raise anything
        lines = str(error).splitlines() or [""]
        raise ConfigError(f"{where} cannot be loaded: {type(error).__name__}: {lines[0]}; {remedy}") from error
    if not isinstance(value, wanted):
        kind = f"{wanted.__module__}.{wanted.__name__}"
        raise ConfigError(f"{where} must be a {kind}, and is a {type(value).__name__}; {remedy}")
    if value.name != plugin.name:
        raise ConfigError(f"{where} calls itself {value.name!r}; both names must be the same; {remedy}")
    return value
