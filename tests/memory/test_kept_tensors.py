"""A method's memory plan against autograd, operation by operation: the tensors that each operation keeps.

The bytes of a step (test_estimate.py) count a storage once. Where two operations keep the same storage, as an in-place
ReLU and the convolution behind it do, only this comparison shows an operation that the plan leaves out.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet50

from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.detector.build import build_detector
from cst_search.detector.registry import get_detector
from cst_search.memory import dense_heads
from cst_search.memory.parts import Part
from cst_search.memory.plan import DenseTower
from cst_search.memory.resnet_shapes import resnet_shape
from cst_search.memory.tape import ShapeTensor, Tape
from cst_search.petl.modules.layers import path, residual_blocks
from cst_search.petl.modules.serial_adapter import apply
from cst_search.petl.serial_adapter import KINDS, PLACES, POSITIONS, SerialAdapterOptions, footprint

BATCH, SIDE = 2, 24


def kept_by_autograd(module: nn.Module, shape: tuple[int, ...]) -> list[int]:
    """Bytes of every activation that an operation keeps, once for each operation, ascending."""
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.dim() == 4 and tensor.shape[0] == BATCH and tensor.shape[2] > 1:  # not a weight
            kept.append(tensor.numel() * tensor.element_size())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(torch.rand(shape, requires_grad=True))
    return sorted(kept)


def trained(tape: Tape, shape: tuple[int, ...]) -> ShapeTensor:
    """An activation that needs a gradient."""
    return tape.op(shape, tape.tensor(*shape), params=4)


@pytest.mark.parametrize("norm", ["gn", "bn", "none"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("position", POSITIONS)
def test_a_serial_adapter_keeps_what_its_plan_says(position: str, kind: str, norm: str) -> None:
    options = SerialAdapterOptions(reduction=2, position=position, kind=kind, norm=norm, first_stage=5)
    backbone, shapes = nn.Module(), resnet_shape("resnet50", 1.0, (3, 4, 5))
    with torch.device("meta"):
        backbone.body = resnet50()
    apply(backbone, options)  # type: ignore[arg-type]
    plan, tape = footprint(shapes, options), Tape()
    real, planned = residual_blocks(backbone.body, 5)[0], shapes.blocks(5)[0]  # type: ignore[arg-type]
    if position == "transition":
        assert plan.behind is not None
        shape = (BATCH, planned.c_out, SIDE, SIDE)
        plan.behind(tape, trained(tape, shape), 5)
        adapter = real.adapter
    else:
        assert plan.beside is not None
        place = PLACES[position] % len(planned.path)
        conv, layer = planned.path[place], path(real)[place]
        shape = (BATCH, conv.c_in, SIDE, SIDE)
        plan.beside(tape, trained(tape, shape), 5, place, conv, layer.stride[0])
        adapter = layer.adapter
    kept = sorted(allocation.nbytes for node in tape._nodes for allocation in node.saved)
    assert kept == kept_by_autograd(adapter, shape)  # type: ignore[arg-type]


# --- dense heads ------------------------------------------------------------------------------------------------------
# What a step keeps is the same whether a ReLU behind a GroupNorm works in place or not: only the moment differs.


@pytest.mark.parametrize("detector", [name for name in DETECTORS if get_detector(name).tower is not None])
def test_towers_are_declared_as_they_are_built(tiny_recipe: Callable[..., Recipe], detector: str) -> None:
    recipe = tiny_recipe(detector=detector, head_convs=2, memsave=False)
    declare = get_detector(detector).tower
    assert declare is not None
    tower = declare(recipe)
    built = list(build_detector(recipe, 3).head.modules())  # type: ignore[union-attr]
    assert {relu.inplace for relu in built if isinstance(relu, nn.ReLU)} == {tower.inplace_relu}
    assert sum(isinstance(module, nn.ReLU) for module in built) == 2 * tower.n_convs  # two towers
    assert any(isinstance(module, nn.GroupNorm) for module in built) == tower.group_norm


def test_a_relu_in_place_makes_no_copy_in_a_tower() -> None:
    peaks = []
    for in_place in (True, False):
        tape = Tape()
        x = trained(tape, (1, 8, 10, 10))
        tower = DenseTower(n_convs=1, anchors_per_cell=1, group_norm=True, inplace_relu=in_place)
        dense_heads._tower(tape, Part(), x, tower, "tower")
        peaks.append(tape.peak)
    assert peaks[1] - peaks[0] == 4 * 8 * 10 * 10
