"""Images whose width and height are swapped in the annotation file: which of the two sizes their boxes are for.

Often only the two numbers are swapped (rows for columns), and the boxes are right for the image. Or the images were
turned after they were annotated, and then no box is. The boxes tell where they fit one of the sizes only.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from cst_search.data.options import ReadOptions
from cst_search.data.validation.box_kinds import fits, to_xywh
from cst_search.data.validation.findings import Findings
from cst_search.data.validation.listed import ListedImage

# Share of the images of a split from which on swapped sizes are one finding about all of them.
_MANY = 0.5


def settle_swapped(
    split: str,
    swapped: Sequence[tuple[ListedImage, tuple[int, int]]],
    n_images: int,
    options: ReadOptions,
    faults: Findings,
    notes: Findings,
) -> None:
    """Give images with a swapped size the file's, with a note, if their boxes fit it and do not all fit the other.

    Otherwise many such images are one fault and become unusable; a few are left to the check of each.

    Args:
        swapped: images of a split with the width and height of their files, which are those of the entry swapped.
        n_images: images of the split, these included.
    """
    if not swapped:
        return
    boxes = [(image, size, box) for image, size in swapped for box in image.written]
    said = np.array([(image.width, image.height) for image, _, _ in boxes], dtype=np.float64).reshape(-1, 2)
    real = np.array([size for _, size, _ in boxes], dtype=np.float64).reshape(-1, 2)
    written = np.array([box.numbers for _, _, box in boxes], dtype=np.float64).reshape(-1, 4)
    in_pixels = np.array([box.in_pixels for _, _, box in boxes], dtype=bool)[:, None]
    form = "xywh" if options.boxes == "auto" else options.boxes
    in_said, in_real = (
        fits(np.where(in_pixels, written, to_xywh(form, written, size)), size) if boxes else np.zeros(0, bool)
        for size in (said, real)
    )
    n_said, n_real = int((in_said & ~in_real).sum()), int((in_real & ~in_said).sum())
    if n_real and not n_said:
        why = f"{n_real} of {len(boxes)} boxes fit their images only so"
        notes.add_count("size-swapped", split, len(swapped), why)
        for image, size in swapped:
            image.width, image.height = size
    elif len(swapped) > _MANY * n_images:
        why = f"of {len(boxes)} boxes {n_said} fit the file's size alone, {n_real} that of the images alone"
        faults.add_count("sizes-swapped", split, len(swapped), why)
        for image, _ in swapped:
            image.usable = False
