"""The recipe and the study of a launch, and what is recorded of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cst_search.commands.options import LaunchOptions
from cst_search.config.catalog import own_path
from cst_search.config.loading import apply_settings, load_recipe, shown_name
from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space
from cst_search.errors import ConfigError
from cst_search.petl import get_method
from cst_search.search.samplers import default_sampler
from cst_search.search.suggester import enqueue
from cst_search.study.records import StudySpec
from cst_search.study.study import Study


def base_recipe(options: LaunchOptions, device: Any) -> Recipe:
    """The recipe that all trials share, with the dataset's absolute path in it."""
    chosen = options.recipe or ("demo" if options.data is None else "small" if device.type == "cpu" else "resnet50")
    name = shown_name(chosen)
    recipe = apply_settings(load_recipe(chosen), options.settings, name)
    get_method(recipe.method).make_options(recipe.options)
    folder, weights = options.data or recipe.data, recipe.weights
    if folder != "demo":
        folder = str(own_path(folder).absolute())
    if weights not in ("DEFAULT", "none", "demo"):
        weights = str(own_path(weights).absolute())
        if not Path(weights).is_file():  # or every trial would find out by itself
            raise ConfigError(f"recipe {name!r}: weights must be DEFAULT, none, demo or a file; there is no {weights}")
    return replace(recipe, data=folder, weights=weights, seed=options.seed)


def make_study(
    storage: str, name: str, space: Space, recipe: Recipe, options: LaunchOptions, objectives: Sequence[Any],
    reference: dict[str, float], inputs: dict[str, Any],
) -> Study:  # fmt: skip
    spec = StudySpec(
        objectives=tuple(objectives),
        budget=options.budget,
        reference_point={o.name: reference[o.name] for o in objectives},
        recipe=recipe.to_dict(),
        space=json.loads(json.dumps(space.source)),
        data=recipe.data,
        seed=options.seed,
        sampler=options.sampler or default_sampler(objectives),
        target_device="CUDA GPU (generic)",
        limit_bytes=options.limit_bytes,
        inputs=inputs,
        eta=options.eta,
    )
    study = Study.create(storage, name, spec)
    if not study.info().trials:
        enqueue(study, default_config(space, recipe))
    return study


def default_config(space: Space, recipe: Recipe) -> dict[str, Any]:
    """The recipe as a configuration, of its method or the first of the space: a search should not end below it.

    Of one method alone: those of all twelve as first trials were worse than what a search found in their place.
    """
    method = get_method(recipe.method if recipe.method in space.methods else space.methods[0])
    own = method.name == recipe.method
    made = method.make_options(recipe.options if own else {})
    config = {key: value for key, value in vars(recipe).items() if key not in ("options", "origin")}
    config |= {"method": method.name, "lr": (recipe.lr if own else None) or method.lr}
    return config | {f"{method.name}.{key}": value for key, value in vars(made).items()}


def settings_of(study: Study, options: LaunchOptions, n_workers: int, device: Any) -> dict[str, Any]:
    spec = study.spec
    return {
        "recipe": {key: value for key, value in spec.recipe.items() if key not in ("options", "origin")},
        "options": spec.recipe.get("options", {}),
        "space": shown_name(options.space),
        "data": spec.data,
        "budget": {"memory_bytes": spec.budget.memory_bytes, "params": spec.budget.params},
        "limit_mem": spec.limit_bytes,
        "objectives": ",".join(o.name for o in spec.objectives),
        "sampler": spec.sampler,
        "eta": spec.eta,
        "seed": spec.seed,
        "trials": options.trials,
        "workers": n_workers,
        "device": str(device),
    }
