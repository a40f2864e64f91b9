"""RetinaNet, as torchvision builds it."""

from __future__ import annotations

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator

from cst_search.config.recipe import Recipe
from cst_search.detector.base import SCORE_THRESHOLD
from cst_search.detector.lean_heads import LeanRetinaNet
from cst_search.detector.pyramid import Backbone


def build(backbone: Backbone, n_labels: int, recipe: Recipe) -> nn.Module:
    # three octaves a level, as in Lin et al. 2017 and torchvision
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
    )
