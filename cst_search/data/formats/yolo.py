"""YOLO's text files, as Ultralytics reads them: ``data.yaml`` names splits and classes, and each image has a text file.

Darknet's ``obj.data`` and Label Studio's ``classes.txt`` stand for data.yaml in exports of CVAT and Label Studio.

A row is ``class cx cy w h`` as shares of the image *as shown*, which is how Ultralytics opens it (EXIF applied), or
``class x1 y1 x2 y2 x3 y3 ...``, an outline, which becomes the box around it. With ``kpt_shape``, keypoints stand behind
the box. Paths and rows follow docs.ultralytics.com/datasets/detect and `check_det_dataset`, `img2label_paths` and
`verify_image_label` of the package ultralytics, which is no dependency: it is AGPL, and drops what it does not like
with a line in its log.

All paths stay inside the data folder. ``path`` of another machine is passed over.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from cst_search.data.formats.source import DataFormat, Document, DocumentError, SplitSource, child, is_image
from cst_search.data.pixels import shown_size
from cst_search.errors import DataError
from cst_search.input_file import read_regular

_CONFIGS = ("data.yaml", "data.yml", "dataset.yaml", "dataset.yml")
_CLASS_LIST = "classes.txt"  # Label Studio's export has a list instead of data.yaml
_DARKNET = "obj.data"  # CVAT's "YOLO 1.1" has Darknet's file of settings
_KEYS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_ROUNDING = 1e-5  # shares are written with six decimals, so corners miss the edge of the image by this much


@dataclass(frozen=True)
class _Settings:
    """Contents of data.yaml."""

    file: Path
    folder: Path  # of the data set
    names: tuple[str, ...]
    n_keypoint_values: int  # per row, behind the box

    def document(self, images: list[Path], root: Path) -> Document:
        """Return images and boxes of a split. ``root``: the folder that file names are relative to."""
        entries: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        findings: list[tuple[str, str]] = []
        n_labelled = 0
        for image_id, image in enumerate(images, start=1):
            width, height = shown_size(image) or (1, 1)  # no image: the check of pixels names it
            label_file = self.label_file(image)
            is_labelled = label_file.is_file()
            n_labelled += is_labelled
            try:
                rows = _rows(label_file) if is_labelled else []
            except (OSError, UnicodeDecodeError) as error:
                findings.append(("annotations-unreadable", f"{label_file.relative_to(self.folder)}: {error}"))
                continue
            file_name = image.relative_to(root).as_posix()
            entries.append({"id": image_id, "file_name": file_name, "width": width, "height": height})
            for place, row in rows:
                fields = {"image_id": image_id, "id": len(annotations) + 1, "place": place}
                annotations.append(fields | _annotation(row, width, height, self.n_keypoint_values))
        if images and not n_labelled:
            expected = self.label_file(images[0]).relative_to(self.folder)
            raise DocumentError(f"has no label file for any of {len(images)} images; looked for {expected}, ...")
        findings += [("annotations-without-image", str(path.relative_to(self.folder))) for path in self._left(images)]
        categories = [{"id": i, "name": name} for i, name in enumerate(self.names)]
        return {"images": entries, "annotations": annotations, "categories": categories, "findings": findings}

    def label_file(self, image: Path) -> Path:
        """Return the text file of an image: the last folder ``images`` becomes ``labels``, else beside the image."""
        parts = list(image.relative_to(self.folder).parts)
        folders = [i for i, part in enumerate(parts[:-1]) if part == "images"]
        if folders:
            parts[folders[-1]] = "labels"
        return self.folder.joinpath(*parts).with_suffix(".txt")

    def _left(self, images: list[Path]) -> list[Path]:
        """Return the label files beside those of the images that no image has."""
        expected = {self.label_file(image) for image in images}
        beside = {path for folder in {path.parent for path in expected} for path in folder.glob("*.txt")}
        lists = {"classes.txt", "train.txt", "val.txt", "test.txt"}
        return sorted(path for path in beside - expected if path.name not in lists and path.parent != self.folder)


def find(folder: Path) -> dict[str, SplitSource]:
    """Return the splits that data.yaml or obj.data names; with a list of classes alone, ``images/`` is for training.

    Raises:
        DataError: data.yaml cannot be used, or names what is not in the folder.
    """
    file, content = _config(folder)
    if file is None:
        return {}
    settings = _Settings(file, folder, _class_names(file, content), _n_keypoint_values(file, content))
    sources = {}
    for split, keys in _KEYS.items():
        value = next((content[key] for key in keys if content.get(key)), None)
        if value is None:
            continue
        places = [_inside(settings, content, str(item)) for item in (value if isinstance(value, list) else [value])]
        root = places[0] if len(places) == 1 and places[0].is_dir() else folder
        sources[split] = SplitSource(file, root, partial(_read, settings, places, root), exif="shown")
    return sources


def _config(folder: Path) -> tuple[Path | None, dict[str, Any]]:
    """Return the file that describes the data set, and its content."""
    usual = [path for name in _CONFIGS if (path := folder / name).is_file()]
    others = sorted(path for path in folder.glob("*.y*ml") if path not in usual)
    found = [(path, content) for path in usual + others if (content := _yaml(path, strict=path in usual))]
    found = [
        (path, content)
        for path, content in found
        if (content.get("train") or content.get("val")) and (path in usual or "names" in content)
    ]
    if len(found) > 1:
        raise DataError(f"{folder} must have one data.yaml; it has {', '.join(path.name for path, _ in found)}. "
                        "Move the others away")  # fmt: skip
    if found:
        return found[0]
    if (darknet := folder / _DARKNET).is_file():
        parts = [line.partition("=") for line in _lines(darknet)]
        settings: dict[str, Any] = {key.strip(): value.strip() for key, _, value in parts}
        listed = Path(settings.get("names", "obj.names")).name  # data/obj.names: written for Darknet's own folder
        return darknet, settings | {"names": _lines(folder / listed)}
    if (classes := folder / _CLASS_LIST).is_file() and child(folder, "images") and child(folder, "labels"):
        return classes, {"names": _lines(classes), "train": "images"}
    return None, {}


def _lines(file: Path) -> list[str]:
    try:
        return read_regular(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} must be there, and text: {error}") from None


def _yaml(path: Path, *, strict: bool) -> dict[str, Any]:
    """Return the mapping in a YAML file; empty if it is none. All values are text: a class may be called ``no``."""
    try:
        import yaml
    except ImportError:
        raise DataError(f"{path} can only be read with PyYAML: pip install pyyaml") from None
    try:
        content = yaml.load(read_regular(path).decode("utf-8-sig"), Loader=yaml.BaseLoader)
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        if strict:
            raise DataError(f"{path} must be YAML: {' '.join(str(error).split())}") from None
        return {}
    return content if isinstance(content, dict) else {}


def _class_names(file: Path, content: dict[str, Any]) -> tuple[str, ...]:
    """Return the names in the order of their numbers, from a list or from {number: name}."""
    names, n_classes = content.get("names"), str(content.get("nc", ""))
    if isinstance(names, dict):
        numbers = sorted(int(key) if key.isdecimal() else -1 for key in names)
        if numbers != list(range(len(names))):
            raise DataError(f"'names' in {file} must number the classes from 0 without a gap; got {list(names)}")
        names = [names[key] for key in sorted(names, key=int)]
    elif names is None and n_classes.isdecimal():
        names = [f"class_{i}" for i in range(int(n_classes))]  # as Ultralytics calls them
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise DataError(f"{file} must have 'names', a list of the classes or {{number: name}}; got {names!r}")
    names = [name.strip() for name in names]
    names = names[: max((i for i, name in enumerate(names, start=1) if name), default=0)]  # a list ends with a newline
    if n_classes.isdecimal() and int(n_classes) != len(names):
        raise DataError(f"'nc' and 'names' in {file} must agree; nc is {n_classes}, and there are {len(names)} names")
    return tuple(names)


def _n_keypoint_values(file: Path, content: dict[str, Any]) -> int:
    shape = content.get("kpt_shape")
    if shape is None:
        return 0
    if not isinstance(shape, list) or not all(isinstance(n, str) and n.isdecimal() for n in shape):
        raise DataError(f"'kpt_shape' in {file} must be two numbers; got {shape!r}")
    return math.prod(map(int, shape))


def _inside(settings: _Settings, content: dict[str, Any], place: str) -> Path:
    """Return the folder, or list of images, that data.yaml means, within the data folder.

    Roboflow writes ``../train/images`` for ``train/images``, which Ultralytics understands too.
    """
    folder, base = settings.folder, str(content.get("path") or "")
    place = place.replace("\\", "/")
    short = place.removeprefix("./")
    while short.startswith("../"):
        short = short[3:]
    bases = [folder / base, folder] if base else [folder]
    for path in _within(folder, [start / name for start in bases for name in (place, short)], place):
        if path.exists():
            return path
    raise DataError(f"{settings.file} names {place!r}, which is not in {folder}; put it there, or give the folder that "
                    "holds both")  # fmt: skip


def _within(folder: Path, paths: list[Path], place: str) -> Iterator[Path]:
    """Yield paths that are in the folder, then what an absolute path of another machine may be here: its last parts."""
    parts = [part for part in place.split("/") if part not in ("", ".", "..")]
    tails = [folder.joinpath(*parts[i:]) for i in range(1, len(parts))]
    for path in map(os.path.normpath, [*paths, *tails]):  # links stay: the check of file names follows them
        if Path(path).is_relative_to(os.path.normpath(folder)):
            yield folder / Path(path).relative_to(os.path.normpath(folder))


def _read(settings: _Settings, places: list[Path], root: Path) -> Document:
    images: list[Path] = []
    for place in places:
        images += sorted(filter(is_image, place.rglob("*"))) if place.is_dir() else _listed(place, settings)
    if not images:
        raise DocumentError(f"names {', '.join(map(str, places))}, where there is no image")
    return settings.document(images, root)


def _listed(file: Path, settings: _Settings) -> list[Path]:
    """Return the images that a text file lists, one a line, relative to it or to the data folder."""
    try:
        lines = read_regular(file).decode("utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DocumentError(f"names {file.name}, which is no list of images: {error}") from None
    images = []
    for line in filter(None, map(str.strip, lines)):
        place, folder = line.replace("\\", "/"), settings.folder
        tried = _within(folder, [file.parent / place, folder / place], place)
        images.append(next((path for path in tried if path.is_file()), folder / place.lstrip("/.")))
    return images


def _rows(file: Path) -> list[tuple[str, list[str]]]:
    """Return the place and the words of each row that is not empty."""
    lines = read_regular(file).decode("utf-8-sig").splitlines()
    return [(f"{file.name} line {number}", line.split()) for number, line in enumerate(lines, start=1) if line.strip()]


def _annotation(words: list[str], width: int, height: int, n_keypoint_values: int) -> dict[str, Any]:
    """Return category and box of a row. What cannot be read stays as it is, so that the check of entries names it."""
    category, numbers = _number(words[0]), [_number(word) for word in words[1:]]
    values = [number for number in numbers if isinstance(number, float)]
    if len(values) < len(numbers):
        return {"category_id": category, "bbox": numbers, "iscrowd": 0}
    if n_keypoint_values and len(values) == 4 + n_keypoint_values:
        values = values[:4]
    if len(values) == 4:
        cx, cy, w, h = values
        corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    elif len(values) >= 6 and len(values) % 2 == 0 and not n_keypoint_values:
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    else:
        return {"category_id": category, "bbox": values, "iscrowd": 0}
    left, top, right, bottom = (_snapped(corner) for corner in corners)
    box = [left * width, top * height, (right - left) * width, (bottom - top) * height]
    return {"category_id": category, "bbox": box, "iscrowd": 0}


def _number(word: str) -> float | str:
    try:
        return float(word)
    except ValueError:
        return word


def _snapped(share: float) -> float:
    """Return a share of the image, on the edge if it misses the edge by no more than rounding."""
    return next((edge for edge in (0.0, 1.0) if abs(share - edge) <= _ROUNDING), share)


FORMAT = DataFormat(
    name="yolo",
    layouts=(
        "data.yaml (names, train, val)                       with images/... and labels/... as Ultralytics has them",
        "obj.data, obj.names, train.txt, obj_train_data/     (Darknet, CVAT's YOLO 1.1), with --val-fraction",
        "classes.txt, images/, labels/                       (Label Studio's YOLO), with --val-fraction",
    ),
    find=find,
)
