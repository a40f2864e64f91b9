"""Faster R-CNN: construction by torchvision, training step and parameters as shapes. Needs torch only to build."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from cst_search.config.recipe import DETECTIONS_PER_IMAGE, USED_STAGES, Recipe
from cst_search.detector.base import SCORE_THRESHOLD, Detector, max_candidates, max_regions
from cst_search.detector.class_rows import ClassLayer
from cst_search.memory.dense_heads import (
    BOX_IOU_PAIR,
    flatten_anchors,
    join_anchors,
    matching,
    run_by_level,
)
from cst_search.memory.parts import LayerShape
from cst_search.memory.plan import StepShape
from cst_search.memory.tape import Allocation, ShapeTensor, Tape

if TYPE_CHECKING:
    from torch import nn

    from cst_search.detector.pyramid import Backbone


def build(backbone: Backbone, n_labels: int, recipe: Recipe, **heads: nn.Module) -> nn.Module:
    """Build torchvision's Faster R-CNN on a backbone.

    Args:
        n_labels: number of labels, background included.
        heads: ``rpn_head`` and ``box_head`` in place of torchvision's own.
    """
    from torchvision.models.detection import FasterRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator

    from cst_search.detector.lean_heads import box_iou

    sizes = tuple((round(size * recipe.anchor_scale),) for size in (32, 64, 128, 256, 512))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    model = FasterRCNN(
        backbone,
        n_labels,
        min_size=recipe.image_size_px,
        max_size=recipe.max_size_px,
        rpn_anchor_generator=anchors,
        box_score_thresh=SCORE_THRESHOLD,
        **_more_detections(recipe),
        **heads,
    )
    model.rpn.box_similarity = box_iou
    return model


def _more_detections(recipe: Recipe) -> dict[str, int]:
    """Return torchvision's limits where a recipe wants more detections than its 100."""
    n = recipe.max_detections
    if n == DETECTIONS_PER_IMAGE:
        return {}
    return {
        "box_detections_per_img": n,
        "rpn_pre_nms_top_n_test": max_candidates(n),
        "rpn_post_nms_top_n_test": max_regions(n),
    }


BoxHead = Callable[[Tape, StepShape, ShapeTensor], ShapeTensor]  # pooled regions (n, C, 7, 7) -> (n, 1024)
N_HIDDEN = 1024  # values of a region that the box predictor reads


def two_layers(tape: Tape, step: StepShape, x: ShapeTensor) -> ShapeTensor:
    """Mirror torchvision's TwoMLPHead."""
    part = step.head_part
    flat = tape.op((x.shape[0], step.channels * 49), x, alias=True, passes=True)
    del x
    hidden = part.relu(tape, part.linear(tape, flat, N_HIDDEN), inplace=False)
    del flat
    return part.relu(tape, part.linear(tape, hidden, N_HIDDEN), inplace=False, before_last=True)


class _Proposed(NamedTuple):
    """Outputs of the region proposal network over all levels, and what lives beside them."""

    logits: ShapeTensor
    deltas: ShapeTensor
    anchors: Allocation
    boxes: Allocation


def _propose(tape: Tape, step: StepShape, levels: list[ShapeTensor], rpn_convs: int) -> _Proposed:
    """Run the region proposal network and decode a box for each anchor."""
    b, part = step.batch, step.head_part

    def rpn_head(x: ShapeTensor) -> list[ShapeTensor]:
        for i in range(rpn_convs):
            x = part.conv(tape, x, step.channels, 3, key=f"rpn.conv{i}")
            x = part.relu(tape, x, before_last=i == rpn_convs - 1)
        return [part.conv(tape, x, n, 1, key=f"rpn.{n}", last=True) for n in (3, 12)]  # logits, deltas

    def concatenated(outputs: list[list[ShapeTensor]]) -> list[ShapeTensor]:
        flat = [[flatten_anchors(tape, logits, 1), flatten_anchors(tape, deltas, 4)] for logits, deltas in outputs]
        return [join_anchors(tape, [each[i] for each in flat]) for i in (0, 1)]

    outputs = run_by_level(tape, step, levels, rpn_head)
    n = sum(_n_anchors(level) for level in levels)
    anchors = Allocation(tape, 16 * b * n)
    logits, deltas = concatenated(outputs)
    del outputs
    width = deltas.width
    # decode: the anchors again, their four measures, four codes, two clamped, four results, four corners, stacked
    Allocation(tape, b * n * (16 + 22 * width))
    boxes = Allocation(tape, 4 * width * b * n)
    Allocation(tape, 24 * n)  # levels of the anchors, twice while they are concatenated
    return _Proposed(logits, deltas, anchors, boxes)


def _n_anchors(level: ShapeTensor) -> int:
    """Return the anchors on a level for each image."""
    return 3 * level.shape[2] * level.shape[3]


def run_heads(
    tape: Tape, step: StepShape, levels: list[ShapeTensor], *, rpn_convs: int = 1, box_head: BoxHead = two_layers
) -> list[ShapeTensor]:
    """Mirror the forward pass of the detector behind the pyramid: levels -> losses."""
    b = step.batch

    def rpn_loss() -> tuple[list[ShapeTensor], int]:
        proposed = _propose(tape, step, levels, rpn_convs)
        n = proposed.logits.shape[1]
        kept = []
        for _ in range(b):
            matching(tape, n, step.max_boxes)
            kept.append(Allocation(tape, 20 * n))  # labels and matched boxes
        # encode: both kinds of boxes again, four measures of each, four codes, then all four of them in one
        Allocation(tape, 96 * b * n)
        kept.append(Allocation(tape, 16 * b * n))
        # the sampler's indices of one image, and its masks of all; labels and codes again
        Allocation(tape, 16 * n)
        kept.append(Allocation(tape, 22 * b * n))
        objectness = tape.op((1,), proposed.logits)
        boxes = tape.op((1,), proposed.deltas)
        del proposed, kept
        return [objectness, boxes], n

    losses, n_anchors = rpn_loss()
    n_proposals = min(2000, n_anchors) + step.max_boxes
    for _ in range(b):
        Allocation(tape, BOX_IOU_PAIR * n_proposals * max(1, step.max_boxes))
    n_rois = min(512, n_proposals) * b
    scores, deltas = _classify(tape, step, levels[:4], n_rois, box_head)
    return [*losses, tape.op((1,), scores, save=[tape.cast(scores, 4)]), tape.op((1,), deltas)]


def detect(
    tape: Tape, step: StepShape, levels: list[ShapeTensor], *, rpn_convs: int = 1, box_head: BoxHead = two_layers
) -> list[ShapeTensor]:
    """Mirror detection behind the pyramid: levels -> class scores and boxes of the regions.

    Every image has as many regions as torchvision lets through, as if no two of them overlapped.
    """
    _propose(tape, step, levels, rpn_convs)
    best = max_candidates(step.max_detections)
    n_rois = min(max_regions(step.max_detections), sum(min(best, _n_anchors(level)) for level in levels)) * step.batch
    scores, deltas = _classify(tape, step, levels[:4], n_rois, box_head)
    # decode: four codes, two clamped, four measures, four corners, stacked, in four bytes each; then the scores
    Allocation(tape, (72 + 4) * n_rois * step.n_labels)
    return [scores, deltas]


def _classify(
    tape: Tape, step: StepShape, levels: list[ShapeTensor], n_rois: int, box_head: BoxHead
) -> list[ShapeTensor]:
    """Run the box head on regions: levels -> class scores (n, labels) and codes of boxes (n, 4 labels)."""

    def pool() -> ShapeTensor:
        """MultiScaleRoIAlign: the result is filled level by level."""
        width = levels[0].width
        result = tape.tensor(n_rois, step.channels, 7, 7, width=width)
        # a region's size decides its level; most are small, so here all regions fall on the finest level
        for level in levels:
            wide = tape.cast(level, 4)
            found = tape.op((n_rois if level is levels[0] else 1, step.channels, 7, 7), wide, width=4)
            del wide
            if found.width != width:
                found = tape.cast(found, width)
            # index_put: the gradient of the overwritten tensor is a copy of the result's
            result = tape.op(result.shape, result, found, alias=True)
        return result

    part, regions = step.head_part, pool()
    hidden = box_head(tape, step, regions)
    del regions  # RoIHeads holds them until the head is done
    return [part.linear(tape, hidden, n, last=True) for n in (step.n_labels, 4 * step.n_labels)]


def head_layers(step: StepShape) -> list[LayerShape]:
    """Return the layers of region proposal network and box head."""
    box_head = [LayerShape(49 * step.channels, N_HIDDEN), LayerShape(N_HIDDEN, N_HIDDEN)]
    return [*rpn_layers(step), *box_head, *predictor_layers(step)]


def rpn_layers(step: StepShape, n_convs: int = 1) -> list[LayerShape]:
    """Return the layers of the region proposal network; it has three anchors per cell."""
    c = step.channels
    return [LayerShape(c, c, 3)] * n_convs + [LayerShape(c, 3, last=True), LayerShape(c, 12, last=True)]


def predictor_layers(step: StepShape) -> list[LayerShape]:
    """Return the layers that give a region's class scores and its box for every class."""
    return [LayerShape(N_HIDDEN, n, last=True) for n in (step.n_labels, 4 * step.n_labels)]


DETECTOR = Detector(
    name="fasterrcnn",
    build=build,
    used_stages=USED_STAGES["fasterrcnn"],
    heads=run_heads,
    head_layers=head_layers,
    detect=detect,
    last_layers=(
        "rpn.head.cls_logits",
        "rpn.head.bbox_pred",
        "roi_heads.box_predictor.cls_score",
        "roi_heads.box_predictor.bbox_pred",
    ),
    pooled=True,
    class_layers=(
        ClassLayer("roi_heads.box_predictor.cls_score"),
        ClassLayer("roi_heads.box_predictor.bbox_pred", per_label=4),
    ),
)
