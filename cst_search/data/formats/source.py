"""Interface of a data format: it finds the splits of a folder, and gives each as a COCO document."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# split -> names in use, in any letter case
SPLIT_NAMES = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
#: Endings of image files, where a format takes all images of a folder. `pixels.FORMATS` says what is decoded.
IMAGE_SUFFIXES = frozenset(
    (".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
)
# The lists "images", "annotations" and "categories" of COCO, their entries unchecked, and perhaps "findings": pairs
# (kind of fault or note, example) of what the format itself found.
Document = dict[str, list[Any]]


class DocumentError(Exception):
    """The annotations of a split cannot be read at all; the arguments are the reasons, each one a clause."""


@dataclass(frozen=True)
class SplitSource:
    """One split as found on disk: its annotations, its images, and how to read it."""

    annotations: Path  # a file, or the folder of one file per image
    images: Path  # the folder that file names are relative to
    read: Callable[[], Document]  # raises DocumentError
    format: str = ""  # name of the format; `find_splits` sets it
    exif: str = "auto"  # shown: by the format's rules, boxes lie on the picture as its EXIF orientation shows it


@dataclass(frozen=True)
class DataFormat:
    """A format of data sets: what a folder in it looks like, and how to find its splits.

    Attributes:
        layouts: one line per layout of files that `find` understands, for messages.
        find: returns the splits of a folder by name (train, val, test); empty if the folder is not in this format.
            Raises DataError if it is, but unclear.
    """

    name: str
    layouts: tuple[str, ...]
    find: Callable[[Path], Mapping[str, SplitSource]]


def split_of(name: str) -> str | None:
    """Return the split that a folder or file of this name is for, or None."""
    return next((split for split, names in SPLIT_NAMES.items() if name.lower() in names), None)


def child(folder: Path, *names: str) -> Path | None:
    """Return the first sub-folder of one of these names, in any letter case but preferably in this one."""
    with os.scandir(folder) as entries:  # a folder may hold 100,000 images
        inside = sorted((entry.name for entry in entries if entry.is_dir()), reverse=True)
    found = {name: folder / name for name in inside}
    folded = {name.lower(): path for name, path in found.items()}
    return next((path for name in names if (path := found.get(name) or folded.get(name.lower()))), None)


def is_image(path: Path) -> bool:
    return path.suffix.lower() in IMAGE_SUFFIXES
