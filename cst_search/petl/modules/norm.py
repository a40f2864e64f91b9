"""Opening the frozen norms of a body, for `norm` and `bitfit`."""

from __future__ import annotations

from typing import Protocol

from cst_search.petl.base import HasBody
from cst_search.petl.modules.layers import OpenNorm, replace_all, replace_norms, still_norm


class _FromStage(Protocol):
    @property
    def first_stage(self) -> int: ...


def open_affine(backbone: HasBody, options: _FromStage) -> None:
    """Make weight and bias of every norm from ``first_stage`` on parameters."""
    _open(backbone, options, ("weight", "bias"))


def open_bias(backbone: HasBody, options: _FromStage) -> None:
    """Make the bias of every norm from ``first_stage`` on a parameter."""
    _open(backbone, options, ("bias",))


def _open(backbone: HasBody, options: _FromStage, names: tuple[str, ...]) -> None:
    replace_norms(backbone.body, options.first_stage, lambda norm: OpenNorm(norm, names))
    backbone.body.grad_from = options.first_stage - 1


def merge(backbone: HasBody, options: object) -> None:
    """Close the opened norms again, with what was learned."""
    replace_all(backbone.body, OpenNorm, still_norm)
