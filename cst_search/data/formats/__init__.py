"""Formats of data sets: one file per format, and the choice of the one that a folder is in.

Other packages can add formats, see `plugins`; all that a format needs is imported from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from cst_search import plugins
from cst_search.data.formats import coco, voc, yolo
from cst_search.data.formats.source import DataFormat, Document, DocumentError, SplitSource
from cst_search.errors import DataError

__all__ = [
    "FORMATS",
    "DataFormat",
    "Document",
    "DocumentError",
    "SplitSource",
    "find_splits",
    "get_format",
    "without_split",
]

#: Built-in formats by name, in the order in which a folder is tried.
FORMATS: dict[str, DataFormat] = {f.name: f for f in (coco.FORMAT, yolo.FORMAT, voc.FORMAT)}


def get_format(name: str) -> DataFormat:
    """Return the built-in format or plug-in called ``name``. Raises ConfigError."""
    return plugins.get("formats", name, DataFormat, FORMATS)


def _all_formats() -> Iterator[DataFormat]:
    """Yield the formats of this package, then those of others, which are imported when it is their turn."""
    yield from FORMATS.values()
    yield from map(get_format, plugins.names("formats"))


def find_splits(folder: Path) -> Mapping[str, SplitSource]:
    """Return the splits of a folder by name (train, val, test), in the format that the folder is in.

    Raises:
        DataError: the folder does not exist, is in no known format, or is unclear.
        ConfigError: a format of another package cannot be loaded.
    """
    if not folder.is_dir():
        raise DataError(f"the dataset must be a folder; there is no folder {folder}")
    for data_format in _all_formats():
        if sources := data_format.find(folder):
            return {name: replace(source, format=data_format.name) for name, source in sources.items()}
    raise DataError(without_split(folder, "no split"))


def without_split(folder: Path, what: str, sources: Mapping[str, SplitSource] = MappingProxyType({})) -> str:
    """Return the message that a folder has ``what`` (no split), with the known layouts and what the folder holds."""
    names = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    names += sorted(f"annotations/{path.name}" for path in (folder / "annotations").glob("*.json"))
    found = ", ".join(names[:20]) + (", ..." if len(names) > 20 else "")
    layouts = "\n".join(f"  {line}" for data_format in _all_formats() for line in data_format.layouts)
    remedy = ""
    if "train" in sources and "val" not in sources:
        remedy = (
            f"\nTo validate on a fifth of its images in {sources['train'].images}: --val-fraction 0.2 "
            "(recipe field val_fraction)"
        )
    return f"{folder} has {what}. Understood are\n{layouts}\nFound: {found or 'an empty folder'}{remedy}"
