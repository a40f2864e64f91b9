"""Trained weights on disk: the trained tensors only, as safetensors, with the recipe and the hash of the base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from cst_search.config.recipe import Recipe
from cst_search.detector.build import build_detector, trained_tensors
from cst_search.errors import ConfigError


def save_trained(model: nn.Module, recipe: Recipe, class_names: tuple[str, ...], path: Path) -> None:
    """Write the trained tensors of a detector; recipe, classes and base hash go into the file's metadata."""
    from safetensors.torch import save_file  # imported here: not needed by trials that save nothing

    tensors = {name: value.detach().cpu().contiguous() for name, value in trained_tensors(model).items()}
    metadata: dict[str, Any] = {
        "format": "cst-search/1",
        "recipe": json.dumps(recipe.to_dict()),
        "class_names": json.dumps(class_names),
        "base_hash": model.backbone.base_hash,  # type: ignore[union-attr]
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file(tensors, part, metadata=metadata)
    part.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files readable only by their owner
    part.replace(path)


class Trained(NamedTuple):
    """Trained detector in eval mode on the CPU; ``class_names[label - 1]`` is the name of a label."""

    model: nn.Module
    recipe: Recipe
    class_names: tuple[str, ...]


def weights_file(run: Path) -> Path:
    """Return the weights file in a folder written by `cst-search train`, or the given weights file itself.

    Raises ConfigError if there is none.
    """
    path = run / "weights.safetensors" if run.is_dir() else run
    if not path.is_file():
        raise ConfigError(f"{run} is neither a folder written by `cst-search train` nor its weights file")
    return path


def load_trained(run: Path | str) -> Trained:
    """Load a trained detector from its folder or its weights file.

    Raises:
        ConfigError: not a weights file, another base than the one it was trained on, or tensors that do not fit.
    """
    from safetensors import SafetensorError, safe_open

    path = weights_file(Path(run))

    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, Any] = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"trained weights {str(path)!r} cannot be read: {error}") from error
    if metadata.get("format") != "cst-search/1":
        raise ConfigError(f"{str(path)!r} was not written by `cst-search train`: its metadata has no cst-search format")
    try:
        recipe = Recipe.from_dict(json.loads(metadata["recipe"]))
        class_names = tuple(map(str, json.loads(metadata["class_names"])))
        trained_on = metadata["base_hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the metadata of {str(path)!r} must hold recipe, class_names and base_hash as this version writes them "
            f"({type(error).__name__}: {error}); was it written by a later one?"
        ) from error
    model = build_detector(recipe, len(class_names))
    base_hash = model.backbone.base_hash  # type: ignore[union-attr]
    # a random base (`weights: none`) is drawn again from the recipe's seed; the hash tells whether it is the same
    if base_hash != trained_on:
        raise ConfigError(
            f"{str(path)!r} was trained on a base with hash {trained_on}, but weights {recipe.weights!r} "
            f"give {base_hash}; put the same weights in place"
        )
    own = trained_tensors(model)
    missing, extra = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    wrong = [name for name in own.keys() & tensors.keys() if own[name].shape != tensors[name].shape]
    if missing or extra or wrong:
        raise ConfigError(
            f"{str(path)!r} does not fit its recipe: missing {missing[:3]}, unknown {extra[:3]}, shape {wrong[:3]}"
        )
    with torch.no_grad():
        for name, value in own.items():
            value.copy_(tensors[name])
    return Trained(model.eval(), recipe, class_names)
