"""What is expected of a configuration before any trial of a study has run: from trials on other data.

What works on one data set mostly works on another: gates and widths, which method, which learning rate. So results of
random configurations of all methods on other data (`prior.json.gz`, by tools/prior.py) are shipped, and a search begins
with what a Gaussian process expects from them. It is a mean to start from [Golovin2017]: the sampler regresses what a
study finds on it, and where that says something else the slope goes to zero (see `sampler.ParetoSampler`).

References.

[Golovin2017] D. Golovin, B. Solnik, S. Moitra, G. Kochanski, J. Karro, D. Sculley. Google Vizier: a service for
    black-box optimization. KDD 2017, section 3.3: a model of the residual on top of that of earlier studies.
"""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cst_search.parameters import distribution, label, params_of
from cst_search.pareto import Floats
from cst_search.sampler import Encoder, Model, Params
from cst_search.space import Dimension, Space

FILE = Path(__file__).with_name("prior.json.gz")


class Prior:
    """Expected map of configurations, up to a constant, in units of map.

    Args:
        space: that the results were drawn from.
        tables: by data set: (configuration, map at the end) of each trial.
        theta: of `sampler.Model`; None: fitted, which takes some seconds.
    """

    def __init__(
        self,
        space: Space,
        tables: Mapping[str, Sequence[tuple[Mapping[str, Any], float]]],
        theta: Sequence[float] | None = None,
    ) -> None:
        self.space = space
        self._encoder = Encoder({d.name: distribution(d) for d in space.dimensions()})
        self._model = Model(None if theta is None else np.asarray(theta))
        spread = float(np.mean([np.std([y for _, y in table]) for table in tables.values()]))
        rows, centred = [], []
        for table in tables.values():
            y = np.array([y for _, y in table])
            centred.append((y - y.mean()) / y.std() * spread)
            rows += [self._encoder.row(params_of(space, config)) for config, _ in table]
        y = np.concatenate(centred)
        self._model.fit(np.stack(rows), y, np.zeros(len(y)), tune=theta is None)

    @classmethod
    def load(cls, path: Path = FILE, *, without: Collection[str] = (), refit: bool = False) -> Prior:
        """The shipped one.

        Args:
            without: names of data sets that it shall know nothing of.
            refit: nor its lengthscales, which are of all of them; it takes some seconds.
        """
        with gzip.open(path, "rt") as file:
            content = json.load(file)
        tables = {t["data"]: [(r["config"], r["map"]) for r in t["rows"]] for t in content["tables"]}
        kept = {data: rows for data, rows in tables.items() if data not in without}
        return cls(Space.from_dict(content["space"]), kept, None if refit else content["theta"])

    @property
    def theta(self) -> list[float]:
        """Of the model, fitted."""
        assert self._model.theta is not None
        return [float(value) for value in self._model.theta]

    def over(self, space: Space) -> Callable[[Sequence[Params]], Floats]:
        """Expected map of trials of another space, by their parameters.

        What the two spaces do not share (a method, an option, a value that is no number) says nothing; a number beyond
        the range that was tried counts as the end of it.
        """
        places: dict[tuple[str, str], Callable[[Any], dict[str, Any]]] = {}
        for method in set(space.methods) & set(self.space.methods):
            known = {d.key: d for d in self.space.by_method[method]}
            for dimension in space.by_method[method]:
                if dimension.key in known:
                    places[method, dimension.name] = _translation(dimension, known[dimension.key])
        only = space.methods[0]

        def expected(several: Sequence[Params]) -> Floats:
            rows = []
            for params in several:
                method = params.get(Space.METHOD, only)
                found = {Space.METHOD: method} if method in self.space.methods else {}
                for name, value in params.items():
                    if (method, name) in places:
                        found.update(places[method, name](value))
                rows.append(self._encoder.row(found))
            return self._model.mean(np.stack(rows))

        return expected


def _translation(of: Dimension, to: Dimension) -> Callable[[Any], dict[str, Any]]:
    """Of a value of a dimension, as Optuna calls it: {name: the nearest of another}, {} where that has none like it."""
    if of.choices:
        return {label(choice): _nearest(label(choice), to) for choice in of.choices}.__getitem__
    return lambda value: _nearest(value, to)


def _nearest(value: Any, to: Dimension) -> dict[str, Any]:
    labels = [label(choice) for choice in to.choices]
    if value in labels:
        return {to.name: value}
    if not _is_number(value) or not all(map(_is_number, labels)):
        return {}
    if not labels:
        return {to.name: min(max(value, to.low), to.high)}
    return {to.name: min(labels, key=lambda c: abs(math.log((abs(c) + 1e-9) / (abs(value) + 1e-9))))}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
