"""The contract that every detector implements. Needs no torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cst_search.config.recipe import Recipe
from cst_search.detector.class_rows import ClassLayer
from cst_search.memory.parts import LayerShape
from cst_search.memory.plan import DenseTower, StepShape
from cst_search.memory.tape import ShapeTensor, Tape

if TYPE_CHECKING:
    from torch import nn

# a detection below this score is dropped: torchvision's value for Faster R-CNN and RetinaNet; its 0.2 for FCOS cuts mAP
SCORE_THRESHOLD = 0.05
# torchvision's limits before the last suppression of overlaps, for its 100 detections: candidates of a pyramid level,
# and regions of an image that Faster R-CNN classifies
_CANDIDATES = _REGIONS = 1000
# The same for more detections, each. Candidates keep torchvision's ratio, as objects of a size share a level; regions,
# which take the memory, are those that are left when overlapping candidates are suppressed: hardly more than objects.
_CANDIDATES_EACH, _REGIONS_EACH = 10, 2


def max_candidates(max_detections: int) -> int:
    """Return the best anchors or cells of a pyramid level that become candidates, for a limit of detections."""
    return max(_CANDIDATES, _CANDIDATES_EACH * max_detections)


def max_regions(max_detections: int) -> int:
    """Return the regions of an image that a two-stage detector classifies, for a limit of detections."""
    return max(_REGIONS, _REGIONS_EACH * max_detections)


def images_evaluated_at_once(batch_size: int, max_detections: int) -> int:
    """Return the images of a batch of evaluation: fewer where each has more regions, so that memory is not exceeded."""
    return max(1, batch_size * _REGIONS // max_regions(max_detections))


@dataclass(frozen=True)
class Detector:
    """Detector on top of backbone and pyramid, built-in or from another package: the whole contract.

    Attributes:
        name: name in recipes.
        build: (backbone of `detector.pyramid`, number of labels with background, recipe) -> a module with torchvision's
            interface, whose ``backbone`` is the one given. It gives up to ``recipe.max_detections`` an image.
        used_stages: stages that the pyramid reads, of 2..5.
        heads: training step behind the pyramid as shapes, (tape, step, levels) -> losses, for the predicted memory; see
            `memory.plan.StepShape`.
        head_layers: layers with parameters behind the pyramid, for counts and predicted memory.
        last_layers: names of the modules that give classes and boxes. Every mode of a recipe's ``head`` trains them.
        tower: towers of the dense heads for a recipe; `dense_heads` and `dense_head_layers` read it. None: the detector
            has no dense heads, or describes them without these two.
        pooled: True if the pyramid has one more level, by pooling (torchvision's LastLevelMaxPool); else it has two
            more, by convolutions (LastLevelP6P7).
        p6_from_c5: True if the first of these two reads C5, calibrated like the other feature maps; else P5.
        neck_norm: True if a BatchNorm2d follows each convolution of the other levels.
        detect: the detector's work behind the pyramid when it detects, as shapes, (tape, step, levels) -> outputs, for
            the cost of inference; None: `heads` stands for it.
        class_layers: layers with rows per class, made anew for the data's classes when weights are loaded.
    """

    name: str
    build: Callable[[Any, int, Recipe], nn.Module]
    used_stages: tuple[int, ...]
    heads: Callable[[Tape, StepShape, list[ShapeTensor]], list[ShapeTensor]]
    head_layers: Callable[[StepShape], list[LayerShape]]
    last_layers: tuple[str, ...]
    tower: Callable[[Recipe], DenseTower] | None = None
    pooled: bool = False
    p6_from_c5: bool = False
    neck_norm: bool = False
    detect: Callable[[Tape, StepShape, list[ShapeTensor]], list[ShapeTensor]] | None = None
    class_layers: tuple[ClassLayer, ...] = ()
