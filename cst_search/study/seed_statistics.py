"""What one configuration reaches under several seeds, and which differences are more than noise. Standard library only.

Trained again with another seed, a configuration has another mAP. A front is chosen by single trials, so its points are
the lucky ones among their like; here their further runs are put together.

References.

[Fisher1935] R. A. Fisher. The Design of Experiments. Oliver and Boyd, 1935: the least significant difference of two
    means, with a standard deviation pooled over all groups.
[Student1908] Student. The probable error of a mean. Biometrika 6(1), 1908. Its distribution, tabulated in `_T`.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

NOISY = ("map", "map50")  # what another seed changes; memory and parameters are the configuration's

# 97.5 % quantiles of Student's distribution for 1 to 30 degrees of freedom (equal to scipy.stats.t.ppf to the last
# digit here); beyond 30 the last one is used, at most 4 % too large
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A metric of one configuration, a value per seed; ``own``: the first is of the trial that was searched."""

    values: tuple[float, ...]
    own: bool = True

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float | None:
        return statistics.fmean(self.values) if self.values else None

    @property
    def std(self) -> float | None:
        """The sample's standard deviation, with n - 1; None below two values."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def new_mean(self) -> float | None:
        """The mean without the value that the trial was chosen by."""
        new = self.values[1:] if self.own else self.values
        return statistics.fmean(new) if new else None


@dataclass(frozen=True)
class Noise:
    """By how much runs differ that differ in their seed alone. ``dof``: degrees of freedom that ``std`` rests on."""

    std: float
    dof: int

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Noise | None:
        """Pooled over configurations, as a few seeds of one say little: sqrt(sum of squares / sum of (n - 1)).

        It takes the noise of all of them for equal. None where none has two values.
        """
        several = [sample for sample in samples if sample.n > 1]
        dof = sum(sample.n - 1 for sample in several)
        squares = sum(statistics.variance(sample.values) * (sample.n - 1) for sample in several)
        return cls(math.sqrt(squares / dof), dof) if dof else None

    def least_difference(self, n_a: int, n_b: int) -> float:
        """The least difference of two means that is significant at 5 % [Fisher1935]: t * std * sqrt(1/n_a + 1/n_b).

        It is for one comparison; among many, one in twenty exceeds it by chance.
        """
        return _T[min(self.dof, len(_T)) - 1] * self.std * math.sqrt(1 / n_a + 1 / n_b)
