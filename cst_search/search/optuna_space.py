"""Conversion between configurations of a space and Optuna's parameters."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import Trial

from cst_search.config.search_space import Dimension, Space
from cst_search.search.encoding import ParameterLayout


def pick(trial: Trial, dimension: Dimension) -> Any:
    """Return a value of a dimension, suggested by the sampler."""
    d = distribution(dimension)
    if isinstance(d, CategoricalDistribution):
        return value_of(dimension, trial.suggest_categorical(dimension.name, d.choices))
    if isinstance(d, IntDistribution):
        return trial.suggest_int(dimension.name, d.low, d.high, log=d.log)
    return trial.suggest_float(dimension.name, d.low, d.high, log=d.log)


def params_of(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return Optuna's parameters of a configuration, as far as the space contains it."""
    method = {Space.METHOD: config[Space.METHOD]} if len(space.methods) > 1 else {}
    dimensions = space.by_method.get(config[Space.METHOD], ())
    inside = [d for d in dimensions if d.key in config and d.contains(config[d.key])]
    return method | {d.name: label(config[d.key]) for d in inside}


def distribution(dimension: Dimension) -> CategoricalDistribution | FloatDistribution | IntDistribution:
    if dimension.choices:
        return CategoricalDistribution([label(value) for value in dimension.choices])
    if dimension.whole:
        return IntDistribution(round(dimension.low), round(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


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


def value_of(dimension: Dimension, name: Any) -> Any:
    """Return the value of a dimension for Optuna's parameter value."""
    return next(value for value in dimension.choices if label(value) == name) if dimension.choices else name


def label(value: Any) -> Any:
    """Return Optuna's category for a value: categories are scalars, so a list or tuple becomes its JSON text."""
    return json.dumps(list(value)) if isinstance(value, list | tuple) else value
