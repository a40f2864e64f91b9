"""The front and the hypervolume of a study, brought up to date as its trials end."""

from __future__ import annotations

from collections.abc import Sequence

from cst_search.study import pareto
from cst_search.study.records import StudyInfo, TrialRecord


class Tally:
    """What a launch shows of a study while its trials end, brought up to date by the new ones alone.

    Attributes:
        front: numbers of the trials on the front, and the hypervolume.
        n_rejected: trials that the prediction rejected.
        volumes: (trial, the hypervolume of all trials up to it), in the order of numbers. A trial that is at work has
            none yet, and those after it wait for it. One that was stopped and went on comes late: the last is given
            again then, if it grew.
    """

    def __init__(self, info: StudyInfo) -> None:
        """Args: the study as it was before them, which need not have been read again since; its repeats count."""
        self._values_of, objectives, reference = info.values_of, info.objectives, info.reference
        self.front = pareto.GrowingFront(objectives, reference)
        self.n_rejected = 0
        self.volumes: list[tuple[int, float]] = []
        self._by_number = pareto.GrowingFront(objectives, reference)
        self._waiting: dict[int, TrialRecord] = {}

    def add(self, finished: Sequence[TrialRecord], first_running: int) -> None:
        """Args: what was not added before, in any order, and the number below which no trial is at work."""
        for record in finished:
            if record.repeat_of is None:
                self.n_rejected += not record.ran
                self.front.add(record.trial, self._values_of(record))
                self._waiting[record.trial] = record
        for number in sorted(number for number in self._waiting if number < first_running):
            self._by_number.add(number, self._values_of(self._waiting.pop(number)))
            last = self.volumes[-1][0] if self.volumes else number
            self.volumes.append((max(number, last), self._by_number.volume))
