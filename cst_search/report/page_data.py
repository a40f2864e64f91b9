"""Make the data of the report page as compact columns: `page_data` for one study, `comparison_data` for several.

For 10,000 trials, columns and codes take about a fifth of the space of one object per trial. Arithmetic only: the page
draws the data (dashboards/*.js, first front_data.js), `html` writes it.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from cst_search.config.search_space import Space
from cst_search.report.labels import (
    GROUPS,
    METRICS,
    axes_of,
    budget_lines,
    family,
    group_of,
    has_log_axis,
    lasting_notes,
    over_seeds,
    plain,
    reference_marks,
    size_of,
)
from cst_search.study import pareto
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.seed_statistics import NOISY
from cst_search.study.wording import budget_words

_DIGITS = 6  # significant digits of numbers that are not whole
_CURVE_DIGITS = {"map": 4, "loss": 4}
_FEW = 12  # a dimension outside the space with at most this many different numbers is drawn as a choice


def page_data(report: Mapping[str, Any]) -> dict[str, Any]:
    """Return the page's data for a report (`summary.page_report`, as `plain`). Index i is one trial in all columns.

    ``columns``: values per metric in the record's units, None where unknown; for a confirmed trial the mean over its
    seeds. ``seeds``: for confirmed trials, by index, their own values and the standard deviations. ``trials``: trial
    numbers, and codes into ``states``, ``reasons``, ``sources``, ``groups``. ``dimensions``: ``codes`` into ``labels``
    (-1: the trial lacks it) or ``values`` (None: likewise); with ``methods``, only for trials of these methods.
    ``curves``: per metric one list per trial with a value per epoch, and ``epochs`` if they are not 1, 2, ...
    ``important``: keys of dimensions, from the one that matters most for mAP on; empty if too few trials tell.
    ``volumes``: (index, hypervolume) of trials that increased it.
    """
    rows: list[dict[str, Any]] = report["all"]
    groups = list(GROUPS)
    x, y = axes_of(report)
    compared = [OBJECTIVES[o["name"]].compared for o in report["objectives"]]
    columns = {name: [_short(over_seeds(row, name)[0] if name in NOISY else row[name]) for row in rows]
               for name in METRICS}  # fmt: skip
    states, state = _codes([row["state"] for row in rows])
    reasons, reason = _codes([row["reason"] for row in rows])
    sources, source = _codes([row["memory_source"] for row in rows])
    return {
        "study": report["study"],
        "quoted_study": shlex.quote(report["study"]),
        "metrics": [_metric(name, has_log_axis(rows, name)) for name in METRICS],
        "objectives": compared,
        "axes": {"x": x, "y": y, "size": size_of(report)},
        "budgets": budget_lines(report),
        "references": reference_marks(report),
        "knee": report["knee"],
        "suggested": report["suggested"],
        "notes": lasting_notes(report),
        "worker": worker(report),
        "groups": [{"key": key, "name": words} for key, (words, _) in GROUPS.items()],
        "complete": [key in ("front", "dominated") for key in groups],
        "states": states,
        "reasons": reasons,
        "sources": sources,
        "trials": {
            "trial": [row["trial"] for row in rows],
            "group": [groups.index(group_of(row)) for row in rows],
            "state": state,
            "reason": reason,
            "source": source,
        },
        "columns": columns,
        "seeds": {
            i: {"n": row["n_seeds"], **{name: row[name] for name in NOISY},
                **{f"{name}_std": _short(row[f"{name}_std"]) for name in NOISY}}
            for i, row in enumerate(rows)
            if (row.get("n_seeds") or 0) > 1
        },
        "remarks": {i: row["notes"] for i, row in enumerate(rows) if row["notes"]},
        "dimensions": _dimensions(report["space"], [row["config"] for row in rows]),
        "important": [row["key"] for row in report["importance"]["dimensions"]],
        "curves": _curves([row["history"] for row in rows]),
        "volumes": _steps([volume for _, volume in report["hypervolume_by_trial"]]),
    }  # fmt: skip


def worker(report: Mapping[str, Any]) -> str:
    """Return the word for the hours that the search took, ``GPU`` or ``worker``; memory is measured on a GPU only."""
    return "GPU" if any(row["memory_source"] == "measured" for row in report["all"]) else "worker"


def comparison_data(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the fronts of several studies in one plane, with warnings on what makes them hard to compare.

    Returns:
        ``metrics``, ``columns``, ``axes``, ``budgets`` as in `page_data`; index i is a point of a front, and
        ``study[i]`` the index of its study in ``studies``. ``table``: figures per study, with ``volume`` at the common
        ``reference`` and ``on_joint``, the number of its points on the joint front of all studies. Both are None, and
        ``reference`` too, if the objectives or the data differ. ``compared_reference`` is the same with the working
        memory that is compared, in place of device memory. ``warnings``: sentences on the differences.
    """
    studies = [plain(report) for report in reports]
    points = [(k, row) for k, report in enumerate(studies) for row in report["front"]]
    goals = [[(o["name"], o["goal"]) for o in report["objectives"]] for report in studies]
    same = all(sorted(one) == sorted(goals[0]) for one in goals)
    objectives = [OBJECTIVES[name] for name, _ in goals[0]]
    metrics = [name for name in METRICS if name != "seconds"]  # front entries have no time
    x, y = axes_of(studies[0])
    reference: dict[str, float] | None = None
    compared_reference: dict[str, float] | None = None
    volumes: list[float | None] = [None] * len(studies)
    joint: list[int | None] = [None] * len(studies)
    if same and _agree(studies, "data"):
        corners = [[report["compared_reference"][o.compared] for o in objectives] for report in studies]
        corner = pareto.common_reference(corners, objectives)
        compared_reference = {o.compared: value for o, value in zip(objectives, corner, strict=True)}
        fixed = max(report["context_bytes"] for report in studies)
        reference = {o.name: value + (fixed if o.compared == "working_bytes" else 0)
                     for o, value in zip(objectives, corner, strict=True)}  # fmt: skip
        values = [[_value_of(row, o.compared) for o in objectives] for _, row in points]
        of = [[v for (k, _), v in zip(points, values, strict=True) if k == place] for place in range(len(studies))]
        volumes = [pareto.hypervolume(v, objectives, corner) if v else 0.0 for v in of]
        on_joint = [points[i][0] for i in pareto.front(values, objectives)] if values else []
        joint = [on_joint.count(place) for place in range(len(studies))]
    return {
        "studies": [report["study"] for report in studies],
        "metrics": [_metric(name, has_log_axis([row for _, row in points], name)) for name in metrics],
        "objectives": [o.compared for o in objectives],
        "axes": {"x": x, "y": y, "size": None},
        "budgets": budget_lines(studies[0]) if _agree(studies, "budget") else {},
        "study": [k for k, _ in points],
        "trial": [row["trial"] for _, row in points],
        "columns": {name: [_short(_value_of(row, name)) for _, row in points] for name in metrics},
        "seeds": {i: {"n": row["n_seeds"], **{f"{name}_std": _short(row[f"{name}_std"]) for name in NOISY}}
                  for i, (_, row) in enumerate(points) if (row.get("n_seeds") or 0) > 1},
        "config": [[f"{key} = {value_text(value)}" for key, value in row["config"].items()] for _, row in points],
        "reference": reference,
        "compared_reference": compared_reference,
        "table": [
            {"study": report["study"], "data": report["data"], "device": report["target_device"],
             "budget": budget_words(**report["budget"]), "objectives": ", ".join(name for name, _ in goals[k]),
             "trials": report["trials"]["total"], "front": len(report["front"]), "knee": report["knee"],
             "best": max((v for row in report["front"] if (v := _value_of(row, "map")) is not None), default=None),
             "epochs": report["recipe"].get("search_epochs"), "own_volume": report["hypervolume"],
             "volume": volumes[k], "on_joint": joint[k]}
            for k, report in enumerate(studies)
        ],
        "warnings": _differences(studies, same),
    }  # fmt: skip


def value_text(value: Any) -> str:
    """Format a configuration's value briefly: 0.00099999 -> 0.001, [2, 3] -> 2,3, True -> true."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, list | tuple):
        return ",".join(value_text(item) for item in value)
    return str(value)


def _differences(studies: Sequence[Mapping[str, Any]], same_objectives: bool) -> list[str]:
    said = []
    if not same_objectives:
        said.append("The objectives differ: there is no common hypervolume, and each front is best for its own goals.")
    if not _agree(studies, "data"):
        said.append("The data differ: their mAPs cannot be compared, and there is no common hypervolume.")
    if len({str(report["recipe"].get("search_epochs")) for report in studies}) > 1:
        said.append("Their trials were trained for different numbers of epochs: a longer one has an advantage in mAP.")
    if not _agree(studies, "target_device"):
        said.append("Memory is for different devices.")
    if not _agree(studies, "budget"):
        said.append("Their budgets differ, so none is drawn.")
    return said


def _agree(studies: Sequence[Mapping[str, Any]], key: str) -> bool:
    return all(report[key] == studies[0][key] for report in studies)


def _value_of(row: Mapping[str, Any], name: str) -> Any:
    return over_seeds(row, name)[0] if name in NOISY else row[name]


def _metric(name: str, log: bool) -> dict[str, Any]:
    label, short, kind = METRICS[name]
    goal = OBJECTIVES[name].goal if name in OBJECTIVES else "min"
    return {"key": name, "label": label, "short": short, "kind": kind, "goal": goal, "log": log, "family": family(name)}


def _short(value: Any) -> Any:
    return float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value


def _codes(values: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """Return the distinct values in order of appearance, and the index of each value among them; None gets -1."""
    places: dict[Any, int] = {}
    codes = [-1 if value is None else places.setdefault(value, len(places)) for value in values]
    return list(places), codes


def _dimensions(content: Mapping[str, Any], configs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return every key of the configurations: those of the space in its order, then others that were set by hand."""
    space = Space.from_dict(content) if content else None
    methods = space.methods if space else ()
    keys = dict.fromkeys([*(space.keys() if space else []), *(key for config in configs for key in config)])
    found = []
    for key in keys:
        ranges = [d for dimensions in (space.by_method.values() if space else []) for d in dimensions if d.key == key]
        owner, _, name = key.rpartition(".")
        have = [m for m in methods if space and key in {d.key for d in space.by_method[m]}]
        some = have if have and len(have) < len(methods) else None
        head = {"key": key, "title": name, "owner": owner if len(methods) > 1 or not space else "", "methods": some}
        values = [config.get(key) for config in configs if not some or config.get(Space.METHOD) in some]
        if _is_range(ranges, values):
            log = any(d.log for d in ranges)
            ends = {"low": min(d.low for d in ranges), "high": max(d.high for d in ranges)} if ranges else {}
            found.append({**head, "kind": "number", "log": log, "values": [_short(v) for v in values], **ends})
        else:
            choices = [*methods] if key == Space.METHOD else [choice for d in ranges for choice in d.choices]
            texts = [None if value is None else value_text(value) for value in values]
            beyond = sorted({text for text in texts if text is not None})
            labels = list(dict.fromkeys([*(value_text(choice) for choice in choices), *beyond]))
            codes = {text: place for place, text in enumerate(labels)}
            found.append({**head, "kind": "choice", "labels": labels,
                          "codes": [-1 if text is None else codes[text] for text in texts]})  # fmt: skip
    return found


def _is_range(ranges: Sequence[Any], values: Sequence[Any]) -> bool:
    """Return True if a numeric axis can show the dimension. A dimension outside the space is judged by its values."""
    known = {value for value in values if not isinstance(value, list | tuple) and value is not None}
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in known) and not any(
        isinstance(value, list | tuple) for value in values
    )
    if ranges:
        return numeric and not any(d.choices for d in ranges)
    return numeric and len(known) > _FEW


def _curves(histories: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    curves: dict[str, Any] = {name: [] for name in _CURVE_DIGITS}
    epochs: dict[int, list[int]] = {}
    for i, history in enumerate(histories):
        for name, digits in _CURVE_DIGITS.items():
            values = [entry.get(name) for entry in history]
            curves[name].append([None if v is None else float(f"{v:.{digits}g}") for v in values] if history else None)
        numbers = [entry["epoch"] for entry in history]
        if numbers != list(range(1, len(numbers) + 1)):
            epochs[i] = numbers
    return {**curves, "epochs": epochs}


def _steps(volumes: Sequence[float]) -> list[list[float]]:
    steps: list[list[float]] = []
    for i, volume in enumerate(volumes):
        rounded = _short(float(volume))
        if not steps or rounded != steps[-1][1]:
            steps.append([i, rounded])
    return steps
