"""Early stopping: compares trials at a rung with those that cost no more. Arithmetic only.

Asynchronous successive halving [Li2020]: rungs divide the epochs, and a trial that reaches a rung goes on if it is
among the best 1/eta of all trials that reached it so far. A stopped trial may be promoted later, once enough others
have reached the rung that it is among the best.

Several objectives [Schmucker2021] need an order. Ours uses that costs are known: what counts is by how much the mAP of
a trial leads that of its rival, the best trial that costs no more in any respect. So a small cheap model competes with
its like. And mAP at a rung is no final mAP: a trial within `TOLERANCE` of its rival goes on, too. Feasible trials come
before infeasible ones [Deb2002]. Measured in docs/benchmarks.md, "Who goes on at a rung".

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

# No rung before this share of the full length, and none at the first epoch: the learning rate still rises there, and
# mAP says little about the final mAP. Rank correlation with the final mAP by epoch, over 202 trials of 9 epochs: 0.44,
# 0.66, 0.83, 0.87, 0.94; among the better half -0.16, 0.23, 0.58, 0.66, 0.84 (benchmarks/results/search-table.json.gz).
_LEAST = 0.2
TOLERANCE = 0.2  # share of the rival's mAP; how it was chosen: docs/benchmarks.md


def rung_epochs(epochs: int, eta: int) -> tuple[int, ...]:
    """Return the epochs of the rungs, ascending: epochs / eta, epochs / eta^2, ... down from the full length."""
    found = set()
    at = epochs / eta
    while at >= epochs * _LEAST:
        found.add(math.ceil(at))
        at /= eta
    return tuple(sorted(at for at in found if 1 < at < epochs))


class _Rung:
    """The trials that reached a rung, in the order in which they did.

    Attributes:
        quality: their mAPs, ``n x q``; a NaN (the loss was not finite) is 0.
        rival: highest of each mAP among the others that cost no more in any respect, ``n x q``; 0 if there is none.
        violation: summed budget violations, n numbers; <= 0 is feasible.
    """

    def __init__(self, objectives: Sequence[Objective]) -> None:
        self.trials: list[int] = []
        self._is_quality = np.array([objective.goal == "max" for objective in objectives])
        n_costs = int((~self._is_quality).sum())
        self._costs, self.violation = np.empty((0, n_costs)), np.empty(0)
        self.quality = np.empty((0, len(objectives) - n_costs))
        self.rival = self.quality.copy()

    def add(self, trial: int, values: Sequence[float], violation: float) -> None:
        table = np.asarray(values, dtype=float)
        quality, costs = np.nan_to_num(table[self._is_quality]), table[~self._is_quality]
        if violation <= 0:  # what cannot be had is no rival
            dearer = (self._costs >= costs).all(axis=1)
            self.rival[dearer] = np.maximum(self.rival[dearer], quality)
        cheaper = (self._costs <= costs).all(axis=1) & (self.violation <= 0)
        rival = self.quality[cheaper].max(axis=0, initial=0.0)
        self.trials.append(trial)
        self._costs, self.violation = np.vstack([self._costs, costs]), np.append(self.violation, violation)
        self.quality, self.rival = np.vstack([self.quality, quality]), np.vstack([self.rival, rival])

    def best(self, eta: int) -> list[int]:
        """Return the trials that go on, best first: one in ``eta``, and feasible ones that are close to their rival."""
        is_close = (self.quality >= (1 - TOLERANCE) * self.rival).any(axis=1) & (self.violation <= 0)
        lead = (self.quality - self.rival).max(axis=1, initial=-np.inf)
        order = np.lexsort((-lead, np.maximum(self.violation, 0.0)))
        n = max(1, len(order) // eta)
        return [self.trials[i] for place, i in enumerate(order) if place < n or is_close[i]]


class Rungs:
    """Rungs of a study: the values that trials reached at each, and the trials that go on.

    Args:
        objectives: objectives of the study.
        epochs: epochs of the rungs, see `rung_epochs`.
        eta: at least one in eta of the trials that reached a rung goes on.
    """

    def __init__(self, objectives: Sequence[Objective], epochs: Sequence[int], eta: int) -> None:
        self.epochs, self.eta = tuple(epochs), eta
        self._rungs = {at: _Rung(objectives) for at in self.epochs}

    def has(self, trial: int, epoch: int) -> bool:
        return trial in self._rungs[epoch].trials

    def report(self, trial: int, epoch: int, values: Sequence[float], violation: float) -> None:
        """Store a trial's values after an epoch, if that epoch is a rung that it had not reached.

        Args:
            values: its objectives, including this epoch's mAP.
            violation: summed budget violation; <= 0 is feasible.
        """
        if epoch in self._rungs and not self.has(trial, epoch):
            self._rungs[epoch].add(trial, values, violation)

    def goes_on(self, trial: int, epoch: int) -> bool:
        """Return whether a trial continues after an epoch that it reported; True if that epoch is not a rung."""
        return epoch not in self._rungs or trial in self._rungs[epoch].best(self.eta)

    def promotable(self, stopped: Sequence[int]) -> int | None:
        """Return the stopped trial that would go on now: from the highest rung, the best first; None: there is none."""
        waiting = set(stopped)
        for epoch in reversed(self.epochs):
            for trial in self._rungs[epoch].best(self.eta):
                if trial in waiting:
                    return trial
            waiting = waiting.difference(self._rungs[epoch].trials)  # only at its last rung is a trial waiting
        return None
