"""Detectors that give more than torchvision's number of detections, because images have more objects."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.detector.base import images_evaluated_at_once, max_candidates, max_regions
from cst_search.detector.build import build_detector

N, SIDE_PX = 900, 8
_CELL = torch.arange(N)
# 30 x 30 boxes that do not touch
BOXES = torch.stack([_CELL % 30, _CELL // 30, _CELL % 30, _CELL // 30], dim=1) * 2 * SIDE_PX + torch.tensor(
    [0.0, 0.0, SIDE_PX, SIDE_PX]
)
CANVAS = [(480, 480)]


def found(model: nn.Module) -> Tensor:
    """The boxes that are left of 900 sure and right ones of class 1."""
    n_labels = 4
    logits = torch.full((N, n_labels), -10.0)
    logits[:, 1] = 10.0
    if hasattr(model, "roi_heads"):
        boxes, *_ = model.roi_heads.postprocess_detections(logits, torch.zeros(N, 4 * n_labels), [BOXES], CANVAS)
        return boxes[0]
    is_fcos = "FCOS" in type(model).__name__
    outputs = {"cls_logits": [logits[None]], "bbox_regression": [torch.full((1, N, 4), 0.5 if is_fcos else 0.0)]}
    if is_fcos:
        outputs["bbox_ctrness"] = [torch.full((1, N, 1), 10.0)]
    return model.postprocess_detections(outputs, [[BOXES]], CANVAS)[0]["boxes"]


@pytest.mark.parametrize("detector", DETECTORS)
def test_as_many_detections_as_the_recipe_says(tiny_recipe: Callable[..., Recipe], detector: str) -> None:
    own = {"retinanet": 300, "retinanet_v2": 300}.get(detector, 100)  # torchvision's
    assert len(found(build_detector(tiny_recipe(detector=detector), 3).eval())) == own
    model = build_detector(tiny_recipe(detector=detector, detections_per_image=1000), 3).eval()
    boxes = found(model)
    assert torch.equal(boxes[boxes[:, 1].argsort(stable=True)].unique(dim=0), BOXES.unique(dim=0))
    if hasattr(model, "roi_heads"):
        model.eval()
        assert (model.rpn.pre_nms_top_n(), model.rpn.post_nms_top_n()) == (10_000, 2000)
        model.train()
        assert (model.rpn.pre_nms_top_n(), model.rpn.post_nms_top_n()) == (2000, 2000), "training is as before"


@pytest.mark.parametrize(
    ("max_detections", "candidates", "regions", "images"),
    [(100, 1000, 1000, 8), (500, 5000, 1000, 8), (1000, 10_000, 2000, 4), (10_000, 100_000, 20_000, 1)],
)
def test_more_regions_an_image_are_fewer_images_at_once(
    max_detections: int, candidates: int, regions: int, images: int
) -> None:
    assert (max_candidates(max_detections), max_regions(max_detections)) == (candidates, regions)
    assert images_evaluated_at_once(8, max_detections) == images
