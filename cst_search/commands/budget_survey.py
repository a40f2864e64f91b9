"""Compare a budget with a search space by the predicted cost of random configurations."""

from __future__ import annotations

import random
import statistics
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from cst_search.commands.dataset import image_sizes
from cst_search.commands.output import Say
from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space
from cst_search.data.dataset import DetectionData
from cst_search.memory.estimate import Estimate, InputShape, context_of, worst_input
from cst_search.memory.gpu_costs import GpuCosts
from cst_search.memory.gpu_profile import local_costs
from cst_search.petl import get_method
from cst_search.study.objectives import BOUNDS, OBJECTIVES
from cst_search.study.records import Budget
from cst_search.study.wording import cost_words
from cst_search.trial.cost import predict, predict_roughly

_SURVEY = 24  # random configurations that a budget is compared with


@dataclass(frozen=True)
class Survey:
    """Predicted costs of random configurations.

    Attributes:
        costs: by names of objectives, each in ascending order.
        context_bytes: the CUDA context in the largest of ``device_bytes``.
    """

    costs: Mapping[str, tuple[int, ...]]
    context_bytes: int = 0

    @property
    def device_bytes(self) -> tuple[int, ...]:
        return self.costs["device_bytes"]


@dataclass(frozen=True)
class Estimator:
    """Function from a configuration to its predicted cost at the dataset's worst input.

    Attributes:
        sizes: distinct (height, width) of the dataset's images in pixels.
        max_boxes: most boxes in one image.
        gpu: costs of the GPU that it is for; by default of this machine's, where they were measured.
        inference: True if rough predictions have the cost of the trained detector too.
    """

    recipe: Recipe
    n_classes: int
    sizes: tuple[tuple[int, int], ...]
    max_boxes: int
    gpu: GpuCosts = field(default_factory=local_costs)
    inference: bool = False

    def __call__(self, config: dict[str, Any]) -> Estimate:
        return predict(*self._asked(config), gpu=self.gpu)

    def roughly(self, config: dict[str, Any]) -> Estimate:
        """Return a cheaper prediction, by which hundreds of candidates are compared."""
        return predict_roughly(*self._asked(config), inference=self.inference, gpu=self.gpu)

    def _asked(self, config: dict[str, Any]) -> tuple[Recipe, int, InputShape]:
        configured = self.recipe.configured(config)
        return configured, self.n_classes, worst_input(configured, self.sizes, self.max_boxes)


def estimator(recipe: Recipe, data: DetectionData, *, inference: bool = False) -> Estimator:
    """Return the estimator of a recipe's configurations on a dataset; ``inference`` as in `Estimator`."""
    return Estimator(recipe, len(data.class_names), image_sizes(data), data.summary()["max_boxes"], inference=inference)


def survey_costs(space: Space, recipe: Recipe, estimate: Callable[[dict[str, Any]], Estimate]) -> Survey:
    """Predict the costs of random configurations, drawn with a fixed seed."""
    rng = random.Random(0)
    found = [estimate(space.sample(rng)) for _ in range(_SURVEY)]
    return Survey(
        {o.name: tuple(sorted(getattr(e, o.name) for e in found)) for o in OBJECTIVES.values() if o.goal == "min"},
        context_of(max(found, key=lambda e: e.device_bytes).breakdown),
    )


def expected_sharers(space: Space, recipe: Recipe, n_trials: int) -> int:
    """Expected number of trials, out of ``n_trials`` random ones, that share one trial's frozen-backbone feature maps.

    The trial itself counts. Only side methods share feature maps, and only without augmentation; without any such trial
    in the sample the result is 1.
    """
    found: Counter[tuple[Any, ...]] = Counter()
    for r in _with_side(space, recipe):
        if not r.augmentation.changes_images:
            body = (r.backbone, r.width, r.weights, r.precision, r.memsave)
            found[*body, r.image_size_px, r.max_size_px, r.batch_size] += 1
    n = sum(found.values())
    return max(1, round(n_trials * sum(count * count for count in found.values()) / (n * _SURVEY))) if n else 1


def augmentation_note(space: Space, recipe: Recipe) -> str | None:
    """Return what to say where augmentation keeps trials from sharing feature maps of a frozen backbone, else None."""
    augmented = [r.augmentation.changes_images for r in _with_side(space, recipe)]
    if not any(augmented):
        return None
    whose = "no trial" if all(augmented) else "trials without augmentation only"
    return f"feature maps are cached for {whose}: augmentation changes the images in every epoch"


def _with_side(space: Space, recipe: Recipe) -> list[Recipe]:
    """Return those of some random configurations, always the same ones, whose backbone is frozen."""
    rng = random.Random(0)
    drawn = [recipe.configured(space.sample(rng)) for _ in range(_SURVEY)]
    return [r for r in drawn if get_method(r.method).side]


# by the bound's name: what makes configurations smaller
_REMEDIES = {
    "memory": "a smaller image_size_px or batch_size, or recompute: all, needs less",
    "params": "neck: norm or frozen and head: predictor train less",
    "delta": "neck: norm or frozen and head: predictor train less, and so does a larger reduction",
    "flops": "a smaller image_size_px, or a recipe with a smaller backbone or fpn_channels, computes less",
}


def show_budget(budget: Budget, survey: Survey, say: Say) -> None:
    """Print how much of the search space is within the budget."""
    for each in BOUNDS:
        bound, values, flag = getattr(budget, each.field), survey.costs[each.objective], each.flag
        if bound is None:
            continue
        show = partial(cost_words, OBJECTIVES[each.objective])
        within = sum(value <= bound for value in values)
        span = f"{show(values[0])} to {show(values[-1])}"
        if within == len(values):
            bite = show(statistics.median(values)).replace(" ", "")
            say(
                f"note: {flag} {show(bound)} is above everything in this space ({span} in {len(values)} random "
                f"configurations), so it excludes nothing; {flag} {bite} would exclude about half"
            )
        elif within == 0:
            say(
                f"note: {flag} {show(bound)} is below all of {len(values)} random configurations ({span}); "
                f"few or none will fit; {_REMEDIES[each.name]}"
            )
        else:
            say(f"{flag} {show(bound)}: {within} of {len(values)} random configurations fit ({span})")
