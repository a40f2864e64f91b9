"""Runs as `cst-search train` leaves them, made within a moment: everything trained has moved away from its start."""

from __future__ import annotations

from pathlib import Path

import torch

from cst_search.config.recipe import Recipe
from cst_search.detector.build import build_detector, trained_tensors
from cst_search.detector.weights import save_trained

SHIPPED = {"weights": "demo-detector", "width": 0.5, "fpn_channels": 64, "head_convs": 2}  # starts as a whole detector
FROZEN = {"neck": "frozen", "head": "predictor"}


def write_run(folder: Path, recipe: Recipe, n_classes: int = 3) -> Path:
    """Write the run of a detector with classes a, b, c ...; another folder name gives other weights. Returns it."""
    model = build_detector(recipe, n_classes)
    torch.manual_seed(sum(map(ord, folder.name)))
    with torch.no_grad():
        for tensor in trained_tensors(model).values():
            if tensor.is_floating_point():  # a norm counts its batches, too
                tensor += (0.05 * tensor.abs().mean() + 1e-3) * torch.randn_like(tensor)
    save_trained(model, recipe, tuple("abcdefgh"[:n_classes]), folder / "weights.safetensors")
    return folder
