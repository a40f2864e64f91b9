"""Content of `cst-search estimate`: one prediction, the largest sizes that fit, methods side by side.

The same content as tables for people and as dicts for `--json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from cst_search.config.loading import RecipeLike, Settings, apply_settings, load_recipe, parse_settings, shown_name
from cst_search.config.recipe import Recipe
from cst_search.errors import ConfigError
from cst_search.memory.fit import Fit, MethodCost, compare_methods, named, what_fits
from cst_search.memory.gpu_profile import local_costs
from cst_search.memory.gpus import Card, card_notes, costs_of, find_card, memory_budget
from cst_search.memory.inference import Detectors, InferenceCost, compare_tasks
from cst_search.report.estimate_tables import (
    breakdown_table,
    compare_table,
    fit_notes,
    fit_table,
    tasks_notes,
    tasks_table,
)
from cst_search.units import format_bytes, format_count, format_flops

if TYPE_CHECKING:
    from cst_search.memory.estimate import Estimate


_MOST_TASKS = 10_000


@dataclass(frozen=True)
class Estimated:
    """Predictions for a recipe. A part that was not requested is None.

    Attributes:
        config: the method with its options, and the recipe's fields that were set.
    """

    name: str
    recipe: Recipe
    config: Mapping[str, Any]
    guess: Estimate
    compared: Sequence[MethodCost] | None
    tasks: Sequence[Detectors] | None
    fit: Fit | None
    card: Card | None

    def report(self) -> dict[str, Any]:
        """Return the content of `--json`; ``compare``, ``tasks`` and ``fit`` are present if they were requested."""
        content = estimate_report(self.guess, self.config)
        if self.compared is not None:
            content["compare"] = [asdict(row) for row in self.compared]
        if self.tasks is not None:
            content["tasks"] = [asdict(row) for row in self.tasks]
        if self.fit is not None:
            content["fit"] = fit_report(self.fit, self.card)
        return content


def estimate(
    given: RecipeLike,
    settings: Settings = (),
    *,
    n_classes: int = 80,
    max_boxes: int = 100,
    fit: str | None = None,
    device: str | None = None,
    compare: str | None = None,
    tasks: str | None = None,
) -> Estimated:
    """Predict the cost of training a recipe, and of detecting with what it trains. Raises ConfigError, UnitError.

    Args:
        n_classes: number of classes without the background.
        max_boxes: largest number of boxes in one image.
        fit: memory size, e.g. ``6GB``, for which to find the largest settings that fit.
        device: name of a graphics card that the prediction is for, and whose memory is used for ``fit``.
        compare: methods to compare, separated by commas, or ``all``.
        tasks: numbers of tasks, separated by commas, to show the cost of as many detectors.
    """
    counts = None if tasks is None else _counts(tasks)
    recipe = apply_settings(load_recipe(given), settings, shown_name(given))
    card = None if device is None else find_card(device)
    budget = memory_budget(fit, card)
    from cst_search.memory.estimate import worst_input  # only now: a misspelt flag fails without these imports
    from cst_search.petl import method_names
    from cst_search.trial.cost import predict, predict_inference, recomputed_part, with_recompute

    methods = method_names()
    compared = None if compare is None else named(compare, methods)

    gpu = local_costs() if card is None else costs_of(card, local_costs())

    def priced(wanted: Recipe) -> Estimate:
        return predict(wanted, n_classes, worst_input(wanted, max_boxes=max_boxes), gpu=gpu)

    def settled(wanted: Recipe) -> Recipe:
        """Return the recipe with what it recomputes within the budget, if that is ``auto``."""
        return wanted.configured(
            with_recompute({}, wanted, lambda config: priced(wanted.configured(config)).device_bytes, budget)
        )

    def guess(wanted: Recipe) -> Estimate:
        return priced(settled(wanted))

    def price(wanted: Recipe, holds_features: bool) -> InferenceCost:
        return predict_inference(wanted, n_classes, holds_features=holds_features)

    return Estimated(
        shown_name(given),
        recipe,
        _shown_config(recipe, settings) | {"recompute": recomputed_part(settled(recipe))},
        guess(recipe),
        None if compared is None else compare_methods(recipe, compared, guess),
        None if counts is None else compare_tasks(recipe, counts, price),
        None if budget is None else what_fits(recipe, methods, budget, lambda wanted: guess(wanted).device_bytes),
        card,
    )


def _shown_config(recipe: Recipe, settings: Settings) -> dict[str, Any]:
    """Return the method with its options, and the recipe's fields that were set."""
    from cst_search.petl import get_method

    options = get_method(recipe.method).make_options(recipe.options)
    config = {"method": recipe.method} | {f"{recipe.method}.{k}": v for k, v in vars(options).items()}
    return config | {key: getattr(recipe, key) for key in parse_settings(settings) if "." not in key}


def _counts(text: str) -> list[int]:
    """Return numbers of tasks from text such as ``1,5,20``. Raises ConfigError."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and 1 <= int(part) <= _MOST_TASKS for part in parts):
        raise ConfigError(
            f"--tasks takes whole numbers from 1 to {_MOST_TASKS}, with commas, e.g. 1,5,20; got {text!r}"
        )
    return list(dict.fromkeys(map(int, parts)))


def tables(found: Estimated) -> Iterator[Table | Text]:
    """Yield the printed tables and notes, from top to bottom."""
    recipe, guess, fit = found.recipe, found.guess, found.fit
    title = f"{found.name}: {recipe.detector} {recipe.backbone}, {recipe.image_size_px} px, batch {recipe.batch_size}"
    budget = None if fit is None else fit.budget_bytes
    yield breakdown_table(f"{title}, {recipe.method}", guess, budget)
    yield Text(
        f"{format_count(guess.trainable_params)} trainable parameters, {format_count(guess.petl_params)} of the "
        f"method; predicted, {guess.target_device}"
    )
    yield Text(
        f"the trained detector adds {format_bytes(guess.delta_bytes)} to storage; detection in one image takes "
        f"{format_bytes(guess.inference_bytes)} of memory at its peak, and {format_flops(guess.flops)}"
    )
    if fit is not None and recipe.recompute == "auto":
        part = found.config["recompute"]
        yield Text(f"recompute: auto is {part} here; within a budget each method recomputes no more than it has to")
    if found.compared is not None:
        yield Text()
        yield compare_table(title, found.compared, budget)
    if found.tasks is not None:
        yield Text()
        yield tasks_table(f"{found.name}: {recipe.detector} {recipe.backbone}, an image", found.tasks)
        yield from map(Text, tasks_notes(found.tasks, guess))
    if fit is not None:
        yield Text()
        yield fit_table(fit, found.card)
        yield from map(Text, fit_notes(fit, found.card, _fixed_bytes(guess)))


def _fixed_bytes(guess: Estimate) -> int:
    """Return what a training process takes of a GPU before it has a network: the CUDA context, and cuBLAS."""
    return sum(guess.breakdown.get(part, 0) for part in ("context", "blas_context", "blas_workspace"))


def estimate_report(guess: Estimate, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the prediction as a dict for `--json`. Other tools rely on these keys."""
    return {
        "config": dict(config),
        "device_bytes": guess.device_bytes,
        "working_bytes": guess.working_bytes,
        "reserved_bytes": guess.reserved_bytes,
        "active_bytes": guess.active_bytes,
        "trainable_params": guess.trainable_params,
        "petl_params": guess.petl_params,
        "delta_bytes": guess.delta_bytes,
        "inference_bytes": guess.inference_bytes,
        "flops": guess.flops,
        "marginal_flops": guess.marginal_flops,
        "breakdown": dict(guess.breakdown),
        "target_device": guess.target_device,
    }


def fit_report(fit: Fit, card: Card | None) -> dict[str, Any]:
    """Return the fit as a dict: the largest sizes that fit (null if none does).

    ``bounds`` are the sizes at which the search for larger ones ended.
    """
    cheapest = fit.cheapest()
    return {
        "budget_bytes": fit.budget_bytes,
        "device": None if card is None else asdict(card) | {"notes": card_notes(card, fit.recipe.precision)},
        "recipe": {name: getattr(fit.recipe, name) for name in ("batch_size", "image_size_px", "max_size_px")},
        "bounds": {"batch_size": fit.batch_size_bound, "image_size_px": fit.image_size_px_bound},
        "methods": [asdict(row) for row in fit.methods],
        "smaller_network": None if fit.smaller_network is None else asdict(fit.smaller_network),
        "cheapest": {
            "method": cheapest.method,
            "batch_1_bytes": cheapest.batch_1_bytes,
            "fits": cheapest.batch_size is not None,
        },
    }
