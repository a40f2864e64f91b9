"""Content of `cst-search estimate`: the breakdown with bars, the largest sizes that fit, methods side by side.

Plain tables for a person, the same content as dicts for `--json`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from cst_search.config.loading import RecipeLike, Settings, apply_settings, load_recipe, parse_settings, shown_name
from cst_search.config.recipe import Recipe
from cst_search.memory.fit import Change, Fit, MethodCost, MethodFit, compare_methods, named, what_fits
from cst_search.memory.gpus import Card, find_card, memory_budget
from cst_search.units import format_bytes, format_count

if TYPE_CHECKING:
    from cst_search.memory.estimate import Estimate

_BAR_WIDTH = 30


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
    fit: Fit | None
    card: Card | None

    def report(self) -> dict[str, Any]:
        """Return the content of `--json`; ``compare`` and ``fit`` are present if they were requested."""
        content = estimate_report(self.guess, self.config)
        if self.compared is not None:
            content["compare"] = [asdict(row) for row in self.compared]
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
) -> Estimated:
    """Predict the memory and parameters of training a recipe. Raises ConfigError, UnitError.

    Args:
        n_classes: number of classes without the background.
        max_boxes: largest number of boxes in one image.
        fit: memory size, e.g. ``6GB``, for which to find the largest settings that fit.
        device: name of a graphics card whose memory is used for ``fit``.
        compare: methods to compare, separated by commas, or ``all``.
    """
    recipe = apply_settings(load_recipe(given), settings, shown_name(given))
    card = None if device is None else find_card(device)
    budget = memory_budget(fit, card)
    from cst_search.memory.estimate import worst_input  # only now: a misspelt flag fails without these imports
    from cst_search.petl import get_method, method_names
    from cst_search.trial.cost import predict

    methods = method_names()
    compared = None if compare is None else named(compare, methods)

    def guess(wanted: Recipe) -> Estimate:
        return predict(wanted, n_classes, worst_input(wanted, max_boxes=max_boxes))

    options = get_method(recipe.method).make_options(recipe.options)
    config = {"method": recipe.method} | {f"{recipe.method}.{k}": v for k, v in vars(options).items()}
    config |= {key: getattr(recipe, key) for key in parse_settings(settings) if "." not in key}
    return Estimated(
        shown_name(given),
        recipe,
        config,
        guess(recipe),
        None if compared is None else compare_methods(recipe, compared, guess),
        None if budget is None else what_fits(recipe, methods, budget, lambda wanted: guess(wanted).device_bytes),
        card,
    )


def tables(found: Estimated) -> Iterator[Table | Text]:
    """Yield the tables and notes for a person, from top to bottom."""
    recipe, guess, fit = found.recipe, found.guess, found.fit
    title = f"{found.name}: {recipe.detector} {recipe.backbone}, {recipe.image_size_px} px, batch {recipe.batch_size}"
    budget = None if fit is None else fit.budget_bytes
    yield breakdown_table(f"{title}, {recipe.method}", guess, budget)
    yield Text(
        f"{format_count(guess.trainable_params)} trainable parameters, {format_count(guess.petl_params)} of the "
        f"method; predicted, {guess.target_device}"
    )
    if found.compared is not None:
        yield Text()
        yield compare_table(title, found.compared, budget)
    if fit is not None:
        yield Text()
        yield fit_table(fit, found.card)
        yield from map(Text, fit_notes(fit, found.card))


# --- one recipe ------------------------------------------------------------------------------------------------------


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
        "breakdown": dict(guess.breakdown),
        "target_device": guess.target_device,
    }


def breakdown_table(title: str, guess: Estimate, budget_bytes: int | None = None) -> Table:
    """Table of every part with its share of ``device_bytes``, then the totals and their share of a budget."""
    table = Table(title=Text(title), title_justify="left")
    table.add_column("part")
    table.add_column("memory", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("of the device memory", no_wrap=True, width=_BAR_WIDTH)
    for part, n_bytes in guess.breakdown.items():
        bar = Bar(guess.device_bytes, 0, n_bytes, width=_BAR_WIDTH)
        table.add_row(_part_words(part), format_bytes(n_bytes), _percent(n_bytes / guess.device_bytes), bar)
    table.add_section()
    for total, n_bytes, meaning in (
        ("active memory", guess.active_bytes, "live tensors at the peak"),
        ("reserved memory", guess.reserved_bytes, "what PyTorch's allocator holds"),
        ("working memory", guess.working_bytes, "device without CUDA context"),
        ("device memory", guess.device_bytes, "what nvidia-smi shows"),
    ):
        table.add_row(total, format_bytes(n_bytes), _percent(n_bytes / guess.device_bytes), Text(meaning, style="dim"))
    if budget_bytes is not None:
        left = budget_bytes - guess.device_bytes
        used = _percent(guess.device_bytes / budget_bytes)
        verdict = f"{used} used, {format_bytes(left)} left" if left >= 0 else f"too large by {format_bytes(-left)}"
        table.add_section()
        table.add_row("budget", format_bytes(budget_bytes), "", verdict)
    return table


# --- what fits -------------------------------------------------------------------------------------------------------


def fit_report(fit: Fit, card: Card | None) -> dict[str, Any]:
    """Return the fit as a dict: the largest sizes that fit (null if none does).

    ``bounds`` are the sizes at which the search for larger ones ended.
    """
    cheapest = fit.cheapest()
    return {
        "budget_bytes": fit.budget_bytes,
        "device": None if card is None else asdict(card),
        "recipe": {name: getattr(fit.recipe, name) for name in ("batch_size", "image_size_px", "max_size_px")},
        "bounds": {"batch_size": fit.batch_size_bound, "image_size_px": fit.image_size_px_bound},
        "methods": [asdict(row) for row in fit.methods],
        "cheapest": {
            "method": cheapest.method,
            "batch_1_bytes": cheapest.batch_1_bytes,
            "fits": cheapest.batch_size is not None,
        },
    }


def fit_table(fit: Fit, card: Card | None) -> Table:
    """Table with a row per method. A plus sign means that nothing larger was tried."""
    recipe = fit.recipe
    where = format_bytes(fit.budget_bytes) if card is None else f"the {format_bytes(fit.budget_bytes)} of {card.name}"
    table = Table(title=Text(f"What fits in {where}: the largest batch, the largest image"), title_justify="left")
    table.add_column("method", no_wrap=True)
    for heading in (
        "memory\nas it is",
        f"batch at\n{recipe.image_size_px} px",
        f"image at\nbatch {recipe.batch_size}",
        "image at\nbatch 1",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    too_large = not all(row.fits for row in fit.methods)
    if too_large:
        table.add_column("what would make it fit")
    for row in fit.methods:
        table.add_row(
            row.method,
            Text(format_bytes(row.device_bytes), style="" if row.fits else "red"),
            _size(row.batch_size, fit.batch_size_bound),
            _size(row.image_size_px, fit.image_size_px_bound, " px"),
            _size(row.image_size_px_batch_1, fit.image_size_px_bound, " px"),
            *([_changes(row)] if too_large else []),
        )
    return table


def fit_notes(fit: Fit, card: Card | None) -> list[str]:
    """Notes below the table: the cheapest setting where nothing fits, and particulars of the card."""
    recipe, cheapest = fit.recipe, fit.cheapest()
    at = f"at batch 1 and {recipe.image_size_px} px"
    notes = []
    if cheapest.batch_size is None:
        notes.append(
            f"no method fits {at}; the one that needs least, {cheapest.method}, needs "
            f"{format_bytes(cheapest.batch_1_bytes)}"
        )
    elif any(row.batch_size is None for row in fit.methods):
        notes.append(f"what needs least {at}: {cheapest.method}, {format_bytes(cheapest.batch_1_bytes)}")
    if card is not None and card.note:
        notes.append(f"{card.name}: {card.note}")
    return notes


def _size(value: int | None, bound: int, unit: str = "") -> str:
    return "-" if value is None else f"{value}{'+' if value >= bound else ''}{unit}"


def _changes(row: MethodFit) -> Text:
    if row.fits:
        return Text()
    return Text("\n".join(_change(change) for change in row.changes) or "another method")


def _change(change: Change) -> str:
    settings = " ".join(f"{name}={str(value).lower()}" for name, value in change.settings.items())
    return f"{settings} ({format_bytes(change.device_bytes)})"


# --- side by side ----------------------------------------------------------------------------------------------------


def compare_table(title: str, rows: Sequence[MethodCost], budget_bytes: int | None = None) -> Table:
    """Table with a row per method; values above the budget are red."""
    table = Table(title=Text(title), title_justify="left")
    table.add_column("method", no_wrap=True)
    for heading in ("device", "of full", "working", "of full", "active", "of full", "trainable", "of the method"):
        table.add_column(heading, justify="right")
    for row in rows:
        over = budget_bytes is not None and row.device_bytes > budget_bytes
        table.add_row(
            row.method,
            Text(format_bytes(row.device_bytes), style="red" if over else ""),
            _percent(row.device_ratio),
            format_bytes(row.working_bytes),
            _percent(row.working_ratio),
            format_bytes(row.active_bytes),
            _percent(row.active_ratio),
            format_count(row.trainable_params),
            format_count(row.petl_params),
        )
    return table


def _part_words(part: str) -> str:
    return "CUDA context (fixed cost)" if part == "context" else part.replace("_", " ")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
