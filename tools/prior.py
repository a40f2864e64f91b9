"""Make `cst_search/search/prior.json.gz`, the transfer-learning prior of a search, from the search tables.

    python tools/prior.py benchmarks/results/search-table.json.gz benchmarks/results/search-table-bccd.json.gz

Prints for each table how well the others predict it: rank correlation, and the slope of mAP over expected mAP.
"""

import argparse
import gzip
import json
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from cst_search.config.loading import load_space
from cst_search.search.optuna_space import layout
from cst_search.search.transfer_prior import FILE, Prior
from cst_search.study.parameters import params_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tables", nargs="+", type=Path)
    parser.add_argument("--out", type=Path, default=FILE)
    args = parser.parse_args()
    contents = []
    for path in args.tables:
        with gzip.open(path, "rt") as file:
            contents.append(json.load(file))
    space = load_space(contents[0]["space"])
    tables = {
        table.get("data", "demo"): [(row["config"], row["map"][-1]) for row in table["rows"] if row["map"]]
        for table in contents
    }
    for data, rows in tables.items():
        others = {name: table for name, table in tables.items() if name != data}
        if others:
            codes = np.stack([layout(space).row(params_of(space, config), partly=True) for config, _ in rows])
            expected = Prior(space, others).over(space)(codes)
            y = np.array([y for _, y in rows])
            slope = np.polyfit(expected, y, 1)[0]
            print(f"{data}: {len(rows)} rows; told by the others: rank correlation {spearmanr(expected, y)[0]:.2f}, "
                  f"of the better half {_better_half(expected, y):.2f}, slope {slope:.2f}")  # fmt: skip
    prior = Prior(space, tables)
    kept = [
        {
            "data": data,
            "settings": table["settings"],
            "rows": [{"config": _short(config), "map": round(y, 4)} for config, y in rows],
        }
        for table, (data, rows) in zip(contents, tables.items(), strict=True)
    ]
    content = {"space": dict(space.source), "theta": [round(value, 4) for value in prior.theta], "tables": kept}
    with gzip.GzipFile(args.out, "wb", mtime=0) as file:
        file.write(json.dumps(content).encode())
    print(f"wrote {args.out}: {args.out.stat().st_size} bytes")


def _better_half(expected: np.ndarray, y: np.ndarray) -> float:
    better = y >= np.median(y)
    return float(spearmanr(expected[better], y[better])[0])


def _short(config: dict[str, object]) -> dict[str, object]:
    return {key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in config.items()}


if __name__ == "__main__":
    main()
