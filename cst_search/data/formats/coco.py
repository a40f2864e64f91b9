"""COCO's JSON files, in the layouts of COCO itself, of the tools that write them, and of this project."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path
from typing import Any

from cst_search.data.formats.source import (
    SPLIT_NAMES,
    DataFormat,
    Document,
    DocumentError,
    SplitSource,
    child,
    is_image,
    split_of,
)
from cst_search.errors import DataError
from cst_search.input_file import read_regular

_ROBOFLOW = "_annotations.coco.json"
# the annotation file in the folder of its split: Roboflow's, FiftyOne's, and what else is in use
_IN_SPLIT_FOLDER = ("_annotations.coco", "labels", "annotations", "_annotations", "instances_default", "coco", "result")
_IMAGE_FOLDERS = ("images", "data", "JPEGImages")  # COCO and CVAT, FiftyOne, labelme's own converter
_NAMES = "|".join(sorted((name for names in SPLIT_NAMES.values() for name in names), key=len, reverse=True))
_WORD = "instances|annotations?|coco|labels"
_WITH_SPLIT = re.compile(rf"(?:(?:{_WORD})[_-])?({_NAMES})(?:\d{{4}}|[_-](?:{_WORD}))?", re.IGNORECASE)
_COCOS_OWN = re.compile(r"instances_(train|val|test)", re.IGNORECASE)  # with anything behind it: instances_val2017


def find(folder: Path) -> dict[str, SplitSource]:
    """Return the splits of a folder in one of the layouts in which tools write COCO files, by name.

    A single file that names no split is the training split.

    Raises:
        DataError: a split has several annotation files, or no image folder. Of a test split, which most commands do not
            read, that is found on reading.
    """
    candidates: dict[str, list[Path]] = {}
    for path in _json_files(folder):
        if split := _split_of_file(path, folder):
            candidates.setdefault(split, []).append(path)
    if not candidates.keys() & {"train", "val"}:
        named = {path for paths in candidates.values() for path in paths}
        single = [path for path in _json_files(folder) if path not in named and _is_document(path)]
        candidates |= {"train": single} if single else {}
    sources = {}
    for split in SPLIT_NAMES:
        if paths := candidates.get(split):
            try:
                sources[split] = _source(folder, split, paths)
            except DataError as error:
                if split != "test":
                    raise
                sources[split] = SplitSource(paths[0], folder, partial(_refuse, str(error)))
    return sources


def _source(folder: Path, split: str, paths: list[Path]) -> SplitSource:
    if len(paths) > 1:
        listed = ", ".join(str(path.relative_to(folder)) for path in paths)
        raise DataError(
            f"each split must have one annotation file; {folder} has for {split}: {listed}. Move the others away"
        )
    return SplitSource(paths[0], _image_folder(folder, paths[0]), partial(read, paths[0]))


def _refuse(why: str) -> Document:
    raise DocumentError(f"cannot be used: {why}")


def _json_files(folder: Path) -> list[Path]:
    """Return the JSON files at the top, in annotations/, and those with a usual name in the folders of splits."""
    found = sorted(folder.glob("*.json")) + sorted((child(folder, "annotations") or folder).glob("*.json"))
    for split_folder in sorted(folder.iterdir()):
        if split_of(split_folder.name) and split_folder.is_dir():
            for place in (split_folder, child(split_folder, "annotations")):
                names = (*_IN_SPLIT_FOLDER, split_folder.name)
                found += [path for name in names if place and (path := place / f"{name}.json").is_file()]
    return [path for path in dict.fromkeys(found) if path.is_file()]


def _split_of_file(path: Path, folder: Path) -> str | None:
    own_folder = _split_folder(path, folder)
    if own_folder is not None:
        return split_of(own_folder.name)
    if path.parent != folder and (match := _COCOS_OWN.match(path.stem)):
        return match[1].lower()
    match = _WITH_SPLIT.fullmatch(path.stem)
    return split_of(match[1]) if match else None


def _split_folder(path: Path, folder: Path) -> Path | None:
    """Return the folder of a split that an annotation file is in, or None."""
    return next((place for place in (path.parent, path.parent.parent) if place != folder and split_of(place.name)
                 and folder in place.parents), None)  # fmt: skip


def _image_folder(folder: Path, annotation_file: Path) -> Path:
    if annotation_file.name == _ROBOFLOW:
        return annotation_file.parent
    if own_folder := _split_folder(annotation_file, folder):
        return child(own_folder, *_IMAGE_FOLDERS) or own_folder
    stem = annotation_file.stem.removeprefix("instances_")  # train2017; default, as CVAT calls it
    split = _split_of_file(annotation_file, folder)
    names = dict.fromkeys((stem, *SPLIT_NAMES.get(split or "", ())))
    bases = [folder, *(place for name in _IMAGE_FOLDERS if (place := child(folder, name)))]
    for path in (*(child(base, name) for name in names for base in bases), *bases[1:]):
        if path is not None:
            deeper = None if _has_images(path) else child(path, *_IMAGE_FOLDERS)
            return deeper if deeper and _has_images(deeper) else path
    if _has_images(folder):
        return folder
    tried = [f"{place}{name}/" for name in names for place in ("", "images/")]
    raise DataError(f"{annotation_file} has no image folder beside it; looked for {', '.join(tried)}, "
                    f"{'/, '.join(_IMAGE_FOLDERS)}/ and images in {folder}")  # fmt: skip


def _has_images(folder: Path) -> bool:
    return any(is_image(path) for path in folder.iterdir())


def _is_document(path: Path) -> bool:
    """Return True if a JSON file is a COCO document, and no list of settings or results."""
    try:
        document = json.loads(read_regular(path))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(document, dict) and "images" in document and "annotations" in document


def read(annotation_file: Path) -> Document:
    """Return the content of a COCO file. Raises DocumentError if it is not JSON, or a list is missing."""
    try:
        document = json.loads(read_regular(annotation_file))
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
    categories, findings = _without_project(document["categories"], document["annotations"])
    return {"images": document["images"], "annotations": document["annotations"], "categories": categories} | findings


def _without_project(categories: list[Any], annotations: list[Any]) -> tuple[list[Any], Document]:
    """Leave out the category with the name of the project, which Roboflow puts before the classes.

    It has id 0, "none" as its supercategory, and is the supercategory of all others. No object is of it.
    """
    first, *others = categories or [None]
    if not others or not all(isinstance(entry, dict) for entry in categories):
        return categories, {}
    is_project = first.get("id") == 0 and first.get("supercategory") == "none"
    is_parent = all(entry.get("supercategory") == first.get("name") for entry in others)
    if not is_project or not is_parent or any(isinstance(a, dict) and a.get("category_id") == 0 for a in annotations):
        return categories, {}
    return others, {"findings": [("category-of-project", first.get("name"))]}


def _kind_of(value: object) -> str:
    names = {"dict": "an object", "list": "a list", "str": "a text", "NoneType": "null"}
    return names.get(type(value).__name__, "a number")


FORMAT = DataFormat(
    name="coco",
    layouts=(
        "train.json, val.json (test.json)                    with images in train/, val/, images/train/ or images/",
        "annotations/instances_train2017.json, ..._val2017   with images in train2017/, images/train2017/ or images/",
        "annotations/train.json, annotations/val.json        likewise",
        "train/_annotations.coco.json, valid/...             with the images beside it (Roboflow)",
        "train/labels.json, validation/...                   with images in train/data/ (FiftyOne)",
        "one COCO file: result.json, annotations/instances_default.json, ...  with images in images/ or data/, and "
        "--val-fraction",
    ),
    find=find,
)
