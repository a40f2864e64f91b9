"""Saved weights: trained tensors and nothing else, which come back to the same predictions on the same base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import random_body_state
from safetensors import safe_open
from safetensors.torch import save_file
from test_detector import Make, assert_same_detections, batches, speak_up, starts, train

from cst_search.backbone import Body, load_weights
from cst_search.data import DetectionData
from cst_search.detector import build_detector, trained_tensors
from cst_search.errors import ConfigError
from cst_search.weights import load_trained, save_trained

CLASSES = ("square", "disc", "bar")


@pytest.mark.parametrize("base", ["file", "none"])
@starts
def test_saved_and_loaded_predict_the_same(
    tiny_recipe: Make,
    tiny_data: DetectionData,
    tmp_path: Path,
    detector: str,
    base: str,
    method: str,
    options: dict[str, Any],
) -> None:
    if base == "none" and detector != "fcos":
        pytest.skip("the body is the same")
    weights = {"weights": "none"} if base == "none" else {}
    recipe = tiny_recipe(detector=detector, method=method, options=options, **weights)
    model = build_detector(recipe, 3)
    train(model, batches(tiny_data))
    speak_up(model)
    save_trained(model, recipe, CLASSES, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    statistics = {name for name, _ in model.named_buffers() if "running_" in name or "num_batches" in name}
    assert trainable <= names == set(trained_tensors(model)) and names - trainable <= statistics
    assert metadata["base_hash"] == base_hash(recipe)  # of the body before the method changed it
    loaded, again, classes = load_trained(tmp_path / "w.safetensors")
    assert again == recipe and classes == CLASSES
    assert_same_detections(loaded, model.eval(), more_than=0)
    state = loaded.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def base_hash(recipe: Any) -> str:
    torch.manual_seed(recipe.seed)
    body = Body(recipe.backbone, recipe.width, frozen_norm=recipe.weights != "none")
    return load_weights(body, recipe.backbone, recipe.weights)


@pytest.mark.parametrize("method", ["norm", "conv_lora", "cst"])
def test_another_base_is_refused(tiny_recipe: Make, tmp_path: Path, method: str) -> None:
    save_file(random_body_state("resnet18", 0.125, seed=1), tmp_path / "base.safetensors")
    recipe = tiny_recipe(method=method, weights=str(tmp_path / "base.safetensors"))
    save_trained(build_detector(recipe, 3), recipe, CLASSES, tmp_path / "w.safetensors")
    save_file(random_body_state("resnet18", 0.125, seed=2), tmp_path / "base.safetensors")
    with pytest.raises(ConfigError, match="was trained on a base with hash"):
        load_trained(tmp_path / "w.safetensors")
