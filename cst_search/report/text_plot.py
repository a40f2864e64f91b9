"""Plot the front as text for a terminal: a cost on the x axis, mAP on the y axis."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import NamedTuple

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
    marks: list[_Mark] = []
    cost = _cost(infos)
    for letter, info in zip(_OF_STUDIES, infos, strict=False):
        front, knee = info.front(), info.knee()
        kinds = [("front", front)]
        if len(infos) == 1:
            complete = [r for r in info.trials if r.state == TrialState.COMPLETE]
            kinds = [("trial", complete), *kinds, ("knee", [r for r in front if r.trial == knee])]
        for kind, records in kinds:
            for record in records:
                sign = _MARKS[kind][ascii_only] if len(infos) == 1 else letter
                marks += _marks(record, cost, info.over_seeds(record).mean, sign, kind)
    text = _drawn(marks, cost, width, height, ascii_only)
    if text and len(infos) == 1:
        words = [f"{_MARKS[kind][ascii_only]} {word}" for kind, word in (
            ("front", "front"), ("knee", "knee"), ("trial", "other complete trials"))]  # fmt: skip
    else:
        words = [f"{letter} {info.shown_name}" for letter, info in zip(_OF_STUDIES, infos, strict=False)]
    return text.append(f"\n{'':{_LEFT}}{'   '.join(words)}") if text else text


def live_plot(
    records: Sequence[TrialRecord], front: Collection[int], width: int, *, height: int, ascii_only: bool = False
) -> Text:
    """Plot the complete trials of a running search, as `front_plot` does but without the knee, which still moves.

    Args:
        front: numbers of the trials on the front.
    """
    marks: list[_Mark] = []
    complete = [record for record in records if record.state == TrialState.COMPLETE]
    points = [record for record in complete if record.trial in front]
    cost = _telling(("working_bytes", "trainable_params"), points)
    for record in sorted(complete, key=lambda record: record.trial in front):  # the front covers other trials
        kind = "front" if record.trial in front else "trial"
        marks += _marks(record, cost, record.map, _MARKS[kind][ascii_only], kind)
    return _drawn(marks, cost, width, height, ascii_only)


class _Mark(NamedTuple):
    cost: float
    quality: float
    sign: str
    style: str


def _marks(record: TrialRecord, cost: str, quality: float | None, sign: str, kind: str) -> list[_Mark]:
    """Return the mark of a trial; empty for one over the budget, or without mAP or memory."""
    if quality is None or record.device_bytes is None or not record.feasible:
        return []
    return [_Mark(getattr(record, cost) or 0, quality, sign, _STYLES[kind])]


def _drawn(marks: Sequence[_Mark], cost: str, width: int, height: int, ascii_only: bool) -> Text:
    """Draw marks between axes, later ones over earlier ones; empty text if there is none, or no room."""
    columns = min(width, _WIDEST) - _LEFT - 1
    if not marks or columns < 20:
        return Text()
    costs, scores = [mark.cost for mark in marks], [mark.quality for mark in marks]
    log = is_log(cost, costs)
    grid: list[list[tuple[str, str]]] = [[(" ", "")] * columns for _ in range(height)]
    for x, y, mark in zip(_places(costs, columns, log), _places(scores, height), marks, strict=True):
        grid[height - 1 - y][x] = (mark.sign, mark.style)
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
    return text.append(f"{'':{_LEFT}}{low}{title:^{room}}{high}")


def _cost(infos: Sequence[StudyInfo]) -> str:
    """Return the metric of the x axis: a cost of the first study, by the points on all fronts."""
    minimised = [o.compared for o in infos[0].objectives if o.goal == "min"]
    names = sorted(minimised, key=lambda name: name != "working_bytes") or ["working_bytes"]
    return _telling(names, [record for info in infos for record in info.front()])


def _telling(names: Sequence[str], points: Sequence[TrialRecord]) -> str:
    return telling_cost({name: [getattr(r, name) for r in points if getattr(r, name) is not None] for name in names})


def _places(values: Sequence[float], n: int, log: bool = False) -> list[int]:
    """Return the cell 0..n-1 of each value between minimum and maximum; the middle one if all values are equal."""
    at = [math.log(value) for value in values] if log else values
    low, high = min(at), max(at)
    return [round((value - low) / (high - low) * (n - 1)) if high > low else n // 2 for value in at]
