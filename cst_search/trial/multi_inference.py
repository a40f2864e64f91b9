"""Detect objects with several trained detectors at once: one pass through each body that they share.

    detectors = MultiPredictor()
    detectors.add("cells", Path("trained-cells"))
    detectors.add("cards", Path("trained-cards"))
    for result in detectors.detect([Path("photo.jpg")]):
        result["tasks"]["cells"]["detections"]

A detector whose method leaves the body as it is (`cst`, `lst`, `side_tuning`, `head`) needs the same features as any
other on that body and at that image size. A method that enters the body (`conv_lora`, `norm`, `full`, ...) needs a pass
of its own. Tensors with equal bytes, of bodies as of frozen necks and heads, are held in memory once.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import takewhile
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from cst_search.backbone.resnet import FrozenNorm, fingerprint
from cst_search.config.catalog import check_folder
from cst_search.config.recipe import READING_FIELDS, Recipe
from cst_search.data.dataset import ImageEntry
from cst_search.detector.build import restored
from cst_search.detector.bundle import Bundle, is_bundle
from cst_search.detector.pyramid import Backbone
from cst_search.detector.trained_file import WEIGHTS, TrainedFile, read_trained, weights_file
from cst_search.errors import ConfigError
from cst_search.trial.device import check_device
from cst_search.trial.engine import choose_precision, detect
from cst_search.trial.inference import find_images, image_batches, image_entries, reported
from cst_search.trial.pictures import draw_detections, picture_names, write_sheet


class Task(NamedTuple):
    """A trained detector among others. Those with equal ``group`` share each pass through the body."""

    name: str
    model: nn.Module
    recipe: Recipe
    class_names: tuple[str, ...]
    group: str


class MultiPredictor:
    """Trained detectors by name, which can be added and dropped at any time.

    Each finds what `inference.Predictor` finds with its run, for equal batches to the last bit on a CPU.

    Args:
        device: auto, cpu or cuda.
    """

    def __init__(self, device: str = "auto") -> None:
        self.device = check_device(device)
        self.tasks: dict[str, Task] = {}
        self._lock = Lock()  # detectors that share a body are changed while a batch runs

    def add(self, name: str, run: Path, max_pixels: int | None = None) -> None:
        """Load a detector.

        Args:
            run: folder that `cst-search train` wrote, or its weights file.
            max_pixels: bound of an image's width times height; None: the recipe's.

        Raises:
            ConfigError: the name is taken, there are no weights, or they do not fit the recipe.
        """
        self._add(name, read_trained(weights_file(run)), max_pixels)

    def add_bundle(self, folder: Path, max_pixels: int | None = None) -> None:
        """Load all tasks of a bundle, see `detector.bundle`; or none of them.

        Raises:
            ConfigError: there is no bundle, a file is missing or damaged, or a name is taken.
        """
        if not is_bundle(folder):
            raise ConfigError(f"{folder} is no bundle of `cst-search pack`")
        bundle, before = Bundle(folder), dict(self.tasks)
        bundle.check()
        try:
            for name in bundle.tasks:
                self._add(name, bundle.trained(name), max_pixels)
        except ConfigError:
            self.tasks = before
            raise

    def _add(self, name: str, file: TrainedFile, max_pixels: int | None) -> None:
        recipe = file.recipe if max_pixels is None else replace(file.recipe, max_pixels=max_pixels)
        self.add_model(name, restored(file), recipe, file.class_names)

    def add_model(self, name: str, model: nn.Module, recipe: Recipe, class_names: tuple[str, ...]) -> None:
        """Add a detector that is already built. Raises ConfigError if the name is taken."""
        if name in self.tasks:
            raise ConfigError(f"tasks must have different names; {name!r} is taken")
        model.eval()
        group = _group(model, recipe)
        share_equal_tensors(model, [task.model for task in self.tasks.values()])
        model.to(self.device)
        self.tasks[name] = Task(name, model, recipe, class_names, group)

    def drop(self, name: str) -> None:
        """Remove a detector. Raises ConfigError if there is none of that name."""
        if name not in self.tasks:
            raise ConfigError(f"there is no task {name!r}; there are {', '.join(self.tasks) or 'none'}")
        del self.tasks[name]

    def groups(self) -> list[list[str]]:
        """Return the names of the tasks that share each pass through the body, one list per body."""
        found: dict[str, list[str]] = {}
        for task in self.tasks.values():
            found.setdefault(task.group, []).append(task.name)
        return list(found.values())

    def tensor_bytes(self) -> int:
        """Return the bytes of all tensors of all detectors, each storage counted once."""
        storages = {
            tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
            for task in self.tasks.values()
            for tensor in (*task.model.parameters(), *task.model.buffers())
        }
        return sum(storages.values())

    def detect(
        self, images: list[Path], score: float = 0.5, batch_size: int = 1, tasks: Sequence[str] | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield per image ``image`` and ``tasks``.

        ``tasks`` holds by name what `Predictor.detect` yields for the image: ``width``, ``height``, ``detections``.

        Args:
            tasks: names of those to run; None: all.

        Raises:
            ConfigError: an image cannot be read, there is no task, or none of a given name; before any detection.
        """
        names = self._names(tasks)  # those that are added later take no part
        chosen = ([self.tasks[name] for name in group if name in names] for group in self.groups())
        groups = [group for group in chosen if group]
        entries = [image_entries(images, tasks[0].recipe) for tasks in groups]
        each = [self._detect_group(*pair, score, batch_size) for pair in zip(groups, entries, strict=True)]
        for image, found in zip(images, zip(*each, strict=True), strict=True):
            by_name = {name: one for group in found for name, one in group.items()}
            yield {"image": str(image), "tasks": {name: by_name[name] for name in names}}

    def _names(self, tasks: Sequence[str] | None) -> list[str]:
        """Return the names of the tasks to run, each once."""
        if not self.tasks:
            raise ConfigError("there is no detector; add one first")
        names = list(self.tasks) if tasks is None else list(dict.fromkeys(tasks))
        unknown = [name for name in names if name not in self.tasks]
        if unknown or not names:
            got = ", ".join(map(repr, unknown)) or "none"
            raise ConfigError(f"tasks must name some of {', '.join(self.tasks)}; got {got}")
        return names

    def _detect_group(
        self, tasks: list[Task], entries: tuple[ImageEntry, ...], score: float, batch_size: int
    ) -> Iterator[dict[str, Any]]:
        """Yield per image, by name, what each task of a group finds."""
        recipe = tasks[0].recipe
        precision = choose_precision(recipe.precision, self.device)
        for batch in image_batches(entries, recipe, batch_size):
            with self._lock, sharing_body(tasks):
                found = [list(detect(task.model, [batch], device=self.device, precision=precision)) for task in tasks]
            for i, image_id in enumerate(one.image_id for one in found[0]):
                yield {
                    task.name: reported(entries[image_id], each[i], task.class_names, score)
                    for task, each in zip(tasks, found, strict=True)
                }


@contextmanager
def sharing_body(tasks: Sequence[Task]) -> Iterator[None]:
    """Have detectors of one group take the features of one batch from a single pass through the body."""
    backbones = [backbone_of(task.model) for task in tasks]
    body, kept = backbones[0].body, OrderedDict[str, Tensor]()

    def features(images: Tensor) -> OrderedDict[str, Tensor]:
        if not kept:
            kept.update(body(images))
        return OrderedDict(kept)  # a detector adds to what it gets

    taps_blocks = body.taps_blocks
    body.taps_blocks = any(backbone.body.taps_blocks for backbone in backbones)
    for backbone in backbones:
        backbone.features = features
    try:
        yield
    finally:
        body.taps_blocks = taps_blocks
        for backbone in backbones:
            backbone.features = None


def predict_tasks(
    runs: Sequence[Path], paths: list[Path], out: Path | None, *, score: float, device: str,
    max_pixels: int | None = None, progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Detect objects in images with several runs at once, each under the name of its folder, and draw them.

    Args:
        out: folder with one folder per task, which holds one PNG per image, and a contact sheet of several; None: draw
            nothing.
        runs, paths, score, device, max_pixels, progress: see `inference.predict`.

    Returns:
        Per image ``image`` and ``tasks``, by name ``width``, ``height``, ``picture`` (or None) and ``detections``.

    Raises:
        ConfigError: two folders have one name, there are no weights or images, or an image cannot be read.
    """
    if out is not None:
        check_folder("--out", out)
    images = find_images(paths)
    _check_names(runs)
    detectors = MultiPredictor(device)
    for run in runs:
        if is_bundle(run):
            detectors.add_bundle(run, max_pixels)
        else:
            detectors.add(task_name(run), run, max_pixels)
    results: list[dict[str, Any]] = []
    for result, picture in zip(detectors.detect(images, score), picture_names(images), strict=True):
        for name, found in result["tasks"].items():
            found["picture"] = None if out is None else str(out / name / picture)
            if out is not None:
                task = detectors.tasks[name]
                [entry] = image_entries([Path(result["image"])], task.recipe)
                draw_detections(entry, found["detections"], task.class_names, Path(found["picture"]))
        results.append(result)
        if progress is not None:
            progress(len(results), len(images))
    for name in detectors.tasks:
        found = [result["tasks"][name] for result in results]
        if out is not None:
            write_sheet([(Path(one["picture"]), bool(one["detections"])) for one in found], out / name)
    return results


def _check_names(runs: Sequence[Path]) -> None:
    """Raise ConfigError if two tasks of runs and bundles have one name, before any of them is loaded."""
    names = [name for run in runs for name in (Bundle(run).tasks if is_bundle(run) else [task_name(run)])]
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigError(
            f"runs are named after their folders, and these names occur twice: {', '.join(twice)}; rename a folder"
        )


def task_name(run: Path) -> str:
    """Return the name that a run has as a task: that of its folder."""
    return (run.parent if run.is_file() else run).absolute().name


def split_runs(paths: Sequence[Path]) -> tuple[list[Path], list[Path]]:
    """Return the runs and bundles that stand first among paths, and the images and folders of images behind them.

    The first path is a run whatever it is. Raises ConfigError if nothing stands behind the runs.
    """
    runs = [paths[0], *takewhile(_is_run_or_bundle, paths[1:])]
    if len(runs) == len(paths):
        raise ConfigError(f"name images, or a folder of them, behind the run{'s' * (len(runs) > 1)}")
    return runs, list(paths[len(runs) :])


def _is_run_or_bundle(path: Path) -> bool:
    return path.suffix == ".safetensors" or (path / WEIGHTS).is_file() or is_bundle(path)


def backbone_of(model: nn.Module) -> Backbone:
    """Return the backbone of a detector."""
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    return backbone


def _group(model: nn.Module, recipe: Recipe) -> str:
    """Return the identity of all that the features of an image depend on."""
    transform: Any = model.transform
    input_of = [getattr(transform, name) for name in ("image_mean", "image_std", "size_divisible")]
    reading = [getattr(recipe, name) for name in ("image_size_px", "max_size_px", "precision", *READING_FIELDS)]
    body = backbone_of(model).body
    structure = str(body)  # with modules that a method put into it, and eps of the norms
    rounding = [module.as_batch_norm for module in body.modules() if isinstance(module, FrozenNorm)]
    content = (fingerprint(body), structure, rounding, input_of, reading)
    return hashlib.sha256(repr(content).encode()).hexdigest()


def share_equal_tensors(model: nn.Module, others: Iterable[nn.Module]) -> None:
    """Have a model hold the tensors of others wherever names and bytes are equal."""
    known: dict[str, list[tuple[nn.Module, str]]] = {}
    for other in others:
        for name, module, key in _tensors(other):
            known.setdefault(name, []).append((module, key))
    for name, module, key in _tensors(model):
        own = _get(module, key)
        for where in known.get(name, ()):
            there = _get(*where)
            if there.shape == own.shape and there.dtype == own.dtype and torch.equal(there.cpu(), own.cpu()):
                (module._parameters if key in module._parameters else module._buffers)[key] = there
                break


def _tensors(model: nn.Module) -> Iterator[tuple[str, nn.Module, str]]:
    """Yield the full name, the module and the name in it of every parameter and buffer."""
    for prefix, module in model.named_modules():
        for key, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is not None:
                yield f"{prefix}.{key}", module, key


def _get(module: nn.Module, key: str) -> Any:
    return module._parameters[key] if key in module._parameters else module._buffers[key]
