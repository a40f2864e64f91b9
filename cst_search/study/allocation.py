"""Divide a budget among tasks: one point of each study, so that the mAP over all tasks is highest.

Tasks that start from one detector share it; each adds what it trained, its delta. With points of known mAP and delta
this is the multiple-choice knapsack problem [Kellerer2004, chapter 11], solved exactly as a mixed-integer linear
program. Operations may be bounded too: a pass through a body that several tasks share is paid once, by a variable of
its own that is 1 if any of them is chosen.

References.

[Kellerer2004] H. Kellerer, U. Pferschy, D. Pisinger. Knapsack Problems. Springer, 2004.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

BYTES_PER_PARAMETER = 4  # of a delta in a study of a version that stored none: float32, without statistics of norms
Goal = Literal["mean", "worst"]
_MOST_PLANS = 200  # in a curve
_BETTER = 1e-5  # of mAP: what a better plan has more; ten times the tolerance of the solver


@dataclass(frozen=True)
class Point:
    """A trial that may be chosen for a task.

    Attributes:
        quality: mAP, over its seeds if it was confirmed; 0..1.
        delta_bytes: size of its trained tensors.
        own_flops: operations on an image beside the pass through a shared body; None: unknown.
        body: identity of that body with its input, and the operations of its pass; None: it shares none.
    """

    trial: int
    quality: float
    delta_bytes: int
    own_flops: int | None = None
    body: tuple[str, int] | None = None


@dataclass(frozen=True)
class Plan:
    """One point for each task, by its name; ``value`` is the weighted mean or the worst mAP."""

    points: Mapping[str, Point]
    value: float

    @property
    def total_bytes(self) -> int:
        return sum(point.delta_bytes for point in self.points.values())

    @property
    def total_flops(self) -> int | None:
        """Operations on one image, each shared pass counted once; None: unknown for a point."""
        own = [point.own_flops for point in self.points.values()]
        passes = {point.body for point in self.points.values() if point.body is not None}
        return None if None in own else sum(n or 0 for n in own) + sum(flops for _, flops in passes)


@dataclass(frozen=True)
class Bounds:
    """Bounds of a plan: bytes of all deltas, and operations on one image; None: unbounded."""

    storage_bytes: int | None = None
    flops: int | None = None


def point_of(brief: Mapping[str, Any], body: str = "") -> Point:
    """Return the point of a complete trial.

    Args:
        brief: its entry as `StudyInfo.brief` returns it.
        body: identity of the body that it starts from and of its input.
    """
    delta_bytes = brief.get("delta_bytes") or BYTES_PER_PARAMETER * brief["trainable_params"]
    flops, own = brief.get("flops"), brief.get("marginal_flops")
    shared = None if flops is None or own is None or own == flops else (body, flops - own)
    return Point(brief["trial"], brief["map_mean"], delta_bytes, own, shared)


def useful(points: Sequence[Point], with_flops: bool = False) -> list[Point]:
    """Return the points that no smaller point equals in mAP, smallest first.

    Args:
        with_flops: True to keep also those that need fewer operations than any such point.
    """

    def replaces(other: Point, point: Point) -> bool:
        cheaper = other.quality >= point.quality and other.delta_bytes <= point.delta_bytes
        if not with_flops:
            return cheaper
        return cheaper and other.body == point.body and (other.own_flops or 0) <= (point.own_flops or 0)

    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.delta_bytes, -point.quality, point.own_flops or 0)):
        if not any(replaces(other, point) for other in found):
            found.append(point)
    return found


def allocate(
    tasks: Mapping[str, Sequence[Point]], bounds: Bounds, goal: Goal = "mean", weights: Mapping[str, float] = {}
) -> Plan | None:
    """Return the best plan within the bounds, the smallest of equally good ones; None: none fits.

    Args:
        tasks: candidate points by task, at least one each. With a bound on operations, all points need theirs.
        goal: ``mean``: the highest weighted mean of mAP. ``worst``: the highest mAP of the task that has the lowest,
            and of such plans the one with the highest mean.
        weights: by name, of the mean; 1 where none is given.
    """
    problem = _Problem(tasks, bounds, weights)
    floors = problem.floors() if goal == "worst" else [0.0]
    # plans are fewer the higher the floor
    low, high = 0, len(floors)
    best = problem.best(floors[0])
    while best is not None and high - low > 1:
        middle = (low + high) // 2
        found = problem.best(floors[middle])
        low, high, best = (low, middle, best) if found is None else (middle, high, found)
    return None if best is None else problem.plan(best, goal)


def cheapest_better(
    tasks: Mapping[str, Sequence[Point]], plan: Plan, of: Literal["storage_bytes", "flops"], bounds: Bounds,
    goal: Goal = "mean", weights: Mapping[str, float] = {},
) -> Plan | None:  # fmt: skip
    """Return the better plan that needs least of one resource, within the bound on the other; None: there is none.

    This is the price of the bound: the plan that the next larger bound would allow.
    """
    problem = _Problem(tasks, replace(bounds, **{of: None}), weights)
    if goal == "mean":
        chosen = problem.least(of, 0.0, plan.value + _BETTER)
    else:
        floor = next((floor for floor in problem.floors() if floor > plan.value + _BETTER), None)
        chosen = None if floor is None else problem.least(of, floor)
    return None if chosen is None else problem.plan(chosen, goal)


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
            plans.append(plan)
    return plans


class _Problem:
    """The program: a 0/1 variable for each point, of which one per task is 1, then one for each shared body."""

    def __init__(self, tasks: Mapping[str, Sequence[Point]], bounds: Bounds, weights: Mapping[str, float]) -> None:
        known = all(point.own_flops is not None for points in tasks.values() for point in points)
        self.tasks = {name: useful(points, with_flops=known) for name, points in tasks.items()}
        self.names = [name for name, points in self.tasks.items() for _ in points]
        self.points = [point for points in self.tasks.values() for point in points]
        self.bodies = sorted({point.body for point in self.points if point.body is not None})
        self.quality = np.array([point.quality for point in self.points])
        share = {name: weights.get(name, 1.0) for name in self.tasks}
        self.mean = np.array([share[name] for name in self.names]) / sum(share.values()) * self.quality
        self.takes = {
            "storage_bytes": np.array([point.delta_bytes for point in self.points] + [0 for _ in self.bodies], float),
            "flops": np.array([point.own_flops or 0 for point in self.points] + [n for _, n in self.bodies], float),
        }
        self.scale = {of: max(1.0, float(taken.max())) for of, taken in self.takes.items()}  # tolerances are absolute
        given = {"storage_bytes": bounds.storage_bytes, "flops": bounds.flops}
        self.bounds = {of: bound for of, bound in given.items() if bound is not None}

    def floors(self) -> list[float]:
        """Return all mAPs, lowest first: the possible ones of the worst task."""
        return sorted({point.quality for point in self.points})

    def best(self, floor: float) -> list[int] | None:
        """Return the points of the highest mean, and then the fewest bytes, none below a mAP; None: none fits."""
        chosen = self._solve(-self._long(self.mean), floor)
        if chosen is None:
            return None
        return self.least("storage_bytes", floor, float(self.mean[chosen].sum()) - 1e-9) or chosen

    def least(self, of: str, floor: float, mean: float = -np.inf) -> list[int] | None:
        """Return the points that take least of a resource, none below a mAP, with at least a mean; None: none fits."""
        return self._solve(self.takes[of] / self.scale[of], floor, mean)

    def _long(self, of_points: np.ndarray) -> np.ndarray:
        return np.concatenate([of_points, np.zeros(len(self.bodies))])

    def _solve(self, costs: np.ndarray, floor: float, mean: float = -np.inf) -> list[int] | None:
        """Return the points, none below a mAP, of the lowest sum of ``costs`` among those with at least a mean."""
        from scipy.optimize import Bounds as Limits
        from scipy.optimize import LinearConstraint, milp

        allowed = np.concatenate([self.quality >= floor, np.ones(len(self.bodies))])
        one_each = np.array([[*(name == own for own in self.names), *(0 for _ in self.bodies)] for name in self.tasks])
        rules = [LinearConstraint(one_each, 1, 1), LinearConstraint(self._long(self.mean)[None], mean, np.inf)]
        rules += [LinearConstraint(self.takes[of][None] / self.scale[of], -np.inf, bound / self.scale[of])
                  for of, bound in self.bounds.items()]  # fmt: skip
        n = len(self.points)
        paid = np.zeros((n, n + len(self.bodies)))  # a point needs its body
        for i, point in enumerate(self.points):
            if point.body is not None:
                paid[i, [i, n + self.bodies.index(point.body)]] = 1, -1
        if self.bodies:
            rules.append(LinearConstraint(paid, -np.inf, 0))
        while True:
            found = milp(costs, constraints=rules, integrality=1, bounds=Limits(0, allowed),
                         options={"mip_rel_gap": 0.0})  # fmt: skip
            if found.x is None:
                return None
            chosen = [int(i) for i in np.flatnonzero(found.x[:n] > 0.5)]
            plan = self.plan(chosen, "mean")
            taken = {"storage_bytes": plan.total_bytes, "flops": plan.total_flops or 0}
            if all(taken[of] <= bound for of, bound in self.bounds.items()):
                return chosen
            # over a bound by less than the solver's tolerance: any plan but this one
            rules.append(LinearConstraint(np.isin(np.arange(len(costs)), chosen)[None], -np.inf, len(self.tasks) - 1))

    def plan(self, chosen: Sequence[int], goal: Goal) -> Plan:
        points = {self.names[i]: self.points[i] for i in chosen}
        value = min(point.quality for point in points.values()) if goal == "worst" else float(self.mean[chosen].sum())
        return Plan(points, value)
