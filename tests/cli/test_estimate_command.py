"""What `estimate` prints: the table, what fits, cards, methods, tasks."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from studies import FakeEstimate, run_cli

from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.petl import METHODS
from cst_search.trial import cost


def test_estimate(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> None:
    write_yaml(tmp_path / "mine.yaml", tiny_recipe(method="cst").to_dict(), "test")

    def estimate(*more: Any) -> dict[str, Any]:
        ran = run_cli("estimate", "--recipe", tmp_path / "mine.yaml", "--classes", 3, "--json", *more)
        assert ran.code == 0, ran
        return json.loads(ran.out)

    found = estimate("--set", "cst.reduction=4", "--set", "batch_size=4")
    assert list(found) == [
        "config", "device_bytes", "working_bytes", "reserved_bytes", "active_bytes", "trainable_params",
        "petl_params", "delta_bytes", "inference_bytes", "flops", "marginal_flops", "breakdown", "target_device",
    ]  # fmt: skip
    assert {"method": "cst", "cst.reduction": 4, "batch_size": 4}.items() <= found["config"].items()
    assert 0 < found["active_bytes"] <= found["reserved_bytes"] <= found["device_bytes"]
    assert sum(found["breakdown"].values()) == found["device_bytes"]
    assert found["working_bytes"] == found["device_bytes"] - found["breakdown"]["context"]
    assert 0 < found["petl_params"] < found["trainable_params"]
    assert estimate("--set", "batch_size=16")["device_bytes"] > found["device_bytes"]
    text = run_cli("estimate", "--recipe", tmp_path / "mine.yaml")
    assert text.code == 0 and "device memory" in text.out and "trainable parameters" in text.out
    assert "CUDA context (fixed cost)" in text.out and "working memory" in text.out


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe], int]:
    """Device bytes by a formula instead of a trace: 1 GB, and 1 GB for every million pixels of the batch; `full` 4."""

    def needed(recipe: Recipe) -> int:
        pixels = recipe.batch_size * recipe.image_size_px * recipe.max_size_px
        return 10**9 + 1000 * pixels * (4 if recipe.method == "full" else 1)

    def predict(recipe: Recipe, n_classes: int, shape: Any, gpu: Any) -> FakeEstimate:
        n = needed(recipe)
        parts = {"weights": 10**8, "rest_of_it": n - 11 * 10**8, "context": 10**9}
        return FakeEstimate(n, trainable_params=1000, reserved_bytes=n - 10, active_bytes=n - 20, breakdown=parts)

    monkeypatch.setattr(cost, "predict", predict)
    return needed


SQUARE = ("estimate", "--recipe", "small", "--set", "image_size_px=1000", "--set", "max_size_px=1000")  # batch 4


def test_estimate_is_a_table_with_a_bar_for_each_part(formula: Callable[[Recipe], int]) -> None:
    ran = run_cli(*SQUARE)
    lines = {line.split("│")[1].strip(): line for line in ran.out.splitlines() if line.count("│") > 3}
    assert list(lines) == [
        "weights",
        "rest of it",
        "CUDA context (fixed cost)",
        "active memory",
        "reserved memory",
        "working memory",
        "device memory",
    ]
    assert [part in lines["weights"] for part in ("100 MB", "2 %")] == [True, True]
    assert lines["rest of it"].count("█") > 20 > lines["weights"].count("█")
    assert "5 GB" in lines["device memory"] and "What fits" not in ran.out


@pytest.mark.parametrize("device", [(), ("--device", "A100 40GB")])
def test_estimate_fit(formula: Callable[[Recipe], int], device: tuple[str, ...]) -> None:
    content = json.loads(run_cli(*SQUARE, "--fit", "6GB", *device, "--json").out)
    assert list(content)[-1] == "fit" and "compare" not in content
    fit = content["fit"]
    assert set(fit) == {"budget_bytes", "device", "recipe", "bounds", "methods", "cheapest", "smaller_network"}
    assert fit["budget_bytes"] == 6 * 10**9
    assert (fit["device"] and fit["device"]["name"]) == (device[1] if device else None)
    assert fit["recipe"] == {"batch_size": 4, "image_size_px": 1000, "max_size_px": 1000}
    assert fit["bounds"] == {"batch_size": 256, "image_size_px": 2048}
    methods = {row["method"]: row for row in fit["methods"]}
    assert list(methods) == list(METHODS)
    assert methods["head"] == {
        "method": "head", "device_bytes": 5 * 10**9, "batch_1_bytes": 2 * 10**9, "fits": True, "batch_size": 5,
        "image_size_px": 1088, "image_size_px_batch_1": 2048, "changes": [],
    }  # fmt: skip
    assert (methods["full"]["fits"], methods["full"]["batch_size"]) == (False, 1)
    (change,) = methods["full"]["changes"]
    assert change == {"settings": {"batch_size": 1, "accumulate": 4}, "device_bytes": 5 * 10**9}
    text = run_cli(*SQUARE, "--fit", "6GB", *device)
    assert text.code == 0 and "What fits in" in text.out and "83 % used, 1 GB left" in text.out
    assert "batch_size=1 accumulate=4 (5 GB)" in text.out and "2048+ px" in text.out


def test_estimate_where_nothing_fits(formula: Callable[[Recipe], int]) -> None:
    ran = run_cli(*SQUARE, "--fit", "1.5GB")
    assert ran.code == 0  # that is an answer too
    assert "too large by 3.5 GB" in ran.out
    assert "no method fits at batch 1 and 1000 px; the one that needs least, cst, needs 2 GB" in ran.out
    assert "batch_size=1 image_size_px=704 max_size_px=704 (1.5 GB)" in ran.out


def test_estimate_for_a_card(formula: Callable[[Recipe], int]) -> None:
    device = json.loads(run_cli(*SQUARE, "--device", "jetson orin nano", "--json").out)["fit"]["device"]
    assert device["name"] == "Jetson Orin Nano 8GB" and device["usable_bytes"] < device["memory_bytes"] == 2**33
    text = run_cli(*SQUARE, "--device", "jetson orin nano")
    assert "What fits in the 7.91 GB of Jetson Orin Nano 8GB" in text.out and "shared with the CPU" in text.out
    assert any("unmeasured on Ampere" in note for note in device["notes"]) and "unmeasured on Ampere" in text.out


def test_estimate_compare(formula: Callable[[Recipe], int]) -> None:
    content = json.loads(run_cli(*SQUARE, "--compare", "head,full", "--json").out)
    assert "fit" not in content
    head, full = content["compare"]
    assert head == {
        "method": "head", "device_bytes": 5 * 10**9, "reserved_bytes": 5 * 10**9 - 10, "active_bytes": 5 * 10**9 - 20,
        "trainable_params": 1000, "petl_params": 10, "device_ratio": 5 / 17,
        "active_ratio": (5 * 10**9 - 20) / (17 * 10**9 - 20), "working_bytes": 4 * 10**9, "working_ratio": 4 / 16,
        "trainable_ratio": 1.0, "saved_bytes": 4000,
    }  # fmt: skip
    assert (full["method"], full["device_ratio"]) == ("full", 1.0)
    text = run_cli(*SQUARE, "--compare", "head,full")
    assert text.code == 0 and "29 %" in text.out and "100 %" in text.out
    assert "working" in text.out and "25 %" in text.out


def test_estimate_tasks() -> None:
    content = json.loads(run_cli(*SQUARE, "--tasks", "1,5", "--json").out)
    own, adapters, whole = content["tasks"]
    assert [(row["kind"], row["method"]) for row in content["tasks"]] == [
        ("one base", "cst"), ("one base", "conv_lora"), ("whole", None),
    ]  # fmt: skip
    for row in (own, adapters, whole):
        assert [cost["n_tasks"] for cost in row["costs"]] == [1, 5]
    one, five = own["costs"]
    assert five["flops"] - one["flops"] == 4 * content["marginal_flops"] < 4 * content["flops"]
    assert five["storage_bytes"] - one["storage_bytes"] == 4 * content["delta_bytes"]
    one, five = whole["costs"]
    assert five["flops"] == 5 * one["flops"] and five["storage_bytes"] == 5 * one["storage_bytes"]
    assert adapters["costs"][1]["flops"] == 5 * adapters["costs"][0]["flops"]  # they enter the body

    text = run_cli(*SQUARE, "--tasks", "1,5").out
    assert "cst, one base" in text and "merged adapters" in text and "GFLOP" in text
    assert "tasks" not in json.loads(run_cli(*SQUARE, "--json").out)


@pytest.mark.parametrize("words", [("--compare",), ("--compare", "--json"), ("--compare=all",), ("--compare", "all")])
def test_compare_without_a_list_means_all_methods(formula: Callable[[Recipe], int], words: tuple[str, ...]) -> None:
    before = run_cli("estimate", "--recipe", "small", *words, *(() if "--json" in words else ("--json",)))
    after = run_cli("estimate", "--json", "--recipe", "small", *words)
    assert before == after
    assert [row["method"] for row in json.loads(before.out)["compare"]] == list(METHODS)
