"""Bounds of the outline of an object: COCO's `segmentation`, as polygons or as a run-length encoded mask (RLE)."""

from __future__ import annotations

from typing import Any

import numpy as np

from cst_search.data.validation.values import finite, shown, whole


class OutlineError(Exception):
    """An outline cannot be read; the message is a clause that names the value and what was expected."""


def bounds(segmentation: Any) -> tuple[float, float, float, float]:
    """Return the smallest box (x, y, w, h) in pixels around polygons or a mask.

    A mask's box ends after its last pixel, as pycocotools.mask.toBbox has it.

    Raises:
        OutlineError: the segmentation is empty or neither of the two.
    """
    if isinstance(segmentation, dict):
        return _mask_bounds(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        raise OutlineError(f"segmentation is {shown(segmentation)}, expected polygons or a mask")
    numbers = _points(segmentation)
    xs, ys = numbers[0::2], numbers[1::2]
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _points(polygons: list[Any]) -> list[float]:
    """Return the coordinates x, y, x, y, ... of all polygons; a single polygon may stand without its list."""
    parts = polygons if all(isinstance(part, list) for part in polygons) else [polygons]
    found: list[float] = []
    for part in parts:
        numbers = [number for value in part if (number := finite(value)) is not None]
        if len(numbers) != len(part) or len(part) % 2 or len(part) < 4:
            raise OutlineError(f"segmentation has the polygon {shown(part)}, expected x and y of its points in turn")
        found += numbers
    return found


def _mask_bounds(mask: dict[str, Any]) -> tuple[float, float, float, float]:
    size = mask.get("size")
    height, width = (whole(side) for side in size) if isinstance(size, list) and len(size) == 2 else (None, None)
    if not height or not width or height < 0 or width < 0:
        raise OutlineError(f"segmentation has the size {shown(size)}, expected [height, width]")
    counts = mask.get("counts")
    runs = _decoded(counts) if isinstance(counts, str) else _read_runs(counts)
    if min(runs, default=-1) < 0 or sum(runs) != height * width:
        raise OutlineError(
            f"segmentation has the counts {shown(counts)}, expected runs of {height} x {width} pixels together"
        )
    ends = np.cumsum(np.array(runs, dtype=np.int64))
    first, last = ends[0::2][: len(ends) // 2], ends[1::2] - 1  # pixels of each run of ones, column by column
    first, last = first[last >= first], last[last >= first]
    if not len(first):
        raise OutlineError("segmentation is a mask without a pixel")
    left, right = first[0] // height, last[-1] // height + 1
    spans = first // height != last // height  # such a run ends at the foot of one column and begins the next
    top = 0 if spans.any() else (first % height).min()
    bottom = height if spans.any() else (last % height).max() + 1
    return float(left), float(top), float(right - left), float(bottom - top)


def _read_runs(counts: Any) -> list[int]:
    runs = [whole(n) for n in counts] if isinstance(counts, list) else []
    return [-1 if n is None else n for n in runs]


def _decoded(counts: str) -> list[int]:
    """Return the runs of a compressed mask.

    Each is written as 5-bit groups, the lowest first, with a bit that says "more" and a sign; from the fourth on it is
    the difference to the run two before: rleFrString of cocoapi's common/maskApi.c.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        group = ord(character) - 48
        if not 0 <= group < 64:
            return []
        value |= (group & 0x1F) << shift
        shift += 5
        if group & 0x20:
            continue
        if group & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return runs
