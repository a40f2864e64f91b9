"""Draw the front as an image, ``front.png``. The only module that imports matplotlib.

`picture` turns a report (`summary.page_report`) into points in the axes' units, ranges, lines and sentences; `paint`
draws them. The page draws plots of any two metrics or dimensions: see `cst_search.report.page_data`.
"""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cst_search.report.labels import (
    GROUPS,
    METRICS,
    axes_of,
    budget_lines,
    facts,
    group_of,
    has_log_axis,
    lasting_notes,
    over_seeds,
    plain,
    reference_marks,
    size_of,
)
from cst_search.study.objectives import OBJECTIVES, Objective
from cst_search.study.pareto import front
from cst_search.study.states import TrialState
from cst_search.units import format_bytes, format_count, format_flops

# units of the image's axes by the format of a metric, largest first: name and size
_UNITS: dict[str, tuple[tuple[str, float], ...]] = {
    "share": (("", 1.0),), "bytes": (("GB", 1e9), ("MB", 1e6)), "count": (("M", 1e6),),
    "flops": (("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6)),
}  # fmt: skip
SMALLEST, LARGEST, STRIP = 8.0, 24.0, 9.0  # marker diameters, pt
INK, MUTED, GREY, GRID, ACCENT, LIMIT = "#1b2330", "#5d6878", "#7a8696", "#e4e8ee", "#0b6bcb", "#b3261e"  # as page.css
OVER = "#f5f7fa"  # what is over the budget


def picture(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the content of the image in the units of the axes (GB or MB, millions, mAP 0..1); all text is plain.

    ``groups``: one per kind of trial with its ``points``. A point of unknown quality has ``y`` None and goes into the
    strip below the plot; a confirmed point has a standard deviation over its seeds as ``spread``.
    ``line``: corners of the front from left to right. ``x_range``, ``y_range``: initial ranges of the axes, or None.
    ``x_log``: True for a logarithmic x axis.
    ``budget``: position of the budget's line; None if there is none, or if it is too far out.
    ``references``: marks of what a search is compared with: ``label``, ``x``, ``trained``.
    ``notes``: sentences of the caption.
    """
    report = plain(report)
    x_name, y_name = axes_of(report)
    trials = [trial for trial in report["all"] if trial[x_name] is not None]
    log = has_log_axis(trials, x_name)
    (x_label, x_unit), (y_label, y_unit) = (_axis(name, trials) for name in (x_name, y_name))
    size = size_of(report)
    diameter, sizes = _sizes(size, [trial for trial in trials if trial[y_name] is not None])
    points: dict[str, list[dict[str, Any]]] = {group: [] for group in GROUPS}
    for trial in trials:
        y, spread = over_seeds(trial, y_name)
        known = y is not None
        points[group_of(trial)].append({
            "trial": trial["trial"],
            "x": trial[x_name] / x_unit,
            "y": y / y_unit if y is not None else None,
            "spread": spread / y_unit if spread is not None else None,
            "size": diameter(trial) if known else STRIP,
        })  # fmt: skip
    everything = [point for group in points.values() for point in group]
    envelope = front([(p["y"], p["x"]) for p in points["front"]], [Objective(y_name, "max"), Objective(x_name, "min")])
    limit = budget_lines(report).get(x_name)
    budget, text = (limit["value"] / x_unit, limit["label"]) if limit else (None, "")
    marks = [{"label": mark["label"], "x": mark["values"][x_name] / x_unit, "trained": mark["trial"] is not None}
             for mark in reference_marks(report) if mark["values"].get(x_name)]  # fmt: skip
    untrained = [mark["x"] for mark in marks if not mark["trained"]]
    x_range, budget_fits = _x_range(everything, budget, untrained, log)
    knee = next((p for p in points["front"] if p["trial"] == report["knee"]), None)
    # the label goes to the upper left, which is always free, except at the left edge
    at_left = knee is not None and x_range is not None and _place(knee["x"], x_range, log) < 0.2
    return {
        "x_label": x_label + (" (logarithmic)" if log else ""),
        "x_log": log,
        "y_label": y_label,
        "x_range": x_range,
        "y_range": _padded(
            [p["y"] + sign * (p["spread"] or 0.0) for p in everything if p["y"] is not None for sign in (-1, 1)],
            above=0.14,
        ),
        "groups": [{"key": key, "name": GROUPS[key][0], "points": group} for key, group in points.items() if group],
        "line": sorted([points["front"][i]["x"], points["front"][i]["y"]] for i in envelope),
        "knee": {**knee, "label": f"knee: trial {knee['trial']}", "side": 1 if at_left else -1} if knee else None,
        "references": [mark for mark in marks if x_range and x_range[0] <= mark["x"] <= x_range[1]],
        "budget": _budget_line(budget, text, x_range, log) if budget and budget_fits and x_range else None,
        "sizes": sizes,
        "notes": _notes(report, everything, x_range, None if budget_fits else budget, text, x_label),
    }


def _axis(name: str, trials: Sequence[Mapping[str, Any]]) -> tuple[str, float]:
    """Return a metric's label with the unit that suits the largest of its values, and the size of that unit."""
    units = _UNITS[METRICS[name][2]]
    most = max((trial[name] for trial in trials if trial[name] is not None), default=math.inf)
    unit, size = next((one for one in units if most >= one[1]), units[-1])
    return METRICS[name][0] + (f", {unit}" if unit else ""), size


def _place(value: float, ends: Sequence[float], log: bool) -> float:
    """Return the place of a value between the ends of an axis, 0..1."""
    at, low, high = (math.log(v) if log else v for v in (value, *ends))
    return (at - low) / (high - low)


def _sizes(name: str | None, trials: Sequence[Mapping[str, Any]]) -> tuple[Any, dict[str, Any] | None]:
    """Return a function from a trial to the diameter of its marker in pt, and the legend: ``title`` and ``steps``.

    The scale is logarithmic: a search spans 20 thousand (norm) to 40 million (full) parameters, and markers with areas
    in that ratio would be invisible or fill the plot. Without a metric or its values all markers are equal, and there
    is no legend.
    """
    known = [value for trial in trials if name and (value := trial[name])]
    low, high = (min(known), max(known)) if known else (1, 1)
    # half as large for 1600 trials, which would hide one another
    shrink = min(1.0, (100 / max(1, len(trials))) ** 0.25)

    def of_value(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if high > low else 0.5
        return round(shrink * (SMALLEST + (LARGEST - SMALLEST) * share), 1)

    def diameter(trial: Mapping[str, Any]) -> float:
        return of_value((trial[name] if name else None) or low)

    if name is None or high == low:
        return diameter, None
    words = {"bytes": format_bytes, "count": format_count, "flops": format_flops}[METRICS[name][2]]
    steps = [low, math.sqrt(low * high), high]
    return diameter, {
        "title": f"{METRICS[name][0]}:",
        "steps": [{"size": of_value(value), "label": words(round(value))} for value in steps],
    }


def _budget_line(x: float, label: str, x_range: Sequence[float], log: bool) -> dict[str, Any]:
    """Return the line of the budget; near the right edge its label ends at the line, which would cut it off."""
    return {"x": x, "label": label, "align": "right" if _place(x, x_range, log) > 0.85 else "center"}


def _padded(values: Sequence[float], above: float = 0.08, least: float = 0.0) -> list[float] | None:
    """Return minimum and maximum, widened by a share of the span and not below ``least``. None for no values."""
    if not values:
        return None
    low, high = min(values), max(values)
    span = (high - low) or abs(high) * 0.2 or 1.0
    return [max(least, low - 0.08 * span), high + above * span]


def _x_range(
    points: Sequence[Mapping[str, Any]], budget: float | None, references: Sequence[float], log: bool
) -> tuple[list[float] | None, bool]:
    """Return the initial range of the x axis, and True if the budget is inside it.

    The trained points set the range. The budget may double it, a reference may triple it, and untrained points may
    widen it by another half, so that one far value does not squeeze all others into a corner. On a logarithmic axis all
    of this is in its powers.
    """
    if log:
        powers = [{**point, "x": math.log10(point["x"])} for point in points]
        far = [math.log10(x) for x in references]
        found, fits = _range(powers, math.log10(budget) if budget else None, far, -math.inf)
        return [10**end for end in found] if found else None, fits
    return _range(points, budget, references, 0.0)


def _range(
    points: Sequence[Mapping[str, Any]], budget: float | None, references: Sequence[float], least: float
) -> tuple[list[float] | None, bool]:
    trained = [point["x"] for point in points if point["y"] is not None]
    if not trained:
        shown = [point["x"] for point in points] + ([budget] if budget is not None and points else [])
        return _padded(shown, least=least), True
    low, high = min(trained), max(trained)
    span = (high - low) or high * 0.5 or 1.0
    fits = budget is not None and low - span <= budget <= high + span
    wanted = [budget] if budget is not None and fits else []
    wanted += [x for x in references if low - 2 * span <= x <= high + 2 * span]
    low, high = min([low, *wanted]), max([high, *wanted])
    reach = 0.5 * max(span, high - low)
    near = [point["x"] for point in points if low - reach <= point["x"] <= high + reach]
    return _padded([low, high, *near], least=least), fits or budget is None


def _notes(
    report: Mapping[str, Any], points: Sequence[Any], x_range: Sequence[float] | None, far: float | None, budget: str,
    x_label: str,
) -> list[str]:  # fmt: skip
    """Return the sentences of the caption: how to read the picture, and what it does not show."""
    x_name, y_name = axes_of(report)
    compared = [OBJECTIVES[o["name"]].compared for o in report["objectives"]]
    others = [name for name in compared if name not in (x_name, y_name)]
    low, high = x_range or (-math.inf, math.inf)
    outside = [point for point in points if not low <= point["x"] <= high]
    lost = len(report["all"]) - len(points)
    notes = []
    if report["front"] and others:
        also = " and ".join(METRICS[name][0] for name in others)
        notes.append(
            f"The front also weighs {also}, which this plane does not show: the line joins only those of its points "
            "that nothing beats in the two drawn metrics; the other filled circles are on the front for the rest."
        )
    elif report["front"]:
        notes.append("The line is the front: whatever lies below and to the right of it is beaten by a point on it.")
    if far is not None and x_range:
        notes.append(f"The {budget} is far to the {'right' if far > high else 'left'} of this view.")
    if outside:
        subject = "1 trial lies" if len(outside) == 1 else f"{len(outside)} trials lie"
        nearest, furthest = min(point["x"] for point in outside), max(point["x"] for point in outside)
        unit = x_label.rpartition(", ")[2]
        notes.append(f"{subject} outside this view ({nearest:.3g} to {furthest:.3g} {unit}).")
    if any(point["y"] is None for point in points):
        notes.append("The strip at the bottom holds trials without an mAP: not trained, failed or not finished.")
    if lost:
        notes.append(f"{lost} {'trial has' if lost == 1 else 'trials have'} no memory figure and cannot be drawn.")
    return notes + lasting_notes(report)


def paint(report: Mapping[str, Any], drawn: Mapping[str, Any], path: Path) -> None:
    """Write the image, 1600 x 1000 px. It avoids pyplot, whose global state is not thread-safe."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patheffects import withStroke
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(16, 10), dpi=100, facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(2, 1, height_ratios=(12, 1), hspace=0.04, left=0.07, right=0.97, top=0.83, bottom=0.235)
    plot = figure.add_subplot(grid[0])
    strip = figure.add_subplot(grid[1], sharex=plot)
    for axes in (plot, strip):
        axes.grid(color=GRID, linewidth=1)
        axes.set_axisbelow(True)
        axes.tick_params(labelsize=13, colors=MUTED, length=0)
        axes.spines[:].set_color(GRID)
    plot.tick_params(labelbottom=False)
    plot.yaxis.set_major_locator(MaxNLocator(8))
    plot.set_ylabel(drawn["y_label"], fontsize=15, color=INK)
    strip.set(yticks=[], ylim=(-1, 1))
    strip.set_ylabel("no mAP", fontsize=13, color=MUTED, rotation=0, ha="right", va="center")
    strip.set_xlabel(drawn["x_label"], fontsize=15, color=INK)
    if drawn["x_log"]:
        _logarithmic(plot, *drawn["x_range"])

    if drawn["line"]:
        plot.step(*zip(*drawn["line"], strict=True), where="post", color=ACCENT, linewidth=2.5)
    for group in drawn["groups"]:
        _scatter(plot, group["key"], [p for p in group["points"] if p["y"] is not None])
        _scatter(strip, group["key"], [{**p, "y": 0.0} for p in group["points"] if p["y"] is None])
    if knee := drawn["knee"]:
        ring: dict[str, Any] = {"facecolors": "none", "edgecolors": INK, "linewidths": 2, "zorder": 4}
        plot.scatter([knee["x"]], [knee["y"]], s=(knee["size"] + 10) ** 2, **ring)
        plot.annotate(
            knee["label"], (knee["x"], knee["y"]), (55 * knee["side"], 42), textcoords="offset points",
            fontsize=15, color=INK, weight="bold", ha="center",
            arrowprops={"arrowstyle": "-", "color": INK, "shrinkB": knee["size"] / 2 + 5},
            path_effects=[withStroke(linewidth=4, foreground="white")],
        )  # fmt: skip
    _draw_limits(plot, strip, drawn)
    if drawn["x_range"]:
        plot.set_xlim(*drawn["x_range"])
    if drawn["y_range"]:
        plot.set_ylim(*drawn["y_range"])
    else:
        plot.set_yticks([])
        plot.text(
            0.5, 0.5, "No trial has finished yet", transform=plot.transAxes, ha="center", fontsize=22, color=MUTED
        )
    _words(figure, report, drawn)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # names may use scripts that the font lacks
        figure.savefig(path)


def _draw_limits(plot: Any, strip: Any, drawn: Mapping[str, Any]) -> None:
    """Draw the budget with what is over it shaded, and dotted what the search is compared with."""
    if limit := drawn["budget"]:
        for axes in (plot, strip):
            axes.axvline(limit["x"], color=LIMIT, linewidth=2, linestyle=(0, (6, 4)))
            axes.axvspan(limit["x"], drawn["x_range"][1], color=OVER, zorder=0)
        plot.annotate(
            limit["label"], (limit["x"], 1), (0, 6), xycoords=("data", "axes fraction"), textcoords="offset points",
            ha=limit["align"], va="bottom", fontsize=14, color=LIMIT, weight="bold",
        )  # fmt: skip
    for place, mark in enumerate(drawn["references"]):
        for axes in (plot, strip):
            axes.axvline(mark["x"], color=MUTED, linewidth=1.8, linestyle=(0, (1, 2.5)), zorder=1)
        right = _place(mark["x"], drawn["x_range"], drawn["x_log"]) < 0.8
        plot.annotate(
            mark["label"], (mark["x"], 1), (6 if right else -6, -18 - 20 * place), xycoords=("data", "axes fraction"),
            textcoords="offset points", ha="left" if right else "right", fontsize=13, color=MUTED, style="italic",
        )  # fmt: skip


def _logarithmic(plot: Any, low: float, high: float) -> None:
    """Give a plot a logarithmic x axis with labels at round values."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    plot.set_xscale("log")
    plot.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high > 20 * low else (1, 1.5, 2, 3, 4, 5, 7)))
    plot.xaxis.set_minor_locator(NullLocator())
    plot.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))


def _scatter(axes: Any, key: str, points: Sequence[Mapping[str, Any]]) -> None:
    """Draw the markers of one group."""
    look: dict[str, Any] = {"facecolors": "none", "edgecolors": GREY, "linewidths": 1.4, "zorder": 2}
    if key == "front":
        look = {"facecolors": ACCENT, "edgecolors": "white", "linewidths": 1.2, "zorder": 3}
    elif key == TrialState.FAILED:
        look = {"color": GREY, "linewidths": 1.6, "zorder": 2}  # a cross has no face
    elif key == TrialState.INFEASIBLE:
        look["alpha"] = 0.5
    size = [point["size"] ** 2 for point in points]
    axes.scatter([p["x"] for p in points], [p["y"] for p in points], s=size, marker=GROUPS[key][1], **look)
    bars = [point for point in points if point["spread"] is not None]
    if bars:
        x, y, spread = zip(*((p["x"], p["y"], p["spread"]) for p in bars), strict=True)
        colour = ACCENT if key == "front" else GREY
        axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=colour, elinewidth=1.8, capsize=5, zorder=look["zorder"])


def _words(figure: Any, report: Mapping[str, Any], drawn: Mapping[str, Any]) -> None:
    """Write title, facts, legend and caption. parse_math keeps a $ in a name from starting a formula."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], linestyle="none", marker=GROUPS[key][1], markersize=11, label=GROUPS[key][0],
               markerfacecolor=ACCENT if key == "front" else "none", markeredgecolor=ACCENT if key == "front" else GREY)
        for key in reversed([group["key"] for group in drawn["groups"]])
    ]  # fmt: skip
    circles = [
        Line2D([], [], linestyle="none", marker="o", markersize=step["size"], label=step["label"], color=GRID,
               markeredgecolor=GREY)
        for step in (drawn["sizes"] or {"steps": ()})["steps"]
    ]  # fmt: skip
    style: dict[str, Any] = {
        "frameon": False,
        "fontsize": 12,
        "labelcolor": INK,
        "handletextpad": 0.3,
        "columnspacing": 1.4,
    }
    if handles:
        figure.legend(handles=handles, loc="center left", bbox_to_anchor=(0.06, 0.135), ncols=6, **style)
    if circles:
        title = Line2D([], [], linestyle="none", label=drawn["sizes"]["title"])
        figure.legend(handles=[title, *circles], loc="center right", bbox_to_anchor=(0.975, 0.135), ncols=4, **style)
    words = dict(facts(report))
    n, _, states = words["trials"].partition(":")
    words |= {"budget": f"budget {words['budget']}", "trials": f"{n} trials{':' if states else ''}{states}"}
    line = "  |  ".join(words[name] for name in ("data", "budget", "device", "trials"))
    text: dict[str, Any] = {"color": MUTED, "parse_math": False}
    title_line = textwrap.shorten(report["study"], 70, placeholder="...")
    figure.text(0.07, 0.94, title_line, fontsize=24, weight="bold", **{**text, "color": INK})
    figure.text(0.07, 0.9, line if len(line) <= 150 else line[:147] + "...", fontsize=13, **text)
    figure.text(0.97, 0.94, words["started"], fontsize=13, ha="right", **text)
    caption = textwrap.wrap(" ".join(drawn["notes"]), 174)[:4]
    figure.text(0.07, 0.105, "\n".join(caption), fontsize=11.5, va="top", linespacing=1.4, **text)
