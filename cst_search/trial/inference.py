"""Detect objects in images with a detector that `cst-search train` wrote."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from cst_search.config.catalog import check_folder
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import ImageEntry, Split
from cst_search.data.decoding import FULL_RANGE
from cst_search.data.images import Batches, CocoImages, as_tensor, loader, resized
from cst_search.data.options import ReadOptions
from cst_search.data.pixels import BadImage, inspect_images
from cst_search.data.resize import resized_hw
from cst_search.data.validation.image_check import white_level
from cst_search.detector.trained_file import weights_file
from cst_search.detector.weights import load_trained
from cst_search.errors import ConfigError
from cst_search.trial.device import check_device
from cst_search.trial.engine import Detections, choose_precision, detect
from cst_search.trial.pictures import draw_detections, picture_names, write_sheet

_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif", ".ppm", ".pgm", ".jp2")


def find_images(paths: list[Path]) -> list[Path]:
    """Return the given files, and the sorted images of the given folders. Raises ConfigError if there is none."""
    found: list[Path] = []
    for path in paths:
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
            if not inside:
                raise ConfigError(f"{path} holds no image ({', '.join(_SUFFIXES)})")
            found += inside
        elif path.is_file():
            found.append(path)
        else:
            raise ConfigError(f"there is no image or folder {path}")
    return found


class Predictor:
    """A trained detector, loaded once for any number of calls.

    Args:
        run: folder that `cst-search train` wrote, or its weights file.
        device: auto, cpu or cuda.
        batch_size: images that run together. Smaller ones are padded, which may move boxes by a fraction of a pixel.

    Raises:
        ConfigError: there are no weights, or they do not fit the recipe.
    """

    def __init__(self, run: Path, device: str = "auto", batch_size: int = 1) -> None:
        self.batch_size = batch_size
        self.device = check_device(device)
        self.weights = weights_file(run)
        self.model, self.recipe, self.class_names = load_trained(self.weights)
        self.model.to(self.device)

    def detect(self, images: list[Path], score: float = 0.5) -> Iterator[dict[str, Any]]:
        """Yield per image ``image``, ``width``, ``height`` and ``detections``, as `predict` returns them.

        Raises ConfigError if an image cannot be read, before any detection.
        """
        yield from self.detect_entries(self.entries(images), score)

    def entries(self, images: list[Path]) -> tuple[ImageEntry, ...]:
        """Return the images as the detector reads them, in the way in which its recipe read data.

        An image with an EXIF orientation is turned, as a viewer shows it, unless the recipe says ``exif: stored``.

        Raises ConfigError if one cannot be read.
        """
        return image_entries(images, self.recipe)

    def detect_image(self, image: Image.Image, score: float = 0.5) -> dict[str, Any]:
        """Return ``width``, ``height`` and ``detections`` of an image in memory, in RGB, as `detect` does of a file."""
        height, width = resized_hw(image.height, image.width, self.recipe.image_size_px, self.recipe.max_size_px)
        target = {"image_id": 0, "scale_xy": (image.width / width, image.height / height)}
        batch = [as_tensor(resized(image, (height, width)))], [target]
        precision = choose_precision(self.recipe.precision, self.device)
        [found] = detect(self.model, [batch], device=self.device, precision=precision)
        return reported(image, found, self.class_names, score)

    def detect_entries(self, entries: tuple[ImageEntry, ...], score: float = 0.5) -> Iterator[dict[str, Any]]:
        """Yield what `detect` does, for images that `entries` has read."""
        precision = choose_precision(self.recipe.precision, self.device)
        batches = image_batches(entries, self.recipe, self.batch_size)
        for found in detect(self.model, batches, device=self.device, precision=precision):
            entry = entries[found.image_id]
            yield {"image": str(entry.path)} | reported(entry, found, self.class_names, score)


def image_entries(images: Sequence[Path], recipe: Recipe) -> tuple[ImageEntry, ...]:
    """Return images as a detector reads them, in the way in which its recipe read data. Raises ConfigError."""
    options = ReadOptions.of(recipe)
    return tuple(_entry(i, path, options) for i, path in enumerate(images))


def image_batches(entries: tuple[ImageEntry, ...], recipe: Recipe, batch_size: int) -> Batches:
    """Return batches of images, resized as in training; their ``image_id`` is the index among the entries."""
    dataset = CocoImages(
        Split("predict", Path(), Path(), entries),
        image_size_px=recipe.image_size_px,
        max_size_px=recipe.max_size_px,
        hflip=False,
        cache_bytes=0,
    )
    return loader(dataset, batch_size=batch_size, shuffle=False, seed=0)


def reported(
    entry: ImageEntry | Image.Image, found: Detections, class_names: Sequence[str], score: float
) -> dict[str, Any]:
    """Return ``width``, ``height`` and ``detections`` of an image, as `predict` returns them."""
    return {
        "width": entry.width,
        "height": entry.height,
        "detections": [
            {
                "class": class_names[found.labels[i] - 1],
                "score": round(found.scores[i], 4),
                "box": [round(value, 1) for value in found.boxes_xyxy[i]],
            }
            for i, s in enumerate(found.scores)
            if s >= score
        ],
    }


def predict(
    run: Path, paths: list[Path], out: Path | None, *, score: float, device: str, max_pixels: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """Detect objects in images and draw them.

    Args:
        run: folder that `cst-search train` wrote, or its weights file.
        out: folder for one PNG per image, and a contact sheet of several; None: draw nothing.
        score: lowest score of a returned detection, 0..1.
        max_pixels: bound of an image's width times height; None: the recipe's.
        progress: called with the number of finished images and the total.

    Returns:
        Per image ``image``, ``width``, ``height``, ``picture`` (or None) and ``detections``, best first, each with
        ``class``, ``score`` and ``box`` (x1, y1, x2, y2 in pixels of the image; see `Predictor.entries`).

    Raises:
        ConfigError: there are no weights or no images, or an image cannot be read.
    """
    if out is not None:
        check_folder("--out", out)
    images = find_images(paths)
    predictor = Predictor(run, device)
    results = []
    if max_pixels is not None:
        predictor.recipe = replace(predictor.recipe, max_pixels=max_pixels)
    entries, names = predictor.entries(images), picture_names(images)
    for entry, name, result in zip(entries, names, predictor.detect_entries(entries, score), strict=True):
        if out is not None:
            draw_detections(entry, result["detections"], predictor.class_names, out / name)
        results.append(result | {"picture": None if out is None else str(out / name)})
        if progress is not None:
            progress(len(results), len(images))
    if out is not None:
        write_sheet([(Path(result["picture"]), bool(result["detections"])) for result in results], out)
    return results


def _entry(index: int, path: Path, options: ReadOptions) -> ImageEntry:
    # completely decoded, so that no later image stops the work half-way
    facts = inspect_images({str(path): (0, 0)}, None, options)[0][str(path)]
    if isinstance(facts, BadImage):
        raise ConfigError(f"{path} cannot be read as an image: {facts.why}")
    seen_as = "stored" if options.exif == "stored" else "shown"
    white = white_level(facts.depth, facts.peak, options) or FULL_RANGE
    return ImageEntry(
        index, path.name, path, *facts.size(seen_as), (), (), (), (), decoding=facts.decoding(seen_as, white)
    )
