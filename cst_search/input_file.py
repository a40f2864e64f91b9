"""Read files that somebody else wrote: regular files only, up to a size limit.

A pipe without a writer would block forever, and ``/dev/zero`` would fill memory. Standard library only.
"""

from __future__ import annotations

import errno
import os
import stat
import zipfile
from pathlib import Path

MOST_BYTES = 8 * 10**9  # annotations: those of Objects365, the largest public set of boxes, take 6 GB
MOST_TEXT_BYTES = 16 * 10**6  # a recipe, a search space, the labels of one image
MOST_IMAGE_BYTES = 10**9  # encoded


def check_regular(path: Path, most_bytes: int = MOST_BYTES) -> None:
    """Raise OSError, whose ``strerror`` says why, if a path is no regular file or larger than ``most_bytes``."""
    _check(path, os.stat(path), most_bytes)


def read_regular(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return the content of a regular file. Raises OSError as `check_regular` does."""
    # else a pipe would be waited for before it is known to be one
    with open(path, "rb", opener=lambda name, flags: os.open(name, flags | getattr(os, "O_NONBLOCK", 0))) as file:
        _check(path, os.fstat(file.fileno()), most_bytes)
        return file.read(most_bytes)


def check_stored(path: Path) -> None:
    """Raise OSError if a zip archive unpacks to more than it takes: torch compresses nothing that it saves."""
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if sum(entry.file_size for entry in archive.infolist()) > os.path.getsize(path):
                raise OSError(errno.EFBIG, "it unpacks to more than it takes, which nothing that torch saves does")


def _check(path: Path, found: os.stat_result, most_bytes: int) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file but a pipe, a socket, a device or a folder", str(path))
    if found.st_size > most_bytes:
        raise OSError(errno.EFBIG, f"it has {found.st_size} bytes; at most {most_bytes} are read", str(path))
