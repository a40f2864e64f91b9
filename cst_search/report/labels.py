"""Labels that the image and the page share: metrics, kinds of trials, axes, notes and facts of a report.

All functions take a report (`summary.page_report`), or the entry of one trial in it.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from cst_search.study.objectives import BOUNDS, OBJECTIVES
from cst_search.study.states import TrialState
from cst_search.study.wording import budget_words, cost_words
from cst_search.units import format_bytes

# metric -> its label, its short label, and the format of its values
METRICS: dict[str, tuple[str, str, str]] = {
    **{
        name: (OBJECTIVES[name].label, OBJECTIVES[name].short, OBJECTIVES[name].kind)
        for name in ("map", "map50", "device_bytes")
    },
    "working_bytes": ("working memory", "memory", "bytes"),
    **{
        o.name: (o.label, o.short, o.kind)
        for o in OBJECTIVES.values()
        if o.name not in ("map", "map50", "device_bytes")
    },
    "seconds": ("training time", "time", "seconds"),
}
# by the format of a metric's values: an axis that spans more than this factor is logarithmic
_LOG_ABOVE = {"bytes": 4.0, "count": 10.0, "flops": 10.0}
# metric -> the metric that it repeats: one is the other plus a constant or times a constant, or nearly so
_REPEATS = {"device_bytes": "working_bytes", "delta_bytes": "trainable_params", "map50": "map"}
_TELLING_SPAN = 2.0  # of the largest to the smallest value: below, a front looks like a vertical line
# kind of trial -> its label and its matplotlib marker; shapes differ, so that colour is not needed
GROUPS: dict[str, tuple[str, str]] = {
    "unfinished": ("not finished", "D"),
    TrialState.FAILED: ("failed", "x"),
    TrialState.PRUNED: ("pruned", "v"),
    TrialState.INFEASIBLE: ("infeasible", "^"),
    "dominated": ("dominated", "s"),
    "front": ("on the front", "o"),
}


def axes_of(report: Mapping[str, Any]) -> tuple[str, str]:
    """Return the metrics on x (a cost that varies along the front, see `telling_cost`) and on y (a quality)."""
    goals = {OBJECTIVES[o["name"]].compared: o["goal"] for o in report["objectives"]}
    costs = [name for name in ("working_bytes", *goals) if goals.get(name) == "min"] or ["working_bytes"]
    qualities = [name for name, goal in goals.items() if goal == "max"]
    rows = report["front"] or report["all"]
    known = {name: [row[name] for row in rows if row.get(name) is not None] for name in dict.fromkeys(costs)}
    return telling_cost(known), (qualities or ["map"])[0]


def family(name: str) -> str:
    """Return a name that a metric shares with those that rise and fall with it, such as its own."""
    return _REPEATS.get(name, name)


def size_of(report: Mapping[str, Any]) -> str | None:
    """Return the metric for the size of marks: an objective that no axis shows, else trainable parameters. None: none.

    A mark that grows along an axis would show the same figure twice.
    """
    shown = {family(name) for name in axes_of(report)}
    compared = [OBJECTIVES[o["name"]].compared for o in report["objectives"]]
    return next((name for name in (*compared, "trainable_params") if family(name) not in shown), None)


def telling_cost(values: Mapping[str, Sequence[float]]) -> str:
    """Return the cost to draw on x: the first whose values span a factor of two, else the one that spans most.

    Args:
        values: metric -> its values, in the order of preference. With no values at all, the first metric is taken.
    """
    spans = {name: max(known) / max(min(known), 1) if known else 0.0 for name, known in values.items()}
    return next(
        (name for name, span in spans.items() if span >= _TELLING_SPAN), max(spans, key=lambda name: spans[name])
    )


def is_log(name: str, values: Sequence[float]) -> bool:
    """Return whether the axis of a metric is logarithmic: its values span more than a factor of `_LOG_ABOVE`."""
    return bool(values) and min(values) > 0 and max(values) > _LOG_ABOVE.get(METRICS[name][2], math.inf) * min(values)


def has_log_axis(trials: Sequence[Mapping[str, Any]], name: str) -> bool:
    """Return whether the axis of a metric is logarithmic, by the trained trials; by all if none was trained."""
    known = [trial for trial in trials if trial[name] is not None]
    trained = [trial for trial in known if trial["map"] is not None]
    # the axis must have a place for all: a method without parameters of its own has none on a logarithmic one
    return is_log(name, [trial[name] for trial in trained or known]) and all(trial[name] > 0 for trial in known)


def budget_lines(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the lines of the budget by metric: ``value`` and ``label``.

    On the axis of working memory it is the budget without the CUDA context, and the label has both.
    """
    lines = {}
    for bound in BOUNDS:
        if value := report["budget"].get(bound.field):
            label = f"budget {cost_words(OBJECTIVES[bound.objective], value)}"
            lines[bound.objective] = {"value": value, "label": label}
    context = report["context_bytes"]
    if "device_bytes" in lines and (memory := lines["device_bytes"]["value"]) > context:
        label = lines["device_bytes"]["label"] + (f" ({format_bytes(context)} of it fixed)" if context else "")
        lines["working_bytes"] = {"value": memory - context, "label": label}
    return lines


def over_seeds(trial: Mapping[str, Any], name: str) -> tuple[float | None, float | None]:
    """Return a metric's mean and standard deviation over seeds; for an unconfirmed trial its value and None."""
    if (trial.get("n_seeds") or 0) > 1:
        return trial[f"{name}_mean"], trial[f"{name}_std"]
    return trial[name], None


def group_of(trial: Mapping[str, Any]) -> str:
    """Return the kind of a trial, a key of `GROUPS`."""
    if trial["on_front"]:
        return "front"
    if trial["state"] in (TrialState.COMPLETE, TrialState.INFEASIBLE):
        return "dominated" if trial["feasible"] else TrialState.INFEASIBLE
    return trial["state"] if trial["state"] in GROUPS else "unfinished"


def lasting_notes(report: Mapping[str, Any]) -> list[str]:
    """Return the sentences of the caption that hold for any pair of axes."""
    y_name = axes_of(report)[1]
    sources = {trial["memory_source"] for trial in report["all"] if trial["device_bytes"] is not None}
    notes = []
    if any(over_seeds(trial, y_name)[1] is not None for trial in report["all"]):
        notes.append(
            "Points with a bar were confirmed: drawn at the mean over their seeds, one standard deviation up and down."
        )
    if any(
        trial["state"] not in (TrialState.COMPLETE, TrialState.INFEASIBLE) and trial[y_name] is not None
        for trial in report["all"]
    ):
        notes.append("Trials that were pruned, or have not finished, are drawn at the mAP of their last epoch.")
    if "predicted" in sources:
        which = (
            "Memory is"
            if sources == {"predicted"}
            else "Memory is measured for the trials that ran on it and otherwise"
        )
        notes.append(f"{which} predicted for {report['target_device']}.")
    contexts = [t["device_bytes"] - t["working_bytes"] for t in report["all"] if t["device_bytes"] is not None]
    if any(contexts):
        spans = sorted({format_bytes(context) for context in (min(contexts), max(contexts))})
        notes.append(f"Working memory excludes the CUDA context of {' to '.join(spans)}.")
    return notes


def plain(value: Any) -> Any:
    """Convert a value to strict JSON: NaN and infinities become None, numpy numbers become Python numbers."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return value
    if isinstance(value, numbers.Integral):
        return int(value)
    return float(value) if math.isfinite(value) else None


_NAMED = {"full": "full fine-tuning", "head": "the head alone"}
_SETTINGS = {"image_size_px": "at {} px instead of {} px", "batch_size": "with batches of {} instead of {}"}


def headline(report: Mapping[str, Any]) -> str:
    """Return what was found in one sentence: the mAP and memory of a point, beside full fine-tuning and the head alone.

    Args:
        report: with a front. With ``references`` (see `commands.references`) the point is the one that they are beside;
            without them it is the best, and the sentence ends with it.
    """
    references = report.get("references", ())
    beside = references[0]["beside"] if references else report["front"][0]["trial"]
    point = next(row for row in report["front"] if row["trial"] == beside)
    beyond = " beyond the fixed cost" if report["context_bytes"] else ""
    words = [f"{over_seeds(point, 'map')[0]:.3f} mAP in {format_bytes(point['working_bytes'])}{beyond}"]
    budget = report["budget"]["memory_bytes"]
    for one in references:
        differing = " and ".join(_SETTINGS[name].format(*pair) for name, pair in one["differs"].items())
        text = _NAMED[one["method"]] + (f", {differing}," if differing else "")
        text += f" needs {format_bytes(one['working_bytes'])}"
        if budget is not None and one["device_bytes"] > budget:
            text += ", above the budget"
        if one["map"] is not None:
            text += f" and reaches {one['map']:.3f}"
        words.append(text)
    return "; ".join(words)


def reference_marks(report: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the references to mark in a plot: ``label``, ``trial`` (None: not trained), ``values`` by metric."""
    return [
        {"label": _NAMED[one["method"]].removeprefix("the "), "trial": one["trial"],
         "values": {name: one[name] for name in METRICS if one.get(name) is not None}}
        for one in report.get("references", ())
    ]  # fmt: skip


def _started(iso: str) -> str:
    try:
        return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M %Z}".strip()
    except ValueError:
        return iso


def facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the facts of the header, as (label, text)."""
    counts, words = report["trials"], {"max": "highest", "min": "lowest"}
    states = [f"{counts[state]} {state}" for state in counts if state != "total" and counts[state]]
    return [
        ("data", str(report["data"])),
        ("budget", budget_words(**report["budget"])),
        ("device", str(report["target_device"])),
        ("trials", f"{counts['total']}" + (f": {', '.join(states)}" if states else "")),
        ("objectives", ", ".join(f"{words[o['goal']]} {o['name']}" for o in report["objectives"])),
        ("started", _started(report["started"])),
    ]
