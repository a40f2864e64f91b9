"""Gaussian process model of the costly objective.

References.

[Hvarfner2024] C. Hvarfner, E. O. Hellsten, L. Nardi. Vanilla Bayesian optimization performs great in high dimensions.
    ICML 2024. The lengthscale prior: its median grows with the square root of the number of dimensions.
[Rasmussen2006] C. E. Rasmussen, C. K. I. Williams. Gaussian processes for machine learning. MIT Press, 2006. Prediction
    is algorithm 2.1, the gradient of the likelihood is equation 5.9.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.linalg import cho_solve, cholesky, solve_triangular

from cst_search.study.pareto import Floats

_NOISE = 0.03  # median of the prior: share of the variance of all observations
_SPREAD = 0.6  # standard deviation of log lengthscales around their mean
_BOUNDS = (0.05, 20.0), (1e-2, 1e4), (1e-4, 2.0)  # of variance, lengthscales, noise
_JITTER = 1e-8


class Model:
    """Gaussian process regression of the costly objective.

    The kernel is Matern 5/2 with one lengthscale per column plus learned noise, because results vary with the seed.
    With as many columns as trials, lengthscales need a prior: they lie around a common one, which grows with the square
    root of the number of columns [Hvarfner2024]. Independent wide priors were far too confident on 15 to 40 trials.

    Attributes:
        theta: logarithms of variance, d lengthscales and noise, for y scaled to a standard deviation of 1.
        tuned_at: number of trials at the last tuning of ``theta``.
        evidence: log marginal likelihood of the fitted y; after tuning, with the log density of the prior of ``theta``.
    """

    def __init__(self, theta: Floats | None = None) -> None:
        self.theta = theta
        self.tuned_at = 0
        self.evidence = 0.0

    def fit(self, rows: Floats, y: Floats, variances: Floats, *, tune: bool, least_spread: float = 0.0) -> None:
        """Fit to n observations.

        Args:
            rows, y: ``n x d`` and n.
            variances: n noise variances, in addition to the noise common to all y.
            tune: fit lengthscales and noise again, rather than keep those of the last fit.
            least_spread: lower bound of the standard deviation of y, in case a few y happen to be similar.
        """
        self._mean, self._scale = float(y.mean()), max(float(y.std()), least_spread) or 1.0
        data = _Data(rows, (y - self._mean) / self._scale, variances / self._scale**2 + _JITTER)
        theta, prior = self.theta, 0.0
        if tune or theta is None:
            d = rows.shape[1]
            start = np.log([1.0, *[_length(d)] * d, _NOISE]) if theta is None else theta
            theta, prior = _maximise(data, start)
        self.theta, self._rows = theta, rows
        self._factor, self._weights = data.solved(theta, kernel(theta, rows, rows))
        self.evidence = prior + data.likelihood(self._factor, self._weights) - len(y) * math.log(self._scale)

    @property
    def noise(self) -> float:
        """Standard deviation of the noise that all y have in common, in the units of y."""
        assert self.theta is not None
        return math.exp(self.theta[-1] / 2) * self._scale

    def mean(self, rows: Floats) -> Floats:
        """Return the predicted mean of y for n configurations, ``n x d``."""
        assert self.theta is not None
        return kernel(self.theta, rows, self._rows) @ self._weights * self._scale + self._mean

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        """Return the predicted mean and noise-free standard deviation of y for n configurations, ``n x d``."""
        assert self.theta is not None
        across = kernel(self.theta, rows, self._rows)
        known = solve_triangular(self._factor, across.T, lower=True, check_finite=False)
        variance = np.exp(self.theta[0]) - np.einsum("ij,ij->j", known, known)
        mean = across @ self._weights * self._scale + self._mean
        return mean, np.sqrt(np.maximum(variance, 1e-10)) * self._scale


def kernel(theta: Floats, rows: Floats, others: Floats) -> Floats:
    """Return the covariance of noise-free y between n and m configurations, ``n x m``; ``theta`` as in `Model`."""
    s = _distance(rows / np.exp(theta[1:-1]), others / np.exp(theta[1:-1]))
    return np.asarray(np.exp(theta[0] - s) * (1 + s + s * s / 3))


def _distance(rows: Floats, others: Floats) -> Floats:
    """Return sqrt(5) times the Euclidean distances, ``n x m``."""
    squares = (rows * rows).sum(axis=1)[:, None] + (others * others).sum(axis=1) - 2 * rows @ others.T
    return np.sqrt(5 * np.maximum(squares, 0.0))


class _Data:
    """Observations, and their likelihood under a ``theta``.

    Args:
        y: scaled to a mean of 0 and a standard deviation of 1.
        variances: additional noise of each.
    """

    def __init__(self, rows: Floats, y: Floats, variances: Floats) -> None:
        self.rows, self.y, self.variances = rows, y, variances

    def solved(self, theta: Floats, smooth: Floats) -> tuple[Floats, Floats]:
        """Return the Cholesky factor of the covariance, lower, and covariance^-1 y.

        Args:
            smooth: `kernel` of the rows.
        """
        noise = np.exp(theta[-1]) + self.variances
        factor = cholesky(smooth + np.diag(noise), lower=True, check_finite=False)
        return factor, cho_solve((factor, True), self.y, check_finite=False)

    def likelihood(self, factor: Floats, weights: Floats) -> float:
        """Return the log marginal likelihood of y, from what `solved` returns."""
        halves = 0.5 * float(self.y @ weights) + 0.5 * len(self.y) * math.log(2 * math.pi)
        return -halves - float(np.log(np.diag(factor)).sum())

    def likelihood_and_gradient(self, theta: Floats) -> tuple[float, Floats]:
        """Return the log marginal likelihood of y and its derivatives by ``theta`` [Rasmussen2006].

        The derivatives by all lengthscales are two products of matrices, with no ``n x n`` matrix for each.
        """
        scaled = self.rows / np.exp(theta[1:-1])
        s = _distance(scaled, scaled)
        decay = np.exp(theta[0] - s)
        smooth = decay * (1 + s + s * s / 3)
        factor, weights = self.solved(theta, smooth)
        excess = np.outer(weights, weights) - cho_solve((factor, True), np.eye(len(s)), check_finite=False)
        by_square = excess * decay * (1 + s) * (5 / 3)
        by_length = by_square.sum(axis=1) @ scaled**2 - np.einsum("ik,ik->k", scaled, by_square @ scaled)
        by_variance, by_noise = 0.5 * (excess * smooth).sum(), 0.5 * np.exp(theta[-1]) * np.trace(excess)
        return self.likelihood(factor, weights), np.concatenate([[by_variance], by_length, [by_noise]])


def _length(d: int) -> float:
    return 0.7 * math.sqrt(d)


def _maximise(data: _Data, theta: Floats) -> tuple[Floats, float]:
    """Return the maximum a posteriori of ``theta``, searched from a given one, and the prior's part of its log."""
    from scipy.optimize import minimize

    d = len(theta) - 2
    centre = math.log(_length(d))

    def prior(theta: Floats) -> tuple[float, Floats]:
        """Return the logarithm of the prior density, up to a constant, and its gradient."""
        variance, lengths, noise = theta[0], theta[1:-1], (theta[-1] - math.log(_NOISE)) / 0.5
        common = lengths.mean()
        off = lengths - common
        value = 0.5 * (variance**2 + noise**2 + float(off @ off) / _SPREAD**2 + (common - centre) ** 2)
        pull = np.concatenate([[variance], off / _SPREAD**2 + (common - centre) / d, [noise / 0.5]])
        return -value, -pull

    def loss(theta: Floats) -> tuple[float, Floats]:
        (likelihood, by_data), (density, by_prior) = data.likelihood_and_gradient(theta), prior(theta)
        return -likelihood - density, -by_data - by_prior

    bounds = np.log([_BOUNDS[0], *[_BOUNDS[1]] * d, _BOUNDS[2]])
    found = minimize(loss, theta, jac=True, bounds=bounds, method="L-BFGS-B", options={"maxiter": 50})
    return found.x, prior(found.x)[0]
