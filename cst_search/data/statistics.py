"""Figures of a data set: images, sizes, classes, boxes. What `cst-search data check` shows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from statistics import median
from typing import Any

from cst_search.data.dataset import DetectionData, ImageEntry, Split

N_SIZES = 8  # distinct image sizes that are named, the most frequent first


def describe(data: DetectionData) -> dict[str, Any]:
    """Return counts and distributions as a dict ready for JSON; crowd boxes are counted apart.

    ``splits``: per split ``n_images``, ``n_boxes``, ``n_crowd``, ``n_empty`` (images without boxes) and
    ``boxes_per_image`` (least, median, most). ``classes``: per class its ``name``, ``n_boxes`` and ``n_images`` by
    split, ``median_side_px`` (root of width times height, of the original picture) and ``median_share`` (of the
    picture's area). ``image_sizes``: ``width``, ``height`` and ``n_images`` of the most frequent; ``n_image_sizes``.
    """
    entries = [entry for split in data.splits.values() for entry in split.images]
    sizes = Counter((entry.width, entry.height) for entry in entries)
    return {
        "splits": {name: _of_split(split) for name, split in data.splits.items()},
        "classes": [_of_class(data, label, name) for label, name in enumerate(data.class_names, start=1)],
        "n_image_sizes": len(sizes),
        "image_sizes": [
            {"width": width, "height": height, "n_images": n} for (width, height), n in sizes.most_common(N_SIZES)
        ],
    }


def _of_split(split: Split) -> dict[str, Any]:
    counts = [len(entry.labels) - sum(entry.iscrowd) for entry in split.images]
    return {
        "n_images": len(counts),
        "n_boxes": sum(counts),
        "n_crowd": sum(sum(entry.iscrowd) for entry in split.images),
        "n_empty": counts.count(0),
        "boxes_per_image": [min(counts), median(counts), max(counts)] if counts else [0, 0, 0],
    }


def _of_class(data: DetectionData, label: int, name: str) -> dict[str, Any]:
    boxes = {split: list(_boxes(part.images, label)) for split, part in data.splits.items()}
    areas = [(w * h, entry.width * entry.height) for found in boxes.values() for entry, (_, _, w, h) in found]
    return {
        "name": name,
        "n_boxes": {split: len(found) for split, found in boxes.items()},
        "n_images": {split: len({id(entry) for entry, _ in found}) for split, found in boxes.items()},
        "median_side_px": median(area**0.5 for area, _ in areas) if areas else None,
        "median_share": median(area / whole for area, whole in areas) if areas else None,
    }


def _boxes(images: Iterable[ImageEntry], label: int) -> Iterable[tuple[ImageEntry, tuple[float, ...]]]:
    """Yield the boxes of a class with their images, without crowds."""
    for entry in images:
        for box, box_label, crowd in zip(entry.boxes_xywh, entry.labels, entry.iscrowd, strict=True):
            if box_label == label and not crowd:
                yield entry, box
