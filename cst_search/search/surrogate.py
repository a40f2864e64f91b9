"""Surrogate model of the costly objective, with or without a prior, chosen by evidence.

References.

[Wistuba2018] M. Wistuba, N. Schilling, L. Schmidt-Thieme. Scalable Gaussian process-based transfer surrogates for
    hyperparameter optimization. Machine Learning 107, 2018: TST-R, weights of sources by the pairs that they misrank.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from cst_search.search.encoding import ParameterLayout
from cst_search.search.gaussian_process import Model
from cst_search.search.observations import Observation, at_full_length, fit_line
from cst_search.study.pareto import Floats

Prediction = tuple[Floats, Floats]
Prior = Callable[[Floats], Floats]

MOST_MODELLED = 300  # most trials that the model is fitted to, so that a suggestion takes milliseconds
# From so many results on there are two models, with and without the prior, which may know little within one method.
# The model that suggests is drawn according to their evidence; each keeps at least the probability `_LEAST_BELIEF`.
_FIRST_DOUBT = 3
_LEAST_BELIEF = 0.1
_COIN = 0.5  # share of misranked pairs at which a source says nothing
_GIVEN, _AT_FIRST = 6, 0.25
_FIRST_SPREAD = 0.1  # standard deviation of y around its prior while fewer than three y are known; on the scale of mAP


class Surrogate:
    """Two Gaussian processes: of y, and of the residual of y after regression on a prior.

    Args:
        layout: layout of the configurations.
        priors: expected y of n configurations by each source, see `ParetoSampler`; none: no prior.
        rng: random generator that draws which of the two predicts.

    Attributes:
        noise: standard deviation of y between seeds, by the model that predicts; 0 before there is one.
    """

    def __init__(self, layout: ParameterLayout, priors: Sequence[Prior], rng: np.random.Generator) -> None:
        self._layout, self._priors, self._rng = layout, tuple(priors), rng
        self._models = Model(), Model()
        self.noise = 0.0

    def _fitted(
        self, points: Sequence[Observation], n_told: int, n: int, sign: float, believes: bool
    ) -> tuple[Callable[[Floats], Prediction], float]:
        """Return a fitted predictor of the mean and standard deviation of y, and its evidence.

        Points after the first ``n_told`` have no y, and count as if they had the predicted mean.

        Args:
            n: number of trials; lengthscales are fitted again when it has grown by a tenth.
            sign: -1 if the costly objective is minimised.
            believes: True to model the residual of y after regression on the prior.
        """
        model, codes = self._models[believes], np.stack([p.codes for p in points])
        y, variance = at_full_length(points[:n_told])
        prior = mixed(self._priors, codes[:n_told], sign * y) if believes else _no_prior
        rows, priors = self._layout.encode(codes), sign * prior(codes)
        start, slope, rest = 0.0, 0.0, 0.0
        if believes:
            spread = float(y.std()) if n_told > 2 else _FIRST_SPREAD
            start, slope, rest = fit_line(priors[:n_told], y, spread)
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

    def predictor(
        self, points: Sequence[Observation], n_told: int, n: int, sign: float
    ) -> Callable[[Floats], Prediction]:
        """Return the predictor with or without the prior, drawn according to their evidence; see `_fitted`."""
        fitted = partial(self._fitted, points, n_told, n, sign)
        believes = bool(self._priors) and n <= MOST_MODELLED  # a prior that weighs as much as three trials
        predict, evidence = fitted(believes)
        if believes and n_told >= _FIRST_DOUBT:
            without, rival = fitted(False)
            belief = 1 / (1 + math.exp(min(rival - evidence, 50.0)))
            belief = min(max(belief, _LEAST_BELIEF), 1 - _LEAST_BELIEF)
            if self._rng.random() >= belief:
                predict, believes = without, False
        self.noise = self._models[believes].noise if n_told else 0.0
        return predict


def mixed(priors: Sequence[Prior], codes: Floats, y: Floats) -> Prior:
    """Return the mean of priors, weighed by how well each ranks what was found.

    Args:
        codes, y: the n configurations found, ``n x p``, and their y in the units of the priors.
    """
    expected = [prior(codes) for prior in priors] if len(codes) else np.zeros((len(priors), 0))
    weights = source_weights(np.asarray(expected), y)
    believed = [(weight, prior) for weight, prior in zip(weights, priors, strict=True) if weight > 0]

    def prior(rows: Floats) -> Floats:
        return np.asarray(sum((weight * prior(rows) for weight, prior in believed), np.zeros(len(rows))))

    return prior


def source_weights(expected: Floats, y: Floats) -> Floats:
    """Return the weights of s sources, none negative: their sum is 1, or 0 if every source is as bad as a coin.

    The kernel of TST-R [Wistuba2018] over the share of pairs that a source misranks, `misranked`.

    Args:
        expected: values expected of n configurations by each source, ``s x n``.
        y: their values.
    """
    weights = np.maximum(1 - (misranked(expected, y) / _COIN) ** 2, 0.0)
    return np.asarray(weights / (weights.sum() or 1.0))


def misranked(expected: Floats, y: Floats) -> Floats:
    """Return the share of pairs of configurations that each of s sources puts in the wrong order, 0..1.

    Half a pair counts where a source sees no difference. `_GIVEN` pairs with `_AT_FIRST` wrong are taken for granted,
    so that a single result decides nothing. Arguments as in `source_weights`.
    """
    i, j = np.triu_indices(len(y), 1)
    differ = y[i] != y[j]
    order, told = np.sign(y[i] - y[j])[differ], np.sign(expected[:, i] - expected[:, j])[:, differ]
    wrong = (1 - told * order).sum(axis=1) / 2
    return np.asarray((wrong + _GIVEN * _AT_FIRST) / (differ.sum() + _GIVEN))


def _no_prior(rows: Floats) -> Floats:
    return np.zeros(len(rows))
