"""Early stopping: promotes trials at a rung by constrained non-dominated rank. Arithmetic only.

Asynchronous successive halving [Li2020] with several objectives [Schmucker2021]: rungs divide the epochs, and a trial
that reaches a rung goes on if it is among the best 1/eta of all trials that reached it so far. "Best" is a
multi-objective order, so that a small cheap model competes with similar ones: feasible before infeasible [Deb2002],
then by non-dominated front, and within a front by crowding distance, the outermost and least crowded first. A stopped
trial may be promoted later, once enough others have reached the rung that it is among the best.

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

# No rung before this share of the full length, and none at the first epoch: the learning rate still rises there, and
# mAP says little about the final mAP. Rank correlation with the final mAP by epoch, over 202 trials of 9 epochs: 0.44,
# 0.66, 0.83, 0.87, 0.94; among the better half -0.16, 0.23, 0.58, 0.66, 0.84 (benchmarks/results/search-table.json.gz).
_LEAST = 0.2


def rung_epochs(epochs: int, eta: int) -> tuple[int, ...]:
    """Return the epochs of the rungs, ascending: epochs / eta, epochs / eta^2, ... down from the full length."""
    found = set()
    at = epochs / eta
    while at >= epochs * _LEAST:
        found.add(math.ceil(at))
        at /= eta
    return tuple(sorted(at for at in found if 1 < at < epochs))


def order(values: Sequence[Sequence[float]], violations: Sequence[float], objectives: Sequence[Objective]) -> list[int]:
    """Return the indices of n trials from best to worst.

    Args:
        values: ``n x m`` as in `pareto`; a NaN (no mAP because the loss was not finite) is the worst of its objective.
        violations: n summed budget violations; <= 0 is feasible. Infeasible trials come last, least violation first.
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
    """Return the crowding distance of NSGA-II [Deb2002], n numbers; infinite for the extremes of each objective."""
    distance = np.zeros(len(table))
    for column in table.T:
        by = np.argsort(column, kind="stable")
        span = column[by[-1]] - column[by[0]]
        distance[by[[0, -1]]] = np.inf
        if span > 0:
            distance[by[1:-1]] += (column[by[2:]] - column[by[:-2]]) / span
    return distance


class Rungs:
    """Rungs of a study: the values that trials reached at each, and the trials that go on.

    Args:
        objectives: objectives of the study.
        epochs: epochs of the rungs, see `rung_epochs`.
        eta: one in eta of the trials that reached a rung goes on.
    """

    def __init__(self, objectives: Sequence[Objective], epochs: Sequence[int], eta: int) -> None:
        self.objectives, self.epochs, self.eta = tuple(objectives), tuple(epochs), eta
        self._reached: dict[int, dict[int, tuple[list[float], float]]] = {at: {} for at in self.epochs}

    def has(self, trial: int, epoch: int) -> bool:
        return trial in self._reached[epoch]

    def report(self, trial: int, epoch: int, values: Sequence[float], violation: float) -> None:
        """Store a trial's values after an epoch, if that epoch is a rung.

        Args:
            values: its objectives, including this epoch's mAP.
            violation: summed budget violation; <= 0 is feasible.
        """
        if epoch in self._reached:
            self._reached[epoch][trial] = (list(values), violation)

    def goes_on(self, trial: int, epoch: int) -> bool:
        """Return whether a trial continues after an epoch that it reported; True if that epoch is not a rung."""
        return epoch not in self._reached or trial in self._best(epoch)

    def promotable(self, stopped: Sequence[int]) -> int | None:
        """Return the stopped trial that would go on now: from the highest rung, the best first; None: there is none."""
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
