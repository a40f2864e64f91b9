"""Formats of boxes, and how the statistics of a split tell which one its boxes are in.

COCO's is ``xywh``: x, y of the top left corner, width, height, in pixels. Files that were written by hand often have
another, which shows in all boxes together and hardly in one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np

from cst_search.config.recipe import BOX_FORMS

ROUNDING_PX = 1.0  # annotation tools round corners to whole pixels or count pixels from 1
MIN_SIDE_PX = 0.01  # below this, corners may coincide in float32 after resizing, which torchvision refuses
# A sound file has hardly a box that ends outside; of one with corners for sides, about three quarters do. Where more
# than the first share does not fit as xywh, a form is named in which at least the second share fits.
_MISFIT_SHARE, _FIT_SHARE = 0.05, 0.95
_NORMALISED_SHARE = 0.5  # of boxes within 0..1; boxes below a pixel are rare
_HINT_BOXES, _HINT_IMAGES = 20, 5  # fewer boxes or images may well look alike by chance
_DESCRIPTIONS = {"xywh": "x y w h", "xyxy": "x1 y1 x2 y2", "cxcywh": "centre x, centre y, w, h"}


class Recognised(NamedTuple):
    """Finding from the statistics of all boxes of a split: the kind of fault or note, and why."""

    kind: str
    n_boxes: int
    why: str


def to_xywh(form: str, numbers: np.ndarray, sizes_wh: np.ndarray) -> np.ndarray:
    """Return boxes as x, y, w, h in pixels.

    Args:
        form: one of BOX_FORMS but auto.
        numbers: (N, 4), in the form.
        sizes_wh: (N, 2), width and height of each box's image in pixels.
    """
    if form.startswith("normalised"):
        numbers = numbers * np.tile(sizes_wh, 2)
        form = form.partition("-")[2] or "xywh"
    first, second = numbers[:, :2], numbers[:, 2:]
    if form == "xyxy":
        return np.hstack([first, second - first])
    if form == "cxcywh":
        return np.hstack([first - second / 2, second])
    return numbers


def fits(xywh: np.ndarray, sizes_wh: np.ndarray) -> np.ndarray:
    """Return for each box whether it has an area and lies inside its image, up to rounding: (N,)."""
    corner, sides = xywh[:, :2], xywh[:, 2:]
    with np.errstate(over="ignore"):
        inside = (corner >= -ROUNDING_PX - 1e-6) & (corner + sides <= sizes_wh + ROUNDING_PX + 1e-6)
    return (inside & (sides >= MIN_SIDE_PX)).all(1)


def recognise(numbers: np.ndarray, sizes_wh: np.ndarray, areas: np.ndarray, n_images: int) -> Recognised | None:
    """Return a fault if boxes taken for xywh are in another form, a note if they may be, else None.

    Args:
        numbers: (N, 4) as written.
        sizes_wh: (N, 2), width and height of each box's image in pixels.
        areas: (N,), square pixels as written, NaN where there is none.
        n_images: how many images have these N boxes, N at least 1.
    """
    n = len(numbers)
    within = _within_1(numbers)
    if within.mean() >= _NORMALISED_SHARE:
        forms = [form for form in BOX_FORMS if form.startswith("normalised")]
        counts = _n_fitting(forms, numbers[within], sizes_wh[within])
        return Recognised("box-form", n, f"{within.sum()} of {n} lie within 0..1; {_switches(forms, counts, n)}")
    forms = list(_DESCRIPTIONS)
    counts = _n_fitting(forms, numbers, sizes_wh)
    best = max(forms[1:], key=lambda form: counts[form])
    misfits = n - counts["xywh"]
    corners = _n_of_area(areas, numbers[:, 2:] - numbers[:, :2])
    by_area = counts["xyxy"] >= _FIT_SHARE * n and corners >= _FIT_SHARE * n > _n_of_area(areas, numbers[:, 2:])
    if by_area or (misfits > max(1, _MISFIT_SHARE * n) and counts[best] >= _FIT_SHARE * n):
        why = f"{misfits} of {n} end outside their image as {_DESCRIPTIONS['xywh']}"
        why = f"'area' of {corners} of {n} is that between two corners" if by_area else why
        return Recognised("box-form", n, f"{why}; {_switches(['xyxy'] if by_area else forms[1:], counts, n)}")
    return _hint(numbers, sizes_wh, areas) if n >= _HINT_BOXES and n_images >= _HINT_IMAGES else None


def contradicted(form: str, numbers: np.ndarray, sizes_wh: np.ndarray) -> Recognised | None:
    """Return a fault if boxes do not fit the format given for them but do fit another one."""
    n, is_normalised = len(numbers), _within_1(numbers).mean() >= _NORMALISED_SHARE
    forms = [other for other in BOX_FORMS[1:] if other.startswith("normalised") == is_normalised]
    counts = _n_fitting({form, *forms}, numbers, sizes_wh)
    if n - counts[form] <= max(1, _MISFIT_SHARE * n) or max(counts.values()) < _FIT_SHARE * n:
        return None
    why = f"as {_described(form)} ({form}) {counts[form]} of {n} fit"
    return Recognised("box-form", n, f"{why}; {_switches(forms, counts, n)}; splits of one set must have one form")


def _hint(numbers: np.ndarray, sizes_wh: np.ndarray, areas: np.ndarray) -> Recognised | None:
    """Return a note if boxes fit as xywh, but oddly."""
    n, ends = len(numbers), numbers[:, :2] + numbers[:, 2:]
    is_area_of_sides = _n_of_area(areas, numbers[:, 2:]) >= _FIT_SHARE * n
    if not is_area_of_sides and fits(to_xywh("xyxy", numbers, sizes_wh), sizes_wh).all():
        return Recognised("box-form-unsure", n, f"as {_described('xyxy')} {n} of {n} fit, too: --boxes xyxy")
    if (ends <= sizes_wh / 2).all():
        what = "all numbers are at most 100: percent?" if ends.max() <= 100 else "of images of another size?"
        return Recognised("box-corner", n, what)
    return None


def _within_1(numbers: np.ndarray) -> np.ndarray:
    """Return for each box whether its numbers are from 0 to 1: (N,)."""
    return np.asarray(((numbers >= -1e-3) & (numbers <= 1 + 1e-3)).all(1))


def _n_fitting(forms: Iterable[str], numbers: np.ndarray, sizes_wh: np.ndarray) -> dict[str, int]:
    return {form: int(fits(to_xywh(form, numbers, sizes_wh), sizes_wh).sum()) for form in forms}


def _n_of_area(areas: np.ndarray, sides: np.ndarray) -> int:
    """Return how many boxes with these sides have the area that is written beside them, within 1 %."""
    with np.errstate(over="ignore", invalid="ignore"):
        product = sides[:, 0] * sides[:, 1]
        return int((np.abs(areas - product) <= 0.01 * np.abs(product)).sum())  # NaN compares false


def _switches(forms: Iterable[str], counts: Mapping[str, int], n: int) -> str:
    """Return the forms that as good as all boxes fit, else the best one, each with its switch."""
    best = sorted(forms, key=lambda form: -counts[form])
    good = [form for form in best if counts[form] >= _FIT_SHARE * n] or best[:1]
    return " or ".join(f"as {_described(form)} {counts[form]} of {n} fit: --boxes {form}" for form in good)


def _described(form: str) -> str:
    return _DESCRIPTIONS[form.partition("-")[2] or "xywh"] if form.startswith("normalised") else _DESCRIPTIONS[form]
