"""`bitfit`: only biases are trained. On a ResNet those are the biases of its norms: its convolutions have none.

torchvision's detectors keep them as buffers of FrozenBatchNorm2d, where BitFit would find nothing to train; they are
opened as in `norm`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.memory.training_step import Plan
from cst_search.petl.base import HasBody, Method, check, from_stage
from cst_search.petl.layers import OpenNorm, replace_norms
from cst_search.petl.norm import merge


@dataclass(frozen=True)
class BitfitOptions:
    """Attributes:
    first_stage: biases from this stage on are trained, 1 is the stem; stages before it keep no activation.
    """

    first_stage: int = 1

    def __post_init__(self) -> None:
        check("bitfit", {"first_stage": from_stage(self.first_stage, 1)})


def _apply(backbone: HasBody, options: BitfitOptions) -> None:
    replace_norms(backbone.body, options.first_stage, lambda norm: OpenNorm(norm, ("bias",)))
    backbone.body.grad_from = options.first_stage - 1


def petl_params(shape: BackboneShape, options: BitfitOptions) -> int:
    """One per channel of every opened norm."""
    return shape.n_norm_channels(options.first_stage)


def footprint(shape: BackboneShape, options: BitfitOptions) -> Plan:
    return Plan(grad_from=options.first_stage - 1, norm="bias", norm_from=options.first_stage)


METHOD = Method(
    name="bitfit",
    options=BitfitOptions,
    lr=1e-3,
    side=False,
    source="Ben Zaken et al., BitFit, ACL 2022; github.com/benzakenelad/BitFit (learning rate 1e-3)",
    apply=_apply,
    petl_params=petl_params,
    footprint=footprint,
    merge=merge,
)
