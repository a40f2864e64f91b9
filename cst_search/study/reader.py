"""Incremental reader of a study's trials, written by any launch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import optuna

from cst_search.study.fast_reads import StoredTrial, read_trials
from cst_search.study.records import Budget, TrialRecord
from cst_search.study.storage import Storage, trials_in_memory
from cst_search.study.stored_form import read_of
from cst_search.study.trial_attributes import Progress, Suggested, check_attributes, trial_record


class TrialReader:
    """Trials of one study, as last read. Finished trials never change and are read once.

    Args:
        full_epochs: length of a search trial, in epochs.
        budget: the study's.

    Attributes:
        finished: records of finished trials and repeats, in the order in which they were read.
        unfinished: {number: trial}. A trial without `Suggested` was asked for, but its configuration is not known yet.
        n_trials: number of trials in Optuna's study, of any kind.
        n_ran: number of finished trials of the search that used a worker.
    """

    def __init__(self, study: optuna.Study, storage: Storage | None, full_epochs: int, budget: Budget) -> None:
        self._study, self._storage, self._full_epochs, self._budget = study, storage, full_epochs, budget
        self.restart()

    def restart(self, on_read: Callable[[StoredTrial], None] | None = None) -> None:
        """Forget all trials; the next `read` reads the whole study.

        Args:
            on_read: called from now on with each trial that is read; once for a finished trial.
        """
        self._on_read = on_read
        self.finished: list[TrialRecord] = []
        self.unfinished: dict[int, StoredTrial] = {}
        self._suggested: dict[int, Suggested] = {}  # of the unfinished ones
        self._at_work: set[int] = set()  # of those, trials of the search that were not stopped
        self.n_trials = self.n_ran = 0
        self._last_id = -1
        self._held: set[int] = set()

    @property
    def is_followed(self) -> bool:
        """True if each trial that is read is passed on; see `restart`."""
        return self._on_read is not None

    def hold(self, number: int) -> None:
        """Mark an unfinished trial as changed by this process only: `read` does not read it again."""
        self._held.add(number)

    def release(self, number: int) -> None:
        """Undo `hold`."""
        self._held.discard(number)

    def read(self, number: int | None = None, *, held: bool = False) -> None:
        """Read trials created since the last call, and those that had not finished.

        Args:
            number: trial to read even if it is held.
            held: read all that are held.
        """
        again = [t.trial_id for n, t in self.unfinished.items() if held or n not in self._held or n == number]
        for trial in self._stored(again):
            with read_of(f"study {self._study.study_name!r}, trial {trial.number}"):
                self._take(trial)

    def _take(self, trial: StoredTrial) -> None:
        self._last_id = max(self._last_id, trial.trial_id)
        self.n_trials = max(self.n_trials, trial.number + 1)
        if self._on_read is not None:
            self._on_read(trial)
        suggested = Suggested.of(trial.user_attrs)
        self._at_work.discard(trial.number)
        if not trial.is_finished:
            check_attributes(trial.user_attrs)
            self.unfinished[trial.number] = trial
            if suggested is not None:
                self._suggested[trial.number] = suggested
            is_repeat = suggested is not None and suggested.repeat is not None
            if not is_repeat and not Progress.of(trial.user_attrs).stopped:
                self._at_work.add(trial.number)
            return
        self.unfinished.pop(trial.number, None)
        self._suggested.pop(trial.number, None)
        if suggested is not None:
            record = trial_record(trial, set(), self._full_epochs, self._budget)
            self.finished.append(record)
            self.n_ran += record.ran and record.repeat_of is None

    def _stored(self, again: Collection[int]) -> list[StoredTrial]:
        last_id = self._last_id
        if self._storage is None:
            return trials_in_memory(self._study, last_id, again)
        engine, name = self._storage.engine, self._study.study_name
        with read_of(f"study {name!r}"):
            return self._storage.patiently(lambda: read_trials(engine, name, last_id, again))

    def record(self, number: int, live_launches: Callable[[], Collection[str]]) -> TrialRecord:
        """Return the record of one trial as last read."""
        if number in self.unfinished:
            return trial_record(self.unfinished[number], live_launches(), self._full_epochs, self._budget)
        # the requested trial has usually just ended
        return next(record for record in reversed(self.finished) if record.trial == number)

    def records(self, live_launches: Callable[[], Collection[str]]) -> Sequence[TrialRecord]:
        """Return records of all trials and repeats as last read, by number."""
        live = live_launches() if self.unfinished else set()
        asked = [self.unfinished[number] for number in self._suggested]
        unfinished = [trial_record(trial, live, self._full_epochs, self._budget) for trial in asked]
        return sorted([*self.finished, *unfinished], key=lambda record: record.trial)

    def suggested(self) -> Mapping[int, Suggested]:
        """Return {number: `Suggested`} of the unfinished trials whose configuration is known."""
        return self._suggested

    def suggested_of(self, number: int) -> Suggested | None:
        """Return `Suggested` of an unfinished trial, or None if it has finished or its configuration is not known."""
        return self._suggested.get(number)

    def first_running(self) -> int:
        """Return the number below which no trial is running, as last read: all have ended or were stopped.

        Repeats do not count: a launch does not resume what a confirmation left.
        """
        return min(self._at_work, default=self.n_trials)
