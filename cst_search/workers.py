"""Who runs the trials: a seam with two forms, `InProcess` here and `Ray` in `search.py`, under one contract.

The contract: take suggestions from the study until it has ``n_trials`` that ran, there are none left, or ``stop()``;
tell the study how each ended; and say on ``events`` what happens. A fault of one trial is a record, never the end.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from cst_search.cache import Cache
from cst_search.data import DetectionData
from cst_search.recipe import Recipe

if TYPE_CHECKING:  # every worker imports this module: not for the sake of a name
    from cst_search.memory import Estimate
    from cst_search.results import TrialRecord
    from cst_search.suggest import Study, Suggestion


@dataclass(frozen=True)
class Task:
    """What every trial of a search shares; it travels to the workers.

    Attributes:
        epochs: passes over the training split.
        device: ``cpu``, ``cuda`` or ``auto``.
        threads: CPU threads of one trial; 0: torch's default.
        memory_limit_bytes: what each trial is held to, as `trial.run_trial` takes it; None: not at all.
        cache: where the trials of a node share images and maps; None: nowhere.
    """

    recipe: Recipe
    data: DetectionData
    epochs: int
    device: str
    threads: int
    memory_limit_bytes: int | None = None
    cache: Cache | None = None


class Events(Protocol):
    """What a launch wants to hear."""

    def started(self, suggestion: Suggestion) -> None: ...

    def progressed(self, trial: int, entry: Mapping[str, Any]) -> None: ...

    def finished(self, record: TrialRecord) -> None: ...


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


def execute(task: Task, config: Mapping[str, Any], report: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Run one trial; whatever goes wrong in it becomes a result with a reason."""
    import torch

    from cst_search.memory_limit import CPU_IS_LIMITED
    from cst_search.trial import choose_device, run_trial
    from cst_search.trial_process import fault, run_in_own_process

    limit = task.memory_limit_bytes
    try:
        recipe = task.recipe.configured(config)
        if limit is not None and CPU_IS_LIMITED and choose_device(task.device).type == "cpu":
            return run_in_own_process(
                recipe, task.data, epochs=task.epochs, threads=task.threads, memory_limit_bytes=limit, cache=task.cache,
                report=report,
            )  # fmt: skip
        if task.threads:
            torch.set_num_threads(task.threads)
        return run_trial(
            recipe, task.data, epochs=task.epochs, device=task.device, report=report, memory_limit_bytes=limit,
            cache=task.cache,
        ).to_dict()  # fmt: skip
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
        from cst_search import trial_process

        try:
            for _ in range(n_trials - study.info().n_ran()):
                suggestion = None if stop() else study.ask(estimate)
                if suggestion is None:
                    return
                events.started(suggestion)
                number = suggestion.trial
                result = execute(task, suggestion.config, lambda entry, number=number: events.progressed(number, entry))  # type: ignore[misc]
                events.finished(study.tell(number, result))
        finally:
            trial_process.stop()
