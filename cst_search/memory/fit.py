"""Largest sizes that fit into a memory budget, changes that make a recipe fit, and a comparison of methods.

The predicted memory is a callable argument (`trial.cost.predict`, or a formula in a test). Sizes are found by
bisection, which assumes that more images and more pixels never need less memory. Of live tensors this is so; the
caching allocator may hold a page or two less for them (`tests/memory/test_fit.py` checks both). So the size found fits,
but one more image or step of pixels sometimes would too.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol

from cst_search.config.recipe import BACKBONES, Recipe
from cst_search.errors import ConfigError, did_you_mean

MAX_BATCH_SIZE = 256
MAX_IMAGE_SIZE_PX = 2048
# the prediction pads a batch to multiples of 32, like torchvision, so a finer step would change nothing
STEP_PX = 32
# bounds of a recipe's max_size_px and accumulate
_MAX_LONG_PX = 8192
_MAX_ACCUMULATE = 1024

# Fields that save memory at the same batch and image, cheapest first: half precision (bf16, or fp16 on a card without
# it), then recomputation in the backward pass. Fields that this version's recipes lack are skipped.
_SAVINGS: tuple[tuple[str, Any], ...] = (("precision", "auto"), ("memsave", True), ("recompute", "all"))

# device bytes of training a recipe; called repeatedly with the same recipe, so it should cache (`cost.predict` does)
Bytes = Callable[[Recipe], int]


@dataclass(frozen=True)
class Change:
    """Change of recipe fields, and the device bytes needed after it."""

    settings: Mapping[str, Any]
    device_bytes: int


@dataclass(frozen=True)
class MethodFit:
    """Fit of one method to the budget. Sizes are the largest that fit; None if not even the smallest does.

    Attributes:
        device_bytes: predicted device bytes of the unchanged recipe.
        batch_1_bytes: predicted device bytes at batch size 1 and the recipe's image size.
        fits: True if the unchanged recipe fits.
        batch_size: largest batch size at the recipe's image size.
        image_size_px: largest short side in pixels at the recipe's batch size, the long side in proportion.
        image_size_px_batch_1: largest short side in pixels at batch size 1.
        changes: changes that each make the recipe fit by themselves; empty if it fits already, or nothing helps.
    """

    method: str
    device_bytes: int
    batch_1_bytes: int
    fits: bool
    batch_size: int | None
    image_size_px: int | None
    image_size_px_batch_1: int | None
    changes: tuple[Change, ...]


@dataclass(frozen=True)
class Fit:
    """Fit of several methods to a budget, at the batch and image size of ``recipe``; sizes within the bounds.

    Attributes:
        smaller_network: if no method fits with any change: that of the network by which the method that needs least
            fits with the largest images; None: none does, or it is not needed.
    """

    recipe: Recipe
    budget_bytes: int
    batch_size_bound: int
    image_size_px_bound: int
    methods: tuple[MethodFit, ...]
    smaller_network: Change | None = None

    @property
    def is_hopeless(self) -> bool:
        """True if no method fits, whatever the batch, image size, precision and recomputation."""
        return not any(row.fits or row.changes for row in self.methods)

    def cheapest(self) -> MethodFit:
        """Return the method that needs least at batch size 1 and the recipe's image size, whether it fits or not."""
        return min(self.methods, key=lambda row: row.batch_1_bytes)


def what_fits(recipe: Recipe, methods: Sequence[str], budget_bytes: int, predict: Bytes) -> Fit:
    """Fit every method to the budget: the recipe's own method with its options, the others with their defaults.

    Args:
        methods: names of methods, at least one.
    """
    sizes, batches = image_sizes(recipe), _batches(recipe)
    rows = tuple(_fit(recipe.configured({"method": name}), budget_bytes, predict) for name in methods)
    found = Fit(recipe, budget_bytes, batches[-1], sizes[-1], rows)
    if not found.is_hopeless:
        return found
    least = recipe.configured({"method": found.cheapest().method})
    return replace(found, smaller_network=_smaller_network(least, budget_bytes, predict))


def _smaller_network(recipe: Recipe, budget: int, predict: Bytes) -> Change | None:
    """Return the change to the largest smaller backbone that fits at batch size 1, with its largest images."""
    for backbone in reversed(BACKBONES[: BACKBONES.index(recipe.backbone)]):
        try:
            smaller = replace(recipe, backbone=backbone, batch_size=1)
        except ConfigError:  # its weights are of another backbone
            continue
        px = largest(image_sizes(smaller), lambda px, one=smaller: predict(at_size(one, px)) <= budget)  # type: ignore[misc]
        if px is not None:
            return _change(recipe, at_size(smaller, px), predict)
    return None


def _fit(recipe: Recipe, budget: int, predict: Bytes) -> MethodFit:
    def fits(candidate: Recipe) -> bool:
        return predict(candidate) <= budget

    single, sizes = replace(recipe, batch_size=1), image_sizes(recipe)
    batch_size = largest(_batches(recipe), lambda n: fits(replace(recipe, batch_size=n)))
    image_size_px = largest(sizes, lambda px: fits(at_size(recipe, px)))
    batch_1_px = largest(sizes, lambda px: fits(at_size(single, px)))
    changes: list[Change] = []
    if batch_size is None:
        changes += [_change(recipe, remedy, predict) for remedy in _remedies(single, batch_1_px, fits)]
    elif not fits(recipe):
        changes.append(_change(recipe, _in_smaller_batches(recipe, batch_size), predict))
    return MethodFit(
        recipe.method, predict(recipe), predict(single), fits(recipe), batch_size, image_size_px, batch_1_px,
        tuple(changes),
    )  # fmt: skip


def largest(values: Sequence[int], fits: Callable[[int], bool]) -> int | None:
    """Return the largest of ascending values that fits, by bisection; None if none does.

    The returned value was itself tried and fits, whether or not ``fits`` is monotone.
    """
    n_fitting = bisect_right(values, False, key=lambda value: not fits(value))
    return values[n_fitting - 1] if n_fitting else None


def image_sizes(recipe: Recipe) -> list[int]:
    """Return the candidate short sides in pixels, ascending: multiples of STEP_PX, and the recipe's own."""
    bound = min(MAX_IMAGE_SIZE_PX, _MAX_LONG_PX * recipe.image_size_px // recipe.max_size_px)
    return sorted({*range(STEP_PX, bound + 1, STEP_PX), recipe.image_size_px})


def at_size(recipe: Recipe, short_px: int) -> Recipe:
    """Return the recipe with another short side, and the bound of the long side in proportion (rounded down)."""
    long_px = short_px * recipe.max_size_px // recipe.image_size_px
    return replace(recipe, image_size_px=short_px, max_size_px=long_px)


def _batches(recipe: Recipe) -> range:
    return range(1, max(MAX_BATCH_SIZE, recipe.batch_size) + 1)


def _in_smaller_batches(recipe: Recipe, batch_size: int) -> Recipe:
    """Return the recipe with at most ``batch_size`` images per step, and if possible as many per update as before."""
    images = recipe.batch_size * recipe.accumulate
    for step in range(batch_size, 0, -1):
        if images % step == 0 and images // step <= _MAX_ACCUMULATE:
            return replace(recipe, batch_size=step, accumulate=images // step)
    return replace(recipe, batch_size=batch_size)


def _remedies(recipe: Recipe, image_size_px: int | None, fits: Callable[[Recipe], bool]) -> list[Recipe]:
    """Return variants of a recipe of batch size 1 that fit, with savings or smaller images.

    These are the savings that are each enough alone; else the first few that are enough together; else all of them with
    the largest images that they make room for. ``image_size_px`` is a size that fits, if any.
    """
    has = {f.name for f in fields(recipe)}
    unused = [(name, value) for name, value in _SAVINGS if name in has and _saves(recipe, name, value)]

    def fitting(settings: Sequence[tuple[str, Any]], sized: Recipe = recipe) -> Recipe | None:
        try:
            changed = replace(sized, **dict(settings))
            return changed if fits(changed) else None
        except ConfigError:  # not available for this method or detector
            return None

    enough = [changed for saving in unused if (changed := fitting([saving]))]
    if not enough:
        together = (fitting(unused[:n]) for n in range(2, len(unused) + 1))
        enough = [changed for changed in together if changed][:1]
    smaller = [] if image_size_px is None else [at_size(recipe, image_size_px)]
    if unused and not enough:
        px = largest(image_sizes(recipe), lambda px: fitting(unused, at_size(recipe, px)) is not None)
        if px is not None and px != image_size_px and (changed := fitting(unused, at_size(recipe, px))):
            smaller.append(changed)
    return enough + smaller


def _saves(recipe: Recipe, name: str, value: Any) -> bool:
    if name == "precision":
        return recipe.precision == "fp32"  # bf16 and fp16 are halves already
    return bool(getattr(recipe, name) != value)


def _change(before: Recipe, after: Recipe, predict: Bytes) -> Change:
    changed = [f.name for f in fields(after) if getattr(after, f.name) != getattr(before, f.name)]
    changed.sort(key=lambda name: name != "batch_size")  # batch_size first, the rest in recipe order
    return Change({name: getattr(after, name) for name in changed}, predict(after))


# --- side by side ----------------------------------------------------------------------------------------------------


class Cost(Protocol):
    """Predicted cost of a recipe, as in `memory.Estimate`."""

    @property
    def device_bytes(self) -> int: ...
    @property
    def working_bytes(self) -> int: ...
    @property
    def reserved_bytes(self) -> int: ...
    @property
    def active_bytes(self) -> int: ...
    @property
    def trainable_params(self) -> int: ...
    @property
    def petl_params(self) -> int: ...


@dataclass(frozen=True)
class MethodCost:
    """Predicted cost of one method at the recipe's batch and image size; the ratios are to ``full``.

    Attributes:
        saved_bytes: size of the trained parameters on disk, in float32.
    """

    method: str
    device_bytes: int
    reserved_bytes: int
    active_bytes: int
    trainable_params: int
    petl_params: int
    device_ratio: float
    active_ratio: float
    working_bytes: int
    working_ratio: float
    trainable_ratio: float
    saved_bytes: int


def named(text: str, known: Sequence[str]) -> list[str]:
    """Split a list of names: ``cst,head`` -> ``["cst", "head"]``; ``all`` -> all known names.

    Raises ConfigError if a name is unknown or repeated.
    """
    if text.strip() == "all":
        return list(known)
    names = [name.strip() for name in text.split(",")]
    if not set(names) <= set(known) or len(set(names)) < len(names):
        wrong = next((name for name in names if name not in known), "")
        raise ConfigError(
            f"--compare takes different methods separated by commas, or nothing for all; got {text!r}; there are "
            f"{', '.join(known)}{did_you_mean(wrong, known)}"
        )
    return names


def compare_methods(recipe: Recipe, methods: Sequence[str], predict: Callable[[Recipe], Cost]) -> list[MethodCost]:
    """Return the predicted cost of each method, in the order given.

    The recipe's own method has its options, the others have their defaults.
    """
    full = predict(recipe.configured({"method": "full"}))
    rows = []
    for name in methods:
        cost = predict(recipe.configured({"method": name}))
        rows.append(
            MethodCost(
                name, cost.device_bytes, cost.reserved_bytes, cost.active_bytes, cost.trainable_params,
                cost.petl_params, cost.device_bytes / full.device_bytes, cost.active_bytes / full.active_bytes,
                cost.working_bytes, cost.working_bytes / full.working_bytes,
                cost.trainable_params / full.trainable_params, 4 * cost.trainable_params,
            )
        )  # fmt: skip
    return rows
