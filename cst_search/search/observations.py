"""Trials as the sampler observes them: learning curves, and extrapolation of curves that were cut short."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cst_search.study.pareto import Floats

END = 1 << 30  # the epoch of a result at full length


@dataclass
class Observation:
    """A trial as the model sees it: y is maximised, costs are minimised.

    Attributes:
        codes: codes of its configuration, see `ParameterLayout`.
        costs: known costs; None until needed.
        curve: {epoch: y}, with `END` for the result; empty while nothing is known. y is -inf if the trial failed.
        counts: True for a feasible result, or a trial that may become one: suggestions are to improve on it.
    """

    codes: Floats
    costs: Floats | None
    curve: Mapping[int, float]
    counts: bool

    @property
    def last(self) -> float:
        return self.curve[max(self.curve)]


def at_full_length(points: Sequence[Observation]) -> tuple[Floats, Floats]:
    """Return (y at full length, variance in addition to the common noise) of points that have a curve.

    A curve that stops at an epoch is extrapolated by a line fitted to the trials that have both this epoch and a
    result. The slope is shrunk towards 1 while they are few; their residual gives the variance.
    """
    ends = [p.curve[END] for p in points if END in p.curve and math.isfinite(p.curve[END])]
    finite = [y for p in points for y in p.curve.values() if math.isfinite(y)]
    if not finite:
        return np.zeros(len(points)), np.zeros(len(points))
    worst, spread = min(finite), (float(np.std(ends)) if len(ends) > 1 else 0.0) or 0.1
    lines: dict[int, tuple[float, float, float]] = {}

    def line(epoch: int) -> tuple[float, float, float]:
        if epoch not in lines:
            both = [(p.curve[epoch], p.curve[END]) for p in points if END in p.curve and epoch in p.curve]
            x, y = np.array([pair for pair in both if math.isfinite(pair[1])]).reshape(-1, 2).T
            lines[epoch] = fit_line(x, y, spread)
        return lines[epoch]

    y, variance = np.empty(len(points)), np.zeros(len(points))
    for i, point in enumerate(points):
        epoch = max(point.curve)
        y[i] = point.curve[epoch]
        if epoch != END:
            start, slope, variance[i] = line(epoch)
            y[i] = start + slope * y[i]
        elif not math.isfinite(y[i]):
            y[i] = worst
    return y, variance


def fit_line(x: Floats, y: Floats, spread: float) -> tuple[float, float, float]:
    """Return (intercept, slope, residual variance) of y over x, regularised as if three more points had slope 1.

    Args:
        spread: standard deviation of y to assume when there are too few points.
    """
    if len(x) == 0:
        return 0.0, 1.0, spread**2
    prior = 3 * (float(x.var()) or spread**2)
    slope = (((x - x.mean()) * (y - y.mean())).sum() + prior) / (((x - x.mean()) ** 2).sum() + prior)
    start = y.mean() - slope * x.mean()
    rest = (((y - start - slope * x) ** 2).sum() + 3 * (0.5 * spread) ** 2) / (len(x) + 3)
    return float(start), float(slope), float(rest)
