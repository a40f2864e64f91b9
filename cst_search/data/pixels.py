"""Decode image files once, before training: their sizes, digests and faults, remembered from launch to launch."""

from __future__ import annotations

import hashlib
import io
import json
import warnings
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from cst_search.config.recipe import MAX_PIXELS
from cst_search.cores import n_cores
from cst_search.data.decoding import (
    FORMATS,
    UPRIGHT,
    Decoding,
    accepting_truncated,
    inverse,
    is_deep,
    open_image,
    orientation_of,
    turned_size,
)
from cst_search.data.options import ReadOptions
from cst_search.data.saved import replace_file
from cst_search.input_file import MOST_IMAGE_BYTES, check_regular

_CACHE_VERSION = 2


class ImageFacts(NamedTuple):
    """Facts about an image file that was decoded, the same however data are read.

    Attributes:
        width, height: of the pixels that Pillow gives.
        digest: BLAKE2b of the file, to find copies in other splits; empty if only the header was read.
        orientation: of EXIF, 1..8.
        is_turned: Pillow has applied the orientation: it does so for TIFF.
        depth: ``int`` or ``float`` for grey scale of more than 8 bits, else empty.
        peak: largest value of such an image.
        truncated: the file is cut off at its end.
        transparent: some pixels are not opaque.
    """

    width: int
    height: int
    digest: str
    orientation: int = UPRIGHT
    is_turned: bool = False
    depth: str = ""
    peak: float = 0.0
    truncated: bool = False
    transparent: bool = False

    def size(self, picture: str) -> tuple[int, int]:
        """Return the (width, height) of the picture as ``shown`` or as ``stored``."""
        size = self.width, self.height
        return size if self.is_turned == (picture == "shown") else turned_size(size, self.orientation)

    def decoding(self, picture: str, white: float = 0.0) -> Decoding:
        """Return how the file is decoded to the picture as ``shown`` or as ``stored``.

        Args:
            white: grey value that becomes 255, for an image of more than 8 bits.
        """
        orientation = inverse(self.orientation) if self.is_turned else self.orientation
        turn = UPRIGHT if self.is_turned == (picture == "shown") else orientation
        return Decoding(turn, white if self.depth else 0.0, self.truncated)


class BadImage(NamedTuple):
    kind: str  # kind of fault
    why: str


def inspect_images(
    stamps: Mapping[str, tuple[int, int]], cache: Path | None, options: ReadOptions, *, decode: bool = True
) -> tuple[dict[str, ImageFacts | BadImage], int, bool]:
    """Decode image files in threads, except those that the cache holds with the same size and mtime.

    Args:
        stamps: path -> (size in bytes, mtime in ns).
        cache: JSON file, created if missing and replaced atomically; one that cannot be read counts as empty.
        decode: see `inspect_image`.

    Returns:
        The facts or the fault of each path, the number of cache hits, and True if the cache on disk is up to date.
    """
    remembered = _read_cache(cache) if cache else {}
    known: dict[str, ImageFacts | BadImage] = {}
    for path, stamp in stamps.items():
        if path in remembered and remembered[path][0] == stamp:
            known[path] = _within(remembered[path][1], options)
    n_from_cache = len(known)
    fresh = [path for path in stamps if path not in known]
    known |= _inspected(fresh, options, decode)
    saved = True
    if cache and fresh and decode:
        found = {path: known[path] for path in fresh}
        good = {path: (stamps[path], facts) for path, facts in found.items() if isinstance(facts, ImageFacts)}
        saved = _write_cache(cache, remembered | good)
    return known, n_from_cache, saved


def _inspected(paths: Iterable[str], options: ReadOptions, decode: bool) -> dict[str, ImageFacts | BadImage]:
    paths = list(paths)
    if not paths:
        return {}
    inspect = partial(inspect_image, max_pixels=options.max_pixels, decode=decode)
    n_threads = min(16, n_cores())
    Image.init()  # once, before the threads start
    # Pillow's warnings (large image, odd EXIF) would break up the progress display; those that matter are faults.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ThreadPoolExecutor(n_threads) as pool:
            found = dict(zip(paths, pool.map(inspect, paths, chunksize=1), strict=True))
        cut_off = [path for path, facts in found.items() if facts[0] == "image-truncated"]
        if cut_off and options.truncated == "use":
            with accepting_truncated():  # not in threads: Pillow has this setting for all of them
                found |= {path: _marked(inspect(path)) for path in cut_off}
    return found


def _marked(facts: ImageFacts | BadImage) -> ImageFacts | BadImage:
    return facts._replace(truncated=True) if isinstance(facts, ImageFacts) else facts


def _within(facts: ImageFacts, options: ReadOptions) -> ImageFacts | BadImage:
    """Return remembered facts, or the fault that they are with these options."""
    if facts.width * facts.height > options.max_pixels:
        return _too_large(facts.width, facts.height)
    if facts.truncated and options.truncated != "use":
        return BadImage("image-truncated", "image file is truncated")
    return facts


def inspect_image(path: str, *, max_pixels: int = MAX_PIXELS, decode: bool = True) -> ImageFacts | BadImage:
    """Return the facts or the fault of one image file.

    Args:
        max_pixels: bound of width times height.
        decode: decode it completely, to detect truncated files. If False, pixels are read only where the facts that
            training needs depend on them, and there is no digest.
    """
    try:
        check_regular(Path(path), MOST_IMAGE_BYTES)
        data = Path(path).read_bytes() if decode else b""
        with open_image(io.BytesIO(data) if decode else Path(path)) as image:
            width, height = image.size
            if width * height > max_pixels:
                return _too_large(width, height)
            found = _facts(image, decode)
    except UnidentifiedImageError:
        return BadImage("image-unreadable", "not one of " + " ".join(FORMATS))
    except Exception as error:  # codecs raise almost any type; training could not read the file either
        why = str(error) or type(error).__name__
        return BadImage("image-truncated" if "truncated" in why else "image-unreadable", why)
    if isinstance(found, BadImage):
        return found
    return found._replace(digest=file_digest(data)) if decode else found


def file_digest(content: bytes) -> str:
    """Return a key of a file's content."""
    return hashlib.blake2b(content, digest_size=16).hexdigest()


def shown_size(path: Path) -> tuple[int, int] | None:
    """Return (width, height) of an image as viewers show it, turned by its EXIF orientation; None if it is no image.

    Only the head of the file is read, where that says enough.
    """
    try:
        with open_image(path) as image:
            orientation = orientation_of(image)
            if image.format == "TIFF" and orientation != UPRIGHT:
                image.load()  # turns it
                return image.size
            return turned_size(image.size, orientation)
    except Exception:  # as in `inspect_image`, which reports it
        return None


def _facts(image: Image.Image, decode: bool) -> ImageFacts | BadImage:
    """Return the facts of an opened image, without its digest."""
    size, orientation, depth, peak = image.size, orientation_of(image), "", 0.0
    is_turned = transparent = False
    if decode or is_deep(image) or (orientation != UPRIGHT and image.format == "TIFF"):
        # JPEG only: decode to grey at an eighth of the size. The entropy-coded data are still read to the end.
        image.draft("L", (1, 1))
        image.load()
        if orientation != UPRIGHT and orientation_of(image) == UPRIGHT:
            size, is_turned = image.size, True
        transparent = _is_transparent(image)
    if is_deep(image):
        values = np.asarray(image)
        depth, peak = "float" if image.mode == "F" else "int", float(values.max())
        if not values.min() >= 0:  # NaN is not either
            return BadImage("image-unreadable", "grey values below 0, or not numbers; convert to 8 bits")
    else:
        Image.new(image.mode, (1, 1)).convert("RGB")  # raises for the few modes that have no way to RGB
    return ImageFacts(*size, "", orientation, is_turned, depth, peak, False, transparent)


def _is_transparent(image: Image.Image) -> bool:
    """Return True if a pixel of a decoded image is not opaque."""
    if image.mode in ("P", "L", "RGB") and "transparency" in image.info:  # a colour that stands for it
        image = image.convert("RGBA")
    if image.mode not in ("RGBA", "LA", "PA"):
        return False
    low, _ = image.getchannel("A").getextrema()
    return bool(low < 255)  # type: ignore[operator]  # one band has one pair


def _too_large(width: int, height: int) -> BadImage:
    return BadImage("image-too-large", f"{width}x{height}: --max-pixels {width * height}")


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
    return replace_file(cache, json.dumps({"version": _CACHE_VERSION, "images": images}))
