"""Commands that search: `launch`, `resume`, `confirm`. `commands.options` declares their options."""

from __future__ import annotations

from typing import Any

import typer

from cst_search.cli.app import (
    JsonOption,
    QuietOption,
    StudyArgument,
    VerboseOption,
    app,
    console_of,
    err,
    only_checking,
    open_study,
    print_json,
)
from cst_search.cli.options import takes
from cst_search.commands.options import ConfirmOptions, LaunchOptions, ResumeOptions, resumed


@app.command()
@takes(LaunchOptions)
def launch(
    *, quiet: QuietOption = False, verbose: VerboseOption = False, json_: JsonOption = False, **given: Any
) -> None:
    """Search for the best configurations within a budget."""
    options = LaunchOptions.read(**given)
    if only_checking.get():
        return
    from cst_search.commands.launch import launch as run

    _end_of_search(run(options, console_of(json_, quiet), verbose=verbose), json_)


@app.command()
@takes(ResumeOptions)
def resume(
    study: StudyArgument, quiet: QuietOption = False, verbose: VerboseOption = False, json_: JsonOption = False,
    **given: Any,
) -> None:  # fmt: skip
    """Continue a search that ended or was killed, with the data, recipe, space and budget of its study."""
    opened = open_study(study, given["home"], given["storage"])
    from cst_search.commands.launch import launch as run

    options = resumed(opened.info(), opened.n_wanted(), ResumeOptions.read(**given))
    _end_of_search(run(options, console_of(json_, quiet), verbose=verbose), json_)


def _end_of_search(result: Any, json_: bool) -> None:
    """Print the result as JSON if wanted, and exit with the exit code of a launch."""
    from cst_search.report.summary import front_report

    if json_:
        print_json(front_report(result.info) | {"seconds": result.seconds, "interrupted": result.interrupted})
    if result.interrupted:
        raise typer.Exit(130)
    if not result.info.front():
        err.print(
            "cst-search: no trial completed within the budget; see the reasons with `cst-search status`", markup=False
        )
        raise typer.Exit(1)


@app.command()
@takes(ConfirmOptions)
def confirm(
    study: StudyArgument, quiet: QuietOption = False, verbose: VerboseOption = False, json_: JsonOption = False,
    **given: Any,
) -> None:  # fmt: skip
    """Train the points of the front again with other seeds, and report which of them stay on it."""
    opened = open_study(study, given["home"], given["storage"])
    from cst_search.commands.confirm import confirm as run

    options = ConfirmOptions.read(**given)
    result = run(opened, options, console_of(json_, quiet), verbose=verbose)
    if json_:
        print_json(result.report)
    if result.interrupted:
        raise typer.Exit(130)
    if result.n_planned and not result.n_completed:
        err.print("cst-search: no repeat completed; see the reasons with `cst-search status`", markup=False)
        raise typer.Exit(1)
