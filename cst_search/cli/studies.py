"""Commands that read a study: `status`, `list`, `prior`, `front`, `export`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cst_search.cli import completion
from cst_search.cli.app import (
    DETECTORS,
    SEARCHES,
    HomeOption,
    JsonOption,
    NewestStudyArgument,
    PlotOption,
    QuietOption,
    StorageOption,
    app,
    complain,
    console_of,
    err,
    loading,
    open_study,
    out,
    print_json,
    say,
    show_plot,
)
from cst_search.config.catalog import home_of
from cst_search.errors import ConfigError, UserError
from cst_search.study.states import TrialState
from cst_search.visible import in_line

if TYPE_CHECKING:
    from cst_search.study.records import StudyInfo

_ROWS = 100  # trials that `status` shows: a table of ten thousand takes seconds to draw, and nobody reads it
_PLANS = 6  # that `front` shows of what several studies may store together; the page has more


@app.command(rich_help_panel=SEARCHES)
def status(
    study: NewestStudyArgument = None,
    all_: Annotated[bool, typer.Option("--all", help=f"Show every trial, not only the last {_ROWS}.")] = False,
    home: HomeOption = None,
    storage: StorageOption = None,
    plot: PlotOption = None,
    json_: JsonOption = False,
) -> None:
    """Show the progress of a study and the outcome of each trial."""
    from cst_search.report.tables import status_table
    from cst_search.study.importance import importance, order_of
    from cst_search.study.wording import best_words, n_trials, shared_values, shared_words

    info = open_study(study, home, storage).info()
    if json_:
        print_json(_status_report(info))
        return
    last = info.trials if all_ else info.trials[-_ROWS:]
    earlier = info.trials[: len(info.trials) - len(last)]
    unfinished = [r for r in earlier if r.state in (TrialState.RUNNING, TrialState.INTERRUPTED)]
    shared = shared_values([record.config for record in info.trials])
    best = next(iter(info.front()), None)
    order = order_of(importance(info))
    out.print(status_table(info, [*unfinished, *last, *info.repeats], best, shared, order))
    if shared:
        say(shared_words(shared))
    if n_left_out := len(earlier) - len(unfinished):
        say(f"the last {_ROWS}; --all shows the {n_left_out} before them too")
    counts = ", ".join(f"{n} {state}" for state, n in info.counts().items() if n and state != "total")
    say(f"{n_trials(len(info.trials))} ({counts or 'none yet'}), hypervolume {info.hypervolume():.4f}")
    if best is not None:
        say(best_words(best, info.over_seeds(best).mean, shared, order))
    if (line := info.outlook_line()) is not None:
        say(line)
    show_plot([info], plot)


def _status_report(info: StudyInfo) -> dict[str, Any]:
    """Return the state of a study and all its trials, as a dict ready for JSON."""
    more = ("state", "reason", "seconds", "ran")
    rows = [info.brief(r) | {name: getattr(r, name) for name in more} for r in info.trials]
    again = ("repeat_of", "seed", "epochs", *more)
    repeats = [r.brief() | {name: getattr(r, name) for name in again} for r in info.repeats]
    outlook = info.outlook()
    return {"study": info.name, "trials": info.counts(), "hypervolume": info.hypervolume(),
            "outlook": None if outlook is None else asdict(outlook), "all": rows, "repeats": repeats}  # fmt: skip


@app.command("list", rich_help_panel=SEARCHES)
def list_(home: HomeOption = None, storage: StorageOption = None, json_: JsonOption = False) -> None:
    """List the studies in a storage."""
    from rich.table import Table
    from rich.text import Text

    from cst_search.study.study import Study, default_storage, list_studies
    from cst_search.study.wording import format_quality
    from cst_search.units import format_bytes

    url = storage or default_storage(home_of(home))
    names = list_studies(url) if storage or (home_of(home) / "studies.db").exists() else []
    infos: list[StudyInfo] = []
    damaged: dict[str, UserError] = {}
    for name in names:
        try:
            infos.append(Study.open(url, name).info())
        except UserError as error:  # the others can be shown
            damaged[name] = error
    if json_:
        print_json(
            [
                {
                    "study": i.name,
                    "started": i.started,
                    "data": i.data,
                    "trials": i.counts(),
                    "best_map": i.best_map(),
                    "hypervolume": i.hypervolume(),
                }
                for i in infos
            ]
            + [{"study": name, "error": str(error)} for name, error in damaged.items()]
        )
        return
    if not names:
        say(f"no studies in {home_of(home) if storage is None else 'this storage'} yet; `cst-search launch` makes one")
        return
    table = Table()
    for name in ("study", "started (UTC)", "data", "complete", "best map", "budget"):
        table.add_column(name)
    for i in infos:
        table.add_row(
            Text(i.shown_name), i.started[:16].replace("T", " "), Text(in_line(i.data)),
            str(i.counts()[TrialState.COMPLETE]), format_quality(i.best_map()), format_bytes(i.budget.memory_bytes),
        )  # fmt: skip
    if infos:
        out.print(table)
    for fault in damaged.values():
        complain(fault)
    if damaged:
        raise typer.Exit(UserError.exit_code)


@app.command(rich_help_panel=SEARCHES)
def prior(
    study: NewestStudyArgument = None,
    home: HomeOption = None,
    storage: StorageOption = None,
    json_: JsonOption = False,
) -> None:
    """Show what a study learns from other data sets, and how well its own trials agree with them."""
    from cst_search.commands.prior import prior_report
    from cst_search.report.tables import sources_table

    report = prior_report(open_study(study, home, storage))
    if json_:
        print_json(report)
        return
    if not report["sources"]:
        say(f"study {report['study']} learns from its own trials alone")
        return
    out.print(sources_table(report["sources"]))
    say(f"study {report['study']} has {report['trials']} trials with a result; a source that puts half of their pairs "
        "in the wrong order has no weight")  # fmt: skip


@app.command(rich_help_panel=SEARCHES)
def front(
    studies: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="STUDY...",
            help="Name of the study; several names compare them (default: the newest).",
            show_default=False,
            autocompletion=completion.studies,
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Compare all studies in the storage.")] = False,
    home: HomeOption = None,
    storage: StorageOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output",
            "--out",
            "-o",
            metavar="DIR",
            help="Also write front.html, .png and .json to this folder; for several studies comparison.html and .json.",
        ),
    ] = None,
    plot: PlotOption = None,
    json_: JsonOption = False,
) -> None:
    """Show the Pareto front of a study, or compare those of several."""
    names = _names_of_all(studies, home, storage) if all_ else studies or []
    infos = [open_study(name, home, storage).info() for name in (dict.fromkeys(names) if names else [None])]
    if output is not None:
        _write_pages(infos, output)
    if json_:
        from cst_search.report.summary import front_report

        reports = [front_report(info) for info in infos]
        print_json(reports[0] if len(reports) == 1 else reports)
        return
    _show_fronts(infos)
    show_plot(infos, plot)
    from cst_search.commands.next_steps import allocate_command, next_steps, study_flags

    flags, home_flags = study_flags(home_of(home), storage), study_flags(home_of(home))
    lines = next_steps(infos[0], flags, home_flags) if len(infos) == 1 else allocate_command(infos, flags)
    for i, line in enumerate(lines):
        say(f"{'       ' if i else 'next:  '}{line}")


def _names_of_all(studies: Sequence[str] | None, home: Path | None, storage: str | None) -> list[str]:
    """Return the names of all studies of a storage. Raises ConfigError if some were named, too."""
    from cst_search.study.study import names_of_studies

    if studies:
        raise ConfigError(f"--all stands for every study; leave out {', '.join(studies)}, or --all")
    return names_of_studies(home_of(home), storage)


def _write_pages(infos: Sequence[StudyInfo], folder: Path) -> None:
    from cst_search.config.catalog import check_folder

    check_folder("--output", folder)
    if len(infos) == 1:
        from cst_search.commands.report_files import write_report

        files = write_report(infos[0], folder)
    else:
        from cst_search.report.html import write_comparison
        from cst_search.report.summary import page_report

        files = write_comparison([page_report(info) for info in infos], folder)
    err.print(f"wrote {', '.join(str(path) for path in files.values())}", markup=False, highlight=False)


def _show_fronts(infos: Sequence[StudyInfo]) -> None:
    from cst_search.report.storage_curve import storage_curve
    from cst_search.report.summary import page_report
    from cst_search.report.tables import comparison_table, front_table, methods_table, storage_table
    from cst_search.study.method_summary import by_method
    from cst_search.study.records import common_reference
    from cst_search.study.wording import metric_words, no_trial_yet

    for i, info in enumerate(infos):
        if i:
            say()
        if not info.front():
            say(no_trial_yet(info))
            continue
        out.print(front_table(info, out.width))
        if methods := by_method(info):
            out.print(methods_table(methods))
        say(f"hypervolume {info.hypervolume():.4f} of 1 (reference {metric_words(info.compared_reference)})")
    if len(infos) > 1:
        say()
        out.print(comparison_table(infos))
        if common_reference(infos) is None:
            say("their data or objectives differ, so there is no common hypervolume")
        if (storage := storage_curve([page_report(info) for info in infos], n_plans=_PLANS)) is not None:
            say()
            out.print(storage_table(storage))


@app.command(rich_help_panel=DETECTORS)
def export(
    study: NewestStudyArgument = None,
    pick: Annotated[
        str | None,
        typer.Option(
            "--pick",
            metavar="POINT",
            help="Point of the front: knee, best (highest mAP) or trial=N (default: the one that `front` suggests).",
            autocompletion=completion.picks,
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "--out", "-o", metavar="FILE", help="Recipe file to write.")
    ] = Path("best.yaml"),
    verify: Annotated[
        bool,
        typer.Option(
            "--verify/--no-verify",
            help="First train a few steps on the worst batch; refuse a trial that differs from its record.",
        ),
    ] = True,
    home: HomeOption = None,
    storage: StorageOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Write a point of the front as a self-contained recipe."""
    with loading(console_of(True, quiet)):  # standard output is for the result
        from cst_search.commands.export import export_verified

    info = open_study(study, home, storage).info()

    def tell(line: str) -> None:
        if not quiet:
            err.print(line, markup=False, highlight=False)

    record, verified = export_verified(info, pick, output, home_of(home), verify_first=verify, say=tell)
    if json_:
        print_json(info.brief(record) | {"recipe": str(output), "verified": verified})
    if json_ or quiet:
        return
    from cst_search.commands.next_steps import study_flags, train_command
    from cst_search.study.wording import format_quality, memory_words, over_seeds_words
    from cst_search.units import format_bytes, format_count

    if verified is not None:
        say(
            f"verified on {verified['device']}: parameters as recorded, {verified['steps']} steps on the worst batch "
            f"(loss {verified['loss']:.3g}), memory {format_bytes(verified['device_bytes'])} "
            f"(memory_source: {verified['memory_source']})"
        )
    confirmed = over_seeds_words(info.brief(record))
    say(
        f"trial {record.trial}: map {format_quality(record.map)}, {confirmed + ', ' if confirmed else ''}"
        f"{memory_words(record.working_bytes, record.device_bytes)} ({record.memory_source}), "
        f"{format_count(record.trainable_params)} trainable -> {output}"
    )
    say(f"next:  {train_command(info, str(output))}{study_flags(home_of(home))}")
