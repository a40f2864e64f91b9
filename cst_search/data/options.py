"""Choices of how a data set is read, each a field of the recipe. Standard library only.

An exported recipe must train on the same data in the same way, so `Recipe` declares these fields and `load_data` takes
them as one value.
"""

from __future__ import annotations

from dataclasses import dataclass

from cst_search.config.recipe import MAX_PIXELS, READING_FIELDS, Recipe


@dataclass(frozen=True)
class ReadOptions:
    """How `load_data` reads a data set; fields and defaults are those of the recipe.

    Attributes:
        exif: which picture the boxes of an image with an EXIF orientation lie on: ``shown`` (turned as viewers show
            it), ``stored``, or ``auto`` (what the sizes in the annotation file say).
        max_pixels: bound of an image's width times height; a file of a few kB may claim more than there is memory for.
        truncated: ``refuse`` image files that are cut off at their end, or ``use`` what is there.
        white_level: value of white in grey scale of more than 8 bits; None: the end of the format's range.
        val_fraction: share of the training images that becomes the validation split of a set without one; None: such
            a set is refused.
        val_seed: seed of the choice of these images.
        sizes: width and height of images: ``file`` (those of the annotation file, which those of the image must equal)
            or ``image`` (those of the file are not read).
        boxes: form of ``bbox``: ``xywh``, ``xyxy`` or ``cxcywh`` in pixels; ``normalised``, ``normalised-xyxy`` or
            ``normalised-cxcywh`` in 0..1; ``auto`` (xywh; a fault where the boxes together speak for another form).
        crowd: objects with ``iscrowd`` 1: ``ignore``, ``as-objects``, or ``auto`` (ignored, but a fault where they are
            most).
        rotated: boxes with a rotation: ``refuse``, ``enclose`` (the upright box around) or ``ignore`` (as not turned).
    """

    exif: str = "auto"
    max_pixels: int = MAX_PIXELS
    truncated: str = "refuse"
    white_level: float | None = None
    val_fraction: float | None = None
    val_seed: int = 0
    sizes: str = "file"
    boxes: str = "auto"
    crowd: str = "auto"
    rotated: str = "refuse"

    @classmethod
    def of(cls, recipe: Recipe) -> ReadOptions:
        """Return the choices of a recipe."""
        return cls(**{name: getattr(recipe, name) for name in READING_FIELDS})


DEFAULT_OPTIONS = ReadOptions()
