"""What a data format gives to the reader: where the splits of a folder are, and each as a COCO document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SPLIT_NAMES = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}  # split -> names in use
Document = dict[str, list[Any]]  # the lists "images", "annotations" and "categories" of COCO; their entries unchecked


class DocumentError(Exception):
    """The annotations of a split cannot be read at all; the arguments are the reasons, each one a clause."""


@dataclass(frozen=True)
class SplitSource:
    """One split as found on disk: its annotations, its images, and how to read it."""

    annotations: Path  # a file, or the folder of one file per image
    images: Path  # the folder that file names are relative to
    read: Callable[[], Document]  # raises DocumentError


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
