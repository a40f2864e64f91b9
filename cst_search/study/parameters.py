"""Conversion of configurations to Optuna's parameters, the form in which a study stores them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from cst_search.config.search_space import Dimension, Space


def params_of(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return Optuna's parameters of a configuration, as far as the space contains it."""
    method = {Space.METHOD: config[Space.METHOD]} if len(space.methods) > 1 else {}
    dimensions = space.by_method.get(config[Space.METHOD], ())
    inside = [d for d in dimensions if d.key in config and d.contains(config[d.key])]
    return method | {d.name: label(config[d.key]) for d in inside}


def distribution(dimension: Dimension) -> CategoricalDistribution | FloatDistribution | IntDistribution:
    """Return Optuna's distribution of a dimension."""
    if dimension.choices:
        return CategoricalDistribution([label(value) for value in dimension.choices])
    if dimension.whole:
        return IntDistribution(round(dimension.low), round(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def value_of(dimension: Dimension, name: Any) -> Any:
    """Return the value of a dimension for Optuna's parameter value."""
    return next(value for value in dimension.choices if label(value) == name) if dimension.choices else name


def label(value: Any) -> Any:
    """Return Optuna's category for a value: categories are scalars, so a list or tuple becomes its JSON text."""
    return json.dumps(list(value)) if isinstance(value, list | tuple) else value
