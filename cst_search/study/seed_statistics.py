"""Statistics over seeds: mean, spread and the least significant difference. Standard library only.

A configuration reaches a different mAP with each seed. A front is chosen from single trials, so its points tend to be
lucky ones among similar configurations; further runs correct for that.

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

NOISY = ("map", "map50")  # metrics that vary with the seed; memory and parameters do not

# 97.5 % quantiles of Student's t distribution for 1 to 30 degrees of freedom (equal to scipy.stats.t.ppf to the last
# digit here). Beyond 30 the last one is used, which is at most 4 % too large.
_T = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228,
    2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086,
    2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A metric of one configuration, one value per seed. ``own``: the first value is the search trial's."""

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
        """Sample standard deviation, with n - 1; None below two values."""
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def new_mean(self) -> float | None:
        """Mean without the value by which the trial was chosen; None: there are no others."""
        new = self.values[1:] if self.own else self.values
        return statistics.fmean(new) if new else None


@dataclass(frozen=True)
class Noise:
    """Spread of runs that differ only in their seed. ``dof``: degrees of freedom of ``std``."""

    std: float
    dof: int

    @classmethod
    def of(cls, samples: Iterable[Sample]) -> Noise | None:
        """Return the noise pooled over configurations: sqrt(sum of squares / sum of (n - 1)).

        A few seeds of one configuration say little. Pooling assumes equal noise for all of them. None: no
        configuration has two values.
        """
        several = [sample for sample in samples if sample.n > 1]
        dof = sum(sample.n - 1 for sample in several)
        squares = sum(statistics.variance(sample.values) * (sample.n - 1) for sample in several)
        return cls(math.sqrt(squares / dof), dof) if dof else None

    def least_difference(self, n_a: int, n_b: int) -> float:
        """Return the least significant difference of two means at 5 % [Fisher1935]: t * std * sqrt(1/n_a + 1/n_b).

        It holds for one comparison; among many, one in twenty exceeds it by chance.
        """
        return _T[min(self.dof, len(_T)) - 1] * self.std * math.sqrt(1 / n_a + 1 / n_b)
