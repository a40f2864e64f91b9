"""Transfer-learning prior: expected mAP of a configuration, learned from trials on other datasets.

Methods, gates, widths and learning rates that work on one dataset mostly work on another. The package ships results of
random configurations of all methods on other datasets (`prior.json.gz`, by tools/prior.py), and the studies of the same
storage add theirs (`sources`). Each is a source with a Gaussian process of its own. What the sources expect, weighed by
how well each ranks the study's own results, is a prior mean [Golovin2017] (see `surrogate.Surrogate`).

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

from cst_search.config.search_space import Dimension, Space
from cst_search.search.gaussian_process import Model
from cst_search.search.optuna_space import layout
from cst_search.study.parameters import label, params_of
from cst_search.study.pareto import Floats

FILE = Path(__file__).with_name("prior.json.gz")
Table = Sequence[tuple[Mapping[str, Any], float]]  # (configuration, mAP) of each trial


class Prior:
    """Expected mAP of configurations, up to a constant, in units of mAP (0..1).

    Args:
        space: space from which the configurations were drawn.
        tables: by dataset: (configuration, final mAP) of each trial.
        theta: kernel parameters of `gaussian_process.Model`; None: fit them, which takes some seconds.

    Attributes:
        n: number of trials.
        spread: standard deviation of mAP within a dataset.
    """

    def __init__(
        self,
        space: Space,
        tables: Mapping[str, Table],
        theta: Sequence[float] | None = None,
    ) -> None:
        self.space = space
        self._layout = layout(space)
        self._model = Model(None if theta is None else np.asarray(theta))
        self.n = sum(map(len, tables.values()))
        self.spread = float(np.mean([np.std([y for _, y in table]) for table in tables.values()])) or 1e-6
        rows, centred = [], []
        for table in tables.values():
            y = np.array([y for _, y in table])
            centred.append((y - y.mean()) / (y.std() or 1.0) * self.spread)
            rows += [self._layout.row(params_of(space, config), partly=True) for config, _ in table]
        y = np.concatenate(centred)
        self._model.fit(self._layout.encode(np.stack(rows)), y, np.zeros(len(y)), tune=theta is None)

    @classmethod
    def load_each(cls, path: Path = FILE, *, without: Collection[str] = ()) -> dict[str, Prior]:
        """Return a prior of each shipped table, by the name of its dataset; of further tables of one, ``NAME-2``.

        Args:
            without: names of datasets to leave out.
        """
        with gzip.open(path, "rt") as file:
            groups = json.load(file)["groups"]
        found: dict[str, Prior] = {}
        for group in groups:
            space, theta = Space.from_dict(group["space"]), group["theta"]
            for table in group["tables"]:
                data, rows = table["data"], [(row["config"], row["map"]) for row in table["rows"]]
                if data in without:
                    continue
                n = sum(name == data or name.startswith(data + "-") for name in found)
                found[f"{data}-{n + 1}" if n else data] = cls(space, {data: rows}, theta)
        return found

    @property
    def theta(self) -> list[float]:
        """Fitted kernel parameters of the model."""
        assert self._model.theta is not None
        return [float(value) for value in self._model.theta]

    def over(self, space: Space, encoder: Encoder | None = None) -> Callable[[Floats], Floats]:
        """Return a function to expected mAP, from n configurations of a space, ``n x p`` as in `optuna_space.layout`.

        Args:
            encoder: that of ``space`` for this prior's space, where priors share one.
        """
        encode = encoder or Encoder(space, self.space)
        return lambda rows: self._model.mean(encode(rows))


class Encoder:
    """Function from n configurations of a space, ``n x p`` as in `optuna_space.layout`, to a prior's model inputs.

    Anything that the spaces do not share (a method, an option, a non-numeric value) carries no information. A number
    outside the range of the prior's space counts as the end of that range. The last result is kept, because priors of
    one space are asked for the same configurations one after the other.
    """

    def __init__(self, space: Space, of_prior: Space) -> None:
        there, self._here = layout(space), layout(of_prior)
        self._methods, self._known = space.methods, of_prior.methods
        # by method: (column there, column here, function from codes there to codes here)
        self._places: dict[str, list[tuple[int, int, Callable[[Floats], Floats]]]] = {}
        for method in set(space.methods) & set(of_prior.methods):
            known = {d.key: d for d in of_prior.by_method[method]}
            self._places[method] = [
                (there.names.index(d.name), self._here.names.index(known[d.key].name), _translation(d, known[d.key]))
                for d in space.by_method[method]
                if d.key in known
            ]
        self._last: tuple[bytes, Floats] | None = None

    def __call__(self, rows: Floats) -> Floats:
        key = rows.tobytes()
        if self._last is None or self._last[0] != key:
            self._last = key, self._here.encode(self._translated(rows))
        return self._last[1]

    def _translated(self, rows: Floats) -> Floats:
        found = np.full((len(rows), len(self._here.names)), np.nan)
        for i, method in enumerate(self._methods):
            of = np.flatnonzero(rows[:, 0] == i) if len(self._methods) > 1 else np.arange(len(rows))
            if len(of) == 0 or method not in self._places:
                continue
            if len(self._known) > 1:
                found[of, 0] = self._known.index(method)
            for j, k, translate in self._places[method]:
                found[of, k] = translate(rows[of, j])
        return found


def expectations(priors: Sequence[Prior], space: Space) -> list[Callable[[Floats], Floats]]:
    """Return `Prior.over` of each, all with the same spread, the mean of theirs.

    Priors of one space share their encoder.
    """
    encoders = {id(prior.space): Encoder(space, prior.space) for prior in priors}
    spread = float(np.mean([prior.spread for prior in priors])) if priors else 0.0

    def scaled(prior: Prior) -> Callable[[Floats], Floats]:
        expected, factor = prior.over(space, encoders[id(prior.space)]), spread / prior.spread
        return lambda rows: factor * expected(rows)

    return [scaled(prior) for prior in priors]


def _translation(of: Dimension, to: Dimension) -> Callable[[Floats], Floats]:
    """Return a function from one dimension's codes to those of another's nearest values, NaN if nothing matches."""
    if of.choices:
        codes = np.array([_nearest(label(choice), to) for choice in of.choices] + [math.nan])
        return lambda several: codes[np.where(np.isnan(several), -1, several).astype(int)]
    if not to.choices:
        return lambda several: np.clip(several, to.low, to.high)
    return lambda several: np.array([_nearest(value, to) for value in several.tolist()])


def _nearest(value: Any, to: Dimension) -> float:
    labels = [label(choice) for choice in to.choices]
    if value in labels:
        return float(labels.index(value))
    if not _is_number(value) or math.isnan(value) or not all(map(_is_number, labels)):
        return math.nan
    if not labels:
        return min(max(value, to.low), to.high)
    return float(np.argmin([abs(math.log((abs(c) + 1e-9) / (abs(value) + 1e-9))) for c in labels]))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
