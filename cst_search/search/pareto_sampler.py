"""Multi-objective sampler that models only one costly objective; the others are known functions of the configuration.

Stock multi-objective samplers treat all objectives alike and have to learn memory and parameter counts from trials.
Here these are known before a trial runs. Many candidates are drawn, those over the budget are dropped, and the rest are
ranked by expected hypervolume improvement, in which only the costly objective y is random (`ehvi`).

References.

[Ginsbourger2010] D. Ginsbourger, R. Le Riche, L. Carraro. Kriging is well-suited to parallelize optimization. In
    Computational Intelligence in Expensive Optimization Problems, Springer, 2010. The Kriging believer.
[Hutter2011] F. Hutter, H. H. Hoos, K. Leyton-Brown. Sequential model-based optimization for general algorithm
    configuration. LION 5, 2011. Random configurations between those of the model.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial
from threadpoolctl import ThreadpoolController

from cst_search.search.ehvi import ehvi, outlook
from cst_search.search.encoding import ParameterLayout
from cst_search.search.observations import Observation
from cst_search.search.seen_trials import SeenTrials
from cst_search.search.surrogate import MOST_MODELLED, Surrogate
from cst_search.study.outlook import Outlook
from cst_search.study.pareto import Floats, nondominated

Params = dict[str, Any]


_FIRST_PRICED = 5  # multiple of ``n_priced`` for the first suggestion, so that cheap configurations are found early
_CHANGES = 0.5, 0.25, 0.125  # mutation rates: shares of parameters that change
_MOST_PRICED = 4096  # cached known costs, one per structure
# one suggestion in so many is random, to guard against model errors [Hutter2011]
_CYCLE = 8
# One in so many is after the costly objective alone. The hypervolume hardly counts what is near the reference point of
# a cost, so it never asks what the costliest configurations reach, which is what a budget that is not tight pays for.
_EVERY_BEST = 4
_FINALISTS = 4  # most candidates that are compared by exact known values
# The model is one of many fits that a few trials allow, and more confident than all of them together. Its standard
# deviation is multiplied by this factor when it ranks; less the more trials there are per column (docs/benchmarks.md).
_BOLD = 2.0


@dataclass(frozen=True)
class KnownValues:
    """Known objectives and constraint violation of a configuration, before it runs.

    Attributes:
        values: values of all objectives except the costly one, in their order.
        violation: summed violation of its bounds; <= 0 is feasible.
    """

    values: Sequence[float]
    violation: float = 0.0


class ParetoSampler(BaseSampler):
    """Optuna sampler by expected hypervolume improvement, with a model of one objective; the others are known.

    It works in any Optuna study, with ask and tell or optimize, and with concurrent trials: a running trial counts as
    if it had reached the model's expectation [Ginsbourger2010].

    Args:
        known: function from a trial's parameters to its known values.
        space: every parameter that may occur, with its distribution.
        costly: index of the objective to model.
        conditions: conditions of the parameters that not every configuration has, see `encoding.ParameterLayout`.
        free: names of parameters that no known value depends on, so that known values are shared across them.
        reference: worst values that count, in the order of the objectives; None: the worst known values seen.
        curve: function from a trial to its learning curve, {epoch: value of the costly objective}.
        defaults: configurations that random suggestions begin with, one of each method; those that are not in the space
            are ignored.
        priors: functions from n configurations, ``n x p`` as in `ParameterLayout`, to the costly objective expected
            before any trial, up to a constant, in its units. Their mean, weighed by how well each ranks the trials,
            weighs as much as three trials and is trusted according to its evidence. It is not used beyond 300 trials.
        rough: cheaper approximation of ``known``, by which candidates are compared. The best few of them are compared
            again by ``known``, and what is suggested is feasible by both. None: ``known`` itself.
        n_priced: approximate number of calls of ``rough`` per suggestion; five times as many for the first, and while
            nothing is known to be feasible.
        n_startup: number of results before the model is used; until then configurations are random. 0 with a prior.
        n_candidates: number of configurations compared per suggestion. Beyond 300 trials half of them, and a quarter
            of ``n_priced``.
        seed: seed of all random draws.

    Attributes:
        outlook: what the next trials would bring, as of the last suggestion; None: it was random, or after the costly
            objective alone, or there is no front yet.
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
        defaults: Sequence[Params] = (),
        priors: Sequence[Callable[[Floats], Floats]] = (),
        rough: Callable[[Params], KnownValues] | None = None,
        n_startup: int = 5,
        n_priced: int = 24,
        n_candidates: int = 1000,
        seed: int | None = None,
    ) -> None:
        self.known, self._rough = known, rough
        self._space, self._costly, self._reference = dict(space), costly, reference
        self._n_startup = 0 if priors else n_startup
        self._n_priced, self._n_candidates = n_priced, n_candidates
        self._rng = np.random.default_rng(seed)
        self._independent = RandomSampler(seed)
        self._layout = ParameterLayout(space, conditions)
        self._surrogate = Surrogate(self._layout, priors, self._rng)
        self._free = self._layout.mask(free)
        self._defaults = self._layout.rows_inside(defaults)
        self._priced: dict[bytes, tuple[Floats, KnownValues]] = {}  # by `rough`, and by `known` where it was asked
        self._exact: set[bytes] = set()  # keys of those by `known`
        self._seen = SeenTrials(self._layout, costly, curve or (lambda trial: trial.intermediate_values), self._fits)
        self.outlook: Outlook | None = None

    def reseed_rng(self) -> None:
        self._rng = np.random.default_rng()
        self._independent.reseed_rng()

    def forget_prices(self) -> None:
        """Clear the cached known values, so that ``known`` is called again for every configuration."""
        self._priced.clear()
        self._exact.clear()
        self._seen.forget()

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._space

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._independent.sample_independent(study, trial, param_name, param_distribution)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        self.outlook = None
        signs = np.array([1.0 if d == StudyDirection.MAXIMIZE else -1.0 for d in study.directions])
        points = self._seen.read(study.get_trials(deepcopy=False), trial.number, signs)
        n_told = sum(bool(point.curve) for point in points)
        if n_told < self._n_startup or len(points) % _CYCLE == 0:
            return self._layout.params(self._any_feasible(points))
        # more threads are not faster on matrices of this size, and take CPU time from the trials
        with _blas().limit(limits=1):
            costs_count = len(points) % _EVERY_BEST != _EVERY_BEST - 1
            return self._layout.params(self._best(points, signs, costs_count))

    # --- what is known ---

    def _price(self, codes: Floats) -> KnownValues:
        """Return the known values of a configuration; computed once for all values of the free parameters."""
        key = np.where(self._free, 0.0, codes).tobytes()
        if key not in self._priced or (self._rough is not None and key not in self._exact):
            self._remember(key, codes, self.known(self._layout.params(codes)))
            self._exact.add(key)
        return self._priced[key][1]

    def _prices(self, rows: Floats) -> list[KnownValues]:
        """Return rough known values of many configurations; those of `_price` where they are cached."""
        found = []
        for row, bound in zip(rows, np.where(self._free, 0.0, rows), strict=True):
            key = bound.tobytes()
            if key not in self._priced:
                self._remember(key, row, (self._rough or self.known)(self._layout.params(row)))
            found.append(self._priced[key][1])
        return found

    def _remember(self, key: bytes, row: Floats, known: KnownValues) -> None:
        if key not in self._priced and len(self._priced) >= _MOST_PRICED:
            oldest = next(iter(self._priced))
            del self._priced[oldest]
            self._exact.discard(oldest)
        self._priced[key] = row, known

    def _fits(self, codes: Floats) -> bool:
        """Return whether a configuration is feasible, roughly and then exactly."""
        return self._prices(codes[None])[0].violation <= 0 and self._price(codes).violation <= 0

    def _costs(self, prices: Sequence[KnownValues], signs: Floats) -> Floats:
        """Return known costs, ``n x m``, to be minimised."""
        return -np.delete(signs, self._costly) * np.array([known.values for known in prices]).reshape(len(prices), -1)

    def _any_feasible(self, points: Sequence[Observation]) -> Floats:
        """Return a random feasible configuration, else a feasible mutation of those with the least violation.

        The method with the fewest trials comes first, and of each method its default, if that has not been tried: the
        model soon asks for few methods alone, and a random learning rate may say nothing of a method.

        If no attempt is feasible, return one with the least violation. Five times as many are tried while nothing has
        been feasible.
        """
        tries = self._n_priced if not self._priced or self._feasible() else _FIRST_PRICED * self._n_priced
        for drawn in np.vstack([self._one_of_each_method(points), self._layout.draw(tries // 2, self._rng)]):
            if self._fits(drawn):
                return drawn
        for change in self._rng.choice(_CHANGES, size=tries // 2):
            drawn = self._layout.like(self._least_over()[None], change, self._rng)[0]
            if self._fits(drawn):
                return drawn
        return self._least_over()

    def _one_of_each_method(self, points: Sequence[Observation]) -> Floats:
        """Return a configuration of each method, that of the fewest points first: the default if untried, else random.

        A space without conditions has no methods; then only what is untried of the defaults is left.
        """
        untried = [row for row in self._defaults if row.tobytes() not in self._seen.tried]
        rows = np.vstack([*untried, self._layout.one_of_each(self._rng)])
        keys = [row.tobytes() for row in rows[:, self._layout.roots]]
        tried = Counter(point.codes[self._layout.roots].tobytes() for point in points)
        return rows[sorted({keys.index(key) for key in keys}, key=lambda i: (tried[keys[i]], i))]

    def _feasible(self) -> list[Floats]:
        """Return all cached configurations that are feasible."""
        return [row for row, known in self._priced.values() if known.violation <= 0]

    def _least_over(self) -> Floats:
        """Return a random cached configuration among those with the least violation (the feasible ones, if any)."""
        over = np.array([max(0.0, known.violation) for _, known in self._priced.values()])
        return list(self._priced.values())[self._rng.choice(np.flatnonzero(over == over.min()))][0]

    # --- what is best ---

    def _best(self, points: Sequence[Observation], signs: Floats, costs_count: bool) -> Floats:
        """Return the candidate with the largest expected hypervolume improvement.

        Args:
            costs_count: False: the improvement of the costly objective alone, at any known costs that are feasible.
        """
        told = self._seen.some([point for point in points if point.curve], MOST_MODELLED, self._rng)
        everyone = told + [point for point in points if not point.curve]
        for point in everyone:  # only what is needed: predictions for thousands that were stopped take minutes
            if point.costs is None and (point.counts or self._reference is None):
                point.costs = self._costs([self._price(point.codes)], signs)[0]
        unknown = np.full(len(signs) - 1, np.nan)
        codes = np.stack([point.codes for point in everyone])
        costs = np.array([unknown if point.costs is None else point.costs for point in everyone])
        predict = self._surrogate.predictor(everyone, len(told), len(points), signs[self._costly])
        # the front of the smoothed values, because the highest of many noisy values is partly luck
        smooth, _ = predict(codes)
        front = np.flatnonzero([point.counts for point in everyone])
        front = front[nondominated(np.column_stack([-smooth[front], costs[front]]))]
        # one third random, two thirds mutations of the best; fewer of each in a large, well-explored study
        late = len(points) > MOST_MODELLED
        n, n_priced = self._n_candidates // (6 if late else 3), max(1, self._n_priced // (12 if late else 3))
        candidates = self._anywhere(n, n_priced)
        if len(candidates) == 0:  # nothing feasible has been drawn yet
            return self._any_feasible(points)
        n_costs = costs.shape[1] if costs_count else 0
        worst = self._worst(smooth, costs, signs)
        reference = self._reference_point(smooth, front, worst)[: 1 + n_costs]
        bold = 1 + (_BOLD - 1) * min(1.0, self._layout.n_encoded / len(everyone))

        def gain(candidates: Floats, dear: Floats) -> Floats:
            mean, std = predict(candidates)
            found = ehvi(mean, bold * std, dear[:, :n_costs], smooth[front], costs[front, :n_costs], reference)
            return np.where([row.tobytes() in self._seen.tried for row in candidates], -1.0, found)

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
        winner = self._winner(ranked[gains >= 0], gains[gains >= 0], lambda row, dear: float(gain(row, dear)[0]), signs)
        if winner is None:
            return self._any_feasible(points)
        if costs_count:
            exact = self._costs([self._price(winner)], signs)
            self.outlook = outlook(
                *predict(winner[None]), exact, smooth[front], costs[front], worst, self._surrogate.noise
            )
        return winner

    def _winner(
        self, ranked: Floats, gains: Floats, gain: Callable[[Floats, Floats], float], signs: Floats
    ) -> Floats | None:
        """Return the best candidate by exact known values that is feasible by them; None: there is none.

        They are computed in the order of rough gains, until none is left that promises more than the best so far.

        Args:
            ranked, gains: candidates, and their improvement by rough known values, the largest first.
            gain: (a candidate as a row, its costs) -> improvement.
        """
        best, most = None, -1.0
        for row, promised in list(zip(ranked, gains, strict=True))[: _FINALISTS if self._rough else 1]:
            if promised <= most or not self._fits(row):
                continue
            found = gain(row[None], self._costs([self._price(row)], signs)) if self._rough else promised
            if found > most:
                best, most = row, found
        return best

    def _anywhere(self, n: int, n_priced: int) -> Floats:
        """Return up to n feasible configurations from those with known costs and ``n_priced`` new random ones."""
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
        """Return n mutations with their parents' costs, and the best of n mutations whose costs may differ.

        Args:
            n_priced: number of the latter.
            gain: (parents, mutations) -> improvement at the parents' costs; it selects which mutations are worth an
                exact prediction.
        """
        change = self._rng.choice(_CHANGES, size=n)
        parents = near[self._rng.integers(len(near), size=n)]
        found = self._layout.like(parents, change, self._rng)
        best = found[np.argsort(-gain(parents, found), kind="stable")[:n_priced]]
        if not self._free.any():
            return best
        return np.vstack([best, self._layout.like(parents, change, self._rng, keep=~self._free)])

    def _worst(self, y: Floats, costs: Floats, signs: Floats) -> Floats:
        """Return the worst y and costs that count: the given ones, or those seen."""
        if self._reference is None:
            return np.append(y.min(), costs.max(axis=0))
        given = -signs * np.asarray(self._reference)
        return np.append(-given[self._costly], np.delete(given, self._costly))

    def _reference_point(self, y: Floats, front: NDArray[np.intp], worst: Floats) -> Floats:
        """Return the reference point (y, costs) for `ehvi`.

        Cost bounds are the worst that count: with smaller ones, anything costlier than the whole front would count for
        nothing. The bound of y is a tenth below the front's worst, or else cheap and poor configurations would count
        for much.
        """
        seen = y[front] if len(front) > 1 else y
        floor = max(float(seen.min() - 0.1 * (seen.max() - seen.min())) - 1e-12, float(worst[0]))
        return np.append(floor, worst[1:])


@cache
def _blas() -> ThreadpoolController:
    import scipy.linalg  # noqa: F401  # so that all BLAS libraries are loaded

    return ThreadpoolController().select(user_api="blas")
