"""Read images that are sent to a served model: file paths, or whole files in base64."""

from __future__ import annotations

import base64
import binascii
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def image_files(images: Sequence[str]) -> Iterator[list[Path]]:
    """Give each image as a file; those sent in base64 exist inside the ``with`` block only.

    Raises ValueError for what is neither a file nor base64.
    """
    with tempfile.TemporaryDirectory(prefix="cst-search-") as folder:
        yield [_as_file(text, Path(folder) / f"inputs[{i}]") for i, text in enumerate(images)]


def _as_file(text: str, path: Path) -> Path:
    """Return the file of an image: the given path, or ``path`` after writing base64 data to it."""
    if os.path.isfile(text):  # False for base64 of any length, where Path.is_file refuses a name that is too long
        return Path(text)
    try:
        path.write_bytes(base64.b64decode(text.partition("base64,")[2] or text, validate=True))
    except binascii.Error:
        raise ValueError(f"image must be the path of a file or a file in base64; got {text[:60]!r}") from None
    return path
