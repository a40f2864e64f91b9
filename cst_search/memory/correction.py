"""Correction of predicted memory, learned from trials that a study measured on its device. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# strength of the prior: a correction counts as if this many earlier trials had matched their prediction exactly
_PRIOR_TRIALS = 2
_LEAST_FACTOR, _LARGEST_FACTOR = 0.9, 1.5


@dataclass(frozen=True)
class Correction:
    """Factor from predicted to measured reserved bytes on a study's device, and the number of trials it rests on."""

    factor: float = 1.0
    n_trials: int = 0

    @classmethod
    def learned(cls, ratios: Sequence[float]) -> Correction:
        """Return the geometric mean of ``ratios``, measured over predicted reserved bytes, shrunk to 1 while few.

        The factor is bounded to 0.9..1.5: a larger error has another cause, and a trial that never met its largest
        batch measures too little.
        """
        if not ratios:
            return cls()
        mean = math.exp(math.fsum(map(math.log, ratios)) / (len(ratios) + _PRIOR_TRIALS))
        return cls(min(max(mean, _LEAST_FACTOR), _LARGEST_FACTOR), len(ratios))
