"""Bounds of polygons and masks. The reference is pycocotools."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as reference

from cst_search.data.validation.outlines import OutlineError, bounds


def runs(mask: np.ndarray) -> list[int]:
    """Uncompressed counts, column by column, zeros first."""
    flat, counts, current = mask.flatten(order="F"), [0], 0
    for pixel in flat:
        if pixel != current:
            counts.append(0)
            current = pixel
        counts[-1] += 1
    return counts


def drawn(seed: int) -> np.ndarray:
    """A few rectangles; some touch the edges, some have a hole."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(rng.integers(1, 40, 2), dtype=np.uint8)
    for value in (1, 1, 0)[: rng.integers(1, 4)]:
        (top, left), (h, w) = (rng.integers(0, side) for side in mask.shape), rng.integers(1, 40, 2)
        mask[top : top + h, left : left + w] = value
    return mask


@pytest.mark.parametrize("seed", range(60))
def test_masks_have_the_bounds_of_pycocotools(seed: int) -> None:
    mask = drawn(seed)
    encoded = reference.encode(np.asfortranarray(mask))
    expected = tuple(reference.toBbox(encoded).tolist())
    compressed = {"size": list(mask.shape), "counts": encoded["counts"].decode()}
    uncompressed = {"size": list(mask.shape), "counts": runs(mask)}
    for segmentation in (compressed, uncompressed):
        if mask.any():
            assert bounds(json.loads(json.dumps(segmentation))) == expected
        else:
            with pytest.raises(OutlineError, match="without a pixel"):
                bounds(segmentation)


@pytest.mark.parametrize(
    ("polygons", "expected"),
    [
        ([[10, 20, 30, 20, 20, 50]], (10, 20, 20, 30)),
        ([[10, 20, 30, 20, 20, 50], [60, 5, 70, 8.5]], (10, 5, 60, 45)),  # an object in two parts
        ([10, 20, 30, 20, 20, 50], (10, 20, 20, 30)),  # without the list around
        ([["10", "20", "30.5", "20"]], (10, 20, 20.5, 0)),
    ],
)
def test_polygons(polygons: Any, expected: tuple[float, ...]) -> None:
    assert bounds(polygons) == expected


@pytest.mark.parametrize(
    ("segmentation", "says"),
    [
        ([], "is [], expected polygons or a mask"),
        ("x", 'is "x", expected polygons or a mask'),
        ([[]], "the polygon [], expected x and y"),
        ([[1, 2, 3, None]], "the polygon [1, 2, 3, null], expected"),
        ([[1, 2, 3, 4, 5]], "the polygon [1, 2, 3, 4, 5], expected"),
        ([[[1, 2], [3, 4]]], "the polygon [[1, 2], [3, 4]], expected"),
        ({"counts": [4]}, "the size null, expected [height, width]"),
        ({"size": [2, 0], "counts": []}, "the size [2, 0], expected"),
        ({"size": [2, 2]}, "the counts null, expected runs of 2 x 2 pixels"),
        ({"size": [2, 2], "counts": [1, 2]}, "the counts [1, 2], expected runs of 2 x 2 pixels together"),
        ({"size": [2, 2], "counts": [5, -1]}, "the counts [5, -1], expected"),
        ({"size": [2, 2], "counts": "\u00e4"}, "expected runs"),
        ({"size": [2, 2], "counts": [4]}, "without a pixel"),
    ],
)
def test_what_is_no_outline_is_named(segmentation: Any, says: str) -> None:
    with pytest.raises(OutlineError) as caught:
        bounds(segmentation)
    assert says in str(caught.value)
