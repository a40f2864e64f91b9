"""Run a search from beginning to end: setup, workers, study, run, report. Reads top to bottom."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from cst_search.commands.budget_survey import augmentation_note, expected_sharers
from cst_search.commands.checks import Request, check_left, check_request
from cst_search.commands.next_steps import next_steps
from cst_search.commands.options import LaunchOptions
from cst_search.commands.output import Say, line_printer
from cst_search.commands.report_files import close_record, write_report
from cst_search.commands.search_loop import OpenRecord, follow, make_task, open_record, run_trials
from cst_search.commands.study_setup import SearchSetup, open_or_make_study, recorded_settings, set_up_search
from cst_search.commands.worker_setup import WorkerSetup, find_machines, set_up_workers
from cst_search.config.catalog import default_home
from cst_search.data.disk_cache import Cache, open_cache
from cst_search.execution.interrupt import ends_in_time
from cst_search.execution.workers import SearchJob
from cst_search.redaction import shown_address
from cst_search.report.progress import View
from cst_search.report.tables import front_table
from cst_search.search.session import SearchSession
from cst_search.study.records import StudyInfo
from cst_search.study.states import TrialState
from cst_search.study.storage import check_storage
from cst_search.trial.checkpoint_folder import checkpoints_of
from cst_search.units import format_seconds


@dataclass(frozen=True)
class LaunchResult:
    """Result of a launch: the study, True if Ctrl-C ended it, and the report's files by suffix."""

    info: StudyInfo
    interrupted: bool
    files: dict[str, Path]
    seconds: float


def launch(options: LaunchOptions, console: Console, *, verbose: bool = False) -> LaunchResult:
    """Run a search. Raises UserError before anything is started; from then on, finished trials are always kept.

    Args:
        verbose: also print what the caches decide, and why.
    """
    begun = time.monotonic()
    say = line_printer(console)
    request = check_request(options)
    machines = find_machines(options, request.storage, options.budget, options.limit_mem, say)
    setup = set_up_search(options, machines, say)
    workers = set_up_workers(options, machines, setup.recipe, setup.data, setup.survey, options.trials)
    study = open_or_make_study(options, request, setup)
    check_left(study.info(), options.trials)
    session = SearchSession(study)
    session.begin_launch(workers.gpu_bytes, shares_machine=machines.cluster is not None)
    if study.storage is not None:
        study.storage.say = say
    before = study.info()
    n_before = before.n_ran()

    workers.workers.prepare()
    record = open_record(options, say)
    _say_beginning(options, request, setup, workers, session, record, say)
    cache = _open_cache(options, setup, n_before, say, verbose)
    _say_early_stopping(options, setup, session, say)
    record.mlflow.start(study.info(), session.describe_launch(recorded_settings(study, options, workers)))
    on_finished = follow(study, record.mlflow)
    on_finished()  # trials of earlier launches

    epochs, name = setup.recipe.search_epochs, study.name
    view = View(
        console,
        title=f"{name} on {setup.recipe.data if options.data else 'the demo'}",
        n_trials=options.trials,
        n_workers=workers.n_workers,
        n_done=n_before,
        epochs=epochs,
        on_finished=on_finished,
        earlier=[record for record in before.trials if record.state == TrialState.COMPLETE],
        verbose=verbose,
    )
    checkpoints = checkpoints_of(options.home, name)
    task = make_task(setup.recipe, setup.data, epochs, workers, cache, checkpoints, session.rungs)
    stop = _deadline(begun, options.time_limit)
    go_on = resume_command(name, options)
    with ends_in_time(go_on):
        job = SearchJob(session, task, options.trials, setup.estimate, stop, view)
        interrupted = run_trials(job, workers, view, go_on)
        info, n_elsewhere = study.info(), study.others_at_work()
        if not n_elsewhere:  # other launches may still be writing theirs
            checkpoints.tidy()
        interrupted = interrupted or any(r.state == TrialState.INTERRUPTED for r in info.trials)
        if n_elsewhere:
            say(f"{n_elsewhere} trial(s) are with other launches of the study, which go on")
        elif not interrupted and not stop() and info.n_ran() < options.trials:
            say("the sampler found no further configuration within the budget; the search ends early")

        files = write_report(info, options.home / name)
        close_record(record.mlflow, info, files, interrupted)
        result = LaunchResult(info, interrupted, files, time.monotonic() - begun)
        _say_end(result, options, console, say)
    return result


def _deadline(begun: float, seconds: float | None) -> Callable[[], bool]:
    return lambda: seconds is not None and time.monotonic() >= begun + seconds


# --- what it prints -------------------------------------------------------------------------------------------------


def _say_beginning(
    options: LaunchOptions, request: Request, setup: SearchSetup, workers: WorkerSetup, session: SearchSession,
    record: OpenRecord, say: Say,
) -> None:  # fmt: skip
    study, machines = session.study, workers.machines
    say(
        f"study {study.name}: {study.info().n_ran()} of {options.trials} trials done; "
        f"storage {request.shown_storage}; MLflow {shown_address(record.uri)}"
    )
    say(f"{workers}, {setup.recipe.search_epochs} epochs a trial")
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


def _flags(options: LaunchOptions) -> str:
    """Options with which a command finds the study. Passwords are left out; the user has them."""
    home = "" if options.home == default_home() else f" --home {shlex.quote(str(options.home))}"
    return home + (f" --storage {shlex.quote(check_storage(options.storage))}" if options.storage else "")


def resume_command(name: str, options: LaunchOptions) -> str:
    """Return the command line that continues a search."""
    there = f" --address {options.address}" if options.address else ""
    return f"cst-search resume {shlex.quote(name)}{_flags(options)}{there}"


def _say_end(result: LaunchResult, options: LaunchOptions, console: Console, say: Say) -> None:
    info = result.info
    counts = info.counts()
    states = ", ".join(f"{n} {state}" for state, n in counts.items() if n and state != "total")
    say("")
    ended = "stopped" if result.interrupted else "done"
    say(f"{ended} after {format_seconds(result.seconds)}: {counts['total']} trials ({states})")
    flags = _flags(options)
    if result.interrupted:
        say(f"what is finished is kept; go on with:  {resume_command(info.name, options)}")
    if info.front():
        console.print(front_table(info, console.width))
        say(f"hypervolume {info.hypervolume():.4f}; page {result.files['html']}")
        home = _flags(replace(options, storage=None))
        say(f"next:  cst-search ui{home}")
        for line in next_steps(info, flags, home):
            say(f"       {line}")
