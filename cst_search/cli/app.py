"""The application, and the consoles, options and output functions that its commands share."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console

from cst_search import __version__
from cst_search.cli import completion
from cst_search.cli.help_words import App
from cst_search.cli.options import launch_option
from cst_search.commands.output import line_printer
from cst_search.config.catalog import home_of
from cst_search.report.console import PlainConsole
from cst_search.visible import in_line
from cst_search.waiting import Waiting

if TYPE_CHECKING:
    from cst_search.study.records import StudyInfo
    from cst_search.study.study import Study

app = App(
    name="cst-search",
    help="Find the best parameter-efficient fine-tuning configuration of an object detector for the GPU you have.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
# groups of commands in --help, in the order in which a user needs them
SEARCHES, DETECTORS, BEFORE, SERVICES = "Search", "Use what was found", "Before a search", "Records and clusters"
job_app = App(help="Jobs that `submit` started on a cluster.", no_args_is_help=True)
app.add_typer(job_app, name="job", rich_help_panel=SERVICES)
data_app = App(help="Check or convert a data set, without a search.", no_args_is_help=True)
app.add_typer(data_app, name="data", rich_help_panel=BEFORE)


def _width(stream: TextIO | None) -> int | None:
    """Return the width of a console; None: a terminal's own. In a file or a pipe tables get more than 80 columns."""
    return None if stream is not None and stream.isatty() else 160


out = PlainConsole(width=_width(sys.stdout))
err = PlainConsole(stderr=True, width=_width(sys.stderr))


only_checking: ContextVar[bool] = ContextVar("only_checking", default=False)  # see `submit`


# options of launch that other commands share
HomeOption = Annotated[Path | None, launch_option("home")]
StorageOption = Annotated[str | None, launch_option("storage")]
TrackingOption = Annotated[str | None, launch_option("tracking_uri")]
DeviceOption = Annotated[str, launch_option("device")]
AddressOption = Annotated[str | None, launch_option("address")]
SkipBadOption = Annotated[bool, launch_option("skip_bad")]
SettingsOption = Annotated[list[str] | None, launch_option("settings")]
CacheOption = Annotated[str | None, launch_option("cache_size")]
JobServerOption = Annotated[
    str,
    typer.Option(
        "--address", metavar="URL", help="Job server of the cluster, e.g. http://HEAD:8265.", show_default=False
    ),
]
JobArgument = Annotated[str, typer.Argument(help="Job id, as printed by `submit`.", show_default=False)]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="Print nothing but errors.")]
VerboseOption = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also print what the caches of images and feature maps decide, and why.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
PlotOption = Annotated[
    bool | None,
    typer.Option("--plot/--no-plot", help="Draw the front as text (default: on a terminal).", show_default=False),
]
StudyArgument = Annotated[
    str,
    typer.Argument(
        help="Name of the study; see `cst-search list`.", show_default=False, autocompletion=completion.studies
    ),
]
StudiesArgument = Annotated[
    list[str],
    typer.Argument(
        metavar="STUDY...", help="Names of studies; see `cst-search list`.", show_default=False,
        autocompletion=completion.studies,
    ),
]  # fmt: skip
NewestStudyArgument = Annotated[
    str | None,
    typer.Argument(
        help="Name of the study; see `cst-search list` (default: the newest).", show_default=False,
        autocompletion=completion.studies,
    ),
]  # fmt: skip


def complain(what: object) -> None:
    """Print an error message."""
    style = "red" if err.is_terminal else ""
    err.print(f"cst-search: {what}", markup=False, highlight=False, soft_wrap=True, style=style)


def print_json(value: Any) -> None:
    """Print a value as JSON; numbers that are not finite become null."""
    from math import isfinite

    def plain(item: Any) -> Any:
        if isinstance(item, float) and not isfinite(item):
            return None
        if isinstance(item, dict):
            return {key: plain(inner) for key, inner in item.items()}
        return [plain(inner) for inner in item] if isinstance(item, list | tuple) else item

    print(json.dumps(plain(value), indent=2))


def say(text: str = "") -> None:
    """Print one line as it is."""
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def console_of(json_: bool, quiet: bool = False) -> Console:
    """Return the console for messages of a running command: with ``--json`` standard output is for the program."""
    return PlainConsole(quiet=True, force_terminal=False) if quiet else err if json_ else out


def loading(console: Console = err) -> Waiting:
    """Return the context of a command's slow imports: torch takes 2 s of a free core, minutes on a busy machine."""
    return Waiting("the program to load", line_printer(console))


def show_plot(infos: Sequence[StudyInfo], wanted: bool | None) -> None:
    """Draw the front as text; by default only on a terminal."""
    if not (out.is_terminal if wanted is None else wanted):
        return
    from cst_search.report.text_plot import front_plot

    text = front_plot(infos, out.width, ascii_only=out.options.ascii_only)
    if text:
        out.print()
        out.print(text, soft_wrap=True)


def open_study(study: str | None, home: Path | None, storage: str | None) -> Study:
    """Open a study by the options of a command; None: the newest, and say which. Raises StudyError if there is none."""
    from cst_search.study.study import open_study as find

    opened = find(study, home_of(home), storage)
    if study is None:
        err.print(f"the newest study, {in_line(opened.name)}:", markup=False, highlight=False)
    return opened


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.", is_eager=True)] = False,
    no_color: Annotated[bool, typer.Option("--no-color", help="Print without colours, as NO_COLOR=1 does.")] = False,
) -> None:
    if version:
        print(f"cst-search {__version__}")
        raise typer.Exit
    if no_color:
        os.environ["NO_COLOR"] = "1"  # for what is started too
        out.no_color = err.no_color = True
