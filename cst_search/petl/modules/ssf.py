"""Scale and shift after norms or residual blocks, for the method `ssf`, see `cst_search.petl.ssf`."""

from __future__ import annotations

from cst_search.errors import ConfigError
from cst_search.petl.base import HasBody
from cst_search.petl.modules.layers import (
    ScaledNorm,
    ScaleShift,
    add_behind,
    path,
    replace_all,
    replace_norms,
    residual_blocks,
)
from cst_search.petl.ssf import SsfOptions


def apply(backbone: HasBody, options: SsfOptions) -> None:
    body = backbone.body
    if options.after == "norm":
        replace_norms(body, options.first_stage, lambda norm: ScaledNorm(norm, options.init_std))
        body.grad_from = options.first_stage - 1
        return
    for block in residual_blocks(body, options.first_stage):
        add_behind(block, ScaleShift(path(block)[-1].out_channels, options.init_std))
    body.grad_from = max(1, options.first_stage - 1)


def merge(backbone: HasBody, options: SsfOptions) -> None:
    if options.after == "block":
        raise ConfigError("ssf: after a block it cannot be merged, a ReLU and a sum stand before it; use after: norm")
    replace_all(backbone.body, ScaledNorm, ScaledNorm.folded)
