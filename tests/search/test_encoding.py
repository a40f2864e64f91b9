"""Configurations by the thousand: what is drawn is of the space, near is near, and a row is its configuration."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cst_search.search.encoding import ParameterLayout

SPACE: dict[str, BaseDistribution] = {
    "kind": CategoricalDistribution(["a", "b", "c"]),
    "lr": FloatDistribution(1e-4, 1e-2, log=True),
    "share": FloatDistribution(0.0, 1.0, step=0.25),
    "rank": CategoricalDistribution([8, 2, 4]),
    "a.n": IntDistribution(1, 5),
    "a.big": IntDistribution(1, 1024, log=True),
    "ab.norm": CategoricalDistribution(["gn", "bn"]),
    "c.only": CategoricalDistribution(["one"]),
}
CONDITIONS = {
    "a.n": ("kind", ["a"]),
    "a.big": ("kind", ["a"]),
    "ab.norm": ("kind", ["a", "b"]),
    "c.only": ("kind", ["c"]),
}
OF = {
    "a": {"kind", "lr", "share", "rank", "a.n", "a.big", "ab.norm"},
    "b": {"kind", "lr", "share", "rank", "ab.norm"},
    "c": {"kind", "lr", "share", "rank", "c.only"},
}
LAYOUT = ParameterLayout(SPACE, CONDITIONS)


def check(params: dict[str, Any]) -> None:
    assert set(params) == OF[params["kind"]]
    for name, value in params.items():
        assert SPACE[name]._contains(SPACE[name].to_internal_repr(value)), (name, value)
    assert all(isinstance(params[name], int) for name in ("a.n", "a.big", "rank") if name in params)


def test_draws_stay_in_the_space_and_cover_it() -> None:
    several = [LAYOUT.params(row) for row in LAYOUT.draw(600, np.random.default_rng(0))]
    for params in several:
        check(params)
    for name in ("kind", "share", "rank", "a.n", "ab.norm"):
        counts = {v: [p.get(name) for p in several].count(v) for p in several if (v := p.get(name)) is not None}
        assert len(counts) == {"kind": 3, "share": 5, "rank": 3, "a.n": 5, "ab.norm": 2}[name]
        if name in ("kind", "rank", "ab.norm"):  # the ends of a range with a step have half of the others' share
            assert min(counts.values()) > 0.7 * max(counts.values())
    below = np.mean([params["lr"] < 1e-3 for params in several])
    assert below == pytest.approx(0.5, abs=0.07)  # by the logarithm


def test_rows_and_configurations_convert_both_ways() -> None:
    for row in LAYOUT.draw(50, np.random.default_rng(1)):
        again = LAYOUT.row(LAYOUT.params(row))
        assert again.tobytes() == row.tobytes()  # as keys they are compared so


def test_parameters_of_another_space_are_refused() -> None:
    params = {"kind": "b", "lr": 1e-3, "share": 0.5, "rank": 2, "ab.norm": "gn"}
    LAYOUT.row(params)
    for wrong in (params | {"rank": 3}, {"kind": "a", **{k: v for k, v in params.items() if k != "kind"}}, {}):
        with pytest.raises(KeyError):
            LAYOUT.row(wrong)
    assert np.isnan(LAYOUT.row({"lr": 1e-3}, partly=True)).sum() == len(SPACE) - 1


def test_a_neighbour_is_another_value_within_the_range() -> None:
    rng = np.random.default_rng(0)
    n = 1000
    parent = {"kind": "a", "lr": 1e-4, "share": 1.0, "rank": 4, "a.n": 5, "a.big": 1, "ab.norm": "gn"}
    parents = np.tile(LAYOUT.row(parent), (n, 1))
    found = [LAYOUT.params(row) for row in LAYOUT.like(parents, np.ones(n), rng)]
    for params in found:
        check(params)
    assert parent["kind"] not in {params["kind"] for params in found}
    ranks = [params["rank"] for params in found]
    assert set(ranks) == {2, 8}  # 2, 4, 8: both are one step away
    close = np.mean([params["lr"] < 1e-3 for params in found])
    assert close > 0.6  # uniform beyond the range, else near: half of the steps, most of which are short


def test_steps_are_of_several_sizes() -> None:
    """Long ones leave a bad place, short ones find the best of a good one."""
    layout = ParameterLayout({"x": FloatDistribution(0.0, 1.0)})
    steps = np.abs(layout.like(np.full((3000, 1), 0.5), 1.0, np.random.default_rng(0)) - 0.5)
    assert (steps < 0.02).mean() > 0.3 and (steps > 0.15).mean() > 0.08


def test_a_step_to_the_next_value_is_likelier_than_a_step_of_two() -> None:
    rng = np.random.default_rng(0)
    layout = ParameterLayout({"rank": CategoricalDistribution([1, 4, 2])})
    codes = layout.like(np.tile(layout.row({"rank": 4}), (2000, 1)), np.ones(2000), rng)
    found = [layout.params(row)["rank"] for row in codes]
    assert found.count(2) / 2000 == pytest.approx(0.75, abs=0.05) and found.count(1) / 2000 == pytest.approx(
        0.25, abs=0.05
    )


def test_neighbours_change_the_given_share_and_keep_the_mask() -> None:
    rng = np.random.default_rng(0)
    parents = LAYOUT.draw(2000, rng)
    change = np.full(2000, 0.25)
    found = LAYOUT.like(parents, change, rng)
    lr = LAYOUT.names.index("lr")
    assert (found[:, lr] != parents[:, lr]).mean() == pytest.approx(0.25, abs=0.04)
    kept = LAYOUT.like(parents, np.ones(2000), rng, keep=LAYOUT.mask({"kind", "rank", "lr"}))
    for name in ("kind", "rank", "lr"):
        j = LAYOUT.names.index(name)
        assert (kept[:, j] == parents[:, j]).all()
    norm = LAYOUT.names.index("ab.norm")
    both = ~np.isnan(parents[:, norm])
    assert (kept[both, norm] != parents[both, norm]).all() and np.isnan(kept[~both, norm]).all()
    assert np.array_equal(LAYOUT.like(parents, np.zeros(2000), rng), parents, equal_nan=True)


def test_columns() -> None:
    layout = ParameterLayout({name: SPACE[name] for name in ("lr", "rank", "ab.norm", "a.n")})
    rows = np.stack([layout.row({"lr": 1e-3, "rank": 8, "ab.norm": "bn", "a.n": 1}), np.full(4, np.nan)])
    assert layout.encode(rows)[0] == pytest.approx([0.5, 1.0, 0.0, 0.3, 0.0])
    assert layout.encode(rows)[1] == pytest.approx([0.5, 0.5, 0.15, 0.15, 0.5])  # inactive: in the middle
    assert layout.encode(layout.row({"rank": 4}, partly=True)[None])[0, 1] == 0.5  # by rank: 2, 4, 8


def test_numbers_of_one_name_share_a_column_if_no_configuration_has_both() -> None:
    names = CategoricalDistribution(["x", "y"])
    layout = ParameterLayout(
        {
            "kind": CategoricalDistribution(["a", "b", "c"]),
            "a.lr": FloatDistribution(1e-4, 1e-2, log=True),
            "b.lr": FloatDistribution(1e-3, 1e-1, log=True),
            "ab.lr": FloatDistribution(0.0, 1.0),  # beside a.lr and b.lr in a configuration
            "a.form": names,
            "b.form": names,  # choices without an order mean something else in each
        },
        {"a.lr": ("kind", ["a"]), "b.lr": ("kind", ["b"]), "ab.lr": ("kind", ["a", "b"]), "a.form": ("kind", ["a"]),
         "b.form": ("kind", ["b"])},
    )  # fmt: skip
    one = {"kind": "a", "a.lr": 1e-3, "ab.lr": 0.25, "a.form": "x"}
    other = {"kind": "b", "b.lr": 1e-1, "ab.lr": 0.75, "b.form": "y"}
    rows = np.stack([layout.row(one), layout.row(other), layout.row({"kind": "c"})])
    half = [0.15, 0.15]
    assert layout.encode(rows).tolist() == [
        [0.3, 0, 0, 0.5, 0.25, 0.3, 0, *half],
        [0, 0.3, 0, 1.0, 0.75, *half, 0, 0.3],
        [0, 0, 0.3, 0.5, 0.50, *half, *half],
    ]
    assert layout.n_encoded == 9


def test_two_choices_are_no_further_apart_than_two_numbers() -> None:
    """On average over random configurations: else the model sees little but which choices differ."""
    layout = ParameterLayout({"x": FloatDistribution(0.0, 1.0), "y": CategoricalDistribution(["a", "b", "c", "d"])})
    one, other = (layout.encode(layout.draw(2000, np.random.default_rng(seed))) for seed in (0, 1))
    number, choice = (((one - other)[:, columns] ** 2).sum(axis=1).mean() for columns in (slice(1), slice(1, None)))
    assert 0.5 < choice / number < 1.5


def test_a_dimension_of_one_value_never_changes() -> None:
    layout = ParameterLayout({"x": FloatDistribution(1.0, 1.0), "y": CategoricalDistribution([3])})
    rows = layout.draw(5, np.random.default_rng(0))
    rows = layout.like(rows, np.ones(5), np.random.default_rng(0))
    assert rows.tolist() == [[1.0, 0.0]] * 5 and layout.encode(rows).tolist() == [[0.5, 0.0]] * 5
