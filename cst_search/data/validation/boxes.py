"""Place the boxes of a split: convert them from their format, compare them with their images, clip them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from cst_search.data.options import ReadOptions
from cst_search.data.validation.box_kinds import MIN_SIDE_PX, ROUNDING_PX, contradicted, recognise, to_xywh
from cst_search.data.validation.findings import FAULTS, Findings
from cst_search.data.validation.listed import Box, ListedImage, ListedSplit, WrittenBox
from cst_search.data.validation.outlines import OutlineError, bounds

# Share of a box's area that must be inside its image for the box to be clipped. Tools let boxes be dragged over the
# edge: bug reports of albumentations and RectLabel show 1 to 6 % of the image's side, and torchvision's, Detectron2's
# and MMDetection's readers clip anything. A box that is outside for the most part has wrong coordinates instead.
MIN_INSIDE_SHARE = 0.5
# COCO has 1.2 % crowds. Exporters that write masks as RLE give every object of a file iscrowd 1.
MAX_CROWD_SHARE = 0.5


def place_boxes(split: ListedSplit, options: ReadOptions, faults: Findings, notes: Findings) -> None:
    """Append the valid boxes of each usable image to `boxes`.

    If the box format of the split is ambiguous, there is one fault, and no box is appended.
    """
    pairs = [(image, box) for image in split.images if image.usable for box in image.written]
    if not pairs:
        return
    _read_crowds(split.name, pairs, options, faults, notes)
    if not (_read_rotated(split.name, pairs, options, faults) and _has_form(split.name, pairs, options, faults, notes)):
        return
    placed = list(_in_pixels(pairs, options))
    is_normalised, no_crowds = options.boxes.startswith("normalised"), options.crowd == "as-objects"
    for (image, written), box, is_plain in zip(pairs, placed, _are_plain(placed, _sizes_wh(pairs)), strict=True):
        if not is_plain:
            found = _held(image, written, box, split.name, faults, notes)
            if found is None:
                continue
            box = found
        area = written.area if written.area is not None and written.area > 0 and not is_normalised else box[2] * box[3]
        image.boxes.append(Box(box, written.category_id, 0 if no_crowds else written.iscrowd, area))


def _are_plain(boxes: list[tuple[float, ...]], sizes_wh: np.ndarray) -> list[bool]:
    """Return True for boxes that need no closer look: inside their image, and of a pixel at least. Nearly all are."""
    numbers = np.array(boxes)
    low, extent = numbers[:, :2], numbers[:, 2:]
    with np.errstate(over="ignore"):
        fine = (low >= 0) & (low + extent <= sizes_wh) & (extent >= 1)
    plain: list[bool] = fine.all(1).tolist()
    return plain


def _held(
    image: ListedImage, written: WrittenBox, xywh: tuple[float, ...], split: str, faults: Findings, notes: Findings
) -> tuple[float, ...] | None:
    """Return a box clipped to its image, with a note where one is due; None if there is a fault."""
    label = f"{image.file_name} ({written.name})"
    box, kind = clipped(xywh, image.width, image.height)
    if kind in FAULTS:
        faults.add(kind, split, f"{label}: {_shown(written)} in {image.width}x{image.height}")
        return None
    if kind is not None:
        notes.add(kind, split, label)
    if box[2] < 1 and box[3] < 1:
        notes.add("box-tiny", split, label)
    return box


Pairs = list[tuple[ListedImage, WrittenBox]]


def _shown(written: WrittenBox) -> str:
    numbers = ", ".join(f"{number:.6g}" for number in written.numbers)
    return f"{'segmentation' if written.is_bounds else 'bbox'} [{numbers}]"


def _read_crowds(name: str, pairs: Pairs, options: ReadOptions, faults: Findings, notes: Findings) -> None:
    """Say how many objects are crowds; those are no objects to learn from and to find."""
    n_crowds = sum(written.iscrowd for _, written in pairs)
    if not n_crowds:
        return
    why = f"{n_crowds} of {len(pairs)}"
    if options.crowd == "as-objects":
        notes.add_count("crowd-as-objects", name, n_crowds, why)
    elif options.crowd == "auto" and n_crowds > MAX_CROWD_SHARE * len(pairs):
        faults.add_count("crowd-most", name, n_crowds, why)
    else:
        notes.add_count("crowd", name, n_crowds, why)


def _has_form(name: str, pairs: Pairs, options: ReadOptions, faults: Findings, notes: Findings) -> bool:
    """Return True unless the statistics of the boxes speak for another form than COCO's, or than the one given.

    COCO's as the one given is taken as it is.
    """
    if options.boxes == "xywh":
        return True
    chosen = [(image, written) for image, written in pairs if not written.in_pixels]
    if not chosen:
        return True
    if options.boxes == "auto":
        areas = np.array([math.nan if written.area is None else written.area for _, written in chosen])
        n_images = len({image.image_id for image, _ in chosen})
        found = recognise(_numbers(chosen), _sizes_wh(chosen), areas, n_images)
    else:
        found = contradicted(options.boxes, _numbers(chosen), _sizes_wh(chosen))
    if found is None:
        return True
    is_fault = found.kind in FAULTS
    (faults if is_fault else notes).add_count(found.kind, name, found.n_boxes, found.why)
    return not is_fault


def _numbers(pairs: Pairs) -> np.ndarray:
    return np.array([written.numbers for _, written in pairs], dtype=np.float64).reshape(-1, 4)


def _sizes_wh(pairs: Pairs) -> np.ndarray:
    return np.array([(image.width, image.height) for image, _ in pairs], dtype=np.float64).reshape(-1, 2)


def _in_pixels(pairs: Pairs, options: ReadOptions) -> Iterable[tuple[float, ...]]:
    """Return each box as x, y, w, h in pixels."""
    form = "xywh" if options.boxes == "auto" else options.boxes
    if form == "xywh" and options.rotated != "enclose":
        return [written.numbers for _, written in pairs]
    return _converted(form, pairs, options)


def _converted(form: str, pairs: Pairs, options: ReadOptions) -> Iterator[tuple[float, ...]]:
    numbers = _numbers(pairs)
    in_pixels = np.array([written.in_pixels for _, written in pairs])[:, None]
    placed = np.where(in_pixels, numbers, to_xywh(form, numbers, _sizes_wh(pairs)))
    for (_, written), xywh in zip(pairs, placed.tolist(), strict=True):
        turned = written.rotation and options.rotated == "enclose" and not written.is_bounds
        yield _enclosing(xywh, written.rotation or 0.0) if turned else tuple(xywh)


# --- rotated boxes ----------------------------------------------------------------------------------------------------


def _read_rotated(name: str, pairs: Pairs, options: ReadOptions, faults: Findings) -> bool:
    """Return True unless there are rotated boxes that must not be used as they are.

    To be enclosed, a box of five numbers gets the bounds of its segmentation: what the fifth means is not known.
    """
    rotated = [written for _, written in pairs if written.rotation is None or written.rotation]
    five = [written for written in rotated if written.rotation is None]
    if not rotated or options.rotated == "ignore":
        return True
    if options.rotated == "enclose":
        five = [written for written in five if not _take_bounds(written)]
        if five:
            why = (
                f"{len(five)} of {len(pairs)} have five numbers and no segmentation; files define the angle differently"
            )
            faults.add_count("box-rotated", name, len(five), why)
        return not five
    why = f"{len(rotated) - len(five)} of {len(pairs)} have a rotation, {len(five)} a bbox of five numbers"
    faults.add_count("box-rotated", name, len(rotated), why)
    return False


def _take_bounds(written: WrittenBox) -> bool:
    """Replace a box by the bounds of its segmentation; False if there is none."""
    try:
        written.numbers, written.is_bounds, written.in_pixels = bounds(written.segmentation), True, True
    except OutlineError:
        return False
    return True


def _enclosing(xywh: list[float], degrees: float) -> tuple[float, ...]:
    """Return the smallest upright box around one turned about its centre, in either direction."""
    x, y, w, h = xywh
    cos, sin = abs(math.cos(math.radians(degrees))), abs(math.sin(math.radians(degrees)))
    width, height = w * cos + h * sin, w * sin + h * cos
    return x + (w - width) / 2, y + (h - height) / 2, width, height


# --- edges ------------------------------------------------------------------------------------------------------------


def clipped(xywh: tuple[float, ...], width: int, height: int) -> tuple[tuple[float, ...], str | None]:
    """Return a box (x, y, w, h) in pixels, clipped to its image, and the kind of its fault or note, or None.

    A box that hangs over the edge is clipped, with a note, if at least MIN_INSIDE_SHARE of its area is inside.
    """
    x, y, w, h = xywh
    if w < MIN_SIDE_PX or h < MIN_SIDE_PX:
        return xywh, "box-no-area"
    overhang = max(-x, -y, x + w - width, y + h - height)
    if overhang <= 0:
        return xywh, None
    left, top, right, bottom = max(x, 0.0), max(y, 0.0), min(x + w, float(width)), min(y + h, float(height))
    inside = (left, top, right - left, bottom - top)
    if overhang <= 1e-6:  # of the arithmetic, as of shares times the size
        return inside, None
    if overhang > ROUNDING_PX + 1e-6 and max(inside[2], 0) * max(inside[3], 0) < MIN_INSIDE_SHARE * w * h:
        return xywh, "box-outside"
    if min(inside[2:]) < MIN_SIDE_PX:
        return xywh, "box-no-area"
    return inside, "box-clipped" if overhang <= ROUNDING_PX + 1e-6 else "box-cut"
