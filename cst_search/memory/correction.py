"""What a study learns about the memory of its device from trials that were measured there. Standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

# a correction counts as if so many trials before the first had met their prediction exactly
_PRIOR_TRIALS = 2
_LEAST_FACTOR, _LARGEST_FACTOR = 0.9, 1.5


@dataclass(frozen=True)
class Correction:
    """How reserved bytes on the device at hand compare with the prediction: a factor, from so many measured trials."""

    factor: float = 1.0
    n_trials: int = 0

    @classmethod
    def learned(cls, ratios: Sequence[float]) -> Correction:
        """From measured over predicted reserved bytes: their geometric mean, drawn to 1 while they are few.

        Bounded: what is far off has another cause, and a trial that never met its largest batch measures too little.
        """
        if not ratios:
            return cls()
        mean = math.exp(math.fsum(map(math.log, ratios)) / (len(ratios) + _PRIOR_TRIALS))
        return cls(min(max(mean, _LEAST_FACTOR), _LARGEST_FACTOR), len(ratios))
