"""A search session: one launch that runs trials for a study and stores their results."""

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
from cst_search.study.outlook import Outlook, has_converged
from cst_search.study.records import Budget, LaunchRecord, TrialRecord
from cst_search.study.storage import alone
from cst_search.study.study import Study
from cst_search.study.trial_attributes import PROGRESS, SUGGESTED, Progress, Repeat, Result, Suggested
from cst_search.trial.result import Outcome

if TYPE_CHECKING:
    from cst_search.memory.estimate import Estimate


class SearchSession:
    """One process that runs trials for a study: `begin_launch`, then `ask`, `progress` and `tell`, then `end_launch`.

    It owns four parts around the study's reader, and the trials that it has handed out:

        suggester    new configurations
        promotion    early stopping
        repeats      repeats of a confirmation
        outcomes     reports to the samplers, and the correction of predicted memory

    Attributes:
        rungs: epochs after which a trial may be stopped.
        until_converged: True: `ask` suggests nothing more once the search has converged, see `study.outlook`.

    Raises:
        RuntimeError: the `Study` object has a session already. Another session of the same study needs an object of its
            own, as another process has.
    """

    def __init__(self, study: Study) -> None:
        if study.reader.is_followed:  # the trials that it reads go to one session
            raise RuntimeError(f"study {study.name!r} has a search session already; open the study again for another")
        self.study = study
        spec = study.spec
        self.rungs = rung_epochs(spec.full_epochs, spec.eta) if spec.eta else ()
        self.until_converged = False
        self._live: dict[int, Trial] = {}  # running on workers of this launch
        self._histories: dict[int, list[Mapping[str, Any]]] = {}  # of running trials
        self._begin_anew(spec.budget)

    def _begin_anew(self, bounds: Budget) -> None:
        """Reset everything known about the study's trials; the next read reads all of them."""
        self.outcomes = Outcomes(self.study)
        self.suggester = Suggester(self.study, self.outcomes, bounds)
        self.promotion = Promotion(self.study, self.rungs, self.outcomes)
        self.repeats = Repeats(self.study)
        self._returned: list[int] = []  # trials of this launch that lost their worker, see give_back
        self._outlooks: dict[int, Outlook] = {}
        self.study.reader.restart(on_read=self._take_in)

    def _take_in(self, trial: StoredTrial) -> None:
        """Update all parts from a trial that was read, of any launch."""
        suggested = Suggested.of(trial.user_attrs)
        if suggested is None:
            return
        result, progress = Result.of(trial.user_attrs), Progress.of(trial.user_attrs)
        if trial.is_finished:
            progress = Progress(() if result is None else result.history)
        if suggested.repeat is None:
            if suggested.outlook is not None:
                self._outlooks[trial.number] = suggested.outlook
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
        """Register this process as a launch of the study. Returns the launch's ID.

        Args:
            gpu_bytes: memory of the largest available GPU, if any; a prediction above it is rejected as over the
                budget.
            kind: ``launch``, of which several may run at a time, or ``confirm``, which runs alone.
            shares_machine: allow another launch on this host; Ray does the accounting for both.

        Raises:
            StudyError: another launch is running that this one may not join.
        """
        while not self._enter(gpu_bytes, kind, shares_machine):
            pass
        assert self.launch_id is not None
        return self.launch_id

    def _enter(self, gpu_bytes: int | None, kind: str, shares_machine: bool) -> bool:
        """Register this process. Returns False if the study's lock was lost meanwhile: another may have begun."""
        study = self.study
        with alone(study.storage, study.name) as is_alone:
            study.launch_registry.check_others(kind, shares_machine)
            if not is_alone():
                return False
            study.launch_registry.enter(kind)
            bound = min((n for n in (study.spec.budget.memory_bytes, gpu_bytes) if n is not None), default=None)
            self._begin_anew(replace(study.spec.budget, memory_bytes=bound))
            study.reader.read()
            self.suggester.begin()
            self._take_over()
        return True

    def _take_over(self) -> list[int]:
        """Take over trials of dead launches that were only half asked for, or stopped at a rung.

        Returns:
            Numbers of the trials that were running on their workers.
        """
        orphans: list[int] = []
        live = self.study.launch_registry.live()
        optuna_study = self.study.optuna_study()
        for number, stored in list(self.study.reader.unfinished.items()):
            if number in self._live or number in self.promotion.stopped or not stored.is_running:
                continue
            suggested = self.study.reader.suggested_of(number)
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
        """Mark this launch as ended; the next launch resumes its unfinished trials."""
        self.study.launch_registry.leave()

    def describe_launch(self, settings: Mapping[str, Any]) -> LaunchRecord:
        """Store the settings of this launch, see `LaunchRecord`."""
        return self.study.launch_registry.describe(settings)

    # --- what to run next -------------------------------------------------------------------------------------------

    def enqueue(self, config: Mapping[str, Any]) -> None:
        """Enqueue a configuration to be tried first, as far as the space contains it."""
        enqueue(self.study, config)

    def plan(self, repeats: Sequence[Repeat]) -> None:
        """Have `ask` hand out these repeats in order, and then None; nothing is promoted from now on."""
        self.repeats.plan(repeats)
        self.promotion.let_go()  # stopped trials wait for the next launch

    def ask(
        self, estimate: Callable[[dict[str, Any]], Estimate], n_trials: int | None = None, max_rejects: int = 200
    ) -> Suggestion | None:
        """Return the next feasible configuration to run; None: there is none.

        A trial that lost its worker, or whose launch died, comes first. No configuration is handed out twice.

        Args:
            estimate: predicted cost of a configuration, as in `Suggester.suggest`. Over the budget, it is reported at
                once and takes no worker.
            n_trials: total trials in the study, including those running in any launch; None: no limit.
            max_rejects: stop after so many suggestions in a row that were over the budget, or not new.
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
                if self.until_converged and self.has_converged():
                    return None
                try:
                    return self._hand_out(self.suggester.suggest(estimate, max_rejects, is_alone))
                except NotAlone:
                    continue
                except optuna.exceptions.UpdateFinishedTrialError:
                    if is_alone():
                        raise  # otherwise another launch took our half-asked trial for one of a dead launch

    def has_converged(self) -> bool:
        """Return whether the search has converged, by what has been read of all launches; see `study.outlook`."""
        by_trial = [self._outlooks[number] for number in sorted(self._outlooks)]
        return has_converged(by_trial, self.study.reader.n_ran)

    def _hand_out(self, found: tuple[Trial, Suggestion] | None) -> Suggestion | None:
        if found is None:
            return None
        trial, suggestion = found
        self._live[suggestion.trial] = trial
        self.study.hold(trial)
        return suggestion

    def _let_go(self, number: int) -> Trial:
        """Forget a trial that was handed out."""
        trial = self._live.pop(number)
        self._histories.pop(number, None)
        self.study.release(trial)
        return trial

    def _n_claimed(self) -> int:
        """Return the number of trials that ran or are running, in any launch."""
        unfinished = self.study.reader.suggested().values()
        return self.study.reader.n_ran + sum(suggested.repeat is None for suggested in unfinished)

    def _take_up(self, number: int) -> tuple[Trial, Suggestion]:
        suggested = self.study.reader.suggested_of(number)
        trial = Trial(self.study.optuna_study(), self.study.reader.unfinished[number].trial_id)
        assert suggested is not None
        taken = replace(suggested, launch=self.launch_id, again=suggested.again + 1)
        trial.set_user_attr(SUGGESTED, taken.to_dict())
        return trial, Suggestion.of(number, taken, again=True)

    def give_back(self, number: int) -> bool:
        """Have `ask` hand out again, once, a trial whose worker ended without a result. False: it was so before."""
        trial = self._live[number]
        suggested = _suggested(trial)
        if self.study.is_ours(number):
            if suggested.lost:
                return False
            trial.set_user_attr(SUGGESTED, replace(suggested, lost=True).to_dict())
            self._returned.append(number)
        self._let_go(number)
        return True

    def has_returned(self) -> bool:
        """Return whether a trial that was given back waits for `ask`."""
        return bool(self._returned)

    # --- early stopping ---------------------------------------------------------------------------------------------

    def due(self) -> int | None:
        """Return the number of the stopped trial to promote next; None: there is none."""
        return self.promotion.due()

    def n_stopped(self) -> int:
        """Return the number of stopped trials that may still be promoted."""
        return len(self.promotion.stopped)

    def promote(self) -> Suggestion | None:
        """Promote the stopped trial that is due, to resume from its checkpoint; None: none is due."""
        promoted = self.promotion.promote()
        if promoted is None:
            return None
        trial, suggestion, progress = promoted
        self._histories[suggestion.trial] = list(progress.history)
        return self._hand_out((trial, suggestion))

    def close_stopped(self) -> list[int]:
        """Stop the stopped trials for good, unless a trial is running or due to be promoted.

        Returns:
            Their numbers.
        """
        return [] if self._live else self.promotion.close()

    # --- what came of it --------------------------------------------------------------------------------------------

    def progress(self, number: int, entry: Mapping[str, Any]) -> bool:
        """Store a trial's history entry after an epoch. False: the trial is to stop there."""
        trial = self._live[number]
        if not self.study.is_ours(number):
            return False
        if number not in self._histories:
            self._histories[number] = list(Progress.of(trial.user_attrs).history)
        history = self._histories[number]
        if history and entry["epoch"] <= history[-1]["epoch"]:
            return True  # a resumed trial that repeats an epoch: it was decided before that it goes on
        history.append(json.loads(json.dumps(dict(entry))))
        goes_on = entry["epoch"] not in self.rungs or self.promotion.goes_on(number, _suggested(trial), entry)
        # one write for both, because a launch may be killed at any time
        trial.set_user_attr(PROGRESS, Progress(history, stopped=not goes_on).to_dict())
        return goes_on

    def recorded(self, number: int) -> list[dict[str, Any]]:
        """Return the history so far of a trial that is handed out."""
        return [dict(entry) for entry in Progress.of(self._live[number].user_attrs).history]

    def tell(self, number: int, result: Mapping[str, Any]) -> TrialRecord | None:
        """Store the result of a trial: `TrialResult.to_dict()`, or ``{"outcome": "failed", "reason": ...}``.

        For a trial that `progress` stopped, ``{"outcome": "stopped"}`` is enough.

        Returns:
            Its new record; None: another launch has resumed the trial, and this result does not count.
        """
        trial = self._let_go(number)
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
