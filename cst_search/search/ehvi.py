"""Expected improvement of the hypervolume, where one objective is random and the costs of a candidate are known.

With the known costs c of a candidate and the front P,

    EHVI(c) = integral over y' from the reference to infinity of  A(y', c) * Pr(Y > y') dy'
    A(y', c) = volume of the costs that c dominates, up to the reference, and that no point of P with y >= y' does

A is constant between the values y of the front, so that the integral is a finite sum of terms
A_k * (psi(y_k) - psi(y_k+1)), psi(t) = E[max(Y - t, 0)]: exact, no sampling. This is [Emmerich2011] with all but one
objective degenerate.

References.

[Emmerich2011] with all but one
objective degenerate.

References.

[Jones1998] D. R. Jones, M. Schonlau, W. J. Welch. Efficient global optimization of expensive black-box functions.
    Journal of Global Optimization 13, 1998.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

from cst_search.study.pareto import Floats, dominated_volume


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
