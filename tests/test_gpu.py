"""What only a GPU shows. Skipped where there is none. A trial's libraries are enough, see trial_fixtures.py."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.data.dataset import DetectionData
from cst_search.data.disk_cache import Cache
from cst_search.memory.estimate import CONTEXT_BYTES, InputShape
from cst_search.petl import METHODS
from cst_search.trial import feature_cache as module
from cst_search.trial.cost import predict
from cst_search.trial.device import choose_device
from cst_search.trial.feature_cache import Decision
from cst_search.trial.measure import measure, synthetic_batch
from cst_search.trial.run import run_trial

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

Make = Callable[..., Recipe]
PAGE = 20 * 2**20  # by which segments grow, and the bound may be passed


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("method", sorted(METHODS))
def test_a_trial_of_every_method(tiny_recipe: Make, tiny_data: DetectionData, method: str, precision: str) -> None:
    result = run_trial(tiny_recipe(method=method, precision=precision), tiny_data, device="cuda")
    assert (result.outcome, result.reason) == ("complete", None)
    assert result.device == torch.cuda.get_device_name()
    assert result.active_bytes and result.reserved_bytes and result.device_bytes
    assert result.active_bytes <= result.reserved_bytes == result.device_bytes - CONTEXT_BYTES


@pytest.mark.parametrize("detector", DETECTORS)
def test_the_losses_are_those_of_a_cpu(tiny_recipe: Make, tiny_data: DetectionData, detector: str) -> None:
    recipe = tiny_recipe(detector=detector, precision="fp32", batch_size=8, lr=1e-6)
    on_cpu, on_gpu = (run_trial(recipe, tiny_data, device=device).history[0] for device in ("cpu", "cuda"))
    # of Faster R-CNN the proposals that are drawn for the loss differ between devices
    assert on_gpu["loss"] == pytest.approx(on_cpu["loss"], rel=0.05 if detector.startswith("fasterrcnn") else 1e-3)


def test_a_trial_that_is_refused_memory_leaves_nothing_behind(tiny_recipe: Make, tiny_data: DetectionData) -> None:
    recipe = tiny_recipe(method="full", image_size_px=256, max_size_px=384, batch_size=8)
    needed = run_trial(recipe, tiny_data, device="cuda").reserved_bytes
    assert needed is not None
    refused = run_trial(recipe, tiny_data, device="cuda", memory_limit_bytes=needed // 2 + CONTEXT_BYTES)
    assert refused.outcome == "oom" and refused.reason and "out of memory" in refused.reason
    assert refused.limit_bytes == needed // 2 and refused.asked_bytes and refused.stage
    assert refused.reserved_bytes is not None and refused.reserved_bytes < needed // 2 + PAGE
    assert (
        run_trial(recipe, tiny_data, device="cuda", memory_limit_bytes=needed + PAGE + CONTEXT_BYTES).outcome
        == "complete"
    )


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_read_feature_maps_give_the_losses_of_computed_ones(
    tiny_recipe: Make, tiny_data: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.setattr(module, "decide", lambda *a: Decision(True, "features kept: in a test"))
    monkeypatch.setattr(module.FrozenFeatures, "_look_again", lambda self: None)
    recipe = tiny_recipe(precision=precision, epochs=3, eval_every=1, lr=1e-3)

    def losses(cache: Cache | None) -> list[float]:
        result = run_trial(recipe, tiny_data, device="cuda", cache=cache)
        assert result.outcome == "complete", result.reason
        return [entry["loss"] for entry in result.history]

    without = losses(None)
    cache = Cache(tmp_path, 10**9)
    losses(cache)
    assert list(tmp_path.glob("features-*.slots"))
    read = losses(cache)
    assert read == pytest.approx(without, rel=1e-3 if precision == "fp32" else 1e-2)


def test_a_trial_goes_on_from_its_checkpoint(tiny_recipe: Make, tiny_data: DetectionData, tmp_path: Path) -> None:
    recipe = tiny_recipe(epochs=4, precision="fp32")
    whole = run_trial(recipe, tiny_data, device="cuda")
    path = tmp_path / "trial.pt"
    cut: dict[str, Any] = {"rungs": (2,), "checkpoint": path}
    run_trial(recipe, tiny_data, device="cuda", report=lambda entry: entry["epoch"] < 2, **cut)
    resumed = run_trial(recipe, tiny_data, device="cuda", **cut)
    assert (resumed.resumed_epochs, resumed.epochs, resumed.notes) == (2, 4, [])
    assert [e["loss"] for e in resumed.history] == pytest.approx([e["loss"] for e in whole.history], rel=1e-2)


@pytest.mark.parametrize("method", ["cst", "full", "conv_adapter"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_takes_what_is_predicted(method: str, precision: str) -> None:
    """And does with no more. The context is not compared: other tests' kernels are in this process too."""
    recipe = Recipe(method=method, precision=precision, image_size_px=480, max_size_px=640, batch_size=2)
    shape = InputShape(480, 640, 20)
    guess = predict(recipe, 80, shape, evaluates=False)
    device = choose_device("cuda")
    torch.cuda.empty_cache()
    found = measure(
        recipe, 80, synthetic_batch(recipe, shape, 80), device=device, read_weights=False,
        memory_limit_bytes=guess.device_bytes,
    )  # fmt: skip
    assert (found.outcome, found.memory_source) == ("complete", "measured"), found.reason
    assert found.active_bytes == pytest.approx(guess.active_bytes, rel=0.1)


def test_trials_share_one_gpu(tiny_recipe: Make, tiny_folder: Path, tmp_path: Path) -> None:
    for library in ("ray", "optuna", "mlflow", "pydantic"):
        pytest.importorskip(library)
    from studies import run_cli

    from cst_search.config.loading import write_yaml
    from cst_search.study.study import Study

    recipe, space = tmp_path / "recipe.yaml", tmp_path / "space.yaml"
    write_yaml(recipe, dataclasses.replace(tiny_recipe(), search_epochs=2).to_dict(), "test")
    write_yaml(space, {"methods": ["cst", "head"], "shared": {"lr": {"float": [1e-3, 2e-2], "log": True}}}, "test")
    ran = run_cli(
        "launch", "--data", tiny_folder, "--recipe", recipe, "--space", space, "--home", tmp_path, "--study", "s",
        "--budget-mem", "2GB", "--trials", 4, "--workers", 2,
    )  # fmt: skip
    assert ran.code == 0, ran.err
    assert "2 worker(s) on cuda" in ran.out
    trials = Study.open(f"sqlite:///{tmp_path / 'studies.db'}", "s").info().trials
    assert {record.memory_source for record in trials if record.state == "complete"} == {"measured"}
    assert all((record.device_bytes or 0) <= 2e9 for record in trials)
    front = json.loads(run_cli("front", "s", "--home", tmp_path, "--json").out)
    assert front["front"]
