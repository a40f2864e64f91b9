"""Make `cst_search/search/prior.json.gz`, the shipped sources of a search's prior, from measured tables.

    python tools/prior.py benchmarks/results/search-table.json.gz benchmarks/results/search-table-bccd.json.gz \
      benchmarks/results/methods-small-*.json

A table is one of benchmarks/search_table.py, or of benchmarks/methods.py, whose rows are configurations too. Tables of
one space share their lengthscales. Prints how well the others rank each table: the Spearman correlation of what they
expect with what it has.
"""

import argparse
import gzip
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from cst_search.config.loading import load_space, load_space_for, make_recipe, parse_settings
from cst_search.config.search_space import Space
from cst_search.search.optuna_space import layout
from cst_search.search.transfer_prior import FILE, Prior
from cst_search.study.parameters import params_of
from cst_search.trial.default_config import default_config


@dataclass(frozen=True)
class Measured:
    """Configurations of a space with their mAP on one data set."""

    data: str
    space: Space
    settings: Mapping[str, Any]
    rows: Sequence[tuple[Mapping[str, Any], float]]


def read(path: Path) -> Measured:
    """Read a table of `search_table.py` (``.gz``) or `methods.py`."""
    if path.suffix == ".gz":
        with gzip.open(path, "rt") as file:
            content = json.load(file)
        rows = [(row["config"], row["map"][-1]) for row in content["rows"] if row["map"]]
        return Measured(content.get("data", "demo"), load_space(content["space"]), content["settings"], rows)
    content = json.loads(path.read_text(encoding="utf-8"))
    recipe = make_recipe(content["recipe"], str(path))
    space, _ = load_space_for("petl", recipe)
    rows = []
    for row in content["rows"]:
        found = [r["map"] for r in content["results"] if r["row"] == row["row"] and r.get("map") is not None]
        if found:
            method, *settings = row["row"].split()
            config = default_config(space, recipe, method) | parse_settings(settings)
            rows.append((config | {"lr": content["lr"][row["row"]]}, mean(found)))
    return Measured(content["dataset"]["name"].split()[0], space, {"recipe": recipe.to_dict()}, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    groups: dict[str, list[Measured]] = {}
    for path in args.tables:
        table = read(path)
        groups.setdefault(json.dumps(table.space.source), []).append(table)
    contents = [_group(tables) for tables in groups.values()]
    with gzip.GzipFile(args.out, "wb", mtime=0) as file:
        file.write(json.dumps({"groups": contents}).encode())
    print(f"wrote {args.out}: {args.out.stat().st_size} bytes")
    for tables in groups.values():
        for table in tables:
            _judge(table, args.out)


def _group(tables: Sequence[Measured]) -> dict[str, Any]:
    space = tables[0].space
    # a data set may have several tables in one group, so rows are named by their place
    prior = Prior(space, {str(i): table.rows for i, table in enumerate(tables)})
    return {
        "space": dict(space.source),
        "theta": [round(value, 4) for value in prior.theta],
        "tables": [
            {
                "data": table.data,
                "settings": table.settings,
                "rows": [{"config": _kept(space, config), "map": round(y, 4)} for config, y in table.rows],
            }
            for table in tables
        ],
    }


def _judge(table: Measured, path: Path) -> None:
    codes = np.stack([layout(table.space).row(params_of(table.space, config), partly=True) for config, _ in table.rows])
    y = np.array([y for _, y in table.rows])
    others = Prior.load_each(path, without=[table.data])
    each = {name: prior.over(table.space)(codes) / prior.spread for name, prior in others.items()}
    words = ", ".join(f"{name} {spearmanr(expected, y)[0]:.2f}" for name, expected in each.items())
    print(f"{table.data}: {len(y)} rows; rank correlation {spearmanr(sum(each.values()), y)[0]:.2f} ({words})")


def _kept(space: Space, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a space varies of a configuration, numbers in four digits."""
    keys = {dimension.key for dimension in space.by_method[config["method"]]} | {"method"}
    kept = {key: value for key, value in config.items() if key in keys}
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in kept.items()}


if __name__ == "__main__":
    main()
