"""Importance of the dimensions of a search space for mAP: Optuna's conditional PED-ANOVA on the records of a study.

A dimension is important if its distribution among the best trials differs from that among all trials. A dimension that
only some methods have is weighted by its frequency in both sets, so that a dimension of a rare method cannot look
decisive for the whole study. A dimension whose range depends on the method is compared range by range.

References.

[Watanabe2023] S. Watanabe, A. Bansal, F. Hutter. PED-ANOVA: efficiently quantifying hyperparameter importance in
    arbitrary subspaces. IJCAI 2023, arXiv 2304.10255.
[condPED2026] Conditional PED-ANOVA: hyperparameter importance in hierarchical and dynamic search spaces.
    arXiv 2601.20800: the form that Optuna 5 has.
"""

from __future__ import annotations

import math
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from cst_search.config.search_space import Space
from cst_search.study.states import TrialState

if TYPE_CHECKING:
    from cst_search.study.records import StudyInfo, TrialRecord

FEWEST = 20  # trials; of fewer, a quarter is less than the 5 best that [Watanabe2023] and Optuna require
BEST_SHARE, FEWEST_BEST = 0.1, 5
MOST = 500  # trials used, drawn at random if there are more; bounds the time
N_SHUFFLES, NOISE_QUANTILE = 20, 0.95


def importance(info: StudyInfo, seed: int = 0) -> dict[str, Any]:
    """Return the importance of each dimension for a feasible trial to be among the best by mAP.

    Deterministic for the same records and seed. At most `MOST` trials are used, which bounds the time.

    Returns:
        ``n``: number of trials used, all feasible and trained. A trial that was stopped early counts with the mAP of
        its last epoch, a confirmed one with its mean. ``of``: number of such trials; ``best``: number of them that
        count as the best; ``fewest``: number required. ``dimensions``: list from the most important on, with ``key``,
        ``share`` (they sum to 1), ``noise``, and ``methods`` (those that have the dimension; None: all). ``noise`` is
        an upper bound of the share in 19 of 20 studies with the mAPs shuffled: a lower share means nothing. The list
        is empty with too few trials, or if all have the same mAP.
    """
    scored = [(record, quality) for record in info.trials if (quality := _quality(info, record)) is not None]
    rng = np.random.default_rng(seed)
    found: dict[str, Any] = {"n": min(len(scored), MOST), "of": len(scored), "best": 0, "fewest": FEWEST}
    found["dimensions"] = []
    if len(scored) > MOST:
        scored = [scored[i] for i in sorted(rng.choice(len(scored), MOST, replace=False))]
    losses = -np.array([quality for _, quality in scored])
    if len(scored) < FEWEST or np.ptp(losses) == 0:
        return found
    space = Space.from_dict(info.space)
    share = max(BEST_SHARE, FEWEST_BEST / len(scored))
    rows = _evaluate(space, [record for record, _ in scored], losses, share, rng)
    if rows is None:
        return found
    values, noise = rows
    whole = sum(values.values())
    if not whole > 0:
        return found
    methods = {key: [m for m in space.methods if key in {d.key for d in space.by_method[m]}] for key in values}
    everywhere = {Space.METHOD, *(key for key, have in methods.items() if len(have) == len(space.methods))}
    return found | {
        "best": int((losses <= np.sort(losses)[math.ceil(share * len(losses)) - 1]).sum()),
        "dimensions": [
            {
                "key": key,
                "share": round(value / whole, 4),
                "noise": round(noise[key] / whole, 4),
                "methods": None if key in everywhere else methods[key],
            }
            for key, value in sorted(values.items(), key=lambda item: (-item[1], item[0]))
        ],
    }


def _quality(info: StudyInfo, record: TrialRecord) -> float | None:
    trained = record.feasible and record.state in (TrialState.COMPLETE, TrialState.PRUNED)
    return info.over_seeds(record).mean if trained else None


def _evaluate(
    space: Space, records: list[TrialRecord], losses: np.ndarray, share: float, rng: np.random.Generator
) -> tuple[dict[str, float], dict[str, float]] | None:
    """Return the importance of each key of a configuration, and that by chance alone. None: nothing varies."""
    import optuna
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    optuna.logging.set_verbosity(optuna.logging.ERROR)  # as in `study.storage`
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.add_trials([_frozen(space, record) for record in records])
    evaluator = PedAnovaImportanceEvaluator(target_quantile=share)

    def evaluate(values: np.ndarray) -> dict[str, float]:
        return get_param_importances(
            study, evaluator=evaluator, target=lambda trial: float(values[trial.number]), normalize=False
        )

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on lower being better, and on methods with few trials
        found = evaluate(losses)
        shuffled = [evaluate(rng.permutation(losses)) for _ in range(N_SHUFFLES)]
    if not found:
        return None
    return found, {key: float(np.quantile([one[key] for one in shuffled], NOISE_QUANTILE)) for key in found}


def _frozen(space: Space, record: TrialRecord) -> Any:
    import optuna

    from cst_search.study.parameters import distribution, label

    method = [space.method_dimension] if len(space.methods) > 1 else []
    dimensions = [*method, *space.by_method.get(record.config.get(Space.METHOD, ""), ())]
    inside = [d for d in dimensions if d.key in record.config and d.contains(record.config[d.key])]
    return optuna.trial.create_trial(
        params={d.key: label(record.config[d.key]) for d in inside},
        distributions={d.key: distribution(d) for d in inside},
        value=0.0,
    )
