"""Imports on first use: describing a thing does not load what builds it, and a package loads none of its modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def deferred(module: str, name: str) -> Callable[..., Any]:
    """Return a function that imports ``module`` when it is called, and calls its function ``name``."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return getattr(import_module(module), name)(*args, **kwargs)

    return call


def lazy_names(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """Return the ``__getattr__`` of a package (PEP 562), which offers names and loads their modules on first use.

    With it ``from cst_search.trial import run_trial`` works, and ``import cst_search.trial.result`` loads no torch.

    Args:
        package: its ``__name__``.
        homes: name -> the package's module that defines it.
    """

    def load(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(f"{package}.{homes[name]}"), name)

    return load
