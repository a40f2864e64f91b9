"""Activation checkpointing (Chen et al., arXiv 1604.06174): activations are recomputed in the backward pass.

The recipe field ``recompute`` turns it on. Random states are not restored, since no recomputed part draws random
numbers; the running statistics of batch norms are updated in the first pass only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

T = TypeVar("T")


def recompute(function: Callable[..., T], *args: Any) -> T:
    """Return ``function(*args)``, keeping only its input tensors; the rest is recomputed in the backward pass.

    Without autograd this is a plain call. An `OnceBatchNorm2d` updates its running statistics in the first pass only.
    """
    if not torch.is_grad_enabled():
        return function(*args)
    return checkpoint(function, *args, use_reentrant=False, preserve_rng_state=False, context_fn=_contexts)


_again = False


def _contexts() -> tuple[contextlib.AbstractContextManager[None], contextlib.AbstractContextManager[None]]:
    return contextlib.nullcontext(), _second_time()


@contextlib.contextmanager
def _second_time() -> Iterator[None]:
    global _again
    _again = True
    try:
        yield
    finally:
        _again = False


class OnceBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that does not update its running statistics when its output is recomputed."""

    def forward(self, x: Tensor) -> Tensor:
        if not (_again and self.training):
            return super().forward(x)
        # copies, because torch's checkpoint requires that both passes save the same number of tensors
        mean, var = self.running_mean.clone(), self.running_var.clone()  # type: ignore[union-attr]
        return F.batch_norm(x, mean, var, self.weight, self.bias, training=True, eps=self.eps)


def once_norms(model: nn.Module) -> None:
    """Replace every BatchNorm2d of a model, in place, by one that updates its running statistics once per step."""
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = OnceBatchNorm2d
