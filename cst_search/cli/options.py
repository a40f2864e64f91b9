"""Make the options of a command from their declarations in `commands.options`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from cst_search.cli import completion
from cst_search.commands.options import LaunchOptions, Option, Options, declared
from cst_search.redaction import read_address

Command = TypeVar("Command", bound=Callable[..., None])


def address_of(value: str | None) -> str | None:
    """Return an address, read from its file if given as ``@FILE``. Raises BadParameter if it is empty."""
    if value is not None and not value.strip():  # from an unset shell variable: the default would surprise
        raise typer.BadParameter("must not be empty; leave it out for the default")
    return None if value is None else read_address(value)


def typer_option(option: Option, panel: str | None = None) -> Any:
    """Make the `typer.Option` for a declaration.

    Args:
        panel: group of options in `--help`; None: the unnamed one.
    """
    words = option.completion
    complete = getattr(completion, words) if isinstance(words, str) else completion.one_of(*words) if words else None
    return typer.Option(
        option.flag,
        help=option.help,
        metavar=option.metavar or ("N" if option.kind is int else None),
        min=option.least,
        max=option.most,
        autocompletion=complete,
        callback=address_of if option.is_address else None,
        show_default=option.default is not None,
        rich_help_panel=panel,
    )


def launch_option(name: str) -> Any:
    """Make the typed option of another command from an option of `launch`."""
    return typer_option(declared(LaunchOptions)[name])


def typer_type(option: Option) -> Any:
    """Make ``Annotated[TYPE, typer.Option(...)]`` for a declaration."""
    kind = list[str] if option.kind is list else option.kind
    return Annotated[kind if option.default is not None else kind | None, typer_option(option, option.panel)]


def takes(options: type[Options]) -> Callable[[Command], Command]:
    """Give a command the options that a class declares, in place of its ``**given``.

    Typer, shell completion and the reference page read the command's signature, so the options are written into it.
    """

    def decorate(command: Command) -> Command:
        hints = get_type_hints(command, include_extras=True)
        parameters = []
        for name, parameter in inspect.signature(command).parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                del hints[name]
                for option_name, option in declared(options).items():
                    hints[option_name] = typer_type(option)
                    parameters.append(_keyword(option_name, option.default, hints[option_name]))
            else:
                parameters.append(_keyword(name, parameter.default, hints[name]))
        command.__annotations__ = hints
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return command

    return decorate


def _keyword(name: str, default: Any, hint: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
