"""`cst-search allocate`: one point of each study under a common storage budget."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from studies import make_study, run_cli, run_one, scored


def ran(*arguments: str) -> tuple[int, str, str]:
    found = run_cli(*arguments)
    return found.code, found.out, found.err


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Two studies. A trial of reduction 8 trains 1100 parameters, 4.4 kB; of reduction 1 1800, 7.2 kB."""
    for name, small, large in (("cells", 0.50, 0.52), ("cards", 0.20, 0.40)):
        session = make_study(tmp_path, name)
        run_one(session, scored(small), method="cst", cst__reduction=8, batch_size=2)
        run_one(session, scored(large), method="cst", cst__reduction=1, batch_size=2)
        run_one(session, {"outcome": "oom", "reason": "too much"}, method="head", batch_size=2)
    return tmp_path


def test_the_storage_goes_where_it_gains_most(home: Path) -> None:
    code, text, _ = ran("allocate", "cells", "cards", "--budget-storage", "12kB", "--home", str(home), "--json")
    assert code == 0
    report = json.loads(text)
    assert {name: task["trial"] for name, task in report["tasks"].items()} == {"cells": 0, "cards": 1}
    assert report["tasks"]["cards"]["delta_bytes"] == 4 * 1800 and report["tasks"]["cards"]["map"] == 0.4
    assert report["total_bytes"] == 4 * (1100 + 1800) and report["value"] == pytest.approx(0.45)
    assert [(plan["total_bytes"], round(plan["value"], 3)) for plan in report["curve"]] == [
        (8800, 0.35), (11600, 0.45), (14400, 0.46)
    ]  # fmt: skip


def test_the_plan_is_printed_and_its_recipes_are_written(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    code, text, _ = ran(
        "allocate", "cells", "cards", "--budget-storage", "9kB", "--home", str(home), "-o", str(out)
    )  # fmt: skip
    assert code == 0
    words = " ".join(text.split())
    assert "mean map 0.350 in 8.8 kB of 9 kB" in words and "the next better plan: 0.450 in 11.6 kB" in words
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in out.iterdir()}
    assert {name: recipe["origin"]["trial"] for name, recipe in recipes.items()} == {"cells": 0, "cards": 0}
    assert all(recipe["options"]["reduction"] == 8 for recipe in recipes.values())


def test_the_worst_task_can_come_first(home: Path) -> None:
    code, text, _ = ran(
        "allocate", "cells", "cards", "--budget-storage", "1MB", "--home", str(home), "--maximise", "worst", "--json"
    )  # fmt: skip
    report = json.loads(text)
    assert code == 0 and report["goal"] == "worst" and report["value"] == 0.4
    assert [plan["value"] for plan in report["curve"]] == [0.2, 0.4]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["cells", "cards", "--budget-storage", "8kB"], "give at least 8.8 kB (8800 bytes)"),
        (["cells", "--budget-storage", "8 parsecs"], "must be a positive number with a unit"),
        (["cells", "--budget-storage", "1MB", "--maximise", "best"], "--maximise must be one of mean, worst"),
        (["cells", "--budget-storage", "1MB", "--weight", "cards=2"], "--weight takes STUDY=NUMBER above 0, of cells"),
        (["cells", "--budget-storage", "1MB", "--weight", "cells=-1"], "--weight takes STUDY=NUMBER above 0"),
        (["nothing", "--budget-storage", "1MB"], "nothing"),
    ],
)
def test_wrong_input_is_named(home: Path, arguments: list[str], says: str) -> None:
    code, _, errors = ran("allocate", *arguments, "--home", str(home))
    assert code == 2 and says in " ".join(errors.split())


def test_a_study_without_a_result_is_named(home: Path) -> None:
    run_one(make_study(home, "failed"), {"outcome": "oom", "reason": "too much"}, method="head", batch_size=2)
    code, _, errors = ran("allocate", "cells", "failed", "--budget-storage", "1MB", "--home", str(home))
    assert code == 2 and "study 'failed' has no feasible complete trial yet" in " ".join(errors.split())
