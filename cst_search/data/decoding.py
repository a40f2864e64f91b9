"""Decode an image file to RGB: which way round, how grey scale of more than 8 bits is scaled, how much must be there.

EXIF's orientation (tag 0x0112, Exif 3.0 section 4.6.5.1.5) says how a viewer turns the stored picture to show it.
Pillow gives every format as stored, but TIFF as shown.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageFile

from cst_search.errors import DataError

# Pillow reads more formats, but loading an EPS file, whatever its name, starts Ghostscript.
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "WEBP", "TIFF", "PPM", "JPEG2000")
UPRIGHT = 1
FULL_RANGE = 65535.0  # white in grey scale of 16 bits
_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# chunk eXIf (PNG 3, section 11.3.3.5), ImageMagick's EXIF as text, and XMP
_PNG_MARKS = (b"eXIf", b"Raw profile type", b"adobe.xmp")
_INVERSE = {6: 8, 8: 6}  # the other turns undo themselves
_settings = threading.RLock()  # of Pillow, which has them for the whole process


@dataclass(frozen=True)
class Decoding:
    """How the pixels that Pillow reads from a file become RGB.

    Attributes:
        turn: EXIF orientation to apply, 1..8; 1: none.
        white: grey value that becomes 255, of an image of more than 8 bits; 0 for all other images.
        truncated: the file is cut off at its end; what is missing has the colour that Pillow leaves it.
    """

    turn: int = UPRIGHT
    white: float = 0.0
    truncated: bool = False


PLAIN = Decoding()


def decode(path: Path, size: tuple[int, int], how: Decoding) -> Image.Image:
    """Return an image in RGB.

    Args:
        size: (width, height) after turning, as the check found it.

    Raises:
        DataError: the file cannot be decoded, or is of another size; it is then not decoded.
    """
    try:
        with accepting_truncated() if how.truncated else contextlib.nullcontext(), open_image(path) as stored:
            if stored.format == "TIFF":
                stored.load()  # before that, it depends on Pillow's version which way round the size is
            found = turned_size(stored.size, how.turn)
            if found == size:
                image = _scaled(stored, how.white) if is_deep(stored) else stored.convert("RGB")
    except Exception as error:  # codecs raise almost any type
        raise DataError(f"image {path} cannot be read: {error}; was it changed after the check?") from error
    if found != size:
        raise DataError(
            f"image {path} is {found[0]}x{found[1]}, and was {size[0]}x{size[1]} when it was checked; its boxes would "
            f"be wrong"
        )
    return image.transpose(_TURNS[how.turn]) if how.turn in _TURNS else image


def open_image(source: Path | BytesIO) -> Image.Image:
    """Open a file of one of `FORMATS` without decoding it, however large it says it is."""
    with _settings:
        bound, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None  # callers have their own
        try:
            return Image.open(source, formats=FORMATS)
        finally:
            Image.MAX_IMAGE_PIXELS = bound


@contextlib.contextmanager
def accepting_truncated() -> Iterator[None]:
    """Let Pillow decode files that are cut off at their end, in this thread and, as it has one setting, in all."""
    with _settings:
        before, ImageFile.LOAD_TRUNCATED_IMAGES = ImageFile.LOAD_TRUNCATED_IMAGES, True
        try:
            yield
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


# --- orientation ------------------------------------------------------------------------------------------------------


def orientation_of(image: Image.Image) -> int:
    """Return the EXIF orientation of an image that Pillow has yet to apply, 1..8; 1 if there is none or it is broken.

    TIFF has one before it is decoded and none afterwards.
    """
    try:
        file = getattr(image, "fp", None)  # None once the pixels are decoded
        if image.format == "PNG" and file is not None and not _may_be_turned(file):
            return UPRIGHT  # Pillow would decode the pixels to look behind them
        found = image.getexif().get(_ORIENTATION, UPRIGHT)
    except Exception:  # broken EXIF does not matter if the pixels are valid
        return UPRIGHT
    return found if found in _TURNS else UPRIGHT


def _may_be_turned(png: IO[bytes]) -> bool:
    """Return False if a PNG file has none of the chunks in which an orientation may stand."""
    place = png.tell()
    png.seek(0)
    content = png.read()
    png.seek(place)
    return any(mark in content for mark in _PNG_MARKS)


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Return the (width, height) of a picture of this size after an EXIF orientation is applied, or undone."""
    return size if orientation < 5 else (size[1], size[0])


def inverse(orientation: int) -> int:
    """Return the orientation that undoes this one."""
    return _INVERSE.get(orientation, orientation)


# --- grey scale -------------------------------------------------------------------------------------------------------


def is_deep(image: Image.Image) -> bool:
    """Return True for grey scale of more than 8 bits, which ``convert("RGB")`` would clip."""
    return image.mode == "F" or image.mode.startswith("I")


def _scaled(image: Image.Image, white: float) -> Image.Image:
    values = np.asarray(image, np.float32) * np.float32(255 / white)
    return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
