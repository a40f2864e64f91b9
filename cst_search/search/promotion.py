"""Early stopping in a study: trials stopped at rungs, and their later promotion."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from optuna.trial import Trial

from cst_search.search.early_stopping import Rungs
from cst_search.search.outcomes import Outcomes
from cst_search.search.suggestion import Suggestion
from cst_search.study.study import Study
from cst_search.study.trial_attributes import PROGRESS, SUGGESTED, Progress, Suggested


class Promotion:
    """Rungs of a study, with the stopped trials of this launch, including those taken over from dead launches.

    Args:
        rungs: epochs after which a trial may be stopped, ascending; empty: never.
        outcomes: receives the trials that are stopped for good.
    """

    def __init__(self, study: Study, rungs: Sequence[int], outcomes: Outcomes) -> None:
        self._study, self._rungs, self._outcomes = study, tuple(rungs), outcomes
        self._table = Rungs(study.spec.objectives, self._rungs, study.spec.eta or 0)
        self.stopped: dict[int, Trial] = {}
        self._due: int | None = None
        self._due_is_known = False

    def reach(self, number: int, estimate: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        """Store the values at a rung of a trial of any launch; ignore an epoch that is not a rung.

        Args:
            estimate: its predicted cost.
            entry: the epoch's entry of its history.
        """
        if entry["epoch"] not in self._rungs or self._table.has(number, entry["epoch"]):
            return
        figures = {**estimate, **{name: value for name, value in entry.items() if value is not None}}
        over = self._study.spec.budget.violations(figures)
        values = [figures.get(objective.name, math.nan) for objective in self._study.spec.objectives]
        self._table.report(number, entry["epoch"], values, sum(max(0.0, value) for value in over.values()))
        self._due_is_known = False

    def goes_on(self, number: int, suggested: Suggested, entry: Mapping[str, Any]) -> bool:
        """Store the values at a rung of a trial of this launch; return whether it continues.

        A repeat and a reference always do. A repeat's values are not stored.
        """
        if suggested.repeat is not None:
            return True
        self.reach(number, suggested.estimate, entry)
        return suggested.reference or self._table.goes_on(number, entry["epoch"])

    def hold(self, number: int, trial: Trial) -> None:
        """Keep a stopped trial until it is promoted or stopped for good."""
        self.stopped[number] = trial
        self._study.hold(trial)
        self._due_is_known = False

    def adopt(self, number: int, trial: Trial, suggested: Suggested) -> None:
        """Take over a trial that was stopped by a launch that has died."""
        self.hold(number, trial)
        trial.set_user_attr(SUGGESTED, replace(suggested, launch=self._study.launch_registry.id).to_dict())

    def let_go(self) -> None:
        """Leave all stopped trials to the next launch."""
        for number in list(self.stopped):
            self._release(number)

    def due(self) -> int | None:
        """Return the number of the stopped trial to promote next; None: there is none."""
        if not self._due_is_known:  # called ten times a second
            self._due = self._table.promotable(list(self.stopped)) if self.stopped else None
            self._due_is_known = True
        return self._due

    def promote(self) -> tuple[Trial, Suggestion, Progress] | None:
        """Promote the trial that is due, to resume from its checkpoint; None: none is due, or another launch has it."""
        number = self.due()
        if number is None:
            return None
        trial = self._release(number)
        if not self._study.is_ours(number):
            return None
        suggested, progress = _attributes(trial)
        trial.set_user_attr(SUGGESTED, replace(suggested, launch=self._study.launch_registry.id).to_dict())
        trial.set_user_attr(PROGRESS, replace(progress, stopped=False).to_dict())
        return trial, Suggestion.of(number, suggested, promoted_from=progress.history[-1]["epoch"]), progress

    def close(self) -> list[int]:
        """Stop all stopped trials for good, unless one is due to be promoted. Returns their numbers."""
        if self.due() is not None:
            return []
        closed = sorted(self.stopped)
        for number in closed:
            trial = self._release(number)
            if self._study.is_ours(number):
                self._outcomes.prune(trial, *_attributes(trial))
        return closed

    def _release(self, number: int) -> Trial:
        self._due_is_known = False
        trial = self.stopped.pop(number)
        self._study.release(trial)
        return trial


def _attributes(trial: Trial) -> tuple[Suggested, Progress]:
    attributes = trial.user_attrs
    suggested = Suggested.of(attributes)
    assert suggested is not None
    return suggested, Progress.of(attributes)
