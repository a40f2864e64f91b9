"""Train points of the front again with other seeds, to tell differences in mAP from noise. Reads top to bottom.

A front is the best of many noisy trials, so its points were partly lucky. Each is trained again with new seeds. Its
mAP is then the mean over its seeds (`study.records.StudyInfo`), and points that differ by no more than the noise are
reported as such (`study.seed_statistics`). Repeats are trials of the study, so an interrupted confirmation resumes.
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from cst_search.commands.budget_survey import Survey, expected_sharers
from cst_search.commands.checks import check_tracking
from cst_search.commands.dataset import dataset_inputs, open_data
from cst_search.commands.options import ConfirmOptions
from cst_search.commands.output import Say, line_printer
from cst_search.commands.report_files import close_record, write_report
from cst_search.commands.search_loop import check_still_there, make_task, open_record, run_trials
from cst_search.commands.worker_setup import WorkerSetup, find_machines, set_up_workers
from cst_search.config.catalog import check_folder, own_path, study_folder
from cst_search.config.loading import make_recipe
from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space
from cst_search.data.dataset import DetectionData
from cst_search.data.disk_cache import open_cache
from cst_search.detector.build import check_weights
from cst_search.errors import ConfigError, DataError, StudyError
from cst_search.execution.interrupt import ends_in_time
from cst_search.execution.task import Task
from cst_search.execution.workers import SearchJob
from cst_search.memory.estimate import Estimate
from cst_search.redaction import shown_address
from cst_search.report.confirmation import confirm_report, say_confirmation
from cst_search.report.progress import Standing, View
from cst_search.search.session import SearchSession
from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.states import TrialState
from cst_search.study.study import Study
from cst_search.study.trial_attributes import Repeat
from cst_search.study.verdicts import quality
from cst_search.study.wording import no_trial_yet
from cst_search.trial.checkpoint_folder import checkpoints_of
from cst_search.units import format_seconds
from cst_search.visible import in_line
from cst_search.waiting import Waiting

if TYPE_CHECKING:
    from cst_search.tracking.mlflow_record import MlflowRecord


_SAME_COMMAND = "the same command"  # continues a confirmation


@dataclass(frozen=True)
class ConfirmResult:
    """Result of a confirmation; ``--json`` prints ``report``."""

    report: dict[str, Any]
    n_planned: int
    n_completed: int
    interrupted: bool


def confirm(study: Study, options: ConfirmOptions, console: Console, *, verbose: bool = False) -> ConfirmResult:
    """Run the missing repeats, record and report. Raises UserError before anything is started.

    Args:
        verbose: also print what the caches decide, and why.
    """
    begun = time.monotonic()
    say = line_printer(console)
    check_folder("--home", study_folder(options.home, study.name))
    check_tracking(options.tracking_uri, options.home, options.storage)
    info = study.info()
    quality(info)
    epochs = choose_epochs(info, options.epochs)
    points = choose_points(info, options.picks)
    repeats = missing(info, points, options.seeds, epochs)
    before = [record.trial for record in info.front()]
    say(
        f"study {info.shown_name}: {len(points)} point(s), {options.seeds} seeds each at {epochs} epochs; "
        f"{len(repeats)} run(s) to do"
    )
    run = None
    with ExitStack() as at_end:
        with Waiting("the runs to be set up", say):
            if repeats:
                workers, task = _set_up(info, repeats, epochs, options, study.url, say)
                session = SearchSession(study)
                if study.storage is not None:
                    study.storage.say = say
                session.begin_launch(kind="confirm")
                session.plan(repeats)
                at_end.enter_context(workers.workers.prepared())
                run = _Confirmation(session, repeats, task, workers)
            record = open_record(options, say)
        interrupted = False
        with ends_in_time(_SAME_COMMAND):
            if run is not None:
                say(f"MLflow {shown_address(record.uri)}")
                settings = {"seeds": options.seeds, "epochs": epochs, "points": [r.trial for r in points],
                            "workers": workers.n_workers, "device": task.device, "data": task.recipe.data}  # fmt: skip
                record.mlflow.start(info, session.describe_launch(settings))
                interrupted = _run(run, record.mlflow, console, verbose)
                info = study.info()

            # even if there was nothing to run: an earlier confirmation may have died after its last run
            report = confirm_report(info, [record.trial for record in points], epochs, before)
            folder = study_folder(options.home, info.name)
            files = write_report(info, folder)
            (folder / "confirm.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
            close_record(record.mlflow, info, files, interrupted, {"confirm": [folder / "confirm.json"]})
    report |= {"seconds": time.monotonic() - begun, "interrupted": interrupted}
    done = {_as_repeat(r) for r in info.repeats if r.state == TrialState.COMPLETE}
    say_confirmation(report, files["html"], console)
    check_still_there(
        study, lambda url: f"cst-search confirm {in_line(shlex.quote(study.name))} --storage {shlex.quote(url)}"
    )
    return ConfirmResult(report, len(repeats), sum(repeat in done for repeat in repeats), interrupted)


# --- what to run ----------------------------------------------------------------------------------------------------


def choose_epochs(info: StudyInfo, text: str) -> int:
    """Return the epochs of a repeat for ``search``, ``full`` or a number. Raises ConfigError."""
    if text == "search":
        return info.full_epochs
    if text == "full":
        return int(info.recipe["epochs"])
    if text.isdecimal() and len(text) < 10 and 1 <= int(text) <= 10_000:
        return int(text)
    raise ConfigError(f"--epochs takes search, full or a whole number from 1 to 10000; got {text[:40]!r}")


def choose_points(info: StudyInfo, picks: str) -> list[TrialRecord]:
    """Return the trials that ``--picks`` names, best first. Raises ConfigError, StudyError.

    ``front`` is the union of the front by single trials and the front by means over seeds. A point that leaves the
    front after one repeat still gets its other seeds, and so does a point that replaces it.
    """
    complete = {r.trial: r for r in info.trials if r.state == TrialState.COMPLETE and r.feasible}
    front, of_search = info.front(), replace(info, repeats=()).front()
    if not front:
        raise StudyError(no_trial_yet(info))
    chosen: dict[int, TrialRecord] = {}
    for word in (word.strip() for word in picks.split(",")):
        if word == "front":
            found = [*front, *of_search]
        elif word == "best":
            found = front[:1]
        elif word == "knee":
            found = [complete[number] for number in [info.knee()] if number is not None]
        elif word.isdecimal() and len(word) < 10 and int(word) in complete:
            found = [complete[int(word)]]
        else:
            raise ConfigError(
                f"--picks takes front, knee, best, or numbers of complete trials within the budget; got {word[:40]!r}; "
                f"complete are {sorted(complete)}"
            )
        chosen |= {record.trial: record for record in found}
    return list(chosen.values())


def missing(info: StudyInfo, points: Sequence[TrialRecord], n_seeds: int, epochs: int) -> list[Repeat]:
    """Return the repeats that are still to run, one seed of every point at a time.

    If a confirmation is interrupted, all points then have about as many seeds. Seeds count up from the study's own; at
    the search's length the original trial has that one. A repeat that ran out of memory is not run again; one that
    failed for another reason is.
    """
    own = int(info.recipe["seed"])
    rounds: list[list[Repeat]] = [[] for _ in range(n_seeds)]
    for point in points:
        at_length = [r for r in info.repeats if r.repeat_of == point.trial and r.repeat_epochs == epochs]
        used = {r.seed for r in at_length if r.state in (TrialState.COMPLETE, TrialState.INFEASIBLE)}
        if epochs == info.full_epochs:
            used.add(own)
        unused = (seed for i in range(len(used) + n_seeds) if (seed := (own + i) % 2**31) not in used)
        for place, seed in zip(range(len(used), n_seeds), unused, strict=False):
            rounds[place].append(Repeat(point.trial, seed, epochs))
    return [repeat for one_round in rounds for repeat in one_round]


def _as_repeat(record: TrialRecord) -> Repeat | None:
    if record.repeat_of is None or record.seed is None or record.repeat_epochs is None:
        return None
    return Repeat(record.repeat_of, record.seed, record.repeat_epochs)


# --- running it -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Confirmation:
    """The session with its planned repeats, their task and the workers."""

    session: SearchSession
    repeats: Sequence[Repeat]
    task: Task
    workers: WorkerSetup


def _set_up(
    info: StudyInfo, repeats: Sequence[Repeat], epochs: int, options: ConfirmOptions, storage: str, say: Say
) -> tuple[WorkerSetup, Task]:
    """Make the workers and the task as a launch of the study would. Starts nothing. Raises UserError."""
    machines = find_machines(options, storage, info.budget, info.limit_bytes, say)
    recipe = make_recipe(info.recipe, f"recipe of study {info.name!r}")
    if options.data is not None:
        folder = options.data if options.data == "demo" else str(own_path(options.data).absolute())
        recipe = replace(recipe, data=folder)
    data = _same_data(info, recipe, options, say)
    say(check_weights(recipe, data.class_names)[0])  # downloads weights once, and fails before any trial
    trials = {record.trial: record for record in info.trials}
    again = [trials[repeat.repeat_of] for repeat in repeats]
    survey = Survey({"device_bytes": tuple(sorted(record.device_bytes or 0 for record in again))})
    workers = set_up_workers(options, machines, [(recipe, data)], survey, len(repeats))
    seconds = sum((record.seconds or 0.0) * epochs / max(1, len(record.history)) for record in again)
    say(f"{workers}; about {format_seconds(seconds / workers.n_workers)} by the times of the search")
    if workers.placement is not None and not options.in_process:
        say(str(workers.placement))
    space = Space.from_dict(info.space, where=f"space of study {info.name!r}")
    cache, line = open_cache(options.home.absolute(), None, expected_sharers(space, recipe, len(repeats)))
    say(line)
    # no rungs: a repeat is never stopped early
    return workers, make_task(recipe, data, epochs, workers, cache, checkpoints_of(options.home, info.name))


def _run(run: _Confirmation, record: MlflowRecord, console: Console, verbose: bool) -> bool:
    """Run the planned repeats. Returns True if Ctrl-C ended the run."""
    study = run.session.study

    def on_finished() -> Standing:
        now = study.info()
        record.sync(now)
        return Standing(now.hypervolume())

    def no_estimate(config: dict[str, Any]) -> Estimate:
        raise AssertionError("a repeat has the estimate of its trial")

    view = View(
        console,
        title=f"{in_line(study.name)} again with other seeds",
        n_trials=len(run.repeats),
        n_workers=run.workers.n_workers,
        n_done=0,
        epochs=run.task.epochs,
        on_finished=on_finished,
        verbose=verbose,
    )
    # repeats do not count towards the study's number of trials
    n_trials = study.info().n_ran() + len(run.repeats)
    job = SearchJob(run.session, run.task, n_trials, no_estimate, lambda: study.rescued_url() is not None, view)
    interrupted = run_trials([job], run.workers, view, _SAME_COMMAND)
    return interrupted or any(
        _as_repeat(r) in run.repeats for r in study.info().repeats if r.state == TrialState.INTERRUPTED
    )


def _same_data(info: StudyInfo, recipe: Recipe, options: ConfirmOptions, say: Say) -> DetectionData:
    """Load the study's dataset. Raises DataError if it is missing, faulty or visibly another one."""
    if recipe.data != "demo" and not Path(recipe.data).is_dir():
        raise DataError(
            f"the data of study {info.name!r} must be there to train again, and {recipe.data} is no folder; "
            f"say with --data where it is now"
        )
    data = open_data(recipe, options.home, skip_bad=options.skip_bad, say=say)
    found, known = dataset_inputs(data), dict(info.inputs)
    differs = [f"{key} {found[key]}, in the search {known[key]}" for key in known if found[key] != known[key]]
    if differs:
        raise DataError(
            f"the data in {recipe.data} is not that of study {info.name!r}: {'; '.join(differs)}; give the same data"
            f"{'' if options.skip_bad else ', and --skip-bad if the search had it'}"
        )
    return data
