"""Objectives of a search and bounds of its budget: names, goals, units and labels. Declared here alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from cst_search.errors import ConfigError, did_you_mean

Kind = Literal["share", "bytes", "count", "flops"]


@dataclass(frozen=True)
class Objective:
    """A metric of a trial that a search can optimise. Its value is the record's field of this name.

    Those to be minimised are functions of the configuration, known before a trial runs.

    Attributes:
        goal: max if larger is better, min if smaller is better.
        kind: unit: a share of 1, bytes, a count, floating-point operations.
        label, short: what page, tables and pictures call it.
    """

    name: str
    goal: Literal["max", "min"]
    kind: Kind = "count"
    label: str = ""
    short: str = ""

    @property
    def compared(self) -> str:
        """Field of a record that front, knee and hypervolume compare: of device memory, the working memory.

        They differ by the fixed cost, which is the same for all trials and would hide how much they differ.
        """
        return "working_bytes" if self.name == "device_bytes" else self.name


OBJECTIVES: dict[str, Objective] = {
    objective.name: objective
    for objective in (
        Objective("map", "max", "share", "COCO mAP@[.50:.95]", "mAP"),
        Objective("device_bytes", "min", "bytes", "device memory", "device memory"),
        Objective("trainable_params", "min", "count", "trainable parameters", "trainable"),
        Objective("map50", "max", "share", "mAP@.50", "mAP50"),
        Objective("petl_params", "min", "count", "PETL parameters", "PETL"),
        # of the trained detector on one image, see `memory.inference`
        Objective("delta_bytes", "min", "bytes", "delta in storage", "delta"),
        Objective("inference_bytes", "min", "bytes", "memory at inference", "inference"),
        Objective("flops", "min", "flops", "operations of an image", "operations"),
        Objective("marginal_flops", "min", "flops", "operations of a further task", "marginal"),
    )
}
#: objectives that `memory.inference` predicts; trials of earlier versions have none of them
OF_INFERENCE = ("delta_bytes", "inference_bytes", "flops", "marginal_flops")


@dataclass(frozen=True)
class Bound:
    """One kind of bound in a budget.

    Attributes:
        name: name of the constraint in messages and in Optuna.
        field: field of `records.Budget` that holds the bound.
        objective: objective that is bounded.
        flag: option of `launch` that sets the bound.
    """

    name: str
    field: str
    objective: str
    flag: str


BOUNDS = (
    Bound("memory", "memory_bytes", "device_bytes", "--budget-mem"),
    Bound("params", "params", "trainable_params", "--budget-params"),
    Bound("delta", "delta_bytes", "delta_bytes", "--budget-delta"),
    Bound("flops", "flops", "flops", "--budget-flops"),
)


def choose_objectives(text: str) -> tuple[Objective, ...]:
    """Return the objectives named in text such as ``map,device_bytes``, in that order. Raises ConfigError."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    unknown = [name for name in names if name not in OBJECTIVES]
    if not names or unknown or len(set(names)) != len(names):
        near = did_you_mean(unknown[0], OBJECTIVES) if unknown else ""
        raise ConfigError(
            f"--objectives takes different names from {', '.join(OBJECTIVES)}, with commas; got {text!r}{near}"
        )
    return tuple(OBJECTIVES[name] for name in names)


def spares_memory(objectives: Iterable[Objective]) -> bool:
    """Return whether less memory in training is one of the objectives."""
    return any(objective.name == "device_bytes" for objective in objectives)
