"""Adapters of the method `serial_adapter`, see `cst_search.petl.serial_adapter`."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from cst_search.petl.base import HasBody
from cst_search.petl.modules.layers import (
    add_behind,
    add_parallel,
    make_norm,
    path,
    residual_blocks,
)
from cst_search.petl.serial_adapter import PLACES, SerialAdapterOptions


def _adapter(c_in: int, c_out: int, stride: int, o: SerialAdapterOptions) -> nn.Sequential:
    inner = max(1, c_in // o.reduction) if o.kind == "bottleneck" else c_out
    bias = o.norm == "none"
    layers = [nn.Conv2d(c_in, inner, 1, stride, bias=bias), make_norm(o.norm, inner)]
    if o.kind == "bottleneck":
        layers += [nn.ReLU(inplace=True), nn.Conv2d(inner, c_out, 1, bias=bias), make_norm(o.norm, c_out)]
    last = layers[-2] if bias else layers[-1]
    for parameter in last.parameters():
        nn.init.zeros_(parameter)
    return nn.Sequential(*layers)


class _Transition(nn.Module):
    def __init__(self, adapter: nn.Module) -> None:
        super().__init__()
        self.layers = adapter

    def forward(self, y: Tensor) -> Tensor:
        return F.relu(y + self.layers(y))


def apply(backbone: HasBody, options: SerialAdapterOptions) -> None:
    for block in residual_blocks(backbone.body, options.first_stage):
        if options.position == "transition":
            c = path(block)[-1].out_channels
            add_behind(block, _Transition(_adapter(c, c, 1, options)))
        else:
            conv = path(block)[PLACES[options.position]]
            add_parallel(conv, _adapter(conv.in_channels, conv.out_channels, conv.stride[0], options))
    backbone.body.grad_from = options.first_stage - 1
