"""torchvision's detectors over a ResNet + FPN, with a PETL method in place.

Modules and tensors keep torchvision's names (``backbone.body.*``, ``backbone.fpn.*``, ``rpn.*``, ``head.*`` ...); the
side network of a method stands apart as ``backbone.side.*``.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import FCOS, FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOSHead
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool, LastLevelP6P7

from cst_search import plugins
from cst_search.backbone.lean_layers import LeanRetinaNet, box_iou, once_norms, recompute, recompute_heads, save_memory
from cst_search.backbone.resnet import STAGES, Body, load_weights
from cst_search.config.recipe import USED_STAGES, Recipe, resolve_recompute
from cst_search.errors import ConfigError
from cst_search.memory import training_step as footprint
from cst_search.memory.tape import Tape
from cst_search.memory.tape import Tensor as Shape
from cst_search.memory.training_step import Step, images_at_once
from cst_search.petl import SideNetwork, get_method, method_names

# a detection below this score is dropped: torchvision's value for Faster R-CNN and RetinaNet; its 0.2 for FCOS cuts mAP
SCORE_THRESHOLD = 0.05


class Pyramid(FeaturePyramidNetwork):
    """torchvision's feature pyramid, level by level, so that a level can be calibrated and recomputed as one.

    Attributes:
        recompute: levels keep their inputs only and are computed again in the backward pass, of large maps some images
            at a time.
    """

    recompute = False

    def forward(
        self, features: OrderedDict[str, Tensor], side: SideNetwork | None = None, states: Mapping[str, Tensor] = {}
    ) -> OrderedDict[str, Tensor]:
        """Features ``{"c3": (B, c_3, H / 8, W / 8), ...}`` and the states of a side network -> levels, finest first."""
        levels: list[Tensor] = []
        above: Tensor | None = None
        for index, (key, feature) in reversed(list(enumerate(features.items()))):
            calibrate = None if side is None else partial(side.calibrate, key)
            if not self.recompute or not torch.is_grad_enabled():
                above, level = self._level(index, calibrate, feature, states.get(key), above)
            else:
                n = images_at_once(feature[0].numel())
                given = (feature.split(n), _split(states.get(key), feature, n), _split(above, feature, n))
                parts = [recompute(self._level, index, calibrate, *each) for each in zip(*given, strict=True)]
                above = _cat([inner for inner, _ in parts]) if index else None  # nothing stands below the finest
                level = _cat([level for _, level in parts])
                del parts
            levels.insert(0, level)
        names = [str(index) for index in range(len(levels))]
        levels, names = self.extra_blocks(levels, levels, names)  # of the maps below it reads none
        return OrderedDict(zip(names, levels, strict=True))

    def _level(
        self,
        index: int,
        calibrate: Callable[[Tensor, Tensor], Tensor] | None,
        feature: Tensor,
        state: Tensor | None,
        above: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        if calibrate is not None and state is not None:
            feature = calibrate(feature, state)
        inner = self.inner_blocks[index](feature)
        if above is not None:
            inner = inner + F.interpolate(above, size=inner.shape[-2:], mode="nearest")
        return inner, self.layer_blocks[index](inner)


def _split(x: Tensor | None, like: Tensor, n: int) -> Sequence[Tensor | None]:
    return [None] * len(like.split(n)) if x is None else x.split(n)


def _cat(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts)


class Backbone(nn.Module):
    """Body -> side network (if any; it may see the image too) -> feature pyramid.

    Attributes:
        used_stages: the stages that the pyramid reads: 2..5 for Faster R-CNN, 3..5 for RetinaNet and FCOS.
        features: called in the place of the body where it is set; see `features.FrozenFeatures`.
        base_hash: identity of the pre-trained body, see `backbone.fingerprint`.
    """

    def __init__(self, recipe: Recipe, shapes_only: bool = False) -> None:
        super().__init__()
        self.body = Body(recipe.backbone, recipe.width, frozen_norm=recipe.weights != "none")
        self.base_hash = "" if shapes_only else load_weights(self.body, recipe.backbone, recipe.weights)
        self.side: SideNetwork | None = None
        self.features: Callable[[Tensor], OrderedDict[str, Tensor]] | None = None
        self.used_stages = recipe.used_stages
        channels = [self.body.stage_channels[stage - 1] for stage in self.used_stages]
        self.out_channels = recipe.fpn_channels
        extra = (
            LastLevelMaxPool()
            if get_detector(recipe.detector).pooled
            else LastLevelP6P7(self.out_channels, self.out_channels)
        )
        self.fpn = Pyramid(channels, self.out_channels, extra)

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """(B, 3, H, W) -> pyramid levels, each (B, out_channels, H / stride, W / stride), finest first."""
        features = self.body(images) if self.features is None else self.features(images)
        features["image"] = images
        states = {} if self.side is None else self.side(features)
        read = OrderedDict((f"c{stage}", features[f"c{stage}"]) for stage in self.used_stages)
        return self.fpn(read, self.side, states)


def build_detector(recipe: Recipe, n_classes: int, *, shapes_only: bool = False) -> nn.Module:
    """The detector of a recipe, its method applied, ready to train.

    Args:
        n_classes: without background; labels are 1..n_classes.
        shapes_only: read no weights; for counting, under ``torch.device("meta")`` or with fake tensors.

    Raises:
        ConfigError: unknown method or option, or weights that do not fit.
    """
    method, detector = get_method(recipe.method), get_detector(recipe.detector)
    options = method.make_options(recipe.options)
    torch.manual_seed(recipe.seed)
    backbone = Backbone(recipe, shapes_only)
    # neck and head first, then the method: they start equal whatever the method draws from the generator
    model = detector.build(backbone, n_classes + 1, recipe)
    backbone.body.requires_grad_(False)
    method.apply(backbone, options)
    if recipe.memsave:
        save_memory(backbone.body)
    _recompute(model, backbone, recipe.recompute)
    return model


def prepare(model: nn.Module, recipe: Recipe, losses: Iterator[Tensor]) -> None:
    """Let the recipe's method look at training images, see `petl.Method.prepare`; for most it does nothing.

    To be called before the optimiser is made, on the device of the training. What else draws random numbers draws the
    same with and without it.

    Args:
        losses: of single images, through the model, as `engine.losses` makes them; drawn from only if there is a need.
    """
    method = get_method(recipe.method)
    if method.prepare is None:
        return
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    trained = [p for p in model.parameters() if p.requires_grad]
    device = trained[0].device
    try:
        for parameter in trained:  # their gradients are nobody's business here, and would take memory
            parameter.requires_grad_(False)
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(recipe.seed)  # Faster R-CNN samples its regions
            method.prepare(backbone, method.make_options(recipe.options), losses)
    finally:
        for parameter in trained:
            parameter.requires_grad_(True)


def _recompute(model: nn.Module, backbone: Backbone, what: str) -> None:
    """Recompute in the backward pass what a recipe's ``recompute`` says."""
    what = resolve_recompute(what, has_side=backbone.side is not None)
    if what == "none":
        return
    once_norms(model)
    recompute_heads(model)
    backbone.fpn.recompute = True
    if backbone.side is not None:
        backbone.side.recompute = True
    backbone.body.recompute = what == "all"


def _fasterrcnn(backbone: Backbone, n_labels: int, recipe: Recipe) -> nn.Module:
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


def _retinanet(backbone: Backbone, n_labels: int, recipe: Recipe) -> nn.Module:
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


def _fcos(backbone: Backbone, n_labels: int, recipe: Recipe) -> nn.Module:
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


@dataclass(frozen=True)
class Detector:
    """What stands behind backbone and pyramid: the whole contract of a detector, for those of other packages too.

    Attributes:
        name: as in recipes.
        build: (backbone, number of labels with background, recipe) -> a module with torchvision's interface, whose
            ``backbone`` is the one given.
        used_stages: of 2..5, those that the pyramid reads.
        heads: the training step behind the pyramid as shapes, for the prediction of memory; see `footprint.Step`.
        head_params: closed formula of the parameters behind the pyramid.
        pooled: the pyramid has one more level, by pooling (torchvision's LastLevelMaxPool); else two, by convolutions
            (LastLevelP6P7).
    """

    name: str
    build: Callable[[Backbone, int, Recipe], nn.Module]
    used_stages: tuple[int, ...]
    heads: Callable[[Tape, Step, list[Shape]], list[Shape]]
    head_params: Callable[[Step], int]
    pooled: bool = False


_OURS = {
    "fasterrcnn": (_fasterrcnn, footprint.run_fasterrcnn, footprint.fasterrcnn_params, True),
    "retinanet": (_retinanet, footprint.run_retinanet, footprint.retinanet_params, False),
    "fcos": (_fcos, footprint.run_fcos, footprint.fcos_params, False),
}
DETECTORS = {
    name: Detector(name, build, USED_STAGES[name], heads, params, pooled)
    for name, (build, heads, params, pooled) in _OURS.items()
}


@cache
def get_detector(name: str) -> Detector:
    """The detector of that name. Raises ConfigError, naming those that exist."""
    return plugins.get("detectors", name, Detector, DETECTORS)


def count_parameters(model: nn.Module) -> tuple[int, int]:
    """(petl_params, trainable_params): what the method adds to or opens in the backbone; all that is trained."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    parts = [backbone.body] + ([backbone.side] if backbone.side is not None else [])
    petl = sum(p.numel() for part in parts for p in part.parameters() if p.requires_grad)
    return petl, trainable


def merge(model: nn.Module, recipe: Recipe) -> None:
    """Fold what the recipe's method trained into the body, in place, with the same output.

    The body then holds torchvision's tensors and nothing else, all frozen: the detector is that of method ``head``.

    Raises:
        ConfigError: that cannot be exact for this method or its options.
    """
    method, backbone = get_method(recipe.method), model.backbone
    assert isinstance(backbone, Backbone)
    if method.merge is None:
        able = ", ".join(name for name in method_names() if get_method(name).merge is not None)
        raise ConfigError(f"method {method.name!r} cannot be merged into the backbone; those that can: {able}")
    method.merge(backbone, method.make_options(recipe.options))
    backbone.body.requires_grad_(False)
    if recipe.memsave:
        save_memory(backbone.body)
    backbone.body.grad_from = len(STAGES)
    backbone.body.train(backbone.body.training)


def trained_tensors(model: nn.Module) -> OrderedDict[str, Tensor]:
    """What training changes and nothing else: trainable parameters, and the statistics of norms that are not frozen."""
    backbone = model.backbone
    assert isinstance(backbone, Backbone)
    frozen = {f"backbone.body.{name}" for name, _ in backbone.body.named_parameters()}
    frozen |= {f"backbone.body.{name}" for name, _ in backbone.body.named_buffers()}
    live = {name for name, p in model.named_parameters() if p.requires_grad}
    for name, module in backbone.body.named_modules():  # BatchNorm in a stage that is trained
        if isinstance(module, nn.BatchNorm2d) and any(p.requires_grad for p in module.parameters()):
            live |= {f"backbone.body.{name}.{buffer}" for buffer, _ in module.named_buffers()}
    state = model.state_dict()
    return OrderedDict((name, state[name]) for name in state if name in live or name not in frozen)
