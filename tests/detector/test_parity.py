"""The five detectors that torchvision trained on COCO, against torchvision's own builders: equal bit for bit.

Random weights in COCO's shapes stand for the trained ones, so that nothing is downloaded.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, detection
from torchvision.ops.misc import FrozenBatchNorm2d

from cst_search.config.recipe import COCO_DETECTORS, Recipe
from cst_search.detector.base import SCORE_THRESHOLD
from cst_search.detector.build import build_detector
from cst_search.detector.class_rows import coco_labels
from cst_search.detector.pretrained import coco_weights

SIZES: dict[str, Any] = {"min_size": 64, "max_size": 96}
CLASSES = coco_labels()[1:]
# tensors in a state_dict of torchvision 0.26; BatchNorm2d has one more per norm than FrozenBatchNorm2d
N_TENSORS = {
    ("fasterrcnn", "file"): 348, ("fasterrcnn", "COCO"): 295,
    ("fasterrcnn_v2", "file"): 404, ("retinanet_v2", "COCO"): 362,
    ("retinanet", "file"): 354, ("retinanet", "COCO"): 301,
    ("fcos", "file"): 372, ("fcos", "COCO"): 319,
}  # fmt: skip


def builder(detector: str) -> Callable[..., Any]:
    return getattr(detection, COCO_DETECTORS[detector])


def options_of(detector: str) -> dict[str, Any]:
    return {**SIZES, "score_thresh": SCORE_THRESHOLD} if detector == "fcos" else SIZES


def random_detector(detector: str) -> nn.Module:
    """torchvision's, built without weights; random numbers in all tensors, small enough for finite activations."""
    torch.manual_seed(0)
    model: nn.Module = builder(detector)(weights=None, weights_backbone=None, num_classes=91, **options_of(detector))
    state: dict[str, Tensor] = model.state_dict()
    for name, value in state.items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 1.5)
        elif name.endswith("running_mean"):
            value.normal_(0, 0.1)
        elif name.endswith("bn3.weight"):
            value.uniform_(0.1, 0.4)
        elif value.dim() == 1:
            value.add_(torch.randn_like(value) * 0.1 if value.is_floating_point() else 7)
        if name.endswith(("cls_logits.weight", "bbox_reg.weight", "bbox_pred.weight")):
            value.normal_(0, 0.02)
        elif name.endswith("cls_score.weight"):
            value.normal_(0, 0.3)
        elif ".conv." in name and value.dim() == 4:  # torchvision's towers start so small that inputs do not matter
            value.normal_(0, 0.03)
        elif name.endswith("cls_logits.bias"):
            value.normal_(-1, 1)
    return model


class Pair(NamedTuple):
    """torchvision's detector with what it finds and loses, and the recipe that starts ours from the same weights."""

    theirs: nn.Module
    detections: list[dict[str, Tensor]]
    losses: dict[str, float]
    recipe: Recipe
    n_tensors: int


def few_regions(model: Any) -> nn.Module:
    """Faster R-CNN with fewer proposals, which take most of its time."""
    if hasattr(model, "rpn"):
        model.rpn._pre_nms_top_n = {"training": 200, "testing": 200}
        model.rpn._post_nms_top_n = {"training": 100, "testing": 50}
        model.roi_heads.fg_bg_sampler.batch_size_per_image = 32
    return model


@pytest.fixture(scope="module", params=list(COCO_DETECTORS))
def without(request: pytest.FixtureRequest) -> tuple[str, nn.Module]:
    return request.param, random_detector(request.param)


# the starts of each detector; those of v2 have the same tensors and norms
STARTS = {name: ("file", "COCO") for name in COCO_DETECTORS} | {"fasterrcnn_v2": ("file",), "retinanet_v2": ("COCO",)}


@pytest.fixture(scope="module", params=["file", "COCO"])
def pair(
    request: pytest.FixtureRequest, without: tuple[str, nn.Module], tmp_path_factory: pytest.TempPathFactory
) -> Any:
    """``file``: a builder without weights; ``COCO``: one with the weights of COCO, the download replaced."""
    detector, theirs = without
    if request.param not in STARTS[detector]:
        pytest.skip("as the other start")
    weights = "COCO" if request.param == "COCO" else str(tmp_path_factory.mktemp("whole") / "w.pt")
    with pytest.MonkeyPatch.context() as patch:
        if weights == "COCO":
            tensors = theirs.state_dict()
            patch.setattr(WeightsEnum, "get_state_dict", lambda self, **options: tensors)
            theirs = builder(detector)(weights=coco_weights(detector), **options_of(detector))
        else:
            torch.save(theirs.state_dict(), weights)
        recipe = Recipe(
            detector=detector, weights=weights, method="head", recompute="none",
            image_size_px=SIZES["min_size"], max_size_px=SIZES["max_size"],
        )  # fmt: skip
        found = run(few_regions(theirs))
        yield Pair(theirs, *found, recipe, N_TENSORS[detector, request.param])
    if weights != "COCO":
        Path(weights).unlink()


def run(model: nn.Module) -> tuple[list[dict[str, Tensor]], dict[str, float]]:
    """Return detections and losses, those in training mode with norms in eval mode on both sides."""
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 100, 140, generator=generator), torch.rand(3, 150, 90, generator=generator)]
    with torch.no_grad():
        detections: list[dict[str, Tensor]] = model.eval()(images)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.train(False)
    boxes = torch.tensor([[4.0, 4.0, 60.0, 70.0], [30.0, 20.0, 120.0, 90.0]])
    labels = torch.tensor([17, 90])
    targets = [{"boxes": boxes[:n], "labels": labels[:n]} for n in (2, 0)]
    torch.manual_seed(0)  # Faster R-CNN samples its proposals
    return detections, {key: value.item() for key, value in model(images, targets).items()}


LEAN = {"method": "cst", "options": {"reduction": 16}, "neck": "frozen", "head": "predictor", "memsave": True}


# lean with one of the two starts each: norms of both kinds, and every detector
LEAN_ON = {"fasterrcnn": "COCO", "fasterrcnn_v2": "file", "retinanet": "file", "retinanet_v2": "COCO", "fcos": "COCO"}


@pytest.mark.parametrize("changes", [{"memsave": False}, LEAN], ids=["stock", "lean"])
def test_torchvisions_detector_with_the_same_weights(pair: Pair, changes: dict[str, Any]) -> None:
    start = "COCO" if pair.recipe.weights == "COCO" else "file"
    if changes is LEAN and LEAN_ON[pair.recipe.detector] != start:
        pytest.skip("lean with the other start")
    ours = few_regions(build_detector(Recipe(**(vars(pair.recipe) | changes)), len(CLASSES), CLASSES))
    state, expected_state = ours.state_dict(), pair.theirs.state_dict()
    assert len(expected_state) == pair.n_tensors
    both = [name for name in expected_state if name in state]
    differing = [name for name in both if not torch.equal(state[name], expected_state[name])]
    missing = [name for name in expected_state if name not in state and not name.endswith("num_batches_tracked")]
    assert differing == [] and missing == []

    detections, losses = run(ours)
    for mine, expected in zip(detections, pair.detections, strict=True):
        assert len(expected["boxes"]) > 20 and len(expected["labels"].unique()) > 3  # else equality says nothing
        assert all(torch.equal(mine[key], expected[key]) for key in ("boxes", "scores", "labels"))
    assert losses == pair.losses and all(map(math.isfinite, losses.values()))


def test_the_fixture_has_the_norms_of_the_real_weights(pair: Pair) -> None:
    """FrozenBatchNorm2d where torchvision's builder has it, with the eps that it sets."""
    body: Any = pair.theirs.backbone.body  # type: ignore[union-attr]
    kinds = {(type(m), m.eps) for m in body.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)}
    if pair.recipe.weights != "COCO" or pair.recipe.detector.endswith("v2"):
        assert kinds == {(nn.BatchNorm2d, 1e-5)}
    else:
        assert kinds == {(FrozenBatchNorm2d, 1e-5 if pair.recipe.detector == "fcos" else 0.0)}


def settings_of(model: Any) -> dict[str, Any]:
    """Numbers of a detector that no tensor holds, and that a small image may not show."""
    if not hasattr(model, "rpn"):
        names = ("score_thresh", "nms_thresh", "topk_candidates")
        return {"anchors": model.anchor_generator.sizes, "ratios": model.anchor_generator.aspect_ratios} | {
            name: getattr(model, name) for name in names
        }
    rpn, heads = model.rpn, model.roi_heads
    return {
        "anchors": rpn.anchor_generator.sizes, "ratios": rpn.anchor_generator.aspect_ratios,
        "proposals": (rpn._pre_nms_top_n, rpn._post_nms_top_n, rpn.nms_thresh, rpn.score_thresh),
        "matching": (rpn.proposal_matcher.low_threshold, rpn.proposal_matcher.high_threshold),
        "sampling": (rpn.fg_bg_sampler.batch_size_per_image, rpn.fg_bg_sampler.positive_fraction),
        "detections": (heads.score_thresh, heads.nms_thresh, heads.detections_per_img),
        "head matching": (heads.proposal_matcher.low_threshold, heads.proposal_matcher.high_threshold),
        "head sampling": (heads.fg_bg_sampler.batch_size_per_image, heads.fg_bg_sampler.positive_fraction),
    }  # fmt: skip


@pytest.mark.parametrize("detector", COCO_DETECTORS)
def test_anchors_and_thresholds_are_torchvisions(detector: str) -> None:
    """FCOS's threshold is ours: torchvision drops what is below 0.2, which COCO's evaluation would count."""
    recipe = Recipe(detector=detector, weights="none", method="head", neck="train", head="train", width=0.25)
    own = settings_of(build_detector(recipe, 90))
    expected = settings_of(builder(detector)(weights=None, weights_backbone=None))
    if detector == "fcos":
        assert expected.pop("score_thresh") == 0.2 and own.pop("score_thresh") == 0.05
    assert own == expected
