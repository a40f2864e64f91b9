"""Open and check the dataset of a command, and collect the figures that memory predictions need."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from cst_search.commands.options import LaunchOptions
from cst_search.commands.output import Say
from cst_search.config.recipe import DETECTIONS_PER_IMAGE, Recipe
from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.demo import write_demo
from cst_search.data.density import with_detections
from cst_search.data.options import ReadOptions


def open_data(
    recipe: Recipe,
    home: Path,
    *,
    skip_bad: bool,
    say: Say,
    need: tuple[str, ...] = ("train", "val"),
    also: tuple[str, ...] = (),
) -> DetectionData:
    """Load and check the dataset of a recipe; ``demo`` is drawn if missing. Raises DataError that lists every fault.

    `need` and `also` are those of `load_data`: splits that the command reads, and those that it reads if they exist.
    """
    path = write_demo(home / "demo-data") if recipe.data == "demo" else Path(recipe.data)
    data, report = load_data(
        path, ReadOptions.of(recipe), skip_bad=skip_bad, cache=home / "checked-images.json", need=need, also=also
    )
    home.mkdir(parents=True, exist_ok=True)
    if report.faults or report.notes:
        say(report.render())
    return data


def load_dataset(options: LaunchOptions, recipe: Recipe, say: Say) -> DetectionData:
    """Load and check the dataset of a launch, and print its size."""
    data = open_data(recipe, options.home, skip_bad=options.skip_bad, say=say)
    summary = data.summary()
    parts = ", ".join(
        f"{split} {n} images / {summary['n_boxes'][split]} boxes" for split, n in summary["n_images"].items()
    )
    say(f"data {recipe.data}: {parts}; {len(data.class_names)} classes")
    return data


def settle_detections(recipe: Recipe, data: DetectionData, say: Say, *, is_study: bool = False) -> Recipe:
    """Return the recipe with as many detections an image as the data need, and say so where COCO's 100 are too few.

    The recipe of a study stays as it is, because its trials must be comparable.
    """
    settled = recipe if is_study else with_detections(recipe, data)
    limit, densest = settled.max_detections, data.summary()["max_boxes"]
    if densest > limit:
        say(f"note: images have up to {densest} objects, and detections_per_image {limit} leaves the rest undetected")
    elif limit != DETECTIONS_PER_IMAGE:
        say(f"up to {limit} detections an image (detections_per_image), as images have up to {densest} objects")
    return settled


def image_sizes(data: DetectionData) -> tuple[tuple[int, int], ...]:
    """Distinct (height, width) of all images, in pixels."""
    return tuple(sorted({(image.height, image.width) for split in data.splits.values() for image in split.images}))


def dataset_inputs(data: DetectionData) -> dict[str, Any]:
    """Return the figures of a dataset that `worst_input` and `predict` need, for use when the data is out of reach.

    Three image sizes give the same worst training batch as all of them. Resizing depends on the ratio of the sides, so
    the largest height and width come from the tallest, the widest or the squarest image. The largest image by itself
    may be another one, so the cost of inference can be too low.
    """
    ratios = {height / width: (height, width) for height, width in image_sizes(data)}
    chosen = {ratios[r] for r in (min(ratios), max(ratios), min(ratios, key=lambda r: abs(math.log(r))))}
    return {
        "n_classes": len(data.class_names),
        "max_boxes": data.summary()["max_boxes"],
        "sizes": sorted(map(list, chosen)),
    }
