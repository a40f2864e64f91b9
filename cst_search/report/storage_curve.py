"""How the mAP of several tasks grows with what they may store together: data for the page that compares studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cst_search.study.allocation import Goal, Plan, Point, curve, point_of
from cst_search.study.states import TrialState

_MOST_STEPS = 20
_GOALS: dict[Goal, str] = {"mean": "highest mean", "worst": "highest worst"}


def storage_curve(reports: Sequence[Mapping[str, Any]], n_plans: int = _MOST_STEPS) -> dict[str, Any] | None:
    """Return the best plans at rising storage budgets, for both goals of `allocate`.

    Args:
        reports: results of `summary.page_report`, one for each study.
        n_plans: about the largest number of plans of a goal.

    Returns:
        ``goals``: for each goal ``key``, ``name`` and ``plans``, smallest first, each with ``bytes`` of all deltas
        together, ``mean`` and ``worst`` mAP, and ``trials`` in the order of the studies. None where there is nothing to
        divide: two studies are of the same data, or one has no point.
    """
    data = [report["data"] for report in reports]
    tasks = {report["study"]: _points(report) for report in reports}
    if len(set(data)) < len(data) or not all(tasks.values()):
        return None
    return {
        "studies": list(tasks),
        "goals": [
            {"key": goal, "name": name, "plans": [_as_row(plan) for plan in _thinned(curve(tasks, goal), n_plans)]}
            for goal, name in _GOALS.items()
        ],
    }


def _thinned(plans: Sequence[Plan], n_plans: int) -> list[Plan]:
    """Return about ``n_plans`` of the plans at most: each gains at least that share of what all of them gain."""
    step = (plans[-1].value - plans[0].value) / n_plans
    found = [plans[0]]
    for plan in plans[1:]:
        if plan.value - found[-1].value >= step * (1 - 1e-9) or plan is plans[-1]:
            found.append(plan)
    return found


def _points(report: Mapping[str, Any]) -> list[Point]:
    rows = (row for row in report["all"] if row["state"] == TrialState.COMPLETE and row["feasible"])
    return [point_of(row) for row in rows if row["trainable_params"] is not None and row["map_mean"] is not None]


def _as_row(plan: Plan) -> dict[str, Any]:
    quality = [point.quality for point in plan.points.values()]
    return {
        "bytes": plan.total_bytes, "mean": sum(quality) / len(quality), "worst": min(quality),
        "trials": [point.trial for point in plan.points.values()],
    }  # fmt: skip
