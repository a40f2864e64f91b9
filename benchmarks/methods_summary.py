"""Put the tables of several data sets side by side: `methods.py` ran once for each, with the same rows.

    python benchmarks/methods_summary.py benchmarks/results/methods-small-*.json

Prints Markdown: mAP by method and set, mAP50, costs, and what differs from `full` by more than the noise.

Noise. The seeds of a set give each row a sample variance; their mean over the rows is the set's variance s^2, with
rows x (seeds - 1) degrees of freedom. Two rows differ beyond the noise where the difference of their means exceeds
2 s sqrt(2 / seeds), about two standard errors. With one seed there is no noise to compare with, and nothing is said.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cst_search.units import format_bytes, format_count


@dataclass(frozen=True)
class SetResult:
    """Results on one data set: by row its maps (one a seed that completed) and the row of the JSON."""

    name: str
    maps: Mapping[str, tuple[float, ...]]
    rows: Mapping[str, Mapping[str, Any]]

    def noise(self) -> float | None:
        """Return twice the standard error of a difference of two means; None without a second seed."""
        counted = [values for values in self.maps.values() if len(values) > 1]
        if not counted:
            return None
        variance = mean(sum((x - mean(values)) ** 2 for x in values) / (len(values) - 1) for values in counted)
        return 2 * math.sqrt(variance * 2 / min(map(len, counted)))


def read(path: Path) -> SetResult:
    """Read a JSON file of `methods.py`."""
    content = json.loads(path.read_text(encoding="utf-8"))
    rows = {row["row"]: row for row in content["rows"]}
    maps = {
        name: tuple(r["map"] for r in content["results"] if r["row"] == name and r.get("map") is not None)
        for name in rows
    }
    return SetResult(content["dataset"]["name"].split()[0], {k: v for k, v in maps.items() if v}, rows)


def by_mean(results: Sequence[SetResult]) -> list[str]:
    """Return the rows that every set has, the highest mean mAP over the sets first."""
    common = [row for row in results[0].maps if all(row in result.maps for result in results)]
    return sorted(common, key=lambda row: -mean(mean(result.maps[row]) for result in results))


def accuracy(results: Sequence[SetResult], rows: Sequence[str]) -> list[list[str]]:
    """Return the table of mAP: mean and, from two seeds on, the spread (sample standard deviation)."""

    def cell(result: SetResult, row: str) -> str:
        values = result.maps[row]
        best = max(mean(other) for other in result.maps.values())
        text = f"**{mean(values):.3f}**" if mean(values) == best else f"{mean(values):.3f}"
        std = result.rows[row]["map_std"]
        return text if std is None else f"{text} ({std:.3f})"

    lines = [["method", "mean of sets", *(result.name for result in results)]]
    for row in rows:
        average = mean(mean(result.maps[row]) for result in results)
        lines.append([f"`{row}`", f"{average:.3f}", *(cell(result, row) for result in results)])
    return lines


def costs(results: Sequence[SetResult], rows: Sequence[str]) -> list[list[str]]:
    """Return mAP50 (mean over the sets) and the costs of the first set, whose number of classes they depend on."""
    first = results[0]
    lines = [["method", "mAP50, mean of sets", "trained", "saved file", "active memory", "neck recomputed",
              "training speed"]]  # fmt: skip
    for row in rows:
        found = first.rows[row]
        speed = next((s for r in results if (s := r.rows[row]["train_images_per_second"])), None)
        lines.append([
            f"`{row}`", f"{mean(result.rows[row]['map50_mean'] for result in results):.3f}",
            format_count(found["trainable_params"]), format_bytes(found["saved_bytes"]),
            format_bytes(found["active_bytes"]), format_bytes(found["active_bytes_neck_recomputed"]),
            "-" if speed is None else f"{speed['percent_of_full']:.0f} %",
        ])  # fmt: skip
    return lines


def beyond_noise(result: SetResult, against: str) -> str:
    """Return one line: which rows differ from ``against`` by more than the noise, best first."""
    noise = result.noise()
    if noise is None:
        return f"{result.name}: one seed, no noise to compare with"
    means = {row: mean(values) for row, values in result.maps.items()}
    gaps = sorted(((means[row] - means[against], row) for row in means if row != against), reverse=True)
    better = ", ".join(f"`{row}` {gap:+.3f}" for gap, row in gaps if gap > noise)
    worse = ", ".join(f"`{row}` {gap:+.3f}" for gap, row in gaps if gap < -noise)
    return f"{result.name}: noise {noise:.3f}; better than `{against}`: {better or 'none'}; worse: {worse or 'none'}"


def markdown(lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], ["---"] * len(lines[0]), *lines[1:]])


def main(paths: Sequence[str]) -> None:
    if not paths:
        sys.exit("give the JSON files of benchmarks/methods.py, one for each data set")
    results = [read(Path(path)) for path in paths]
    rows = by_mean(results)
    print(markdown(accuracy(results, rows)), markdown(costs(results, rows)), sep="\n\n", end="\n\n")
    for result in results:
        print("* " + beyond_noise(result, "full"))
    for row in rows:
        outcomes = [result.rows[row]["outcomes"] for result in results]
        failed = sum(n for found in outcomes for outcome, n in found.items() if outcome != "complete")
        if failed:
            print(f"* {row}: {failed} trials did not complete")


if __name__ == "__main__":
    main(sys.argv[1:])
