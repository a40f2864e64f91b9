"""Faster R-CNN v2 of torchvision: norms in the pyramid, more convolutions in the heads. Needs torch only to build.

Li et al., "Benchmarking Detection Transfer Learning with Vision Transformers", 2021, as `fasterrcnn_resnet50_fpn_v2`:
BatchNorm2d in body, pyramid and box head; two convolutions in the region proposal network, four in the box head.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cst_search.config.recipe import USED_STAGES, Recipe
from cst_search.detector import faster_rcnn
from cst_search.detector.faster_rcnn import N_HIDDEN, predictor_layers, rpn_layers
from cst_search.memory.parts import LayerShape, Part
from cst_search.memory.plan import StepShape
from cst_search.memory.tape import ShapeTensor, Tape

if TYPE_CHECKING:
    from torch import nn

    from cst_search.detector.pyramid import Backbone

RPN_CONVS = 2
BOX_CONVS = 4


def build(backbone: Backbone, n_labels: int, recipe: Recipe) -> nn.Module:
    """Build torchvision's Faster R-CNN v2 on a backbone; ``n_labels`` counts the background."""
    from torch import nn
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
    from torchvision.models.detection.rpn import RPNHead

    c = backbone.out_channels
    return faster_rcnn.build(
        backbone,
        n_labels,
        recipe,
        rpn_head=RPNHead(c, 3, conv_depth=RPN_CONVS),
        box_head=FastRCNNConvFCHead((c, 7, 7), [c] * BOX_CONVS, [N_HIDDEN], norm_layer=nn.BatchNorm2d),
    )


def box_head(tape: Tape, step: StepShape, regions: ShapeTensor) -> ShapeTensor:
    """Mirror torchvision's FastRCNNConvFCHead: pooled regions (n, C, 7, 7) -> (n, 1024).

    RoIHeads holds the pooled regions until the head is done, and nn.Sequential the input of the block that runs.
    """
    part, x = step.head_part, regions
    for _ in range(BOX_CONVS):
        x = _block(tape, part, x)
    flat = tape.op((x.shape[0], step.channels * 49), x, alias=True, passes=True)
    del x
    return part.relu(tape, part.linear(tape, flat, N_HIDDEN), before_last=True)


def _block(tape: Tape, part: Part, x: ShapeTensor) -> ShapeTensor:
    out = part.conv(tape, x, x.shape[1], 3, bias=False)
    out = part.batch_norm(tape, out, "")
    return part.relu(tape, out)


def head_layers(step: StepShape) -> list[LayerShape]:
    """Return the layers of region proposal network and box head."""
    c = step.channels
    convs = [LayerShape(c, c, 3, bias=False, norm=True, statistics=True)] * BOX_CONVS
    return [*rpn_layers(step, RPN_CONVS), *convs, LayerShape(49 * c, N_HIDDEN), *predictor_layers(step)]


DETECTOR = replace(
    faster_rcnn.DETECTOR,
    name="fasterrcnn_v2",
    build=build,
    used_stages=USED_STAGES["fasterrcnn_v2"],
    heads=partial(faster_rcnn.run_heads, rpn_convs=RPN_CONVS, box_head=box_head),
    head_layers=head_layers,
    detect=partial(faster_rcnn.detect, rpn_convs=RPN_CONVS, box_head=box_head),
    neck_norm=True,
)
