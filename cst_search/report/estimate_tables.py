"""Tables of `cst-search estimate` for a terminal: the breakdown, the largest sizes that fit, methods side by side."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.table import Table
from rich.text import Text

from cst_search.config.recipe import BACKBONES
from cst_search.memory.fit import STEP_PX, Change, Fit, MethodCost, MethodFit
from cst_search.memory.gpus import Card, card_notes
from cst_search.memory.inference import Detectors
from cst_search.units import format_bytes, format_count, format_flops

if TYPE_CHECKING:
    from cst_search.memory.estimate import Estimate

_BAR_WIDTH = 30


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
        ("working memory", guess.working_bytes, "device without the fixed cost"),
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
    too_large = not all(row.fits for row in fit.methods) and not fit.is_hopeless
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


def fit_notes(fit: Fit, card: Card | None, fixed_bytes: int) -> list[str]:
    """Notes below the table: the cheapest setting where nothing fits, and particulars of the card.

    Args:
        fixed_bytes: what a process takes of the device before it has a network.
    """
    recipe, cheapest = fit.recipe, fit.cheapest()
    at = f"at batch 1 and {recipe.image_size_px} px"
    notes = []
    if fit.is_hopeless:
        notes.append(_why_nothing_fits(fit, fixed_bytes))
    elif cheapest.batch_size is None:
        notes.append(
            f"no method fits {at}; the one that needs least, {cheapest.method}, needs "
            f"{format_bytes(cheapest.batch_1_bytes)}"
        )
    elif any(row.batch_size is None for row in fit.methods):
        notes.append(f"what needs least {at}: {cheapest.method}, {format_bytes(cheapest.batch_1_bytes)}")
    return notes if card is None else notes + card_notes(card, recipe.precision)


def _why_nothing_fits(fit: Fit, fixed_bytes: int) -> str:
    """Return why no method fits with images of any size, and which network would."""
    budget = format_bytes(fit.budget_bytes)
    if fit.budget_bytes <= fixed_bytes:
        return (
            f"nothing fits in {budget}: a process takes {format_bytes(fixed_bytes)} of a GPU before it has a network "
            f"(CUDA context, cuBLAS)"
        )
    if fit.smaller_network is None:
        smallest = f"the smallest network ({BACKBONES[0]})"
        return f"nothing fits in {budget}: no method does with {smallest} and images of {STEP_PX} px"
    return (
        f"no method fits with {fit.recipe.backbone}, whatever the image size; {fit.cheapest().method} fits with "
        f"{_change(fit.smaller_network)}"
    )


def _size(value: int | None, bound: int, unit: str = "") -> str:
    return "-" if value is None else f"{value}{'+' if value >= bound else ''}{unit}"


def _changes(row: MethodFit) -> Text:
    if row.fits:
        return Text()
    return Text("\n".join(_change(change) for change in row.changes) or "another method")


def _change(change: Change) -> str:
    settings = " ".join(f"{name}={str(value).lower()}" for name, value in change.settings.items())
    return f"{settings} ({format_bytes(change.device_bytes)})"


def compare_table(title: str, rows: Sequence[MethodCost], budget_bytes: int | None = None) -> Table:
    """Table with a row per method; values above the budget are red."""
    table = Table(title=Text(title), title_justify="left")
    table.add_column("method", no_wrap=True)
    headings = (
        "device", "of full", "working", "of full", "active", "trainable", "of full", "of the method", "saved",
    )  # fmt: skip
    for heading in headings:
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
            format_count(row.trainable_params),
            f"{100 * row.trainable_ratio:.3g} %",
            format_count(row.petl_params),
            format_bytes(row.saved_bytes),
        )
    return table


def tasks_table(title: str, rows: Sequence[Detectors]) -> Table:
    """Table with a row per number of tasks and way to have them; shares are of whole detectors, which come last."""
    table = Table(title=Text(title), title_justify="left")
    table.add_column("tasks", justify="right")
    table.add_column("detectors", no_wrap=True)
    for heading in ("storage", "of whole", "peak memory", "of whole", "operations", "of whole"):
        table.add_column(heading, justify="right", no_wrap=True)
    for i, whole in enumerate(rows[-1].costs):
        table.add_section()
        for j, row in enumerate(rows):
            cost = row.costs[i]
            table.add_row(
                "" if j else str(cost.n_tasks),
                _detectors_words(row),
                format_bytes(cost.storage_bytes),
                _percent(cost.storage_bytes / whole.storage_bytes),
                format_bytes(cost.inference_bytes),
                _percent(cost.inference_bytes / whole.inference_bytes),
                format_flops(cost.flops),
                _percent(cost.flops / whole.flops),
            )
    return table


def _detectors_words(row: Detectors) -> str:
    return "whole (full, or merged adapters)" if row.method is None else f"{row.method}, {row.kind}"


def tasks_notes(rows: Sequence[Detectors], guess: Estimate) -> list[str]:
    """Notes below the table: what a further task adds, and what operations are."""
    return [
        f"a further task of {rows[0].method} adds {format_bytes(guess.delta_bytes)} and "
        f"{format_flops(guess.marginal_flops)}",
        "a multiply-add is two operations (FLOP): 1 GFLOP is half a billion multiply-adds",
    ]


def _part_words(part: str) -> str:
    return "CUDA context (fixed cost)" if part == "context" else part.replace("_", " ")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
