"""Matching anchors and boxes some boxes at a time: equal to torchvision's to the last bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torchvision.models.detection import RetinaNet
from torchvision.ops import box_iou as torchvision_box_iou

from cst_search.config.recipe import Recipe
from cst_search.detector import lean_heads
from cst_search.detector.build import build_detector
from cst_search.detector.lean_heads import LeanRetinaNet, box_iou

Make = Callable[..., Recipe]


@pytest.mark.parametrize("pairs", [1, 25, 10_000])  # one box at a time, some, all
def test_box_iou_in_pieces_equals_torchvision(monkeypatch: pytest.MonkeyPatch, pairs: int) -> None:
    monkeypatch.setattr(lean_heads, "IOU_PAIRS", pairs)
    corner = torch.rand(19, 2) * 50
    boxes = torch.cat([corner, corner + torch.rand(19, 2) * 40], 1)
    assert torch.equal(box_iou(boxes[:7], boxes[7:]), torchvision_box_iou(boxes[:7], boxes[7:]))
    assert box_iou(boxes[:0], boxes).shape == (0, 19)


@pytest.mark.parametrize("n_boxes", [0, 1, 12])
def test_lean_retinanet_has_the_losses_of_torchvision(
    tiny_recipe: Make, monkeypatch: pytest.MonkeyPatch, n_boxes: int
) -> None:
    monkeypatch.setattr(lean_heads, "IOU_PAIRS", 1)
    ours = build_detector(tiny_recipe(detector="retinanet", method="head", recompute="none"), 3).train()
    corner = torch.rand(n_boxes, 2) * 40
    boxes = torch.cat([corner, corner + 20], 1)
    labels = torch.ones(n_boxes, dtype=torch.int64)
    images = [torch.rand(3, 64, 96) for _ in range(2)]
    losses = []
    for kind in (LeanRetinaNet, RetinaNet):
        ours.__class__ = kind
        losses.append(ours(images, [{"boxes": boxes, "labels": labels} for _ in images]))
    assert all(torch.equal(losses[0][name], losses[1][name]) for name in losses[1])
