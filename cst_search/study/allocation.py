"""Divide a storage budget among tasks: one point of each study, so that the mAP over all tasks is highest.

Tasks that start from one detector share it; each adds what it trained, its delta. With points of known mAP and delta
this is the multiple-choice knapsack problem [Kellerer2004, chapter 11], solved exactly as a mixed-integer linear
program.

References.

[Kellerer2004] H. Kellerer, U. Pferschy, D. Pisinger. Knapsack Problems. Springer, 2004.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

BYTES_PER_PARAMETER = 4  # of a delta in a study of a version that stored none: float32, without statistics of norms
Goal = Literal["mean", "worst"]
_MOST_PLANS = 200  # in a curve


@dataclass(frozen=True)
class Point:
    """A trial that a task may take.

    Attributes:
        quality: mAP, over its seeds if it was confirmed; 0..1.
        delta_bytes: size of its trained tensors.
    """

    trial: int
    quality: float
    delta_bytes: int


@dataclass(frozen=True)
class Plan:
    """One point for each task, by its name; ``value`` is the weighted mean or the worst mAP."""

    points: Mapping[str, Point]
    value: float

    @property
    def total_bytes(self) -> int:
        return sum(point.delta_bytes for point in self.points.values())


def point_of(brief: Mapping[str, Any]) -> Point:
    """Return the point of a complete trial, from its entry as `StudyInfo.brief` returns it."""
    delta_bytes = brief.get("delta_bytes") or BYTES_PER_PARAMETER * brief["trainable_params"]
    return Point(brief["trial"], brief["map_mean"], delta_bytes)


def useful(points: Sequence[Point]) -> list[Point]:
    """Return the points that none is at least as good as and smaller, smallest first."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.delta_bytes, -point.quality)):
        if not found or point.quality > found[-1].quality:
            found.append(point)
    return found


def allocate(
    tasks: Mapping[str, Sequence[Point]], budget_bytes: int, goal: Goal = "mean", weights: Mapping[str, float] = {}
) -> Plan | None:
    """Return the best plan whose deltas fit into a budget together, the smallest of equally good ones; None: none fits.

    Args:
        tasks: by name, what each may take; at least one point each.
        budget_bytes: bound of the sum of the deltas.
        goal: ``mean``: the highest weighted mean of mAP. ``worst``: the highest mAP of the task that has the lowest,
            and of such plans the one with the highest mean.
        weights: by name, of the mean; 1 where none is given.
    """
    problem = _Problem(tasks, weights)
    chosen = problem.solve(problem.mean, budget_bytes)
    if chosen is None:
        return None
    if goal == "worst":
        floor = _worst_within(tasks, budget_bytes)
        assert floor is not None  # a plan fits
        chosen = problem.solve(problem.mean, budget_bytes, floor=floor)
        assert chosen is not None
    return problem.plan(chosen, goal)


def curve(tasks: Mapping[str, Sequence[Point]], goal: Goal = "mean", weights: Mapping[str, float] = {}) -> list[Plan]:
    """Return the plans that no smaller one equals, smallest first: the best plan at every budget.

    Of more than 200 only as many, evenly spread over the logarithm of their size, the smallest and the best among them.
    """
    plans = _curve_of_worst(tasks) if goal == "worst" else _curve_of_mean(tasks, weights)
    if len(plans) <= _MOST_PLANS:
        return plans
    sizes = np.log([max(1, plan.total_bytes) for plan in plans])
    wanted = np.linspace(sizes[0], sizes[-1], _MOST_PLANS)
    return [plans[i] for i in sorted({int(np.abs(sizes - size).argmin()) for size in wanted})]


def _curve_of_mean(tasks: Mapping[str, Sequence[Point]], weights: Mapping[str, float]) -> list[Plan]:
    """Return the plans by adding task after task and dropping partial plans that a smaller one equals.

    This is the algorithm of Nemhauser and Ullmann [Kellerer2004, section 2.6], with one point of each task.
    """
    share = {name: weights.get(name, 1.0) for name in tasks}
    total = sum(share.values())
    sizes, values, picks = np.zeros(1, np.int64), np.zeros(1), np.zeros((1, 0), np.int32)
    kept = {name: useful(points) for name, points in tasks.items()}
    for name, points in kept.items():
        own_sizes = np.array([point.delta_bytes for point in points])
        own_values = np.array([share[name] / total * point.quality for point in points])
        new_sizes, new_values = (sizes[:, None] + own_sizes).ravel(), (values[:, None] + own_values).ravel()
        order = np.lexsort((-new_values, new_sizes))
        best = np.maximum.accumulate(np.concatenate([[-np.inf], new_values[order]]))[:-1]
        order = order[new_values[order] > best + 1e-12]
        sizes, values = new_sizes[order], new_values[order]
        before, chosen = np.divmod(order, len(points))
        picks = np.column_stack([picks[before], chosen.astype(np.int32)])
    return [
        Plan({name: points[i] for (name, points), i in zip(kept.items(), pick, strict=True)}, float(value))
        for pick, value in zip(picks, values, strict=True)
    ]


def _curve_of_worst(tasks: Mapping[str, Sequence[Point]]) -> list[Plan]:
    """Return for each worst mAP that is possible the smallest plan that reaches it."""
    plans: list[Plan] = []
    for floor in sorted({point.quality for points in tasks.values() for point in points}):
        reaching = {name: [point for point in points if point.quality >= floor] for name, points in tasks.items()}
        if not all(reaching.values()):
            break
        chosen = {name: min(points, key=lambda p: (p.delta_bytes, -p.quality)) for name, points in reaching.items()}
        plan = Plan(chosen, min(point.quality for point in chosen.values()))
        if not plans or plan.value > plans[-1].value + 1e-9:
            if plans and plan.total_bytes <= plans[-1].total_bytes:
                plans.pop()
            plans.append(plan)
    return plans


def next_better(plan: Plan, plans: Sequence[Plan]) -> Plan | None:
    """Return the smallest plan of a `curve` that is better than this one; None: there is none."""
    return next((other for other in plans if other.value > plan.value + 1e-9), None)


def _worst_within(tasks: Mapping[str, Sequence[Point]], budget_bytes: int) -> float | None:
    """Return the highest mAP that all tasks can reach together within a budget."""
    for floor in sorted({point.quality for points in tasks.values() for point in points}, reverse=True):
        least = [
            min((point.delta_bytes for point in points if point.quality >= floor), default=None)
            for points in tasks.values()
        ]
        if None not in least and sum(size for size in least if size is not None) <= budget_bytes:
            return floor
    return None


class _Problem:
    """The program: a 0/1 variable for each point of each task, of which exactly one per task is 1."""

    def __init__(self, tasks: Mapping[str, Sequence[Point]], weights: Mapping[str, float]) -> None:
        self.tasks = {name: useful(points) for name, points in tasks.items()}
        self.names = [name for name, points in self.tasks.items() for _ in points]
        self.points = [point for points in self.tasks.values() for point in points]
        self.bytes = np.array([point.delta_bytes for point in self.points], float)
        self.scale = max(1.0, float(self.bytes.max()))  # the solver's tolerances are absolute
        self.quality = np.array([point.quality for point in self.points])
        self.weights = {name: weights.get(name, 1.0) for name in self.tasks}
        share = np.array([self.weights[name] for name in self.names]) / sum(self.weights.values())
        self.mean = share * self.quality

    def solve(self, worth: np.ndarray, budget_bytes: int, floor: float = 0.0) -> list[int] | None:
        """Return the chosen variables, of the highest sum of ``worth`` and then the fewest bytes; None: none fits."""
        allowed = (self.quality >= floor).astype(float)
        best = self._best(-worth, allowed, budget_bytes)
        if best is None:
            return None
        as_good = float(worth[best].sum()) - 1e-9
        return self._best(self.bytes / self.scale, allowed, budget_bytes, (worth, as_good)) or best

    def _best(
        self, costs: np.ndarray, allowed: np.ndarray, budget_bytes: int, least: tuple[np.ndarray, float] | None = None
    ) -> list[int] | None:
        """Return the allowed variables of the lowest sum of ``costs``; ``least``: (worth, its least sum)."""
        from scipy.optimize import Bounds, LinearConstraint, milp

        one_each = np.array([[name == own for own in self.names] for name in self.tasks], float)
        constraints = [
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(self.bytes[None] / self.scale, -np.inf, budget_bytes / self.scale),
        ]
        if least is not None:
            constraints.append(LinearConstraint(least[0][None], least[1], np.inf))
        while True:
            found = milp(
                costs, constraints=constraints, integrality=1, bounds=Bounds(0, allowed), options={"mip_rel_gap": 0.0}
            )
            if found.x is None:
                return None
            chosen = [int(i) for i in np.flatnonzero(found.x > 0.5)]
            if self.bytes[chosen].sum() <= budget_bytes:
                return chosen
            # over the budget by less than the solver's tolerance: any plan but this one
            constraints.append(
                LinearConstraint(np.isin(np.arange(len(costs)), chosen)[None], -np.inf, len(self.tasks) - 1)
            )

    def plan(self, chosen: Sequence[int], goal: Goal) -> Plan:
        points = {self.names[i]: self.points[i] for i in chosen}
        value = min(point.quality for point in points.values()) if goal == "worst" else float(self.mean[chosen].sum())
        return Plan(points, value)
