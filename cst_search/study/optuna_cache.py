"""Optuna's cache in front of a storage, without rereading trials that only this process changes."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import optuna
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage, _StudyInfo
from optuna.trial import FrozenTrial, TrialState

# what changes a trial; its id is the first argument
_WRITES = (
    "set_trial_param", "set_trial_state_values", "set_trial_intermediate_value", "set_trial_user_attr",
    "set_trial_system_attr",
)  # fmt: skip


class OptunaCache(_CachedStorage):
    """Optuna's cache, for hundreds of concurrent trials.

    Optuna's own cache rereads all unfinished trials before each suggestion, a millisecond each. This one rereads only
    those that have changed here, or that another process may have changed.
    """

    def __init__(self, backend: RDBStorage) -> None:
        super().__init__(backend)
        self._is_read: dict[int, bool] = {}  # by id of the trials that are held: since this process changed it
        self._newest: dict[int, int] = {}  # by study: the greatest id that was read; ids grow within a study

    def hold(self, trial_id: int) -> None:
        """Mark an unfinished trial as changed by this process only."""
        self._is_read[trial_id] = False

    def release(self, trial_id: int) -> None:
        """Undo `hold`."""
        self._is_read.pop(trial_id, None)

    def get_all_trials(
        self, study_id: int, deepcopy: bool = True, states: Container[TrialState] | None = None
    ) -> list[FrozenTrial]:
        """Return the trials in some states. Optuna calls this for its queue before each suggestion, over all trials."""
        if states is None or deepcopy or any(state in states for state in TrialState if state.is_finished()):
            return super().get_all_trials(study_id, deepcopy, states)
        self._read_trials_from_remote_storage(study_id)
        with self._lock:
            study = self._studies[study_id]
            numbers = (self._trial_id_to_study_id_and_number[trial_id][1] for trial_id in study.unfinished_trial_ids)
            return [trial for number in sorted(numbers) if (trial := study.trials[number]).state in states]

    def _read_trials_from_remote_storage(self, study_id: int) -> None:
        with self._lock:
            study = self._studies.setdefault(study_id, _StudyInfo())
            again = {trial_id for trial_id in study.unfinished_trial_ids if not self._is_read.get(trial_id)}
            newest = self._newest.get(study_id, -1)
            trials = self._backend._get_trials(study_id, None, again, newest)
            self._add_trials_to_cache(study_id, trials)
            for trial in trials:
                self._newest[study_id] = max(self._newest.get(study_id, -1), trial._trial_id)
                if trial.state.is_finished():
                    study.unfinished_trial_ids.discard(trial._trial_id)
                    continue
                study.unfinished_trial_ids.add(trial._trial_id)
                if trial._trial_id in self._is_read:
                    self._is_read[trial._trial_id] = True


def _noted(name: str) -> Any:
    write = getattr(_CachedStorage, name)

    def call(self: OptunaCache, trial_id: int, *args: Any, **kwargs: Any) -> Any:
        try:
            return write(self, trial_id, *args, **kwargs)
        finally:
            if trial_id in self._is_read:
                self._is_read[trial_id] = False

    return call


for _name in _WRITES:
    setattr(OptunaCache, _name, _noted(_name))


def hold_in_cache(study: optuna.Study, trial: optuna.Trial) -> None:
    """Mark an unfinished trial as changed by this process only, if the study has a cache."""
    if isinstance(study._storage, OptunaCache):
        study._storage.hold(trial._trial_id)


def release_in_cache(study: optuna.Study, trial: optuna.Trial) -> None:
    """Undo `hold_in_cache`."""
    if isinstance(study._storage, OptunaCache):
        study._storage.release(trial._trial_id)
