"""COCO's JSON files, in the layouts of COCO itself, of Roboflow and of this project."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

from cst_search.data.formats.source import SPLIT_NAMES, DataFormat, Document, DocumentError, SplitSource
from cst_search.errors import DataError

_ROBOFLOW = "_annotations.coco.json"


def find(folder: Path) -> dict[str, SplitSource]:
    """Return the splits of a folder in one of COCO's layouts, by name.

    Raises:
        DataError: a split has several annotation files, or no image folder.
    """
    sources: dict[str, SplitSource] = {}
    for split, names in SPLIT_NAMES.items():
        candidates = sorted((folder / "annotations").glob(f"instances_{split}*.json"))
        for name in names:
            paths = (folder / f"{name}.json", folder / name / _ROBOFLOW)
            candidates += [path for path in paths if path.is_file()]
        if len(candidates) > 1:
            listed = ", ".join(str(path.relative_to(folder)) for path in candidates)
            raise DataError(
                f"each split must have one annotation file; {folder} has for {split}: {listed}. Move the others away"
            )
        for path in candidates:
            sources[split] = SplitSource(path, _image_folder(folder, path, names), partial(read, path))
    return sources


def _image_folder(folder: Path, annotation_file: Path, names: tuple[str, ...]) -> Path:
    if annotation_file.name == _ROBOFLOW:
        return annotation_file.parent
    stem = annotation_file.stem.removeprefix("instances_")  # train2017
    tried = [base / name for name in dict.fromkeys((stem, *names)) for base in (folder, folder / "images")]
    tried.append(folder / "images")
    for path in tried:
        if path.is_dir():
            return path
    listed = ", ".join(f"{path.relative_to(folder)}/" for path in tried)
    raise DataError(f"{annotation_file} has no image folder beside it; looked for {listed} in {folder}")


def read(annotation_file: Path) -> Document:
    """Return a COCO file as it is. Raises DocumentError if it is not JSON, or a list is missing."""
    try:
        document = json.loads(annotation_file.read_bytes())
    except OSError as error:
        raise DocumentError(f"cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:  # ValueError: not JSON, or not text
        raise DocumentError(f"is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise DocumentError(f"must hold an object, holds {_kind_of(document)}")
    wrong = [
        f"{key!r} must be a list, is {_kind_of(document[key])}" if key in document else f"has no {key!r}"
        for key in ("images", "annotations", "categories")
        if not isinstance(document.get(key), list)
    ]
    if wrong:
        raise DocumentError(*wrong)
    return document


def _kind_of(value: object) -> str:
    names = {"dict": "an object", "list": "a list", "str": "a text", "NoneType": "null"}
    return names.get(type(value).__name__, "a number")


FORMAT = DataFormat(
    name="coco",
    layouts=(
        "train.json, val.json (test.json)                    with images in train/, val/, images/train/ or images/",
        "annotations/instances_train2017.json, ..._val2017   with images in train2017/, images/train2017/ or images/",
        "train/_annotations.coco.json, valid/...             with the images beside it",
    ),
    find=find,
)
