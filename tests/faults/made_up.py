"""The command line with trials that are made up: `python made_up.py FOLDER SECONDS launch ...`.

All is real but the run of a trial, which is replaced wherever the data arrives: it takes SECONDS an epoch, reports as a
real one does, keeps a checkpoint, and writes a line into FOLDER/notes.jsonl for every epoch: who trained what, when. No
torch is needed for that, so that Ray's workers begin 3 s earlier.
A file FOLDER/hang has every trial sleep in its next epoch, deaf to all but signals.
"""

from __future__ import annotations

import functools
import json
import os
import select
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cst_search.data.dataset import DetectionData

if TYPE_CHECKING:
    from cst_search.execution.task import Task


def run_trial(
    folder: str, seconds: float, task: Task, trial: int, config: Mapping[str, Any],
    report: Callable[[dict[str, Any]], object], recorded: Any = (),
) -> dict[str, Any]:  # fmt: skip
    """Takes the place of `execution.task.execute`."""
    from cst_search.trial.result import TrialResult

    recipe, epochs, checkpoint = task.recipe.configured(config), task.epochs, task.checkpoint(trial)
    begun = time.monotonic()
    history: list[dict[str, Any]] = []
    if checkpoint is not None and checkpoint.exists():
        history = json.loads(checkpoint.read_text())
    resumed = len(history)
    for epoch in range(len(history) + 1, epochs + 1):
        while Path(folder, "hang").exists():
            time.sleep(0.5)
        select.select([], [], [], seconds)  # time.sleep fails under libfaketime
        score = (hash((recipe.lr, recipe.batch_size)) % 1000) / 1000 * epoch / epochs
        entry = {"epoch": epoch, "loss": 1 / epoch, "images_per_second": 1.0, "map": score, "map50": score}
        history.append(entry)
        with open(Path(folder, "notes.jsonl"), "a") as notes:
            notes.write(json.dumps({"pid": os.getpid(), "lr": recipe.lr, "epoch": epoch, "at": time.time()}) + "\n")
        if checkpoint is not None and epoch in task.rungs:
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            checkpoint.write_text(json.dumps(history))
        if report(entry) is False:
            return TrialResult("stopped", 1, 1, epochs=epoch, history=history).to_dict()
    return TrialResult(
        "complete", 1, 1, map=score, map50=score, loss=1.0, seconds=time.monotonic() - begun, epochs=epochs,
        history=history, resumed_epochs=resumed,
    ).to_dict()  # fmt: skip


def arrive(folder: str, seconds: float, values: dict[str, Any]) -> DetectionData:
    """Unpickles the data, and puts the made-up trial in the place of the real one in the process where that happens.

    This is `__main__`, whose functions Ray sends by value.
    """
    import importlib
    import sys

    importlib.import_module("cst_search.execution.workers")
    made_up = functools.partial(run_trial, folder, seconds)
    for name in ("task", "workers", "ray_tune"):  # who has the real one, or will have it
        if (module := sys.modules.get(f"cst_search.execution.{name}")) is not None:
            module.execute = made_up  # type: ignore[attr-defined]
    return DetectionData(**values)


class Carrier(DetectionData):
    """The data on its way to the workers: what changes the trial there travels with it."""

    notes_folder, pace = "", 0.0  # other names than its fields have

    def __reduce__(self) -> Any:
        return arrive, (self.notes_folder, self.pace, vars(self))


def main() -> None:
    from cst_search import cli, waiting
    from cst_search.commands import confirm, study_setup
    from cst_search.execution import node_check
    from cst_search.execution import ray_cluster as cluster
    from cst_search.study import launch_registry, storage

    cluster._GONE_SECONDS = 10.0
    waiting.SAY_SECONDS = float(os.environ.get("SAY_SECONDS", waiting.SAY_SECONDS))
    storage.DEAD_SECONDS, launch_registry.BEAT_SECONDS = 5.0, 1.0

    Carrier.notes_folder, Carrier.pace = sys.argv[1], float(sys.argv[2])
    sys.argv[1:] = sys.argv[3:]

    def carried(load: Callable[..., DetectionData], *arguments: Any, **more: Any) -> DetectionData:
        values = {f.name: getattr(data, f.name) for data in [load(*arguments, **more)] for f in fields(DetectionData)}
        arrive(Carrier.notes_folder, Carrier.pace, values)  # for trials in this process
        return Carrier(**values)

    study_setup.load_dataset = functools.partial(carried, study_setup.load_dataset)
    confirm.open_data = functools.partial(carried, confirm.open_data)
    requirements_of = node_check.requirements_of
    # nor do the nodes of a cluster import torch to look at its version
    node_check.requirements_of = lambda *of, **more: replace(requirements_of(*of, **more), versions=())
    cli.run()  # as the program, which does not take Ray apart while it starts


if __name__ == "__main__":
    main()
