"""`ssf`: Scaling and Shifting of deep Features, ``x * scale + shift`` per channel.

The reference code draws scale from N(1, 0.02) and shift from N(0, 0.02). Here they start at exactly 1 and 0, so that
step 0 is the pre-trained detector; ``init_std: 0.02`` restores the reference's initialisation. After a norm, SSF is
norm tuning in other coordinates (the product of two scales is trained) and merges into the norm. After a block it
cannot be merged, because a ReLU and a sum lie between.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cst_search.lazy import deferred
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.memory.tape import ShapeTensor, Tape
from cst_search.petl.base import Method, check, from_stage, one_of


@dataclass(frozen=True)
class SsfOptions:
    """Options of `ssf`.

    Attributes:
        after: place of scale and shift, after every ``norm`` or every residual ``block``.
        first_stage: first stage with scale and shift, 1 is the stem (which has a norm and no block).
        init_std: standard deviation of the initial values around 1 and 0; the reference uses 0.02.
    """

    after: str = "norm"
    first_stage: int = 1
    init_std: float = 0.0

    def __post_init__(self) -> None:
        std = self.init_std
        check(
            "ssf",
            {
                "after": one_of(self.after, ("norm", "block")),
                "first_stage": from_stage(self.first_stage, 1),
                "init_std": (math.isfinite(std) and 0 <= std <= 1, "from 0 to 1", std),
            },
        )


def petl_params(shape: BackboneShape, options: SsfOptions) -> int:
    """Return two parameters per channel of every norm, or of every block's output."""
    if options.after == "norm":
        return 2 * shape.n_norm_channels(options.first_stage)
    return 2 * sum(block.c_out for block in shape.blocks(options.first_stage))


def footprint(shape: BackboneShape, options: SsfOptions) -> MemoryPlan:
    if options.after == "norm":
        return MemoryPlan(grad_from=options.first_stage - 1, norm="ssf", norm_from=options.first_stage)

    def behind(tape: Tape, x: ShapeTensor, stage: int) -> ShapeTensor:
        return tape.open_norm(x, weight=True) if stage >= options.first_stage else x

    return MemoryPlan(grad_from=max(1, options.first_stage - 1), behind=behind)


_MODULES = "cst_search.petl.modules.ssf"

METHOD = Method(
    name="ssf",
    options=SsfOptions,
    lr=1e-3,
    side=False,
    source="Lian et al., SSF, NeurIPS 2022; github.com/dongzelian/SSF (learning rate 1e-3)",
    apply=deferred(_MODULES, "apply"),
    petl_params=petl_params,
    footprint=footprint,
    shapeless=("init_std",),
    merge=deferred(_MODULES, "merge"),
)
