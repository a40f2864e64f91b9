"""Invariants of every method on every detector family."""

from __future__ import annotations

import itertools
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7
from torchvision.ops.misc import FrozenBatchNorm2d
from trial_fixtures import random_body_state

from cst_search.backbone.resnet import Body
from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.data.dataset import DetectionData
from cst_search.data.images import CocoImages, loader
from cst_search.detector.build import build_detector, count_parameters, merge, prepare, trained_tensors
from cst_search.errors import ConfigError
from cst_search.petl import METHODS, get_method
from cst_search.petl.cst import GATES, GRANULARITIES, OPERATORS
from cst_search.petl.side_blocks import BLOCKS, NORMS
from cst_search.trial.engine import Precision, losses, make_lr_schedule, make_optimiser, train_one_epoch

Make = Callable[..., Recipe]
Batch = tuple[list[Tensor], list[dict[str, Any]]]

families = pytest.mark.parametrize("detector", DETECTORS)
methods = pytest.mark.parametrize("method", sorted(METHODS))
bases = pytest.mark.parametrize("base", ["file", "none"])  # FrozenNorm with statistics; BatchNorm2d


def recipe_on(make: Make, base: str, **changes: Any) -> Recipe:
    return make(**changes) if base == "file" else make(weights="none", **changes)


def batches(data: DetectionData, n: int = 2) -> list[Batch]:
    """The first n batches of two images; the fourth image has no boxes."""
    images = CocoImages(data.splits["train"], image_size_px=64, max_size_px=96, hflip=False)
    return list(itertools.islice(loader(images, batch_size=2, shuffle=False, seed=0), n))


def without_boxes(n: int = 2) -> Batch:
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    return [torch.rand(3, 64, 80) for _ in range(n)], [dict(target) for _ in range(n)]


def train(model: nn.Module, steps: list[Batch], lr: float = 1e-3) -> float:
    optimiser = make_optimiser(model, lr, 1e-4)
    schedule = make_lr_schedule(optimiser, 10 * len(steps), 0.0)
    cpu = torch.device("cpu")
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    return train_one_epoch(
        model, steps, optimiser, schedule, scaler,
        device=cpu, precision=Precision(None, False), accumulate=1, clip_norm=5.0, n_batches=len(steps),
    ).loss  # fmt: skip


def copied(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in state.items()}


# --- (1) frozen tensors ----------------------------------------------------------------------------------------------


@methods
@pytest.mark.parametrize(("detector", "base"), [("fasterrcnn", "file"), ("fcos", "none"), ("retinanet", "file")])
@pytest.mark.usefixtures("few_boxes")
def test_training_changes_trained_tensors_and_no_bit_of_others(
    tiny_recipe: Make, tiny_data: DetectionData, detector: str, method: str, base: str
) -> None:
    options = {"norm": "bn"} if method == "cst" else {}  # whose statistics are trained tensors too
    model = build_detector(recipe_on(tiny_recipe, base, detector=detector, method=method, options=options), 3)
    before = copied(model.state_dict())
    train(model, batches(tiny_data))
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    trained = set(trained_tensors(model))
    assert moved <= trained
    body = {name for name in before if name.startswith("backbone.body.")}
    assert {n.removeprefix("backbone.body.") for n in trained & body} == trained_in_body(method, base, before)
    if method in ("conv_lora", "conv_adapter", "serial_adapter"):  # what stands before a zero start moves later
        assert trained & body & moved
    else:
        assert trained & body <= moved
    side = {name for name in before if name.startswith("backbone.side.")}
    assert side <= trained and bool(side) == (method in ("cst", "lst", "side_tuning"))
    # the neck is always trained; the smallest images reach its coarsest level too
    assert {name for name in before if name.startswith("backbone.fpn.")} <= moved


def trained_in_body(method: str, base: str, names: Iterable[str]) -> set[str]:
    """What a method with its defaults trains in the body of a ResNet-18, from the names of the tensors."""
    names = [name.removeprefix("backbone.body.") for name in names if name.startswith("backbone.body.")]
    norm = [name for name in names if re.search(r"bn\d|downsample\.1", name)]  # of the base
    expected: dict[str, list[str]] = {
        "full": [name for name in names if base == "none" or name not in norm],
        "partial": [name for name in names if name.startswith("layer4") and (base == "none" or name not in norm)],
        "norm": [name for name in norm if name.endswith(("weight", "bias"))],
        "bitfit": [name for name in norm if name.endswith("bias")],
        "ssf": [name for name in norm if name.endswith(("ssf.scale", "ssf.shift"))],
        "conv_lora": [name for name in names if "lora" in name],
        "conv_adapter": [name for name in names if ".adapter." in name],
        "serial_adapter": [name for name in names if ".adapter." in name],
    }
    assert method not in expected or expected[method]
    return set(expected.get(method, []))


@pytest.mark.parametrize(
    ("detector", "method"),
    [(detector, ("cst", "lst", "side_tuning")[i % 3]) for i, detector in enumerate((*DETECTORS, DETECTORS[0]))],
)
@pytest.mark.usefixtures("few_boxes")
def test_the_side_network_has_trained_after_two_steps(
    tiny_recipe: Make, tiny_data: DetectionData, detector: str, method: str
) -> None:
    """Up starts at zero, so the first step moves Up alone and the second everything before it."""
    model = build_detector(tiny_recipe(detector=detector, method=method, options={"norm": "bn"}), 3)
    before = copied(model.state_dict())
    train(model, batches(tiny_data))
    after = model.state_dict()
    side = [name for name in before if name.startswith("backbone.side.")]
    still = [name for name in side if torch.equal(before[name], after[name])]
    assert still == []


# --- (2) no graph in the backbone ------------------------------------------------------------------------------------


class Saved:
    """Counts tensors that autograd saves while the body runs."""

    def __init__(self, body: nn.Module) -> None:
        self.inside = False
        self.in_body = self.elsewhere = 0
        body.register_forward_pre_hook(lambda *_: self._set(True))
        body.register_forward_hook(lambda *_: self._set(False))

    def _set(self, inside: bool) -> None:
        self.inside = inside

    def pack(self, tensor: Tensor) -> Tensor:
        self.in_body += self.inside
        self.elsewhere += not self.inside
        return tensor


# every pair of method and base, of family and base; each method with two families in turn
@pytest.mark.parametrize(
    ("method", "granularity", "base", "detector"),
    [
        (method, granularity, base, DETECTORS[(m + b) % len(DETECTORS)])
        for m, (method, granularity) in enumerate(
            [*((name, "stage") for name in sorted(METHODS)), ("cst", "block")]  # then the body hands out more features
        )
        for b, base in enumerate(("file", "none"))
    ],
)
@pytest.mark.usefixtures("few_boxes")
def test_side_methods_leave_no_graph_in_the_backbone(
    tiny_recipe: Make, tiny_data: DetectionData, detector: str, method: str, base: str, granularity: str
) -> None:
    options = {"granularity": granularity} if method == "cst" else {}
    model = build_detector(recipe_on(tiny_recipe, base, detector=detector, method=method, options=options), 3).train()
    features: dict[str, Tensor] = {}
    body = model.backbone.body
    body.register_forward_hook(lambda module, args, out: features.update(out))
    saved = Saved(body)
    with saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        losses = model(*batches(tiny_data)[0])
    sum(losses.values()).backward()
    per_block = method == "lst" or (granularity == "block" and method == "cst")
    assert len(features) == (13 if per_block else 5)  # resnet18: 8 blocks
    graph = [name for name, value in features.items() if value.requires_grad or value.grad_fn is not None]
    assert saved.elsewhere > 0
    if METHODS[method].side:
        assert graph == [] and saved.in_body == 0
        assert all(p.grad is None for p in body.parameters())
    else:
        assert graph == list(features)[FIRST_GRAPH[method] :]
        assert saved.in_body > 0  # so the counting sees something where there is something
        # a one-stage detector's neck reads C3 to C5, and every one of them depends on what is trained before it
        assert all((p.grad is not None) == p.requires_grad for p in body.parameters())


# the first of C1..C5 that has a graph, by a method's defaults
FIRST_GRAPH = {
    "full": 0, "norm": 0, "bitfit": 0, "ssf": 0,
    "conv_lora": 1, "conv_adapter": 1, "serial_adapter": 1,
    "partial": 4,
}  # fmt: skip


# --- (3) step 0 ------------------------------------------------------------------------------------------------------


class Plain(nn.Module):
    """ResNet-18 and FPN of torchvision's own parts, as its BackboneWithFPN puts them together."""

    def __init__(self, detector: str, channels: int) -> None:
        super().__init__()
        first = 1 if detector == "fasterrcnn" else 2  # layer1 is C2
        resnet = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d)
        self.body = IntermediateLayerGetter(resnet, {f"layer{i}": str(i - first) for i in range(first, 5)})
        extra = LastLevelMaxPool() if detector == "fasterrcnn" else LastLevelP6P7(channels, channels)
        self.fpn = FeaturePyramidNetwork([32 * 2**i for i in range(first, 5)], channels, extra)
        self.out_channels = channels

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        return self.fpn(self.body(x))


def plain_detector(detector: str, channels: int) -> nn.Module:
    """torchvision's detector with its own defaults; three classes and background."""
    backbone = Plain(detector, channels)
    size = {"min_size": 64, "max_size": 96}
    if detector == "fasterrcnn":
        anchors = AnchorGenerator(((32,), (64,), (128,), (256,), (512,)), ((0.5, 1.0, 2.0),) * 5)
        return FasterRCNN(backbone, 4, rpn_anchor_generator=anchors, **size)
    if detector == "retinanet":
        return RetinaNet(backbone, 4, **size)  # its default anchors
    return FCOS(backbone, 4, score_thresh=0.05, **size)  # our documented choice; torchvision's is 0.2


def speak_up(model: nn.Module) -> None:
    """Let an untrained head name something, so that there are detections to compare."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("cls_logits.weight", "cls_score.weight", "bbox_reg.weight", "bbox_pred.weight")):
                parameter.normal_(0, 0.3)
            elif name.endswith("cls_logits.bias"):
                parameter.zero_()


Pair = tuple[Any, nn.Module]
WIDE = {"width": 1.0, "max_size_px": 96, "head_convs": 4, "anchor_scale": 1.0, "method": "head"}  # torchvision's sizes


@pytest.fixture(scope="module", params=["fasterrcnn", "retinanet", "fcos"])  # test_parity.py has those of v2
def pair(request: pytest.FixtureRequest, tiny_recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """(ours with method head, torchvision's) with the same weights, both in eval mode."""
    path = tmp_path_factory.mktemp("wide") / "w.pt"
    torch.save(random_body_state("resnet18", 1.0), path)
    ours = build_detector(tiny_recipe(detector=request.param, weights=str(path), **WIDE), 3)
    speak_up(ours)
    theirs = plain_detector(request.param, ours.backbone.out_channels)
    theirs.load_state_dict(ours.state_dict())  # strict: the names of tensors are torchvision's
    yield ours.eval(), theirs.eval()
    path.unlink()


def assert_same_detections(ours: nn.Module, theirs: nn.Module, more_than: int = 10) -> None:
    images = [torch.rand(3, 64, 80), torch.rand(3, 96, 70)]
    with torch.no_grad():
        assert_equal_detections(ours(images), theirs(images), more_than)


def assert_equal_detections(
    ours: list[dict[str, Tensor]], theirs: list[dict[str, Tensor]], more_than: int = 10
) -> None:
    for mine, expected in zip(ours, theirs, strict=True):
        assert len(expected["boxes"]) > more_than  # else equality says nothing
        assert all(torch.equal(mine[key], expected[key]) for key in ("boxes", "labels", "scores"))


def test_the_plain_detector_is_torchvisions(pair: Pair) -> None:
    assert_same_detections(*pair)


def test_losses_of_the_plain_detector_are_torchvisions(pair: Pair) -> None:
    ours, theirs = pair
    images = [torch.rand(3, 64, 80), torch.rand(3, 96, 70)]
    target = {"boxes": torch.tensor([[4.0, 4.0, 40.0, 50.0]]), "labels": torch.tensor([2])}
    losses = []
    for model in (ours, theirs):
        model.train()
        torch.manual_seed(0)  # Faster R-CNN samples its proposals
        losses.append(model(images, [dict(target), dict(target)]))
        model.eval()
    assert losses[0].keys() == losses[1].keys()
    assert all(torch.equal(losses[0][key], losses[1][key]) for key in losses[0])


@pytest.fixture
def applied(pair: Pair) -> Iterator[Callable[[dict[str, Any]], Any]]:
    """Put a side network beside the same body; taken away again afterwards."""
    backbone = pair[0].backbone

    def apply(options: dict[str, Any]) -> Any:
        method = get_method("cst")
        method.apply(backbone, method.make_options({"reduction": 16, **options}))
        backbone.side.eval()
        return backbone.side

    yield apply
    backbone.side, backbone.body.taps_blocks = None, False


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("operator", OPERATORS)
def test_step_0_of_cst_gives_the_plain_pyramid(
    pair: Pair,
    applied: Callable[[dict[str, Any]], Any],
    monkeypatch: pytest.MonkeyPatch,
    operator: str,
    granularity: str,
) -> None:
    """Every block, norm and gate, on the features that the heads see."""
    ours, theirs = pair
    if isinstance(theirs, RetinaNet):
        pytest.skip("its backbone is that of FCOS")
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        expected = theirs.backbone(x)  # type: ignore[operator]
        applied({"granularity": granularity})
        features = ours.backbone.body(x)
        monkeypatch.setattr(ours.backbone.body, "forward", lambda x: features)  # once is enough: it is frozen
        for block, norm, gate in itertools.product(BLOCKS, NORMS, GATES):
            side = applied(
                {"operator": operator, "granularity": granularity, "block": block, "norm": norm, "gate": gate}
            )
            levels = ours.backbone(x)
            assert levels.keys() == expected.keys()
            assert all(torch.equal(levels[key], expected[key]) for key in expected), (block, norm, gate)
    with torch.no_grad():  # and the side network is really there
        side.up["c5"].bias += 1
        assert not torch.equal(ours.backbone(x)["0"], expected["0"])


@pytest.mark.parametrize(
    "options",
    [
        {},  # the defaults
        {"granularity": "block", "block": "depthwise", "norm": "bn"},
        {"operator": "lst", "gate": "channel", "norm": "none"},
        {"operator": "tanh", "block": "bottleneck", "gate_init": 1.39},
        {"operator": "sum", "block": "1x1"},
        {"mtc_stages": [5], "temperature": 1.0},
    ],
)
def test_step_0_of_cst_gives_the_plain_detections(
    pair: Pair, applied: Callable[[dict[str, Any]], Any], options: dict[str, Any]
) -> None:
    applied(options)
    assert_same_detections(*pair)


@families
def test_neck_and_head_start_equal_whatever_the_method(tiny_recipe: Make, detector: str) -> None:
    states = [build_detector(tiny_recipe(detector=detector, method=m), 3).state_dict() for m in sorted(METHODS)]
    plain = build_detector(tiny_recipe(detector=detector, method="head"), 3).state_dict()
    for name, value in plain.items():  # and the base's tensors, whose names are torchvision's in every method
        if name.endswith("num_batches_tracked"):  # opened norms count no batches
            continue
        assert all(torch.equal(value, state[name]) for state in states), name


STARTS: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in sorted(METHODS)),
    ("lst", {"norm": "bn", "init": "random", "keep": "every_second"}),
    ("cst", {"granularity": "block", "keep": "every_second", "init": "prune_l1"}),
    ("cst", {"norm": "bn", "block": "bottleneck", "init": "prune_fisher"}),
    ("side_tuning", {"norm": "none", "blocks": 0, "gate_init": 1.39}),
    ("side_tuning", {"norm": "bn"}),
    ("ssf", {"after": "block"}),
    ("conv_lora", {"targets": "all", "scale": 2.0}),
    ("conv_adapter", {"gamma": 1, "kernel": 5}),
    *(("serial_adapter", {"position": position, "norm": "bn"}) for position in ("front", "middle", "back")),
    *(("serial_adapter", {"norm": norm, "kind": kind}) for norm in ("bn", "none") for kind in ("bottleneck", "basic")),
    ("norm", {"first_stage": 4}),
    ("partial", {"stages": 3}),
]


SINGLE = [([torch.rand(3, 64, 96)], [{"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}])]


def starts(test: Any) -> Any:
    """Every method's defaults for every family; the other options, which change the body only, for one."""
    rows = [(d, m, o) for d in DETECTORS for m, o in STARTS if d == "fcos" or not o]
    names = ["-".join([d, m, *(f"{k}={v}" for k, v in o.items())]) for d, m, o in rows]
    return pytest.mark.parametrize(("detector", "method", "options"), rows, ids=names)(test)


@pytest.fixture(scope="module")
def plain_detector_of(tiny_recipe: Make) -> Callable[[str, str], tuple[dict[str, Tensor], list[dict[str, Tensor]]]]:
    """``plain_detector_of(detector, backbone)`` -> features while training and detections of method ``head``."""

    @lru_cache
    def plain(detector: str, backbone: str) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
        return outputs(tiny_recipe(detector=detector, backbone=backbone, method="head"))

    return plain


def outputs(recipe: Recipe) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Return features while training and detections afterwards, of a detector before its first step."""
    model = build_detector(recipe, 3)
    prepare(model, recipe, losses(model, SINGLE, device=torch.device("cpu"), precision=Precision(None, False)))
    torch.manual_seed(5)
    speak_up(model)
    torch.manual_seed(6)
    with torch.no_grad():
        features = model.train().backbone(torch.rand(2, 3, 64, 96))  # type: ignore[operator]
        return features, model.eval()([torch.rand(3, 64, 80), torch.rand(3, 96, 70)])


@starts
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.usefixtures("few_boxes")
def test_step_0_is_the_pre_trained_detector(
    tiny_recipe: Make, plain_detector_of: Any, detector: str, method: str, options: dict[str, Any], backbone: str
) -> None:
    """Bit for bit `head`, which is torchvision's detector (above): features while training, detections afterwards."""
    if backbone == "resnet50" and detector != "fcos":
        pytest.skip("the body is the same")
    recipe = tiny_recipe(detector=detector, backbone=backbone, method=method, options=options)
    levels, found = outputs(recipe)
    plain_levels, plain_found = plain_detector_of(detector, backbone)
    assert all(torch.equal(levels[key], plain_levels[key]) for key in plain_levels)
    assert_equal_detections(found, plain_found, more_than=4)  # of few proposals


# --- (6) merging -----------------------------------------------------------------------------------------------------


def trained(tiny_recipe: Make, data: DetectionData, base: str, **changes: Any) -> tuple[nn.Module, Recipe]:
    """A detector after two large steps, in eval mode, and its recipe."""
    recipe = recipe_on(tiny_recipe, base, **changes)
    model = build_detector(recipe, 3)
    speak_up(model)
    train(model, batches(data), lr=1e-2)
    return model.eval(), recipe


MERGED: list[tuple[str, dict[str, Any]]] = [
    ("norm", {}),
    ("bitfit", {"first_stage": 3}),
    ("ssf", {"init_std": 0.02}),
    ("conv_lora", {"scale": 2.0}),
    ("conv_lora", {"targets": "all", "rank": 3}),
    ("partial", {}),
    ("full", {}),
    ("head", {}),
]


# what is merged lies in the body: each row on both kinds of norms, with two families in turn
@pytest.mark.parametrize(
    ("method", "options", "base", "detector"),
    [
        (*row, base, DETECTORS[(m + b) % len(DETECTORS)])
        for m, row in enumerate(MERGED)
        for b, base in enumerate(("file", "none"))
    ],
)
@pytest.mark.usefixtures("few_boxes")
def test_merged_and_unmerged_agree(
    tiny_recipe: Make, tiny_data: DetectionData, detector: str, base: str, method: str, options: dict[str, Any]
) -> None:
    model, recipe = trained(tiny_recipe, tiny_data, base, detector=detector, method=method, options=options)
    x = torch.rand(2, 3, 64, 96)
    with torch.no_grad():
        before = model.backbone(x)  # type: ignore[operator]
        merge(model, recipe)
        after = model.backbone(x)  # type: ignore[operator]
    assert all(torch.allclose(after[key], before[key], atol=1e-5, rtol=1e-5) for key in before)
    start = build_detector(recipe_on(tiny_recipe, base, detector=detector, method="head"), 3)
    with torch.no_grad():  # training had changed the features of the body, so that there was something to merge
        moved = not torch.allclose(model.backbone.body(x)["c5"], start.eval().backbone.body(x)["c5"], atol=1e-4)
    assert moved == (method != "head")
    # what is left is the plain detector: `head` takes its tensors, and torchvision does (their names are the same)
    plain = build_detector(tiny_recipe(detector=detector, method="head"), 3).eval()
    state = {name: value for name, value in model.state_dict().items() if "num_batches" not in name}
    plain.load_state_dict(state)
    assert count_parameters(model)[0] == 0
    if base == "file" and recipe.frozen_norm:  # nor is any layer of ours left
        assert {type(m) for m in model.backbone.body.modules()} == {type(m) for m in plain.backbone.body.modules()}
    with torch.no_grad():
        out = plain.backbone(x)  # type: ignore[operator]
    assert all(torch.allclose(out[key], before[key], atol=1e-5, rtol=1e-5) for key in before)


@pytest.mark.parametrize("method", [name for name in sorted(METHODS) if METHODS[name].merge is None])
def test_what_cannot_be_merged_is_refused(tiny_recipe: Make, method: str) -> None:
    recipe = tiny_recipe(method=method)
    with pytest.raises(ConfigError, match=f"'{method}' cannot be merged .* can: head, norm, bitfit, ssf, conv_lora"):
        merge(build_detector(recipe, 3), recipe)


def test_ssf_after_a_block_cannot_be_merged(tiny_recipe: Make) -> None:
    recipe = tiny_recipe(method="ssf", options={"after": "block"})
    with pytest.raises(ConfigError, match="use after: norm"):
        merge(build_detector(recipe, 3), recipe)


# --- (7) images without boxes ----------------------------------------------------------------------------------------


# what has no boxes is for the heads to bear: every method with two families in turn
@pytest.mark.parametrize(
    ("detector", "method"),
    [(DETECTORS[(m + d) % len(DETECTORS)], name) for m, name in enumerate(sorted(METHODS)) for d in (0, 2)],
)
@pytest.mark.usefixtures("few_boxes")
def test_an_image_without_boxes_trains(tiny_recipe: Make, tiny_data: DetectionData, detector: str, method: str) -> None:
    model = build_detector(tiny_recipe(detector=detector, method=method), 3)
    mixed = batches(tiny_data)[1]
    assert [len(target["boxes"]) for target in mixed[1]].count(0) == 1
    # alone in its batch, together with others, and a batch of nothing else
    loss = train(model, [mixed, without_boxes(2), without_boxes(1)])
    assert 0 < loss < 100
    assert all(torch.isfinite(value).all() for value in model.state_dict().values())


# --- building --------------------------------------------------------------------------------------------------------


@families
@methods
def test_trained_tensors_are_those_of_the_parameters_and_live_statistics(
    tiny_recipe: Make, detector: str, method: str
) -> None:
    model = build_detector(tiny_recipe(detector=detector, method=method, weights="none"), 3)
    trained = trained_tensors(model)
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trainable <= trained.keys()
    others = trained.keys() - trainable
    assert all(name.rsplit(".", 1)[1] in ("running_mean", "running_var", "num_batches_tracked") for name in others)
    assert count_parameters(model)[1] == sum(trained[name].numel() for name in trainable)


@methods
def test_norms_that_are_not_trained_stay_in_eval_mode(tiny_recipe: Make, method: str) -> None:
    body = build_detector(tiny_recipe(method=method, weights="none"), 3).train().backbone.body
    live = {name for name, m in body.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}
    every = {name for name, m in body.named_modules() if isinstance(m, nn.BatchNorm2d)}
    assert live == {"full": every, "partial": {n for n in every if n.startswith("layer4")}}.get(method, set())


def test_the_seed_decides_the_start(tiny_recipe: Make) -> None:
    def build(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(torch.seed() % 1000)  # whatever was drawn before must not matter
        return build_detector(replace(tiny_recipe(weights="none"), seed=seed), 3).state_dict()

    first, again, other = build(3), build(3), build(4)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["backbone.body.conv1.weight"], other["backbone.body.conv1.weight"])
    assert not torch.equal(first["backbone.side.stem.0.weight"], other["backbone.side.stem.0.weight"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"method": "lora"}, "method must be one of"),
        ({"options": {"reduction": 0}}, "reduction must be"),
        ({"width": 0.25, "weights": "no-such-file.pt"}, "there is no file"),
    ],
)
def test_a_wrong_recipe_is_refused(tiny_recipe: Make, changes: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build_detector(tiny_recipe(**changes), 3)


@families
def test_anchor_scale_multiplies_the_anchors(tiny_recipe: Make, detector: str) -> None:
    def sizes(scale: float) -> list[float]:
        model: Any = build_detector(tiny_recipe(detector=detector, anchor_scale=scale), 3)
        generator = model.rpn.anchor_generator if hasattr(model, "rpn") else model.anchor_generator
        return [float(size) for level in generator.sizes for size in level]

    default = {
        "fasterrcnn": [32, 64, 128, 256, 512],
        "retinanet": [32, 40, 50, 64, 80, 101, 128, 161, 203, 256, 322, 406, 512, 645, 812],
        "fcos": [8, 16, 32, 64, 128],
    }[detector.removesuffix("_v2")]
    assert sizes(1.0) == default  # torchvision's
    assert sizes(0.25) == pytest.approx([size / 4 for size in default], abs=1)


def test_a_body_alone_is_not_trained_by_default() -> None:
    assert Body("resnet18", 0.125).grad_from == 5
