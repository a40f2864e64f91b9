"""Turn the results of `methods.py` into rows, and rows into its table. Arithmetic only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median, stdev
from typing import Any

from cst_search.units import format_bytes, format_count

MEMORY = ("active_bytes", "reserved_bytes", "device_bytes")
RELATIVE = ("map_mean", "map50_mean", "petl_params", "trainable_params", *MEMORY, "saved_bytes")


def summarise(
    name: str, predicted: Mapping[str, Any], trials: Sequence[dict[str, Any]], speed: Mapping[str, Any]
) -> dict[str, Any]:
    """One row; None where nothing is known.

    Args:
        predicted: the dict of a memory.Estimate.
        trials: one result a seed; mean and sample standard deviation are over those that completed.
        speed: the result of `run_speed`, or empty.
    """
    good = [trial for trial in trials if trial["outcome"] == "complete"]
    maps, map50s = [trial["map"] for trial in good], [trial["map50"] for trial in good]
    measured = next((r for r in (speed, *good) if r.get("active_bytes")), None)
    return {
        "row": name,
        "outcomes": dict(Counter(trial["outcome"] for trial in trials)),
        "speed_outcome": speed.get("outcome"),
        "reasons": sorted({r["reason"] for r in (*trials, speed) if r.get("reason")}),
        "map_mean": mean(maps) if maps else None,
        "map_std": stdev(maps) if len(maps) > 1 else None,
        "map50_mean": mean(map50s) if map50s else None,
        **{name: predicted[name] for name in ("petl_params", "trainable_params")},
        **{name: (measured or predicted)[name] for name in MEMORY},
        "memory_source": "measured" if measured else "predicted",
        "memory_predicted": {name: predicted[name] for name in MEMORY},
        "saved_bytes": good[0].get("saved_bytes") if good else None,
        **{f"{phase}_images_per_second": _speed(speed.get(phase)) for phase in ("train", "eval")},
    }


def _speed(rounds: Sequence[tuple[float, float]] | None) -> dict[str, float] | None:
    """Median images/s of the row, and median, lowest and highest of the rounds' ratios to `full` in percent."""
    if not rounds:
        return None
    percent = [100 * own / full for own, full in rounds]
    return {
        "median": median(own for own, _ in rounds),
        "percent_of_full": median(percent),
        "percent_low": min(percent),
        "percent_high": max(percent),
    }


def relate(rows: Sequence[dict[str, Any]]) -> None:
    """Add ``percent_of_full`` to every row: its figures relative to those of the row `full`, where both are known."""
    full = next((row for row in rows if row["row"] == "full"), {})
    for row in rows:
        same = row["memory_source"] == full.get("memory_source")  # a prediction is no share of a measurement
        known = (n for n in RELATIVE if row[n] is not None and full.get(n) and (same or n not in MEMORY))
        row["percent_of_full"] = {name: 100 * row[name] / full[name] for name in known}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Aligned Markdown; in brackets percent of `full`, for speed with the lowest and the highest round."""

    def cell(row: dict[str, Any], name: str, text: Callable[[Any], str]) -> str:
        percent = row["percent_of_full"].get(name)
        return "-" if row[name] is None else text(row[name]) + ("" if percent is None else f" ({percent:.3g} %)")

    def speed(found: dict[str, float] | None) -> str:
        form = "{median:.3g} ({percent_of_full:.0f} %, {percent_low:.0f}..{percent_high:.0f})"
        return "-" if found is None else form.format(**found)

    lines = [
        ["row", "mAP", "std", "mAP50", "PETL params", "trained", "active", "reserved", "device", "memory", "saved",
         "train images/s", "eval images/s", "trials"]
    ]  # fmt: skip
    for row in rows:
        outcomes = [f"{n} {outcome}" for outcome, n in row["outcomes"].items()]
        outcomes += [] if row["speed_outcome"] in (None, "complete") else [f"speed {row['speed_outcome']}"]
        lines.append([
            row["row"], cell(row, "map_mean", "{:.3f}".format),
            "-" if row["map_std"] is None else f"{row['map_std']:.3f}", cell(row, "map50_mean", "{:.3f}".format),
            *(cell(row, name, format_count) for name in ("petl_params", "trainable_params")),
            *(cell(row, name, format_bytes) for name in MEMORY), row["memory_source"],
            cell(row, "saved_bytes", format_bytes), speed(row["train_images_per_second"]),
            speed(row["eval_images_per_second"]), ", ".join(outcomes) or "-",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join("| " + " | ".join(c.ljust(w) for c, w in zip(x, widths, strict=True)) + " |" for x in lines)
