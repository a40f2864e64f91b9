"""A search from beginning to end: data, recipe, space, study, workers, record, report. Reads top to bottom."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console

from cst_search.commands.budget_survey import estimator, expected_sharers, show_budget, survey_costs
from cst_search.commands.checks import check_left, check_name, check_space, check_tracking, new_name
from cst_search.commands.dataset import dataset_inputs, load_dataset
from cst_search.commands.options import LaunchOptions
from cst_search.commands.report_files import export_best, write_report
from cst_search.commands.search_loop import follow
from cst_search.commands.study_setup import base_recipe, make_study, settings_of
from cst_search.commands.worker_setup import (
    check_nodes,
    connect,
    device_of,
    gpu_placement,
    make_workers,
    memory_limit_of,
)
from cst_search.config.catalog import check_folder, default_home
from cst_search.config.loading import load_space, make_recipe, shown_name
from cst_search.config.search_space import Space
from cst_search.data.disk_cache import open_cache
from cst_search.detector.build import build_detector
from cst_search.errors import CstSearchError
from cst_search.execution.interrupt import GRACE_SECONDS, ends_in_time
from cst_search.execution.task import Task
from cst_search.execution.workers import SearchJob
from cst_search.petl import get_method
from cst_search.redaction import shown_address
from cst_search.report.progress import View
from cst_search.report.tables import front_table
from cst_search.search.samplers import check_sampler
from cst_search.search.session import SearchSession
from cst_search.study.objectives import choose_objectives
from cst_search.study.records import StudyInfo
from cst_search.study.states import TrialState
from cst_search.study.storage import check_storage
from cst_search.study.study import default_storage
from cst_search.trial.checkpoints import checkpoints_of
from cst_search.trial.memory_limit import MemoryLimit
from cst_search.units import format_seconds


@dataclass(frozen=True)
class LaunchResult:
    """How a launch ended: the study, whether Ctrl-C ended it, and the files of the report."""

    info: StudyInfo
    interrupted: bool
    files: dict[str, Path]
    seconds: float


def launch(options: LaunchOptions, console: Console) -> LaunchResult:
    """Search. Raises UserError before anything is started; after that, what is finished is kept whatever happens."""
    begun = time.monotonic()

    def say(line: str = "") -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    known = options.of_study
    if known is not None:
        check_left(known, options.trials)
    objectives = choose_objectives(options.objectives)
    if options.sampler is not None:
        check_sampler(options.sampler, objectives)
    storage = options.storage or default_storage(options.home)
    shown_storage = check_storage(storage)
    check_tracking(options.tracking_uri)
    check_folder("--home", options.home)
    if options.study is not None:
        check_name(options.study)
    cluster = connect(options, storage, say)
    device = device_of(options.device, cluster)
    limit = memory_limit_of(options, device)
    space = load_space(options.space) if known is None else Space.from_dict(known.space, where=f"study {known.name!r}")
    for method in space.methods:
        get_method(method)
    recipe = base_recipe(options, device) if known is None else make_recipe(known.recipe, f"study {known.name!r}")
    if known is None:
        check_space(space, recipe, shown_name(options.space))
    data = load_dataset(options, recipe, say)
    build_detector(recipe, len(data.class_names))  # fetches weights for all workers; faults show here, not in trials
    estimate = estimator(recipe, data)
    survey = survey_costs(space, recipe, estimate)
    show_budget(options.budget, survey, say)
    if cluster is not None:
        check_nodes(cluster, options.home, recipe, data, device)
    placement = None if device.type != "cuda" else gpu_placement(limit, cluster)
    workers, n_workers, threads = make_workers(options, placement, recipe, survey, cluster)

    # a budget far above the space would make every hypervolume look alike
    ceiling = {name: values[-1] * 1.05 + 1 for name, values in vars(survey).items()}
    reference = {"map": 0.0, "map50": 0.0, **ceiling}
    for cost, bound in (("device_bytes", options.budget.memory_bytes), ("trainable_params", options.budget.params)):
        reference[cost] = min(reference[cost], bound or reference[cost])
    name = options.study or new_name(storage, "demo" if options.data is None else Path(recipe.data).name)
    study = make_study(storage, name, space, recipe, options, objectives, reference, dataset_inputs(data))
    check_left(study.info(), options.trials)
    session = SearchSession(study)
    session.begin_launch(None if placement is None else placement.gpu_bytes, shares_machine=cluster is not None)
    if study.storage is not None:
        study.storage.say = say
    n_before = study.info().n_ran()

    workers.prepare()
    from cst_search.tracking.connection import default_tracking_uri  # mlflow takes seconds to import
    from cst_search.tracking.mlflow_record import MlflowRecord

    tracking_uri = options.tracking_uri or default_tracking_uri(options.home)
    record = MlflowRecord(tracking_uri, options.home / "artifacts", warn=say)
    say(
        f"study {name}: {n_before} of {options.trials} trials done; "
        f"storage {shown_storage}; MLflow {shown_address(tracking_uri)}"
    )
    say(
        f"{n_workers} worker(s) on {device}, {threads or 'all'} CPU thread(s) each, "
        f"{recipe.search_epochs} epochs a trial"
    )
    if cluster is not None:
        say(f"cluster {options.address}: {'; '.join(map(str, cluster.nodes.values()))}")
    if limit is not None and cluster is None:
        say(f"each trial: {MemoryLimit(device, limit)}")
    if placement is not None and not options.in_process:
        say(str(placement))
    cache, line = open_cache(
        options.home.absolute(), options.cache_bytes, expected_sharers(space, recipe, options.trials - n_before)
    )
    say(line)
    if session.rungs:
        epochs = ", ".join(map(str, session.rungs))
        say(f"early stopping: of the trials that reach epoch {epochs}, one in {study.spec.eta} goes on")
    elif options.eta:
        say(
            f"note: early stopping has nothing to stop, as trials are {recipe.search_epochs} epoch(s) long; "
            f"--set search_epochs=N changes that"
        )
    record.start(study.info(), session.describe_launch(settings_of(study, options, n_workers, device)))

    on_finished = follow(study, record)
    on_finished()  # trials of earlier launches

    deadline = None if options.time_limit_seconds is None else begun + options.time_limit_seconds
    view = View(
        console,
        title=f"{name} on {recipe.data if options.data else 'the demo'}",
        n_trials=options.trials,
        n_workers=n_workers,
        n_done=n_before,
        epochs=recipe.search_epochs,
        on_finished=on_finished,
    )
    checkpoints = checkpoints_of(options.home, name)
    task = Task(
        recipe,
        data,
        recipe.search_epochs,
        str(device),
        threads,
        limit,
        cache,
        rungs=session.rungs,
        checkpoints=checkpoints,
    )

    def stop() -> bool:
        return deadline is not None and time.monotonic() >= deadline

    if cluster is not None:
        cluster.watch(resume_command(name, options))
    with ends_in_time(resume_command(name, options)):
        interrupted = False
        try:
            with view:
                workers.run(SearchJob(session, task, options.trials, estimate, stop, view))
        except KeyboardInterrupt:
            interrupted = True
        except BaseException:
            with suppress(CstSearchError):  # it may be the storage that is gone
                session.end_launch()
            raise
        session.end_launch()
        info = study.info()
        n_elsewhere = study.others_at_work()
        if not n_elsewhere:  # what others are writing is no litter
            checkpoints.tidy()
        interrupted = interrupted or any(r.state == TrialState.INTERRUPTED for r in info.trials)
        if n_elsewhere:
            say(f"{n_elsewhere} trial(s) are with other launches of the study, which go on")
        elif not interrupted and not stop() and info.n_ran() < options.trials:
            say("the sampler found no further configuration within the budget; the search ends early")

        files = write_report(info, options.home / name)
        record.sync(info)
        record.finish(info, {"pareto": [files[k] for k in ("html", "png", "json")], "export": export_best(info, files)},
                      "KILLED" if interrupted else "FINISHED")  # fmt: skip
        record.close(GRACE_SECONDS / 2 if interrupted else 60.0)
        _say_end(info, files, options, interrupted, time.monotonic() - begun, console, say)
    return LaunchResult(info, interrupted, files, time.monotonic() - begun)


# --- after it -------------------------------------------------------------------------------------------------------


def _flags(options: LaunchOptions) -> str:
    """What a command needs besides the study's name to find it; without a password, which a person has."""
    home = "" if options.home == default_home() else f" --home {shlex.quote(str(options.home))}"
    return home + (f" --storage {shlex.quote(check_storage(options.storage))}" if options.storage else "")


def resume_command(name: str, options: LaunchOptions) -> str:
    there = f" --address {options.address}" if options.address else ""
    return f"cst-search resume {shlex.quote(name)}{_flags(options)}{there}"


def _say_end(
    info: StudyInfo, files: dict[str, Path], options: LaunchOptions, interrupted: bool, seconds: float,
    console: Console, say: Callable[..., None],
) -> None:  # fmt: skip
    counts = info.counts()
    states = ", ".join(f"{n} {state}" for state, n in counts.items() if n and state != "total")
    say()
    say(f"{'stopped' if interrupted else 'done'} after {format_seconds(seconds)}: {counts['total']} trials ({states})")
    flags = _flags(options)
    if interrupted:
        say(f"what is finished is kept; go on with:  {resume_command(info.name, options)}")
    if info.front():
        console.print(front_table(info, console.width))
        data = "" if info.data == "demo" else f" --data {shlex.quote(info.data)}"
        say(f"hypervolume {info.hypervolume():.4f}; page {files['html']}")
        home = _flags(replace(options, storage=None))
        say(f"next:  cst-search ui{home}")
        say(f"       cst-search export {shlex.quote(info.name)} --pick knee -o best.yaml{flags}")
        say(f"       cst-search train best.yaml{data} --out trained{home}")
