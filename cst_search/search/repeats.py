"""Repeats of a confirmation: the study's configurations, trained again with other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from optuna.trial import Trial

from cst_search.search.suggestion import Suggestion
from cst_search.study.launch_registry import now
from cst_search.study.storage import add_running_trial
from cst_search.study.study import Study
from cst_search.study.trial_attributes import SUGGESTED, Repeat, Suggested


class Repeats:
    """Repeats that a session hands out instead of new configurations.

    Attributes:
        are_planned: True after `plan`; the session then runs repeats only.
    """

    def __init__(self, study: Study) -> None:
        self._study, self._optuna = study, study.optuna_study()
        self.are_planned = False
        self._planned: list[Repeat] = []
        self._cut: dict[Repeat, int] = {}  # repeat -> trial_id, of repeats that were running in a launch that died

    def plan(self, repeats: Sequence[Repeat]) -> None:
        """Set the repeats to hand out, in order."""
        self.are_planned, self._planned = True, list(repeats)

    def cut_off(self, repeat: Repeat, trial_id: int) -> None:
        """Store a repeat that was running in a launch that died: its trial resumes if it is planned again."""
        self._cut[repeat] = trial_id

    def next(self) -> tuple[Trial, Suggestion] | None:
        """Return the next repeat as a running trial; None: all have been handed out."""
        if not self._planned:
            return None
        repeat = self._planned.pop(0)
        cut = self._cut.pop(repeat, None)
        source = Suggested.of(
            self._optuna.get_trials(deepcopy=False)[repeat.repeat_of].user_attrs
            if cut is None
            else Trial(self._optuna, cut).user_attrs
        )
        assert source is not None
        launch = self._study.launch_registry.id
        suggested = Suggested(
            config=source.config, estimate=source.estimate, correction=source.correction, repeat=repeat, launch=launch,
            at=now(), again=0 if cut is None else source.again + 1,
        )  # fmt: skip
        if cut is None:
            trial = add_running_trial(self._optuna, {SUGGESTED: suggested.to_dict()})
        else:
            trial = Trial(self._optuna, cut)
            trial.set_user_attr(SUGGESTED, suggested.to_dict())
        found = Suggestion.of(trial.number, suggested, again=cut is not None)
        return trial, replace(found, config=found.config | {"seed": repeat.seed}, repeat_of=repeat.repeat_of)
