"""Pareto front, hypervolume and knee of a set of points. Arithmetic only.

``values`` always has shape ``n x m``: one row per trial, one column per objective, in the units of the record
(mAP as a share 0..1, bytes, counts), **not** sign-flipped. Each `Objective` has its goal, and `as_costs` converts
everything to "smaller is better" once, on entry.

The NaN rule: a row with a NaN in any column (a failed or infeasible trial) is never on the front and adds nothing to a
hypervolume. An infinity is not a measurement either and counts as NaN.

References.

[Kung1975] H. T. Kung, F. Luccio, F. P. Preparata. On finding the maxima of a set of vectors. Journal of the ACM 22(4),
    1975. The algorithm of `moocore.is_nondominated` for up to three objectives.
[Zitzler1999] E. Zitzler, L. Thiele. Multiobjective evolutionary algorithms: a comparative case study and the strength
    Pareto approach. IEEE Transactions on Evolutionary Computation 3(4), 1999. The hypervolume as an indicator.
[Guerreiro2018] A. P. Guerreiro, C. M. Fonseca. Computing and updating hypervolume contributions in up to four
    dimensions. IEEE Transactions on Evolutionary Computation 22(3), 2018. The algorithm of `moocore.hypervolume`.
[Zeleny1973] M. Zeleny. Compromise programming. In J. L. Cochrane, M. Zeleny (eds.), Multiple Criteria Decision Making,
    University of South Carolina Press, 1973.
[Miettinen1999] K. Miettinen. Nonlinear Multiobjective Optimization. Kluwer, 1999: the method of the global criterion,
    among the no-preference methods.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import moocore
import numpy as np
from numpy.typing import ArrayLike, NDArray

from cst_search.errors import ConfigError
from cst_search.study.objectives import Objective

Floats = NDArray[np.float64]

# Best possible value of a maximised metric; all of ours are shares (mAP is an average of precisions).
BEST_SHARE = 1.0
# An objective that spans less over the front, as a share of its largest value there, does not count for the knee.
LEAST_SPAN = 0.01


def front(values: ArrayLike, objectives: Sequence[Objective]) -> list[int]:
    """Return the indices of the non-dominated rows, ascending.

    Row a dominates row b if it is no worse in every objective and better in at least one. Equal rows do not dominate
    one another: duplicates of a front point are all kept. Rows with a NaN are left out; no rows give [].

    Args:
        values: ``n x m``, NaN where unknown.
        objectives: m objectives, one per column.
    """
    costs = as_costs(values, objectives)
    known = np.flatnonzero(~np.isnan(costs).any(axis=1))
    return [int(i) for i in known[nondominated(costs[known])]]


def hypervolume(values: ArrayLike, objectives: Sequence[Objective], reference: Sequence[float]) -> float:
    """Return the share, 0..1, of the box between ideal and reference point that the rows dominate [Zitzler1999].

    Each objective is scaled so that this box has volume 1, which makes studies with different units comparable:

        min:  u = value / reference                     (ideal 0)
        max:  u = (1 - value) / (1 - reference)         (ideal 1: map and map50 are shares)

    and the result is the volume of the union of the boxes [u, 1] over all rows. A row that is not better than the
    reference in every objective, or has a NaN, contributes nothing; a value beyond the ideal counts as ideal.

    Args:
        values: ``n x m``; dominated rows and duplicates do not change the result.
        objectives: m objectives, one per column.
        reference: m values, the worst that still count: above 0 if the goal is min, below 1 if it is max.

    Raises:
        ConfigError: if the reference point is not worse than the ideal, or has the wrong length.
    """
    return _volume(_unit_costs(values, objectives, reference))


def hypervolume_by_trial(values: ArrayLike, objectives: Sequence[Objective], reference: Sequence[float]) -> list[float]:
    """Return the `hypervolume` of rows 0..i for each i: n numbers, non-decreasing; no rows give [].

    Pass rows that must not count (infeasible, failed) with a NaN. The volume is recomputed only when a row is not
    covered by the front so far; see `GrowingFront`.
    """
    growing = GrowingFront(objectives, reference)
    volumes = []
    for i, row in enumerate(as_costs(values, objectives) * _signs(objectives)):
        growing.add(i, row)
        volumes.append(growing.volume)
    return volumes


class GrowingFront:
    """Incremental `front` and `hypervolume` of rows added one at a time.

    Adding a row costs one comparison with the front so far. The volume is recomputed only when the row joins the front,
    which is rare: about (log n)^(m-1) times among n random rows. If every row joins, adding n rows costs O(n^2 log n)
    in total for up to three objectives.

    Attributes:
        members: keys of the rows on the front, in the order in which they were added.
        volume: share of the box, 0..1; it never decreases.
    """

    def __init__(self, objectives: Sequence[Objective], reference: Sequence[float]) -> None:
        """Raises ConfigError as `hypervolume` does."""
        self.members: list[Any] = []
        self.volume = 0.0
        self._ideal, self._span = _box(objectives, reference)
        self._signs = _signs(objectives)
        self._costs = np.empty((0, len(objectives)))

    def add(self, key: Any, values: Sequence[float]) -> bool:
        """Add a row; return whether it joins the front. A NaN or infinity never does; a duplicate of a member does."""
        if not all(map(math.isfinite, values)):
            return False
        row = np.asarray(values, dtype=np.float64) * self._signs
        no_worse = self._costs[(self._costs <= row).all(axis=1)]
        if (no_worse < row).any():
            return False
        if len(no_worse) == 0:  # otherwise it equals a member, and dominates nothing more
            stays = np.flatnonzero((row > self._costs).any(axis=1))
            self.members = [self.members[i] for i in stays]
            self._costs = self._costs[stays]
        self.members.append(key)
        self._costs = np.vstack([self._costs, row])
        if len(no_worse) == 0 and (row - self._ideal < self._span).all():  # within the box
            # max: rounding must not make the volume fall
            self.volume = max(self.volume, _volume(np.maximum((self._costs - self._ideal) / self._span, 0.0)))
        return True


def knee(values: ArrayLike, objectives: Sequence[Objective]) -> int | None:
    """Return the index of the front's point nearest to the ideal: compromise programming [Zeleny1973], [Miettinen1999].

    Each objective is scaled so that its best value on the front is 0 and its worst is 1. The ideal is then the origin
    (the best of each, usually reached by no point), and the nearest point by Euclidean distance is the knee. An
    objective that spans next to nothing does not count; see `tells_apart`. Ties go to the point with the higher mAP
    (the maximised objectives, in order), then to the earlier row. A single point is its own knee; an empty front gives
    None.
    """
    candidates = front(values, objectives)
    if not candidates:
        return None
    costs = as_costs(values, objectives)[candidates]
    low, high = costs.min(axis=0), costs.max(axis=0)
    counts = tells_apart(costs)
    scaled = np.where(counts, (costs - low) / np.where(counts, high - low, 1.0), 0.0)
    # Mirrored points must tie: 1e-12 is far above rounding errors and far below any difference that matters.
    distance = np.round(np.linalg.norm(scaled, axis=1), 12)
    ties = [costs[:, j] for j, objective in enumerate(objectives) if objective.goal == "max"]
    order = np.lexsort([np.arange(len(candidates)), *reversed(ties), distance])  # the last key is the first criterion
    return candidates[int(order[0])]


def tells_apart(points: ArrayLike) -> NDArray[np.bool_]:
    """Return a mask of the m objectives that span at least `LEAST_SPAN` of their largest value over ``n x m`` points.

    The points are those of a front, without NaN; signs do not matter. By the other objectives no point is worth more
    than another: scaled to its span, 1 MB in 1 GB would weigh as much as all that the front spans in mAP.
    """
    table = np.asarray(points, dtype=np.float64)
    span = np.ptp(table, axis=0)
    return np.asarray((span > 0) & (span >= LEAST_SPAN * np.abs(table).max(axis=0)))


def as_costs(values: ArrayLike, objectives: Sequence[Objective]) -> Floats:
    """Return ``n x m`` costs, all to be minimised, NaN where not finite. The only place where signs are flipped."""
    table = np.asarray(values, dtype=np.float64)
    if table.size == 0:
        return np.empty((0, len(objectives)))
    if table.ndim != 2 or table.shape[1] != len(objectives):
        raise ValueError(f"values must be n x {len(objectives)}, one column per objective; got shape {table.shape}")
    return np.where(np.isfinite(table), table, np.nan) * _signs(objectives)


def _signs(objectives: Sequence[Objective]) -> Floats:
    return np.array([-1.0 if objective.goal == "max" else 1.0 for objective in objectives])


def _unit_costs(values: ArrayLike, objectives: Sequence[Objective], reference: Sequence[float]) -> Floats:
    """Return ``n x m`` costs, 0 at the ideal and 1 at the reference point; clipped below at 0, NaN kept."""
    ideal, span = _box(objectives, reference)
    return np.maximum((as_costs(values, objectives) - ideal) / span, 0.0)


def _box(objectives: Sequence[Objective], reference: Sequence[float]) -> tuple[Floats, Floats]:
    """Return (ideal point as costs, distance from it to the reference point), m values each. Raises ConfigError."""
    n, m = len(reference), len(objectives)
    if n != m:
        raise ConfigError(f"the reference point needs {m} values, one per objective; got {n}")
    faults = [
        f"{objective.name}: must be {'below 1' if objective.goal == 'max' else 'above 0'}, got {value}"
        for objective, value in zip(objectives, reference, strict=True)
        if not (-np.inf < value < BEST_SHARE if objective.goal == "max" else 0 < value < np.inf)
    ]
    if faults:
        raise ConfigError("the reference point must be worse than the best possible value: " + "; ".join(faults))
    ideal = np.array([-BEST_SHARE if objective.goal == "max" else 0.0 for objective in objectives])
    return ideal, as_costs([list(reference)], objectives)[0] - ideal


def nondominated(costs: Floats) -> NDArray[np.bool_]:
    """Return a mask of the n non-dominated rows; ``costs`` is ``n x m`` without NaN, smaller is better."""
    if len(costs) == 0:
        return np.zeros(0, dtype=np.bool_)
    return np.asarray(moocore.is_nondominated(costs, keep_weakly=True), dtype=np.bool_)


def dominated_volume(costs: Floats, bound: Floats) -> float:
    """Return the volume between ``n x m`` costs and m bounds; rows with a NaN or a cost >= its bound add nothing."""
    inside = costs[(costs < bound).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    return float(moocore.hypervolume(inside, ref=bound))


def _volume(units: Floats) -> float:
    """Return the share of the unit box that ``n x m`` costs in 0..1 dominate."""
    return dominated_volume(units, np.ones(units.shape[1]))


def common_reference(points: Sequence[Sequence[float]], objectives: Sequence[Objective]) -> list[float]:
    """Return the worst of several reference points, per objective, so that hypervolumes can be compared at it."""
    worst = {"min": max, "max": min}
    return [worst[o.goal](column) for o, column in zip(objectives, zip(*points, strict=True), strict=True)]
