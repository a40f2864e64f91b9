"""Records of studies, trials and launches as plain values. Arithmetic only."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from typing import Any

from cst_search.memory.estimate import CONTEXT_BYTES
from cst_search.study import pareto
from cst_search.study.objectives import BOUNDS, OBJECTIVES, OF_INFERENCE, Objective
from cst_search.study.outlook import LEAST_SAID, Outlook
from cst_search.study.seed_statistics import NOISY, Sample
from cst_search.study.states import LaunchState, TrialState
from cst_search.trial.result import TrialFigures
from cst_search.visible import in_line


@dataclass(frozen=True)
class Budget:
    """Upper bounds of `objectives.BOUNDS`; None means unbounded.

    Attributes:
        memory_bytes: of GPU memory in training.
        params: of trainable parameters.
        delta_bytes: of what training adds to storage.
        flops: of the floating-point operations of an image.
    """

    memory_bytes: int | None = None
    params: int | None = None
    delta_bytes: int | None = None
    flops: int | None = None

    def violations(self, costs: Mapping[str, float | None]) -> dict[str, float]:
        """Return ``{"memory": (bytes - budget) / budget, "params": ...}``: <= 0 is feasible, 0 if unbounded.

        The sign is Optuna's. ``memory`` and ``params`` are always present, others if they are bounded, in the order of
        `objectives.BOUNDS`: Optuna's GP sampler needs the same constraints in all trials of a study.

        Args:
            costs: by names of objectives; a cost that is missing or None violates nothing.
        """

        def over(value: float | None, bound: int | None) -> float:
            return 0.0 if bound is None or value is None else value / bound - 1

        return {
            bound.name: over(costs.get(bound.objective), getattr(self, bound.field))
            for bound in BOUNDS
            if bound.name in ("memory", "params") or getattr(self, bound.field) is not None
        }


@dataclass(frozen=True)
class TrialRecord(TrialFigures):
    """One trial of a study: its figures, and what the study knows of it besides.

    Where no memory was measured, the bytes are those predicted. Of a trial that is running or was stopped early, a
    figure is the last value that any epoch had.

    Attributes:
        memory_source: ``measured`` or ``predicted``: where ``device_bytes`` comes from.
        memory_correction: factor on the predicted memory, learned from the study's measured trials.
        context_bytes: fixed cost in ``device_bytes``, the CUDA context without what cuBLAS adds.
        trainable_params, petl_params: predicted; the counts that the budget was applied to.
        delta_bytes, inference_bytes, flops, marginal_flops: predicted, of the trained detector on one image, see
            `memory.inference`; None in trials of versions without them.
        feasible: within the budget by its memory and parameters, complete or stopped early (pruned).
        ran: False if it was rejected by predicted cost, so that no worker was used.
        waits: True if it is pruned, but may still be promoted.
        repeat_of: for a repeat, the trial whose configuration it trains again, with ``seed``, for ``repeat_epochs``.
        launch: ID of the last launch that ran it.
        outlook: what the sampler expected of the next trials when it suggested this one, if it has a model.
    """

    trial: int
    state: TrialState
    config: Mapping[str, Any]
    memory_source: str = "predicted"
    memory_correction: float = 1.0
    context_bytes: int = 0
    trainable_params: int | None = None
    petl_params: int | None = None
    delta_bytes: int | None = None
    inference_bytes: int | None = None
    flops: int | None = None
    marginal_flops: int | None = None
    feasible: bool = False
    ran: bool = False
    waits: bool = False
    repeat_of: int | None = None
    seed: int | None = None
    repeat_epochs: int | None = None
    launch: str | None = None
    outlook: Outlook | None = None

    @property
    def working_bytes(self) -> int | None:
        """Device bytes without the fixed cost."""
        return None if self.device_bytes is None else self.device_bytes - self.context_bytes

    def values(self, objectives: Sequence[Objective]) -> list[float]:
        """Return the objectives in the form that `pareto` takes; all NaN unless the trial is complete and feasible."""
        if self.state != TrialState.COMPLETE or not self.feasible:
            return [math.nan] * len(objectives)
        return [math.nan if (v := getattr(self, o.compared)) is None else float(v) for o in objectives]

    def brief(self) -> dict[str, Any]:
        """Return the trial's own part of a front entry in ``cst-search front --json``; see `StudyInfo.brief`."""
        names = ("trial", "config", "map", "map50", "device_bytes", "working_bytes", "memory_source",
                 "trainable_params", "petl_params", *OF_INFERENCE)  # fmt: skip
        return {name: dict(self.config) if name == "config" else getattr(self, name) for name in names}


@dataclass(frozen=True)
class LaunchRecord:
    """A launch or a confirmation that worked on a study.

    Attributes:
        kind: launch or confirm.
        begun: start time in UTC, ISO 8601.
        settings: its settings, for display.
    """

    id: str
    kind: str
    begun: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    state: LaunchState = LaunchState.RUNNING


KNEE_KEEPS = 0.8  # share of the best accuracy below which the knee is not suggested


@dataclass(frozen=True, kw_only=True)
class StudySpec:
    """Settings that define a study; stored in it, and compared when it is continued.

    Attributes:
        limit_bytes: memory limit of a trial's process, if it differs from ``budget``; see `options.LaunchOptions`. It
            belongs to the study because a trial that exceeds it is recorded as infeasible.
        inputs: properties of the dataset that memory and parameters depend on: ``n_classes``, ``max_boxes``, ``sizes``
            (height, width). Needed to export on a machine without the dataset.
        eta: early stopping: at least one in eta of the trials that reach a rung goes on; 0: all do. None: `ETA` for a
            new study, the stored value for an existing one.
        prior: what the sampler learns from, see `search.sources`; None in studies of earlier versions.
    """

    objectives: tuple[Objective, ...]
    budget: Budget
    reference_point: Mapping[str, float]
    recipe: Mapping[str, Any]
    space: Mapping[str, Any]
    data: str
    seed: int
    sampler: str
    target_device: str
    limit_bytes: int | None = None
    inputs: Mapping[str, Any] = field(default_factory=dict)
    eta: int | None = None
    prior: tuple[str, ...] | None = None

    @property
    def full_epochs(self) -> int:
        """Length of a search trial, in epochs; the front consists of such trials."""
        return int(self.recipe["search_epochs"])

    def to_dict(self) -> dict[str, Any]:
        plain = {one.name: getattr(self, one.name) for one in fields(StudySpec)}
        plain |= {"objectives": [o.name for o in self.objectives], "budget": asdict(self.budget)}
        return json.loads(json.dumps(plain))


@dataclass(frozen=True, kw_only=True)
class StudyInfo(StudySpec):
    """A study's spec with its trials, repeats and launches.

    A trial that was repeated with other seeds (`repeats`) counts with its mean over seeds, here and wherever mAP
    decides: front, knee, hypervolume, best. Its repeats are not points of their own.

    Attributes:
        trials: trials of the search, without repeats.
        repeats: configurations of ``trials`` trained again, of any state and length; see `cst_search.commands.confirm`.
    """

    name: str
    started: str
    trials: tuple[TrialRecord, ...]
    repeats: tuple[TrialRecord, ...] = ()
    launches: tuple[LaunchRecord, ...] = ()  # by start time

    @cached_property
    def context_bytes(self) -> int:
        """Fixed cost in the study's device bytes: that of its first trial, or what the next one will have."""
        return self.trials[0].context_bytes if self.trials else CONTEXT_BYTES

    @property
    def further_costs(self) -> list[Objective]:
        """Costs that are optimised or bounded, besides memory and parameters, which tables always show."""
        bounded = {bound.objective for bound in BOUNDS if getattr(self.budget, bound.field) is not None}
        chosen = bounded.union(o.name for o in self.objectives)
        return [OBJECTIVES[name] for name in OF_INFERENCE if name in chosen]

    @property
    def compared_reference(self) -> dict[str, float]:
        """The reference point by the names of what is compared: of ``device_bytes`` the ``working_bytes``.

        Earlier versions took the hypervolume of device memory. Where they stored one (a launch's curve in MLflow), it
        is smaller by a factor that is the same for the whole study: 1 - context / reference.
        """
        point = {o.compared: self.reference_point[o.name] for o in self.objectives}
        if "working_bytes" in point:  # at least 1: a budget below the context is no fault, though nothing fits into it
            point["working_bytes"] = max(1.0, point["working_bytes"] - self.context_bytes)
        return point

    @property
    def reference(self) -> list[float]:
        """The reference point in the form that `pareto` takes."""
        return list(self.compared_reference.values())

    @cached_property
    def repeated(self) -> Mapping[int, tuple[TrialRecord, ...]]:
        """Complete repeats of any length by trial number, ordered by seed."""
        found: dict[int, list[TrialRecord]] = {}
        for record in sorted(self.repeats, key=lambda record: (record.seed or 0, record.trial)):
            if record.state == TrialState.COMPLETE and record.repeat_of is not None:
                found.setdefault(record.repeat_of, []).append(record)
        return {trial: tuple(records) for trial, records in found.items()}

    def over_seeds(self, record: TrialRecord, name: str = "map", epochs: int | None = None) -> Sample:
        """Return a metric of a trial and its complete repeats over ``epochs``; None: the search's length."""
        repeats = self.repeated.get(record.trial, ())
        if epochs is None or epochs == self.full_epochs:
            runs = [record, *(r for r in repeats if r.repeat_epochs == self.full_epochs)]
        else:
            runs = [r for r in repeats if r.repeat_epochs == epochs]
        return Sample(tuple(v for r in runs if (v := getattr(r, name)) is not None), own=record in runs)

    def values(self, epochs: int | None = None) -> list[list[float]]:
        """Return the objectives of every trial, means over seeds if there are several, in the form that `pareto` takes.

        Args:
            epochs: training length. At a length other than the search's, only trials repeated at it have values.
        """
        return [self.values_of(record, epochs) for record in self.trials]

    def values_of(self, record: TrialRecord, epochs: int | None = None) -> list[float]:
        """Return the objectives of one trial, as `values` does. The trial may have ended after this was read."""
        row = record.values(self.objectives)
        if epochs is not None or record.trial in self.repeated:
            for i, objective in enumerate(self.objectives):
                if objective.name in NOISY and not math.isnan(row[i]):
                    mean = self.over_seeds(record, objective.name, epochs).mean
                    row[i] = math.nan if mean is None else mean
        return row

    def front(self, epochs: int | None = None) -> list[TrialRecord]:
        """Return the non-dominated feasible trials, best mAP (the mean over seeds) first."""
        found = [self.trials[i] for i in pareto.front(self.values(epochs), self.objectives)]

        def place(record: TrialRecord) -> tuple[float, int, int]:
            return -(self.over_seeds(record, "map", epochs).mean or 0.0), record.device_bytes or 0, record.trial

        return sorted(found, key=place)

    def best_map(self) -> float | None:
        """Return the highest mAP on the front, the mean over seeds if that point was confirmed; None: empty front."""
        front = self.front()
        return self.over_seeds(front[0]).mean or 0.0 if front else None

    def knee(self) -> int | None:
        """Return the trial number of the front's knee; None: the front is empty."""
        index = pareto.knee(self.values(), self.objectives)
        return None if index is None else self.trials[index].trial

    def suggested_pick(self) -> str:
        """Return what to export when there is no reason for another point: ``knee``, or ``best``.

        It is ``best`` if fewer than three points are on the front, or no cost tells them apart, or the knee keeps less
        than `KNEE_KEEPS` of the best accuracy: the knee would give up accuracy for next to nothing.
        """
        records = self.front()
        front = [self.values_of(record) for record in records]
        if len(front) < 3:
            return "best"
        knee = next(values for values, record in zip(front, records, strict=True) if record.trial == self.knee())
        goals = [i for i, objective in enumerate(self.objectives) if objective.goal == "max"]
        if any(knee[i] < KNEE_KEEPS * max(values[i] for values in front) for i in goals):
            return "best"
        counts = pareto.tells_apart(front)
        return "knee" if any(counts[i] for i, o in enumerate(self.objectives) if o.goal == "min") else "best"

    def picked(self, pick: str) -> TrialRecord | None:
        """Return the trial of a pick, ``knee`` or ``best`` (highest mAP); None: the front is empty."""
        wanted = self.knee() if pick == "knee" else None
        return next((record for record in self.front() if wanted in (None, record.trial)), None)

    def suggested(self) -> TrialRecord | None:
        """Return the trial of the `suggested_pick`; None: the front is empty."""
        return self.picked(self.suggested_pick())

    def hypervolume(self) -> float:
        return pareto.hypervolume(self.values(), self.objectives, self.reference)

    def outlook(self) -> Outlook | None:
        """Return what the next trials would bring, as of the last suggestion that says it; None: there is none."""
        return next((record.outlook for record in reversed(self.trials) if record.outlook is not None), None)

    def outlook_line(self) -> str | None:
        """Return the outlook as a sentence; None: there is none, or the search has fewer than `LEAST_SAID` trials."""
        found = self.outlook()
        return None if found is None or self.n_ran() < LEAST_SAID else str(found)

    @property
    def shown_name(self) -> str:
        """Name of the study, safe to print within a line."""
        return in_line(self.name)

    def counts(self) -> dict[str, int]:
        counts = {"total": len(self.trials)} | {state.value: 0 for state in TrialState}
        for record in self.trials:
            counts[record.state] += 1
        return counts | {"repeats": len(self.repeats)}

    def n_ran(self) -> int:
        """Return the number of trials that count against ``--trials``: those that ended after running on a worker."""
        return sum(
            record.ran and record.state not in (TrialState.RUNNING, TrialState.INTERRUPTED) for record in self.trials
        )

    def brief(self, record: TrialRecord) -> dict[str, Any]:
        """Return a front entry of ``cst-search front --json``.

        ``map`` and ``map50`` are the trial's own values. ``n_seeds`` is the number of its runs, itself included;
        ``map_mean`` and ``map_std`` (n - 1, None for one run) are over these runs, and so for ``map50``.
        """
        samples = {name: self.over_seeds(record, name) for name in NOISY}
        spread = {f"{name}_{key}": getattr(samples[name], key) for name in NOISY for key in ("mean", "std")}
        return record.brief() | {"n_seeds": samples["map"].n} | spread

    def by_number(self, number: int) -> TrialRecord | None:
        return next((record for record in self.trials if record.trial == number), None)


def common_reference(infos: Sequence[StudyInfo]) -> list[float] | None:
    """Return the worst of several studies' reference points; None: their data or objectives differ."""
    first = infos[0]
    if any((info.data, info.objectives) != (first.data, first.objectives) for info in infos):
        return None
    return pareto.common_reference([info.reference for info in infos], first.objectives)
