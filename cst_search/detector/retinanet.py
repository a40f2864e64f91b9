"""RetinaNet: construction by torchvision, training step and parameters as shapes. Needs torch only to build."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from cst_search.config.recipe import USED_STAGES, Recipe
from cst_search.detector.base import SCORE_THRESHOLD, Detector, max_candidates
from cst_search.detector.class_rows import ClassLayer
from cst_search.memory.dense_heads import (
    dense_head_layers,
    dense_heads,
    focal_loss,
    matching,
    score_levels,
    unbind_images,
)
from cst_search.memory.parts import LayerShape
from cst_search.memory.plan import DenseTower, StepShape
from cst_search.memory.tape import Allocation, ShapeTensor, Tape

if TYPE_CHECKING:
    from torch import nn

    from cst_search.detector.pyramid import Backbone


_DETECTIONS = 300  # torchvision's; evaluation counts 100 of a class
ANCHORS_PER_CELL = 9  # three scales, three aspect ratios


def build(backbone: Backbone, n_labels: int, recipe: Recipe, **head: nn.Module) -> nn.Module:
    """Build torchvision's RetinaNet on a backbone.

    Args:
        n_labels: number of labels, background included.
        head: ``head`` in place of torchvision's own.
    """
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    from cst_search.detector.lean_heads import LeanRetinaNet

    # three scales per level, as in Lin et al. 2017 and torchvision
    octaves = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))
    sizes = tuple(tuple(int(size * recipe.anchor_scale * o) for o in octaves) for size in (32, 64, 128, 256, 512))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    return LeanRetinaNet(
        backbone,
        n_labels,
        min_size=recipe.image_size_px,
        max_size=recipe.max_size_px,
        anchor_generator=anchors,
        score_thresh=SCORE_THRESHOLD,
        detections_per_img=max(_DETECTIONS, recipe.max_detections),
        topk_candidates=max_candidates(recipe.max_detections),
        **head,
    )


def _outputs(step: StepShape) -> list[list[tuple[int, bool]]]:
    """Return the outputs of each tower, see `dense_heads`."""
    return [[(step.n_labels, False)], [(4, False)]]


def run_heads(tape: Tape, step: StepShape, levels: list[ShapeTensor]) -> list[ShapeTensor]:
    """Mirror the forward pass of the detector behind the pyramid: levels -> losses."""
    logits, deltas = dense_heads(tape, step, levels, _outputs(step))
    b, n, k = logits.shape
    anchors = Allocation(tape, 16 * b * n)
    matched = []
    for _ in range(b):
        matching(tape, n, step.max_boxes)
        matched.append(Allocation(tape, 8 * n))

    def image_loss(one: ShapeTensor, _held: object = matched) -> ShapeTensor:  # where recomputed, they are an argument
        targets = tape.tensor(n, k, width=one.width)
        mine = tape.op(one.shape, one, save=[Allocation(tape, n)])  # flags of the anchors that count
        valid = tape.tensor(n, k, width=one.width)
        loss = focal_loss(tape, mine, valid)
        del targets
        return loss

    again = step.recompute != "none"
    # each image's logits are a view; the gradients of all images are stacked
    images = unbind_images(tape, logits)
    losses = [tape.recompute(partial(image_loss, one)) if again else image_loss(one) for one in images]
    del images, anchors, matched
    return [*losses, tape.op((1,), deltas)]


def detect(tape: Tape, step: StepShape, levels: list[ShapeTensor]) -> list[ShapeTensor]:
    """Mirror detection behind the pyramid: levels -> outputs."""
    outputs = dense_heads(tape, step, levels, _outputs(step))
    score_levels(tape, levels, outputs[0], copies=1)
    return outputs


def head_layers(step: StepShape) -> list[LayerShape]:
    """Return the layers of both towers and their outputs."""
    return dense_head_layers(step, [step.n_labels, 4])


DETECTOR = Detector(
    name="retinanet",
    build=build,
    used_stages=USED_STAGES["retinanet"],
    heads=run_heads,
    head_layers=head_layers,
    detect=detect,
    last_layers=("head.classification_head.cls_logits", "head.regression_head.bbox_reg"),
    tower=lambda recipe: DenseTower(n_convs=4, anchors_per_cell=ANCHORS_PER_CELL),
    class_layers=(ClassLayer("head.classification_head.cls_logits"),),
)
