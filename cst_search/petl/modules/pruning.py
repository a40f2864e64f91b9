"""Structural pruning as in Ladder Side-Tuning: narrow convolutions start as the most important part of a wide one.

LST's repository (github.com/ylsung/Ladder-Side-Tuning @c09bf67, ``seq2seq/pruning``) ranks channels by the summed
importance of their weights: magnitude, or Fisher information (``fisher-v2``, which the shipped scripts use). Pruning
outputs first, then inputs, each layer by itself, is ours: a side block reads a reduced feature map, not the output of
the layer before its counterpart in the backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice

import torch
from torch import Tensor, nn

from cst_search.backbone.resnet import STAGES
from cst_search.petl.base import HasBody

N_IMAGES = 32  # images that Fisher information is averaged over
_SCALE = 2.0**10  # factor on the loss: in fp16 a small gradient would become zero before it is squared


def prune(conv: nn.Conv2d, source: nn.Conv2d, importance: Tensor) -> None:
    """Copy the most important part of a wide convolution into a narrow one.

    Output channels are chosen first, then input channels among the remaining weights; the order of channels is kept. If
    the source has too few channels, the other weights of the narrow convolution stay unchanged.

    Args:
        importance: importance of each pair of channels of the source, (c_out, c_in), >= 0; that of a channel is its
            sum.
    """
    weight, importance = source.weight.detach(), importance.to(source.weight.device)
    for dim in (0, 1):
        sums = importance.sum(1 - dim)
        kept = sums.topk(min(len(sums), conv.weight.shape[dim])).indices.sort().values
        weight, importance = weight.index_select(dim, kept), importance.index_select(dim, kept)
    with torch.no_grad():
        conv.weight[: weight.shape[0], : weight.shape[1]] = weight


def l1(source: nn.Conv2d) -> Tensor:
    """Return the sum of magnitudes of the weights between two channels, (c_out, c_in)."""
    return source.weight.detach().abs().sum((2, 3))


def fisher(backbone: HasBody, sources: Sequence[nn.Conv2d], losses: Iterator[Tensor]) -> list[Tensor]:
    """Return the empirical Fisher information of weights between two channels, (c_out, c_in) per source, on the host:

        F[o, i] = 1 / N sum_n sum_{y, x} (dL_n / dW[o, i, y, x])^2

    with L_n the training loss of image n alone: the diagonal of the empirical Fisher matrix (Sung et al., FISH Mask,
    NeurIPS 2021), as ``calculate_the_importance_label`` of LST's repository computes it, batch size 1.

    Gradients have to cross the frozen body here, once, before training. To keep this below a trial's peak memory,
    residual blocks are recomputed, each weight's gradient is squared, summed and freed as soon as it is made, and the
    side network is left out: its output is zero at the start, so the gradients are the same. `MemoryPlan.start`
    describes the memory of this pass. Everything is frozen again afterwards, and no tensor changes.

    Args:
        losses: losses of single images, see `Method.prepare`; only the first N_IMAGES are used.
    """
    body, side, found = backbone.body, backbone.side, [torch.zeros(source.weight.shape[:2]) for source in sources]
    before = body.grad_from, body.recompute
    first = min(
        index
        for index, stage in enumerate(STAGES)
        if any(module is source for child in stage for module in getattr(body, child).modules() for source in sources)
    )

    def take(total: Tensor, weight: Tensor) -> None:
        assert weight.grad is not None
        with torch.no_grad():
            squares = weight.grad.div_(_SCALE).square_().sum((2, 3)).cpu()
        total += squares.nan_to_num(0.0, 0.0)  # ignore an image whose gradient overflowed
        weight.grad = None

    hooks = []
    try:
        backbone.side, body.grad_from, body.recompute = None, first, True
        for source, total in zip(sources, found, strict=True):
            source.weight.requires_grad_(True)
            hooks.append(source.weight.register_post_accumulate_grad_hook(partial(take, total)))
        n = 0
        for loss in islice(losses, N_IMAGES):
            (loss * _SCALE).backward()
            n += 1
    finally:
        for hook in hooks:
            hook.remove()
        for source in sources:
            source.weight.requires_grad_(False)
            source.weight.grad = None
        backbone.side = side
        body.grad_from, body.recompute = before
    return [total / max(1, n) for total in found]
