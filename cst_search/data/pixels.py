"""Decode image files once, before training: their sizes, digests and faults, remembered from launch to launch."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError

MAX_PIXELS = 89_478_485  # PIL.Image.MAX_IMAGE_PIXELS, where Pillow warns: a quarter GiB as 24-bit RGB
# Pillow reads more formats, but loading an EPS file, whatever its name, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000")
_CACHE_VERSION = 1
_EXIF_ORIENTATION = 0x0112


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


def shown_size(path: Path) -> tuple[int, int] | None:
    """Return (width, height) of an image as viewers show it, turned by its EXIF orientation; None if it is no image.

    Only the head of the file is read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            quarter_turned = image.getexif().get(_EXIF_ORIENTATION, 1) in (5, 6, 7, 8)
    except Exception:  # as in `inspect_image`, which reports it
        return None
    return (height, width) if quarter_turned else (width, height)


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
