"""Choices of how a data set is read, each a field of the recipe. Standard library only.

An exported recipe must train on the same data in the same way, so `Recipe` declares these fields and `load_data` takes
them as one value.
"""

from __future__ import annotations

from dataclasses import dataclass

from cst_search.config.recipe import READING_FIELDS, Recipe


@dataclass(frozen=True)
class ReadOptions:
    """How `load_data` reads a data set; fields and defaults are those of the recipe.

    Attributes:
        exif: which picture the boxes of an image with an EXIF orientation lie on: ``shown`` (turned as viewers show
            it), ``stored``, or ``auto`` (what the sizes in the annotation file say).
    """

    exif: str = "auto"

    @classmethod
    def of(cls, recipe: Recipe) -> ReadOptions:
        """Return the choices of a recipe."""
        return cls(**{name: getattr(recipe, name) for name in READING_FIELDS})


DEFAULT_OPTIONS = ReadOptions()
