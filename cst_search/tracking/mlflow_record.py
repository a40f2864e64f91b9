"""Record a launch in MLflow: start its run, add finished trials, finish with files; `sync` backfills the rest.

Each study is an experiment. Each launch has a parent run with one child run per trial; likewise each confirmation, with
one per repeat. All calls are queued on a thread: a slow or absent server delays nothing, and the next call delivers
what an earlier one could not.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cst_search.study.records import LaunchRecord, StudyInfo, TrialRecord
from cst_search.study.tally import Tally
from cst_search.tracking.connection import CallQueue
from cst_search.tracking.mlflow_mirror import MlflowMirror, study_state


class MlflowRecord:
    """`MlflowMirror` behind a queue: calls return at once, and the first failure becomes one line on ``warn``.

    Args:
        uri: address of a tracking server or a database.
        artifact_root: folder for artifacts if ``uri`` is a database; a server has its own.
        warn: receives the line that reports a failure.
        beside: record of another study in the same launch, whose queue this one uses too: a database has one writer at
            a time. Closing one of them closes the queue of all.
    """

    def __init__(
        self, uri: str, artifact_root: Path, warn: Callable[[str], None], beside: MlflowRecord | None = None
    ) -> None:
        self._mirror = MlflowMirror(uri, artifact_root)
        self._calls: CallQueue = CallQueue(uri, warn) if beside is None else beside._calls
        self._calls.on_failure.append(self._mirror.forget)
        self._n_volumes = 0
        self._launch: str | None = None

    def start(self, info: StudyInfo, launch: LaunchRecord) -> None:
        """Create the run of this launch and the views of the experiment."""
        self._launch = launch.id
        self._calls.studies.add(info.name)
        self._calls.put(lambda: self._mirror.start(info, launch))

    def add(self, study: str, finished: Sequence[TrialRecord], tally: Tally) -> None:
        """Add the trials of this launch that finished since the last call, and their effect on the front.

        Other running launches add their own trials; `sync` adds those of launches that ended early.
        """
        front, volumes = set(tally.front.members), tally.volumes[self._n_volumes :]
        self._n_volumes += len(volumes)
        own = [record for record in finished if record.launch == self._launch]
        self._calls.put(lambda: self._mirror.add(study, own, front, volumes))

    def sync(self, info: StudyInfo, artifacts: Mapping[str, list[Path]] | None = None) -> None:
        """Backfill the whole study in MLflow, except for other running launches.

        Can be repeated: existing entries stay as they are.

        Args:
            artifacts: files by folder, for the run of the last launch if it has not ended yet.
        """
        self._calls.studies.add(info.name)
        finished, front, volumes = study_state(info)
        self._calls.put(lambda: self._mirror.sync(info, finished, front, volumes, artifacts or {}))

    def finish(self, info: StudyInfo, artifacts: Mapping[str, list[Path]], status: str) -> None:
        """End the run of this launch, with files by folder and the front as its description.

        Args:
            status: MLflow's status, e.g. ``FINISHED`` or ``KILLED``.
        """
        self._calls.put(lambda: self._mirror.finish(info, artifacts, status))

    def training(self, study: str, origin: Mapping[str, Any], result: Mapping[str, Any], files: list[Path]) -> None:
        """Add the run of a full training, with its files.

        Args:
            origin: dict with the ``trial`` and ``config`` that the training comes from.
            result: result of the training, as `TrialResult.to_dict`.
        """
        key = uuid.uuid4().hex  # a second attempt finds the run of the first by it
        self._calls.put(lambda: self._mirror.training(study, key, origin, result, files))

    def close(self, timeout_seconds: float = 60.0) -> bool:
        """Wait for the queued calls. Returns True if all of them were delivered in time and none failed."""
        return self._calls.close(timeout_seconds)
