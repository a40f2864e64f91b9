"""How many detections an image may need: detectors and COCO's figures stop at 100, dense images have more objects."""

from __future__ import annotations

from dataclasses import replace

from cst_search.config.recipe import DETECTIONS_PER_IMAGE, Recipe
from cst_search.data.dataset import DetectionData

# COCO's densest training image has 93 objects, for its limit of 100: some detections are false, also of a good detector
_ROOM = 1.07


def detections_needed(max_boxes: int) -> int:
    """Return the limit of detections for images with up to ``max_boxes`` objects: 100, or whole hundreds above."""
    if max_boxes <= DETECTIONS_PER_IMAGE:
        return DETECTIONS_PER_IMAGE
    return -(-int(_ROOM * max_boxes) // 100) * 100


def with_detections(recipe: Recipe, data: DetectionData) -> Recipe:
    """Return a recipe whose ``detections_per_image`` is what the data need, if it leaves that open and 100 are too few.

    A recipe that a study exported is left as it is: its trials had what it says.
    """
    needed = detections_needed(data.summary()["max_boxes"])
    if recipe.detections_per_image is not None or recipe.origin or needed == DETECTIONS_PER_IMAGE:
        return recipe
    return replace(recipe, detections_per_image=min(needed, 10_000))
