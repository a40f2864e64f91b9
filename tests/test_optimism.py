"""benchmarks/optimism.py: how lucky a front is, by hand."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

from optimism import front_rows, main, optimism


def row(last_map: float, cost: int) -> dict[str, object]:
    return {"map": [0.0, last_map], "device_bytes": cost, "trainable_params": cost}


def test_a_confirmed_value_is_judged_by_the_seeds_that_had_no_part_in_it() -> None:
    found = optimism([row(0.6, 2), row(0.3, 1)], [[0.3, 0.4, 0.5], [0.3, 0.3, 0.3]])
    assert found["unconfirmed"] == pytest.approx((0.6 - 0.4) / 2)
    # the first point: (0.6 + two fresh) / 3 less the third fresh, for each choice of two
    by_choice = [(1.3 / 3 - 0.5) / 2, (1.4 / 3 - 0.4) / 2, (1.5 / 3 - 0.3) / 2]
    assert found["confirmed"] == pytest.approx(sum(by_choice) / 3)
    assert found["kept"] == 1


def test_a_point_that_its_mean_takes_off_the_front_does_not_count() -> None:
    lucky, cheap = row(0.5, 2), row(0.45, 1)
    assert front_rows([lucky, cheap], [0.5, 0.45]) == [0, 1]
    found = optimism([lucky, cheap], [[0.5, 0.5, 0.2], [0.45, 0.45, 0.45]])
    # confirmed by the first two, it stays and the third judges it; by the third and another, it is gone
    by_choice = [(0.5 - 0.2) / 2, 0.0, 0.0]
    assert found == pytest.approx({"unconfirmed": 0.05, "confirmed": sum(by_choice) / 3, "kept": (1 + 0.5 + 0.5) / 3})


def test_too_few_seeds_are_refused_before_anything_is_trained(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["optimism.py", "no.json.gz", "--data", "no", "--seeds", "2", "--out", "no.json"])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "--seeds must be at least 3" in capsys.readouterr().err
