"""Choose one point of each study under a common storage budget, and write their recipes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from cst_search.commands.export import export
from cst_search.config.catalog import check_folder, study_folder
from cst_search.config.recipe import READING_FIELDS
from cst_search.errors import ConfigError, StudyError
from cst_search.study.allocation import Bounds, Goal, Plan, Point, allocate, cheapest_better, curve, point_of
from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.states import TrialState
from cst_search.study.wording import no_trial_yet
from cst_search.units import format_bytes, format_flops, parse_bytes, parse_flops

GOALS = ("mean", "worst")
# fields of a recipe on which the features of an image depend while its body is frozen
_OF_BODY = ("detector", "backbone", "width", "weights", "image_size_px", "max_size_px", "precision", *READING_FIELDS)


def points_of(info: StudyInfo) -> list[Point]:
    """Return the complete, feasible trials of a study. Raises StudyError if there is none."""
    found = [
        point_of(info.brief(record), _body_of(info, record))
        for record in info.trials
        if record.state == TrialState.COMPLETE and record.feasible and record.trainable_params is not None
    ]
    if not found:
        raise StudyError(no_trial_yet(info))
    return found


def _body_of(info: StudyInfo, record: TrialRecord) -> str:
    """Return the identity of the body that a trial starts from, and of its input.

    Detectors of two architectures count as two bodies, though they may start from the same one.
    """
    values = {**info.recipe, **record.config}
    return json.dumps([values.get(name) for name in _OF_BODY])


def parse_bounds(budget_storage: str | None, budget_flops: str | None) -> Bounds:
    """Return the bounds given as texts, such as ``20MB`` and ``200GFLOP``. Raises ConfigError."""
    if budget_storage is None and budget_flops is None:
        raise ConfigError(
            "give what the tasks may take together: --budget-storage 20MB, --budget-flops 200GFLOP, or both"
        )
    return Bounds(
        None if budget_storage is None else parse_bytes(budget_storage),
        None if budget_flops is None else parse_flops(budget_flops),
    )


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


@dataclass(frozen=True)
class Allocation:
    """The best plan within bounds, and the next better plan beyond each bound.

    Attributes:
        better: by bound, ``storage_bytes`` or ``flops``, the plan that the next larger one allows, see `next_better`.
        curve: plans that are best at some storage budget, smallest first, with no bound of operations.
    """

    plan: Plan
    better: Mapping[str, Plan | None]
    curve: Sequence[Plan]


def allocate_studies(
    infos: Sequence[StudyInfo], bounds: Bounds, goal: Goal, weights: Mapping[str, float]
) -> Allocation:
    """Return the best plan within bounds, and what more would buy.

    Raises:
        ConfigError: no plan fits; the message says how much the smallest takes. Or a trial of an earlier version has no
            record of its operations.
        StudyError: a study has no point.
    """
    tasks = {info.name: points_of(info) for info in infos}
    if bounds.flops is not None:
        _check_flops(tasks)
    plan = allocate(tasks, bounds, goal, weights)
    if plan is None:
        raise ConfigError(_nothing_fits(tasks, bounds))
    given = [of for of in ("storage_bytes", "flops") if getattr(bounds, of) is not None]
    better = {of: next_better(tasks, plan, of, bounds, goal, weights) for of in given}  # type: ignore[arg-type]
    return Allocation(plan, better, curve(tasks, goal, weights))


def next_better(
    tasks: Mapping[str, Sequence[Point]], plan: Plan, of: Literal["storage_bytes", "flops"], bounds: Bounds, goal: Goal,
    weights: Mapping[str, float],
) -> Plan | None:  # fmt: skip
    """Return the best plan under the smallest bound of three digits that allows a better one; None: no bound does.

    Sizes are printed with three digits. Of several better plans that look equally large, this is the best.
    """
    least = cheapest_better(tasks, plan, of, bounds, goal, weights)
    taken = None if least is None else least.total_bytes if of == "storage_bytes" else least.total_flops
    if taken is None:
        return None
    digit = 10 ** max(0, len(str(taken)) - 3)
    return allocate(tasks, replace(bounds, **{of: -(-taken // digit) * digit}), goal, weights)


def _check_flops(tasks: Mapping[str, Sequence[Point]]) -> None:
    for name, points in tasks.items():
        if any(point.own_flops is None for point in points):
            raise ConfigError(
                f"--budget-flops needs the operations of each trial, and study {name!r} has trials of a version that "
                "did not record them; leave the option out, or search again"
            )


def _nothing_fits(tasks: Mapping[str, Sequence[Point]], bounds: Bounds) -> str:
    """Return why no plan fits, with what the smallest takes."""
    least = sum(min(point.delta_bytes for point in points) for points in tasks.values())
    if bounds.storage_bytes is not None and least > bounds.storage_bytes:
        return (
            f"--budget-storage {format_bytes(bounds.storage_bytes)} is below the smallest points of these studies "
            f"together; give at least {format_bytes(least)} ({least} bytes)"
        )
    fewest = cheapest_better(tasks, Plan({}, -1.0), "flops", bounds)
    assert fewest is not None  # the smallest plan fits without a bound of operations
    within = " within --budget-storage" if bounds.storage_bytes is not None else ""
    return (
        f"--budget-flops {format_flops(bounds.flops)} is below what these studies need together{within}; "
        f"give at least {format_flops(fewest.total_flops)} ({fewest.total_flops} operations)"
    )


def write_recipes(infos: Sequence[StudyInfo], plan: Plan, folder: Path) -> dict[str, Path]:
    """Write the recipe of each study's point to ``FOLDER/STUDY.yaml``. Raises ConfigError."""
    check_folder("--output", folder)
    folder.mkdir(parents=True, exist_ok=True)
    files = {info.name: study_folder(folder, f"{info.name}.yaml") for info in infos}
    for info in infos:
        export(info, f"trial={plan.points[info.name].trial}", files[info.name])
    return files


def plan_report(infos: Sequence[StudyInfo], found: Allocation, goal: Goal, files: Mapping[str, Path]) -> dict[str, Any]:
    """Return a plan, and what other budgets would give, as a dict ready for JSON.

    Args:
        files: the recipes that `write_recipes` wrote.
    """
    plan = found.plan
    records = {info.name: info.by_number(plan.points[info.name].trial) for info in infos}
    return {
        "goal": goal,
        **_brief(plan),
        "tasks": {
            name: {"trial": point.trial, "map": point.quality, "delta_bytes": point.delta_bytes,
                   "config": dict(record.config) if (record := records[name]) else {}}
            for name, point in plan.points.items()
        },
        "better": {of: None if other is None else _brief(other) for of, other in found.better.items()},
        "curve": [
            {**_brief(other), "trials": {name: point.trial for name, point in other.points.items()}}
            for other in found.curve
        ],
        "recipes": {name: str(path) for name, path in files.items()},
    }  # fmt: skip


def _brief(plan: Plan) -> dict[str, Any]:
    return {"value": plan.value, "total_bytes": plan.total_bytes, "total_flops": plan.total_flops}
