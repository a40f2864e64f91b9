"""What a session hands out to be run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cst_search.study.trial_attributes import Suggested


@dataclass(frozen=True)
class Suggestion:
    """A feasible configuration to run.

    Attributes:
        trial: its number in the study.
        estimate: the predicted cost, as ``asdict(memory.estimate.Estimate)`` gives it.
        again: it was on a worker of a launch that died, or lost its worker.
        promoted_from: epoch at which early stopping stopped it, if it did; it goes on now.
        repeat_of: the trial whose configuration it is; the seed stands in ``config``.
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
        """Hand out a trial of the search that the study has already."""
        return cls(trial, suggested.recipe_values(), dict(suggested.estimate), again, promoted_from)
