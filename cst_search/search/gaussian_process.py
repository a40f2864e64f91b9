"""Gaussian process model of the costly objective.

References.

[Hvarfner2024] C. Hvarfner, E. O. Hellsten, L. Nardi. Vanilla Bayesian optimization performs great in high dimensions.
    ICML 2024. The lengthscale prior: its median grows with the square root of the number of dimensions.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from cst_search.study.pareto import Floats


class Model:
    """Gaussian process regression of the costly objective.

    The kernel is Matern 5/2 with one lengthscale per column plus learned noise, because results vary with the seed.
    With as many columns as trials, lengthscales need a prior: they lie around a common one, which grows with the square
    root of the number of columns [Hvarfner2024]. Independent wide priors were far too confident on 15 to 40 trials.
    """

    def __init__(self, theta: Floats | None = None) -> None:
        self.theta = theta
        self.tuned_at = 0  # number of trials at the last tuning of theta
        self.evidence = 0.0  # log marginal likelihood of the fitted y

    def fit(self, rows: Floats, y: Floats, variances: Floats, *, tune: bool, least_spread: float = 0.0) -> None:
        """Fit to n observations.

        Args:
            rows, y: ``n x d`` and n.
            variances: n noise variances, in addition to the noise common to all y.
            tune: fit lengthscales and noise again, rather than keep those of the last fit.
            least_spread: lower bound of the standard deviation of y, in case a few y happen to be similar.
        """
        from sklearn.exceptions import ConvergenceWarning
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

        self._mean, self._scale = float(y.mean()), max(float(y.std()), least_spread) or 1.0
        lengths = Matern(np.full(rows.shape[1], _length(rows.shape[1])), (1e-2, 1e4), nu=2.5)
        kernel = ConstantKernel(1.0, (0.05, 20.0)) * lengths + WhiteKernel(_NOISE, (1e-4, 2.0))
        if self.theta is not None:
            kernel = kernel.clone_with_theta(self.theta)
        optimiser = _maximise if tune or self.theta is None else None
        self._gp = GaussianProcessRegressor(kernel, alpha=variances / self._scale**2 + 1e-8, optimizer=optimiser)
        with warnings.catch_warnings():  # a length at its bound is no fault, and nothing that a user could change
            warnings.simplefilter("ignore", ConvergenceWarning)
            self._gp.fit(rows, (y - self._mean) / self._scale)
        self.theta = self._gp.kernel_.theta
        self.evidence = self._gp.log_marginal_likelihood_value_ - len(y) * math.log(self._scale)

    @property
    def kernel(self) -> Any:
        """Fitted kernel, for y scaled to a standard deviation of 1."""
        return self._gp.kernel_

    def mean(self, rows: Floats) -> Floats:
        """Return the predicted mean of y for n configurations, ``n x d``."""
        return self._gp.predict(rows) * self._scale + self._mean

    def predict(self, rows: Floats) -> tuple[Floats, Floats]:
        """Return the predicted mean and noise-free standard deviation of y for n configurations, ``n x d``."""
        mean, std = self._gp.predict(rows, return_std=True)
        noise = self._gp.kernel_.k2.noise_level
        return mean * self._scale + self._mean, np.sqrt(np.maximum(std**2 - noise, 1e-10)) * self._scale


_NOISE = 0.03  # median of the prior: share of the variance of all observations
_SPREAD = 0.3  # standard deviation of log lengthscales around their mean; 0.15 to 0.6 performed alike


def _length(d: int) -> float:
    return 0.7 * math.sqrt(d)


def _maximise(obj_func: Callable[..., tuple[float, Floats]], theta: Floats, bounds: Floats) -> tuple[Floats, float]:
    """Return the maximum a posteriori (log variance, log lengthscales, log noise), and its loss."""
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
