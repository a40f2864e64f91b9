"""Objectives: the metrics that a search can optimise, each with its goal (max or min)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cst_search.errors import ConfigError, did_you_mean


@dataclass(frozen=True)
class Objective:
    """A metric of a trial and its goal: max if larger is better, min if smaller is better."""

    name: str
    goal: Literal["max", "min"]

    @property
    def compared(self) -> str:
        """Field of a record that front, knee and hypervolume compare: of device memory, the working memory.

        They differ by the fixed cost, which is the same for all trials and would hide how much they differ.
        """
        return "working_bytes" if self.name == "device_bytes" else self.name


OBJECTIVES: dict[str, Objective] = {
    "map": Objective("map", "max"),
    "device_bytes": Objective("device_bytes", "min"),
    "trainable_params": Objective("trainable_params", "min"),
    "map50": Objective("map50", "max"),
    "petl_params": Objective("petl_params", "min"),
}


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
