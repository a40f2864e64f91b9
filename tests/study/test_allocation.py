"""A storage budget divided among tasks, against every plan there is."""

from __future__ import annotations

import itertools
import random

import pytest

from cst_search.study.allocation import Bounds, Plan, Point, allocate, cheapest_better, curve, useful

# two tasks: the first gains much from its second point, the other little from its last
TASKS = {
    "cells": [Point(0, 0.30, 100), Point(1, 0.50, 400), Point(2, 0.52, 4000)],
    "cards": [Point(5, 0.20, 100), Point(6, 0.35, 1000)],
}


def trials(plan: Plan | None) -> dict[str, int]:
    assert plan is not None
    return {name: point.trial for name, point in plan.points.items()}


@pytest.mark.parametrize(
    ("budget", "goal", "expected", "value"),
    [
        (200, "mean", {"cells": 0, "cards": 5}, 0.25),
        (500, "mean", {"cells": 1, "cards": 5}, 0.35),
        (1100, "mean", {"cells": 1, "cards": 5}, 0.35),  # 300 left, and nothing to buy for them
        (1100, "worst", {"cells": 0, "cards": 6}, 0.30),
        (1400, "mean", {"cells": 1, "cards": 6}, 0.425),
        (10**6, "mean", {"cells": 2, "cards": 6}, 0.435),
        (10**6, "worst", {"cells": 2, "cards": 6}, 0.35),  # of plans with the same worst the one with the best mean
    ],
)
def test_a_small_case_by_hand(budget: int, goal: str, expected: dict[str, int], value: float) -> None:
    plan = allocate(TASKS, Bounds(budget), goal)  # type: ignore[arg-type]
    assert trials(plan) == expected and plan is not None
    assert plan.value == pytest.approx(value) and plan.total_bytes <= budget


def test_nothing_fits() -> None:
    assert allocate(TASKS, Bounds(199)) is None


def test_weights_decide_who_gets_the_storage() -> None:
    assert trials(allocate(TASKS, Bounds(1100), weights={"cards": 5})) == {"cells": 0, "cards": 6}


def test_what_more_storage_would_buy() -> None:
    plan = allocate(TASKS, Bounds(500))
    assert plan is not None
    better = cheapest_better(TASKS, plan, "storage_bytes", Bounds(500))
    assert better is not None and better.total_bytes == 1400 and better.value == pytest.approx(0.425)
    best = allocate(TASKS, Bounds(10**6))
    assert best is not None and cheapest_better(TASKS, best, "storage_bytes", Bounds(10**6)) is None


def test_points_that_cost_more_for_nothing_are_left_out() -> None:
    points = [Point(0, 0.3, 100), Point(1, 0.3, 50), Point(2, 0.2, 400), Point(3, 0.4, 400), Point(4, 0.4, 400)]
    assert [point.trial for point in useful(points)] == [1, 3]


@pytest.mark.parametrize("seed", range(12))
def test_as_good_as_the_best_of_all_plans(seed: int) -> None:
    draw = random.Random(seed)
    tasks = {
        f"task-{t}": [Point(i, round(draw.random(), 3), draw.randint(1, 5_000_000)) for i in range(draw.randint(1, 5))]
        for t in range(draw.randint(1, 5))
    }
    weights = {name: draw.choice([0.5, 1.0, 3.0]) for name in tasks}
    total = sum(weights.values())
    plans = [dict(zip(tasks, chosen, strict=True)) for chosen in itertools.product(*tasks.values())]

    def value(plan: dict[str, Point], goal: str) -> float:
        if goal == "worst":
            return min(point.quality for point in plan.values())
        return sum(weights[name] * point.quality for name, point in plan.items()) / total

    def size(plan: dict[str, Point]) -> int:
        return sum(point.delta_bytes for point in plan.values())

    for goal in ("mean", "worst"):
        for budget in (draw.choice([size(plan) for plan in plans]), draw.randint(1, 20_000_000)):
            fitting = [plan for plan in plans if size(plan) <= budget]
            found = allocate(tasks, Bounds(budget), goal, weights)  # type: ignore[arg-type]
            assert (found is None) == (not fitting)
            if found is not None:
                best = max(value(plan, goal) for plan in fitting)
                assert found.value == pytest.approx(best, abs=1e-9)
                same = [plan for plan in fitting if value(plan, goal) >= best - 1e-9]
                best_mean = max(value(plan, "mean") for plan in same)
                assert value(dict(found.points), "mean") == pytest.approx(best_mean, abs=1e-8)
                least = min(size(plan) for plan in same if value(plan, "mean") >= best_mean - 1e-9)
                assert found.total_bytes == least
        steps = curve(tasks, goal, weights)  # type: ignore[arg-type]
        assert all(a.value < b.value and a.total_bytes < b.total_bytes for a, b in itertools.pairwise(steps))
        budgets = sorted({size(plan) for plan in plans})
        bests = [max(value(p, goal) for p in plans if size(p) <= budget) for budget in budgets]
        rising = [best for place, best in enumerate(bests) if not place or best > bests[place - 1] + 1e-9]
        assert [step.value for step in steps] == pytest.approx(rising)  # none is left out
        for step in steps:
            assert step.value == pytest.approx(max(value(p, goal) for p in plans if size(p) <= step.total_bytes))


@pytest.mark.parametrize("seed", range(12))
def test_operations_of_a_shared_pass_count_once(seed: int) -> None:
    """Against every plan there is, with points of two bodies and such as share none."""
    draw = random.Random(100 + seed)
    bodies = [("small", 50), ("large", 200), None]
    tasks = {
        f"task-{t}": [
            Point(i, round(draw.random(), 3), draw.randint(1, 100), draw.randint(1, 100), draw.choice(bodies))
            for i in range(draw.randint(1, 5))
        ]
        for t in range(draw.randint(1, 4))
    }
    plans = [Plan(dict(zip(tasks, chosen, strict=True)), 0.0) for chosen in itertools.product(*tasks.values())]

    def flops(plan: Plan) -> int:
        found = sum(point.own_flops or 0 for point in plan.points.values())
        return found + sum(n for _, n in {point.body for point in plan.points.values() if point.body})

    def value(plan: Plan, goal: str) -> float:
        qualities = [point.quality for point in plan.points.values()]
        return min(qualities) if goal == "worst" else sum(qualities) / len(qualities)

    assert all(plan.total_flops == flops(plan) for plan in plans)
    one = draw.choice(plans)
    bounds = Bounds(one.total_bytes + draw.randint(0, 50), flops(one) + draw.randint(0, 50))
    fitting = [p for p in plans if p.total_bytes <= bounds.storage_bytes and flops(p) <= bounds.flops]  # type: ignore[operator]
    for goal in ("mean", "worst"):
        found = allocate(tasks, bounds, goal)  # type: ignore[arg-type]
        assert found is not None and found.value == pytest.approx(max(value(p, goal) for p in fitting))
        assert found.total_bytes <= bounds.storage_bytes and flops(found) <= bounds.flops  # type: ignore[operator]
        better = [p for p in plans if value(p, goal) > found.value + 1e-6]
        with_operations = [p for p in better if flops(p) <= bounds.flops]  # type: ignore[operator]
        with_storage = [p for p in better if p.total_bytes <= bounds.storage_bytes]  # type: ignore[operator]
        next_storage = cheapest_better(tasks, found, "storage_bytes", bounds, goal)  # type: ignore[arg-type]
        next_flops = cheapest_better(tasks, found, "flops", bounds, goal)  # type: ignore[arg-type]
        assert (next_storage.total_bytes if next_storage else None) == min(
            (p.total_bytes for p in with_operations), default=None
        )
        assert (flops(next_flops) if next_flops else None) == min((flops(p) for p in with_storage), default=None)


def test_without_a_bound_the_best_point_of_each_is_taken() -> None:
    assert trials(allocate(TASKS, Bounds())) == {"cells": 2, "cards": 6}
    assert allocate({"a": [Point(0, 0.5, 10, 100, ("x", 50))]}, Bounds(flops=149)) is None


def test_a_long_curve_is_thinned_to_its_smallest_its_best_and_some_between() -> None:
    draw = random.Random(3)
    tasks = {f"task-{t}": [Point(i, 0.02 * i + 0.01 * draw.random(), round(1e4 * 1.4**i * (1 + 0.3 * draw.random())))
                           for i in range(20)] for t in range(7)}  # fmt: skip
    steps = curve(tasks)
    assert 100 < len(steps) <= 200
    assert all(point.trial == 0 for point in steps[0].points.values())
    assert all(point.trial == 19 for point in steps[-1].points.values())
    assert all(a.value < b.value and a.total_bytes < b.total_bytes for a, b in itertools.pairwise(steps))
    middle = steps[len(steps) // 2]
    assert allocate(tasks, Bounds(middle.total_bytes)).value == pytest.approx(middle.value)  # type: ignore[union-attr]
