"""Validate a COCO-format folder before training starts, and list all faults in one report.

Coordinates are COCO's: ``bbox`` is (x, y, width, height) in pixels with the origin at the top left corner, for the
pixels as stored. EXIF orientation is ignored here and in `coco`, as in pycocotools and torchvision's COCO; a note
counts the images that have one.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import os
import stat
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, UnidentifiedImageError

# Fault -> (its text in the report, True if --skip-bad may drop it), in the order of the report.
FAULTS: dict[str, tuple[str, bool]] = {
    "annotations": ("the annotation file cannot be used", False),
    "category-entry": ("category without a whole-number id and a name", False),
    "category-id-twice": ("two categories with one id", False),
    "category-name-twice": ("two categories with one name", False),
    "categories-differ": ("categories are not those of the first split", False),
    "image-entry": ("image entry without a whole-number id, file_name, width and height", True),
    "image-id-twice": ("two images with one id", True),
    "path-outside": ("file_name leaves the image folder", True),
    "image-missing": ("image file is missing", True),
    "image-unreadable": ("image cannot be decoded", True),
    "image-too-large": ("image has so many pixels that it may be a decompression bomb", True),
    "image-size": ("image is not as large as the annotation file says", True),
    "annotation-entry": ("annotation entry of the wrong form", True),
    "annotation-id-twice": ("two annotations with one id", True),
    "image-unknown": ("annotation of an image that is not listed", True),
    "category-unknown": ("annotation of a category that is not listed", True),
    "box-malformed": ("bbox is not four finite numbers", True),
    "box-no-area": ("box has no area", True),
    "box-outside": ("box lies more than 1 px outside its image", True),
    "empty-split": ("no image or no box is left", False),
}
NOTES: dict[str, str] = {
    "box-clipped": "box hangs over the edge by at most 1 px; it was clipped",
    "leak": "the same image is in several splits; scores will flatter",
    "file-twice": "the same file is listed under several image ids",
    "image-without-boxes": "image without boxes; it is kept",
    "class-without-boxes": "class without a single box in this split",
    "exif-turned": "image has an EXIF orientation, which is ignored",
    "cache": "the list of checked images could not be saved; the next start checks again",
}

MAX_OVERHANG_PX = 1.0  # annotation tools round corners to whole pixels or count pixels from 1
MIN_SIDE_PX = 0.01  # below this, corners may coincide in float32 after resizing, which torchvision refuses
MAX_PIXELS = 89_478_485  # PIL.Image.MAX_IMAGE_PIXELS, where Pillow warns: a quarter GiB as 24-bit RGB
N_EXAMPLES = 3  # examples shown per kind of fault
# Pillow reads more formats, but loading an EPS file, whatever its name, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000")
_CACHE_VERSION = 1
_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Fault:
    """One kind of fault or note in one split."""

    kind: str  # a key of FAULTS or NOTES
    split: str  # train | val | test
    count: int
    examples: tuple[str, ...]  # the first few, printable

    def __str__(self) -> str:
        says = FAULTS[self.kind][0] if self.kind in FAULTS else NOTES[self.kind]
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.split:<6}{self.count:>7}  {says} [{self.kind}]: {', '.join(self.examples)}{more}"


@dataclass(frozen=True)
class DataReport:
    """Result of the validation. Faults stop the work unless they are skipped; notes never do."""

    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]
    places: tuple[str, ...]  # "train: annotation file, image folder", one per split
    n_images: int  # listed in all splits
    n_boxes: int  # annotations listed in all splits
    n_dropped_images: int = 0  # 0 unless skip_bad
    n_dropped_boxes: int = 0  # boxes of dropped images included; 0 unless skip_bad
    n_from_cache: int = 0  # image files that the cache knows, so they were not decoded

    def render(self) -> str:
        """Return a plain-text table with one line per split and kind."""
        n_faults = sum(fault.count for fault in self.faults)
        lines = [f"{self.n_images} images, {self.n_boxes} boxes, {n_faults} {'fault' if n_faults == 1 else 'faults'}"]
        lines += [f"  {place}" for place in self.places]
        if self.faults:
            lines += ["faults:", *(f"  {fault}" for fault in self.faults)]
        if self.notes:
            lines += ["notes:", *(f"  {note}" for note in self.notes)]
        if self.n_dropped_images or self.n_dropped_boxes:
            lines.append(f"left out: {self.n_dropped_images} images, {self.n_dropped_boxes} boxes")
        return "\n".join(lines)


class Findings:
    """Collection of faults or notes by kind and split, in the order in which the kinds are declared."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self._kinds = list(kinds)
        self._found: dict[tuple[str, str], tuple[int, list[str]]] = {}

    def add(self, kind: str, split: str, example: object) -> None:
        count, examples = self._found.get((split, kind), (0, []))
        if len(examples) < N_EXAMPLES:
            examples.append(_printable(str(example)))
        self._found[split, kind] = (count + 1, examples)

    def collected(self) -> tuple[Fault, ...]:
        splits = list(dict.fromkeys(split for split, _ in self._found))
        found = sorted(self._found.items(), key=lambda item: (splits.index(item[0][0]), self._kinds.index(item[0][1])))
        return tuple(Fault(kind, split, count, tuple(examples)) for (split, kind), (count, examples) in found)


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
    width: int
    height: int
    file_stamp: tuple[int, int] = (0, 0)  # size in bytes, mtime in ns
    boxes: list[Box] = field(default_factory=list)
    usable: bool = True
    digest: str = ""  # BLAKE2b of the file's content; empty until it is decoded


@dataclass(frozen=True)
class ListedSplit:
    """A well-formed annotation file."""

    name: str
    categories: dict[int, str]
    images: list[ListedImage]
    n_images: int  # entries in the file, valid or not
    n_boxes: int


def read_split(
    name: str, annotation_file: Path, image_folder: Path, faults: Findings, notes: Findings
) -> ListedSplit | None:
    """Read one annotation file and check everything but the pixels. Returns None if the file is not in COCO format."""
    document = _read_document(name, annotation_file, faults)
    if document is None:
        return None
    categories = _read_categories(name, document["categories"], faults)
    images, listed_ids = _read_images(name, document["images"], image_folder, faults, notes)
    _read_boxes(name, document["annotations"], images, listed_ids, categories, faults, notes)
    return ListedSplit(name, categories, list(images.values()), len(document["images"]), len(document["annotations"]))


def _read_document(name: str, annotation_file: Path, faults: Findings) -> dict[str, list[Any]] | None:
    wrong: list[str] = []
    document = None
    try:
        document = json.loads(annotation_file.read_bytes())
    except OSError as error:
        wrong.append(f"cannot be read: {error.strerror}")
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not text
        wrong.append(f"is not JSON: {error}")
    else:
        if not isinstance(document, dict):
            wrong.append(f"must hold an object, holds {_kind_of(document)}")
        else:
            for key in ("images", "annotations", "categories"):
                if key not in document:
                    wrong.append(f"has no {key!r}")
                elif not isinstance(document[key], list):
                    wrong.append(f"{key!r} must be a list, is {_kind_of(document[key])}")
    for what in wrong:
        faults.add("annotations", name, f"{annotation_file.name} {what}")
    return None if wrong else document


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
        good_size = width is not None and height is not None and width > 0 and height > 0
        if image_id is None or not isinstance(file_name, str) or not file_name or not good_size:
            faults.add("image-entry", name, f"images[{i}]: {file_name if isinstance(file_name, str) else entry}")
            continue
        if repeated:
            faults.add("image-id-twice", name, f"{file_name} (id {image_id})")
            if image_id in images and images[image_id].file_name != file_name:
                images[image_id].usable = False  # its boxes could belong to either image
            continue
        path, stamp, kind = locate(root, file_name, real_parents)
        image = ListedImage(image_id, file_name, path, width or 0, height or 0, stamp, usable=kind is None)
        images[image_id] = image
        if kind is not None:
            faults.add(kind, name, file_name)
        elif path in paths:
            notes.add("file-twice", name, file_name)
        paths.add(path)
    return images, listed_ids


def locate(root: str, file_name: str, real_parents: dict[str, str]) -> tuple[str, tuple[int, int], str | None]:
    """Resolve the path of an image file without opening it.

    Args:
        root: real path of the image folder.
        file_name: path relative to it; sub-folders are allowed.
        real_parents: cache of resolved folders between calls, because resolving every link of every file is slow.

    Returns:
        The absolute path with all links resolved, its (size in bytes, mtime in ns), and the kind of fault or None.
    """
    inside = root.rstrip(os.sep) + os.sep
    path = os.path.join(root, file_name)
    try:
        parent, base = os.path.split(path)
        if parent not in real_parents:
            real_parents[parent] = os.path.realpath(parent)
        path = os.path.join(real_parents[parent], base)
        if base in ("", ".", "..") or not path.startswith(inside):
            return path, (0, 0), "path-outside"
        if os.path.islink(path):
            path = os.path.realpath(path)
            if not path.startswith(inside):
                return path, (0, 0), "path-outside"
        info = os.stat(path)
    except (OSError, ValueError):  # ValueError: not a valid file name
        return path, (0, 0), "image-missing"
    if not stat.S_ISREG(info.st_mode):
        return path, (0, 0), "image-missing"
    return path, (info.st_size, info.st_mtime_ns), None


def _read_boxes(
    name: str,
    entries: list[Any],
    images: Mapping[int, ListedImage],
    listed_ids: set[int],
    categories: Mapping[int, str],
    faults: Findings,
    notes: Findings,
) -> None:
    """Append every valid box to its image."""
    seen: set[int] = set()
    for i, entry in enumerate(entries):
        if not isinstance(entry, dict):
            faults.add("annotation-entry", name, f"annotations[{i}]: {entry}")
            continue
        image_id, category_id = _whole(entry.get("image_id")), _whole(entry.get("category_id"))
        iscrowd = entry.get("iscrowd", 0)
        annotation_id = _whole(entry.get("id"))  # optional: nothing here needs it
        label = f"annotation {entry.get('id', f'[{i}]')}"
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
        if image_id not in listed_ids:
            faults.add("image-unknown", name, f"{label}: image {image_id}")
        elif category_id not in categories:
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
    return clipped, "box-clipped" if min(clipped[2:]) >= MIN_SIDE_PX else "box-no-area"


class ImageFacts(NamedTuple):
    """Facts about a completely decoded image file."""

    width: int
    height: int
    digest: str  # BLAKE2b of the file, to find copies in other splits
    turned: bool  # has an EXIF orientation other than upright


class BadImage(NamedTuple):
    kind: str  # kind of fault
    why: str


def inspect_images(
    stamps: Mapping[str, tuple[int, int]], cache: Path | None
) -> tuple[dict[str, ImageFacts | BadImage], int, bool]:
    """Decode image files in threads, except those that the cache holds with the same size and mtime.

    Args:
        stamps: path -> (size in bytes, mtime in ns).
        cache: JSON file, created if missing and replaced atomically; one that cannot be read counts as empty.

    Returns:
        The facts or the fault of each path, the number of cache hits, and True if the cache on disk is up to date.
    """
    remembered = _read_cache(cache) if cache else {}
    known: dict[str, ImageFacts | BadImage] = {}
    for path, stamp in stamps.items():
        if path in remembered and remembered[path][0] == stamp:
            known[path] = remembered[path][1]
    n_from_cache = len(known)
    fresh = [path for path in stamps if path not in known]
    if fresh:
        n_threads = min(16, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
        Image.init()  # once, before the threads start
        # Pillow's warnings (large image, odd EXIF) would break up the progress display; those that matter are faults.
        with warnings.catch_warnings(), ThreadPoolExecutor(n_threads) as pool:
            warnings.simplefilter("ignore")
            known.update(zip(fresh, pool.map(inspect_image, fresh, chunksize=1), strict=True))
    saved = True
    if cache and fresh:
        found = {path: known[path] for path in fresh}
        good = {path: (stamps[path], facts) for path, facts in found.items() if isinstance(facts, ImageFacts)}
        saved = _write_cache(cache, remembered | good)
    return known, n_from_cache, saved


def inspect_image(path: str) -> ImageFacts | BadImage:
    """Decode one image completely, to detect truncated files, and return its size and digest."""
    try:
        data = Path(path).read_bytes()
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                return BadImage("image-too-large", f"{width}x{height}")
            if image.mode == "F" or image.mode.startswith("I"):
                return BadImage("image-unreadable", f"pixels of mode {image.mode}; convert to 8 bits")
            # JPEG only: decode to grey at an eighth of the size. The entropy-coded data are still read to the end.
            image.draft("L", (1, 1))
            image.load()
            turned = _is_turned(image)
    except Image.DecompressionBombError:
        return BadImage("image-too-large", f"more than {2 * MAX_PIXELS} pixels")
    except UnidentifiedImageError:
        return BadImage("image-unreadable", "not one of " + " ".join(FORMATS))
    except Exception as error:  # codecs raise almost any type; training could not read the file either
        return BadImage("image-unreadable", str(error) or type(error).__name__)
    return ImageFacts(width, height, hashlib.blake2b(data, digest_size=16).hexdigest(), turned)


def _is_turned(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_EXIF_ORIENTATION, 1) not in (0, 1)
    except Exception:  # broken EXIF does not matter if the pixels are valid
        return False


def _read_cache(cache: Path) -> dict[str, tuple[tuple[int, int], ImageFacts]]:
    try:
        document = json.loads(cache.read_bytes())
        if document["version"] != _CACHE_VERSION:
            return {}
        return {path: ((n, mtime), ImageFacts(*facts)) for path, (n, mtime, *facts) in document["images"].items()}
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return {}


def _write_cache(cache: Path, entries: Mapping[str, tuple[tuple[int, int], ImageFacts]]) -> bool:
    images = {path: [*stamp, *facts] for path, (stamp, facts) in entries.items()}
    document = {"version": _CACHE_VERSION, "images": images}
    part = cache.with_name(f".{cache.name}.{os.getpid()}.part")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(document))
        os.replace(part, cache)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()
        return False
    return True


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


def _kind_of(value: object) -> str:
    names = {"dict": "an object", "list": "a list", "str": "a text", "NoneType": "null"}
    return names.get(type(value).__name__, "a number")


def _printable(text: str, limit: int = 100) -> str:
    """Return a name without control characters, as it comes from a file and goes to the terminal."""
    text = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."
