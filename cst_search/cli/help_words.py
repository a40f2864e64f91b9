"""Commands whose `--help` names values in words: `--budget-mem SIZE`, not the Python types that recent typer shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperArgument, TyperCommand, TyperGroup


def _in_words(parameters: list[Any]) -> list[Any]:
    """Name what stands for a value: nothing for a flag, the name of an argument instead of its type."""
    for parameter in parameters:
        if isinstance(parameter, TyperArgument):
            parameter.metavar = parameter.metavar or str(parameter.name).rstrip("_").upper()
            parameter.display_type_rich = lambda ctx: None  # type: ignore[method-assign]
        elif getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


class Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _in_words(super().get_params(ctx))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Name arguments as their help does; typer adds braces and dots, so that `STUDY...` becomes `{STUDY...}...`."""
        arguments = [each for each in self.get_params(ctx) if isinstance(each, TyperArgument)]
        return ["[OPTIONS]", *(f"{each.metavar}" if each.required else f"[{each.metavar}]" for each in arguments)]


class Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _in_words(super().get_params(ctx))


class App(typer.Typer):
    """A typer application of such commands."""

    def __init__(self, **given: Any) -> None:
        super().__init__(cls=Group, **given)

    def command(self, name: str | None = None, **given: Any) -> Callable[[Any], Any]:
        return super().command(name, cls=Command, **given)
