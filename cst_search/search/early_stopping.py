"""Early stopping: which trials go on at a rung, by constrained non-dominated rank. Arithmetic only.

Asynchronous successive halving [Li2020] on several objectives [Schmucker2021]: epochs are divided by rungs, and a trial
that reaches a rung goes on if it is among the best 1/eta of all that reached it so far. "Best" is an order of points
with several objectives, so that a small cheap model is compared with its own kind: feasible before infeasible
[Deb2002], then by the non-dominated front that the point is on, and within a front by crowding, the outermost and the
loneliest first. Who was stopped may be promoted later, when enough others reached the rung that it is among the best.

References.

[Deb2002] K. Deb, A. Pratap, S. Agarwal, T. Meyarivan. A fast and elitist multiobjective genetic algorithm: NSGA-II.
    IEEE Transactions on Evolutionary Computation 6(2), 2002.
[Li2020] L. Li, K. Jamieson, A. Rostamizadeh, E. Gonina, J. Ben-tzur, M. Hardt, B. Recht, A. Talwalkar. A system for
    massively parallel hyperparameter tuning. MLSys 2020.
[Schmucker2021] R. Schmucker, M. Donini, M. B. Zafar, D. Salinas, C. Archambeau. Multi-objective asynchronous successive
    halving. arXiv 2106.12639, 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from cst_search.study.objectives import Objective
from cst_search.study.pareto import Floats, as_costs, nondominated

# No rung before this share of the full length, and none at the first epoch: learning rates still rise there, and what
# has the most mAP says little about the end. Of 202 trials of 9 epochs, rank correlation with the end by epoch: 0.44,
# 0.66, 0.83, 0.87, 0.94; among the better half -0.16, 0.23, 0.58, 0.66, 0.84 (benchmarks/results/search-table.json.gz).
_LEAST = 0.2


def rung_epochs(epochs: int, eta: int) -> tuple[int, ...]:
    """Epochs at which trials are compared, ascending: from the full length down, epochs / eta, epochs / eta^2, ..."""
    found = set()
    at = epochs / eta
    while at >= epochs * _LEAST:
        found.add(math.ceil(at))
        at /= eta
    return tuple(sorted(at for at in found if 1 < at < epochs))


def order(values: Sequence[Sequence[float]], violations: Sequence[float], objectives: Sequence[Objective]) -> list[int]:
    """Indices from best to worst.

    Args:
        values: ``n x m`` as in `pareto`; a NaN (no map, as the loss was not finite) is the worst of that objective.
        violations: n sums of what is above the budget; <= 0 is feasible. The infeasible come last, least violation
            first.
    """
    table = as_costs(values, objectives)
    for column in table.T:
        unknown = np.isnan(column)
        column[unknown] = column[~unknown].max() + 1 if not unknown.all() else 0.0
    over = np.asarray(violations, dtype=float)
    left = np.flatnonzero(over <= 0)
    found: list[int] = []
    while len(left):
        first = left[nondominated(table[left])]
        found += [int(i) for i in first[np.argsort(-_crowding(table[first]), kind="stable")]]
        left = np.setdiff1d(left, first)
    out = np.flatnonzero(over > 0)
    return found + [int(i) for i in out[np.argsort(over[out], kind="stable")]]


def _crowding(table: Floats) -> Floats:
    """The crowding distance of NSGA-II [Deb2002], n numbers; infinite for the outermost of each objective."""
    distance = np.zeros(len(table))
    for column in table.T:
        by = np.argsort(column, kind="stable")
        span = column[by[-1]] - column[by[0]]
        distance[by[[0, -1]]] = np.inf
        if span > 0:
            distance[by[1:-1]] += (column[by[2:]] - column[by[:-2]]) / span
    return distance


class Rungs:
    """What trials reached at each rung, and who goes on.

    Args:
        objectives: of the study.
        epochs: at which trials are compared, see `rung_epochs`.
        eta: of the trials that reached a rung, one in eta goes on.
    """

    def __init__(self, objectives: Sequence[Objective], epochs: Sequence[int], eta: int) -> None:
        self.objectives, self.epochs, self.eta = tuple(objectives), tuple(epochs), eta
        self._reached: dict[int, dict[int, tuple[list[float], float]]] = {at: {} for at in self.epochs}

    def has(self, trial: int, epoch: int) -> bool:
        return trial in self._reached[epoch]

    def report(self, trial: int, epoch: int, values: Sequence[float], violation: float) -> None:
        """What a trial has after an epoch; kept if that epoch is a rung.

        Args:
            values: its objectives, the map of this epoch among them.
            violation: sum of what is above the budget; <= 0 is feasible.
        """
        if epoch in self._reached:
            self._reached[epoch][trial] = (list(values), violation)

    def goes_on(self, trial: int, epoch: int) -> bool:
        """Whether a trial that was reported at an epoch goes on; always where that epoch is no rung."""
        return epoch not in self._reached or trial in self._best(epoch)

    def promotable(self, stopped: Sequence[int]) -> int | None:
        """Of trials that were stopped, the one that would go on by now: that of the highest rung, the best first."""
        waiting = set(stopped)
        for epoch in reversed(self.epochs):
            for trial in self._best(epoch):
                if trial in waiting and self._last(trial) == epoch:
                    return trial
        return None

    def _last(self, trial: int) -> int:
        return max(epoch for epoch, seen in self._reached.items() if trial in seen)

    def _best(self, epoch: int) -> list[int]:
        seen = self._reached[epoch]
        if not seen:
            return []
        trials = list(seen)
        places = order([seen[t][0] for t in trials], [seen[t][1] for t in trials], self.objectives)
        return [trials[i] for i in places[: max(1, len(trials) // self.eta)]]
