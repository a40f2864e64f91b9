"""Commands that search: `launch`, `resume`, `confirm`. `commands.options` declares their options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer

from cst_search.cli.app import (
    SEARCHES,
    JsonOption,
    QuietOption,
    StudiesArgument,
    StudyArgument,
    VerboseOption,
    app,
    complain,
    console_of,
    loading,
    only_checking,
    open_study,
    print_json,
)
from cst_search.cli.options import takes
from cst_search.commands.options import ConfirmOptions, LaunchOptions, ResumeOptions, launches_of, resumed

if TYPE_CHECKING:
    from cst_search.commands.launch import LaunchResult


@app.command(rich_help_panel=SEARCHES)
@takes(LaunchOptions)
def launch(
    *, quiet: QuietOption = False, verbose: VerboseOption = False, json_: JsonOption = False, **given: Any
) -> None:
    """Search for the best configurations within a budget."""
    each = launches_of(**given)
    if only_checking.get():
        return
    console = console_of(json_, quiet)
    with loading(console):
        from cst_search.commands.launch import launch_all

    _end_of_search(launch_all(each, console, verbose=verbose), json_)


@app.command(rich_help_panel=SEARCHES)
@takes(ResumeOptions)
def resume(
    studies: StudiesArgument, quiet: QuietOption = False, verbose: VerboseOption = False, json_: JsonOption = False,
    **given: Any,
) -> None:  # fmt: skip
    """Continue a search that ended or was killed, with the data, recipe, space and budget of its study; or several."""
    asked = ResumeOptions.read(**given)
    opened = [open_study(study, given["home"], given["storage"]) for study in dict.fromkeys(studies)]
    console = console_of(json_, quiet)
    with loading(console):
        from cst_search.commands.launch import launch_all

    each = [resumed(study.info(), study.n_wanted(), asked) for study in opened]
    _end_of_search(launch_all(each, console, verbose=verbose), json_)


def _end_of_search(results: Sequence[LaunchResult], json_: bool) -> None:
    """Print the result as JSON if wanted, a list for several studies, and exit with the exit code of a launch."""
    from cst_search.report.summary import front_report

    if json_:
        reports = [front_report(result.info) | {"seconds": result.seconds, "interrupted": result.interrupted}
                   for result in results]  # fmt: skip
        print_json(reports[0] if len(reports) == 1 else reports)
    if any(result.interrupted for result in results):
        raise typer.Exit(130)
    without = [result.info.shown_name for result in results if not result.info.front()]
    if without:
        where = "" if len(results) == 1 else f" of {', '.join(without)}"
        complain(f"no trial{where} completed within the budget; see the reasons with `cst-search status`")
        raise typer.Exit(1)


@app.command(rich_help_panel=SEARCHES)
@takes(ConfirmOptions)
def confirm(
    study: StudyArgument, quiet: QuietOption = False, verbose: VerboseOption = False, json_: JsonOption = False,
    **given: Any,
) -> None:  # fmt: skip
    """Train the points of the front again with other seeds, and report which of them stay on it."""
    opened = open_study(study, given["home"], given["storage"])
    console = console_of(json_, quiet)
    with loading(console):
        from cst_search.commands.confirm import confirm as run

    options = ConfirmOptions.read(**given)
    result = run(opened, options, console, verbose=verbose)
    if json_:
        print_json(result.report)
    if result.interrupted:
        raise typer.Exit(130)
    if result.n_planned and not result.n_completed:
        complain("no repeat completed; see the reasons with `cst-search status`")
        raise typer.Exit(1)
