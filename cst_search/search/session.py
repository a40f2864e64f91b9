"""A launch at work on a study: what to run next, and what came of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import Trial
from optuna.trial import TrialState as OptunaState

from cst_search.search.early_stopping import rung_epochs
from cst_search.search.outcomes import Outcomes
from cst_search.search.promotion import Promotion
from cst_search.search.repeats import Repeats
from cst_search.search.suggester import NotAlone, Suggester, enqueue
from cst_search.search.suggestion import Suggestion
from cst_search.study.fast_reads import StoredTrial
from cst_search.study.records import Budget, LaunchRecord, TrialRecord
from cst_search.study.storage import alone
from cst_search.study.study import Study
from cst_search.study.trial_attributes import PROGRESS, SUGGESTED, Progress, Repeat, Result, Suggested
from cst_search.trial.result import Outcome

if TYPE_CHECKING:
    from cst_search.memory.estimate import Estimate


class SearchSession:
    """One process that works on a study: `begin_launch`, then `ask`, `progress` and `tell`, then `end_launch`.

    It owns four parts around the study's reader, and the trials that it has handed out:

        suggester    new configurations
        promotion    early stopping
        repeats      repeats of a confirmation
        outcomes     how a trial's end is told to the samplers, and what it teaches

    Attributes:
        rungs: epochs after which a trial may be stopped.
    """

    def __init__(self, study: Study) -> None:
        self.study = study
        spec = study.spec
        self.rungs = rung_epochs(spec.full_epochs, spec.eta) if spec.eta else ()
        self._live: dict[int, Trial] = {}  # with workers of this launch
        self._histories: dict[int, list[Mapping[str, Any]]] = {}  # of trials at work
        self._begin_anew(spec.budget)

    def _begin_anew(self, bounds: Budget) -> None:
        """Know nothing of the study's trials; the next reading reads all."""
        self.outcomes = Outcomes(self.study)
        self.suggester = Suggester(self.study, self.outcomes, bounds)
        self.promotion = Promotion(self.study, self.rungs, self.outcomes)
        self.repeats = Repeats(self.study)
        self._returned: list[int] = []  # trials of this launch that lost their worker, see give_back
        self.study.reader.restart(on_read=self._take_in)

    def _take_in(self, trial: StoredTrial) -> None:
        """Learn from a trial that is read, whichever launch runs it."""
        suggested = Suggested.of(trial.user_attrs)
        if suggested is None:
            return
        result, progress = Result.of(trial.user_attrs), Progress.of(trial.user_attrs)
        if trial.is_finished:
            progress = Progress(() if result is None else result.history)
        if suggested.repeat is None:
            self.suggester.note(suggested.config)
            for entry in progress.history:
                self.promotion.reach(trial.number, suggested.estimate, entry)
        if trial.is_finished and result is not None:
            self.outcomes.learn(trial.number, suggested, progress.so_far().with_(**result.plain))
        elif progress.stopped:
            self.outcomes.learn(trial.number, suggested, progress.so_far())

    # --- a launch ---------------------------------------------------------------------------------------------------

    @property
    def launch_id(self) -> str | None:
        """ID of this process's launch, or None if it is not running trials for the study."""
        return self.study.launch_registry.id

    def begin_launch(self, gpu_bytes: int | None = None, *, kind: str = "launch", shares_machine: bool = False) -> str:
        """Register this process as one that works on the study. Returns the launch's ID.

        Args:
            gpu_bytes: memory of the largest GPU at hand, if there is one: a prediction above it is rejected as over the
                budget.
            kind: ``launch``, of which several may work at a time; or ``confirm``, which works alone.
            shares_machine: another launch on this host may work too, as Ray does the accounting for both.

        Raises:
            StudyError: another is at work, and this one may not work beside it.
        """
        study = self.study
        with alone(study.storage, study.name):
            study.launch_registry.check_others(kind, shares_machine)
            study.launch_registry.enter(kind)
            bound = min((n for n in (study.spec.budget.memory_bytes, gpu_bytes) if n is not None), default=None)
            self._begin_anew(replace(study.spec.budget, memory_bytes=bound))
            study.reader.read()
            self.suggester.begin()
            self._take_over()
        assert self.launch_id is not None
        return self.launch_id

    def _take_over(self) -> list[int]:
        """Take over what launches that died left half asked for, or stopped at a rung.

        Returns:
            Numbers of the trials that they had on workers.
        """
        orphans: list[int] = []
        live = self.study.launch_registry.live()
        optuna_study = self.study.optuna_study()
        for number, stored in list(self.study.reader.unfinished.items()):
            suggested = Suggested.of(stored.user_attrs)
            if number in self._live or number in self.promotion.stopped or stored.state != "RUNNING":
                continue
            if suggested is None:  # asked by a launch that died before it knew the configuration
                optuna_study.tell(number, state=OptunaState.FAIL)
            elif suggested.launch in live:
                continue
            elif suggested.repeat is not None:
                self.repeats.cut_off(suggested.repeat, stored.trial_id)
            elif Progress.of(stored.user_attrs).stopped:
                self.promotion.adopt(number, Trial(optuna_study, stored.trial_id), suggested)
            else:
                orphans.append(number)
        return orphans

    def end_launch(self) -> None:
        """Say that this process works no longer; its unfinished trials are then taken up by the next launch."""
        self.study.launch_registry.leave()

    def describe_launch(self, settings: Mapping[str, Any]) -> LaunchRecord:
        """Store the settings of this launch, see `LaunchRecord`."""
        return self.study.launch_registry.describe(settings)

    # --- what to run next -------------------------------------------------------------------------------------------

    def enqueue(self, config: Mapping[str, Any]) -> None:
        """Have a configuration tried first, as far as the space contains it."""
        enqueue(self.study, config)

    def plan(self, repeats: Sequence[Repeat]) -> None:
        """From now on `ask` hands out these, in their order, and then None; nobody is promoted."""
        self.repeats.plan(repeats)
        self.promotion.let_go()  # they wait for the next launch

    def ask(
        self, estimate: Callable[[dict[str, Any]], Estimate], n_trials: int | None = None, max_rejects: int = 200
    ) -> Suggestion | None:
        """The next feasible configuration to run; None: there is none.

        A trial that lost its worker, or whose launch died, comes first. No configuration is handed out twice.

        Args:
            estimate: predicted cost of a configuration. What violates the budget is told at once and takes no worker.
            n_trials: total trials in the study, those at work included, whoever runs them; None: without end.
            max_rejects: so many suggestions in a row that were over the budget, or not new, are the end.
        """
        if self.repeats.are_planned:
            return self._hand_out(self.repeats.next())
        while True:
            with alone(self.study.storage, self.study.name) as is_alone:
                self.study.reader.read()
                orphans = self._take_over()
                if self._returned or orphans:
                    return self._hand_out(self._take_up(self._returned.pop(0) if self._returned else orphans[0]))
                if n_trials is not None and self._n_claimed() >= n_trials:
                    return None
                try:
                    return self._hand_out(self.suggester.suggest(estimate, max_rejects, is_alone))
                except NotAlone:
                    continue
                except optuna.exceptions.UpdateFinishedTrialError:
                    if is_alone():
                        raise  # else another launch took ours, half asked for, for one of a launch that died

    def _hand_out(self, found: tuple[Trial, Suggestion] | None) -> Suggestion | None:
        if found is None:
            return None
        trial, suggestion = found
        self._live[suggestion.trial] = trial
        return suggestion

    def _n_claimed(self) -> int:
        """Number of trials that ran or are at work, in any launch."""
        unfinished = self.study.reader.suggested().values()
        return self.study.reader.n_ran + sum(suggested.repeat is None for suggested in unfinished)

    def _take_up(self, number: int) -> tuple[Trial, Suggestion]:
        stored = self.study.reader.unfinished[number]
        suggested, trial = Suggested.of(stored.user_attrs), Trial(self.study.optuna_study(), stored.trial_id)
        assert suggested is not None
        taken = replace(suggested, launch=self.launch_id, again=suggested.again + 1)
        trial.set_user_attr(SUGGESTED, taken.to_dict())
        return trial, Suggestion.of(number, taken, again=True)

    def give_back(self, number: int) -> bool:
        """A trial's worker ended without a result: have `ask` hand it out again, once. False: it was so before."""
        trial = self._live[number]
        suggested = _suggested(trial)
        if self.study.is_ours(number):
            if suggested.lost:
                return False
            trial.set_user_attr(SUGGESTED, replace(suggested, lost=True).to_dict())
            self._returned.append(number)
        del self._live[number]
        self._histories.pop(number, None)
        return True

    def has_returned(self) -> bool:
        """Return whether a trial that was given back waits for `ask`."""
        return bool(self._returned)

    # --- early stopping ---------------------------------------------------------------------------------------------

    def due(self) -> int | None:
        """Number of the stopped trial that would go on by now; None: there is none."""
        return self.promotion.due()

    def n_stopped(self) -> int:
        """Number of trials that were stopped and may still be promoted."""
        return len(self.promotion.stopped)

    def promote(self) -> Suggestion | None:
        """The stopped trial that is due, to go on from its checkpoint; None: none is."""
        promoted = self.promotion.promote()
        if promoted is None:
            return None
        trial, suggestion, progress = promoted
        self._histories[suggestion.trial] = list(progress.history)
        return self._hand_out((trial, suggestion))

    def close_stopped(self) -> list[int]:
        """Stop the stopped trials for good. None of them while a trial is at work, or due to go on.

        Returns:
            Their numbers.
        """
        return [] if self._live else self.promotion.close()

    # --- what came of it --------------------------------------------------------------------------------------------

    def progress(self, number: int, entry: Mapping[str, Any]) -> bool:
        """Store what a trial has after an epoch: an entry of its history. False: it is to stop there."""
        trial = self._live[number]
        if not self.study.is_ours(number):
            return False
        if number not in self._histories:
            self._histories[number] = list(Progress.of(trial.user_attrs).history)
        history = self._histories[number]
        if history and entry["epoch"] <= history[-1]["epoch"]:
            return True  # taken up again, and before where it was: that it goes on was decided then
        history.append(json.loads(json.dumps(dict(entry))))
        goes_on = entry["epoch"] not in self.rungs or self.promotion.goes_on(number, _suggested(trial), entry)
        # both in one: a launch may be killed at any time
        trial.set_user_attr(PROGRESS, Progress(history, stopped=not goes_on).to_dict())
        return goes_on

    def tell(self, number: int, result: Mapping[str, Any]) -> TrialRecord | None:
        """Store how a trial ended: `TrialResult.to_dict()`, or ``{"outcome": "failed", "reason": ...}``.

        Of one that `progress` stopped ``{"outcome": "stopped"}`` is enough.

        Returns:
            What it is now; None: another launch has taken it up, and this result is not counted.
        """
        trial = self._live.pop(number)
        self._histories.pop(number, None)
        if not self.study.is_ours(number):
            return None
        suggested = _suggested(trial)
        try:
            if result["outcome"] == Outcome.STOPPED:
                self.promotion.hold(number, trial)
                self.outcomes.learn(number, suggested, Progress.of(trial.user_attrs).so_far())
            else:
                self.outcomes.tell(trial, suggested, Result(result))
        except optuna.exceptions.UpdateFinishedTrialError:
            return None
        return self.study.record(number)


def _suggested(trial: Trial) -> Suggested:
    suggested = Suggested.of(trial.user_attrs)
    assert suggested is not None
    return suggested
