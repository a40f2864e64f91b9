"""Vectorised configurations of a search space: random draws, mutations, and the numeric encoding for a model."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cst_search.study.pareto import Floats

_STEPS = 0.15, 0.05, 0.015  # standard deviations of mutations of a number, as shares of its range
# Height of the column of a choice in the encoding. With 1, two choices were sqrt(2) apart and two numbers 0.4 on
# average, so that what two methods share counted for next to nothing (docs/benchmarks.md).
_HEIGHT = 0.3


class ParameterLayout:
    """Layout of a space's parameters as columns; a configuration is a row of p codes.

    A code is the index of a choice, or the number itself; NaN if the configuration does not have the parameter.

    Args:
        space: every parameter that may occur, with its distribution.
        conditions: {parameter: (parent, parent values)}: the parameter exists only if the parent has one of these
            values. The parent comes before it in the space, and is categorical.
    """

    def __init__(
        self,
        space: Mapping[str, BaseDistribution],
        conditions: Mapping[str, tuple[str, Collection[Any]]] | None = None,
    ) -> None:
        self.names = list(space)
        self._columns = [_column(distribution) for distribution in space.values()]
        self._conditions = dict(conditions or {})
        self._codes: dict[int, tuple[int, Floats]] = {}  # the conditions as {column: (parent column, parent codes)}
        for name, (other, values) in self._conditions.items():
            i, j = self.names.index(other), self.names.index(name)
            assert i < j, f"{name} depends on {other}, which must come before it"
            self._codes[j] = i, np.array([self._columns[i].code(value) for value in values])
        self._inputs = self._sharing()

    def mask(self, names: Collection[str]) -> NDArray[np.bool_]:
        """Return a mask over the p columns that is True for these parameters."""
        return np.array([name in names for name in self.names], dtype=bool)

    @property
    def n_encoded(self) -> int:
        """Number d of columns that `encode` returns."""
        return sum(self._columns[together[0]].width for together in self._inputs)

    @property
    def roots(self) -> list[int]:
        """Columns that decide which others exist, and exist themselves in every configuration, such as ``method``."""
        return sorted({i for i, _ in self._codes.values()} - set(self._codes))

    # --- one configuration ---

    def row(self, params: Mapping[str, Any], partly: bool = False) -> Floats:
        """Return the p codes of a configuration.

        Args:
            partly: encode missing parameters as NaN.

        Raises:
            KeyError: a parameter is missing, or its value is not in the space.
        """
        row = np.full(len(self.names), np.nan)
        for j, (name, column) in enumerate(zip(self.names, self._columns, strict=True)):
            if name in params or not (partly or self._is_without(params, name)):
                row[j] = column.code(params[name])
        return row

    def rows_inside(self, configs: Sequence[Mapping[str, Any]]) -> list[Floats]:
        """Return the p codes of each configuration that is in the space."""
        found = []
        for params in configs:
            with suppress(KeyError):
                found.append(self.row(params))
        return found

    def params(self, row: Floats) -> dict[str, Any]:
        """Return the configuration of a row of codes."""
        return {
            name: column.value(code)
            for name, column, code in zip(self.names, self._columns, row.tolist(), strict=True)
            if code == code
        }

    # --- n of them ---

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        """Return n random configurations, ``n x p``."""
        return self.like(np.full((n, len(self.names)), np.nan), 0.0, rng)

    def one_of_each(self, rng: np.random.Generator) -> Floats:
        """Return random configurations, one for each value of each of the `roots`, in random order."""
        wanted = [(j, code) for j in self.roots for code in range(self._columns[j].n_choices)]
        parents = np.full((len(wanted), len(self.names)), np.nan)
        for i, (j, code) in zip(rng.permutation(len(wanted)), wanted, strict=True):
            parents[i, j] = code
        return self.like(parents, 0.0, rng)

    def like(
        self,
        parents: Floats,
        change: Floats | float,
        rng: np.random.Generator,
        keep: NDArray[np.bool_] | None = None,
    ) -> Floats:
        """Return a mutation of each of n configurations, ``n x p``. Parameters that the parent lacks are drawn.

        Args:
            parents: ``n x p``.
            change: probability that a parameter changes; n values, or one for all.
            keep: mask of the p columns that do not change.
        """
        found = np.full(parents.shape, np.nan)
        for j, column in enumerate(self._columns):
            has, old = self._has(found, j), parents[:, j]
            found[has, j] = old[has]
            new = np.flatnonzero(has & np.isnan(old))
            found[new, j] = column.draw(len(new), rng)
            if keep is None or not keep[j]:
                changed = np.flatnonzero(has & ~np.isnan(old) & (rng.random(len(old)) < change))
                found[changed, j] = column.near(old[changed], rng)
        return found

    def encode(self, rows: Floats) -> Floats:
        """Return ``n x d`` model inputs for ``n x p`` codes.

        Numbers are scaled to 0..1, logarithmically if the distribution is. A categorical parameter with numeric choices
        becomes one column, by rank; others have one column per choice, `_HEIGHT` for the one that is chosen, else 0.
        Missing parameters are encoded as the middle.
        Numbers of the same name that no configuration has together (``cst.lr``, ``full.lr``) are one column: what is
        learned of the learning rate of one method is expected of the others, until their own trials say otherwise.
        """
        return np.hstack([self._input(rows, together) for together in self._inputs])

    def _sharing(self) -> list[list[int]]:
        """Return the parameters of each input or block of inputs of a model: columns of a row, in order."""
        found: dict[tuple[str, int], list[int]] = {}
        for j, name in enumerate(self.names):
            parent, option = self._codes[j][0] if j in self._codes else -1, name.rpartition(".")[2]
            others = found.get((option, parent), [])
            alone = parent == -1 or self._columns[j].width > 1
            if alone or any(np.isin(self._codes[j][1], self._codes[other][1]).any() for other in others):
                option, others = name, []
            found[option, parent] = [*others, j]
        return list(found.values())

    def _input(self, rows: Floats, together: list[int]) -> Floats:
        first, *others = together
        encoded = self._columns[first].encode(rows[:, first])
        for j in others:
            has = ~np.isnan(rows[:, j])
            encoded[has] = self._columns[j].encode(rows[has, j])
        return encoded

    def _is_without(self, params: Mapping[str, Any], name: str) -> bool:
        if name not in self._conditions:
            return False
        other, values = self._conditions[name]
        return params.get(other) not in values

    def _has(self, rows: Floats, j: int) -> NDArray[np.bool_]:
        """Return a mask of the n configurations that have parameter j, by the columns before it."""
        if j not in self._codes:
            return np.ones(len(rows), dtype=bool)
        i, codes = self._codes[j]
        return np.isin(rows[:, i], codes)


class _Choices:
    def __init__(self, distribution: CategoricalDistribution) -> None:
        self._choices = distribution.choices
        self._codes = {choice: float(i) for i, choice in enumerate(distribution.choices)}
        n = self.n_choices = len(self._choices)
        self._cells, others = _HEIGHT * np.eye(n), 1.0 - np.eye(n)
        blank = np.full((1, n), _HEIGHT / n)
        step = others
        if all(isinstance(choice, int | float) for choice in self._choices):
            rank = np.argsort(np.argsort(np.array(self._choices)))
            self._cells, blank = rank[:, None] / max(1, n - 1), np.array([[0.5]])
            step = (np.abs(rank[:, None] - rank) == 1).astype(float)
        self._cells = np.vstack([self._cells, blank])
        self.width = self._cells.shape[1]
        # cumulative probabilities of a mutation; half of them move by one step where choices are ordered
        self._next = np.cumsum(0.5 * _shares(others) + 0.5 * _shares(step), axis=1)
        self._next[:, -1] = np.inf  # so that rounding cannot leave it below 1

    def code(self, value: Any) -> float:
        return self._codes[value]

    def value(self, code: float) -> Any:
        return self._choices[int(code)]

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        return rng.integers(len(self._choices), size=n).astype(float)

    def near(self, codes: Floats, rng: np.random.Generator) -> Floats:
        if len(self._choices) == 1:
            return codes
        return (self._next[codes.astype(int)] <= rng.random((len(codes), 1))).sum(axis=1).astype(float)

    def encode(self, codes: Floats) -> Floats:
        return self._cells[np.where(np.isnan(codes), len(self._choices), codes).astype(int)]


def _shares(weights: Floats) -> Floats:
    """Return the rows normalised to sum to 1."""
    return np.asarray(weights / np.maximum(weights.sum(axis=1, keepdims=True), 1e-12))


class _Number:
    width, n_choices = 1, 0

    def __init__(self, distribution: FloatDistribution | IntDistribution) -> None:
        self._low, self._high, self._step = distribution.low, distribution.high, distribution.step
        self._log, self._whole = distribution.log, isinstance(distribution, IntDistribution)

    def code(self, value: Any) -> float:
        return float(value)

    def value(self, code: float) -> int | float:
        return round(code) if self._whole else code

    def draw(self, n: int, rng: np.random.Generator) -> Floats:
        return self._at(rng.random(n))

    def near(self, codes: Floats, rng: np.random.Generator) -> Floats:
        place = self.encode(codes)[:, 0] + rng.normal(size=len(codes)) * rng.choice(_STEPS, size=len(codes))
        return self._at(np.where((place >= 0) & (place <= 1), place, rng.random(len(codes))))

    def encode(self, codes: Floats) -> Floats:
        low, high = float(self._low), float(self._high)
        if high <= low:
            return np.full((len(codes), 1), 0.5)
        place = np.log(codes / low) / np.log(high / low) if self._log else (codes - low) / (high - low)
        return np.where(np.isnan(codes), 0.5, place)[:, None]

    def _at(self, place: Floats) -> Floats:
        """Return the values at positions in 0..1 of the range."""
        low, high = float(self._low), float(self._high)
        value = low * (high / low) ** place if self._log else low + place * (high - low)
        if self._step is not None:
            value = low + np.round((value - low) / self._step) * self._step
        return np.clip(value, low, high)


def _column(distribution: BaseDistribution) -> _Choices | _Number:
    if isinstance(distribution, CategoricalDistribution):
        return _Choices(distribution)
    assert isinstance(distribution, FloatDistribution | IntDistribution)
    return _Number(distribution)
