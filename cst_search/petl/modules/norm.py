"""Unfreezing of a body's norms, for the methods `norm` and `bitfit`."""

from __future__ import annotations

from typing import Protocol

from cst_search.petl.base import HasBody
from cst_search.petl.modules.layers import OpenNorm, replace_all, replace_norms, still_norm


class _FromStage(Protocol):
    @property
    def first_stage(self) -> int: ...


def open_affine(backbone: HasBody, options: _FromStage) -> None:
    """Turn weight and bias of every norm from ``first_stage`` on into parameters."""
    _open(backbone, options, ("weight", "bias"))


def open_bias(backbone: HasBody, options: _FromStage) -> None:
    """Turn the bias of every norm from ``first_stage`` on into a parameter."""
    _open(backbone, options, ("bias",))


def _open(backbone: HasBody, options: _FromStage, names: tuple[str, ...]) -> None:
    replace_norms(backbone.body, options.first_stage, lambda norm: OpenNorm(norm, names))
    backbone.body.grad_from = options.first_stage - 1


def merge(backbone: HasBody, options: object) -> None:
    """Replace the trained norms by frozen ones with the trained values."""
    replace_all(backbone.body, OpenNorm, still_norm)
