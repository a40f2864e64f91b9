"""`cst-search allocate`: one point of each study under a common storage budget."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from studies import make_study, run_cli, run_one, scored

import cst_search
from cst_search.commands import train as train_module
from cst_search.commands.allocate import next_better
from cst_search.config.recipe import Recipe
from cst_search.detector.bundle import Bundle
from cst_search.errors import UserError
from cst_search.study.allocation import Bounds, Point, allocate
from cst_search.trial.result import Outcome, TrialResult


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


def test_python_gives_what_the_command_gives(home: Path, tmp_path: Path) -> None:
    arguments = ("--budget-storage", "12kB", "--weight", "cards=2", "--home", str(home), "--json")
    command = json.loads(ran("allocate", "cells", "cards", *arguments)[1])
    studies = ["cells", cst_search.open_study("cards", home=home)]
    found = cst_search.allocate(studies, budget_storage="12kB", weights={"cards": 2}, home=home, out=tmp_path / "plan")
    recipes = found.pop("recipes")
    assert set(recipes) == {"cells", "cards"} and all(Path(path).is_file() for path in recipes.values())
    assert json.loads(json.dumps(found)) == {key: value for key, value in command.items() if key != "recipes"}
    with pytest.raises(UserError, match="give what the tasks may take together"):
        cst_search.allocate(studies, home=home)


def test_the_plan_is_printed_and_its_recipes_are_written(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "plan"
    code, text, _ = ran(
        "allocate", "cells", "cards", "--budget-storage", "9kB", "--home", str(home), "-o", str(out)
    )  # fmt: skip
    assert code == 0
    words = " ".join(text.split())
    assert words.count("reduction 8") == 1 and "in all of them:" in words, words
    assert "mean map 0.350 in 8.8 kB of 9 kB" in words and "the next better plan: 0.450 in 11.6 kB" in words
    assert f"next: cst-search train {out}/cells.yaml --out cells --home {home}" in words
    assert words.count("next:") == 1 and f"train {out}/cards.yaml --out cards --home {home}" in words
    recipes = {path.stem: yaml.safe_load(path.read_text()) for path in out.iterdir()}
    assert {name: recipe["origin"]["trial"] for name, recipe in recipes.items()} == {"cells": 0, "cards": 0}
    assert all(recipe["options"]["reduction"] == 8 for recipe in recipes.values())


def test_a_budget_above_the_best_plan_is_said_to_be_enough(home: Path) -> None:
    code, text, _ = ran("allocate", "cells", "cards", "--budget-storage", "1MB", "--home", str(home))
    words = " ".join(text.split())
    assert code == 0 and "mean map 0.460 in 14.4 kB of 1 MB" in words and "more storage would not help" in words


def test_of_better_plans_that_look_equally_large_the_best_is_named() -> None:
    """Both take 3.01 MB in three digits; the cheaper one gains a third of what the other does."""
    tasks = {
        "cells": [Point(0, 0.1, 1_000_000), Point(1, 0.2, 2_001_000)],
        "cards": [Point(0, 0.1, 1_000_000), Point(1, 0.4, 2_005_000)],
    }
    bounds = Bounds(storage_bytes=2_500_000)
    plan = allocate(tasks, bounds)
    assert plan is not None and plan.total_bytes == 2_000_000
    better = next_better(tasks, plan, "storage_bytes", bounds, "mean", {})
    assert better is not None and better.total_bytes == 3_005_000 and better.value == pytest.approx(0.25)


def test_operations_can_be_the_budget(home: Path) -> None:
    """Each task has 1 GFLOP of its own; the shared pass takes 0.1 for reduction 8, and in these studies 0.8 for 1."""
    code, text, _ = ran(
        "allocate", "cells", "cards", "--budget-storage", "1MB", "--budget-flops", "2.5GFLOP", "--home", str(home)
    )
    words = " ".join(text.split())
    assert code == 0 and "mean map 0.350 in 8.8 kB of 1 MB, 2.1 GFLOP of 2.5 GFLOP" in words
    assert "more storage alone would not help" in words
    assert "the next better plan by more operations: 0.460 in 14.4 kB, 2.8 GFLOP" in words


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
        (["cells", "cards"], "--budget-storage 20MB, --budget-flops 200GFLOP, or both"),
        (["cells", "cards", "--budget-flops", "2"], "must have a unit"),
        (["cells", "cards", "--budget-flops", "1GFLOP"], "give at least 2.1 GFLOP (2100000000 operations)"),
    ],
)
def test_wrong_input_is_named(home: Path, arguments: list[str], says: str) -> None:
    code, _, errors = ran("allocate", *arguments, "--home", str(home))
    assert code == 2 and says in " ".join(errors.split())


def test_a_study_without_a_result_is_named(home: Path) -> None:
    run_one(make_study(home, "failed"), {"outcome": "oom", "reason": "too much"}, method="head", batch_size=2)
    code, _, errors = ran("allocate", "cells", "failed", "--budget-storage", "1MB", "--home", str(home))
    assert code == 2 and "study 'failed' has no feasible complete trial yet" in " ".join(errors.split())


# --- trained and packed -----------------------------------------------------------------------------------------------


@pytest.fixture
def real(tmp_path: Path, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]) -> tuple[Path, list[str]]:
    """Two studies whose recipes can be trained, and the command that trains them into ``plan``."""
    for name, quality in (("cells", 0.5), ("cards", 0.2)):
        recipe = tiny_recipe(data=str(tiny_folder), epochs=1).to_dict()
        session = make_study(tmp_path, name, recipe=recipe, data=str(tiny_folder))
        run_one(session, scored(quality), method="cst", cst__reduction=8, batch_size=2)
    run_one(session, scored(0.4), method="cst", cst__reduction=1, batch_size=2)  # of cards, 7.2 kB instead of 4.4
    command = ["allocate", "cells", "cards", "--budget-storage", "9kB", "--home", str(tmp_path), "--train",
               "-o", str(tmp_path / "plan"), "--device", "cpu", "--cache-size", "0"]  # fmt: skip
    return tmp_path / "plan", command


def test_a_plan_is_trained_and_packed(real: tuple[Path, list[str]]) -> None:
    plan, command = real
    code, text, errors = ran(*command)
    assert code == 0, errors
    words = " ".join(text.split())
    assert "cells (1 of 2): training into" in words and "cards (2 of 2): training into" in words
    assert "2 task(s)" in words and words.endswith(f"next: cst-search predict {plan / 'bundle'} IMAGES")
    assert words.count("next:") == 1  # a run alone is no end
    bundle = Bundle(plan / "bundle")
    bundle.check()
    assert list(bundle.tasks) == ["cells", "cards"]
    written = {name: (plan / "runs" / "trial-0" / name / "weights.safetensors").read_bytes() for name in bundle.tasks}
    assert {name: (plan / "bundle" / f"{name}.safetensors").read_bytes() for name in bundle.tasks} == written

    # more storage lets one task have another point: the other is not trained again
    before = (plan / "runs" / "trial-0" / "cells" / "weights.safetensors").stat().st_mtime_ns
    command[command.index("9kB")] = "1MB"
    code, text, errors = ran(*command, "--json")
    assert code == 0 and "cells (1 of 2): trained before" in errors and "cards (2 of 2): training into" in errors
    assert (plan / "runs" / "trial-0" / "cells" / "weights.safetensors").stat().st_mtime_ns == before
    report, bundle = json.loads(text), Bundle(plan / "bundle")
    assert report["bundle"] == {"folder": str(plan / "bundle"), "total_bytes": bundle.total_bytes()}
    assert report["trained"]["cells"]["bytes"] == len(written["cells"])
    assert bundle.holds("cards", plan / "runs" / "trial-1" / "cards")
    assert set(report["trained"]["cards"]) >= {"run", "bytes", "val", "test"}
    bundle.check()


def test_a_run_of_another_recipe_is_not_taken_for_trained(real: tuple[Path, list[str]]) -> None:
    plan, command = real
    assert ran(*command)[0] == 0
    code, _, errors = ran(*command, "--set", "epochs=2")
    assert code == 2 and "holds the run of another recipe; choose another --output folder" in " ".join(errors.split())
    # a damaged file of the bundle is replaced, as its run is whole
    (plan / "bundle" / "cells.safetensors").write_bytes(b"x")
    assert ran(*command)[0] == 0
    Bundle(plan / "bundle").check()


def test_a_training_that_fails_is_named_after_the_others_and_runs_again(
    real: tuple[Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, command = real
    monkeypatch.setattr(train_module, "run_trial", failing := FailingOnce(train_module.run_trial))
    code, _, errors = ran(*command)
    assert code == 1 and failing.n == 2, errors
    assert "not packed, as training ended without a result: cells: no memory" in " ".join(errors.split())
    assert not (plan / "bundle").exists()
    code, text, _ = ran(*command)
    assert code == 0 and failing.n == 3 and "cards (2 of 2): trained before" in text
    assert list(Bundle(plan / "bundle").tasks) == ["cells", "cards"]


class FailingOnce:
    def __init__(self, run_trial: Callable[..., TrialResult]) -> None:
        self.run_trial, self.n = run_trial, 0

    def __call__(self, *arguments: Any, **options: Any) -> TrialResult:
        self.n += 1
        result = self.run_trial(*arguments, **options)
        return dataclasses.replace(result, outcome=Outcome.OOM, reason="no memory") if self.n == 1 else result


def test_nothing_is_trained_where_the_data_of_one_task_are_gone(
    tmp_path: Path, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]
) -> None:
    for name, folder in (("cells", tiny_folder), ("cards", tmp_path / "gone")):
        session = make_study(tmp_path, name, recipe=tiny_recipe(data=str(folder)).to_dict(), data=str(folder))
        run_one(session, scored(0.5), method="cst", cst__reduction=8, batch_size=2)
    code, _, errors = ran("allocate", "cells", "cards", "--budget-storage", "1MB", "--home", str(tmp_path), "--train",
                          "-o", str(tmp_path / "plan"))  # fmt: skip
    assert code == 2 and f"missing: {tmp_path / 'gone'} of cards" in " ".join(errors.split())
    assert not (tmp_path / "plan" / "runs").exists()
