"""`lst`: Ladder Side-Tuning on a ResNet, a ladder of reduced blocks beside the frozen backbone.

Source: Sung et al., LST, NeurIPS 2022 (arXiv 2206.06522), github.com/ylsung/Ladder-Side-Tuning @1798e82. With u_i the
reduced feature map of residual block i, h the side state, g_i = sigmoid(alpha_i / T), initial alpha_i = 0 and T = 0.1:

    h_i = Block_i(g_i u_i + (1 - g_i) h_{i-1})

This is `cst` with the operator ``lst``, a gate at every block, and LST's defaults: one side block per residual block,
reduction 8, side blocks initialised as pruned blocks of the backbone. LST's scripts prune by Fisher information, which
needs training data; the default here is pruning by L1 norm. Three parts are ours, for convolutions and pyramids: a 1x1
convolution that carries h from stage to stage, a norm after every ladder (Down_i), and the output. LST replaces the
backbone's last state by its own, projected up; here every level that the pyramid reads becomes C_i + Up_i(h_i). Up_i
starts at zero, so that step 0 is the pre-trained detector.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from cst_search.errors import ConfigError
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.petl import cst
from cst_search.petl.base import HasBody, Method

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LstOptions:
    """Options of `lst`: the subset of `cst`'s options that LST has.

    Attributes:
        reduction: reduction r; LST uses 8 (T5) and 4 (vision and language).
        block: kind of the side blocks, as in `cst`.
        norm: norm of the side network, as in `cst`.
        keep: residual blocks that have a side block; LST's layer dropping.
        init: initialisation of the side blocks, ``prune_l1``, ``prune_fisher`` or ``random``.
        temperature: temperature T of the gate.
    """

    reduction: int = 8
    block: str = "3x3"
    norm: str = "gn"
    keep: str = "all"
    init: str = "prune_l1"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        try:
            self.as_cst()  # CstOptions checks the ranges
        except ConfigError as error:
            raise ConfigError(str(error).replace("cst:", "lst:", 1)) from error

    def as_cst(self) -> cst.CstOptions:
        return cst.CstOptions(granularity="block", operator="lst", gate="scalar", gate_init=0.0, **asdict(self))


def _apply(backbone: HasBody, options: LstOptions) -> None:
    cst.METHOD.apply(backbone, options.as_cst())


def _prepare(backbone: HasBody, options: LstOptions, losses: Iterator[Tensor]) -> None:
    assert cst.METHOD.prepare is not None
    cst.METHOD.prepare(backbone, options.as_cst(), losses)


def petl_params(shape: BackboneShape, options: LstOptions) -> int:
    return cst.petl_params(shape, options.as_cst())


def footprint(shape: BackboneShape, options: LstOptions) -> MemoryPlan:
    return cst.footprint(shape, options.as_cst())


METHOD = Method(
    name="lst",
    options=LstOptions,
    lr=3e-3,
    side=True,
    source="Sung et al., LST, NeurIPS 2022; github.com/ylsung/Ladder-Side-Tuning @1798e82 (r 8, T 0.1, lr 3e-3)",
    apply=_apply,
    petl_params=petl_params,
    footprint=footprint,
    shapeless=("temperature",),
    prepare=_prepare,
)
