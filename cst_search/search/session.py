"""The study: what to try next, and everything that was tried.

The study's database is the single source of truth. Every trial that was suggested is in it with its configuration, its
predicted cost and what came of it, so whoever holds the storage URL can continue, report or rebuild.

How outcomes are told to the sampler (measured reasons in docs/searching.md):

    complete             COMPLETE with its values; budget constraints from the measured bytes, else the predicted
    over the budget      COMPLETE with the known costs and map = -inf, constraint > 0; no worker was used
    out of memory        COMPLETE likewise, memory constraint > 0 whatever was measured, as what was refused would have
                         gone above the limit: told as FAIL, samplers would learn nothing from it
    loss not finite      COMPLETE likewise, constraint `finite` = 1
    stopped early        nothing while it may be promoted; then PRUNED with constraints as of a complete one. Optuna's
                         intermediate values are not used: with several objectives its TPE sampler fails on them
    anything else        FAIL with the reason
    a repeat             FAIL, and no parameters at any time: for no sampler is it there (see docs/searching.md)
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import optuna
from optuna.trial import FrozenTrial, Trial
from optuna.trial import TrialState as OptunaState

from cst_search.config.recipe import renamed_fields
from cst_search.config.search_space import Space, renamed_dimensions
from cst_search.errors import StudyError
from cst_search.memory.correction import Correction
from cst_search.search.early_stopping import Rungs, rung_epochs
from cst_search.search.optuna_space import params_of, pick
from cst_search.search.pareto_sampler import ParetoSampler
from cst_search.search.samplers import experimental, make_sampler
from cst_search.study.fast_reads import StoredTrial, read_trials
from cst_search.study.launch_registry import Launches, now
from cst_search.study.pareto import OBJECTIVES
from cst_search.study.records import Budget, LaunchRecord, StudyInfo, StudySpec, TrialRecord
from cst_search.study.states import TrialState
from cst_search.study.storage import Storage, check_storage, open_storage
from cst_search.study.trial_attributes import (
    PROGRESS,
    RESULT,
    SUGGESTED,
    Repeat,
    as_repeat,
    memory_ratio,
    refused,
    so_far,
    stopped_at,
    trial_record,
    tuples,
)  # fmt: skip
from cst_search.trial.outcome import Outcome
from cst_search.units import format_bytes

if TYPE_CHECKING:
    from cst_search.memory.estimate import Estimate

ETA = 2  # of early stopping, for a study that does not say
CONSTRAINTS = ("memory", "params", "finite")  # in every trial, in this order: the GP sampler needs that
_FORMAT = 3  # of the attributes below; a reader refuses a newer one
_STUDY = "cst_study"
_MOST_KNOWN = 10  # configurations that a sampler suggests again, in a row, before one is drawn at random
# What an out-of-memory trial counts as over the budget at least. Its figures say that it needed more, and not how much:
# at the first refusal the rest of the step was still to come.
_OOM_VIOLATION = 0.1

_DIRECTION = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}

optuna.logging.set_verbosity(optuna.logging.ERROR)


@dataclass(frozen=True)
class Suggestion:
    """A feasible configuration to run.

    Attributes:
        again: it was on a worker of a launch that died.
        promoted_from: epoch at which it was stopped, if it is one that was; it goes on now.
        repeat_of: the trial whose configuration it is; the seed stands in ``config``.
    """

    trial: int
    config: dict[str, Any]
    estimate: dict[str, Any]
    again: bool = False
    promoted_from: int | None = None
    repeat_of: int | None = None


def list_studies(url: str, *, make: bool = False) -> list[str]:
    """Names of the studies of cst-search in a storage, in the order they were made. Raises StudyError: no storage.

    Args:
        make: make a storage that does not exist yet, rather than raise.
    """
    storage = open_storage(url, make=make)
    studies = storage.get_all_studies()  # their summaries would read every trial
    storage.engine.dispose()
    return [s.study_name for s in sorted(studies, key=lambda s: s._study_id) if _STUDY in s.user_attrs]


class Study:
    """One study in its storage. `create` makes it or continues it, `open` reads one that exists."""

    def __init__(self, study: optuna.Study, url: str, storage: optuna.storages.BaseStorage) -> None:
        self._study, self.url = study, url
        #: None: Optuna's own, in memory
        self.storage = storage if isinstance(storage, Storage) else None
        self.name = study.study_name
        stored = study.user_attrs[_STUDY]
        if stored["format"] > _FORMAT:
            raise StudyError(
                f"study {self.name!r} was written by cst-search {stored['version']}, which is newer; update cst-search"
            )
        spec = dict(stored["spec"])
        spec["objectives"] = tuple(OBJECTIVES[name] for name in spec["objectives"])
        spec["budget"] = Budget(**spec["budget"])
        spec["eta"] = spec.get("eta") or 0
        spec["recipe"] = renamed_fields(spec["recipe"])
        self.spec = StudySpec(**spec)
        self.started: str = stored["started"]
        self.space = Space.from_dict(self.spec.space, where=f"space of study {self.name!r}")
        self._launches = Launches(study, self.storage)
        self._full_epochs = int(self.spec.recipe["search_epochs"])
        #: epochs after which a trial may be stopped
        self.rungs = rung_epochs(self._full_epochs, self.spec.eta) if self.spec.eta else ()
        self._estimate: Callable[[dict[str, Any]], Estimate]  # of the last `ask`
        self._priced_at = 1.0
        self._bounds = self.spec.budget  # what a prediction must not pass
        self._live: dict[int, Trial] = {}
        self._histories: dict[int, list[dict[str, Any]]] = {}  # of trials at work
        self._repeats: list[Repeat] | None = None  # to hand out, instead of anything new
        self._begin_anew()

    def _begin_anew(self) -> None:
        """Know nothing of the study's trials; the next `_read` reads all."""
        self._finished: list[TrialRecord] = []
        self._unfinished: dict[int, StoredTrial] = {}
        self._last_id, self._n_trials, self._n_ran = -1, 0, 0
        self._chosen: dict[str, int] = {}  # configuration -> the trial that has it
        self._ratios: list[float] = []  # see memory_ratio
        self._measured: set[int] = set()  # trials that are in _ratios
        self._rungs = Rungs(self.spec.objectives, self.rungs, self.spec.eta or 0)
        self._stopped: dict[int, Trial] = {}
        self._due: int | None = None  # of those, the one to go on now; see `due`
        self._due_is_known = False
        self._returned: list[int] = []  # trials of this launch that lost their worker, see give_back
        self._random: optuna.samplers.RandomSampler | None = None  # of this launch; a new one would draw the same again
        self._cut_repeats: dict[Repeat, int] = {}  # were on a worker of a launch that died

    @classmethod
    def open(cls, url: str, name: str) -> Study:
        """Raises StudyError, naming the studies that exist."""
        storage = open_storage(url)
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            there = list_studies(url)
            which = (
                f"it has {', '.join(map(repr, there[-10:]))}"
                if there
                else "it has none yet; `cst-search launch` makes one"
            )
            raise StudyError(f"there is no study {name!r} in {check_storage(url)}; {which}") from None
        if _STUDY not in study.user_attrs:
            raise StudyError(f"study {name!r} in {check_storage(url)} is not one of cst-search")
        return cls(study, url, storage)

    @classmethod
    def create(cls, url: str, name: str, spec: StudySpec) -> Study:
        """Make the study, or continue it when it exists and was made with the same objectives, space, recipe and data.

        Raises:
            StudyError: it exists and differs, with what differs.
        """
        from cst_search import __version__

        storage = open_storage(url, make=True)
        directions = [_DIRECTION[o.goal] for o in spec.objectives]
        with _alone(storage, name):  # another launch must not find it half made
            try:
                study = optuna.create_study(storage=storage, study_name=name, directions=directions)
            except optuna.exceptions.DuplicatedStudyError:
                storage.engine.dispose()
                found = cls.open(url, name)
                found._check_same(spec)
                return found
            plain = replace(spec, eta=ETA if spec.eta is None else spec.eta).to_dict()
            stamp = {"format": _FORMAT, "version": __version__, "started": now(), "spec": plain}
            study.set_user_attr(_STUDY, stamp)
            with experimental():
                study.set_metric_names([o.name for o in spec.objectives])
            return cls(study, url, storage)

    def _check_same(self, spec: StudySpec) -> None:
        new, old = spec.to_dict(), self.spec.to_dict()
        named = {"objectives": "--objectives", "budget": "--budget-mem/--budget-params", "recipe": "--recipe",
                 "space": "--space", "data": "--data", "limit_bytes": "--limit-mem",
                 "eta": "--stop-early/--eta",
                 "inputs": "--data (classes, most boxes or image sizes differ)"}  # fmt: skip
        for each in (new, old):
            each["space"] = renamed_dimensions(each["space"], f"space of study {self.name!r}")
        if spec.eta is None:
            new["eta"] = old["eta"]
        if not old["inputs"]:  # made before they were kept
            new["inputs"] = old["inputs"]
        differs = [flag for key, flag in named.items() if new[key] != old[key]]
        if differs:
            raise StudyError(
                f"study {self.name!r} exists and was made with another {', '.join(differs)}; "
                f"continue it with the same ones, or choose another --study name"
            )

    def optuna_study(self) -> optuna.Study:
        """The study as Optuna has it, to be read; what is told to it behind our back is no trial of ours."""
        return self._study

    @property
    def launch_id(self) -> str | None:
        """Of this process; None: it does not work on the study."""
        return self._launches.id

    # --- a launch at work -------------------------------------------------------------------------------------------

    def begin_launch(self, gpu_bytes: int | None = None, *, kind: str = "launch", shares_machine: bool = False) -> str:
        """Register this process as one that works on the study. Returns the launch's id.

        Args:
            gpu_bytes: of the largest GPU at hand, if there is one: what is predicted above it is rejected as over the
                budget.
            kind: ``launch``, of which several may work at a time; or ``confirm``, which works alone.
            shares_machine: another launch on this host may work too, as somebody keeps the books for both (Ray).

        Raises:
            StudyError: another is at work, and this one may not work beside it.
        """
        with _alone(self.storage, self.name):
            self._launches.check_others(kind, shares_machine)
            self._launches.enter(kind)
            bound = min((n for n in (self.spec.budget.memory_bytes, gpu_bytes) if n is not None), default=None)
            self._bounds = replace(self.spec.budget, memory_bytes=bound)
            self._begin_anew()
            self._read()
            self._study.sampler = self._sampler()
            self._take_over()
        assert self.launch_id is not None
        return self.launch_id

    def _take_over(self) -> list[int]:
        """See to what launches that died left: half asked for, stopped at a rung. Returns what they had on workers."""
        orphans: list[int] = []
        live = self._launches.live()
        for number, stored in list(self._unfinished.items()):
            suggested = stored.user_attrs.get(SUGGESTED)
            if number in self._live or number in self._stopped or stored.state != "RUNNING":
                continue
            if suggested is None:  # asked by a launch that died before it knew the configuration
                self._study.tell(number, state=OptunaState.FAIL)
            elif suggested["launch"] in live:
                continue
            elif (repeat := as_repeat(suggested)) is not None:
                self._cut_repeats[repeat] = stored.trial_id
            elif stored.user_attrs.get(PROGRESS, {}).get("stopped"):
                self._stopped[number] = Trial(self._study, stored.trial_id)
                self._stopped[number].set_user_attr(SUGGESTED, suggested | {"launch": self.launch_id})
                self._due_is_known = False
            else:
                orphans.append(number)
        return orphans

    def end_launch(self) -> None:
        """Say that this process works no longer; its unfinished trials are then taken up by the next launch."""
        self._launches.leave()

    def describe_launch(self, settings: Mapping[str, Any]) -> LaunchRecord:
        """Keep what this launch was told, see `results.LaunchRecord`."""
        return self._launches.describe(settings)

    def launches(self) -> tuple[LaunchRecord, ...]:
        """Launches and confirmations that said what they are, in the order of their beginning."""
        return self._launches.described()

    def n_wanted(self) -> int | None:
        """Trials that the last launch wanted the study to have in the end; None: there was none."""
        said = [launch.settings["trials"] for launch in self.launches() if launch.kind == "launch"]
        return int(said[-1]) if said else None

    def others_at_work(self) -> int:
        """Trials that are with other launches now."""
        self._read()
        live = self._launches.live()
        launches = [t.user_attrs.get(SUGGESTED, {}).get("launch") for t in self._unfinished.values()]
        return sum(launch in live and launch != self.launch_id for launch in launches)

    def _sampler(self) -> optuna.samplers.BaseSampler:
        # a continued study must not draw the same random points again
        seed = (self.spec.seed + 7919 * self._n_trials) % 2**31
        name = next((objective.name for objective in self.spec.objectives if objective.goal == "max"), "map")

        def curve(trial: FrozenTrial) -> dict[int, float]:
            result = trial.user_attrs.get(RESULT) or trial.user_attrs.get(PROGRESS, {})
            return {entry["epoch"]: entry[name] for entry in result.get("history", []) if entry.get(name) is not None}

        return make_sampler(replace(self.spec, budget=self._bounds), self.space, self._cost, curve, seed)

    def enqueue(self, config: Mapping[str, Any]) -> None:
        """Have a configuration tried first, as far as the space contains it."""
        self._study.enqueue_trial(params_of(self.space, config), skip_if_exists=True)

    def plan(self, repeats: Sequence[Repeat]) -> None:
        """From now on `ask` hands out these, in their order, and then None; nobody is promoted."""
        self._repeats = list(repeats)
        self._stopped, self._due_is_known = {}, False  # they wait for the next launch

    def _ask_repeat(self, repeat: Repeat) -> Suggestion:
        cut = self._cut_repeats.pop(repeat, None)
        number = repeat.repeat_of
        source = (
            self._study.get_trials(deepcopy=False)[number] if cut is None else Trial(self._study, cut)
        ).user_attrs[SUGGESTED]
        suggested = {key: source[key] for key in ("config", "estimate", "correction") if key in source}
        suggested |= asdict(repeat) | {"launch": self.launch_id, "at": now()}
        if cut is None:
            # Without parameters: TPE takes a running trial for a bad one, GP for one whose value is about to be known.
            begun = optuna.trial.create_trial(state=OptunaState.RUNNING, user_attrs={SUGGESTED: suggested})
            trial = Trial(self._study, self._study._storage.create_new_trial(self._study._study_id, begun))
        else:
            trial = Trial(self._study, cut)
            trial.set_user_attr(SUGGESTED, suggested | {"again": source.get("again", 0) + 1})
        self._live[trial.number] = trial
        config = tuples(suggested["config"]) | {"seed": repeat.seed}
        return Suggestion(trial.number, config, suggested["estimate"], again=cut is not None, repeat_of=number)

    def ask(
        self, estimate: Callable[[dict[str, Any]], Estimate], n_trials: int | None = None, max_rejects: int = 200
    ) -> Suggestion | None:
        """The next feasible configuration to run; None: there is none.

        A trial that lost its worker, or whose launch died, comes first. No configuration is handed out twice.

        Args:
            estimate: predicted cost of a configuration. What violates the budget is told at once and takes no worker.
            n_trials: that the study shall have, those at work included, whoever runs them; None: without end.
            max_rejects: so many suggestions in a row that were over the budget, or not new, are the end.
        """
        self._estimate = estimate
        if self._repeats is not None:
            return self._ask_repeat(self._repeats.pop(0)) if self._repeats else None
        while True:
            with _alone(self.storage, self.name) as is_alone:
                self._read()
                orphans = self._take_over()
                if self._returned or orphans:
                    return self._take_up(self._returned.pop(0) if self._returned else orphans[0])
                if n_trials is not None and self._n_claimed() >= n_trials:
                    return None
                try:
                    return self._ask_new(max_rejects, is_alone)
                except _NotAlone:
                    continue
                except optuna.exceptions.UpdateFinishedTrialError:
                    if is_alone():
                        raise  # else another launch took ours, half asked for, for one of a launch that died

    def _n_claimed(self) -> int:
        """Trials that ran or are at work, in any launch."""
        unfinished = [trial.user_attrs.get(SUGGESTED) for trial in self._unfinished.values()]
        return self._n_ran + sum(suggested is not None and as_repeat(suggested) is None for suggested in unfinished)

    def _take_up(self, number: int) -> Suggestion:
        stored = self._unfinished[number]
        suggested, trial = stored.user_attrs[SUGGESTED], Trial(self._study, stored.trial_id)
        trial.set_user_attr(SUGGESTED, suggested | {"launch": self.launch_id, "again": suggested.get("again", 0) + 1})
        self._live[number] = trial
        return Suggestion(number, tuples(suggested["config"]), suggested["estimate"], again=True)

    def _ask_new(self, max_rejects: int, is_alone: Callable[[], bool]) -> Suggestion | None:
        """Raises _NotAlone: another launch may have chosen the same meanwhile."""
        n_known = 0  # in a row
        for _ in range(max_rejects + 1):
            self._forget_prices()
            trial = self._study.ask() if n_known < _MOST_KNOWN else self._ask_at_random()
            config = self.space.configure(lambda dimension, trial=trial: pick(trial, dimension))  # type: ignore[misc]
            if _key(config) in self._chosen:
                n_known += 1
                self._study.tell(trial, state=OptunaState.FAIL)  # without what was suggested it is no trial
                continue
            n_known = 0
            cost, correction = self._cost(config), Correction.learned(self._ratios)
            plain = {
                "config": config, "estimate": asdict(cost), "correction": asdict(correction),
                "launch": self.launch_id, "at": now(),
            }  # fmt: skip
            if not is_alone():
                self._study.tell(trial, state=OptunaState.FAIL, skip_if_finished=True)
                raise _NotAlone
            trial.set_user_attr(SUGGESTED, json.loads(json.dumps(plain)))
            self._chosen[_key(config)] = trial.number
            violations = self._bounds.violations(cost.device_bytes, cost.trainable_params)
            if all(value <= 0 for value in violations.values()):
                self._live[trial.number] = trial
                return Suggestion(trial.number, config, asdict(cost))
            over = ", ".join(f"{name} {value:+.0%}" for name, value in violations.items() if value > 0)
            bound = "the budget"
            if self._bounds != self.spec.budget and violations["memory"] > 0:
                bound = f"the GPU's {format_bytes(self._bounds.memory_bytes)}"
            self._finish(
                trial, {"state": TrialState.INFEASIBLE, "reason": f"predicted over {bound}: {over}"}, violations
            )
        return None

    def _ask_at_random(self) -> Trial:
        """For a sampler that knows one answer: GP's best point is its best point until something else is told."""
        sampler = self._study.sampler
        self._random = self._random or optuna.samplers.RandomSampler(seed=(self.spec.seed + self._n_trials) % 2**31)
        self._study.sampler = self._random
        try:
            trial = self._study.ask()
            self.space.configure(lambda dimension: pick(trial, dimension))
            return trial
        finally:
            self._study.sampler = sampler

    def give_back(self, number: int) -> bool:
        """A trial's worker ended without a result: have `ask` hand it out again, once. False: it was so before."""
        trial = self._live[number]
        suggested = self._attr(trial, SUGGESTED)
        if self._is_mine(number):
            if suggested.get("lost"):
                return False
            trial.set_user_attr(SUGGESTED, suggested | {"lost": True})
            self._returned.append(number)
        del self._live[number]
        self._histories.pop(number, None)
        return True

    def has_returned(self) -> bool:
        """Whether a trial waits for `ask` that was given back."""
        return bool(self._returned)

    def _cost(self, config: dict[str, Any]) -> Estimate:
        return self._estimate(config).corrected(Correction.learned(self._ratios))

    def _forget_prices(self) -> None:
        """Prices that the sampler keeps are wrong once the study has learned that its device needs more or less."""
        factor = Correction.learned(self._ratios).factor
        if isinstance(self._study.sampler, ParetoSampler) and abs(factor / self._priced_at - 1) > 0.01:
            self._study.sampler.forget_prices()
            self._priced_at = factor

    def progress(self, number: int, entry: Mapping[str, Any]) -> bool:
        """Keep what a trial has after an epoch: an entry of its history. False: it is to stop there."""
        trial = self._live[number]
        if not self._is_mine(number):
            return False
        if number not in self._histories:
            self._histories[number] = list(trial.user_attrs.get(PROGRESS, {}).get("history", ()))
        history = self._histories[number]
        if history and entry["epoch"] <= history[-1]["epoch"]:
            return True  # taken up again, and before where it was: that it goes on was decided then
        history.append(json.loads(json.dumps(dict(entry))))
        goes_on = True
        if entry["epoch"] in self.rungs and as_repeat(self._attr(trial, SUGGESTED)) is None:
            self._reach(number, self._attr(trial, SUGGESTED)["estimate"], entry)
            goes_on = self._rungs.goes_on(number, entry["epoch"])
        # both in one: a launch may be killed at any time
        trial.set_user_attr(PROGRESS, {"history": history, "stopped": not goes_on})
        return goes_on

    def _reach(self, number: int, estimate: Mapping[str, Any], entry: Mapping[str, Any]) -> None:
        if entry["epoch"] not in self.rungs or self._rungs.has(number, entry["epoch"]):
            return
        figures = {**estimate, **{name: value for name, value in entry.items() if value is not None}}
        over = self.spec.budget.violations(figures["device_bytes"], figures["trainable_params"])
        values = [figures.get(objective.name, math.nan) for objective in self.spec.objectives]
        self._rungs.report(number, entry["epoch"], values, sum(max(0.0, value) for value in over.values()))
        self._due_is_known = False

    def due(self) -> int | None:
        """Of the trials that were stopped, the one that would go on by now."""
        if not self._due_is_known:  # it is asked for ten times a second
            self._due = self._rungs.promotable(list(self._stopped)) if self._stopped else None
            self._due_is_known = True
        return self._due

    def n_stopped(self) -> int:
        """Trials that were stopped and may still be promoted."""
        return len(self._stopped)

    def promote(self) -> Suggestion | None:
        """The stopped trial that is due, to go on from its checkpoint; None: none is."""
        number = self.due()
        if number is None:
            return None
        trial = self._stopped.pop(number)
        self._due_is_known = False
        if not self._is_mine(number):
            return None
        self._live[number] = trial
        suggested, history = self._attr(trial, SUGGESTED), self._attr(trial, PROGRESS)["history"]
        trial.set_user_attr(SUGGESTED, suggested | {"launch": self.launch_id})
        trial.set_user_attr(PROGRESS, {"history": history, "stopped": False})
        self._histories[number] = history
        return Suggestion(
            number, tuples(suggested["config"]), suggested["estimate"], promoted_from=history[-1]["epoch"]
        )

    def close_stopped(self) -> list[int]:
        """Tell optuna of the trials that were stopped, for good. None while one is at work, or due to go on.

        Returns:
            Their numbers.
        """
        if self._live or self.due() is not None:
            return []
        closed = sorted(self._stopped)
        for number in closed:
            trial = self._stopped.pop(number)
            if not self._is_mine(number):
                continue
            estimate = self._attr(trial, SUGGESTED)["estimate"]
            result = so_far(self._attr(trial, PROGRESS)["history"])
            reason = stopped_at(result, self._full_epochs)
            result |= {"outcome": Outcome.STOPPED, "state": TrialState.PRUNED, "ran": True, "reason": reason}
            figures = estimate | result
            violations = self.spec.budget.violations(figures["device_bytes"], estimate["trainable_params"])
            self._constrain(trial, violations)
            trial.set_user_attr(RESULT, result)
            self._study.tell(trial, state=OptunaState.PRUNED)
        return closed

    def _is_mine(self, number: int) -> bool:
        """Whether a trial is still this launch's: one that seems dead, as its host slept, loses its trials."""
        self._read(number)  # an Optuna trial keeps what it once read
        stored = self._unfinished.get(number)
        return stored is not None and stored.user_attrs[SUGGESTED]["launch"] == self.launch_id

    def tell(self, number: int, result: Mapping[str, Any]) -> TrialRecord | None:
        """Record how a trial ended: `TrialResult.to_dict()`, or ``{"outcome": "failed", "reason": ...}``.

        Of one that `progress` stopped ``{"outcome": "stopped"}`` is enough.

        Returns:
            What it is now; None: another launch has taken it up, and this result is not counted.
        """
        trial = self._live.pop(number)
        self._histories.pop(number, None)
        try:
            return self._tell(trial, result) if self._is_mine(number) else None
        except optuna.exceptions.UpdateFinishedTrialError:
            return None

    def _tell(self, trial: Trial, result: Mapping[str, Any]) -> TrialRecord:
        number = trial.number
        if result["outcome"] == Outcome.STOPPED:
            self._stopped[number] = trial
            self._due_is_known = False
            self._learn(number, self._attr(trial, SUGGESTED), so_far(self._attr(trial, PROGRESS)["history"]))
            return self.record(number)
        estimate = self._attr(trial, SUGGESTED)["estimate"]
        measured = result.get("device_bytes") is not None
        device_bytes = result["device_bytes"] if measured else estimate["device_bytes"]
        violations = self.spec.budget.violations(device_bytes, estimate["trainable_params"])
        stored = dict(result) | {"ran": True, "memory_source": "measured" if measured else "predicted"}
        self._learn(number, self._attr(trial, SUGGESTED), result)
        outcome = result["outcome"]
        finite = 0.0
        if outcome == Outcome.COMPLETE and result.get("map") is not None:
            over = [f"{name} {value:+.1%}" for name, value in violations.items() if value > 0]
            stored["state"] = TrialState.INFEASIBLE if over else TrialState.COMPLETE
            if over:
                stored["reason"] = f"measured over the budget: {', '.join(over)}"
        elif outcome == Outcome.OOM:
            needed, reason = refused(result)
            stored |= {"state": TrialState.INFEASIBLE, "reason": reason}
            violations["memory"] = max(violations["memory"], needed, _OOM_VIOLATION)
        elif outcome == Outcome.NONFINITE:
            stored["state"], finite = TrialState.FAILED, 1.0
        else:
            stored["state"] = TrialState.FAILED
            trial.set_user_attr(RESULT, json.loads(json.dumps(stored)))
            self._study.tell(trial, state=OptunaState.FAIL)
            return self.record(number)
        self._finish(trial, stored, violations, finite)
        return self.record(number)

    def _finish(
        self, trial: Trial, result: Mapping[str, Any], violations: Mapping[str, float], finite: float = 0.0
    ) -> None:
        self._constrain(trial, violations, finite)
        trial.set_user_attr(RESULT, json.loads(json.dumps(dict(result))))
        if as_repeat(self._attr(trial, SUGGESTED)) is not None:
            self._study.tell(trial, state=OptunaState.FAIL)
            return
        estimate = self._attr(trial, SUGGESTED)["estimate"]
        figures = estimate | {k: v for k, v in result.items() if v is not None}
        reached = result["state"] != TrialState.FAILED and figures.get("map") is not None
        values = []
        for objective in self.spec.objectives:
            known = objective.name in figures and (reached or objective.goal == "min")
            values.append(float(figures[objective.name]) if known else -math.inf)
        self._study.tell(trial, values)

    def _constrain(self, trial: Trial, violations: Mapping[str, float], finite: float = 0.0) -> None:
        constraints = dict(violations) | {"finite": finite}
        for name in CONSTRAINTS:
            trial.set_constraint(name, constraints[name])
        # optuna-dashboard 0.21 reads only the list that Optuna 4 wrote; without it infeasible trials look feasible.
        # Optuna 5 adds that list to the constraints above, and its GP sampler fits a model to each: one is enough.
        self._study._storage.set_trial_system_attr(trial._trial_id, "constraints", [max(constraints.values())])

    def _learn(self, number: int, suggested: Mapping[str, Any], result: Mapping[str, Any]) -> None:
        """Take a trial's measured memory into the correction, once: one that was stopped may end again."""
        ratio = [] if number in self._measured else memory_ratio(suggested, result)
        if ratio:
            self._measured.add(number)
            self._ratios += ratio

    def _attr(self, trial: Trial, key: str) -> dict[str, Any]:
        return trial.user_attrs[key]

    # --- reading ----------------------------------------------------------------------------------------------------

    def record(self, number: int) -> TrialRecord:
        self._read(number)
        if number in self._unfinished:
            return trial_record(self._unfinished[number], self._launches.live(), self._full_epochs)
        # the one that is asked for has just ended, mostly
        return next(record for record in reversed(self._finished) if record.trial == number)

    def finished(self, since: int = 0) -> Sequence[TrialRecord]:
        """Finished trials and repeats in the order in which this process read of them, from the ``since``-th on.

        Nothing is read for it: `tell`, `record` and `info` read what is new, also of other processes.
        """
        return self._finished[since:]

    def first_running(self) -> int:
        """The number below which no trial is at work, as far as this process has read: all ended, or were stopped.

        Repeats do not count: a launch does not take up what a confirmation left.
        """
        at_work = [
            number
            for number, trial in self._unfinished.items()
            if not trial.user_attrs.get(PROGRESS, {}).get("stopped")
            and as_repeat(trial.user_attrs.get(SUGGESTED, {})) is None
        ]
        return min(at_work, default=self._n_trials)

    def info(self) -> StudyInfo:
        """The study as plain values; trials in the order of their numbers."""
        self._read()
        live = self._launches.live() if self._unfinished else set()
        asked = [trial for trial in self._unfinished.values() if SUGGESTED in trial.user_attrs]
        unfinished = [trial_record(trial, live, self._full_epochs) for trial in asked]
        records = sorted([*self._finished, *unfinished], key=lambda record: record.trial)
        return StudyInfo(
            **vars(self.spec),
            name=self.name,
            started=self.started,
            trials=tuple(record for record in records if record.repeat_of is None),
            repeats=tuple(record for record in records if record.repeat_of is not None),
            launches=self.launches(),
        )

    def _read(self, number: int | None = None) -> list[StoredTrial]:
        """Read what may be new: trials that were made since the last time, and those that had not finished.

        Finished ones never change. Those that this launch has stopped change by itself alone, and there may be many.

        Args:
            number: of a trial to read in any case.

        Returns:
            What was read.
        """
        again = [t.trial_id for n, t in self._unfinished.items() if n not in self._stopped or n == number]
        if self.storage is not None:
            engine, last_id = self.storage.engine, self._last_id
            trials = self.storage.patiently(lambda: read_trials(engine, self.name, last_id, again))
        else:
            trials = [
                StoredTrial(trial._trial_id, trial.number, trial.state.name, trial.user_attrs)
                for trial in self._study.get_trials(deepcopy=False)
                if trial._trial_id > self._last_id or trial._trial_id in again
            ]
        for trial in trials:
            self._last_id = max(self._last_id, trial.trial_id)
            self._n_trials = max(self._n_trials, trial.number + 1)
            self._take_in(trial)
            if not trial.is_finished:
                self._unfinished[trial.number] = trial
                continue
            self._unfinished.pop(trial.number, None)
            if SUGGESTED in trial.user_attrs:
                record = trial_record(trial, set(), self._full_epochs)
                self._finished.append(record)
                self._n_ran += record.ran and record.repeat_of is None
        return trials

    def _take_in(self, trial: StoredTrial) -> None:
        """What the study learns of a trial, whichever launch runs it."""
        suggested = trial.user_attrs.get(SUGGESTED)
        if suggested is None:
            return
        result = trial.user_attrs.get(RESULT if trial.is_finished else PROGRESS, {})
        history = result.get("history", [])
        if as_repeat(suggested) is None:
            self._chosen[_key(suggested["config"])] = trial.number
            for entry in history:
                self._reach(trial.number, suggested["estimate"], entry)
        if result and (trial.is_finished or result["stopped"]):
            self._learn(trial.number, suggested, so_far(history) | result)


class _NotAlone(Exception):
    """The lock of the study was lost, with its server, while it was needed."""


def _alone(storage: optuna.storages.BaseStorage | None, study: str) -> AbstractContextManager[Callable[[], bool]]:
    return storage.alone(study) if isinstance(storage, Storage) else nullcontext(lambda: True)


def _key(config: Mapping[str, Any]) -> str:
    """Configurations are the same if this is."""
    return json.dumps(renamed_fields(config), sort_keys=True)


def open_study(name: str, home: Path, storage: str | None = None) -> Study:
    """A study by name, of a storage or of the one in ``home``. Raises StudyError, naming those that exist."""
    if storage is None and not (home / "studies.db").exists():
        raise StudyError(f"there are no studies in {home} yet; `cst-search launch` makes one, --home looks elsewhere")
    return Study.open(storage or default_storage(home), name)


def default_storage(home: Path) -> str:
    """A SQLite database beside the records of the studies."""
    return f"sqlite:///{os.fspath((home / 'studies.db').absolute())}"
