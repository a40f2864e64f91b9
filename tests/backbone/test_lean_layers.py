"""Gradients with and without what is kept less: equal to the last bit; and the bytes that it saves."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FeaturePyramidNetwork

from cst_search.backbone.lean_layers import (
    FixedBatchNorm2d,
    LeanBatchNorm2d,
    LeanConv2d,
    LeanMaxPool2d,
    LeanReLU,
    fix_statistics,
    pack_bits,
    save_memory,
    unpack_bits,
)
from cst_search.backbone.recompute import OnceBatchNorm2d, recompute
from cst_search.backbone.resnet import FrozenNorm
from cst_search.config.recipe import Recipe
from cst_search.detector.build import build_detector
from cst_search.petl import METHODS
from cst_search.petl.modules.layers import OpenNorm

pytestmark = pytest.mark.usefixtures("few_boxes")

Make = Callable[..., Recipe]

DETECTORS = ("fasterrcnn", "retinanet", "fcos")
# With others no gradient crosses what is frozen, or (adapters and LoRA beside every 3x3 of a ResNet-18) something
# trained keeps the same input; see test_a_bottleneck_keeps_less.
SAVES = ("norm", "bitfit", "ssf", "serial_adapter")


def saved_bytes(run: Callable[[], Any], own: Iterable[Tensor] = ()) -> int:
    """Bytes that autograd keeps of a forward pass: unique storages, those of ``own`` left out."""
    kept: dict[int, torch.UntypedStorage] = {}
    left_out = {tensor.untyped_storage().data_ptr() for tensor in own}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in left_out:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        run()
    return sum(storage.nbytes() for storage in kept.values())


# --- layer by layer ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(0,), (1,), (7,), (8,), (9,), (3, 5, 7), (2, 8, 4, 4)])
def test_packed_bits_unpack_to_the_same_flags(shape: tuple[int, ...]) -> None:
    flags = torch.rand(shape) > 0.5
    packed = pack_bits(flags)
    assert packed.dtype == torch.uint8 and packed.numel() == -(-flags.numel() // 8)
    assert torch.equal(unpack_bits(packed, flags.numel()), flags.reshape(-1))


def test_each_of_256_patterns_packs_to_its_own_byte() -> None:
    patterns = (torch.arange(256)[:, None] >> torch.arange(8) & 1).bool()
    assert len(set(pack_bits(patterns).tolist())) == 256
    assert torch.equal(unpack_bits(pack_bits(patterns), 2048), patterns.reshape(-1))


def norm_of(kind: type[nn.Module]) -> nn.Module:
    norm = kind(6).eval().requires_grad_(False)
    for tensor in norm.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.5, 1.5)
    return norm


@pytest.mark.parametrize(
    ("stock", "lean", "share"),
    [
        # the input's 4 bytes a value are gone; what is left: nothing, a bit a value, half of the index
        (nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False), LeanConv2d, 0.0),
        (nn.Conv2d(6, 4, 1, bias=False), LeanConv2d, 0.0),
        (nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False), LeanConv2d, 0.0),
        (nn.ReLU(), LeanReLU, 1 / 32),
        (nn.MaxPool2d(3, 2, 1), LeanMaxPool2d, 0.25 * 4 / 4),
        (norm_of(nn.BatchNorm2d), LeanBatchNorm2d, 0.0),
    ],
)
@pytest.mark.parametrize("size", [(16, 24), (15, 17)])
def test_a_layer_gives_the_same_gradient_from_less(
    stock: nn.Module, lean: type[nn.Module], share: float, size: tuple[int, int]
) -> None:
    stock = stock.requires_grad_(False)
    x = torch.randn(2, 6, *size)
    weight = sum(p.numel() * 4 for p in (*stock.parameters(), *stock.buffers()))
    outs, grads, kept = [], [], []
    kind = type(stock)
    try:
        for each in (kind, lean):
            stock.__class__ = each
            leaf = x.clone().requires_grad_()
            out: list[Tensor] = []
            kept.append(saved_bytes(lambda leaf=leaf, out=out: out.append(stock(leaf))))
            out[0].backward(torch.linspace(-1, 1, out[0].numel()).view(out[0].shape))
            outs.append(out[0].detach())
            grads.append(leaf.grad)
    finally:
        stock.__class__ = kind
    assert torch.equal(outs[0], outs[1])
    if lean is LeanBatchNorm2d:  # a product in another order
        torch.testing.assert_close(grads[1], grads[0])
    else:
        assert torch.equal(grads[0], grads[1])
    assert kept[1] <= weight + 128 + 1.1 * share * x.numel() * 4  # 128: a padded byte and small odds and ends
    assert kept[0] >= x.numel() * 4


@pytest.mark.parametrize("opened", [(), ("bias",), ("weight",), ("weight", "bias")])
def test_an_open_norm_with_batch_norm_rounding_has_its_output_and_gradients(opened: tuple[str, ...]) -> None:
    norm = norm_of(nn.BatchNorm2d).eval().requires_grad_()
    ours = OpenNorm(norm, opened)  # type: ignore[arg-type]
    x = torch.randn(2, 6, 9, 11)
    found: list[list[Tensor]] = []
    for module in (norm, ours):
        leaf = x.clone().requires_grad_()
        out = module(leaf)
        out.backward(torch.linspace(-1, 1, out.numel()).view(out.shape))
        found.append([out.detach(), leaf.grad, *(getattr(module, name).grad for name in opened)])  # type: ignore[list-item]
    assert torch.equal(found[0][0], found[1][0])
    for mine, expected in zip(found[1], found[0], strict=True):
        torch.testing.assert_close(mine, expected)
    kept = saved_bytes(lambda: ours(x.clone().requires_grad_()))
    assert (kept >= x.nbytes) == ("weight" in opened)


def test_relu_in_place_writes_its_input() -> None:
    leaf = torch.tensor([-1.0, 0.0, 2.0], requires_grad=True)
    x = leaf * 1
    out = LeanReLU(inplace=True)(x)
    assert out.data_ptr() == x.data_ptr() and out.tolist() == [0, 0, 2]
    out.backward(torch.ones(3))
    assert leaf.grad is not None and leaf.grad.tolist() == [0, 0, 1]  # zero itself passes nothing, as in the stock one


@pytest.mark.parametrize("lean", [LeanConv2d, LeanReLU])
def test_lean_layers_have_the_same_gradients_under_autocast(lean: type[nn.Module]) -> None:
    conv = nn.Conv2d(6, 6, 3, padding=1, bias=False).requires_grad_(False)
    relu = nn.ReLU()
    grads = []
    x = torch.randn(2, 6, 9, 9)
    for each in (None, lean):
        if each is not None:
            (conv if each is LeanConv2d else relu).__class__ = each
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = relu(conv(leaf))
        assert out.dtype == torch.bfloat16
        out.float().square().sum().backward()
        grads.append(leaf.grad)
    assert grads[0].dtype == torch.float32 and torch.equal(grads[0], grads[1])


def test_only_what_is_frozen_becomes_lean() -> None:
    body = nn.Sequential(nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1), nn.ReLU())
    body[0].weight.requires_grad_(False)
    save_memory(body)
    assert [type(m) for m in body] == [LeanConv2d, nn.BatchNorm2d, nn.Conv2d, nn.ReLU]


def test_a_frozen_norm_with_fixed_statistics_becomes_lean() -> None:
    norms = nn.Sequential(nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    norms[0].requires_grad_(False)
    fix_statistics(norms)
    save_memory(norms)
    assert [type(norm) for norm in norms] == [LeanBatchNorm2d, FixedBatchNorm2d]


def test_a_frozen_norm_of_torchvision_keeps_nothing_anyway() -> None:
    norm = norm_of(FrozenNorm)
    x = torch.randn(2, 6, 16, 16, requires_grad=True)
    assert saved_bytes(lambda: norm(x)) < 1000


def test_statistics_move_once_when_computed_twice() -> None:
    norm, once = nn.BatchNorm2d(3), OnceBatchNorm2d(3)
    x = torch.randn(4, 3, 5, 5, requires_grad=True)
    norm(x).square().sum().backward()
    expected, x.grad = x.grad, None
    recompute(once, x).square().sum().backward()
    assert torch.equal(x.grad, expected)
    assert all(torch.equal(once.state_dict()[name], value) for name, value in norm.state_dict().items())
    assert int(once.num_batches_tracked) == 1


# --- whole detectors --------------------------------------------------------------------------------------------------


def one_step(recipe: Recipe, autocast: bool = False) -> tuple[dict[str, Tensor], dict[str, Tensor], int]:
    """(gradients, state after the step's forward pass, bytes kept where nothing is computed again)."""
    model = build_detector(recipe, 3).train()
    generator = torch.Generator().manual_seed(0)
    # zero starts would hide the gradients of what stands before them
    for parameter in model.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.05, generator=generator)
    images = [torch.rand(3, *size, generator=generator) for size in ((64, 96), (80, 64))]
    targets: list[dict[str, Tensor]] = [
        {"boxes": torch.tensor([[4.0, 4, 30, 40], [20, 10, 60, 50]]), "labels": torch.tensor([1, 2])},
        {"boxes": torch.empty(0, 4), "labels": torch.empty(0, dtype=torch.int64)},
    ]
    torch.manual_seed(0)  # the samplers of Faster R-CNN
    losses: dict[str, Tensor] = {}
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        kept = saved_bytes(lambda: losses.update(model(images, targets)))
    torch.stack([loss.float() for loss in losses.values()]).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return grads, dict(model.state_dict()), kept


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


WAYS: tuple[dict[str, Any], ...] = (
    {"memsave": True, "recompute": "none"},
    {"recompute": "neck"},
    {"memsave": False, "recompute": "all"},
)


# every pair of two of method, family and way: each method meets all ways, each on another family
@pytest.mark.parametrize(
    ("detector", "method", "way"),
    [
        (detector, method, WAYS[(i + j) % len(WAYS)])
        for i, detector in enumerate(DETECTORS)
        for j, method in enumerate(sorted(METHODS))
    ],
    ids=str,
)
def test_every_method_has_the_same_gradients(
    tiny_recipe: Make, detector: str, method: str, way: dict[str, Any]
) -> None:
    stock, state, stock_bytes = one_step(tiny_recipe(detector=detector, method=method, memsave=False, recompute="none"))
    assert stock
    grads, after, kept = one_step(tiny_recipe(detector=detector, method=method, **way))
    assert same(grads, stock)
    assert same(after, state)
    if way["recompute"] == "none" and method in SAVES:
        assert kept < stock_bytes


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("cst", {"norm": "bn", "granularity": "block"}),  # statistics of norms in what is computed again
        ("lst", {"keep": "every_second", "norm": "none"}),
        ("side_tuning", {"norm": "bn"}),
        ("ssf", {"after": "block"}),
        ("conv_lora", {"targets": "all"}),
        ("serial_adapter", {"position": "front", "norm": "bn"}),
        ("serial_adapter", {"position": "transition", "norm": "bn"}),
        ("norm", {"first_stage": 3}),
        ("full", {}),
        ("partial", {"stages": 4}),
    ],
)
@pytest.mark.parametrize("weights", ["file", "none"])  # none: BatchNorm2d in the body, trained or in eval mode
def test_every_option_has_the_same_gradients(
    tiny_recipe: Make, method: str, options: dict[str, Any], weights: str
) -> None:
    fixed: dict[str, Any] = {"method": method, "options": options, "detector": "fcos"}
    if weights == "none":
        fixed["weights"] = "none"
    stock, state, _ = one_step(tiny_recipe(memsave=False, recompute="none", **fixed))
    for again in ("none", "all"):
        grads, after, _ = one_step(tiny_recipe(memsave=True, recompute=again, **fixed))
        assert grads.keys() == stock.keys()
        for name in stock:  # a frozen batch norm in eval mode is summed in another order
            torch.testing.assert_close(grads[name], stock[name], rtol=1e-3, atol=1e-4)
            assert weights == "none" or torch.equal(grads[name], stock[name])
        assert all(torch.allclose(after[name].float(), state[name].float(), atol=1e-6) for name in state)


@pytest.mark.parametrize("method", ["bitfit", "cst", "conv_lora", "full"])
def test_every_method_has_the_same_gradients_under_autocast(tiny_recipe: Make, method: str) -> None:
    fixed: dict[str, Any] = {"method": method, "detector": "fasterrcnn"}
    stock, _, _ = one_step(tiny_recipe(memsave=False, recompute="none", **fixed), autocast=True)
    for fields in ({"recompute": "none"}, {"recompute": "all"}):
        grads, _, _ = one_step(tiny_recipe(memsave=True, **fields, **fixed), autocast=True)
        assert same(grads, stock)


@pytest.mark.parametrize(
    ("method", "at_most"),
    # observed: 0.05, 0.38, 0.36, 0.55, 0.54, 0.87; a norm whose weight is trained needs its input, whatever is frozen
    [("bitfit", 0.06), ("conv_lora", 0.4), ("conv_adapter", 0.4), ("norm", 0.6), ("ssf", 0.6), ("serial_adapter", 0.9)],
)
def test_a_bottleneck_keeps_less(tiny_recipe: Make, method: str, at_most: float) -> None:
    """Share of what the body of a ResNet-50 keeps without memsave."""
    kept = []
    for memsave in (False, True):
        body = build_detector(tiny_recipe(backbone="resnet50", method=method, memsave=memsave), 3).train().backbone.body
        kept.append(saved_bytes(partial(body, torch.rand(1, 3, 256, 256)), (*body.parameters(), *body.buffers())))
    assert kept[1] <= at_most * kept[0], kept


# not Faster R-CNN: the last bits of RPN's scores decide which regions are drawn, and so its gradients
@pytest.mark.parametrize("detector", ["retinanet", "fcos"])
@pytest.mark.parametrize("method", ["cst", "side_tuning", "head"])
def test_some_images_at_a_time(tiny_recipe: Make, monkeypatch: pytest.MonkeyPatch, detector: str, method: str) -> None:
    """Large maps are recomputed in pieces, whose gradients are then summed in another order."""
    stock, _, _ = one_step(tiny_recipe(detector=detector, method=method, memsave=False, recompute="none"))
    monkeypatch.setattr("cst_search.memory.plan.MAP_VALUES", 1)
    grads, _, _ = one_step(tiny_recipe(detector=detector, method=method, memsave=False, recompute="neck"))
    assert grads.keys() == stock.keys()
    for name in stock:
        close = 1e-4 * float(stock[name].abs().max()) + 1e-6
        torch.testing.assert_close(grads[name], stock[name], rtol=1e-3, atol=close)


def test_a_pyramid_by_levels_is_torchvisions(tiny_recipe: Make) -> None:
    ours = build_detector(tiny_recipe(detector="fasterrcnn", method="head"), 3).backbone.fpn
    channels = [block[0].in_channels for block in ours.inner_blocks]
    theirs = FeaturePyramidNetwork(channels, ours.inner_blocks[0][0].out_channels, ours.extra_blocks)
    theirs.load_state_dict(ours.state_dict())
    maps = {str(i): torch.randn(1, c, 17 * 2 ** (3 - i) - i, 8 * 2 ** (3 - i)) for i, c in enumerate(channels)}
    expected = theirs(OrderedDict(maps))
    found = ours(OrderedDict(maps))
    assert list(found) == list(expected) and all(torch.equal(found[key], expected[key]) for key in expected)
