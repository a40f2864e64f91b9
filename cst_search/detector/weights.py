"""Trained weights on disk: the trained tensors only, as safetensors, with the recipe and the hash of the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from cst_search.config.recipe import Recipe
from cst_search.detector.build import restored, trained_tensors
from cst_search.detector.trained_file import FORMAT, read_trained, weights_file, write_tensors


def save_trained(model: nn.Module, recipe: Recipe, class_names: tuple[str, ...], path: Path) -> None:
    """Write the trained tensors of a detector; recipe, classes and base hash go into the file's metadata."""
    metadata: dict[str, Any] = {
        "format": FORMAT,
        "recipe": json.dumps(recipe.to_dict()),
        "class_names": json.dumps(class_names),
        "base_hash": model.backbone.base_hash,  # type: ignore[union-attr]
    }
    write_tensors(trained_tensors(model), metadata, path)


class Trained(NamedTuple):
    """Trained detector in eval mode on the CPU; ``class_names[label - 1]`` is the name of a label."""

    model: nn.Module
    recipe: Recipe
    class_names: tuple[str, ...]


def load_trained(run: Path | str) -> Trained:
    """Load a trained detector from its folder or its weights file.

    Raises:
        ConfigError: not a weights file, another base than the one it was trained on, or tensors that do not fit.
    """
    file = read_trained(weights_file(Path(run)))
    return Trained(restored(file).eval(), file.recipe, file.class_names)
