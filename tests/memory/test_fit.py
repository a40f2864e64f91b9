"""What fits into a budget: by formulas that can be turned round by hand, and the one thing that bisection takes for
granted of the real prediction."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import pytest
from studies import FakeEstimate

from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.errors import ConfigError
from cst_search.memory import estimate as memory
from cst_search.memory.fit import (
    MAX_BATCH_SIZE,
    MAX_IMAGE_SIZE_PX,
    MethodFit,
    at_size,
    compare_methods,
    image_sizes,
    largest,
    named,
    what_fits,
)
from cst_search.report.estimate_tables import fit_notes, fit_table
from cst_search.trial import cost

# nothing more to save but by the precision
COCO = Recipe(image_size_px=800, max_size_px=1333, batch_size=4, precision="fp32", memsave=True, recompute="all")
PAGE = 20 * 2**20  # by which the allocator reserves more
FACTOR = {"head": 1, "cst": 2, "full": 4}


def needed(recipe: Recipe) -> int:
    """100 bytes, and one for every 100 x 100 px of every image; `full` four times as many, half precision half."""
    half = 1 if recipe.precision == "fp32" else 2
    pixels = recipe.batch_size * recipe.image_size_px * recipe.max_size_px
    return 100 + FACTOR[recipe.method] * pixels // half // 10_000


def fit(budget_bytes: int, method: str = "cst", recipe: Recipe = COCO) -> MethodFit:
    (row,) = what_fits(recipe, [method], budget_bytes, needed).methods
    return row


# --- nothing fits ----------------------------------------------------------------------------------------------------


def needed_by_network(recipe: Recipe) -> int:
    """As `needed`, and 1000 bytes for every layer of the backbone."""
    return needed(recipe) + 1000 * int(recipe.backbone.removeprefix("resnet"))


@pytest.mark.parametrize(
    ("budget", "backbone"),
    [
        (50_101, None),  # resnet50 with small images: no other network is needed
        (50_099, "resnet34"),  # the next smaller one
        (18_101, "resnet18"),
        (18_099, "none"),
    ],
)
def test_where_no_method_fits_a_smaller_network_is_named(budget: int, backbone: str | None) -> None:
    found = what_fits(COCO, ["full", "head"], budget, needed_by_network)
    assert found.is_hopeless == (backbone is not None)
    note = " ".join(fit_notes(found, None, fixed_bytes=10_000))
    if backbone is None:
        assert found.smaller_network is None and "no method fits with" not in note
    elif backbone == "none":
        assert found.smaller_network is None
        assert (
            note == "nothing fits in 18.1 kB: no method does with the smallest network (resnet18) and images of 32 px"
        )
    else:
        assert found.smaller_network is not None
        changed = replace(COCO, method="head", **found.smaller_network.settings)
        assert (changed.backbone, changed.batch_size) == (backbone, 1)
        assert needed_by_network(changed) == found.smaller_network.device_bytes <= budget
        assert note.startswith("no method fits with resnet50, whatever the image size; head fits with batch_size=1 ")
        assert f"backbone={backbone}" in note


def test_a_budget_below_the_fixed_cost_says_so() -> None:
    found = what_fits(COCO, ["full", "head"], 9_000, needed_by_network)
    (note,) = fit_notes(found, None, fixed_bytes=10_000)
    assert note == (
        "nothing fits in 9 kB: a process takes 10 kB of a GPU before it has a network (CUDA context, cuBLAS)"
    )
    assert [column.header for column in fit_table(found, None).columns][-1] != "what would make it fit"


# --- the largest -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bound", "found"),
    [
        (0, None),  # nothing fits
        (1, 1),  # the smallest alone
        (7, 7),
        (10, 10),  # everything
        (99, 10),
    ],
)
def test_largest(bound: int, found: int | None) -> None:
    assert largest(range(1, 11), lambda value: value <= bound) == found


def test_largest_of_nothing() -> None:
    assert largest([], lambda value: True) is None


@pytest.mark.parametrize("fitting", [{1, 2, 5, 6}, {3}, {2, 4, 6, 8}, {9, 10}])
def test_what_largest_returns_fits_also_where_fitting_has_holes(fitting: set[int]) -> None:
    found = largest(range(1, 11), fitting.__contains__)
    assert found is None or found in fitting


def test_bisection_asks_for_few() -> None:
    asked: list[int] = []
    largest(range(1, MAX_BATCH_SIZE + 1), lambda value: not asked.append(value) and value <= 77)  # type: ignore[func-returns-value]
    assert len(asked) <= 9


@pytest.mark.parametrize("budget", [150, 300, 700, 1000, 5000, 10**9])
@pytest.mark.parametrize("method", FACTOR)
def test_largest_agrees_with_exhaustive_search(budget: int, method: str) -> None:
    row = fit(budget, method)
    recipe = COCO.configured({"method": method})

    def best(candidates: dict[int, Recipe]) -> int | None:
        return max((size for size, candidate in candidates.items() if needed(candidate) <= budget), default=None)

    assert row.batch_size == best({n: replace(recipe, batch_size=n) for n in range(1, MAX_BATCH_SIZE + 1)})
    sizes = [*range(32, MAX_IMAGE_SIZE_PX + 1, 32)]
    assert row.image_size_px == best({px: at_size(recipe, px) for px in sizes})
    assert row.image_size_px_batch_1 == best({px: at_size(replace(recipe, batch_size=1), px) for px in sizes})
    assert row.fits == (needed(recipe) <= budget)
    assert (row.device_bytes, row.batch_1_bytes) == (needed(recipe), needed(replace(recipe, batch_size=1)))


# --- sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("short", "long", "why"),
    [
        (800, 1333, "a multiple of 32"),
        (240, 400, "none: it is among the choices all the same, or the recipe would seem not to fit where it does"),
        (333, 500, "nor this"),
        (3000, 4000, "above what is tried otherwise"),
        (64, 64, "square"),
        (100, 1600, "so wide that the bound of the long side ends the search"),
        (32, 8192, "wider still"),
    ],
)
def test_every_size_makes_a_recipe_of_the_same_proportion(short: int, long: int, why: str) -> None:
    recipe = Recipe(image_size_px=short, max_size_px=long)
    sizes = image_sizes(recipe)
    assert sizes == sorted(set(sizes)) and short in sizes
    assert all(size % 32 == 0 or size == short for size in sizes)
    for size in sizes:
        sized = at_size(recipe, size)  # a recipe checks itself
        assert sized.image_size_px == size
        assert sized.max_size_px == pytest.approx(size * long / short, abs=1)
    assert at_size(recipe, short) == recipe


def test_bounds_are_those_of_the_recipe_where_it_is_larger() -> None:
    huge = replace(COCO, batch_size=300, image_size_px=2500, max_size_px=2500)
    found = what_fits(huge, ["head"], 10**12, needed)
    assert (found.batch_size_bound, found.image_size_px_bound) == (300, 2500)
    assert (found.methods[0].batch_size, found.methods[0].image_size_px, found.methods[0].fits) == (300, 2500, True)
    usual = what_fits(COCO, ["head"], 10**12, needed)
    assert (usual.batch_size_bound, usual.image_size_px_bound) == (MAX_BATCH_SIZE, MAX_IMAGE_SIZE_PX)


# --- what would have to change ---------------------------------------------------------------------------------------


def settings(row: MethodFit) -> list[dict[str, Any]]:
    return [dict(change.settings) for change in row.changes]


def test_what_fits_needs_no_change() -> None:
    assert fit(10_000).changes == ()


@pytest.mark.parametrize(
    ("batch", "accumulate", "budget", "expected"),
    [
        (4, 1, 600, {"batch_size": 2, "accumulate": 2}),
        (4, 1, 800, {"batch_size": 2, "accumulate": 2}),  # 3 would fit, but makes no whole number of steps
        (4, 3, 800, {"batch_size": 3, "accumulate": 4}),  # of 12 images it does
        (7, 1, 1300, {"batch_size": 1, "accumulate": 7}),  # a prime
    ],
)
def test_a_smaller_batch_with_as_many_images_an_update(
    batch: int, accumulate: int, budget: int, expected: dict[str, int]
) -> None:
    row = fit(budget, recipe=replace(COCO, batch_size=batch, accumulate=accumulate))
    assert settings(row) == [expected]
    assert row.changes[0].device_bytes <= budget


def test_more_accumulation_than_a_recipe_takes() -> None:
    recipe = replace(COCO, batch_size=4, accumulate=1021)
    assert settings(fit(600, recipe=recipe)) == [{"batch_size": 2}]


def test_suggests_smaller_images_or_half_precision_if_batch_1_does_not_fit() -> None:
    row = fit(250)  # 313 bytes at batch 1
    assert row.batch_size is None
    assert settings(row) == [
        {"batch_size": 1, "precision": "auto"},
        {"batch_size": 1, "image_size_px": 672, "max_size_px": 1119},
    ]
    for change in row.changes:
        changed = replace(COCO.configured({"method": "cst"}), **change.settings)
        assert needed(changed) == change.device_bytes <= 250


@pytest.mark.parametrize("precision", ["auto", "bf16", "fp16"])
def test_half_precision_recipes_are_only_made_smaller(precision: str) -> None:
    row = fit(150, recipe=replace(COCO, precision=precision))
    assert [set(one) for one in settings(row)] == [{"batch_size", "image_size_px", "max_size_px"}]


def test_where_a_saving_is_not_enough_it_makes_room_for_larger_images() -> None:
    assert settings(fit(190)) == [  # 206 bytes at half precision
        {"batch_size": 1, "image_size_px": 512, "max_size_px": 853},
        {"batch_size": 1, "image_size_px": 736, "max_size_px": 1226, "precision": "auto"},
    ]


def test_where_nothing_helps() -> None:
    row = fit(99)
    assert (row.batch_size, row.image_size_px, row.image_size_px_batch_1, row.changes) == (None, None, None, ())


def test_the_cheapest_method() -> None:
    for budget in (99, 10_000):  # whether it fits or not
        assert what_fits(COCO, ["full", "head", "cst"], budget, needed).cheapest().method == "head"


@dataclass(frozen=True)
class Picky(Recipe):
    """A recipe of which one method does not take every setting."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recompute != "none" and self.method == "head":
            raise ConfigError("recompute must be none for head")


def needed_with_savings(recipe: Recipe) -> int:
    assert isinstance(recipe, Picky)
    return needed(recipe) - (20 if recipe.memsave else 0) - (40 if recipe.recompute == "all" else 0)


@pytest.mark.parametrize(
    ("budget", "precision", "expected"),
    [
        (310, "fp32", [{"precision": "auto"}, {"memsave": True}, {"recompute": "all"}]),  # each alone
        (280, "fp32", [{"precision": "auto"}, {"recompute": "all"}]),
        (190, "fp32", [{"precision": "auto", "memsave": True}]),  # two together; the third is not needed
        (150, "fp32", [{"precision": "auto", "memsave": True, "recompute": "all"}]),
        (190, "bf16", [{"memsave": True}, {"recompute": "all"}]),
        (130, "fp32", []),  # not even all three
    ],
)
def test_savings_are_tried_alone_and_together(budget: int, precision: str, expected: list[dict[str, Any]]) -> None:
    recipe = Picky(**{**vars(COCO), "memsave": False, "recompute": "none", "method": "cst", "precision": precision})
    (row,) = what_fits(recipe, ["cst"], budget, needed_with_savings).methods
    found = [one for one in settings(row) if "image_size_px" not in one]
    assert found == [{"batch_size": 1, **one} for one in expected]


def test_savings_that_a_method_rejects_are_skipped() -> None:
    recipe = Picky(**{**vars(COCO), "memsave": False, "recompute": "none", "method": "head"})
    (row,) = what_fits(recipe, ["head"], 200, needed_with_savings).methods
    assert [set(one) for one in settings(row)] == [
        {"batch_size", "precision"}, {"batch_size", "memsave"}, {"batch_size", "image_size_px", "max_size_px"},
    ]  # fmt: skip


# --- methods ---------------------------------------------------------------------------------------------------------


def seen_recipes(recipe: Recipe, methods: list[str]) -> dict[str, Any]:
    """The options with which each method is asked for."""
    seen = {}

    def predict(asked: Recipe) -> int:
        seen[asked.method] = dict(asked.options)
        return 1

    what_fits(recipe, methods, 10, predict)
    return seen


def test_the_recipes_own_method_keeps_its_options_and_the_others_have_their_defaults() -> None:
    recipe = Recipe(method="cst", options={"reduction": 4})
    assert seen_recipes(recipe, ["cst", "head"]) == {"cst": {"reduction": 4}, "head": {}}


def test_methods_side_by_side() -> None:
    def predict(recipe: Recipe) -> FakeEstimate:
        n = needed(recipe)
        return FakeEstimate(n, trainable_params=7, reserved_bytes=n - 50, active_bytes=n - 100, petl_params=3,
                            breakdown={"context": 50, "rest": n - 50})  # fmt: skip

    cst, head = compare_methods(COCO, ["cst", "head"], predict)  # `full` is the measure without being listed
    full = needed(COCO.configured({"method": "full"}))
    assert (cst.method, cst.device_bytes, cst.reserved_bytes, cst.active_bytes) == ("cst", 953, 903, 853)
    assert (cst.trainable_params, cst.petl_params) == (7, 3)
    assert cst.device_ratio == 953 / full
    assert (cst.working_bytes, cst.working_ratio) == (903, 903 / (full - 50))
    assert (cst.active_ratio, head.active_ratio) == pytest.approx((1 / 2, 1 / 4), abs=0.001)
    (itself,) = compare_methods(COCO, ["full"], predict)
    assert (itself.device_ratio, itself.active_ratio) == (1, 1)


def test_names_of_methods() -> None:
    known = ("cst", "head", "full")
    assert named("all", known) == [*known]
    assert named("full, cst", known) == ["full", "cst"]
    for wrong in ("", "cst,", "cst,cst", "cst;head", "lora9", "all,cst"):
        with pytest.raises(ConfigError, match="--compare takes different methods"):
            named(wrong, known)


# --- what bisection takes for granted --------------------------------------------------------------------------------


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("method", ["cst", "full"])
def test_more_images_and_more_pixels_never_need_less_but_for_a_page(
    tiny_recipe: Callable[..., Recipe], detector: str, method: str
) -> None:
    recipe = tiny_recipe(detector=detector, method=method)

    def bytes_of(candidate: Recipe) -> tuple[int, int]:
        guess = cost.predict(candidate, 3, memory.worst_input(candidate, max_boxes=20))
        return guess.active_bytes, guess.device_bytes

    by_batch = [bytes_of(replace(recipe, batch_size=n)) for n in (1, 2, 3, 32)]
    by_size = [bytes_of(at_size(recipe, px)) for px in (32, 64, 96, 320)]
    for needs in (by_batch, by_size):
        for (active, device), (more_active, more_device) in pairwise(needs):
            assert active <= more_active and device <= more_device + PAGE, needs
        assert needs[0] < needs[-1]
