"""`norm`: train weight and bias of the frozen norms; their statistics stay fixed.

In torchvision's detectors weight and bias of FrozenBatchNorm2d are buffers, so training "the norm parameters" of such a
detector trains nothing. Here they become parameters under their old names. BatchNorm2d (weights: none) is replaced
likewise by a norm with fixed statistics.
"""

from __future__ import annotations

from dataclasses import dataclass

from cst_search.lazy import deferred
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.petl.base import Method, check, from_stage


@dataclass(frozen=True)
class NormOptions:
    """Options of `norm`.

    Attributes:
        first_stage: first stage whose norms are trained, 1 is the stem; earlier stages keep no activations.
    """

    first_stage: int = 1

    def __post_init__(self) -> None:
        check("norm", {"first_stage": from_stage(self.first_stage, 1)})


def petl_params(shape: BackboneShape, options: NormOptions) -> int:
    """Return two parameters per channel of every trained norm."""
    return 2 * shape.n_norm_channels(options.first_stage)


def footprint(shape: BackboneShape, options: NormOptions) -> MemoryPlan:
    return MemoryPlan(grad_from=options.first_stage - 1, norm="affine", norm_from=options.first_stage)


_MODULES = "cst_search.petl.modules.norm"

METHOD = Method(
    name="norm",
    options=NormOptions,
    lr=1e-3,
    side=False,
    source="mode norm of github.com/Hhhhhhao/Conv-Adapter @97e1fc8; learning rate: SSF's",
    apply=deferred(_MODULES, "open_affine"),
    petl_params=petl_params,
    footprint=footprint,
    merge=deferred(_MODULES, "merge"),
)
