"""Read the entries of a COCO document: categories, images and annotations, each well-formed one kept.

Each fault is collected, with the field, its value and what was expected. Boxes are only read here; `boxes` holds them
to their images once these are decoded. Coordinates are of the picture
as stored or as shown: `image_check` finds out which.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cst_search.data.formats.source import DocumentError, SplitSource
from cst_search.data.validation.file_names import locate_all
from cst_search.data.validation.findings import FAULTS, Findings
from cst_search.data.validation.listed import ListedImage, ListedSplit, WrittenBox
from cst_search.data.validation.outlines import OutlineError, bounds
from cst_search.data.validation.values import finite, is_text, shown, whole


def list_split(name: str, source: SplitSource, folder: Path, faults: Findings, notes: Findings) -> ListedSplit | None:
    """Read the entries of a split, without opening images. Returns None if they cannot be read.

    `boxes.place_boxes` does the rest, once it is known how large the images are.
    """
    try:
        document = source.read()
    except DocumentError as error:
        for reason in error.args:
            faults.add("annotations", name, f"{source.annotations.name} {reason}")
        return None
    for kind, example in document.get("findings", ()):
        (faults if kind in FAULTS else notes).add(kind, name, example)
    categories = _read_categories(name, document["categories"], faults, notes)
    images, listed_ids = _read_images(name, document["images"], faults, notes)
    _find_files(name, list(images.values()), source, folder, faults, notes)
    n_boxes = _read_annotations(name, document["annotations"], images, listed_ids, categories, faults, notes)
    if source.format != "coco":
        for image in images.values():
            for box in image.written:
                box.in_pixels = True  # the format has converted them
    return ListedSplit(name, categories, list(images.values()), len(document["images"]), n_boxes)


def _read_categories(name: str, entries: list[Any], faults: Findings, notes: Findings) -> dict[int, str]:
    categories: dict[int, str] = {}
    if not entries:
        faults.add("category-entry", name, "'categories' is empty")
    for i, entry in enumerate(entries):
        get = entry.get if isinstance(entry, dict) else lambda _key: None
        category_id = whole(get("id"))
        title: Any = get("name")
        number = None if isinstance(title, str) else whole(title)
        if number is not None:
            title = str(number)
            notes.add("class-name-number", name, title)
        if category_id is None:
            faults.add("category-entry", name, f"categories[{i}]: id is {shown(get('id'))}, expected a whole number")
        elif not is_text(title):
            faults.add("category-entry", name, f"categories[{i}]: name is {shown(title)}, expected a text")
        elif category_id in categories:
            faults.add("category-id-twice", name, f"{category_id} ({categories[category_id]}, {title})")
        else:
            if title in categories.values():
                faults.add("category-name-twice", name, title)
            categories[category_id] = title
        if isinstance(get("id"), str):
            notes.add("number-text", name, f"categories[{i}]")
    return categories


def _read_images(
    name: str, entries: list[Any], faults: Findings, notes: Findings
) -> tuple[dict[int, ListedImage], set[int]]:
    """Return the well-formed images by id, and the set of all listed ids."""
    images: dict[int, ListedImage] = {}
    listed_ids: set[int] = set()
    for i, entry in enumerate(entries):
        get = entry.get if isinstance(entry, dict) else lambda _key: None
        image_id, width, height = (whole(get(key)) for key in ("id", "width", "height"))
        file_name = get("file_name")
        repeated = image_id in listed_ids
        if image_id is not None:
            listed_ids.add(image_id)
        wrong = [
            f"{key} is {shown(get(key))}, expected a whole number"
            for key, value in (("id", image_id), ("width", width), ("height", height))
            if value is None and (key == "id" or get(key) is not None)
        ]
        if not isinstance(file_name, str) or not file_name:
            wrong.append(f"file_name is {shown(file_name)}, expected a text")
        if wrong or image_id is None or not isinstance(file_name, str):
            named = f" ({file_name})" if isinstance(file_name, str) else ""
            faults.add("image-entry", name, f"images[{i}]{named}: {'; '.join(wrong)}")
            continue
        if any(isinstance(get(key), str) for key in ("id", "width", "height")):
            notes.add("number-text", name, f"images[{i}]")
        if repeated:
            faults.add("image-id-twice", name, f"{file_name} (id {image_id})")
            if image_id in images and images[image_id].file_name != file_name:
                images[image_id].usable = False  # its boxes could belong to either image
            continue
        known = width is not None and height is not None and width > 0 and height > 0
        size = (width or 0, height or 0) if known else (0, 0)  # null, 0 and -1 stand for a size that nobody looked up
        images[image_id] = ListedImage(image_id, file_name, "", *size)
    return images, listed_ids


def _find_files(
    name: str, images: list[ListedImage], source: SplitSource, folder: Path, faults: Findings, notes: Findings
) -> None:
    """Give every image its path; an image whose file is not there becomes unusable."""
    paths: set[str] = set()
    found = locate_all([image.file_name for image in images], source.images, folder)
    for image in images:
        located = found[image.file_name]
        image.path, image.file_stamp = located.path, located.stamp
        image.exif = source.exif
        if located.kind is not None:
            image.usable = False
            faults.add(located.kind, name, image.file_name + (f" ({located.said})" if located.said else ""))
            continue
        if located.said:
            notes.add("file-name-resolved", name, f"{image.file_name} -> {located.said}")
        if located.path in paths:
            notes.add("file-twice", name, image.file_name)
        paths.add(located.path)


class _EntryError(Exception):
    """An annotation entry is not well-formed: its kind of fault, and a clause on field, value and what was expected."""

    def __init__(self, kind: str, why: str) -> None:
        super().__init__(why)
        self.kind, self.why = kind, why


def _read_annotations(
    name: str,
    entries: list[Any],
    images: Mapping[int, ListedImage],
    listed_ids: set[int],
    categories: Mapping[int, str],
    faults: Findings,
    notes: Findings,
) -> int:
    """Append every well-formed annotation to its image, in the order of the file.

    Returns the number of entries, without copies of another.
    """
    n_copies = 0
    seen: dict[int, tuple[Any, ...]] = {}
    for i, entry in enumerate(entries):
        try:
            image_id, box = _read_annotation(entry, i, listed_ids, categories)
        except _EntryError as error:
            faults.add(error.kind, name, f"{_place(entry, i, images)}: {error.why}")
            continue
        annotation_id = whole(entry.get("id"))  # optional: nothing here needs it
        content = (image_id, box.category_id, box.numbers)
        if annotation_id is not None and annotation_id in seen:
            is_copy = seen[annotation_id] == content
            notes.add("annotation-twice" if is_copy else "annotation-id-twice", name, _place(entry, i, images))
            n_copies += is_copy
            if is_copy:
                continue
        elif annotation_id is not None:
            seen[annotation_id] = content
        if _has_number_as_text(entry):
            notes.add("number-text", name, _place(entry, i, images))
        if box.is_bounds:
            notes.add("box-of-segmentation", name, _place(entry, i, images))
        if image_id in images:  # otherwise the image entry was already reported
            images[image_id].written.append(box)
    return len(entries) - n_copies


def _place(entry: Any, i: int, images: Mapping[int, ListedImage]) -> str:
    """Return which annotation an entry is, with its image file if that is known."""
    if not isinstance(entry, dict):
        return f"annotations[{i}]"
    label = _name(entry, i)
    image = images.get(whole(entry.get("image_id")) or 0)
    return label if image is None else f"{image.file_name} ({label})"


def _name(entry: Mapping[str, Any], i: int) -> str:
    """Return the id of an annotation, or its place in the file of another format."""
    if "place" in entry:
        return str(entry["place"])
    if type(entry.get("id")) is int:  # nearly always
        return f"annotation {entry['id']}"
    return f"annotation {shown(entry['id'])}" if "id" in entry else f"annotations[{i}]"


def _has_number_as_text(entry: Mapping[str, Any]) -> bool:
    get = entry.get
    fields = (get("id"), get("image_id"), get("category_id"), get("iscrowd"), get("area"), *(get("bbox") or ()))
    return str in map(type, fields)


def _read_annotation(entry: Any, i: int, listed_ids: set[int], categories: Mapping[int, str]) -> tuple[int, WrittenBox]:
    """Return the image id and the box of an entry. Raises _EntryError."""
    if not isinstance(entry, dict):
        raise _EntryError("annotation-entry", f"{shown(entry)}, expected an object")
    image_id, category_id = whole(entry.get("image_id")), whole(entry.get("category_id"))
    if image_id is None or category_id is None:
        key = "image_id" if image_id is None else "category_id"
        raise _EntryError("annotation-entry", f"{key} is {shown(entry.get(key))}, expected a whole number")
    iscrowd = entry.get("iscrowd")
    iscrowd = 0 if iscrowd is None else int(iscrowd) if isinstance(iscrowd, bool) else whole(iscrowd)
    if iscrowd not in (0, 1):
        raise _EntryError("annotation-entry", f"iscrowd is {shown(entry['iscrowd'])}, expected 0 or 1")
    if image_id not in listed_ids:
        raise _EntryError("image-unknown", f"image_id is {image_id}, expected the id of a listed image")
    if category_id not in categories:
        raise _EntryError("category-unknown", f"category_id is {category_id}, expected the id of a listed category")
    numbers, is_bounds = _read_bbox(entry)
    box = WrittenBox(
        _name(entry, i), numbers[:4], category_id, iscrowd, is_bounds, is_bounds, finite(entry.get("area"))
    )
    if not is_bounds:
        box.rotation = None if len(numbers) == 5 else _rotation(entry)
        box.segmentation = entry.get("segmentation") if box.rotation is None else None
    return image_id, box


def _read_bbox(entry: Mapping[str, Any]) -> tuple[tuple[float, ...], bool]:
    """Return the four numbers of ``bbox``, or five of a rotated one; or the bounds of the segmentation, and True."""
    bbox = entry.get("bbox")
    if bbox is None or bbox == []:
        if not entry.get("segmentation"):
            raise _EntryError("box-malformed", f"bbox is {shown(bbox)} and there is no segmentation")
        try:
            return bounds(entry["segmentation"]), True
        except OutlineError as error:
            raise _EntryError("box-malformed", f"bbox is {shown(bbox)} and {error}") from None
    numbers = tuple(map(finite, bbox)) if isinstance(bbox, list) else ()
    if None in numbers or not (len(numbers) == 4 or (len(numbers) == 5 and "place" not in entry)):
        raise _EntryError("box-malformed", f"bbox is {shown(bbox)}, expected four finite numbers")
    return numbers, False  # type: ignore[return-value]  # None is not among them


def _rotation(entry: Mapping[str, Any]) -> float:
    """Return the rotation in degrees, 0 to 180, that CVAT writes as an attribute; 0 if there is none."""
    attributes = entry.get("attributes")
    value = entry.get("rotation", attributes.get("rotation") if isinstance(attributes, dict) else None)
    return 0.0 if value is None else (finite(value) or 0.0) % 180
