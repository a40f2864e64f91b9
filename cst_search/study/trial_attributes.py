"""Typed attributes that a study stores with each trial, and the trial record built from them.

A trial has up to three attributes, each a JSON object: `Suggested` from the moment it is asked for, `Progress` while it
trains, `Result` once it has ended. Objects from earlier versions lack some keys and can still be read.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from types import NoneType
from typing import Any

from cst_search.config.recipe import renamed_fields
from cst_search.memory.estimate import context_of
from cst_search.study.fast_reads import StoredTrial
from cst_search.study.objectives import OF_INFERENCE
from cst_search.study.outlook import Outlook
from cst_search.study.records import Budget, TrialRecord
from cst_search.study.states import TrialState
from cst_search.study.stored_form import (
    NUMBER,
    NUMBER_OR_NONE,
    DamagedError,
    check_object,
    check_optional,
)
from cst_search.trial.result import FIGURES, Outcome, TrialFigures
from cst_search.units import format_bytes

SUGGESTED = "cst_suggested"
PROGRESS = "cst_progress"
RESULT = "cst_result"
_STATES = frozenset(TrialState)
# types of what is stored; keys that versions added later may be missing
_ESTIMATE = dict.fromkeys(("device_bytes", "reserved_bytes", "active_bytes", "trainable_params", "petl_params"), NUMBER)
_SUGGESTED = {"at": (str, NoneType), "correction": (dict, NoneType), "repeat_of": NUMBER_OR_NONE, "again": int}
_BY_ANNOTATION = {"str": (str, NoneType), "Seq": (list, NoneType), "Map": (dict, NoneType)}
_RESULT = {
    f.name: _BY_ANNOTATION.get(str(f.type)[:3], NUMBER_OR_NONE) for f in fields(TrialFigures)
}  # the types of the figures, as text
_ADDED = ("memory_source", "ran", "waits")  # to the figures of a result by the study, under the record's names


@dataclass(frozen=True)
class Repeat:
    """A repeat: a trial's configuration trained again with a different seed or length."""

    repeat_of: int
    seed: int
    epochs: int


@dataclass(frozen=True, kw_only=True)
class Suggested:
    """The configuration of a trial, its predicted cost, and the launch that runs it.

    Attributes:
        config: values of the space's dimensions; tuples are lists, as JSON has no tuples.
        estimate: the corrected predicted cost, as ``asdict(memory.estimate.Estimate)``.
        launch: ID of the last launch that runs the trial.
        at: time of the suggestion in UTC, ISO 8601.
        correction: ``asdict(memory.correction.Correction)`` of the estimate; None in studies older than corrections.
        repeat: the repeat that the trial is; None for a trial of the search.
        again: number of times that a later launch, or this one, resumed the trial.
        lost: True if its worker once ended without a result.
        reference: True if others are compared with it, so that it is never stopped early.
        outlook: what the sampler expected of the next trials when it suggested this one; None: it has no model.
    """

    config: Mapping[str, Any]
    estimate: Mapping[str, Any]
    launch: str | None
    at: str | None = None
    correction: Mapping[str, Any] | None = None
    repeat: Repeat | None = None
    again: int = 0
    lost: bool = False
    reference: bool = False
    outlook: Outlook | None = None

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Suggested | None:
        """Read it from a trial's user attributes; None: the trial was asked for but has no configuration yet."""
        if attributes.get(SUGGESTED) is None:
            return None
        plain = check_object(attributes[SUGGESTED], SUGGESTED, config=dict, estimate=dict, launch=(str, NoneType))
        check_object(plain["estimate"], f"the estimate of {SUGGESTED}", **_ESTIMATE)
        check_optional(plain, SUGGESTED, _SUGGESTED)
        of = plain.get("repeat_of")
        if of is not None:
            check_object(plain, SUGGESTED, seed=int, epochs=int)
        outlook = plain.get("outlook")
        if outlook is not None:
            check_object(outlook, f"the outlook of {SUGGESTED}", gain=NUMBER, noise=NUMBER)
        return cls(
            config=plain["config"],
            estimate=plain["estimate"],
            launch=plain["launch"],
            at=plain.get("at"),
            correction=plain.get("correction"),
            repeat=None if of is None else Repeat(of, plain["seed"], plain["epochs"]),
            again=plain.get("again", 0),
            lost=plain.get("lost", False),
            reference=plain.get("reference", False),
            outlook=None if outlook is None else Outlook(outlook["gain"], outlook["noise"]),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the stored form, JSON types only. Keys without information are left out."""
        plain: dict[str, Any] = {"config": self.config, "estimate": self.estimate}
        if self.correction is not None:
            plain["correction"] = self.correction
        if self.repeat is not None:
            plain |= asdict(self.repeat)
        plain["launch"] = self.launch
        if self.at is not None:
            plain["at"] = self.at
        if self.again:
            plain["again"] = self.again
        if self.lost:
            plain["lost"] = True
        if self.reference:
            plain["reference"] = True
        if self.outlook is not None:
            plain["outlook"] = asdict(self.outlook)
        return _plain(plain)

    @property
    def factor(self) -> float:
        """Correction factor on the predicted reserved bytes, learned from the study's measured trials."""
        return float((self.correction or {}).get("factor", 1.0))

    @property
    def device_bytes(self) -> int:
        return int(self.estimate["device_bytes"])

    @property
    def trainable_params(self) -> int:
        return int(self.estimate["trainable_params"])

    def recipe_values(self) -> dict[str, Any]:
        """Return the configuration with tuples in place of lists, as in the space and the recipe."""
        return tuples(self.config)

    def memory_ratio(self, result: Result) -> float | None:
        """Return measured reserved GPU bytes over uncorrected prediction; None: nothing usable was measured.

        A trial that ran out of memory needed at least what it held plus what it was refused.
        """
        measured = result.get("reserved_bytes")
        predicted = self.estimate["reserved_bytes"] / self.factor
        if not measured:
            return None
        if result.outcome == Outcome.OOM:
            measured = max(measured, (result.get("held_bytes") or 0) + (result.get("asked_bytes") or 0))
            return measured / predicted if measured > predicted else None
        return measured / predicted if result.outcome in (Outcome.COMPLETE, Outcome.STOPPED) else None


@dataclass(frozen=True)
class Progress:
    """Progress of a trial that has not ended.

    Attributes:
        history: one entry per epoch; see `TrialResult.history`.
        stopped: True if it was stopped at a rung and waits to be promoted.
    """

    history: Sequence[Mapping[str, Any]] = ()
    stopped: bool = False

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Progress:
        """Read it from a trial's user attributes; a trial that has not reported has an empty history."""
        plain = check_object(attributes.get(PROGRESS, {}), PROGRESS)
        _check_history(plain, PROGRESS)
        return cls(plain.get("history", ()), plain.get("stopped", False))

    def to_dict(self) -> dict[str, Any]:
        """Return the stored form."""
        return {"history": list(self.history), "stopped": self.stopped}

    def so_far(self) -> Result:
        """Return the result so far: the last value that any epoch had of each figure."""
        found: dict[str, Any] = {"history": list(self.history), "outcome": Outcome.STOPPED}
        for entry in self.history:
            found |= {name: value for name, value in entry.items() if value is not None}
        return Result(found | {"memory_source": "measured" if "device_bytes" in found else "predicted"})


@dataclass(frozen=True)
class Result:
    """The result of a trial: `TrialResult.to_dict` with the study's additions.

    The study adds ``state`` (`TrialState`), ``ran`` (False: rejected by predicted cost), ``memory_source`` (measured or
    predicted) and a ``reason``.

    Attributes:
        plain: the stored form. A result has only the figures that were reached.
    """

    plain: Mapping[str, Any]

    @classmethod
    def of(cls, attributes: Mapping[str, Any]) -> Result | None:
        """Read it from a trial's user attributes; None: the trial has not ended, or ended without a result."""
        plain = attributes.get(RESULT)
        if plain is None:
            return None
        check_object(plain, RESULT, state=str)
        if plain["state"] not in _STATES:
            raise DamagedError(f"{RESULT} is damaged: there is no state {plain['state'][:60]!r}")
        check_optional(plain, RESULT, _RESULT)
        _check_history(plain, RESULT)
        return cls(plain)

    def to_dict(self) -> dict[str, Any]:
        """Return the stored form, JSON types only."""
        return _plain(self.plain)

    def get(self, name: str) -> Any:
        """Return a figure, e.g. ``reserved_bytes``; None: it was not reached."""
        return self.plain.get(name)

    def with_(self, **more: Any) -> Result:
        """Return a copy with entries added or replaced."""
        return Result({**self.plain, **more})

    @property
    def outcome(self) -> str | None:
        return self.plain.get("outcome")

    @property
    def state(self) -> TrialState:
        return TrialState(self.plain["state"])

    @property
    def history(self) -> Sequence[Mapping[str, Any]]:
        return self.plain.get("history", ())

    def figures(self) -> dict[str, Any]:
        """Return all figures that were reached."""
        return {name: value for name, value in self.plain.items() if value is not None}

    def over_limit(self) -> float:
        """Return the least share by which an out-of-memory trial exceeded its limit; 0 if unknown."""
        limit, held, asked = (self.get(key) for key in ("limit_bytes", "held_bytes", "asked_bytes"))
        return 0.0 if limit is None or held is None else (held + (asked or 0)) / limit - 1

    def oom_reason(self) -> str:
        """Return the reason for an out-of-memory trial: the stage, and how much of its limit it held."""
        stage, limit, held = (self.get(key) for key in ("stage", "limit_bytes", "held_bytes"))
        reason = f"out of memory{f' ({stage})' if stage else ''}: {self.get('reason')}"
        if limit is None or held is None:
            return reason
        return f"{reason}; it held {format_bytes(held)} of {format_bytes(limit)}"

    def stopped_reason(self, full_epochs: int) -> str:
        """Return the reason for a trial that was stopped early."""
        return f"stopped after epoch {self.plain['epoch']} of {full_epochs}"


def check_attributes(attributes: Mapping[str, Any]) -> None:
    """Raise DamagedError if the attributes of a trial have not the form in which they were stored."""
    for kind in (Suggested, Progress, Result):
        kind.of(attributes)


def _check_history(plain: Mapping[str, Any], name: str) -> None:
    check_optional(plain, name, {"history": list})
    for entry in plain.get("history", ()):
        check_object(entry, f"an epoch of {name}", epoch=int)
        if not all(isinstance(value, NUMBER_OR_NONE) for value in entry.values()):
            check_optional(entry, f"an epoch of {name}", dict.fromkeys(entry, NUMBER_OR_NONE))


def learning_curve(attributes: Mapping[str, Any], name: str) -> dict[int, float]:
    """Return {epoch: value} of a metric from a trial's user attributes, for the epochs that have one."""
    result = Result.of(attributes) or Progress.of(attributes)
    return {entry["epoch"]: entry[name] for entry in result.history if entry.get(name) is not None}


def trial_record(trial: StoredTrial, live_launches: Collection[str], full_epochs: int, budget: Budget) -> TrialRecord:
    """Build the record of a trial that was suggested.

    Args:
        live_launches: IDs of running launches; an unfinished trial of any other launch is interrupted.
        full_epochs: length of a search trial, in epochs.
        budget: the study's, which says whether a trial that was stopped early is feasible.
    """
    suggested, result = Suggested.of(trial.user_attrs), Result.of(trial.user_attrs)
    assert suggested is not None
    if result is None or not trial.is_finished:
        is_running = trial.is_running and suggested.launch in live_launches
        progress, state = Progress.of(trial.user_attrs), TrialState.RUNNING if is_running else TrialState.INTERRUPTED
        result = progress.so_far().with_(state=state, ran=True)
        if progress.stopped:
            result = result.with_(state=TrialState.PRUNED, waits=True, reason=result.stopped_reason(full_epochs))
    estimate, repeat = suggested.estimate, suggested.repeat
    figures = {name: estimate[name] for name in ("device_bytes", "reserved_bytes", "active_bytes")}
    figures |= {name: estimate.get(name) for name in OF_INFERENCE}
    figures |= {name: value for name in (*FIGURES, *_ADDED) if (value := result.get(name)) is not None}
    return TrialRecord(
        trial=trial.number,
        state=result.state,
        config=suggested.recipe_values(),
        memory_correction=suggested.factor,
        context_bytes=_context_of(estimate, result),
        trainable_params=estimate["trainable_params"],
        petl_params=estimate["petl_params"],
        feasible=_is_feasible(result.state, budget, {**estimate, "device_bytes": figures["device_bytes"]}),
        repeat_of=None if repeat is None else repeat.repeat_of,
        seed=None if repeat is None else repeat.seed,
        repeat_epochs=None if repeat is None else repeat.epochs,
        launch=suggested.launch,
        outlook=suggested.outlook,
        **figures,
    )


def _is_feasible(state: TrialState, budget: Budget, costs: Mapping[str, Any]) -> bool:
    """Return whether a trial kept its budget: a complete one did, see search/outcomes.py; one stopped early may."""
    if state == TrialState.PRUNED:
        return max(budget.violations(costs).values()) <= 0
    return state == TrialState.COMPLETE


def _context_of(estimate: Mapping[str, Any], result: Result) -> int:
    """Return the fixed cost in a trial's device bytes: of the context added to those measured, else as predicted.

    The two differ if a later version ran what an earlier one had suggested.
    """
    breakdown = estimate.get("breakdown")
    device, reserved = (result.get(name) for name in ("device_bytes", "reserved_bytes"))
    if device is None or reserved is None:
        return context_of(breakdown)
    return int(device - reserved - (result.get("asked_bytes") or 0) - (breakdown or {}).get("blas_context", 0))


def tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a stored configuration with tuples in place of lists and recipe fields by their current names."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in renamed_fields(config).items()}


def _plain(value: Mapping[str, Any]) -> dict[str, Any]:
    return json.loads(json.dumps(dict(value)))
