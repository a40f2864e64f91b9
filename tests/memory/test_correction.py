"""What measured trials teach about the next suggestions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from studies import fake_estimate, make_study, run_one, scored

from cst_search.config.recipe import Recipe
from cst_search.memory.correction import Correction
from cst_search.memory.estimate import InputShape
from cst_search.trial.cost import predict


@pytest.mark.parametrize(
    ("ratios", "factor"),
    [
        ([], 1.0),
        ([1.0] * 5, 1.0),
        ([1.2], 1.2 ** (1 / 3)),  # one trial beside two that count as exact
        ([1.2, 1.2, 1.2, 1.2], 1.2 ** (4 / 6)),
        ([1.1] * 1000, 1.1 ** (1000 / 1002)),
        ([1.25, 0.8], 1.0),  # geometric: twice as much and half as much cancel
        ([3.0] * 50, 1.5),  # something else is wrong there
        ([0.1] * 50, 0.9),
    ],
)
def test_the_factor(ratios: list[float], factor: float) -> None:
    correction = Correction.learned(ratios)
    assert correction.factor == pytest.approx(factor) and correction.n_trials == len(ratios)


def test_a_corrected_estimate_still_adds_up() -> None:
    plain = predict(Recipe(backbone="resnet18"), 3, InputShape(128, 128, 5))
    corrected = plain.corrected(Correction(1.1, 4))
    assert corrected.reserved_bytes == round(1.1 * plain.reserved_bytes)
    assert corrected.device_bytes - corrected.reserved_bytes == plain.device_bytes - plain.reserved_bytes
    assert sum(corrected.breakdown.values()) == corrected.device_bytes
    assert corrected.active_bytes == plain.active_bytes
    assert plain.corrected(Correction()) is plain


def test_the_next_suggestions_are_corrected_and_say_so(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    session.begin_launch()
    first = run_one(session, scored(0.5, device_bytes=150, reserved_bytes=720), batch_size=2)  # predicted: 600
    assert first.memory_correction == 1.0
    expected = (720 / 600) ** (1 / 3)
    second = run_one(session, scored(0.5, device_bytes=150, reserved_bytes=720), batch_size=2)
    assert second.memory_correction == pytest.approx(expected)
    suggestion: Any = session.ask(fake_estimate)  # type: ignore[arg-type]
    assert suggestion.estimate["device_bytes"] > fake_estimate(suggestion.config).device_bytes
    session.end_launch()
    # it is the study's, not the process's
    again = make_study(tmp_path)
    again.begin_launch()
    assert len(again.outcomes.memory_ratios) == 2 and math.isclose(again.outcomes.memory_ratios[0], 1.2)


@pytest.mark.parametrize(
    ("result", "learned"),
    [
        (scored(0.5), 0),  # nothing was measured
        (scored(0.5, device_bytes=1, reserved_bytes=660), 1),
        ({"outcome": "oom", "reason": "x", "device_bytes": 1, "reserved_bytes": 500, "held_bytes": 500}, 0),  # no news
        (
            {"outcome": "oom", "reason": "x", "device_bytes": 1, "reserved_bytes": 500, "held_bytes": 590,
             "asked_bytes": 100}, 1,
        ),
        ({"outcome": "nonfinite", "reason": "x", "device_bytes": 1, "reserved_bytes": 500}, 0),
    ],
)  # fmt: skip
def test_results_that_teach_the_correction(tmp_path: Path, result: dict[str, Any], learned: int) -> None:
    session = make_study(tmp_path)
    session.begin_launch()
    run_one(session, result)
    assert len(session.outcomes.memory_ratios) == learned
