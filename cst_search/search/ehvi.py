"""Expected hypervolume improvement (EHVI) with one random objective and otherwise known costs.

For a candidate with known costs c, and the front P,

    EHVI(c) = integral over y' from the reference to infinity of  A(y', c) * Pr(Y > y') dy'
    A(y', c) = volume of the costs that c dominates, up to the reference, and that no point of P with y >= y' does

A is constant between the values y of the front, so the integral is a finite sum of terms
A_k * (psi(y_k) - psi(y_k+1)), psi(t) = E[max(Y - t, 0)]: exact, no sampling. This is [Emmerich2011] with all but one
objective degenerate.

References.

[Emmerich2011] M. T. M. Emmerich, A. H. Deutz, J. W. Klinkenberg. Hypervolume-based expected improvement: monotonicity
    properties and exact computation. IEEE Congress on Evolutionary Computation, 2011.
[Jones1998] D. R. Jones, M. Schonlau, W. J. Welch. Efficient global optimization of expensive black-box functions.
    Journal of Global Optimization 13, 1998.
"""

from __future__ import annotations

import math

import numpy as np
from scipy.special import ndtr

from cst_search.study.outlook import Outlook
from cst_search.study.pareto import Floats, dominated_volume


def ehvi(mean: Floats, std: Floats, costs: Floats, front_y: Floats, front_costs: Floats, reference: Floats) -> Floats:
    """Return the expected hypervolume improvement of n candidates; y is maximised, costs are minimised.

    Args:
        mean, std: mean and standard deviation of the normal distribution of y, n values each.
        costs: known costs, ``n x m``; m may be 0, which gives the expected improvement of [Jones1998].
        front_y, front_costs: k and ``k x m``; irrelevant points (dominated, beyond the reference) do no harm.
        reference: m + 1 values: the worst y that counts, then the largest value of each cost.
    """
    floor, bound = reference[0], reference[1:]
    inside = (front_y > floor) & (front_costs < bound).all(axis=1)
    by = np.argsort(-front_y[inside], kind="stable")
    y, known = front_y[inside][by], front_costs[inside][by]
    std = np.maximum(std, 1e-12)

    def psi(t: Floats) -> Floats:
        z = (mean[:, None] - t) / std[:, None]
        return std[:, None] * (z * ndtr(z) + np.exp(-0.5 * z**2) / math.sqrt(2 * math.pi))

    # between levels[k + 1] and levels[k] the first k points of the front limit the improvement
    levels = np.append(y, floor)
    beyond = psi(levels)
    gained = np.diff(beyond, axis=1, prepend=0.0)
    return np.asarray((uncovered(costs, known, bound) * gained).sum(axis=1))


def outlook(
    mean: Floats, std: Floats, costs: Floats, front_y: Floats, front_costs: Floats, reference: Floats, noise: float
) -> Outlook | None:
    """Return what the best of n candidates would bring, as shares of the front's hypervolume; None: it has none.

    With other seeds, y of each point of the front moves by the noise, and the hypervolume by that times the volume of
    costs where this point is the best. Points move independently.

    Args:
        noise: standard deviation of y between seeds. Other arguments as in `ehvi`.
    """
    inside = (front_y > reference[0]) & (front_costs < reference[1:]).all(axis=1)
    by = np.argsort(-front_y[inside], kind="stable")
    y, known = front_y[inside][by], front_costs[inside][by]
    if len(y) == 0 or len(mean) == 0:
        return None
    # alone[i]: the volume of costs that point i dominates, and none of the points with a higher y
    alone = np.diag(uncovered(known, known, reference[1:]))
    volume = float(alone @ (y - reference[0]))
    gain = float(ehvi(mean, std, costs, y, known, reference).max())
    return Outlook(gain / volume, noise * float(np.sqrt((alone**2).sum())) / volume)


def uncovered(costs: Floats, taken: Floats, bound: Floats) -> Floats:
    """Return the volume between each of n points and the bound that no point of the first 0, 1, .. k taken dominates.

    Args:
        costs: ``n x m``. taken: ``k x m``. bound: m.

    Returns:
        ``n x (k + 1)``, non-increasing along the second axis.
    """
    whole = np.maximum(bound - costs, 0.0).prod(axis=1)
    n, m = costs.shape
    k = len(taken)
    if m == 0:  # the space is a single point
        return np.hstack([np.ones((n, 1)), np.zeros((n, k))])
    if m > 2:
        covered = [[dominated_volume(np.maximum(taken[:i], c), bound) for i in range(1, k + 1)] for c in costs]
        return whole[:, None] - np.hstack([np.zeros((n, 1)), np.array(covered).reshape(n, k)])
    if m == 1:  # treat as two costs, the second constant
        taken, costs = np.pad(taken, ((0, 0), (0, 1))), np.pad(costs, ((0, 0), (0, 1)))
        bound = np.append(bound, 1.0)
    by = np.argsort(taken[:, 0], kind="stable")
    # a staircase: between consecutive first costs, everything above the least second cost so far is dominated
    first = np.minimum(np.maximum(taken[by, 0], costs[:, :1]), bound[0])
    widths = np.diff(first, axis=1, append=bound[0])
    counts = by < np.arange(k + 1)[:, None]  # for each level, the points counted in it
    least = np.minimum.accumulate(np.where(counts, taken[by, 1], bound[1]), axis=1)
    heights = np.maximum(bound[1] - np.maximum(least, costs[:, 1, None, None]), 0.0)
    return whole[:, None] - np.einsum("nk,nlk->nl", widths, heights)
