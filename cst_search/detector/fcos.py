"""FCOS: construction by torchvision, training step and parameters as shapes. Needs torch only to build."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cst_search.config.recipe import USED_STAGES, Recipe
from cst_search.detector.base import SCORE_THRESHOLD, Detector, max_candidates
from cst_search.detector.class_rows import ClassLayer
from cst_search.memory.dense_heads import dense_head_layers, dense_heads, focal_loss, score_levels
from cst_search.memory.parts import LayerShape
from cst_search.memory.plan import DenseTower, StepShape
from cst_search.memory.tape import Allocation, ShapeTensor, Tape

if TYPE_CHECKING:
    from torch import nn

    from cst_search.detector.pyramid import Backbone


def build(backbone: Backbone, n_labels: int, recipe: Recipe) -> nn.Module:
    """Build torchvision's FCOS on a backbone; ``n_labels`` counts the background."""
    from torchvision.models.detection import FCOS
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.fcos import FCOSHead

    # an FCOS "anchor" is a level's unit of size: the level takes objects of 4 to 8 times it (torchvision: its stride)
    sizes = tuple((round(size * recipe.anchor_scale),) for size in (8, 16, 32, 64, 128))
    anchors = AnchorGenerator(sizes, ((1.0,),) * len(sizes))
    return FCOS(
        backbone,
        n_labels,
        min_size=recipe.image_size_px,
        max_size=recipe.max_size_px,
        anchor_generator=anchors,
        head=FCOSHead(backbone.out_channels, 1, n_labels, num_convs=recipe.head_convs),
        score_thresh=SCORE_THRESHOLD,
        detections_per_img=recipe.max_detections,
        topk_candidates=max_candidates(recipe.max_detections),
    )


# bytes per pair of a cell and a box in FCOS's matching, counted in torchvision's code (0.26): four distances in a
# list and stacked, 4 bytes each, and one flag
FCOS_PAIR = 33


def _outputs(step: StepShape) -> list[list[tuple[int, bool]]]:
    """Return the outputs of each tower, see `dense_heads`."""
    return [[(step.n_labels, False)], [(4, True), (1, False)]]


def run_heads(tape: Tape, step: StepShape, levels: list[ShapeTensor]) -> list[ShapeTensor]:
    """Mirror the forward pass of the detector behind the pyramid: levels -> losses."""
    logits, deltas, centres = dense_heads(tape, step, levels, _outputs(step))
    b, n, k = logits.shape
    kept = [Allocation(tape, 16 * b * n)]  # anchors
    for _ in range(b):
        Allocation(tape, (FCOS_PAIR * max(1, step.max_boxes) + 24) * n)
        kept.append(Allocation(tape, 8 * n))

    def losses(_held: object = kept) -> ShapeTensor:  # when recomputed, the anchors are arguments
        stacked = Allocation(tape, (8 + 16 + 16) * b * n)  # classes, boxes and anchors
        targets = tape.tensor(b, n, k, width=logits.width)
        classes = focal_loss(tape, logits, targets)
        size = tape.tensor(b, n, 4)
        boxes = tape.op((b, n, 4), deltas, save=[size], width=4)
        del size
        for _ in range(2):  # corners, then all in one
            boxes = tape.op((b, n, 4), boxes)
        box_loss = tape.op((1,), boxes)
        Allocation(tape, 32 * b * n)
        centre_loss = tape.op((1,), centres)
        del stacked
        return tape.op((1,), classes, box_loss, centre_loss, passes=True)

    return [tape.recompute(losses) if step.recompute != "none" else losses()]


def detect(tape: Tape, step: StepShape, levels: list[ShapeTensor]) -> list[ShapeTensor]:
    """Mirror detection behind the pyramid: levels -> outputs."""
    outputs = dense_heads(tape, step, levels, _outputs(step))
    score_levels(tape, levels, outputs[0], copies=2)
    return outputs


def head_layers(step: StepShape) -> list[LayerShape]:
    """Return the layers of both towers and their outputs."""
    return dense_head_layers(step, [step.n_labels, 4, 1])


DETECTOR = Detector(
    name="fcos",
    build=build,
    used_stages=USED_STAGES["fcos"],
    heads=run_heads,
    head_layers=head_layers,
    detect=detect,
    last_layers=(
        "head.classification_head.cls_logits",
        "head.regression_head.bbox_reg",
        "head.regression_head.bbox_ctrness",
    ),
    tower=lambda recipe: DenseTower(recipe.head_convs, anchors_per_cell=1, group_norm=True, inplace_relu=False),
    class_layers=(ClassLayer("head.classification_head.cls_logits"),),
)
