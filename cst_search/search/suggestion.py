"""A suggestion: the configuration that a session hands out to run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cst_search.study.trial_attributes import Suggested


@dataclass(frozen=True)
class Suggestion:
    """A feasible configuration to run.

    Attributes:
        trial: its number in the study.
        estimate: the predicted cost, as ``asdict(memory.estimate.Estimate)``.
        again: True if the trial lost its worker, or was running in a launch that died.
        promoted_from: epoch at which early stopping had stopped it, if it did; it goes on now.
        repeat_of: for a repeat, the trial whose configuration it has; the seed is in ``config``.
    """

    trial: int
    config: dict[str, Any]
    estimate: dict[str, Any]
    again: bool = False
    promoted_from: int | None = None
    repeat_of: int | None = None

    @classmethod
    def of(
        cls, trial: int, suggested: Suggested, *, again: bool = False, promoted_from: int | None = None
    ) -> Suggestion:
        """Return the suggestion for a trial that the study already has."""
        return cls(trial, suggested.recipe_values(), dict(suggested.estimate), again, promoted_from)
