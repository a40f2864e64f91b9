"""`partial`: train the last stages of the backbone; earlier stages stay frozen and keep no activations."""

from __future__ import annotations

from dataclasses import dataclass

from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.petl.base import HasBody, Method, check, nothing_to_merge, whole


@dataclass(frozen=True)
class PartialOptions:
    """Options of `partial`.

    Attributes:
        stages: number of trained stages out of 2..5, counted from the last. (4 is `full` without the stem.)
    """

    stages: int = 1

    def __post_init__(self) -> None:
        check("partial", {"stages": whole(self.stages, 1, 4)})


def _apply(backbone: HasBody, options: PartialOptions) -> None:
    from cst_search.backbone.resnet import STAGES  # torch

    body = backbone.body
    body.grad_from = len(STAGES) - options.stages
    for stage in STAGES[body.grad_from :]:
        for child in stage:
            getattr(body, child).requires_grad_(True)


def petl_params(shape: BackboneShape, options: PartialOptions) -> int:
    """Return c_in c_out k^2 per convolution of the trained stages, with BatchNorm2d two more per output channel."""
    convs = [conv for block in shape.blocks(first_stage=6 - options.stages) for conv in block.convs]
    affine = 0 if shape.frozen_norm else 2
    return sum(conv.c_in * conv.c_out * conv.kernel**2 + affine * conv.c_out for conv in convs)


def footprint(shape: BackboneShape, options: PartialOptions) -> MemoryPlan:
    return MemoryPlan(grad_from=5 - options.stages, trained_from=6 - options.stages)


METHOD = Method(
    name="partial",
    options=PartialOptions,
    lr=3e-4,
    side=False,
    source="torchvision's trainable_backbone_layers; one stage: Partial-1 of V-PETL Bench; learning rate: that of full",
    apply=_apply,
    petl_params=petl_params,
    footprint=footprint,
    merge=nothing_to_merge,
)
