"""A search space as samplers take it: a suggested value of each dimension, and the layout of all parameters."""

from __future__ import annotations

from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution
from optuna.trial import Trial

from cst_search.config.search_space import Dimension, Space
from cst_search.search.encoding import ParameterLayout
from cst_search.study.parameters import distribution, value_of


def pick(trial: Trial, dimension: Dimension) -> Any:
    """Return a value of a dimension, suggested by the sampler."""
    d = distribution(dimension)
    if isinstance(d, CategoricalDistribution):
        return value_of(dimension, trial.suggest_categorical(dimension.name, d.choices))
    if isinstance(d, IntDistribution):
        return trial.suggest_int(dimension.name, d.low, d.high, log=d.log)
    return trial.suggest_float(dimension.name, d.low, d.high, log=d.log)


def distributions(space: Space) -> dict[str, BaseDistribution]:
    """Return the distribution of every parameter that may occur, the method first."""
    return {d.name: distribution(d) for d in space.dimensions()}


def conditions(space: Space) -> dict[str, tuple[str, list[str]]]:
    """Return {parameter: (method dimension, methods that have it)} for parameters that not every method has."""
    having = {
        d.name: [method for method in space.methods if any(d.name == e.name for e in space.by_method[method])]
        for d in space.dimensions()
        if d.name != Space.METHOD
    }
    return {name: (Space.METHOD, of) for name, of in having.items() if len(of) < len(space.methods)}


def layout(space: Space) -> ParameterLayout:
    return ParameterLayout(distributions(space), conditions(space))
