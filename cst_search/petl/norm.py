"""`norm`: weight and bias of the frozen norms are trained; their statistics stay.

torchvision's detectors have FrozenBatchNorm2d, whose weight and bias are no parameters: training "the norm parameters"
of such a detector trains nothing. Here they are opened under their old names. BatchNorm2d (weights: none) becomes the
same: a norm with fixed statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.memory.training_step import Plan
from cst_search.petl.base import HasBody, Method, check, from_stage
from cst_search.petl.layers import OpenNorm, replace_all, replace_norms, still_norm


@dataclass(frozen=True)
class NormOptions:
    """Attributes:
    first_stage: norms from this stage on are trained, 1 is the stem; stages before it keep no activation.
    """

    first_stage: int = 1

    def __post_init__(self) -> None:
        check("norm", {"first_stage": from_stage(self.first_stage, 1)})


def _apply(backbone: HasBody, options: NormOptions) -> None:
    replace_norms(backbone.body, options.first_stage, lambda norm: OpenNorm(norm, ("weight", "bias")))
    backbone.body.grad_from = options.first_stage - 1


def merge(backbone: HasBody, options: object) -> None:
    """Close the opened norms again, with what was learned."""
    replace_all(backbone.body, OpenNorm, still_norm)


def petl_params(shape: BackboneShape, options: NormOptions) -> int:
    """Two per channel of every opened norm."""
    return 2 * shape.n_norm_channels(options.first_stage)


def footprint(shape: BackboneShape, options: NormOptions) -> Plan:
    return Plan(grad_from=options.first_stage - 1, norm="affine", norm_from=options.first_stage)


METHOD = Method(
    name="norm",
    options=NormOptions,
    lr=1e-3,
    side=False,
    source="mode norm of github.com/Hhhhhhao/Conv-Adapter @97e1fc8; learning rate: SSF's",
    apply=_apply,
    petl_params=petl_params,
    footprint=footprint,
    merge=merge,
)
