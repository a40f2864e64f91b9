"""Backbone of every detector: body, side network and feature pyramid."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import FeaturePyramidNetwork
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, LastLevelMaxPool, LastLevelP6P7

from cst_search.backbone.lean_layers import LeanBatchNorm2d, LeanConv2d
from cst_search.backbone.recompute import recompute
from cst_search.backbone.resnet import Body
from cst_search.config.recipe import Recipe
from cst_search.memory.plan import images_at_once
from cst_search.petl.modules.side_network import SideNetwork


class Pyramid(FeaturePyramidNetwork):
    """torchvision's feature pyramid, run level by level, so that each level can be calibrated and recomputed as a unit.

    Attributes:
        recompute: True if levels keep only their inputs and are recomputed in the backward pass, large feature maps a
            few images at a time, unless norms need the statistics of the whole batch. A level that keeps no activation
            anyway is not recomputed: its inputs would be held for nothing.
        p6_from_c5: see `detector.base.Detector`.
    """

    recompute = False
    p6_from_c5 = False

    def forward(
        self, features: OrderedDict[str, Tensor], side: SideNetwork | None = None, states: Mapping[str, Tensor] = {}
    ) -> OrderedDict[str, Tensor]:
        """Return the levels, finest first, of feature maps ``{"c3": (B, c_3, H / 8, W / 8), ...}`` and side states."""
        levels: list[Tensor] = []
        above: Tensor | None = None
        if self.p6_from_c5 and side is not None and "c5" in states:
            features, states = OrderedDict(features), dict(states)
            features["c5"] = side.calibrate("c5", features["c5"], states.pop("c5"))
        for index, (key, feature) in reversed(list(enumerate(features.items()))):
            calibrate = None if side is None else partial(side.calibrate, key)
            if not self.recompute or not torch.is_grad_enabled():
                above, level = self._level(index, calibrate, feature, states.get(key), above)
            else:
                n = len(feature) if self._needs_batch() else images_at_once(feature[0].numel())
                given = (feature.split(n), _split(states.get(key), feature, n), _split(above, feature, n))
                level_of = partial(self._level, index, calibrate)
                again = key in states or self._keeps_activations(index)
                parts = [recompute(level_of, *x) if again else level_of(*x) for x in zip(*given, strict=True)]
                above = _cat([inner for inner, _ in parts]) if index else None  # the finest level comes last
                level = _cat([level for _, level in parts])
                del parts
            levels.insert(0, level)
        names = [str(index) for index in range(len(levels))]
        levels, names = self.extra_blocks(levels, list(features.values()), names)
        return OrderedDict(zip(names, levels, strict=True))

    def _needs_batch(self) -> bool:
        return any(isinstance(module, nn.BatchNorm2d) and module.training for module in self.modules())

    def _keeps_activations(self, index: int) -> bool:
        layers = [*self.inner_blocks[index].modules(), *self.layer_blocks[index].modules()]
        return any(not isinstance(x, LeanConv2d | LeanBatchNorm2d) for x in layers if not [*x.children()])

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
    """Backbone of a detector: body -> side network (if any; it may see the image too) -> feature pyramid.

    Attributes:
        used_stages: stages that the pyramid reads: 2..5 for Faster R-CNN, 3..5 for RetinaNet and FCOS.
        features: callable used instead of the body if set; see `trial.feature_cache.FrozenFeatures`.
        body_hash: identity of the body that was loaded, see `backbone.resnet.fingerprint`; empty: none was.
        base_hash: identity of all tensors that were loaded and that training may leave as they are: the body's, and
            those of neck and heads unless both are trained in full.
        start: what the detector starts from, as a line for the user.
        starts_trained: True if the weights held pyramid and heads too.
    """

    def __init__(
        self, recipe: Recipe, *, pooled: bool = False, p6_from_c5: bool = False, neck_norm: bool = False
    ) -> None:
        """Build the backbone with random numbers; keywords as in `detector.base.Detector`."""
        super().__init__()
        self.body = Body(recipe.backbone, recipe.width, frozen_norm=recipe.frozen_norm)
        self.body_hash = self.base_hash = self.start = ""
        self.starts_trained = False
        self.side: SideNetwork | None = None
        self.features: Callable[[Tensor], OrderedDict[str, Tensor]] | None = None
        self.used_stages = recipe.used_stages
        channels = [self.body.stage_channels[stage - 1] for stage in self.used_stages]
        self.out_channels = recipe.fpn_channels
        extra: ExtraFPNBlock = LastLevelMaxPool()
        if not pooled:
            extra = LastLevelP6P7(channels[-1] if p6_from_c5 else self.out_channels, self.out_channels)
            extra.use_P5 = not p6_from_c5
        self.fpn = Pyramid(channels, self.out_channels, extra, nn.BatchNorm2d if neck_norm else None)
        self.fpn.p6_from_c5 = p6_from_c5

    def forward(self, images: Tensor) -> OrderedDict[str, Tensor]:
        """Return the pyramid levels of images (B, 3, H, W), finest first.

        Each level is (B, out_channels, H / stride, W / stride).
        """
        features = self.body(images) if self.features is None else self.features(images)
        features["image"] = images
        states = {} if self.side is None else self.side(features)
        read = OrderedDict((f"c{stage}", features[f"c{stage}"]) for stage in self.used_stages)
        return self.fpn(read, self.side, states)
