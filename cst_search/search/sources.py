"""Sources of a study's transfer-learning prior: the shipped data sets, and earlier studies of the same storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cst_search.config.search_space import Space
from cst_search.errors import StudyError
from cst_search.search.observations import END, Observation, at_full_length
from cst_search.search.optuna_space import layout
from cst_search.search.surrogate import misranked, source_weights
from cst_search.search.transfer_prior import Prior, Table, expectations
from cst_search.study.parameters import params_of
from cst_search.study.pareto import Floats
from cst_search.study.records import StudyInfo, StudySpec
from cst_search.study.states import TrialState
from cst_search.study.study import Study, list_studies

SHIPPED = "shipped/"  # in `StudySpec.prior`: the shipped data sets. The name of a study has no slash
LEAST_TRIALS = 8  # a study of fewer trials with a result is no source
MOST_STUDIES = 6  # of a search, the newest
_MOST_SEEN = 30  # studies that are opened to find them
_MOST_ROWS = 200  # trials of a study


@dataclass(frozen=True)
class Source:
    """An earlier data set, and what it says about the configurations of a space.

    Attributes:
        name: a study, or `SHIPPED` and the name of a data set.
        n: number of its trials.
        expected: function from n configurations, ``n x p`` as in `optuna_space.layout`, to expected mAP, up to a
            constant. All sources of a study have the same spread, the mean of theirs.
    """

    name: str
    n: int
    expected: Callable[[Floats], Floats]


def choose_prior(option: str | None, url: str, name: str) -> tuple[str, ...]:
    """Return what a new study learns from, as in `StudySpec.prior`.

    Args:
        option: ``auto`` or None: the shipped data sets and the newest studies with enough results. ``none``. Or names
            of studies, separated by commas.
        url: storage of the studies.
        name: name of the new study.

    Raises:
        StudyError: a named study does not exist, or has too few results.
    """
    if option == "none":
        return ()
    if option not in (None, "auto"):
        named = [one.strip() for one in str(option).split(",") if one.strip()]
        for one in named:
            n = _n_results(_read(url, one))
            if n < LEAST_TRIALS:
                raise StudyError(f"--prior {one}: the study has {n} trials with a result; a source has {LEAST_TRIALS}")
        return tuple(named)
    others = [other for other in reversed(list_studies(url, make=True)) if other != name][:_MOST_SEEN]
    return SHIPPED, *[other for other in others if _earlier(url, other) is not None][:MOST_STUDIES]


def _earlier(url: str, name: str) -> StudyInfo | None:
    """Return a study of the storage if it has enough results; None if not, or if it is gone or cannot be read."""
    try:
        info = _read(url, name)
    except StudyError:
        return None
    return info if _n_results(info) >= LEAST_TRIALS else None


def _read(url: str, name: str) -> StudyInfo:
    study = Study.open(url, name)
    try:
        return study.info()
    finally:
        if study.storage is not None:
            study.storage.engine.dispose()


def _n_results(info: StudyInfo) -> int:
    return len(table_of(info, _costly(info)))


def _costly(spec: StudySpec) -> str:
    """Return the objective that is trained for: ``map`` or ``map50``."""
    return next((objective.name for objective in spec.objectives if objective.goal == "max"), "map")


def sources_of(study: Study) -> list[Source]:
    """Return the sources of a study, without studies that are gone and the shipped results on the study's own data."""
    names = (SHIPPED,) if study.spec.prior is None else study.spec.prior  # None: of an earlier version
    priors: dict[str, Prior] = {}
    if SHIPPED in names:
        shipped = Prior.load_each(without=[study.spec.data])
        priors |= {SHIPPED + name: prior for name, prior in shipped.items()}
    for name in names:
        info = None if name == SHIPPED else _earlier(study.url, name)
        if info is None:
            continue
        space = Space.from_dict(info.space, where=f"space of study {name!r}")
        priors[name] = Prior(space, {name: table_of(info, _costly(study.spec))})
    found = expectations(list(priors.values()), study.space)
    return [Source(name, prior.n, expected) for (name, prior), expected in zip(priors.items(), found, strict=True)]


def table_of(info: StudyInfo, objective: str) -> Table:
    """Return the configurations of a study's trials with their results at full length, the last `_MOST_ROWS`.

    The result of a trial that was stopped early is extrapolated.
    """
    points, configs = [], []
    for record in info.trials:
        curve = {entry["epoch"]: y for entry in record.history if (y := entry.get(objective)) is not None}
        if record.state == TrialState.COMPLETE and (y := getattr(record, objective)) is not None:
            curve[END] = y
        elif record.state != TrialState.PRUNED or not curve:
            continue
        points.append(Observation(np.empty(0), None, curve, counts=True))
        configs.append(record.config)
    y, _ = at_full_length(points)
    return list(zip(configs, map(float, y), strict=True))[-_MOST_ROWS:]


@dataclass(frozen=True)
class Verdict:
    """How much a study trusts a source.

    Attributes:
        weight: its share of the prior, 0..1.
        misranked: share of the pairs of the study's trials that it puts in the wrong order, 0..1; 0.5 is chance.
    """

    name: str
    n: int
    weight: float
    misranked: float


def verdicts(study: Study) -> tuple[int, Sequence[Verdict]]:
    """Return the number of a study's trials with a result, and what they say about each source."""
    sources = sources_of(study)
    table = table_of(study.info(), _costly(study.spec))
    y = np.array([y for _, y in table])
    expected = np.zeros((len(sources), 0))
    if table and sources:
        codes = np.stack([layout(study.space).row(params_of(study.space, config)) for config, _ in table])
        expected = np.stack([source.expected(codes) for source in sources])
    weights, wrong = source_weights(expected, y), misranked(expected, y)
    return len(table), [
        Verdict(source.name, source.n, float(weight), float(share))
        for source, weight, share in zip(sources, weights, wrong, strict=True)
    ]
