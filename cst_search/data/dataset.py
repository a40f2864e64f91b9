"""Read the folder of a data set: find its splits, validate them, list their images and boxes.

data, report = load_data("bccd", cache=Path("checked.json"))
"""

from __future__ import annotations

import contextlib
import gc
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cst_search.data.decoding import PLAIN, Decoding
from cst_search.data.formats import find_splits, without_split
from cst_search.data.formats.source import SplitSource
from cst_search.data.options import DEFAULT_OPTIONS, ReadOptions
from cst_search.data.val_split import must_make_val, with_val
from cst_search.data.validation.boxes import place_boxes
from cst_search.data.validation.classes import match_classes
from cst_search.data.validation.entries import list_split
from cst_search.data.validation.findings import FAULTS, FIXED, NOTES, Counts, DataReport, Fault, Findings, refusal
from cst_search.data.validation.image_check import check_images as check_files
from cst_search.data.validation.listed import ListedSplit
from cst_search.errors import DataError

__all__ = [
    "DataReport",
    "DetectionData",
    "Fault",
    "ImageEntry",
    "Split",
    "coco_ground_truth",
    "load_data",
]


@dataclass(frozen=True)
class ImageEntry:
    """One image with its N boxes, after validation. The four box fields have one item per box."""

    image_id: int
    file_name: str
    path: Path  # absolute
    width: int  # pixels
    height: int
    boxes_xywh: tuple[tuple[float, ...], ...]  # pixels; inside the image, width and height above 0
    labels: tuple[int, ...]  # 1..K: index into class_names, plus one
    iscrowd: tuple[int, ...]  # 0 or 1
    areas: tuple[float, ...]  # square pixels
    digest: str = ""  # BLAKE2b of the file's content; empty if it was not decoded
    decoding: Decoding = PLAIN  # how pixels become RGB; width, height and boxes are those of the decoded picture


@dataclass(frozen=True)
class Split:
    """One annotation file with its image folder, after validation."""

    name: str  # train | val | test
    annotation_file: Path
    image_folder: Path
    images: tuple[ImageEntry, ...]  # kept images, in the order of the annotation file
    class_names: tuple[str, ...] = ()  # as in DetectionData
    category_ids: tuple[int, ...] = ()  # the COCO id of label i is category_ids[i - 1]


@dataclass(frozen=True)
class DetectionData:
    folder: Path
    class_names: tuple[str, ...]  # label i + 1 is class_names[i]; ordered by category id
    category_ids: tuple[int, ...]  # COCO ids in the same order
    splits: Mapping[str, Split]  # "train", "val", and "test" where there is one

    def summary(self) -> dict[str, Any]:
        """Return the counts that the memory prediction uses, as a dict ready for JSON.

        ``n_classes``; ``n_images`` and ``n_boxes`` by split, without crowd boxes; ``max_boxes`` in one image;
        ``largest_image_px``, the (width, height) of the image with the most pixels.
        """
        entries = [entry for split in self.splits.values() for entry in split.images]
        largest = max(entries, key=lambda entry: entry.width * entry.height)
        return {
            "n_classes": len(self.class_names),
            "n_images": {name: len(split.images) for name, split in self.splits.items()},
            "n_boxes": {name: sum(map(_n_boxes, split.images)) for name, split in self.splits.items()},
            "max_boxes": max(map(_n_boxes, entries)),
            "largest_image_px": (largest.width, largest.height),
        }


def _n_boxes(entry: ImageEntry) -> int:
    return len(entry.labels) - sum(entry.iscrowd)


def load_data(
    folder: Path | str,
    options: ReadOptions = DEFAULT_OPTIONS,
    *,
    skip_bad: bool = False,
    check_images: bool = True,
    cache: Path | None = None,
    need: tuple[str, ...] = ("train", "val"),
    also: tuple[str, ...] = (),
) -> tuple[DetectionData, DataReport]:
    """Find, read and validate the folder of a data set.

    Args:
        folder: folder with a layout of `formats`.
        options: how it is read; `ReadOptions.of` gives those of a recipe.
        skip_bad: drop faulty images and boxes instead of raising. An object whose box is dropped becomes background.
        check_images: decode every image once. If False, only the headers of image files are read.
        cache: JSON file that remembers decoded images by path, size and mtime, so that the next start is fast.
        need: required splits. Others that exist are read too, and left out with a note if they have faults.
        also: splits that are not required, but whose faults are faults if they exist.

    Raises:
        DataError: the dataset has faults (with ``skip_bad``, faults that cannot be skipped); one report lists them all.
    """
    with _uncollected():
        data, report = read_data(
            Path(folder), options, skip_bad=skip_bad, check_images=check_images, cache=cache, need=need, also=also
        )
    if why := refusal(report, skip_bad):
        raise DataError(why)
    return data, report


@contextlib.contextmanager
def _uncollected() -> Iterator[None]:
    """Pause the garbage collector: it would look at every annotation again and again, a quarter of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def read_data(
    folder: Path,
    options: ReadOptions,
    *,
    skip_bad: bool,
    cache: Path | None,
    need: tuple[str, ...],
    also: tuple[str, ...] = (),
    check_images: bool = True,
) -> tuple[DetectionData, DataReport]:
    """Return what `load_data` returns where there are faults, too: what is left without them, and the report.

    Raises DataError if there is nothing to read (no folder, no known layout, no split of ``need``), or if ``boxes`` is
    given for a format that has one form of boxes only.
    """
    sources = find_splits(folder)
    _check_form(folder, options, {source.format for source in sources.values()})
    makes_val = must_make_val(folder, sources, options)
    if missing := [name for name in need if name not in sources and not (name == "val" and makes_val)]:
        raise DataError(without_split(folder, f"no {' and no '.join(missing)} split", sources))
    faults, notes = Findings(FAULTS), Findings(NOTES)
    listed = {name: split for name in sources if (split := list_split(name, sources[name], folder, faults, notes))}
    n_from_cache = check_files(listed, options, cache, faults, notes, decode=check_images)
    match_classes(listed, faults, notes)
    for split in listed.values():
        place_boxes(split, options, faults, notes)
    if makes_val and "train" in listed:
        listed = with_val(listed, options, cache, notes)
        sources = {name: sources["train" if name == "val" else name] for name in listed}
    _check_together(listed, faults, notes)
    for name in (name for name in sources if name not in (*need, *also)):
        _leave_out_if_faulty(name, listed, faults, notes, skip_bad)

    report = _report(sources, listed, faults, notes, n_from_cache)
    categories = next((split.categories for split in listed.values()), {})
    ids = tuple(sorted(categories))
    names = tuple(categories[i] for i in ids)
    label_of = {category_id: i + 1 for i, category_id in enumerate(ids)}
    splits = {
        name: Split(name, sources[name].annotations, sources[name].images, _entries(split, label_of), names, ids)
        for name, split in listed.items()
    }
    return DetectionData(folder.resolve(), names, ids, splits), report


def _leave_out_if_faulty(
    name: str, listed: dict[str, ListedSplit], faults: Findings, notes: Findings, skip_bad: bool
) -> None:
    """Drop a split that nothing needs if it has faults (with ``skip_bad``, those that cannot be skipped)."""
    if faults.has(name, FIXED if skip_bad else FAULTS):
        found = faults.take(name)
        notes.take(name)
        listed.pop(name, None)
        why = "; ".join(f"{fault.count} {FAULTS[fault.kind][0]} ({fault.detail})" for fault in found)
        notes.add_count("split-left-out", name, sum(fault.count for fault in found), why)


def _report(
    sources: Mapping[str, SplitSource],
    listed: Mapping[str, ListedSplit],
    faults: Findings,
    notes: Findings,
    n_from_cache: int,
) -> DataReport:
    kept = {name: [image for image in split.images if image.usable] for name, split in listed.items()}
    return DataReport(
        faults=faults.collected(),
        notes=notes.collected(),
        places=tuple(f"{name}: {source.annotations}, images in {source.images}" for name, source in sources.items()),
        counts={
            name: Counts(split.n_images, split.n_boxes, len(kept[name]), sum(len(image.boxes) for image in kept[name]))
            for name, split in listed.items()
        },
        n_from_cache=n_from_cache,
    )


def _check_form(folder: Path, options: ReadOptions, formats: set[str]) -> None:
    if options.boxes not in ("auto", "xywh") and (fixed := sorted(formats - {"coco"})):
        raise DataError(
            f"--boxes {options.boxes} (recipe field boxes) is for COCO files; {folder} is in the format {fixed[0]}, "
            f"which has one form of boxes. Leave the option out"
        )


def _check_together(listed: Mapping[str, ListedSplit], faults: Findings, notes: Findings) -> None:
    """Collect faults and notes that concern images, boxes and splits together."""
    split_of_image: dict[str, str] = {}  # keyed by content if that is known, else by path
    for name, split in listed.items():
        kept = [image for image in split.images if image.usable]
        boxes = [box for image in kept for box in image.boxes if not box.iscrowd]
        if not boxes:
            if faults.has(name, FIXED):
                continue  # that is why
            faults.add("empty-split", name, f"{len(kept)} of {split.n_images} images and 0 of {split.n_boxes} boxes")
            continue
        for image in kept:
            other = split_of_image.setdefault(image.digest or image.path, name)
            if other != name:
                notes.add("leak", name, f"{image.file_name} (also in {other})")
            if not image.boxes:
                notes.add("image-without-boxes", name, image.file_name)
        count = Counter(box.category_id for box in boxes)
        for category_id, title in split.categories.items():
            if not count[category_id]:
                notes.add("class-without-boxes", name, title)


def _entries(split: ListedSplit, label_of: Mapping[int, int]) -> tuple[ImageEntry, ...]:
    return tuple(
        ImageEntry(
            image_id=image.image_id,
            file_name=image.file_name,
            path=Path(image.path),
            width=image.width,
            height=image.height,
            boxes_xywh=tuple(box.xywh for box in image.boxes),
            labels=tuple(label_of.get(box.category_id, 0) for box in image.boxes),  # 0: a fault is reported
            iscrowd=tuple(box.iscrowd for box in image.boxes),
            areas=tuple(box.area for box in image.boxes),
            digest=image.digest,
            decoding=image.decoding,
        )
        for image in split.images
        if image.usable
    )


def coco_ground_truth(split: Split) -> dict[str, Any]:
    """Return the kept images and boxes as a COCO document with original image and category ids, in original pixels.

    Annotations are renumbered from 1, because COCOeval reads an annotation id of 0 as "not matched".
    """
    ids = split.category_ids or tuple(range(1, 1 + max((label for e in split.images for label in e.labels), default=0)))
    names = split.class_names or tuple(map(str, ids))
    annotations = [
        {"image_id": e.image_id, "category_id": ids[label - 1], "bbox": list(box), "area": area, "iscrowd": crowd}
        for e in split.images
        for box, label, crowd, area in zip(e.boxes_xywh, e.labels, e.iscrowd, e.areas, strict=True)
    ]
    return {
        "info": {},
        "images": [
            {"id": e.image_id, "file_name": e.file_name, "width": e.width, "height": e.height} for e in split.images
        ],
        "categories": [{"id": i, "name": name} for i, name in zip(ids, names, strict=True)],
        "annotations": [{"id": i} | annotation for i, annotation in enumerate(annotations, start=1)],
    }
