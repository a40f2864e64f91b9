"""Small COCO folders whose annotations a test writes itself, and what training and evaluation get from them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cst_search.data.dataset import DetectionData, coco_ground_truth
from cst_search.data.images import CocoImages
from cst_search.data.validation.findings import DataReport

WIDTH, HEIGHT = 100, 80
SOUND = {"bbox": [10, 20, 30, 40]}
CLASSES = ({"id": 1, "name": "cat"}, {"id": 2, "name": "dog"})


def picture(path: Path, width: int = 48, height: int = 32, seed: int = 0, **options: Any) -> None:
    """Noise, so that every file is long enough to be cut and differs from the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path, **options)


def write_split(
    folder: Path,
    split: str,
    annotations: Sequence[Any],
    *,
    n_images: int = 1,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    categories: Sequence[Any] = CLASSES,
    document: Any = None,
) -> None:
    """Write `n_images` pictures of noise with ids from 1. An annotation is of image 1 and class 1 unless it says so."""
    (folder / split).mkdir(parents=True, exist_ok=True)
    images = []
    for image_id in range(1, n_images + 1):
        noise = np.random.default_rng((image_id, len(split))).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / split / f"{image_id}.png")
        images.append({"id": image_id, "file_name": f"{image_id}.png", "width": size[0], "height": size[1]})
    entries = [
        {"id": i, "image_id": 1, "category_id": 1} | entry if isinstance(entry, dict) else entry
        for i, entry in enumerate(annotations, 1)
    ]
    content = {"images": images, "annotations": entries, "categories": list(categories)}
    (folder / f"{split}.json").write_text(json.dumps(content | (document or {})))


def write_folder(folder: Path, annotations: Sequence[Any], **options: Any) -> Path:
    """Write a training split with these annotations, and a sound one for validation."""
    write_split(folder, "train", annotations, **options)
    write_split(folder, "val", [SOUND])
    return folder


def targets(data: DetectionData, split: str = "train") -> list[list[list[float]]]:
    """Return the boxes of each image as training gets them: xyxy, in original pixels."""
    images = [
        CocoImages(
            data.splits[split], image_size_px=min(e.width, e.height), max_size_px=4096, hflip=False, cache_bytes=0
        )
        for e in data.splits[split].images
    ]
    return [[[round(x, 3) for x in box] for box in images[i][i][1]["boxes"].tolist()] for i in range(len(images))]


def labels(data: DetectionData, split: str = "train") -> list[list[str]]:
    """Return the class names of each image's targets."""
    images = CocoImages(data.splits[split], image_size_px=32, max_size_px=4096, hflip=False, cache_bytes=0)
    return [[data.class_names[label - 1] for label in images[i][1]["labels"].tolist()] for i in range(len(images))]


def truth(data: DetectionData, split: str = "train") -> list[tuple[list[float], int]]:
    """Return box (xywh) and iscrowd of each object that the evaluation looks for."""
    return [(list(a["bbox"]), a["iscrowd"]) for a in coco_ground_truth(data.splits[split])["annotations"]]


def noted(report: DataReport) -> dict[tuple[str, str], int]:
    """Return the counts of the notes by split and kind, but for those that every tiny folder has."""
    return {(n.split, n.kind): n.count for n in report.notes if n.kind not in ("class-without-boxes",)}
