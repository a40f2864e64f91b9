"""Plot the front as text for a terminal: a cost on the x axis, mAP on the y axis."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rich.text import Text

from cst_search.report.labels import METRICS, is_log, telling_cost
from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.states import TrialState
from cst_search.units import format_bytes, format_count

_MARKS = {"trial": ("\u00b7", "."), "front": ("\u25cf", "o"), "knee": ("\u25c6", "K")}  # (Unicode, ASCII)
_STYLES = {"trial": "dim", "front": "green", "knee": "bold magenta"}
_OF_STUDIES = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_WIDEST = 100
_LEFT = 7  # characters at the left of a line: the value of mAP, and the axis


def front_plot(infos: Sequence[StudyInfo], width: int, *, height: int = 12, ascii_only: bool = False) -> Text:
    """Plot the complete trials of a study, its front and its knee; for several studies their fronts, one letter each.

    The knee covers the front, and the front covers other trials. mAP is the mean over seeds for a confirmed point. The
    x axis shows working memory, or the first study's other cost where memory hardly varies (`telling_cost`).

    Args:
        width: terminal width in characters; at most 100 are used.
        height: height of the plot in lines, without the axis.

    Returns:
        Lines without a final newline; empty text if there is no front or no room.
    """
    columns = min(width, _WIDEST) - _LEFT - 1
    marks: list[tuple[TrialRecord, float, str, str]] = []  # trial, mAP, character, style
    for letter, info in zip(_OF_STUDIES, infos, strict=False):
        front, knee = info.front(), info.knee()
        kinds = [("front", front)]
        if len(infos) == 1:
            complete = [r for r in info.trials if r.state == TrialState.COMPLETE]
            kinds = [("trial", complete), *kinds, ("knee", [r for r in front if r.trial == knee])]
        for kind, records in kinds:
            for record in records:
                score = info.over_seeds(record).mean
                if score is None or record.device_bytes is None or not record.feasible:
                    continue
                sign = _MARKS[kind][ascii_only] if len(infos) == 1 else letter
                marks.append((record, score, sign, _STYLES[kind]))
    if not marks or columns < 20:
        return Text()
    cost = _cost(infos)
    costs = [getattr(record, cost) or 0 for record, *_ in marks]
    log = is_log(cost, costs)
    scores = [score for _, score, *_ in marks]
    grid: list[list[tuple[str, str]]] = [[(" ", "")] * columns for _ in range(height)]
    for x, y, (_, _, sign, style) in zip(_places(costs, columns, log), _places(scores, height), marks, strict=True):
        grid[height - 1 - y][x] = (sign, style)
    side, corner, floor = ("|", "+", "-") if ascii_only else ("\u2502", "\u2514", "\u2500")
    text = Text()
    for row, line in enumerate(grid):
        label = f"{max(scores):.3f}" if row == 0 else f"{min(scores):.3f}" if row == height - 1 else ""
        text.append(f"{label:>{_LEFT - 2}} {side}")
        for sign, style in line:
            text.append(sign, style)
        text.append("\n")
    text.append(f"{'map':>{_LEFT - 2}} {corner}{floor * columns}\n")
    words = format_bytes if METRICS[cost][2] == "bytes" else format_count
    low, high = words(min(costs)), words(max(costs))
    room = max(1, columns - len(low) - len(high))
    titles = (METRICS[cost][0] + (", logarithmic" if log else ""), METRICS[cost][1])
    title = next((words for words in titles if len(words) < room), "")
    text.append(f"{'':{_LEFT}}{low}{title:^{room}}{high}\n")
    if len(infos) == 1:
        legend = [f"{_MARKS[kind][ascii_only]} {word}" for kind, word in (
            ("front", "front"), ("knee", "knee"), ("trial", "other complete trials"))]  # fmt: skip
    else:
        legend = [f"{letter} {info.name}" for letter, info in zip(_OF_STUDIES, infos, strict=False)]
    text.append(f"{'':{_LEFT}}{'   '.join(legend)}")
    return text


def _cost(infos: Sequence[StudyInfo]) -> str:
    """Return the metric of the x axis: a cost of the first study, by the points on all fronts."""
    minimised = [o.compared for o in infos[0].objectives if o.goal == "min"]
    names = sorted(minimised, key=lambda name: name != "working_bytes") or ["working_bytes"]
    points = [record for info in infos for record in info.front()]
    return telling_cost({name: [getattr(r, name) for r in points if getattr(r, name) is not None] for name in names})


def _places(values: Sequence[float], n: int, log: bool = False) -> list[int]:
    """Return the cell 0..n-1 of each value between minimum and maximum; the middle one if all values are equal."""
    at = [math.log(value) for value in values] if log else values
    low, high = min(at), max(at)
    return [round((value - low) / (high - low) * (n - 1)) if high > low else n // 2 for value in at]
