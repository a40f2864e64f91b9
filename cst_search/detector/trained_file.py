"""The file that `cst-search train` writes: trained tensors, and in its metadata recipe, classes and the base's hash."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cst_search.config.recipe import WEIGHT_NAMES, Recipe
from cst_search.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor

FORMAT = "cst-search/1"


WEIGHTS = "weights.safetensors"  # in the folder of a run


class TrainedFile(NamedTuple):
    """Contents of a file of trained weights.

    Attributes:
        tensors: the trained ones, by their names in the detector.
        class_names: ``class_names[label - 1]`` is the name of a label.
        base_hash: `detector.pyramid.Backbone.base_hash` of the detector that was trained.
    """

    path: Path
    tensors: dict[str, Tensor]
    recipe: Recipe
    class_names: tuple[str, ...]
    base_hash: str


def weights_file(run: Path) -> Path:
    """Return the weights file in a folder written by `cst-search train`, or the given weights file itself.

    Raises ConfigError if there is none.
    """
    path = run / WEIGHTS if run.is_dir() else run
    if not path.is_file():
        raise ConfigError(f"{run} is neither a folder written by `cst-search train` nor its weights file")
    return path


def read_metadata(path: Path) -> dict[str, str]:
    """Return the metadata of a safetensors file. Raises ConfigError if it cannot be read."""
    from safetensors import SafetensorError, safe_open  # imported here: not needed by trials that read no file

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"trained weights {str(path)!r} cannot be read: {error}") from error


def write_tensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str], path: Path) -> None:
    """Write tensors and text to a safetensors file, which appears when it is complete."""
    from safetensors.torch import save_file  # imported here: not needed by trials that save nothing

    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, part, dict(metadata))
    part.chmod(path.parent.stat().st_mode & 0o666)  # safetensors makes files readable only by their owner
    part.replace(path)


def read_trained(path: Path) -> TrainedFile:
    """Read a weights file of `cst-search train`. Raises ConfigError if it is none."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    metadata: dict[str, Any] = read_metadata(path)
    if metadata.get("format") != FORMAT:
        raise ConfigError(f"{str(path)!r} was not written by `cst-search train`: its metadata has no cst-search format")
    try:
        recipe = _recipe_in(metadata)
        class_names = tuple(map(str, json.loads(metadata["class_names"])))
        trained_on = metadata["base_hash"]
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"the metadata of {str(path)!r} must hold recipe, class_names and base_hash as this version writes them "
            f"({type(error).__name__}: {error}); was it written by a later one?"
        ) from error
    try:
        return TrainedFile(path, load_file(path), recipe, class_names, trained_on)
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"trained weights {str(path)!r} cannot be read: {error}") from error


def _recipe_in(metadata: dict[str, Any]) -> Recipe:
    return Recipe.from_dict(json.loads(metadata["recipe"]))


def lineage(recipe: Recipe) -> list[tuple[Recipe, Path | None]]:
    """Return a recipe, the one of the run that it starts from, and so on, each with the file of its weights.

    The file is None where the recipe names its weights. A file that does not exist or is no run ends the list.

    Raises:
        ConfigError: a run starts from itself.
    """
    found: list[tuple[Recipe, Path | None]] = []
    while recipe.weights not in WEIGHT_NAMES:
        path = Path(recipe.weights).expanduser()
        path = path / WEIGHTS if path.is_dir() else path
        if any(path.absolute() == earlier.absolute() for _, earlier in found if earlier):
            raise ConfigError(f"weights {str(path)!r} were trained from themselves, their metadata says")
        found.append((recipe, path))
        if not is_run(path):
            return found
        recipe = _recipe_in(read_metadata(path))
    return [*found, (recipe, None)]


def is_run(path: Path) -> bool:
    """Return whether a file was written by `cst-search train`; one that cannot be read was not."""
    try:
        return path.suffix == ".safetensors" and path.is_file() and read_metadata(path).get("format") == FORMAT
    except ConfigError:
        return False
