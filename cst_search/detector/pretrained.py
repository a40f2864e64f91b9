"""The tensors that a detector starts from: read from where the recipe's ``weights`` say, and put into the detector.

Weights hold a whole detector or its body alone. A whole one gives pyramid and heads too, except for the class layers:
these are made anew for the data's classes, and take over the rows of classes that the weights know by name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights

from cst_search.backbone.lean_layers import fix_statistics
from cst_search.backbone.resnet import BODY, FrozenNorm, fetch, fingerprint, load_body, read_body, read_tensors
from cst_search.config.recipe import COCO_DETECTORS, Recipe
from cst_search.detector.base import Detector
from cst_search.detector.class_rows import coco_labels, copy_rows, matching_labels, n_known_labels
from cst_search.detector.pyramid import Backbone
from cst_search.detector.trained_file import (
    TrainedFile,
    is_run,
    lineage,
    read_metadata,
    read_trained,
    weights_file,
    write_tensors,
)
from cst_search.errors import ConfigError

SHIPPED = Path(__file__).parent / "weights" / "demo-detector.safetensors"
# eps of FrozenBatchNorm2d: torchvision's own, and what its builders set (`overwrite_eps`) after loading COCO_V1
_EPS, _COCO_EPS = 1e-5, {"fasterrcnn": 0.0, "retinanet": 0.0}


class Start(NamedTuple):
    """Tensors that a detector starts from.

    Attributes:
        source: description for the user.
        tensors: tensors by torchvision's names; those of the body start with ``backbone.body.``, or have bare names if
            there are no others.
        labels: names of the labels that the class layers know, the background first; empty: unknown.
        norm_eps: eps of the body's frozen norms.
        batch_norm: True if the body was trained with BatchNorm2d, which rounds differently from FrozenBatchNorm2d.
        is_file: True for a user's own file, which may hold a detector of another architecture.
    """

    source: str
    tensors: Mapping[str, Tensor]
    labels: tuple[str, ...] = ()
    norm_eps: float = _EPS
    batch_norm: bool = False
    is_file: bool = False

    @property
    def outside(self) -> dict[str, Tensor]:
        """Tensors of pyramid and heads; empty if there is only a body."""
        if not any(name.startswith(BODY) for name in self.tensors):
            return {}
        return {name: value for name, value in self.tensors.items() if not name.startswith(BODY)}


def coco_weights(detector: str) -> WeightsEnum:
    """Return torchvision's entry for the weights of a detector trained on COCO."""
    weights: WeightsEnum = get_model_weights(COCO_DETECTORS[detector])["COCO_V1"]
    return weights


def read_start(recipe: Recipe, of_run: Callable[[TrainedFile], Start]) -> Start | None:
    """Read the weights of a recipe; None: it starts from random numbers.

    Args:
        of_run: makes the start from a file of `cst-search train`.

    Raises:
        ConfigError: they are missing, unreadable, or could not be fetched.
    """
    kind = recipe.weights_kind
    if kind == "none":
        return None
    if kind == "COCO":
        return _coco(recipe.detector, fetch(coco_weights(recipe.detector), kind))
    if kind == "demo-detector":
        return _whole("the shipped detector", read_tensors(SHIPPED), _labels_in(SHIPPED))
    if kind in ("IMAGENET", "demo"):
        source = f"torchvision's {recipe.backbone}" if kind == "IMAGENET" else "the shipped ResNet"
        return Start(source, read_body(recipe.backbone, kind))
    return _of_file(Path(kind).expanduser(), recipe, of_run)


def fetch_weights(recipe: Recipe) -> None:
    """Download the torchvision weights that a recipe needs, unless they are there already. Raises ConfigError."""
    for each, _ in lineage(recipe):
        if each.weights_kind == "COCO":
            fetch(coco_weights(each.detector), "COCO")
        elif each.weights_kind == "IMAGENET":
            read_body(each.backbone, "IMAGENET")


def _of_file(path: Path, recipe: Recipe, of_run: Callable[[TrainedFile], Start]) -> Start:
    if path.is_dir():
        path = weights_file(path)
    lineage(recipe)  # refuses a run that was trained from itself
    if is_run(path):
        return of_run(read_trained(path))._replace(is_file=True)
    tensors = read_tensors(path)
    labels = _labels_in(path) if path.suffix == ".safetensors" else ()
    coco = recipe.coco_detector and _is_download(path, recipe.detector)
    start = _coco(recipe.detector, tensors) if coco else _whole(str(path), tensors, labels)
    return _as_saved(start, path)._replace(is_file=True)


def _coco(detector: str, tensors: Mapping[str, Tensor]) -> Start:
    return Start(f"torchvision's {COCO_DETECTORS[detector]}", tensors, coco_labels(), _COCO_EPS.get(detector, _EPS))


def save_start(start: Start, path: Path) -> None:
    """Write a start to a safetensors file that, as ``weights`` of a recipe, gives the same start."""
    metadata = {"norm_eps": repr(start.norm_eps), "batch_norm": str(start.batch_norm)}
    if start.labels:
        metadata["class_names"] = json.dumps(start.labels[1:])
    write_tensors(start.tensors, metadata, path)


def start_identity(start: Start) -> str:
    """Return 16 hex digits over everything that a start gives to a detector."""
    content = (fingerprint(start.tensors), start.labels, start.norm_eps, start.batch_norm)
    return hashlib.sha256(repr(content).encode()).hexdigest()[:16]


def _whole(source: str, tensors: Mapping[str, Tensor], labels: tuple[str, ...]) -> Start:
    batch_norm = any(name.startswith(BODY) and name.endswith("num_batches_tracked") for name in tensors)
    return Start(source, tensors, labels, batch_norm=batch_norm)


def _is_download(path: Path, detector: str) -> bool:
    """Return whether a file is torchvision's COCO_V1: the URL ends in 8 digits of the file's SHA-256."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return coco_weights(detector).url.endswith(f"-{digest[:8]}.pth")


def _as_saved(start: Start, path: Path) -> Start:
    """Return a start with what `save_start` noted of its norms; unchanged for other files."""
    metadata = read_metadata(path) if path.suffix == ".safetensors" else {}
    if "norm_eps" not in metadata:
        return start
    return start._replace(norm_eps=float(metadata["norm_eps"]), batch_norm=metadata.get("batch_norm") == "True")


def _labels_in(path: Path) -> tuple[str, ...]:
    """Return the label names of a safetensors file from ``class_names`` in its metadata, a JSON list; empty: none."""
    text = read_metadata(path).get("class_names") if path.is_file() else None
    if text is None:
        return ()
    try:
        names = json.loads(text)
        if not isinstance(names, list):
            raise ValueError("no list")
    except ValueError as error:
        raise ConfigError(f"class_names in the metadata of {str(path)!r} must be a JSON list: {error}") from error
    return ("", *map(str, names))


# --- into the detector -----------------------------------------------------------------------------------------------


class Labels(NamedTuple):
    """Number of labels of a detector, background included, and the names of 1, 2, ...; empty: unknown."""

    n: int
    names: tuple[str, ...] = ()


def load_start(model: nn.Module, detector: Detector, recipe: Recipe, start: Start | None, labels: Labels) -> None:
    """Put weights into a freshly built detector; its backbone gets the hashes, and ``start``, a line for the user.

    Raises:
        ConfigError: they do not fit, or hold a body alone where the recipe needs neck and heads.
    """
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    loaded: list[str] = []
    backbone.start = "weights none: the whole detector starts from random numbers"
    if start is not None:
        load_body(backbone.body, start.tensors, recipe.weights)
        for module in backbone.body.modules():
            if isinstance(module, FrozenNorm):
                module.eps, module.as_batch_norm = start.norm_eps, start.batch_norm
        loaded = _load_outside(model, detector, recipe, start, labels)
    backbone.starts_trained = bool(loaded)
    fix_norms(model, recipe, whole=backbone.starts_trained)
    backbone.body_hash = backbone.base_hash = fingerprint(backbone.body)
    if (recipe.neck, recipe.head) != ("train", "train"):  # then training leaves some of them as they are
        state = model.state_dict()
        of_base = {name: value for name, value in state.items() if name.startswith(BODY)}
        backbone.base_hash = fingerprint(of_base | {name: state[name] for name in loaded})


def fix_norms(model: nn.Module, recipe: Recipe, whole: bool) -> None:
    """Keep the statistics of norms that come from weights; ``whole``: those of pyramid and heads too."""
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    if whole:
        fix_statistics(model)
    elif recipe.weights_kind != "none":
        fix_statistics(backbone.body)


def _load_outside(model: nn.Module, detector: Detector, recipe: Recipe, start: Start, labels: Labels) -> list[str]:
    """Load pyramid and heads if the weights have them; return the names of the tensors that equal the weights."""
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    given = start.outside
    own = {name: value for name, value in model.state_dict().items() if not name.startswith(BODY)}
    by_class = {f"{layer.name}.{kind}": layer for layer in detector.class_layers for kind in ("weight", "bias")}
    by_class = {name: layer for name, layer in by_class.items() if name in own}
    fault = _misfit(own, given, by_class.keys(), labels.n) if given else "they hold a body alone"
    if fault is not None:
        backbone.start = _body_alone(recipe, start, fault)
        return []
    plain = [name for name in own if name in given and name not in by_class]
    known = _known_labels(own, given, start, by_class.keys(), labels.n)
    pairs = matching_labels(labels.names, known) if recipe.class_init == "match" else []
    with torch.no_grad():
        for name in plain:
            own[name].copy_(given[name])
        for name, layer in by_class.items():
            copy_rows(own[name], given[name], layer.per_label, labels.n, pairs)
    backbone.start = f"{_named(recipe, start)}, a whole detector; {_rows(pairs, labels)}"
    return plain


def _misfit(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], by_class: Collection[str], n_labels: int
) -> str | None:
    """Return why tensors of pyramid and heads are not those of this detector; None: they are."""

    def fits(name: str) -> bool:
        if name not in by_class:
            return own[name].shape == given[name].shape
        rows = n_known_labels(len(own[name]), len(given[name]), n_labels)
        return rows is not None and own[name].shape[1:] == given[name].shape[1:]

    def counted(names: Collection[str]) -> list[str]:
        return sorted(name for name in names if not name.endswith("num_batches_tracked"))

    missing, unknown = counted(own.keys() - given.keys()), counted(given.keys() - own.keys())
    wrong = [name for name in own if name in given and not fits(name)]
    if not (missing or unknown or wrong):
        return None
    return (
        f"their pyramid and heads are another detector's: {len(missing)} tensors are missing (first: {missing[:2]}), "
        f"{len(unknown)} unknown (first: {unknown[:2]}), {len(wrong)} have another shape (first: {wrong[:2]})"
    )


def _body_alone(recipe: Recipe, start: Start, fault: str) -> str:
    """Return the line for weights of which the body alone is used. Raises ConfigError if the recipe needs more."""
    parts = [f"{part} {getattr(recipe, part)}" for part in ("neck", "head") if getattr(recipe, part) != "train"]
    if parts:
        raise ConfigError(
            f"weights {recipe.weights!r}: {fault}; {' and '.join(parts)} would leave random layers untrained: "
            f"give weights of a whole {recipe.detector} of this architecture, or set neck and head to train"
        )
    if start.outside and not start.is_file:
        raise ConfigError(f"weights {recipe.weights!r} do not fit {recipe.detector}: {fault}; check the architecture")
    reason = f" ({fault})" if start.outside else ""
    return f"{_named(recipe, start)}, the body alone{reason}; neck and heads start random"


def _known_labels(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], start: Start, by_class: Collection[str], n_labels: int
) -> tuple[str, ...]:
    """Return the names of the labels in the weights. As many labels as COCO's, without names, are COCO's."""
    counts = {n_known_labels(len(own[name]), len(given[name]), n_labels) for name in by_class}
    if not counts:
        return ()
    if len(counts) > 1 or (start.labels and counts != {len(start.labels)}):
        raise ConfigError(
            f"{start.source}: class layers are of {sorted(n or 0 for n in counts)} labels with the background, "
            f"class_names name {len(start.labels)}; the two must agree"
        )
    (n,) = counts
    assert n is not None
    return start.labels or (coco_labels() if n == len(coco_labels()) else ("",) * n)


def _named(recipe: Recipe, start: Start) -> str:
    if start.is_file:
        return f"weights: {start.source}"
    meant = "" if recipe.weights_kind == recipe.weights else f" ({recipe.weights_kind})"
    return f"weights {recipe.weights}{meant}: {start.source}"


def _rows(pairs: list[tuple[int, int]], labels: Labels) -> str:
    names = [labels.names[label - 1] for label, _ in pairs if label]
    if not names:
        return "new class layers"
    shown = ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
    return f"its rows for {len(names)} of {labels.n - 1} classes ({shown})"
