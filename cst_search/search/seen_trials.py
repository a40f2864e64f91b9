"""Trials of a study as the sampler sees them. What is known of finished ones is kept, so that a suggestion in a study
of ten thousand trials looks at the new ones alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from cst_search.search.encoding import ParameterLayout
from cst_search.search.observations import END, Observation
from cst_search.study.pareto import Floats, nondominated


class SeenTrials:
    """Observations of a study's trials.

    Args:
        layout: layout of the configurations.
        costly: index of the modelled objective.
        curve: function from a trial to its learning curve, {epoch: value of the costly objective}.
        fits: function from the codes of a configuration to whether its known values are feasible.

    Attributes:
        tried: keys (`bytes`) of the codes of every trial last read.
    """

    def __init__(
        self,
        layout: ParameterLayout,
        costly: int,
        curve: Callable[[FrozenTrial], Mapping[int, float]],
        fits: Callable[[Floats], bool],
    ) -> None:
        self._layout, self._costly, self._curve, self._fits = layout, costly, curve, fits
        self.forget()

    def forget(self) -> None:
        """Forget everything; the next `read` looks at every trial."""
        self._ended: dict[int, Observation | None] = {}
        self._ended_codes: set[bytes] = set()
        self._front: list[Observation] = []  # non-dominated ones of the results so far
        self._new_results: list[Observation] = []
        self.tried: set[bytes] = set()

    def read(self, trials: Sequence[FrozenTrial], number: int, signs: Floats) -> list[Observation]:
        """Return an observation for every trial that has information, or will have, except for one."""
        found, unfinished = [], []
        for trial in trials:
            if trial.number == number:
                continue
            if trial.number in self._ended:
                point = self._ended[trial.number]
            else:
                point = self._observation(trial, signs)
                if trial.state.is_finished():
                    self._ended[trial.number] = point
                    self._take(point)
                elif point is not None:
                    unfinished.append(point.codes.tobytes())
            if point is not None:
                found.append(point)
        self.tried = self._ended_codes.union(unfinished)
        return found

    def _take(self, ended: Observation | None) -> None:
        if ended is not None:
            self._ended_codes.add(ended.codes.tobytes())
            if ended.counts and END in ended.curve:
                self._new_results.append(ended)

    def _observation(self, trial: FrozenTrial, signs: Floats) -> Observation | None:
        if trial.state in (TrialState.WAITING, TrialState.FAIL):
            return None
        try:
            codes = self._layout.row(trial.params)
        except KeyError:  # from another space, or about to be suggested by another process
            return None
        sign = signs[self._costly]
        curve = {epoch: sign * y for epoch, y in self._curve(trial).items() if math.isfinite(y)}
        if trial.state != TrialState.COMPLETE:
            return Observation(codes, None, curve, trial.state == TrialState.RUNNING)
        y = trial.values[self._costly]
        if math.isfinite(y):
            curve[END] = sign * y
            counts = all(violation <= 0 for violation in trial.constraints.values())
        elif not self._fits(codes):  # refused before it ran
            return None
        else:
            curve, counts = {END: -math.inf}, False
        return Observation(codes, -np.delete(signs * trial.values, self._costly), curve, counts)

    def some(self, points: list[Observation], most: int, rng: np.random.Generator) -> list[Observation]:
        """Return a limited number of the observations read: the front, the latest, and a random sample of the others.

        A model of all of them would take their number cubed; those near the front decide, and the rest of the space
        must stay known, too.
        """
        if len(points) <= most:
            return points
        place = {id(point): i for i, point in enumerate(points)}
        front = sorted(place[id(point)] for point in self._results_front())
        latest = np.arange(len(points) - most // 4, len(points))
        kept = np.union1d(front[: most // 2], latest).astype(int)
        rest = np.setdiff1d(np.arange(len(points)), kept)
        others = rng.choice(rest, size=most - len(kept), replace=False)
        return [points[i] for i in np.union1d(kept, others)]

    def _results_front(self) -> list[Observation]:
        """Return the non-dominated results; those that were dominated once stay so."""
        if self._new_results:
            results = [*self._front, *self._new_results]
            values = np.array([[-point.last, *point.costs] for point in results])  # type: ignore[misc]
            self._front = [results[i] for i in np.flatnonzero(nondominated(values))]
            self._new_results = []
        return self._front
