"""RetinaNet v2 of torchvision: norms in the heads, P6 from C5, a loss of overlaps. Needs torch only to build.

Zhang et al., "Bridging the Gap Between Anchor-based and Anchor-free Detection via ATSS", CVPR 2020, as
`retinanet_resnet50_fpn_v2`: BatchNorm2d in the body, GroupNorm in the heads' towers, generalised IoU as box loss.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from cst_search.config.recipe import USED_STAGES, Recipe
from cst_search.detector import retinanet
from cst_search.detector.retinanet import ANCHORS_PER_CELL
from cst_search.memory.plan import DenseTower

if TYPE_CHECKING:
    from torch import nn

    from cst_search.detector.pyramid import Backbone


def build(backbone: Backbone, n_labels: int, recipe: Recipe) -> nn.Module:
    """Build torchvision's RetinaNet v2 on a backbone; ``n_labels`` counts the background."""
    from torch import nn
    from torchvision.models.detection.retinanet import RetinaNetHead

    norm = partial(nn.GroupNorm, 32)
    head = RetinaNetHead(backbone.out_channels, ANCHORS_PER_CELL, n_labels, norm_layer=norm)
    head.regression_head._loss_type = "giou"
    return retinanet.build(backbone, n_labels, recipe, head=head)


DETECTOR = replace(
    retinanet.DETECTOR,
    name="retinanet_v2",
    build=build,
    used_stages=USED_STAGES["retinanet_v2"],
    tower=lambda recipe: DenseTower(n_convs=4, anchors_per_cell=ANCHORS_PER_CELL, group_norm=True, bias=False),
    p6_from_c5=True,
)
