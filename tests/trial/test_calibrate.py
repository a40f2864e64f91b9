"""Calibration on a GPU that is made up: it finds the costs that the measurements have, and predictions use them.

No test runs it on a GPU.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from studies import run_cli

from cst_search.commands.budget_survey import Estimator
from cst_search.config.recipe import Recipe
from cst_search.errors import ConfigError, UserError
from cst_search.memory.estimate import worst_input
from cst_search.memory.gpu_costs import GENERIC, GpuCosts
from cst_search.memory.gpu_profile import VARIABLE, choose_profile, local_costs, read_profile, write_profile
from cst_search.memory.gpus import card_notes, costs_of, find_card
from cst_search.trial import calibrate as module
from cst_search.trial.calibrate import N_BOXES, N_CLASSES, calibrate, recipes, summary
from cst_search.trial.cost import predict

TRUE = GpuCosts(310_000_000, 402_000_000, 17_039_360, target="NVIDIA GeForce RTX 3060")


def made_up(factor: float = 1.0, source: str = "nvidia-smi") -> Callable[[Recipe], dict[str, Any]]:
    """A GPU with the costs TRUE whose allocator takes ``factor`` times the simulated bytes."""

    def measure(recipe: Recipe) -> dict[str, Any]:
        guess = predict(recipe, N_CLASSES, worst_input(recipe, max_boxes=N_BOXES), evaluates=False, gpu=TRUE)
        reserved = round(factor * guess.reserved_bytes)
        process = reserved + guess.device_bytes - guess.reserved_bytes
        return {
            "outcome": "complete", "device": TRUE.target, "torch": "2.14", "active_bytes": guess.active_bytes,
            "reserved_bytes": reserved, "process_bytes": process, "process_source": source,
        }  # fmt: skip

    return measure


def run(measure: Callable[[Recipe], dict[str, Any]], n: int = 12) -> Any:
    return calibrate(recipes()[::-1][:n], measure, TRUE.blas_workspace_bytes // 2, lambda line: None)


@pytest.fixture
def no_profile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "")  # so that what a test sets ends with it
    monkeypatch.setenv("CST_SEARCH_HOME", str(tmp_path))


def test_the_costs_of_a_gpu_are_found() -> None:
    profile, rows = run(made_up())
    assert replace(profile.costs, reserved_factor=1.0) == TRUE and profile.costs.reserved_factor == 1
    assert len(rows) == profile.n_configs == 12 and {row["multiplies"] for row in rows} == {True, False}
    assert profile.error == 0 and profile.error_before is not None and profile.error_before > 0.1
    assert "310 MB, with cuBLAS 402 MB" in summary(profile) and "by 0.0 % with these figures" in summary(profile)


def test_what_the_allocator_takes_more_is_a_factor() -> None:
    profile, _ = run(made_up(1.1))
    assert 1.05 < profile.costs.reserved_factor < 1.1  # drawn to 1
    assert profile.error is not None and profile.error < 0.05


def test_what_the_driver_does_not_say_stays_as_it_is() -> None:
    profile, _ = run(made_up(source="mem_get_info without context"), 2)
    assert profile.unmeasured == ("context", "context with cuBLAS") and profile.error is None
    assert profile.costs.context_bytes == GENERIC.context_bytes
    assert profile.costs.blas_workspace_bytes == TRUE.blas_workspace_bytes
    assert "not measured" in summary(profile)


def test_configurations_that_fail_are_left_out() -> None:
    good = made_up()

    def measure(recipe: Recipe) -> dict[str, Any]:
        return good(recipe) if recipe.detector == "fcos" else {"outcome": "oom", "reason": "no room"}

    profile, _ = run(measure)
    assert profile.n_configs == 3 and profile.unmeasured == ("context with cuBLAS",)
    with pytest.raises(UserError, match="of the last one: no room"):
        run(lambda _: {"outcome": "oom", "reason": "no room"}, 2)


def test_predictions_use_a_profile(no_profile: None, tmp_path: Path) -> None:
    recipe = Recipe(backbone="resnet18", image_size_px=128, max_size_px=128)
    before = json.loads(run_cli("estimate", "--recipe", "small", "--json").out)
    profile, rows = run(made_up())
    path = write_profile(profile, rows, tmp_path)
    assert read_profile(path) == profile and local_costs() == profile.costs
    after = json.loads(run_cli("estimate", "--recipe", "small", "--json").out)
    assert after["target_device"] == TRUE.target and after["breakdown"]["context"] == 310_000_000
    assert after["active_bytes"] == before["active_bytes"] and after["device_bytes"] < before["device_bytes"]
    searched = Estimator(recipe, 3, ((128, 128),), 5)
    assert searched({}).breakdown["context"] == searched.roughly({}).breakdown["context"] == 310_000_000
    own, other = find_card("RTX 3060 12GB"), find_card("RTX 3070")
    assert costs_of(own, profile.costs) == profile.costs and card_notes(own, "auto") == []
    assert costs_of(other, profile.costs).context_bytes == GENERIC.context_bytes and card_notes(other, "auto")


def test_a_search_chooses_the_profile_of_its_home(no_profile: None, tmp_path: Path) -> None:
    profile, rows = run(made_up(), 1)
    home = tmp_path / "other"
    write_profile(profile, rows, home)
    assert choose_profile(home, on_cluster=False) == profile and local_costs() == profile.costs
    assert choose_profile(home, on_cluster=True) is None and local_costs() is GENERIC
    assert choose_profile(tmp_path, on_cluster=False) is None and local_costs() is GENERIC


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"made": "today"}'])
def test_a_file_that_is_no_profile(no_profile: None, tmp_path: Path, text: str) -> None:
    (tmp_path / "gpu-profile.json").write_text(text)
    with pytest.raises(ConfigError, match="make it anew or delete it"):
        local_costs()


def test_without_a_gpu_it_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["calibrate"])
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(SystemExit) as ended:
        module.main()
    assert ended.value.code == 2 and "there is no GPU here to calibrate" in capsys.readouterr().err
