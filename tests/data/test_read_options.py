"""Choices of how data are read are fields of the recipe."""

from __future__ import annotations

from dataclasses import asdict

import pytest

from cst_search.config.recipe import READING_FIELDS, Recipe
from cst_search.config.search_space import Space
from cst_search.data.options import ReadOptions
from cst_search.errors import ConfigError


def test_fields_and_defaults_are_the_recipes() -> None:
    recipe = Recipe()
    assert asdict(ReadOptions()) == {name: getattr(recipe, name) for name in READING_FIELDS}
    assert ReadOptions.of(Recipe(exif="shown")) == ReadOptions(exif="shown")


def test_a_recipe_of_an_earlier_version_reads_data_as_before() -> None:
    """Images were read as stored, boxes as COCO's; one that a person writes today has the defaults of today."""
    as_before = ReadOptions(exif="stored", boxes="xywh", crowd="ignore", rotated="ignore")
    stored = {name: value for name, value in Recipe().to_dict().items() if name not in READING_FIELDS}
    assert ReadOptions.of(Recipe.from_dict(stored)) == as_before
    assert ReadOptions.of(Recipe.from_dict(stored | {"origin": {"study": "s"}}, by_hand=True)) == as_before
    assert ReadOptions.of(Recipe.from_dict(stored, by_hand=True)) == ReadOptions()


@pytest.mark.parametrize("name", READING_FIELDS)
def test_no_search_varies_them(name: str) -> None:
    """All trials of a search share the data that were read once."""
    with pytest.raises(ConfigError, match=name):
        Space.from_dict({"methods": ["head"], "shared": {name: {"choice": [getattr(Recipe(), name)]}}}, "mine")
