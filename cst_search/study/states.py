"""States of trials and launches in a study. Each member is the string that is stored and shown, and prints as it."""

from __future__ import annotations

from enum import StrEnum


class TrialState(StrEnum):
    """State of a trial in a study. Optuna's own states, which differ, are `optuna.trial.TrialState`."""

    __repr__ = str.__repr__

    #: evaluated, within the budget
    COMPLETE = "complete"
    #: over the budget, by prediction or by measurement, or out of memory
    INFEASIBLE = "infeasible"
    #: ended without a usable result: a fault, or a loss that was not finite
    FAILED = "failed"
    #: stopped early at a rung
    PRUNED = "pruned"
    #: on a worker now
    RUNNING = "running"
    #: was on a worker of a launch that is no more; the next launch takes it up
    INTERRUPTED = "interrupted"


class LaunchState(StrEnum):
    """State of a launch or a confirmation that worked on a study."""

    __repr__ = str.__repr__

    RUNNING = "running"
    ENDED = "ended"
    #: it did not say that it ended, and its process is gone
    DIED = "died"
