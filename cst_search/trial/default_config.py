"""The default configuration of a method: what a search of several methods compares it by. Needs no torch."""

from __future__ import annotations

from typing import Any

from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space
from cst_search.petl import get_method
from cst_search.trial.cost import with_recompute


def default_config(space: Space, recipe: Recipe, name: str | None = None) -> dict[str, Any]:
    """Return the recipe as a configuration of a method: by default its own, or the space's first if that is not in it.

    Another method than the recipe's has its own default options and learning rate.
    """
    method = get_method(name or (recipe.method if recipe.method in space.methods else space.methods[0]))
    own = method.name == recipe.method
    made = method.make_options(recipe.options if own else {})
    config = {key: value for key, value in vars(recipe).items() if key not in ("options", "origin")}
    config |= {"method": method.name, "lr": (recipe.lr if own else None) or method.lr}
    config |= {f"{method.name}.{key}": value for key, value in vars(made).items()}
    return with_recompute(config, recipe, lambda choice: 0, None, spares_memory=True)
