"""Summarise each method of a search by its best trial within the budget, to answer "which method?"."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cst_search.study.states import TrialState

if TYPE_CHECKING:
    from cst_search.study.records import StudyInfo, TrialRecord

_TRAINED = (TrialState.COMPLETE, TrialState.PRUNED)
_ORDER = (*_TRAINED, None)


def by_method(info: StudyInfo) -> list[dict[str, Any]]:
    """Return an entry for each method of a search over several, the highest mAP first; for a single method none.

    Complete trials come before those that were stopped early, which have the mAP of their last epoch. Methods without a
    trained trial within the budget are last.

    Returns:
        ``method``; ``trials``: number of its trials, of any outcome; ``on_front``: those on the front. Of its best
        trial within the budget: ``trial``, ``state``, ``map`` (the mean over seeds if it was confirmed),
        ``working_bytes``, ``device_bytes``, ``trainable_params``; None if there is no such trial.
    """
    methods = dict.fromkeys([*info.space.get("methods", ()), *(str(r.config.get("method")) for r in info.trials)])
    front = {record.trial for record in info.front()}
    rows = [_row(info, method, front) for method in methods] if len(methods) > 1 else []
    return sorted(rows, key=lambda row: (_ORDER.index(row["state"]), -(row["map"] or 0.0)))


def _row(info: StudyInfo, method: str, front: set[int]) -> dict[str, Any]:
    trials = [record for record in info.trials if record.config.get("method") == method]

    def place(record: TrialRecord) -> tuple[bool, float]:
        return record.state == TrialState.COMPLETE, info.over_seeds(record).mean or 0.0

    trained = [record for record in trials if record.feasible and record.state in _TRAINED]
    best = max(trained, key=place, default=None)
    told = ("trial", "state", "working_bytes", "device_bytes", "trainable_params")
    return {
        "method": method,
        "trials": len(trials),
        "on_front": sum(record.trial in front for record in trials),
        "map": None if best is None else info.over_seeds(best).mean,
        **{name: None if best is None else getattr(best, name) for name in told},
    }
