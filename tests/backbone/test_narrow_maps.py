"""Weight gradients in bf16 on a CPU, on maps so narrow that a part of the kernel sees padding alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cst_search.backbone.narrow_maps import guard, has_unused_tap
from cst_search.config.loading import load_recipe
from cst_search.detector.build import build_detector


def fill_free_memory(value: float) -> None:
    """Leave a value in memory that is free again, which is what an unwritten gradient would hold."""
    held = [torch.full((n,), value) for n in (64, 576, 4096, 16384, 36864, 73728, 147456) for _ in range(6)]
    del held


def gradients(conv: nn.Conv2d, x: Tensor, out: Tensor, *, bf16: bool) -> tuple[Tensor, Tensor]:
    conv.zero_grad()
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16):
        y = conv(x)
    assert y.dtype == (torch.bfloat16 if bf16 else torch.float32)
    fill_free_memory(float("nan"))
    y.backward(out.to(y.dtype))
    assert x.grad is not None and conv.weight.grad is not None
    return x.grad, conv.weight.grad.clone()


@pytest.mark.parametrize("size", [(1, 1), (2, 1), (5, 1), (1, 4), (3, 3)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 1), (3, 3, 1), (7, 2, 3), (5, 1, 2), (3, 1, 1)])
def test_gradients_are_those_of_fp32(kernel: int, stride: int, padding: int, size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(64, 64, kernel, stride, padding)
    guard(conv)
    x = torch.randn(4, 64, *size)
    out = torch.randn_like(conv(x))
    wanted = gradients(conv, x, out, bf16=False)
    for _ in range(3):
        for got, right in zip(gradients(conv, x, out, bf16=True), wanted, strict=True):
            assert torch.allclose(got, right, atol=0.05 * float(right.abs().max()))


@pytest.mark.parametrize(
    ("size", "kernel", "stride", "padding", "unused"),
    [(1, 3, 2, 1, True), (2, 3, 2, 1, True), (3, 3, 2, 1, False), (1, 1, 2, 0, False), (7, 7, 2, 3, False),
     (6, 3, 4, 1, False), (3, 3, 4, 1, True), (5, 3, 4, 1, False)],
)  # fmt: skip
def test_taps_that_meet_no_pixel(size: int, kernel: int, stride: int, padding: int, unused: bool) -> None:
    ones = torch.ones(1, 1, 9, size, dtype=torch.float64)
    weight = torch.zeros(1, 1, 1, kernel, dtype=torch.float64, requires_grad=True)
    nn.functional.conv2d(ones, weight, stride=(1, stride), padding=(0, padding)).sum().backward()
    assert weight.grad is not None and bool((weight.grad == 0).any()) == unused
    assert has_unused_tap(size, kernel, stride, padding) == unused


@pytest.mark.parametrize("neck", ["train", "lora"])
def test_a_detector_gets_no_gradient_from_padding_at_64_px(neck: str) -> None:
    """P6 has one pixel, so that of the 3x3 convolution of P7 only the middle meets it."""
    recipe = replace(load_recipe("demo"), neck=neck, image_size_px=64, max_size_px=64)
    model = build_detector(recipe, 3).train()
    images = [torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(i)) for i in range(4)]
    target = {"boxes": torch.tensor([[5.0, 5, 40, 50], [20, 8, 60, 60]]), "labels": torch.tensor([1, 2])}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = torch.stack([part.float() for part in model(images, [target] * 4).values()]).sum()
    fill_free_memory(float("nan"))
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if ".p7." in name and p.shape[2:] == (3, 3)}
    seen = [grad for grad in found.values() if grad is not None]
    assert len(seen) == 1
    seen[0][:, :, 1, 1] = 0
    assert torch.equal(seen[0], torch.zeros_like(seen[0]))
