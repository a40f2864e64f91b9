"""A sampler that models only what is not known: one costly objective; the others are functions of the configuration.

Stock multi-objective samplers treat every objective alike and learn from trials what memory and parameters of a
configuration are. Here they are known before a trial runs, so candidates are drawn in numbers, those over the budget
are dropped, and the rest are compared by the expected improvement of the dominated hypervolume, in which only the
costly objective y is random. With the known costs c of a candidate and the front P,

    EHVI(c) = integral over y' from the reference to infinity of  A(y', c) * Pr(Y > y') dy'
    A(y', c) = volume of the costs that c dominates, up to the reference, and that no point of P with y >= y' does

A is constant between the values y of the front, so that the integral is a finite sum of terms
A_k * (psi(y_k) - psi(y_k+1)), psi(t) = E[max(Y - t, 0)]: exact, no sampling. This is [Emmerich2011] with all but one
objective degenerate.

References.

[Emmerich2011] M. T. M. Emmerich, A. H. Deutz, J. W. Klinkenberg. Hypervolume-based expected improvement: monotonicity
    properties and exact computation. IEEE Congress on Evolutionary Computation, 2011.
[Ginsbourger2010] D. Ginsbourger, R. Le Riche, L. Carraro. Kriging is well-suited to parallelize optimization. In
    Computational Intelligence in Expensive Optimization Problems, Springer, 2010. The Kriging believer.
[Hutter2011] F. Hutter, H. H. Hoos, K. Leyton-Brown. Sequential model-based optimization for general algorithm
    configuration. LION 5, 2011. Random configurations between those of the model.
[Hvarfner2024] C. Hvarfner, E. O. Hellsten, L. Nardi. Vanilla Bayesian optimization performs great in high dimensions.
    ICML 2024. The prior of the lengthscales: their median grows with the root of the number of dimensions.
[Jones1998] D. R. Jones, M. Schonlau, W. J. Welch. Efficient global optimization of expensive black-box functions.
    Journal of Global Optimization 13, 1998.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, RandomSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState
from scipy.special import ndtr
from threadpoolctl import ThreadpoolController

from cst_search.search.encoding import Layout
from cst_search.study.pareto import Floats, dominated_volume, nondominated

Params = dict[str, Any]
Prediction = tuple[Floats, Floats]


# --- expected hypervolume improvement ---------------------------------------------------------------------------------


def ehvi(mean: Floats, std: Floats, costs: Floats, front_y: Floats, front_costs: Floats, reference: Floats) -> Floats:
    """Expected improvement of the hypervolume by each of n candidates; y is to be maximised, costs to be minimised.

    Args:
        mean, std: n, of the normal distribution of y.
        costs: ``n x m``, known; m may be 0, which gives the expected improvement of [Jones1998].
        front_y, front_costs: k and ``k x m``; points that do not matter (dominated, beyond the reference) do no harm.
        reference: m + 1: the worst y that counts, then the largest cost of each.
    """
    floor, bound = reference[0], reference[1:]
    inside = (front_y > floor) & (front_costs < bound).all(axis=1)
    by = np.argsort(-front_y[inside], kind="stable")
    y, known = front_y[inside][by], front_costs[inside][by]
    std = np.maximum(std, 1e-12)

    def psi(t: Floats) -> Floats:
        z = (mean[:, None] - t) / std[:, None]
        return std[:, None] * (z * ndtr(z) + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi))

    # between levels[k + 1] and levels[k] the first k points of the front are in the way
    levels = np.append(y, floor)
    beyond = psi(levels)
    gained = np.diff(beyond, axis=1, prepend=0.0)
    return np.asarray((uncovered(costs, known, bound) * gained).sum(axis=1))


def uncovered(costs: Floats, taken: Floats, bound: Floats) -> Floats:
    """Volume between each of n points and the bound that none of the first 0, 1, .. k taken points dominates.

    Args:
        costs: ``n x m``. taken: ``k x m``. bound: m.

    Returns:
        ``n x (k + 1)``, along which it does not grow.
    """
    whole = np.maximum(bound - costs, 0.0).prod(axis=1)
    n, m = costs.shape
    k = len(taken)
    if m == 0:  # one point is all of the space
        return np.hstack([np.ones((n, 1)), np.zeros((n, k))])
    if m > 2:
        covered = [[dominated_volume(np.maximum(taken[:i], c), bound) for i in range(1, k + 1)] for c in costs]
        return whole[:, None] - np.hstack([np.zeros((n, 1)), np.array(covered).reshape(n, k)])
    if m == 1:  # as two, the second of which is the same for all
        taken, costs = np.pad(taken, ((0, 0), (0, 1))), np.pad(costs, ((0, 0), (0, 1)))
        bound = np.append(bound, 1.0)
    by = np.argsort(taken[:, 0], kind="stable")
    # a staircase: from one first cost to the next, the least second cost so far is what is dominated
    first = np.minimum(np.maximum(taken[by, 0], costs[:, :1]), bound[0])
    widths = np.diff(first, axis=1, append=bound[0])
    counts = by < np.arange(k + 1)[:, None]  # of each level: the points that are among its first
    least = np.minimum.accumulate(np.where(counts, taken[by, 1], bound[1]), axis=1)
    heights = np.maximum(bound[1] - np.maximum(least, costs[:, 1, None, None]), 0.0)
    return whole[:, None] - np.einsum("nk,nlk->nl", widths, heights)


# --- the model of the costly objective --------------------------------------------------------------------------------


class Model:
    """A Gaussian process of the costly objective.

    Matern 5/2 with a lengthscale per column and a noise of its own, as trials with other seeds differ. With as many
    columns as trials, lengthscales need a prior: they lie around a common one, which grows with the root of the number
    of columns [Hvarfner2024]. Independent wide priors were far too sure of themselves on 15 to 40 real trials.
    """

    def __init__(self, theta: Floats | None = None) -> None:
        self.theta = theta
        self.tuned_at = 0  # of how many trials theta is
        self.evidence = 0.0  # logarithm of the likelihood of the y that it was fitted to

    def fit(self, rows: Floats, y: Floats, variances: Floats, *, tune: bool, least_spread: float = 0.0) -> None:
        """Fit to n observations.

        Args:
            rows, y: ``n x d`` and n.
            variances: n, of the noise of each y beyond what all have.
            tune: choose lengthscales and noise anew, rather than keep those of the last time.
            least_spread: standard deviation of y that is taken for granted, where few y happen to be alike.
        """
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        self._mean, self._scale = float(y.mean()), max(float(y.std()), least_spread) or 1.0
        lengths = Matern(np.full(rows.shape[1], _length(rows.shape[1])), (1e-2, 1e4), nu=2.5)
        kernel = ConstantKernel(1.0, (0.05, 20.0)) * lengths + WhiteKernel(_NOISE, (1e-4, 2.0))
        if self.theta is not None:
            kernel = kernel.clone_with_theta(self.theta)
        optimiser = _maximise if tune or self.theta is None else None
        self._gp = GaussianProcessRegressor(kernel, alpha=variances / self._scale**2 + 1e-8, optimizer=optimiser)
        self._gp.fit(rows, (y - self._mean) / self._scale)
        self.theta = self._gp.kernel_.theta
        self.evidence = self._gp.log_marginal_likelihood_value_ - len(y) * math.log(self._scale)

    @property
    def kernel(self) -> Any:
        """Fitted, of observations with a standard deviation of 1."""
        return self._gp.kernel_

    def mean(self, rows: Floats) -> Floats:
        """Mean of what n configurations have."""
        return self._gp.predict(rows) * self._scale + self._mean

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        """Mean and standard deviation of what n configurations have without noise."""
        mean, std = self._gp.predict(rows, return_std=True)
        noise = self._gp.kernel_.k2.noise_level
        return mean * self._scale + self._mean, np.sqrt(np.maximum(std**2 - noise, 1e-10)) * self._scale


_NOISE = 0.03  # median of the prior: share of the variance of all observations
_SPREAD = 0.3  # of the logarithms of lengthscales around their mean; 0.15 to 0.6 did alike


def _length(d: int) -> float:
    return 0.7 * math.sqrt(d)


def _maximise(obj_func: Callable[..., tuple[float, Floats]], theta: Floats, bounds: Floats) -> tuple[Floats, float]:
    """Maximum a posteriori of (log variance, log lengthscales, log noise)."""
    from scipy.optimize import minimize

    centre = math.log(_length(len(theta) - 2))

    def loss(theta: Floats) -> tuple[float, Floats]:
        value, gradient = obj_func(theta, eval_gradient=True)  # of -log likelihood
        variance, lengths, noise = theta[0], theta[1:-1], (theta[-1] - math.log(_NOISE)) / 0.5
        common = lengths.mean()
        off = lengths - common
        value += 0.5 * (variance**2 + noise**2 + float(off @ off) / _SPREAD**2 + (common - centre) ** 2)
        pull = np.concatenate([[variance], off / _SPREAD**2 + (common - centre) / len(lengths), [noise / 0.5]])
        return value, gradient + pull

    found = minimize(loss, theta, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 50})
    return found.x, found.fun


# --- the sampler ------------------------------------------------------------------------------------------------------

_END = 1 << 30  # the epoch of a result at full length
_FIRST_PRICED = 5  # times ``n_priced`` are priced for the first choice: what is cheapest of all is soon found
_CHANGES = 0.5, 0.25, 0.125  # shares of parameters that change, of what is like another
_MOST_PRICED = 4096  # structures whose costs are kept
# of so many suggestions one is random, for what the model is wrong about [Hutter2011]
_CYCLE = 8
# The model is one fit out of many that a few trials allow, and surer than all of them together: where it chooses, its
# standard deviation counts so many times, and less the more trials a column of it has (docs/searching.md).
_BOLD = 2.0
# With a prior there are two models from so many results on, with it and without: within one method it may know little.
# Which one suggests is drawn by their evidence, and neither is ever left out.
_FIRST_DOUBT = 3
_LEAST_BELIEF = 0.1
_FIRST_SPREAD = 0.1  # standard deviation of y around its prior, where fewer than three y are known; of mAP's size
_MOST_MODELLED = 300  # trials that the model is made of: a suggestion is to take milliseconds


@dataclass(frozen=True)
class Known:
    """What is known of a configuration before it runs.

    Attributes:
        values: of all objectives but the costly one, in their order.
        violation: how far it is over its bounds, summed; <= 0 is feasible.
    """

    values: Sequence[float]
    violation: float = 0.0


@dataclass
class _Point:
    """A trial as the model sees it: y to be maximised, costs to be minimised.

    Attributes:
        codes: of its configuration, as `Layout` has them.
        costs: None until they are needed.
        curve: {epoch: y}, `_END` for the result; empty while nothing is known. y is -inf where the trial broke.
        counts: it is a feasible result, or may become one: what is suggested is to improve on it.
    """

    codes: Floats
    costs: Floats | None
    curve: Mapping[int, float]
    counts: bool

    @property
    def last(self) -> float:
        return self.curve[max(self.curve)]


class ParetoSampler(BaseSampler):
    """Suggests by expected hypervolume improvement, with a model of one objective; the others are known.

    It works in any Optuna study, with ask and tell as with optimize, and with several trials at a time: those that run
    count as if they had what the model expects of them [Ginsbourger2010].

    Args:
        known: of the parameters of a trial.
        space: every parameter that may occur, with its distribution.
        costly: index of the objective to be modelled.
        conditions: of parameters that not every configuration has, as `candidates.Layout` takes them.
        free: names of parameters on which nothing known depends, so that what is known is shared by all their values.
        reference: the worst values that count, in the order of the objectives; None: of the known ones the worst seen.
        curve: what a trial reached before its end: {epoch: value of the costly objective}.
        prior: what n configurations, ``n x p`` as `candidates.Layout` has them, are expected to have of the costly
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
        known: Callable[[Params], Known],
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
        self._prior = prior or _no_prior
        self._n_startup = 0 if prior else n_startup
        self._n_priced, self._n_candidates = n_priced, n_candidates
        self._rng = np.random.default_rng(seed)
        self._independent = RandomSampler(seed)
        self._layout = Layout(space, conditions)
        self._models = Model(), Model()  # of y, and of what is left of its prior
        self._free = self._layout.mask(free)
        self._priced: dict[bytes, tuple[Floats, Known]] = {}
        self._ended: dict[int, _Point | None] = {}

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

    def _price(self, codes: Floats) -> Known:
        """What is known of a configuration; asked once for all values of the free parameters."""
        return self._prices(codes[None])[0]

    def _prices(self, rows: Floats) -> list[Known]:
        found = []
        for row, bound in zip(rows, np.where(self._free, 0.0, rows), strict=True):
            key = bound.tobytes()
            if key not in self._priced:
                if len(self._priced) >= _MOST_PRICED:
                    del self._priced[next(iter(self._priced))]
                self._priced[key] = row, self.known(self._layout.params(row))
            found.append(self._priced[key][1])
        return found

    def _costs(self, prices: Sequence[Known], signs: Floats) -> Floats:
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

    def _points(self, study: Study, number: int, signs: Floats) -> list[_Point]:
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

    def _point(self, trial: FrozenTrial, signs: Floats) -> _Point | None:
        if trial.state in (TrialState.WAITING, TrialState.FAIL):
            return None
        try:
            codes = self._layout.row(trial.params)
        except KeyError:  # of another space, or another process is about to suggest it
            return None
        sign = signs[self._costly]
        curve = {epoch: sign * y for epoch, y in self._curve(trial).items() if math.isfinite(y)}
        if trial.state != TrialState.COMPLETE:
            return _Point(codes, None, curve, trial.state == TrialState.RUNNING)
        y = trial.values[self._costly]
        if math.isfinite(y):
            curve[_END] = sign * y
            counts = all(violation <= 0 for violation in trial.constraints.values())
        elif self._price(codes).violation > 0:  # refused before it ran
            return None
        else:
            curve, counts = {_END: -math.inf}, False
        return _Point(codes, -np.delete(signs * trial.values, self._costly), curve, counts)

    def _observations(self, points: Sequence[_Point]) -> tuple[Floats, Floats]:
        """(y at full length, variance beyond the noise that all have) of points that have a curve.

        What a trial had at an epoch is taken to its end by the line through those that have both, its slope drawn
        towards 1 while they are few; what is left of these is the variance.
        """
        ends = [p.curve[_END] for p in points if _END in p.curve and math.isfinite(p.curve[_END])]
        finite = [y for p in points for y in p.curve.values() if math.isfinite(y)]
        if not finite:
            return np.zeros(len(points)), np.zeros(len(points))
        worst, spread = min(finite), (float(np.std(ends)) if len(ends) > 1 else 0.0) or 0.1
        lines: dict[int, tuple[float, float, float]] = {}

        def line(epoch: int) -> tuple[float, float, float]:
            if epoch not in lines:
                both = [(p.curve[epoch], p.curve[_END]) for p in points if _END in p.curve and epoch in p.curve]
                x, y = np.array([pair for pair in both if math.isfinite(pair[1])]).reshape(-1, 2).T
                lines[epoch] = _line(x, y, spread)
            return lines[epoch]

        y, variance = np.empty(len(points)), np.zeros(len(points))
        for i, point in enumerate(points):
            epoch = max(point.curve)
            y[i] = point.curve[epoch]
            if epoch != _END:
                start, slope, variance[i] = line(epoch)
                y[i] = start + slope * y[i]
            elif not math.isfinite(y[i]):
                y[i] = worst
        return y, variance

    def _fitted(
        self, points: Sequence[_Point], n_told: int, n: int, sign: float, believes: bool
    ) -> tuple[Callable[[Floats], Prediction], float]:
        """What a model says of configurations, mean and standard deviation of y; and its evidence.

        Points after the first ``n_told`` have no y, and count as if they had the mean.

        Args:
            n: trials there are: lengthscales are chosen anew where these have grown by a tenth.
            sign: -1 where the costly objective is to be minimised.
            believes: the model is of what is left of y after its regression on the prior.
        """
        model, prior = self._models[believes], self._prior if believes else _no_prior
        codes = np.stack([p.codes for p in points])
        rows, priors = self._layout.encode(codes), sign * prior(codes)
        y, variance = self._observations(points[:n_told])
        start, slope, rest = 0.0, 0.0, 0.0
        if believes:
            spread = float(y.std()) if n_told > 2 else _FIRST_SPREAD
            start, slope, rest = _line(priors[:n_told], y, spread)
        left = y - start - slope * priors[:n_told]
        fit = partial(model.fit, least_spread=math.sqrt(rest))
        tune = n_told < 30 or abs(n - model.tuned_at) > 0.1 * model.tuned_at
        if tune:
            model.tuned_at = n
        if n_told:
            fit(rows[:n_told], left, variance, tune=tune)
        evidence = model.evidence - believes * 0.5 * math.log(max(n_told, 1))  # for the slope
        if n_told < len(points):
            believed = model.predict(rows[n_told:])[0] if n_told else np.zeros(len(points))
            variance = np.append(variance, np.zeros(len(believed)))
            fit(rows, np.append(left, believed), variance, tune=False)

        def predict(codes: Floats) -> Prediction:
            mean, std = model.predict(self._layout.encode(codes))
            return mean + start + slope * sign * prior(codes), std

        return predict, evidence

    def _believed(self, points: Sequence[_Point], n_told: int, n: int, sign: float) -> Callable[[Floats], Prediction]:
        """The model with the prior or the one without, drawn by their evidence."""
        fitted = partial(self._fitted, points, n_told, n, sign)
        if self._prior is _no_prior or n > _MOST_MODELLED:  # a prior that weighs as much as three trials
            return fitted(False)[0]
        with_prior, evidence = fitted(True)
        if n_told < _FIRST_DOUBT:
            return with_prior
        without, rival = fitted(False)
        belief = 1 / (1 + math.exp(min(rival - evidence, 50.0)))
        belief = min(max(belief, _LEAST_BELIEF), 1 - _LEAST_BELIEF)
        return with_prior if self._rng.random() < belief else without

    # --- what is best ---

    def _best(self, points: Sequence[_Point], signs: Floats) -> Floats:
        """The candidate with the largest expected improvement."""
        told = self._some([point for point in points if point.curve])
        everyone = told + [point for point in points if not point.curve]
        for point in everyone:
            if point.costs is None:
                point.costs = self._costs([self._price(point.codes)], signs)[0]
        codes, costs = np.stack([p.codes for p in everyone]), np.array([p.costs for p in everyone])
        predict = self._believed(everyone, len(told), len(points), signs[self._costly])
        # the front as the model sees it: the highest of many noisy values is high by luck, too
        smooth, _ = predict(codes)
        front = np.flatnonzero([point.counts for point in everyone])
        front = front[nondominated(np.column_stack([-smooth[front], costs[front]]))]
        taken = {point.codes.tobytes() for point in points}

        # in thirds: anything, and twice what is near the best; by then a large study has seen what matters
        late = len(points) > _MOST_MODELLED
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

    def _some(self, points: list[_Point]) -> list[_Point]:
        """At most `_MOST_MODELLED`: the front, the latest, and others at random."""
        if len(points) <= _MOST_MODELLED:
            return points
        results = [i for i, point in enumerate(points) if point.counts and _END in point.curve]
        values = np.array([[-points[i].last, *points[i].costs] for i in results])  # type: ignore[misc]
        front = np.asarray(results)[nondominated(values)]
        latest = np.arange(len(points) - _MOST_MODELLED // 4, len(points))
        kept = np.union1d(front[: _MOST_MODELLED // 2], latest)
        rest = np.setdiff1d(np.arange(len(points)), kept)
        others = self._rng.choice(rest, size=_MOST_MODELLED - len(kept), replace=False)
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


def _no_prior(rows: Floats) -> Floats:
    return np.zeros(len(rows))


@cache
def _blas() -> ThreadpoolController:
    import sklearn.gaussian_process  # noqa: F401  # so that all of them are loaded

    return ThreadpoolController().select(user_api="blas")


def _line(x: Floats, y: Floats, spread: float) -> tuple[float, float, float]:
    """(start, slope, variance of what is left) of y over x, as if three more points had slope 1.

    Args:
        spread: standard deviation of y where there are too few points to tell.
    """
    if len(x) == 0:
        return 0.0, 1.0, spread**2
    prior = 3 * (float(x.var()) or spread**2)
    slope = (((x - x.mean()) * (y - y.mean())).sum() + prior) / (((x - x.mean()) ** 2).sum() + prior)
    start = y.mean() - slope * x.mean()
    rest = (((y - start - slope * x) ** 2).sum() + 3 * (0.5 * spread) ** 2) / (len(x) + 3)
    return float(start), float(slope), float(rest)
