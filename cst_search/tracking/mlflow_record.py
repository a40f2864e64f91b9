"""What a launch does with MLflow: start its run, add finished trials, finish with files; `sync` brings the rest.

Experiment = study. One parent run per launch, one child run per trial; likewise per confirmation and per repeat. All
calls are queued for a thread of their own: a slow or absent server delays nothing, and the next call delivers what an
earlier one could not.
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
    """The mirror behind a queue: calls return at once; the first failure becomes one line on ``warn``.

    Args:
        uri: a tracking server or a database.
        artifact_root: folder for artifacts when ``uri`` is a database; a server has its own.
        warn: takes the line that reports a failure.
    """

    def __init__(self, uri: str, artifact_root: Path, warn: Callable[[str], None]) -> None:
        self._mirror = MlflowMirror(uri, artifact_root)
        self._calls = CallQueue(uri, warn, on_failure=self._mirror.forget)
        self._n_volumes = 0
        self._launch: str | None = None

    def start(self, info: StudyInfo, launch: LaunchRecord) -> None:
        """Make the run of this launch and the views of the experiment."""
        self._launch = launch.id
        self._calls.put(lambda: self._mirror.start(info, launch))

    def add(self, study: str, finished: Sequence[TrialRecord], tally: Tally) -> None:
        """Add the trials of this launch that finished since the last call, and their effect on the front.

        Another launch that is running adds its own trials; `sync` brings those of launches that ended early.
        """
        front, volumes = set(tally.front.members), tally.volumes[self._n_volumes :]
        self._n_volumes += len(volumes)
        own = [record for record in finished if record.launch == self._launch]
        self._calls.put(lambda: self._mirror.add(study, own, front, volumes))

    def sync(self, info: StudyInfo, artifacts: Mapping[str, list[Path]] | None = None) -> None:
        """Backfill what MLflow lacks of the whole study, except for other launches that are running.

        May be repeated at will: what is there already stays as it is.

        Args:
            artifacts: files by folder, for the run of the last launch if that run has not ended yet.
        """
        finished, front, volumes = study_state(info)
        self._calls.put(lambda: self._mirror.sync(info, finished, front, volumes, artifacts or {}))

    def finish(self, info: StudyInfo, artifacts: Mapping[str, list[Path]], status: str) -> None:
        """End the run of this launch, with files by folder and the front as its description.

        Args:
            status: MLflow's word, such as ``FINISHED`` or ``KILLED``.
        """
        self._calls.put(lambda: self._mirror.finish(info, artifacts, status))

    def training(self, study: str, origin: Mapping[str, Any], result: Mapping[str, Any], files: list[Path]) -> None:
        """Add the run of a full training, with its files.

        Args:
            origin: ``trial`` and ``config`` that the training comes from.
            result: as `TrialResult.to_dict`.
        """
        key = uuid.uuid4().hex  # by which a second try finds the run of the first
        self._calls.put(lambda: self._mirror.training(study, key, origin, result, files))

    def close(self, timeout_seconds: float = 60.0) -> bool:
        """Wait for the queued calls; return whether all of them were delivered in time and none has failed."""
        return self._calls.close(timeout_seconds)
