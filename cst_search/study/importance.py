"""Importance of the dimensions of a search space for mAP: the share of its variance that each explains. Numpy only.

mAPs count by their rank, so that a few failed trainings do not decide. The method comes first. Every other dimension is
compared within methods, by what is left of the ranks without the mean of their method: a learning rate that only good
methods have explains nothing. Numbers are compared in quarters of the trials, choices by value, as in a one-way
analysis of variance (R. A. Fisher, Statistical Methods for Research Workers, 1925). Each dimension is looked at alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cst_search.study.states import TrialState

if TYPE_CHECKING:
    from cst_search.study.records import StudyInfo, TrialRecord

FEWEST = 20  # trials; of fewer, each quarter of a dimension has less than five
_MOST = 2000  # trials used, evenly spread if there are more; bounds the time to a quarter of a second
_N_PARTS = 4  # groups of a dimension of numbers
_N_SHUFFLES, _NOISE_QUANTILE = 100, 0.95
_METHOD = "method"


def importance(info: StudyInfo) -> dict[str, Any]:
    """Return how much of the mAP of a study's trials each dimension explains. Deterministic.

    A trial that was stopped early counts with the mAP of its last epoch, a confirmed one with its mean.

    Returns:
        ``n``: number of trials used: trained, and within the budget; ``fewest``: number required. ``dimensions``: list
        from the most important on, with ``key``, ``share`` of the variance of the ranks of mAP (0..1, less what chance
        explains on average), ``noise``, and ``methods`` (those that have the dimension; None: all). ``noise`` is what
        the method, or the largest share of all others, stays below in 19 of 20 shufflings of the same mAPs. The list is
        empty with too few trials, or if all have the same mAP.
    """
    scored = [(record.config, _quality(info, record)) for record in info.trials]
    return explained([(config, quality) for config, quality in scored if quality is not None])


def that_matter(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the dimensions of `importance` whose share is more than chance, the most important first."""
    return [row for row in found["dimensions"] if row["share"] > row["noise"]]


def order_of(found: Mapping[str, Any]) -> list[str]:
    """Return the names of the dimensions that matter, the most important first."""
    return [row["key"] for row in that_matter(found)]


def explained(trials: Sequence[tuple[Mapping[str, Any], float]]) -> dict[str, Any]:
    """Return what `importance` does, of configurations with their mAP."""
    trials = trials[:: math.ceil(len(trials) / _MOST) or 1]
    found: dict[str, Any] = {"n": len(trials), "fewest": FEWEST, "dimensions": []}
    configs, maps = [config for config, _ in trials], np.array([quality for _, quality in trials])
    if len(trials) < FEWEST or np.ptp(maps) == 0:
        return found
    methods, ranks = _groups([config.get(_METHOD) for config in configs]), _ranks(maps)
    left = ranks - _means(ranks[:, None], methods)[methods, 0]
    rng = np.random.default_rng(0)
    # a row per trial; the first column has the study's own ranks, the others have them shuffled
    whole, within = (np.stack([v, *(rng.permutation(v) for _ in range(_N_SHUFFLES))], 1) for v in (ranks, left))
    shares: dict[str, np.ndarray] = {}
    for key in dict.fromkeys(key for config in configs for key in config):
        has = np.array([key in config for config in configs])
        groups = _groups([config[key] for config in configs if key in config])
        if groups.max() > 0:
            values = (whole if key == _METHOD else within)[has]
            means = _means(values - values.mean(0), groups)
            explained_by = (np.bincount(groups)[:, None] * means**2).sum(0) / (ranks**2).sum()
            shares[key] = explained_by - explained_by[1:].mean()
    noise = {key: _quantile([shares[key]]) for key in shares if key == _METHOD}
    others = [values for key, values in shares.items() if key != _METHOD]
    rows: list[dict[str, Any]] = [
        {
            "key": key,
            "share": round(max(0.0, float(values[0])), 4),
            "noise": noise[key] if key in noise else _quantile(others),
            "methods": _having(key, configs),
        }
        for key, values in shares.items()
    ]
    return found | {"dimensions": sorted(rows, key=lambda row: (-row["share"], row["key"]))}


def _quantile(shares: Sequence[np.ndarray]) -> float:
    """Return what the largest share of some dimensions stays below in 19 of 20 shufflings."""
    return round(float(np.quantile(np.max([values[1:] for values in shares], axis=0), _NOISE_QUANTILE)), 4)


def _quality(info: StudyInfo, record: TrialRecord) -> float | None:
    trained = record.feasible and record.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return info.over_seeds(record).mean if trained else None


def _ranks(values: np.ndarray) -> np.ndarray:
    """Return ranks around 0; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks = (ends - (counts - 1) / 2)[inverse]
    return ranks - ranks.mean()


def _groups(values: Sequence[Any]) -> np.ndarray:
    """Return the index of each value's group: by value; of many different numbers, by quarters of their order."""
    distinct = set(map(str, values))
    if len(distinct) > _N_PARTS and all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
        numbers = np.array(values, dtype=float)
        inner = np.quantile(numbers, np.arange(1, _N_PARTS) / _N_PARTS)
        return np.unique(np.searchsorted(inner, numbers, side="right"), return_inverse=True)[1]
    places = {text: i for i, text in enumerate(sorted(distinct))}
    return np.array([places[str(value)] for value in values])


def _means(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the mean row of each group, (n_groups, n_columns)."""
    members = groups == np.arange(groups.max() + 1)[:, None]
    return (members @ rows) / members.sum(1, keepdims=True)


def _having(key: str, configs: Sequence[Mapping[str, Any]]) -> list[str] | None:
    having = {str(config.get(_METHOD)) for config in configs if key in config}
    return None if having == {str(config.get(_METHOD)) for config in configs} else sorted(having)
