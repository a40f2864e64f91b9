"""What all commands share: the application, its consoles, options and words."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from cst_search import __version__
from cst_search.cli import completion
from cst_search.config.catalog import home_of
from cst_search.redaction import read_address

if TYPE_CHECKING:
    from cst_search.study.records import StudyInfo
    from cst_search.study.study import Study

app = typer.Typer(
    name="cst-search",
    help="Find the parameter-efficient fine-tuning configuration of an object detector for the GPU you really have.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
job_app = typer.Typer(help="Searches that were handed to a cluster with `submit`.", no_args_is_help=True)
app.add_typer(job_app, name="job")
# not a terminal (a file, a pipe): room for the tables instead of 80 columns
out = Console(width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, width=None if sys.stderr.isatty() else 160)


only_checking: ContextVar[bool] = ContextVar("only_checking", default=False)  # see `submit`


HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of studies and records [default: $CST_SEARCH_HOME, else ./cst-runs]"),
]


def address_of(value: str | None) -> str | None:
    if value is not None and not value.strip():  # of a shell variable that is not set: the default would surprise
        raise typer.BadParameter("must not be empty; leave it out for the default")
    return None if value is None else read_address(value)


StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        callback=address_of,
        help="Database URL of the studies, or @FILE that holds it [default: SQLite in --home]",
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        callback=address_of,
        help="MLflow server or database, or @FILE that holds its address [default: SQLite in --home].",
    ),
]
DeviceOption = Annotated[
    str, typer.Option("--device", help="auto, cpu or cuda.", autocompletion=completion.one_of("auto", "cpu", "cuda"))
]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Trials at a time [default: one per core; on a GPU as fit].")
]
TimeLimitOption = Annotated[
    str | None, typer.Option("--time-limit", help="Start no trial after this time, such as 30m or 8h.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster that runs the trials: auto, HOST:PORT or ray://HOST:PORT [default: this machine].",
    ),
]
InProcessOption = Annotated[
    bool, typer.Option("--in-process", help="One trial after the other in this process, without Ray.")
]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Drop broken images and boxes instead of stopping.")]
CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache-size",
        help="Bound of what trials share on the disk (images, maps of frozen bodies) in --home, such as 20GB; 0: off "
        "[default: 10GB or a tenth of the free disk].",
    ),
]
JobServerOption = Annotated[
    str, typer.Option("--address", help="Job server of the cluster, such as http://HEAD:8265.", show_default=False)
]
JobArgument = Annotated[str, typer.Argument(help="Its id, as `submit` printed it.", show_default=False)]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
PlotOption = Annotated[
    bool | None, typer.Option("--plot/--no-plot", help="Draw the front [default: on a terminal].", show_default=False)
]
StudyArgument = Annotated[
    str,
    typer.Argument(
        help="Name of the study; see `cst-search list`.", show_default=False, autocompletion=completion.studies
    ),
]


def complain(what: object) -> None:
    style = "red" if err.is_terminal else ""
    err.print(f"cst-search: {what}", markup=False, highlight=False, soft_wrap=True, style=style)


def print_json(value: Any) -> None:
    from math import isfinite

    def plain(item: Any) -> Any:
        if isinstance(item, float) and not isfinite(item):
            return None
        if isinstance(item, dict):
            return {key: plain(inner) for key, inner in item.items()}
        return [plain(inner) for inner in item] if isinstance(item, list | tuple) else item

    print(json.dumps(plain(value), indent=2))


def say(text: str = "") -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def console_of(json_: bool, quiet: bool = False) -> Console:
    """Where a command that works tells what it does: standard output is a program's with ``--json``."""
    return Console(quiet=True, force_terminal=False) if quiet else err if json_ else out


def show_plot(infos: Sequence[StudyInfo], wanted: bool | None) -> None:
    """The front as characters; where nobody said so, on a terminal alone."""
    if not (out.is_terminal if wanted is None else wanted):
        return
    from cst_search.report.text_plot import front_plot

    text = front_plot(infos, out.width, ascii_only=out.options.ascii_only)
    if text:
        out.print()
        out.print(text, soft_wrap=True)


def open_study(study: str, home: Path | None, storage: str | None) -> Study:
    from cst_search.study.study import open_study as find

    return find(study, home_of(home), storage)


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="No colours; NO_COLOR=1 likewise.")] = False,
) -> None:
    if version:
        print(f"cst-search {__version__}")
        raise typer.Exit
    if no_color:
        os.environ["NO_COLOR"] = "1"  # for what is started too
        out.no_color = err.no_color = True
