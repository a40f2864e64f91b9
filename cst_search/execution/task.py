"""The work of a worker: the part that all trials of a search share, and the execution of one trial."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.data.disk_cache import Cache
from cst_search.trial.checkpoint_folder import Checkpoints


@dataclass(frozen=True)
class Task:
    """Everything that the trials of one search share; it is sent to every worker.

    Attributes:
        epochs: number of passes over the training split.
        device: ``cpu``, ``cuda`` or ``auto``.
        threads: CPU threads per trial; 0: torch's default.
        memory_limit_bytes: memory limit of each trial, as `trial.run.run_trial` takes it; None: no limit.
        cache: disk cache of images and feature maps that the trials on one machine share; None: no cache.
        rungs: epochs after which the study may stop a trial, as `trial.run.run_trial` takes them.
        checkpoints: checkpoints of the study; None: none are kept, and a resumed trial starts from scratch.
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
        """Return the checkpoint file of a trial, or None if checkpoints are not kept."""
        return None if self.checkpoints is None else self.checkpoints.path(trial)


def execute(
    task: Task,
    trial: int,
    config: Mapping[str, Any],
    report: Callable[[dict[str, Any]], object],
    recorded: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Any]:
    """Run one trial, from its checkpoint if it has one. An error in the trial becomes a result with a reason.

    Args:
        recorded: its history so far in the study, which the checkpoint must agree with.
    """
    import torch

    from cst_search.trial.cost import with_former_recompute
    from cst_search.trial.device import choose_device
    from cst_search.trial.isolated_process import fault, run_in_own_process
    from cst_search.trial.memory_limit import CPU_IS_LIMITED
    from cst_search.trial.run import run_trial

    limit = task.memory_limit_bytes
    options: dict[str, Any] = {
        "epochs": task.epochs, "memory_limit_bytes": limit, "report": report,
        "cache": task.cache, "rungs": task.rungs, "checkpoint": task.checkpoint(trial),
        "recorded": recorded,
    }  # fmt: skip
    try:
        recipe = task.recipe.configured(with_former_recompute(config, task.recipe))
        if limit is not None and CPU_IS_LIMITED and choose_device(task.device).type == "cpu":
            return run_in_own_process(recipe, task.data, threads=task.threads, **options)
        if task.threads:
            torch.set_num_threads(task.threads)
        return run_trial(recipe, task.data, device=task.device, **options).to_dict()
    except Exception as error:
        return fault(error)
