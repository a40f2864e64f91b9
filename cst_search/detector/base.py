"""The contract of a detector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cst_search.config.recipe import Recipe
from cst_search.memory.tape import Tape
from cst_search.memory.tape import Tensor as Shape
from cst_search.memory.training_step import Step

if TYPE_CHECKING:
    from torch import nn

# a detection below this score is dropped: torchvision's value for Faster R-CNN and RetinaNet; its 0.2 for FCOS cuts mAP
SCORE_THRESHOLD = 0.05


@dataclass(frozen=True)
class Detector:
    """What stands behind backbone and pyramid: the whole contract of a detector, for those of other packages too.

    Attributes:
        name: as in recipes.
        build: (backbone of `detector.pyramid`, number of labels with background, recipe) -> a module with torchvision's
            interface, whose ``backbone`` is the one given.
        used_stages: of 2..5, those that the pyramid reads.
        heads: the training step behind the pyramid as shapes, for the prediction of memory; see `footprint.Step`.
        head_params: closed formula of the parameters behind the pyramid.
        pooled: the pyramid has one more level, by pooling (torchvision's LastLevelMaxPool); else two, by convolutions
            (LastLevelP6P7).
    """

    name: str
    build: Callable[[Any, int, Recipe], nn.Module]
    used_stages: tuple[int, ...]
    heads: Callable[[Tape, Step, list[Shape]], list[Shape]]
    head_params: Callable[[Step], int]
    pooled: bool = False
