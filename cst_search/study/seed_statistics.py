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
from typing import TYPE_CHECKING

from cst_search.errors import StudyError

if TYPE_CHECKING:
    from cst_search.study.records import StudyInfo

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


@dataclass(frozen=True)
class Verdict:
    """Where a trial stands by the means over seeds.

    Attributes:
        on_front: no mean beats it.
        rival: the trial with the best mean among those that are no worse in every other objective; None: there is none.
        rival_seeds: values that the rival's mean is of.
        difference: its mean less the rival's; below 0 where the rival dominates it.
        least: the least difference that is more than noise; None where the noise is not known.
    """

    trial: int
    n_seeds: int
    on_front: bool
    rival: int | None = None
    rival_seeds: int = 0
    difference: float | None = None
    least: float | None = None

    @property
    def in_noise(self) -> bool:
        return self.difference is not None and self.least is not None and abs(self.difference) < self.least

    @property
    def text(self) -> str:
        if self.n_seeds == 0:
            return "no run completed"
        rival = f"trial {self.rival}" + (" (one seed)" if self.rival_seeds == 1 else "")
        if self.on_front:
            words = f"on the front, within noise of {rival}" if self.in_noise else "on the front"
        else:
            words = f"dominated by {rival}" + (", within noise" if self.in_noise else "")
        return words + (", not confirmed" if self.n_seeds == 1 else "")


def quality(info: StudyInfo) -> str:
    """The metric that seeds change and the study maximises, the first of them. Raises StudyError: it has none."""
    for objective in info.objectives:
        if objective.name in NOISY:
            return objective.name
    raise StudyError(
        f"study {info.name!r} has the objectives {', '.join(o.name for o in info.objectives)}, which are the same with "
        f"every seed: there is nothing to confirm"
    )


def noise(info: StudyInfo, epochs: int | None = None) -> Noise | None:
    """Of all trials of a study that have several seeds at a length; None: that of the search."""
    name = quality(info)
    return Noise.of(info.over_seeds(record, name, epochs) for record in info.trials if record.trial in info.repeated)


def verdicts(info: StudyInfo, trials: Iterable[int], epochs: int | None = None) -> list[Verdict]:
    """Of some trials among all of the study that have a mean at a length; None: that of the search."""
    name, spread = quality(info), noise(info, epochs)
    place = next(i for i, objective in enumerate(info.objectives) if objective.name == name)
    signs = [-1.0 if objective.goal == "max" else 1.0 for objective in info.objectives]
    rows = {
        record.trial: [sign * value for sign, value in zip(signs, row, strict=True)]
        for record, row in zip(info.trials, info.values(epochs), strict=True)
        if not any(map(math.isnan, row))
    }
    records = {record.trial: record for record in info.trials}
    on_front = {record.trial for record in info.front(epochs)}
    found = []
    for trial in trials:
        n = info.over_seeds(records[trial], name, epochs).n
        others = [
            other
            for other, row in rows.items()
            if other != trial
            and trial in rows
            and all(row[i] <= rows[trial][i] for i in range(len(signs)) if i != place)
        ]
        if not others:
            found.append(Verdict(trial, n, trial in on_front))
            continue
        rival = min(others, key=lambda other: (rows[other][place], other))
        n_rival = info.over_seeds(records[rival], name, epochs).n
        least = None if spread is None else spread.least_difference(n, n_rival)
        difference = rows[rival][place] - rows[trial][place]
        found.append(Verdict(trial, n, trial in on_front, rival, n_rival, difference, least))
    return found
