"""`bitfit`: train biases only. In a ResNet these are the biases of the norms, as its convolutions have none.

torchvision's detectors store these biases as buffers of FrozenBatchNorm2d, so plain BitFit would find nothing to train.
They are turned into parameters as in `norm`.
"""

from __future__ import annotations

from dataclasses import dataclass

from cst_search.lazy import deferred
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.petl.base import Method, check, from_stage


@dataclass(frozen=True)
class BitfitOptions:
    """Options of `bitfit`.

    Attributes:
        first_stage: first stage whose biases are trained, 1 is the stem; earlier stages keep no activations.
    """

    first_stage: int = 1

    def __post_init__(self) -> None:
        check("bitfit", {"first_stage": from_stage(self.first_stage, 1)})


def petl_params(shape: BackboneShape, options: BitfitOptions) -> int:
    """Return one parameter per channel of every trained norm."""
    return shape.n_norm_channels(options.first_stage)


def footprint(shape: BackboneShape, options: BitfitOptions) -> MemoryPlan:
    return MemoryPlan(grad_from=options.first_stage - 1, norm="bias", norm_from=options.first_stage)


_MODULES = "cst_search.petl.modules.norm"

METHOD = Method(
    name="bitfit",
    options=BitfitOptions,
    lr=1e-3,
    side=False,
    source="Ben Zaken et al., BitFit, ACL 2022; github.com/benzakenelad/BitFit (learning rate 1e-3)",
    apply=deferred(_MODULES, "open_bias"),
    petl_params=petl_params,
    footprint=footprint,
    merge=deferred(_MODULES, "merge"),
)
