"""States of trials and launches in a study. Each member equals, and prints as, the string that is stored and shown."""

from __future__ import annotations

from enum import StrEnum


class TrialState(StrEnum):
    """State of a trial in a study. It differs from Optuna's own `optuna.trial.TrialState`."""

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
    #: was running in a launch that died; the next launch resumes it
    INTERRUPTED = "interrupted"


class LaunchState(StrEnum):
    """State of a launch or a confirmation that worked on a study."""

    __repr__ = str.__repr__

    RUNNING = "running"
    ENDED = "ended"
    #: its process is gone without having recorded an end
    DIED = "died"
