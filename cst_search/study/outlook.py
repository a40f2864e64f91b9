"""Gain that the sampler's model expects of further trials at a suggestion. Arithmetic only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

NEXT = 10  # trials that an outlook speaks of
LEAST_SAID = 20  # of a search with fewer trials the model promises many times too much
LEAST_TRIALS = 30  # a search with fewer has not converged
# of ten times the gain of the best next trial. None of the ten gains more than the best next one, as improvements
# overlap; their median was less than half of that (docs/benchmarks.md)
_SHARE = 0.5
IN_A_ROW = 3  # outlooks that must be below the noise


@dataclass(frozen=True)
class Outlook:
    """Expected gain of the next trials, as shares of the hypervolume so far.

    Attributes:
        gain: expected gain of the best next trial.
        noise: standard deviation of the hypervolume if the front were trained again with other seeds.
    """

    gain: float
    noise: float

    @property
    def of_next(self) -> float:
        """Gain expected of the next `NEXT` trials together."""
        return _SHARE * NEXT * self.gain

    def __str__(self) -> str:
        return (
            f"the next {NEXT} trials are expected to add about {_percent(self.of_next)} to the hypervolume; "
            f"other seeds change it by {_percent(self.noise)}"
        )


def has_converged(outlooks: Sequence[Outlook], n_trials: int) -> bool:
    """Return whether a search has converged: in the last three outlooks, ten trials gain less than the noise of seeds.

    Args:
        outlooks: by trial.
        n_trials: finished trials that used a worker; `LEAST_TRIALS` are needed.
    """
    last = outlooks[-IN_A_ROW:]
    return n_trials >= LEAST_TRIALS and len(last) == IN_A_ROW and all(one.of_next < one.noise for one in last)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.001 else "less than 0.1 %"
