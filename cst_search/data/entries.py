"""Read the entries of a COCO document: categories, images and boxes, each valid one kept and each fault collected.

Coordinates are COCO's: ``bbox`` is (x, y, width, height) in pixels with the origin at the top left corner, of the
picture as stored or as shown: `image_check` finds out which.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cst_search.data.decoding import PLAIN, Decoding
from cst_search.data.file_names import locate
from cst_search.data.findings import FAULTS, Findings
from cst_search.data.formats.source import DocumentError, SplitSource

MAX_OVERHANG_PX = 1.0  # annotation tools round corners to whole pixels or count pixels from 1
MIN_SIDE_PX = 0.01  # below this, corners may coincide in float32 after resizing, which torchvision refuses


@dataclass
class Box:
    xywh: tuple[float, float, float, float]  # in pixels, clipped to the image
    category_id: int
    iscrowd: int  # 0 or 1
    area: float  # square pixels: of the outline if the file gives it, else of the box


@dataclass
class ListedImage:
    """A well-formed image entry with its valid boxes. `usable` becomes False if the image must be dropped."""

    image_id: int
    file_name: str
    path: str  # absolute, links resolved; never opened if it is outside the image folder
    width: int  # 0, with the height: not in the annotation file
    height: int
    file_stamp: tuple[int, int] = (0, 0)  # size in bytes, mtime in ns
    boxes: list[Box] = field(default_factory=list)
    usable: bool = True
    digest: str = ""  # BLAKE2b of the file's content; empty until it is decoded
    decoding: Decoding = PLAIN


@dataclass(frozen=True)
class ListedSplit:
    """A split as its annotations list it."""

    name: str
    categories: dict[int, str]
    images: list[ListedImage]
    listed_ids: set[int]  # of all image entries, valid or not
    annotations: list[Any]  # unchecked; `read_boxes` gives them to the images
    n_images: int  # entries in the file, valid or not

    @property
    def n_boxes(self) -> int:
        """Number of annotations, valid or not."""
        return len(self.annotations)


def list_split(name: str, source: SplitSource, faults: Findings, notes: Findings) -> ListedSplit | None:
    """Read the categories and images of a split, without opening images. Returns None if they cannot be read.

    `read_boxes` reads the rest, once it is known how large the images are.
    """
    try:
        document = source.read()
    except DocumentError as error:
        for reason in error.args:
            faults.add("annotations", name, f"{source.annotations.name} {reason}")
        return None
    for kind, example in document.get("findings", ()):
        (faults if kind in FAULTS else notes).add(kind, name, example)
    categories = _read_categories(name, document["categories"], faults)
    images, listed_ids = _read_images(name, document["images"], source.images, faults, notes)
    annotations, n_images = document["annotations"], len(document["images"])
    return ListedSplit(name, categories, list(images.values()), listed_ids, annotations, n_images)


def _read_categories(name: str, entries: list[Any], faults: Findings) -> dict[int, str]:
    categories: dict[int, str] = {}
    if not entries:
        faults.add("category-entry", name, "'categories' is empty")
    for i, entry in enumerate(entries):
        category_id = _whole(entry.get("id")) if isinstance(entry, dict) else None
        title = entry.get("name") if isinstance(entry, dict) else None
        if category_id is None or not isinstance(title, str) or not title.strip() or not _is_text(title):
            faults.add("category-entry", name, f"categories[{i}]: {entry}")
        elif category_id in categories:
            faults.add("category-id-twice", name, f"{category_id} ({categories[category_id]}, {title})")
        else:
            if title in categories.values():
                faults.add("category-name-twice", name, title)
            categories[category_id] = title
    return categories


def _read_images(
    name: str, entries: list[Any], image_folder: Path, faults: Findings, notes: Findings
) -> tuple[dict[int, ListedImage], set[int]]:
    """Return the well-formed images by id, and the set of all listed ids."""
    root = os.path.realpath(image_folder)
    images: dict[int, ListedImage] = {}
    listed_ids: set[int] = set()
    paths: set[str] = set()
    real_parents: dict[str, str] = {}
    for i, entry in enumerate(entries):
        get = entry.get if isinstance(entry, dict) else lambda _key: None
        image_id, width, height = (_whole(get(key)) for key in ("id", "width", "height"))
        file_name = get("file_name")
        repeated = image_id in listed_ids
        if image_id is not None:
            listed_ids.add(image_id)
        good_size = all(get(key) is None or side is not None for key, side in (("width", width), ("height", height)))
        if image_id is None or not isinstance(file_name, str) or not file_name or not good_size:
            faults.add("image-entry", name, f"images[{i}]: {file_name if isinstance(file_name, str) else entry}")
            continue
        if repeated:
            faults.add("image-id-twice", name, f"{file_name} (id {image_id})")
            if image_id in images and images[image_id].file_name != file_name:
                images[image_id].usable = False  # its boxes could belong to either image
            continue
        path, stamp, kind = locate(root, file_name, real_parents)
        known = width is not None and height is not None and width > 0 and height > 0
        size = (width or 0, height or 0) if known else (0, 0)  # null, 0 and -1 stand for a size that nobody looked up
        image = ListedImage(image_id, file_name, path, *size, stamp, usable=kind is None)
        images[image_id] = image
        if kind is not None:
            faults.add(kind, name, file_name)
        elif path in paths:
            notes.add("file-twice", name, file_name)
        paths.add(path)
    return images, listed_ids


def read_boxes(split: ListedSplit, faults: Findings, notes: Findings) -> None:
    """Append every valid box to its image."""
    name, images = split.name, {image.image_id: image for image in split.images}
    seen: set[int] = set()
    for i, entry in enumerate(split.annotations):
        if not isinstance(entry, dict):
            faults.add("annotation-entry", name, f"annotations[{i}]: {entry}")
            continue
        image_id, category_id = _whole(entry.get("image_id")), _whole(entry.get("category_id"))
        iscrowd = entry.get("iscrowd", 0)
        annotation_id = _whole(entry.get("id"))  # optional: nothing here needs it
        label = entry.get("place") or f"annotation {entry.get('id', f'[{i}]')}"  # its place in another format's file
        if image_id is None or category_id is None or iscrowd not in (0, 1):
            faults.add("annotation-entry", name, f"{label}: image_id, category_id or iscrowd")
            continue
        image = images.get(image_id)
        if image is not None:
            label = f"{image.file_name} ({label})"
        if annotation_id is not None and annotation_id in seen:
            faults.add("annotation-id-twice", name, label)
            continue
        if annotation_id is not None:
            seen.add(annotation_id)
        if image_id not in split.listed_ids:
            faults.add("image-unknown", name, f"{label}: image {image_id}")
        elif category_id not in split.categories:
            faults.add("category-unknown", name, f"{label}: category {category_id}")
        elif image is not None:  # otherwise the image entry was already reported
            box, kind = check_box(entry.get("bbox"), image.width, image.height)
            if kind in FAULTS:
                faults.add(kind, name, f"{label}: {entry.get('bbox')} in {image.width}x{image.height}")
                continue
            if kind is not None:
                notes.add(kind, name, label)
            area = _finite(entry.get("area"))
            area = area if area is not None and area > 0 else box[2] * box[3]
            image.boxes.append(Box(box, category_id, int(iscrowd), area))


def check_box(bbox: Any, width: int, height: int) -> tuple[tuple[float, float, float, float], str | None]:
    """Return the box (x, y, w, h) in pixels, clipped to its image, and the kind of its fault or note, or None.

    A box that overhangs the edge by at most MAX_OVERHANG_PX is clipped, with a note; more is a fault.
    """
    numbers = [number for value in bbox if (number := _finite(value)) is not None] if isinstance(bbox, list) else []
    if len(numbers) != 4 or len(bbox) != 4:
        return (0, 0, 0, 0), "box-malformed"
    x, y, w, h = numbers
    if w < MIN_SIDE_PX or h < MIN_SIDE_PX:
        return (x, y, w, h), "box-no-area"
    overhang = max(-x, -y, x + w - width, y + h - height)
    if overhang > MAX_OVERHANG_PX + 1e-6:
        return (x, y, w, h), "box-outside"
    if overhang <= 0:
        return (x, y, w, h), None
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    clipped = (left, top, right - left, bottom - top)
    if overhang <= 1e-6:  # of the arithmetic, as of shares times the size
        return clipped, None
    return clipped, "box-clipped" if min(clipped[2:]) >= MIN_SIDE_PX else "box-no-area"


def _whole(value: Any) -> int | None:
    """Return a whole number as int (640 and 640.0 -> 640), or None for anything else and for more than 64 bits."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 2**63:
        return None
    return int(value) if isinstance(value, int) or value.is_integer() else None


def _finite(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # JSON integers have any length
        return None


def _is_text(value: str) -> bool:
    """Return False for text with a lone surrogate, which JSON may escape but no file name or terminal accepts."""
    return not any("\ud800" <= c <= "\udfff" for c in value)
