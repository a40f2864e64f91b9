"""Run the trials of a launch or a confirmation, and update MLflow and the display as each one finishes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cst_search.commands.options import RunOptions
from cst_search.commands.output import Say
from cst_search.commands.worker_setup import WorkerSetup
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.data.disk_cache import Cache
from cst_search.errors import CstSearchError, RunError
from cst_search.execution.interrupt import is_ending
from cst_search.execution.task import Task
from cst_search.execution.workers import SearchJob
from cst_search.report.progress import Standing, View
from cst_search.study.study import Study
from cst_search.study.tally import Tally
from cst_search.trial.checkpoint_folder import Checkpoints

if TYPE_CHECKING:
    from cst_search.tracking.mlflow_record import MlflowRecord


@dataclass(frozen=True)
class OpenRecord:
    """The record of a launch in MLflow, with its address."""

    mlflow: MlflowRecord
    uri: str


def open_record(options: RunOptions, say: Say, beside: OpenRecord | None = None) -> OpenRecord:
    """Start recording a study to MLflow in the background; ``beside``: the record of another study in this launch."""
    from cst_search.tracking.connection import default_tracking_uri  # mlflow takes seconds to import
    from cst_search.tracking.mlflow_record import MlflowRecord

    uri = options.tracking_uri or default_tracking_uri(options.home)
    first = None if beside is None else beside.mlflow
    return OpenRecord(MlflowRecord(uri, options.home / "artifacts", warn=say, beside=first), uri)


def make_task(
    recipe: Recipe, data: DetectionData, epochs: int, workers: WorkerSetup, cache: Cache | None,
    checkpoints: Checkpoints, rungs: tuple[int, ...] = (),
) -> Task:  # fmt: skip
    """Return what all trials of a launch share, in the form that is sent to the workers."""
    machines = workers.machines
    return Task(
        recipe, data, epochs, str(machines.device), workers.threads, machines.limit_bytes, cache, rungs, checkpoints
    )


def run_trials(jobs: Sequence[SearchJob], workers: WorkerSetup, view: View, go_on: str) -> bool:
    """Run jobs in their registered launches, then end the launches. Returns True if Ctrl-C ended them.

    Args:
        go_on: command that continues the search, for the message when the head of the cluster, or Ray here, is gone.
    """
    interrupted = False
    workers.workers.go_on, workers.workers.say = go_on, view.say
    if workers.machines.cluster is not None:
        workers.machines.cluster.watch(go_on)
    try:
        with view:
            workers.workers.run(*jobs)
    except KeyboardInterrupt:
        interrupted = True
    except BaseException:
        for job in jobs:
            with suppress(CstSearchError):  # the storage itself may be gone
                job.session.end_launch()
        raise
    for job in jobs:
        job.session.end_launch()
    return interrupted or is_ending.is_set()  # Ray Tune ends its loop and raises nothing


def check_still_there(study: Study, go_on: Callable[[str], str]) -> None:
    """Raise RunError if the file of the study was deleted or replaced while this launch ran.

    Args:
        go_on: returns the command that continues, by the URL of the copy.
    """
    url = study.rescued_url()
    if url is not None:
        raise RunError(
            f"the file of the studies was deleted or replaced during the search, which therefore ended early; "
            f"finished trials are in {url}; continue with:  {go_on(url)}"
        )


def follow(study: Study, record: MlflowRecord) -> Callable[[], Standing]:
    """Return the callback for finished trials: it logs new trials to MLflow and returns the figures that `View` shows.

    It relies on `Study.finished`, which reads only new trials: the cost per trial must not grow with their number.
    """
    tally, n_taken = Tally(study.info()), 0

    def on_finished() -> Standing:
        nonlocal n_taken
        new = study.finished(since=n_taken)
        n_taken += len(new)
        tally.add(new, study.first_running())
        record.add(study.name, new, tally)
        return Standing(tally.front.volume, tally.n_rejected, frozenset(tally.front.members))

    return on_finished
