"""A sampler that models only what is not known: one costly objective; the others are functions of the configuration.

Stock multi-objective samplers treat every objective alike and learn from trials what memory and parameters of a
configuration are. Here they are known before a trial runs, so candidates are drawn in numbers, those over the budget
are dropped, and the rest are compared by the expected improvement of the dominated hypervolume, in which only the
costly objective y is random (`ehvi`).

References.

[Ginsbourger2010] D. Ginsbourger, R. Le Riche, L. Carraro. Kriging is well-suited to parallelize optimization. In
    Computational Intelligence in Expensive Optimization Problems, Springer, 2010. The Kriging believer.
[Hutter2011] F. Hutter, H. H. Hoos, K. Leyton-Brown. Sequential model-based optimization for general algorithm
    configuration. LION 5, 2011. Random configurations between those of the model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from threadpoolctl import ThreadpoolController

from cst_search.search.ehvi import ehvi
from cst_search.search.encoding import ParameterLayout
from cst_search.search.observations import END, Observation
from cst_search.search.surrogate import MOST_MODELLED, Surrogate
from cst_search.study.pareto import Floats, nondominated

Params = dict[str, Any]


_FIRST_PRICED = 5  # times ``n_priced`` are priced for the first choice: what is cheapest of all is soon found
_CHANGES = 0.5, 0.25, 0.125  # shares of parameters that change, of what is like another
_MOST_PRICED = 4096  # structures whose costs are kept
# of so many suggestions one is random, for what the model is wrong about [Hutter2011]
_CYCLE = 8
# The model is one fit out of many that a few trials allow, and surer than all of them together: where it chooses, its
# standard deviation counts so many times, and less the more trials a column of it has (docs/searching.md).
_BOLD = 2.0


@dataclass(frozen=True)
class KnownValues:
    """What is known of a configuration before it runs.

    Attributes:
        values: of all objectives but the costly one, in their order.
        violation: how far it is over its bounds, summed; <= 0 is feasible.
    """

    values: Sequence[float]
    violation: float = 0.0


class ParetoSampler(BaseSampler):
    """Suggests by expected hypervolume improvement, with a model of one objective; the others are known.

    It works in any Optuna study, with ask and tell as with optimize, and with several trials at a time: those that run
    count as if they had what the model expects of them [Ginsbourger2010].

    Args:
        known: of the parameters of a trial.
        space: every parameter that may occur, with its distribution.
        costly: index of the objective to be modelled.
        conditions: of parameters that not every configuration has, as `encoding.ParameterLayout` takes them.
        free: names of parameters on which nothing known depends, so that what is known is shared by all their values.
        reference: the worst values that count, in the order of the objectives; None: of the known ones the worst seen.
        curve: what a trial reached before its end: {epoch: value of the costly objective}.
        prior: what n configurations, ``n x p`` as `ParameterLayout` has them, are expected to have of the costly
            objective before any trial, up to a constant, in its units. It weighs as much as three trials, and is
            believed by its evidence. Of more than 300 trials none is used.
        n_priced: ``known`` is called some so often for a suggestion, five times as often for the first, and while
            nothing is known to be feasible.
        n_startup: results before the model is used; configurations are drawn at random until then. None with a prior.
        n_candidates: configurations that are compared for a suggestion. Of more than 300 trials half of them, and an
            eighth of ``n_priced``.
        seed: of all draws.
    """

    def __init__(
        self,
        known: Callable[[Params], KnownValues],
        space: Mapping[str, BaseDistribution],
        *,
        costly: int = 0,
        conditions: Mapping[str, tuple[str, Collection[Any]]] | None = None,
        free: Collection[str] = (),
        reference: Sequence[float] | None = None,
        curve: Callable[[FrozenTrial], Mapping[int, float]] | None = None,
        prior: Callable[[Floats], Floats] | None = None,
        n_startup: int = 5,
        n_priced: int = 48,
        n_candidates: int = 1000,
        seed: int | None = None,
    ) -> None:
        self.known = known
        self._space, self._costly, self._reference = dict(space), costly, reference
        self._curve = curve or (lambda trial: trial.intermediate_values)
        self._n_startup = 0 if prior else n_startup
        self._n_priced, self._n_candidates = n_priced, n_candidates
        self._rng = np.random.default_rng(seed)
        self._independent = RandomSampler(seed)
        self._layout = ParameterLayout(space, conditions)
        self._surrogate = Surrogate(self._layout, prior, self._rng)
        self._free = self._layout.mask(free)
        self._priced: dict[bytes, tuple[Floats, KnownValues]] = {}
        self._ended: dict[int, Observation | None] = {}

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._independent.reseed_rng()

    def forget_prices(self) -> None:
        """Have ``known`` asked anew, of everything."""
        self._priced.clear()
        self._ended.clear()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        signs = np.array([1.0 if d == StudyDirection.MAXIMIZE else -1.0 for d in study.directions])
        points = self._points(study, trial.number, signs)
        n_told = sum(bool(point.curve) for point in points)
        if n_told < self._n_startup or len(points) % _CYCLE == 0:
            return self._layout.params(self._any_feasible())
        # more threads are no quicker on matrices of this size, and take the processor from the trials
        with _blas().limit(limits=1):
            return self._layout.params(self._best(points, signs))

    # --- what is known ---

    def _price(self, codes: Floats) -> KnownValues:
        """What is known of a configuration; asked once for all values of the free parameters."""
        return self._prices(codes[None])[0]

    def _prices(self, rows: Floats) -> list[KnownValues]:
        found = []
        for row, bound in zip(rows, np.where(self._free, 0.0, rows), strict=True):
            key = bound.tobytes()
            if key not in self._priced:
                if len(self._priced) >= _MOST_PRICED:
                    del self._priced[next(iter(self._priced))]
                self._priced[key] = row, self.known(self._layout.params(row))
            found.append(self._priced[key][1])
        return found

    def _costs(self, prices: Sequence[KnownValues], signs: Floats) -> Floats:
        """``n x m``, to be minimised."""
        return -np.delete(signs, self._costly) * np.array([known.values for known in prices]).reshape(len(prices), -1)

    def _any_feasible(self) -> Floats:
        """A random configuration; where none of some is feasible, one like those that are the least over their bounds.

        If none of all tried is feasible it is the one that is the least over them. Five times as many are tried where
        nothing was feasible so far.
        """
        tries = self._n_priced if not self._priced or self._feasible() else _FIRST_PRICED * self._n_priced
        for drawn in self._layout.draw(tries // 2, self._rng):
            if self._price(drawn).violation <= 0:
                return drawn
        for change in self._rng.choice(_CHANGES, size=tries // 2):
            drawn = self._layout.like(self._least_over()[None], change, self._rng)[0]
            if self._price(drawn).violation <= 0:
                return drawn
        return self._least_over()

    def _feasible(self) -> list[Floats]:
        """All of what was priced that is."""
        return [row for row, known in self._priced.values() if known.violation <= 0]

    def _least_over(self) -> Floats:
        """Of what was priced, one of those that are the least over their bounds; any feasible one where there are."""
        over = np.array([max(0.0, known.violation) for _, known in self._priced.values()])
        return list(self._priced.values())[self._rng.choice(np.flatnonzero(over == over.min()))][0]

    # --- what was seen ---

    def _points(self, study: Study, number: int, signs: Floats) -> list[Observation]:
        """Every other trial that says something, or will."""
        found = []
        for trial in study.get_trials(deepcopy=False):
            if trial.number == number:
                continue
            if trial.number not in self._ended:
                point = self._point(trial, signs)
                if trial.state.is_finished():
                    self._ended[trial.number] = point
            else:
                point = self._ended[trial.number]
            if point is not None:
                found.append(point)
        return found

    def _point(self, trial: FrozenTrial, signs: Floats) -> Observation | None:
        if trial.state in (TrialState.WAITING, TrialState.FAIL):
            return None
        try:
            codes = self._layout.row(trial.params)
        except KeyError:  # of another space, or another process is about to suggest it
            return None
        sign = signs[self._costly]
        curve = {epoch: sign * y for epoch, y in self._curve(trial).items() if math.isfinite(y)}
        if trial.state != TrialState.COMPLETE:
            return Observation(codes, None, curve, trial.state == TrialState.RUNNING)
        y = trial.values[self._costly]
        if math.isfinite(y):
            curve[END] = sign * y
            counts = all(violation <= 0 for violation in trial.constraints.values())
        elif self._price(codes).violation > 0:  # refused before it ran
            return None
        else:
            curve, counts = {END: -math.inf}, False
        return Observation(codes, -np.delete(signs * trial.values, self._costly), curve, counts)

    # --- what is best ---

    def _best(self, points: Sequence[Observation], signs: Floats) -> Floats:
        """The candidate with the largest expected improvement."""
        told = self._some([point for point in points if point.curve])
        everyone = told + [point for point in points if not point.curve]
        for point in everyone:
            if point.costs is None:
                point.costs = self._costs([self._price(point.codes)], signs)[0]
        codes, costs = np.stack([p.codes for p in everyone]), np.array([p.costs for p in everyone])
        predict = self._surrogate.predictor(everyone, len(told), len(points), signs[self._costly])
        # the front as the model sees it: the highest of many noisy values is high by luck, too
        smooth, _ = predict(codes)
        front = np.flatnonzero([point.counts for point in everyone])
        front = front[nondominated(np.column_stack([-smooth[front], costs[front]]))]
        taken = {point.codes.tobytes() for point in points}

        # in thirds: anything, and twice what is near the best; by then a large study has seen what matters
        late = len(points) > MOST_MODELLED
        n, n_priced = self._n_candidates // (6 if late else 3), max(1, self._n_priced // (24 if late else 3))
        candidates = self._anywhere(n, n_priced)
        if len(candidates) == 0:  # nothing feasible was drawn yet
            return self._any_feasible()
        reference = self._reference_point(smooth, costs, front, signs)
        bold = 1 + (_BOLD - 1) * min(1.0, self._layout.n_encoded / len(everyone))

        def gain(candidates: Floats, dear: Floats) -> Floats:
            mean, std = predict(candidates)
            found = ehvi(mean, bold * std, dear, smooth[front], costs[front], reference)
            return np.where([row.tobytes() in taken for row in candidates], -1.0, found)

        def as_dear_as(parents: Floats, candidates: Floats) -> Floats:
            return gain(candidates, self._costs(self._prices(parents), signs))

        ranked, gains = np.empty((0, codes.shape[1])), np.empty(0)
        for step in range(3):
            if step:
                near = np.vstack([ranked, codes[self._rng.permutation(front)[:8]]])
                candidates = self._near(near, n, n_priced, as_dear_as)
            prices = self._prices(candidates)
            feasible = np.array([known.violation for known in prices]) <= 0
            found = gain(candidates, self._costs(prices, signs))
            ranked, gains = np.vstack([ranked, candidates[feasible]]), np.append(gains, found[feasible])
            best = np.argsort(-gains, kind="stable")[:8]
            ranked, gains = ranked[best], gains[best]
        return ranked[0] if gains[0] >= 0 else self._any_feasible()

    def _anywhere(self, n: int, n_priced: int) -> Floats:
        """Some n feasible configurations, of those whose costs are known and ``n_priced`` more."""
        n_new = max(n_priced, _FIRST_PRICED * self._n_priced - len(self._priced))
        self._prices(self._layout.draw(n_new, self._rng))
        pool = self._feasible()
        if not pool:
            return np.empty((0, len(self._free)))
        if not self._free.any():
            return np.stack([pool[i] for i in self._rng.permutation(len(pool))[:n]])
        parents = np.stack([pool[i] for i in self._rng.integers(len(pool), size=n)])
        return self._layout.like(np.where(self._free, np.nan, parents), 0.0, self._rng)

    def _near(self, near: Floats, n: int, n_priced: int, gain: Callable[[Floats, Floats], Floats]) -> Floats:
        """Some n configurations like others with the same costs, and the best of n whose costs may differ.

        Args:
            n_priced: so many of these.
            gain: (parents, configurations like them) -> improvement, as if they had the costs of their parents: what
                decides which are worth a price.
        """
        change = self._rng.choice(_CHANGES, size=n)
        parents = near[self._rng.integers(len(near), size=n)]
        found = self._layout.like(parents, change, self._rng)
        best = found[np.argsort(-gain(parents, found), kind="stable")[:n_priced]]
        if not self._free.any():
            return best
        return np.vstack([best, self._layout.like(parents, change, self._rng, keep=~self._free)])

    def _some(self, points: list[Observation]) -> list[Observation]:
        """At most `MOST_MODELLED`: the front, the latest, and others at random."""
        if len(points) <= MOST_MODELLED:
            return points
        results = [i for i, point in enumerate(points) if point.counts and END in point.curve]
        values = np.array([[-points[i].last, *points[i].costs] for i in results])  # type: ignore[misc]
        front = np.asarray(results)[nondominated(values)]
        latest = np.arange(len(points) - MOST_MODELLED // 4, len(points))
        kept = np.union1d(front[: MOST_MODELLED // 2], latest)
        rest = np.setdiff1d(np.arange(len(points)), kept)
        others = self._rng.choice(rest, size=MOST_MODELLED - len(kept), replace=False)
        return [points[i] for i in np.union1d(kept, others)]

    def _reference_point(self, y: Floats, costs: Floats, front: NDArray[np.intp], signs: Floats) -> Floats:
        """The worst (y, costs) that count, as `ehvi` takes them.

        Costs up to those that were given, or the largest seen: with less, what is dearer than all of the front counts
        for nothing. Of y a tenth below the worst of the front, or what is cheap and poor would count for much.
        """
        bound = np.append((-y).max(), costs.max(axis=0))
        if self._reference is not None:
            given = -signs * np.asarray(self._reference)
            bound = np.append(given[self._costly], np.delete(given, self._costly))
        seen = y[front] if len(front) > 1 else y
        floor = max(float(seen.min() - 0.1 * (seen.max() - seen.min())) - 1e-12, -float(bound[0]))
        return np.append(floor, bound[1:])


@cache
def _blas() -> ThreadpoolController:
    import sklearn.gaussian_process  # noqa: F401  # so that all of them are loaded

    return ThreadpoolController().select(user_api="blas")
