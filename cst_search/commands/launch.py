"""Run searches from beginning to end: setup, workers, studies, run, report. Reads top to bottom.

Mostly it is one search. Several data sets are searched in one launch, each in a study of its own, on the same workers.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from cst_search.commands.budget_survey import Survey, augmentation_note, expected_sharers
from cst_search.commands.checks import Request, check_left, check_request, check_until, has_left, name_studies
from cst_search.commands.next_steps import allocate_command, next_steps, study_flags
from cst_search.commands.options import CONVERGED, LaunchOptions
from cst_search.commands.output import Say, line_printer
from cst_search.commands.report_files import close_in_time, end_run, write_report
from cst_search.commands.search_loop import (
    OpenRecord,
    check_still_there,
    follow,
    make_task,
    open_record,
    run_trials,
)
from cst_search.commands.study_setup import SearchSetup, open_or_make_studies, recorded_settings, set_up_searches
from cst_search.commands.worker_setup import WorkerSetup, find_machines, memory_limit_of, set_up_workers
from cst_search.config.catalog import study_folder
from cst_search.data.disk_cache import Cache, open_cache
from cst_search.errors import RunError
from cst_search.execution.interrupt import ends_in_time
from cst_search.execution.workers import Events, SearchJob
from cst_search.redaction import shown_address
from cst_search.report.progress import Standing, View
from cst_search.report.tables import comparison_table, front_table
from cst_search.search.session import SearchSession
from cst_search.study.records import StudyInfo
from cst_search.study.states import TrialState
from cst_search.study.study import Study
from cst_search.study.wording import n_trials
from cst_search.trial.checkpoint_folder import Checkpoints, checkpoints_of
from cst_search.units import format_seconds
from cst_search.visible import in_line
from cst_search.waiting import Waiting


@dataclass(frozen=True)
class LaunchResult:
    """Result of a launch: the study, True if Ctrl-C ended it, and the report's files by suffix."""

    info: StudyInfo
    interrupted: bool
    files: dict[str, Path]
    seconds: float


@dataclass(frozen=True)
class _Search:
    """One of the searches of a launch.

    Attributes:
        workers: the workers that all share, with the memory limit of this study's trials.
        n_before: trials in the study before this launch.
        verbose: also print what the caches decide, and why.
    """

    options: LaunchOptions
    request: Request
    setup: SearchSetup
    session: SearchSession
    workers: WorkerSetup
    n_before: int
    verbose: bool

    @property
    def study(self) -> Study:
        return self.session.study

    @property
    def checkpoints(self) -> Checkpoints:
        return checkpoints_of(self.options.home, self.study.name)


def launch(options: LaunchOptions, console: Console, *, verbose: bool = False) -> LaunchResult:
    """Run a search. Raises UserError before anything is started; from then on, finished trials are always kept.

    Args:
        verbose: also print what the caches decide, and why.
    """
    return launch_all([options], console, verbose=verbose)[0]


def launch_all(each: Sequence[LaunchOptions], console: Console, *, verbose: bool = False) -> list[LaunchResult]:
    """Run several searches on the same workers, in turn; see `launch`. They differ in their data, or are resumed."""
    begun = time.monotonic()
    say = line_printer(console)
    with Waiting("the search to be set up", say):
        searches = _set_up(each, say, verbose)
    with searches[0].workers.workers.prepared():
        return _run(searches, begun, console, verbose)


def _run(searches: Sequence[_Search], begun: float, console: Console, verbose: bool) -> list[LaunchResult]:
    """Run searches that are set up, and report them."""
    say = line_printer(console)
    each, workers = [search.options for search in searches], searches[0].workers
    with Waiting("MLflow to be opened", say):
        records = _open_records(searches, say)
    tell = say if len(searches) == 1 else _each_once(say)
    for search, record in zip(searches, records, strict=True):
        _say_beginning(search, record, tell)
    n_trials = sum(search.options.trials for search in searches)
    n_before = sum(search.n_before for search in searches)
    view = View(console, title=_title(searches), n_trials=n_trials, n_workers=workers.n_workers, n_done=n_before,
                epochs=0, on_finished=Standing, verbose=verbose)  # fmt: skip
    stop = _end_of(searches, begun, each[0].time_limit)
    jobs = [_job(search, record, view, stop, tell, is_alone=len(searches) == 1)
            for search, record in zip(searches, records, strict=True)]  # fmt: skip
    go_on = resume_command([search.study.name for search in searches], each[0])
    with ends_in_time(go_on):
        interrupted = run_trials(jobs, workers, view, go_on)
        results = [
            _finish(search, record, interrupted, begun, stop, say)
            for search, record in zip(searches, records, strict=True)
        ]
        close_in_time(records[0].mlflow, any(result.interrupted for result in results))
        study, names = searches[0].study, [search.study.name for search in searches]
        now = replace(each[0], storage=study.rescued_url() or each[0].storage)
        _say_end(results, now, console, say, is_cut_short=now != each[0])
        check_still_there(study, lambda _: resume_command(names, now))
        return results


# --- stages ---------------------------------------------------------------------------------------------------------


def _set_up(each: Sequence[LaunchOptions], say: Say, verbose: bool) -> list[_Search]:
    """Check everything, make workers and studies, and register a launch in each study."""
    _check_some_left([(options, options.of_study) for options in each if options.of_study is not None])
    requests = [check_request(options) for options in each]
    each = name_studies(each, requests[0].storage)
    first = each[0]
    machines = find_machines(first, requests[0].storage, first.budget, first.limit_mem, say)
    setups = set_up_searches(each, machines, _each_once(say))
    limits = [memory_limit_of(options.budget, options.limit_mem, machines.device) for options in each]
    workers = set_up_workers(
        first,
        replace(machines, limit_bytes=None if None in limits else max(n for n in limits if n is not None)),
        [(setup.recipe, setup.data) for setup in setups],
        Survey({"device_bytes": tuple(sorted(n for setup in setups for n in setup.survey.device_bytes))}),
        sum(options.trials for options in each),
    )
    studies = open_or_make_studies(each, requests, setups)
    _check_some_left([(options, study.info()) for options, study in zip(each, studies, strict=True)])
    for options, study in zip(each, studies, strict=True):
        check_until(options, study.spec.sampler)
    searches: list[_Search] = []
    try:
        for options, request, setup, study, limit in zip(each, requests, setups, studies, limits, strict=True):
            own = replace(workers, machines=replace(machines, limit_bytes=limit))
            searches.append(_begin(options, request, setup, study, own, say, verbose))
    except BaseException:
        for search in searches:
            search.session.end_launch()
        raise
    return searches


def _check_some_left(each: Sequence[tuple[LaunchOptions, StudyInfo]]) -> None:
    """Raise StudyError if all studies have their trials. One that has them among others is only reported again."""
    if each and not any(has_left(info, options.trials) for options, info in each):
        options, info = each[0]
        check_left(info, options.trials)


def _begin(
    options: LaunchOptions, request: Request, setup: SearchSetup, study: Study, workers: WorkerSetup, say: Say,
    verbose: bool,
) -> _Search:  # fmt: skip
    session = SearchSession(study)
    if study.storage is not None:
        study.storage.say = say
    session.until_converged = options.until == CONVERGED
    session.begin_launch(workers.gpu_bytes, shares_machine=workers.machines.cluster is not None)
    return _Search(options, request, setup, session, workers, study.info().n_ran(), verbose)


def _open_records(searches: Sequence[_Search], say: Say) -> list[OpenRecord]:
    """Open the record of each study; all of them use one queue to MLflow."""
    first = open_record(searches[0].options, say)
    return [first, *(open_record(search.options, say, beside=first) for search in searches[1:])]


def _job(
    search: _Search, record: OpenRecord, view: View, stop: Callable[[], bool], say: Say, *, is_alone: bool
) -> SearchJob:
    """Start the record of a search in MLflow, and return the search as the workers take it."""
    options, setup, session, study = search.options, search.setup, search.session, search.study
    before = study.info()
    cache = _open_cache(options, setup, search.n_before, say, search.verbose)
    _say_early_stopping(options, setup, session, say)
    settings = recorded_settings(study, options, search.workers)
    record.mlflow.start(before, session.describe_launch(settings))
    on_finished = follow(study, record.mlflow)
    on_finished()  # trials of earlier launches
    epochs = setup.recipe.search_epochs
    complete = [record for record in before.trials if record.state == TrialState.COMPLETE]
    events: Events = view
    if is_alone:
        view.epochs, view.on_finished = epochs, on_finished
        view.take_earlier(complete)
    else:
        events = view.of(before.shown_name, search.n_before, epochs, on_finished, complete)
    task = make_task(setup.recipe, setup.data, epochs, search.workers, cache, search.checkpoints, session.rungs)
    return SearchJob(session, task, options.trials, setup.estimate, stop, events)


def _finish(
    search: _Search, record: OpenRecord, interrupted: bool, begun: float, stop: Callable[[], bool], say: Say
) -> LaunchResult:
    """Tidy up, write the report, and end the run in MLflow."""
    study, options = search.study, search.options
    info, n_elsewhere = study.info(), study.others_at_work()
    if not n_elsewhere:  # other launches may still be writing theirs
        search.checkpoints.tidy()
    interrupted = interrupted or any(r.state == TrialState.INTERRUPTED for r in info.trials)
    if n_elsewhere:
        say(f"{n_elsewhere} trial(s) are with other launches of study {info.shown_name}, which go on")
    elif search.session.until_converged and search.session.has_converged():
        say(f"study {info.shown_name} has converged; the search ends after {info.n_ran()} of {options.trials} trials")
    elif not interrupted and not stop() and info.n_ran() < options.trials:
        say(
            f"study {info.shown_name}: the sampler found no further configuration within the budget; "
            f"the search ends early"
        )
    files = _write_report(info, options)
    end_run(record.mlflow, info, files, interrupted)
    return LaunchResult(info, interrupted, files, time.monotonic() - begun)


def _write_report(info: StudyInfo, options: LaunchOptions) -> dict[str, Path]:
    """Write the report of a study. Raises RunError, which says how to write it later."""
    try:
        return write_report(info, study_folder(options.home, info.name))
    except OSError as error:
        name = in_line(shlex.quote(info.name))
        raise RunError(
            f"the trials of study {info.shown_name} are kept, but its report cannot be written: "
            f"{error.filename or options.home}: {error.strerror}; make room there, then write it with:  "
            f"cst-search sync {name}{study_flags(options.home, options.storage)}"
        ) from error


def _end_of(searches: Sequence[_Search], begun: float, seconds: float | None) -> Callable[[], bool]:
    """Return a function that returns True when no trial may start: after the time limit, or without their database."""

    def is_over() -> bool:
        is_late = seconds is not None and time.monotonic() >= begun + seconds
        return is_late or any(search.study.rescued_url() for search in searches)

    return is_over


# --- what it prints -------------------------------------------------------------------------------------------------


def _each_once(say: Say) -> Say:
    """Return a function that prints a line unless it was printed before: several studies have much in common."""
    said: set[str] = set()

    def say_once(line: str) -> None:
        if line not in said:
            said.add(line)
            say(line)

    return say_once


def _title(searches: Sequence[_Search]) -> str:
    names = [in_line(search.study.name) for search in searches]
    if len(names) > 1:
        return f"{len(names)} studies: {', '.join(names)}"
    return f"{names[0]} on {in_line(searches[0].setup.recipe.data) if searches[0].options.data else 'the demo'}"


def _say_beginning(search: _Search, record: OpenRecord, say: Say) -> None:
    options, setup, workers = search.options, search.setup, search.workers
    machines = workers.machines
    say(
        f"study {in_line(search.study.name)}: {search.n_before} of {options.trials} trials done; "
        f"storage {search.request.shown_storage}; MLflow {shown_address(record.uri)}"
    )
    say(f"{workers}, {setup.recipe.search_epochs} epoch(s) a trial")
    if machines.cluster is not None:
        say(f"cluster {options.address}: {'; '.join(map(str, machines.cluster.nodes.values()))}")
    if machines.limit_bytes is not None and machines.cluster is None:
        say(f"each trial: {machines.limit_words()}")
    if workers.placement is not None and not options.in_process:
        say(str(workers.placement))


def _open_cache(options: LaunchOptions, setup: SearchSetup, n_before: int, say: Say, verbose: bool) -> Cache | None:
    n_sharers = expected_sharers(setup.space, setup.recipe, options.trials - n_before)
    cache, line = open_cache(options.home.absolute(), options.cache_size, n_sharers)
    if verbose or cache is None:
        say(line)
    note = None if cache is None else augmentation_note(setup.space, setup.recipe)
    if note is not None:
        say(note)
    return cache


def _say_early_stopping(options: LaunchOptions, setup: SearchSetup, session: SearchSession, say: Say) -> None:
    if session.rungs:
        epochs = ", ".join(map(str, session.rungs))
        say(f"early stopping: of the trials that reach epoch {epochs}, one in {session.study.spec.eta} goes on")
    elif options.early_stopping_eta:
        say(
            f"note: early stopping has nothing to stop, as trials are {setup.recipe.search_epochs} epoch(s) long; "
            f"--set search_epochs=N changes that"
        )


def resume_command(names: Sequence[str], options: LaunchOptions) -> str:
    """Return the command line that continues searches."""
    there = f" --address {options.address}" if options.address else ""
    return f"cst-search resume {in_line(shlex.join(names))}{study_flags(options.home, options.storage)}{there}"


def _say_end(
    results: Sequence[LaunchResult], options: LaunchOptions, console: Console, say: Say, *, is_cut_short: bool
) -> None:
    infos = [result.info for result in results]
    interrupted = any(result.interrupted for result in results)
    ended = "stopped" if interrupted or is_cut_short else "done"
    say("")
    for info in infos:
        counts = info.counts()
        states = ", ".join(f"{n} {state}" for state, n in counts.items() if n and state != "total")
        which = f"study {info.shown_name}, " if len(results) > 1 else ""
        say(f"{which}{ended} after {format_seconds(results[-1].seconds)}: {n_trials(counts['total'])} ({states})")
    if interrupted:
        names = [result.info.name for result in results if result.interrupted]
        say(f"finished trials are kept; continue with:  {resume_command(names, options)}")
    if len(results) > 1:
        _say_next_of_several(infos, options, console, say)
    elif infos[0].front():
        _say_next(results[0], options, console, say)


def _say_next(result: LaunchResult, options: LaunchOptions, console: Console, say: Say) -> None:
    info, flags = result.info, study_flags(options.home, options.storage)
    console.print(front_table(info, console.width))
    say(f"hypervolume {info.hypervolume():.4f}; page {result.files['html']}")
    if (line := info.outlook_line()) is not None:
        say(line)
    home = study_flags(options.home)
    say(f"next:  cst-search ui{home}")
    for line in next_steps(info, flags, home):
        say(f"       {line}")


def _say_next_of_several(infos: Sequence[StudyInfo], options: LaunchOptions, console: Console, say: Say) -> None:
    flags, names = study_flags(options.home, options.storage), in_line(shlex.join(info.name for info in infos))
    console.print(comparison_table(infos))
    say(f"pages {options.home / '*' / 'front.html'}")
    say(f"next:  cst-search front {names} -o comparison{flags}")
    for line in allocate_command(infos, flags):
        say(f"       {line}")
