"""Pascal VOC's XML files, one per image, in VOC's own layout and in those of Roboflow, CVAT and labelImg.

What a corner means differs between tools, and no file says it:

* VOC's development kit numbers pixels from 1, and both corners are in the box: (1, 1, W, H) is the whole image, and a
  box starts at xmin - 1 and ends at xmax. Detectron2 (`load_voc_instances`) and supervision read all files so.
* labelImg, CVAT and Datumaro write positions from 0. labelImg raises a 0 to 1 (`convert_points_to_bnd_box`).

So the files decide, all splits together (`_DataSet.counts_from_1`), and a note says what was chosen. A wrong choice
would be one pixel at two sides of each box. torchvision's `VOCDetection` leaves the corners to its caller.

``difficult`` objects become crowds: VOC's rules leave them out of training and of the score.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from cst_search.data.formats.source import DataFormat, Document, SplitSource, child, is_image, split_of
from cst_search.errors import DataError
from cst_search.input_file import MOST_TEXT_BYTES, read_regular

_XML_FOLDERS = ("Annotations", "xml", "xmls")
_IMAGE_FOLDERS = ("JPEGImages", "images")
_CLASS_LISTS = ("labelmap.txt", "classes.txt", "labels.txt")  # CVAT's; one name a line
_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_TOOLS_FROM_0 = "Unknown"  # <database> of labelImg, CVAT and Datumaro; VOC has "The VOC2007 Database"


@dataclass(frozen=True)
class _Object:
    name: str
    corners: tuple[float, ...] | None  # None: not four numbers
    is_difficult: bool


@dataclass(frozen=True)
class _Annotation:
    """Contents of an XML file: an image and its objects."""

    file_name: str
    width: int | None  # pixels; None: the file has no size, or 0
    height: int | None
    database: str
    objects: tuple[_Object, ...]


@dataclass(frozen=True)
class _Part:
    """The XML files of a split, by stem: the path below their folder without its ending."""

    xml_folder: Path
    image_folder: Path
    stems: tuple[str, ...]
    is_listed: bool = False  # in ImageSets, so that images outside the list are meant to be left out

    def file(self, stem: str) -> Path:
        return self.xml_folder / f"{stem}.xml"


@dataclass
class _DataSet:
    """All splits together: classes and the meaning of corners are the same for all."""

    folder: Path
    parts: dict[str, _Part] = field(default_factory=dict)

    @cached_property
    def annotations(self) -> dict[Path, _Annotation | str | None]:
        """Return the contents of each XML file; the reason where it cannot be read, None where there is no file."""
        files = {part.file(stem) for part in self.parts.values() for stem in part.stems}
        return {file: _parsed(file) if file.is_file() else None for file in files}

    @cached_property
    def objects(self) -> list[_Object]:
        return [item for a in self.annotations.values() if isinstance(a, _Annotation) for item in a.objects]

    @cached_property
    def class_names(self) -> list[str]:
        """Classes in the order of the list that some tools write; those that are in no list follow by name."""
        used = {item.name for item in self.objects if item.name}
        listed = _listed_classes(self.folder)
        if "background" not in used:
            listed = [name for name in listed if name != "background"]
        return listed + sorted(used - set(listed))

    @cached_property
    def counts_from_1(self) -> tuple[bool, str]:
        """Return True if corners are numbers of pixels from 1, both in the box; and why."""
        corners = [item.corners for item in self.objects if item.corners]
        databases = {a.database for a in self.annotations.values() if isinstance(a, _Annotation)}
        if any(not value.is_integer() for box in corners for value in box):
            return False, "there are fractions"
        if any(min(box) < 1 for box in corners):
            return False, "there are corners at 0"
        if databases == {_TOOLS_FROM_0}:
            return False, f"the database {_TOOLS_FROM_0!r} is that of labelImg and CVAT"
        return True, "as in VOC's development kit"

    def read(self, split: str) -> Document:
        """Return the document of a split. Raises DocumentError."""
        part = self.parts[split]
        images = _images(part.image_folder)
        categories = {name: i for i, name in enumerate(self.class_names, start=1)}
        from_1, why = self.counts_from_1
        document: Document = {"images": [], "annotations": [], "findings": []}
        document["findings"].append(("corners-from-1" if from_1 else "corners-from-0", why))
        for image_id, stem in enumerate(part.stems, start=1):
            annotation, file = self.annotations[part.file(stem)], f"{stem}.xml"
            if not isinstance(annotation, _Annotation):
                kind = "annotations-missing" if annotation is None else "annotations-unreadable"
                document["findings"].append((kind, file if annotation is None else f"{file} ({annotation})"))
                continue
            size = {"width": annotation.width, "height": annotation.height}
            file_name = _file_name(annotation.file_name, stem, images)
            document["images"].append({"id": image_id, "file_name": file_name} | size)
            document["annotations"] += [
                {"id": 0, "image_id": image_id, "place": f"{file} object {n}", "category_id": categories.get(item.name),
                 "bbox": _xywh(item.corners, from_1), "iscrowd": int(item.is_difficult)}
                for n, item in enumerate(annotation.objects, start=1)
            ]  # fmt: skip
        for i, entry in enumerate(document["annotations"], start=1):
            entry["id"] = i
        if not part.is_listed:
            left = [names for stem, names in images.items() if stem not in part.stems]
            document["findings"] += [("image-without-annotations", name) for names in left for name in names]
        return document | {"categories": [{"id": i, "name": name} for name, i in categories.items()]}


def find(folder: Path) -> dict[str, SplitSource]:
    """Return the splits of a folder by name; without lists or folders of splits, all is the training split.

    Raises:
        DataError: a split is there twice, or a list of images cannot be read.
    """
    data_set = _DataSet(folder)
    for split, part in (*_listed_parts(folder), *_split_folders(folder)):
        if split in data_set.parts:
            raise DataError(f"each split must be in one place; {folder} has {split} twice. Move one away")
        data_set.parts[split] = part
    if not data_set.parts.keys() & {"train", "val"}:
        xml_folder = child(folder, *_XML_FOLDERS) or folder
        if stems := _stems(xml_folder):
            data_set.parts["train"] = _Part(xml_folder, _images_of(xml_folder, folder), stems)
    return {
        split: SplitSource(part.xml_folder, part.image_folder, partial(data_set.read, split))
        for split in ("train", "val", "test")
        if split in data_set.parts and (part := data_set.parts[split])
    }


def _listed_parts(folder: Path) -> Iterator[tuple[str, _Part]]:
    """Yield the splits that ImageSets/Main lists; ``trainval`` counts where there is no ``train``."""
    sets, xml_folder = child(folder, "ImageSets"), child(folder, *_XML_FOLDERS)
    main = sets and (child(sets, "Main") or sets)
    if main is None or xml_folder is None:
        return
    lists = {name: path for path in sorted(main.glob("*.txt")) if (name := path.stem.lower())}
    if not any(split_of(name) == "train" for name in lists) and "trainval" in lists:
        lists["train"] = lists["trainval"]
    image_folder = _images_of(xml_folder, folder)
    for name, path in lists.items():
        if split := split_of(name):
            try:
                lines = read_regular(path).decode("utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} must list image names, one a line: {error}") from None
            stems = tuple(dict.fromkeys(_stem(line.strip(), xml_folder) for line in lines if line.strip()))
            yield split, _Part(xml_folder, image_folder, stems, is_listed=True)


def _stem(line: str, xml_folder: Path) -> str:
    """Return the name in a line of a list; in lists of one class a number follows, and some tools write the ending."""
    tried = (line, line.split()[0], str(Path(line).with_suffix("")))
    return next((stem for stem in tried if (xml_folder / f"{stem}.xml").is_file()), line)


def _split_folders(folder: Path) -> Iterator[tuple[str, _Part]]:
    """Yield the splits with a folder: train/ (Roboflow), train/annotations/ or Annotations/train/."""
    xml_folder = child(folder, *_XML_FOLDERS)
    for base in (folder, *([xml_folder] if xml_folder else ())):
        for place in sorted(path for path in base.iterdir() if path.is_dir()):
            split = split_of(place.name)
            own = child(place, *_XML_FOLDERS) or place
            if split and (stems := _stems(own)):
                yield split, _Part(own, _images_of(own, place if base == folder else folder, place.name), stems)


def _images_of(xml_folder: Path, folder: Path, *split_names: str) -> Path:
    """Return the folder of the images of XML files: a usual one, in it that of the split, else beside the files."""
    images = child(folder, *_IMAGE_FOLDERS)
    return ((images and child(images, *split_names)) or images) or xml_folder


def _stems(xml_folder: Path) -> tuple[str, ...]:
    """Return the names of the XML files in a folder if the first is one of VOC's."""
    files = sorted(xml_folder.glob("*.xml"))
    if not files or (isinstance(first := _root(files[0]), Element) and first.tag != "annotation"):
        return ()
    return tuple(file.stem for file in files)


def _images(folder: Path) -> dict[str, list[str]]:
    """Return the names of the images below a folder by stem."""
    found: dict[str, list[str]] = {}
    for path in sorted(filter(is_image, folder.rglob("*"))):
        name = path.relative_to(folder)
        found.setdefault(name.with_suffix("").as_posix(), []).append(name.as_posix())
    return found


def _file_name(written: str, stem: str, images: dict[str, list[str]]) -> str:
    """Return the image of an XML file: the one of its name, as in VOC; ``<filename>`` is often left from before."""
    same = images.get(stem, [])
    if len(same) == 1 or (same and written not in same):
        return same[0]
    return written or f"{stem}.jpg"


def _listed_classes(folder: Path) -> list[str]:
    """Return the classes of labelmap.txt (``name:colour:parts:actions``) or of a list of names; empty without one."""
    for name in _CLASS_LISTS:
        if (path := folder / name).is_file():
            try:
                lines = read_regular(path).decode("utf-8-sig").splitlines()
            except (OSError, UnicodeDecodeError) as error:
                raise DataError(f"{path} must list the classes, one a line: {error}") from None
            names = [line.rsplit(":", 3)[0] if name == "labelmap.txt" else line for line in lines]
            return list(dict.fromkeys(n.strip() for n in names if n.strip() and not n.startswith("#")))
    return []


def _xywh(corners: tuple[float, ...] | None, from_1: bool) -> list[float] | None:
    if corners is None:
        return None
    left, top, right, bottom = corners
    left, top = left - from_1, top - from_1
    return [left, top, right - left, bottom - top]


def _parsed(file: Path) -> _Annotation | str:
    root = _root(file)
    if isinstance(root, str):
        return root
    objects = tuple(
        _Object(
            name=(item.findtext("name") or "").strip(),
            corners=_numbers(item.find("bndbox")),
            is_difficult=(item.findtext("difficult") or "").strip() == "1",
        )
        for item in root.findall("object")
    )
    width, height = ((root.findtext(f"size/{side}") or "").strip() for side in ("width", "height"))
    return _Annotation(
        file_name=(root.findtext("filename") or "").strip(),
        width=int(width) if width.isdecimal() and int(width) else None,
        height=int(height) if height.isdecimal() and int(height) else None,
        database=(root.findtext("source/database") or "").strip(),
        objects=objects,
    )


def _numbers(box: Element | None) -> tuple[float, ...] | None:
    try:
        numbers = tuple(float(box.findtext(name) or "") for name in _CORNERS) if box is not None else ()
    except ValueError:
        return None
    return numbers if numbers and all(map(math.isfinite, numbers)) else None


def _root(file: Path) -> Element | str:
    """Return the root of an XML file, or why it cannot be read.

    A document type is refused: entities that grow, or name other files, are declared in it, and VOC's files have none.
    """
    builder, parser = TreeBuilder(), expat.ParserCreate()
    parser.StartElementHandler, parser.EndElementHandler = builder.start, builder.end
    parser.CharacterDataHandler = builder.data

    def refuse(*_: Any) -> None:
        raise ValueError("has a document type, which is refused")

    parser.StartDoctypeDeclHandler = refuse
    try:
        parser.Parse(read_regular(file, MOST_TEXT_BYTES), True)
        return builder.close()
    except (OSError, ValueError, AssertionError, expat.ExpatError) as error:
        return f"is no XML: {error}" if isinstance(error, expat.ExpatError) else str(error)


FORMAT = DataFormat(
    name="voc",
    layouts=(
        "Annotations/*.xml, JPEGImages/, ImageSets/Main/train.txt, val.txt  (Pascal VOC; without lists --val-fraction)",
        "train/*.xml, valid/...                              with the images beside them (Roboflow's VOC)",
    ),
    find=find,
)
