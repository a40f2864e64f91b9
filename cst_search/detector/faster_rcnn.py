"""Faster R-CNN, as torchvision builds it."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator

from cst_search.config.recipe import Recipe
from cst_search.detector.base import SCORE_THRESHOLD
from cst_search.detector.lean_heads import box_iou
from cst_search.detector.pyramid import Backbone


def build(backbone: Backbone, n_labels: int, recipe: Recipe) -> nn.Module:
    sizes = tuple((round(size * recipe.anchor_scale),) for size in (32, 64, 128, 256, 512))
    anchors = AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes))
    model = FasterRCNN(
        backbone,
        n_labels,
        min_size=recipe.image_size_px,
        max_size=recipe.max_size_px,
        rpn_anchor_generator=anchors,
        box_score_thresh=SCORE_THRESHOLD,
    )
    model.rpn.box_similarity = box_iou
    return model
