"""A Gaussian process of the costly objective.

References.

[Hvarfner2024] C. Hvarfner, E. O. Hellsten, L. Nardi. Vanilla Bayesian optimization performs great in high dimensions.
    ICML 2024. The prior of the lengthscales: their median grows with the root of the number of dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from cst_search.study.pareto import Floats


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
