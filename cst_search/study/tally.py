"""Running front and hypervolume of a study, updated as its trials end."""

from __future__ import annotations

from collections.abc import Sequence

from cst_search.study import pareto
from cst_search.study.records import StudyInfo, TrialRecord


class Tally:
    """Incremental front and hypervolume that a launch displays; only new trials are added.

    Attributes:
        front: trial numbers on the front, and the hypervolume.
        n_rejected: number of trials rejected by predicted cost.
        volumes: (trial, hypervolume of all trials up to it), by trial number. A running trial has no entry yet, and
            trials after it wait for it. A trial that was stopped and promoted comes late: the last entry's number is
            then repeated with the new volume.
    """

    def __init__(self, info: StudyInfo) -> None:
        """Args: the study as it was before the trials to add; it need not be reread, and its repeats count."""
        self._values_of, objectives, reference = info.values_of, info.objectives, info.reference
        self.front = pareto.GrowingFront(objectives, reference)
        self.n_rejected = 0
        self.volumes: list[tuple[int, float]] = []
        self._by_number = pareto.GrowingFront(objectives, reference)
        self._waiting: dict[int, TrialRecord] = {}

    def add(self, finished: Sequence[TrialRecord], first_running: int) -> None:
        """Add records that were not added before, in any order, and the number below which no trial is running."""
        for record in finished:
            if record.repeat_of is None:
                self.n_rejected += not record.ran
                self.front.add(record.trial, self._values_of(record))
                self._waiting[record.trial] = record
        for number in sorted(number for number in self._waiting if number < first_running):
            self._by_number.add(number, self._values_of(self._waiting.pop(number)))
            last = self.volumes[-1][0] if self.volumes else number
            self.volumes.append((max(number, last), self._by_number.volume))
