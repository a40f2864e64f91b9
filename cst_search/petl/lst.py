"""`lst`: Ladder Side-Tuning on a ResNet, a ladder of reduced blocks beside the frozen backbone.

Source: Sung et al., LST, NeurIPS 2022 (arXiv 2206.06522), github.com/ylsung/Ladder-Side-Tuning @1798e82. With u_i the
reduced feature of residual block i, h the side state, g_i = sigmoid(alpha_i / T), alpha_i = 0 at the start and T = 0.1:

    h_i = Block_i(g_i u_i + (1 - g_i) h_{i-1})

It is `cst` with its operator ``lst``, a gate at every block, and LST's defaults: one side block per residual block,
reduction 8, side blocks that start as pruned blocks of the backbone. LST's scripts prune by Fisher information, which
needs a look at the data; the default here is pruning by L1 norm. Three things are ours, for convolutions and pyramids:
a 1x1 that carries h from stage to stage, a norm behind every ladder, and the output. LST replaces the backbone's last
state by its own, projected up; here every level that the pyramid reads gets C_i + Up_i(h_i), Up_i zero at the start:
step 0 is the pre-trained detector.
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
    """Those of `cst` that LST has.

    Attributes:
        reduction: r; LST has 8 (T5) and 4 (vision and language).
        block, norm: of the side blocks and of the side network.
        keep: residual blocks that have a side block; LST's layer dropping.
        init: of the side blocks, ``prune_l1``, ``prune_fisher`` or ``random``.
        temperature: T of the gate.
    """

    reduction: int = 8
    block: str = "3x3"
    norm: str = "gn"
    keep: str = "all"
    init: str = "prune_l1"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        try:
            self.as_cst()  # its ranges
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
