"""Who runs the trials: a seam with two forms, `InProcess` here and `Ray` in `search.py`, under one contract.

The contract: take suggestions from the study until it has ``n_trials`` that ran, there are none left, or ``stop()``;
tell the study what each has after every epoch and how it ended; and say on ``events`` what happens. A fault of one
trial is a record, never the end. A trial that the study stops at a rung may be handed out again, to go on from its
checkpoint. Both forms leave all of that to a `Supply`, and only see to it that trials run.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from cst_search.config.recipe import Recipe
from cst_search.data.coco import DetectionData
from cst_search.data.disk_cache import Cache
from cst_search.trial.checkpoints import Checkpoints
from cst_search.trial.outcome import Outcome

if TYPE_CHECKING:  # every worker imports this module: not for the sake of a name
    from cst_search.memory.estimate import Estimate
    from cst_search.search.session import Study, Suggestion
    from cst_search.study.records import TrialRecord


@dataclass(frozen=True)
class Task:
    """What every trial of a search shares; it travels to the workers.

    Attributes:
        epochs: passes over the training split.
        device: ``cpu``, ``cuda`` or ``auto``.
        threads: CPU threads of one trial; 0: torch's default.
        memory_limit_bytes: what each trial is held to, as `trial.run_trial` takes it; None: not at all.
        cache: where the trials of a node share images and maps; None: nowhere.
        rungs: epochs after which the study may stop a trial, as `trial.run_trial` takes them.
        checkpoints: of the trials; None: they are not kept, and a trial that is taken up again begins anew.
    """

    recipe: Recipe
    data: DetectionData
    epochs: int
    device: str
    threads: int
    memory_limit_bytes: int | None = None
    cache: Cache | None = None
    rungs: tuple[int, ...] = ()
    checkpoints: Checkpoints | None = None

    def checkpoint(self, trial: int) -> Path | None:
        return None if self.checkpoints is None else self.checkpoints.path(trial)


class Events(Protocol):
    """What a launch wants to hear. A trial that is stopped has finished, and starts again when it is promoted."""

    def started(self, suggestion: Suggestion) -> None: ...

    def progressed(self, trial: int, entry: Mapping[str, Any]) -> None: ...

    def finished(self, record: TrialRecord) -> None: ...

    def left(self, trial: int, why: str) -> None:
        """A trial is no longer with this launch, and has not ended."""


class Workers(Protocol):
    def prepare(self) -> None:
        """Begin to start what takes its time, and return at once. `run` does it where this was not called."""

    def run(
        self,
        study: Study,
        task: Task,
        *,
        n_trials: int,
        estimate: Callable[[dict[str, Any]], Estimate],
        stop: Callable[[], bool],
        events: Events,
    ) -> None: ...


class Supply:
    """What a search still has to hand out, and the way of what comes back, for both forms of workers."""

    def __init__(
        self,
        study: Study,
        task: Task,
        *,
        n_trials: int,
        estimate: Callable[[dict[str, Any]], Estimate],
        stop: Callable[[], bool],
        events: Events,
    ) -> None:
        self.study, self.task, self.estimate, self.stop, self.events = study, task, estimate, stop, events
        self.n_trials = n_trials
        self.has_more = study.info().n_ran() < n_trials

    def next(self) -> Suggestion | None:
        """What to run now: a trial that is to be promoted, else a configuration; None: nothing, perhaps yet."""
        if self.stop():
            return None
        suggestion = self.study.promote()
        if suggestion is None and (self.has_more or self.study.has_returned()):
            suggestion = self.study.ask(self.estimate, self.n_trials)
            self.has_more = suggestion is not None
            if suggestion is not None and not suggestion.again:
                self._drop(suggestion.trial)  # of another study that had this name
        if suggestion is not None:
            self.events.started(suggestion)
        return suggestion

    def progressed(self, trial: int, entry: Mapping[str, Any]) -> bool:
        """An epoch of a trial is done. False: it is to stop."""
        goes_on = self.study.progress(trial, entry)
        if self.task.checkpoints is not None:
            self.task.checkpoints.trim()
        self.events.progressed(trial, entry)
        return goes_on

    def ended(self, trial: int, result: Mapping[str, Any]) -> None:
        record = self.study.tell(trial, result)
        if record is None:
            self.events.left(trial, "another launch took it up, for which this one seemed dead; it counts there")
            return
        if not record.waits:
            self._drop(trial)
        self.events.finished(record)

    def lost(self, trial: int) -> None:
        """A trial's worker ended without a result: killed, out of host memory, or its node is gone."""
        if self.study.give_back(trial):
            self.events.left(trial, "its worker process ended; it is tried again, once")
        else:
            reason = "its worker process ended twice (killed, or out of host memory)"
            self.ended(trial, {"outcome": Outcome.FAILED, "reason": reason})

    def close(self) -> None:
        """At the end of a search nobody is promoted any more. One that was cut off has not come to its end."""
        if not self.stop() and not self.has_more:
            for trial in self.study.close_stopped():
                self._drop(trial)

    def _drop(self, trial: int) -> None:
        if self.task.checkpoints is not None:
            self.task.checkpoints.drop(trial)


def execute(
    task: Task, trial: int, config: Mapping[str, Any], report: Callable[[dict[str, Any]], object]
) -> dict[str, Any]:
    """Run one trial, from its checkpoint if it has one; whatever goes wrong in it becomes a result with a reason."""
    import torch

    from cst_search.trial.isolated_process import fault, run_in_own_process
    from cst_search.trial.memory_limit import CPU_IS_LIMITED
    from cst_search.trial.run import choose_device, run_trial

    limit = task.memory_limit_bytes
    options: dict[str, Any] = {
        "epochs": task.epochs, "memory_limit_bytes": limit, "report": report,
        "cache": task.cache, "rungs": task.rungs, "checkpoint": task.checkpoint(trial),
    }  # fmt: skip
    try:
        recipe = task.recipe.configured(config)
        if limit is not None and CPU_IS_LIMITED and choose_device(task.device).type == "cpu":
            return run_in_own_process(recipe, task.data, threads=task.threads, **options)
        if task.threads:
            torch.set_num_threads(task.threads)
        return run_trial(recipe, task.data, device=task.device, **options).to_dict()
    except Exception as error:
        return fault(error)


class InProcess:
    """Runs trials one after the other in this process. For tests, debugging, and where Ray cannot run."""

    def prepare(self) -> None:
        """Nothing to start."""

    def run(
        self,
        study: Study,
        task: Task,
        *,
        n_trials: int,
        estimate: Callable[[dict[str, Any]], Estimate],
        stop: Callable[[], bool],
        events: Events,
    ) -> None:
        from cst_search.trial import isolated_process as trial_process

        supply = Supply(study, task, n_trials=n_trials, estimate=estimate, stop=stop, events=events)
        try:
            while (suggestion := supply.next()) is not None:
                trial = suggestion.trial
                supply.ended(trial, execute(task, trial, suggestion.config, partial(supply.progressed, trial)))
            supply.close()
        finally:
            trial_process.stop()
