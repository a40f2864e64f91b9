"""Choose one point of each study under a common storage budget, and write their recipes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cst_search.commands.export import export
from cst_search.config.catalog import check_folder
from cst_search.errors import ConfigError, StudyError
from cst_search.study.allocation import Goal, Plan, Point, allocate, curve, point_of
from cst_search.study.records import StudyInfo
from cst_search.study.states import TrialState
from cst_search.units import format_bytes

GOALS = ("mean", "worst")


def points_of(info: StudyInfo) -> list[Point]:
    """Return the complete, feasible trials of a study. Raises StudyError if there is none."""
    found = [
        point_of(info.brief(record))
        for record in info.trials
        if record.state == TrialState.COMPLETE and record.feasible and record.trainable_params is not None
    ]
    if not found:
        raise StudyError(
            f"study {info.name!r} has no feasible complete trial yet; run `cst-search launch --study {info.name}`"
        )
    return found


def read_weights(pairs: Sequence[str], names: Sequence[str]) -> dict[str, float]:
    """Return the weights given as ``STUDY=NUMBER``. Raises ConfigError."""
    found: dict[str, float] = {}
    for pair in pairs:
        name, equals, text = pair.rpartition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not equals or name not in names or not 0 < value < float("inf"):
            raise ConfigError(f"--weight takes STUDY=NUMBER above 0, of {', '.join(names)}; got {pair!r}")
        found[name] = value
    return found


def allocate_studies(
    infos: Sequence[StudyInfo], budget_bytes: int, goal: Goal, weights: Mapping[str, float]
) -> tuple[Plan, list[Plan]]:
    """Return the best plan within a budget, and the plans that are best at some budget, smallest first.

    Raises:
        ConfigError: no plan fits; the message says how much the smallest takes.
        StudyError: a study has no point.
    """
    tasks = {info.name: points_of(info) for info in infos}
    plan = allocate(tasks, budget_bytes, goal, weights)
    if plan is None:
        least = sum(min(point.delta_bytes for point in points) for points in tasks.values())
        raise ConfigError(
            f"--budget-storage {format_bytes(budget_bytes)} is below the smallest points of these studies together; "
            f"give at least {format_bytes(least)} ({least} bytes)"
        )
    return plan, curve(tasks, goal, weights)


def write_recipes(infos: Sequence[StudyInfo], plan: Plan, folder: Path) -> dict[str, Path]:
    """Write the recipe of each study's point to ``FOLDER/STUDY.yaml``. Raises ConfigError."""
    check_folder("--output", folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {info.name: folder / f"{info.name}.yaml" for info in infos}
    for info in infos:
        export(info, f"trial={plan.points[info.name].trial}", files[info.name])
    return files


def plan_report(infos: Sequence[StudyInfo], plan: Plan, plans: Sequence[Plan], goal: Goal) -> dict[str, Any]:
    """Return a plan, and what other budgets would give, as a dict ready for JSON."""
    records = {info.name: info.by_number(plan.points[info.name].trial) for info in infos}
    return {
        "goal": goal,
        "value": plan.value,
        "total_bytes": plan.total_bytes,
        "tasks": {
            name: {"trial": point.trial, "map": point.quality, "delta_bytes": point.delta_bytes,
                   "config": dict(record.config) if (record := records[name]) else {}}
            for name, point in plan.points.items()
        },
        "curve": [
            {"total_bytes": other.total_bytes, "value": other.value,
             "trials": {name: point.trial for name, point in other.points.items()}}
            for other in plans
        ],
    }  # fmt: skip
