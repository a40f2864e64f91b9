"""FCOS, as torchvision builds it."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead

from cst_search.config.recipe import Recipe
from cst_search.detector.base import SCORE_THRESHOLD
from cst_search.detector.pyramid import Backbone


def build(backbone: Backbone, n_labels: int, recipe: Recipe) -> nn.Module:
    # an FCOS "anchor" is a level's unit of size: it takes objects of 4 to 8 times that (torchvision: its stride)
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
    )
