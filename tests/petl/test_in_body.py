"""Methods inside the body: LoRA, adapters, scaling, opened norms and stages, against their formulas."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cst_search.config.recipe import Recipe
from cst_search.detector.pyramid import Backbone
from cst_search.petl import METHODS
from cst_search.petl.modules.conv_adapter import ConvAdapter
from cst_search.petl.modules.conv_lora import LoraConv2d
from cst_search.petl.modules.layers import OpenNorm, ScaledNorm, path
from cst_search.petl.serial_adapter import KINDS
from cst_search.petl.side_blocks import NORMS

# --- methods inside the body -----------------------------------------------------------------------------------------


def in_body(method: str, backbone: str = "resnet18", weights: str = "none", **options: Any) -> Any:
    built = Backbone(Recipe(backbone=backbone, width=0.125, weights=weights))
    built.body.requires_grad_(False)
    METHODS[method].apply(built, METHODS[method].make_options(options))
    return built


def shake(module: nn.Module) -> None:
    """Move every trained parameter away from its start."""
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)


@pytest.mark.parametrize("kernel", [1, 3])
def test_lora_is_loralibs(kernel: int) -> None:
    """(lora_B @ lora_A).view(weight.shape) * (alpha / r), entry by entry; rows of the product are not kernels."""
    conv = nn.Conv2d(3, 4, kernel, 2, kernel // 2, bias=False)
    lora = LoraConv2d(conv, rank=2, scale=0.7)
    assert lora.lora_A.shape == (2 * kernel, 3 * kernel) and lora.lora_B.shape == (4 * kernel, 2 * kernel)
    x = torch.randn(2, 3, 9, 7)
    assert torch.equal(lora(x), conv(x))  # B is zero
    nn.init.normal_(lora.lora_B)
    a, b = lora.lora_A.tolist(), lora.lora_B.tolist()
    product = [
        [sum(b[i][m] * a[m][j] for m in range(2 * kernel)) for j in range(3 * kernel)] for i in range(4 * kernel)
    ]
    delta = torch.tensor([value for row in product for value in row]).reshape(4, 3, kernel, kernel)
    expected = F.conv2d(x, conv.weight + 0.7 * delta, None, 2, kernel // 2)
    torch.testing.assert_close(lora(x), expected)
    torch.testing.assert_close(lora.merged()(x), expected)


def test_lora_starts_as_loralib_does() -> None:
    """kaiming_uniform_ with a = sqrt(5): numbers between -b and b, b = 1 / sqrt(columns of lora_A)."""
    lora = LoraConv2d(nn.Conv2d(64, 8, 3, bias=False), rank=16, scale=1.0)
    bound = 1 / math.sqrt(64 * 3)
    assert 0.99 * bound < lora.lora_A.abs().max().item() <= bound
    assert lora.lora_A.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_lora_targets() -> None:
    def targets(**options: Any) -> list[str]:
        body = in_body("conv_lora", "resnet50", **options).body
        return [name for name, module in body.named_modules() if isinstance(module, LoraConv2d)]

    assert len(targets()) == 16 and all(name.endswith("conv2") for name in targets())
    everything = targets(targets="all")
    assert len(everything) == 52 and "conv1" not in everything  # 53 convolutions; the stem's is none of them
    assert len([name for name in everything if "downsample" in name]) == 4
    assert targets(first_stage=5) == ["layer4.0.conv2", "layer4.1.conv2", "layer4.2.conv2"]


@pytest.mark.parametrize("stride", [1, 2])
def test_the_conv_adapter_follows_its_equation(stride: int) -> None:
    conv = nn.Conv2d(12, 6, 3, stride, 1, bias=False)
    adapter = ConvAdapter(conv, METHODS["conv_adapter"].make_options({"gamma": 3, "kernel": 5}))
    assert adapter.spatial.weight.shape == (4, 3, 5, 5)  # 12 / 3 channels in 4 groups of 3 inputs
    shake(adapter)
    x = torch.randn(2, 12, 9, 7)
    inner = F.relu(F.conv2d(x, adapter.spatial.weight, adapter.spatial.bias, stride, 2, groups=4))
    expected = F.conv2d(inner, adapter.pointwise.weight, adapter.pointwise.bias) * adapter.scale
    torch.testing.assert_close(adapter(x), expected)
    assert adapter(x).shape == conv(x).shape


@pytest.mark.parametrize("method", ["conv_adapter", "serial_adapter"])
@pytest.mark.parametrize("backbone", ["resnet18", "resnet50"])
@pytest.mark.parametrize("position", ["front", "middle", "back"])
def test_parallel_adapters_are_added_before_the_norm(method: str, backbone: str, position: str) -> None:
    """The first block of stage 3, written out, with its stride and its shortcut."""
    if method == "conv_adapter" and position != "middle":
        pytest.skip("it has no position")
    built = in_body(method, backbone, **({"position": position, "norm": "bn"} if method == "serial_adapter" else {}))
    shake(built.body)
    block: Any = built.body.eval().layer2[0]
    x = torch.randn(2, path(block)[0].in_channels, 8, 8)
    n = len(path(block))
    adapted = {i for i, conv in enumerate(path(block)) if hasattr(conv, "adapter")}
    if method == "serial_adapter":
        assert adapted == {{"front": 0, "middle": 1, "back": n - 1}[position]}
    else:
        assert adapted == ({0, 1} if backbone == "resnet18" else {1})
    out = x
    for i, conv in enumerate(path(block)):
        y = F.conv2d(out, conv.weight, None, conv.stride, conv.padding)
        if i in adapted:
            y = y + conv.adapter(out)
        out = getattr(block, f"bn{i + 1}")(y)
        if i < n - 1:
            out = F.relu(out)
    torch.testing.assert_close(block(x), F.relu(out + block.downsample(x)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("norm", NORMS)
def test_the_transition_adapter_stands_behind_the_block(kind: str, norm: str) -> None:
    plain, built = in_body("head"), in_body("serial_adapter", kind=kind, norm=norm, reduction=4)
    built.body.load_state_dict(plain.body.state_dict(), strict=False)
    shake(built.body)
    block: Any = built.body.eval().layer2[1]
    x = torch.randn(2, 16, 8, 8)
    y = plain.body.eval().layer2[1](x)
    layers = block.adapter.layers
    assert [type(layer) for layer in layers if isinstance(layer, nn.Conv2d | nn.ReLU)] == (
        [nn.Conv2d, nn.ReLU, nn.Conv2d] if kind == "bottleneck" else [nn.Conv2d]
    )
    torch.testing.assert_close(block(x), F.relu(y + layers(y)))


def test_ssf_scales_and_shifts_behind_the_norm_or_the_block() -> None:
    plain = in_body("head")
    x = torch.randn(2, 16, 8, 8)
    for after in ("norm", "block"):
        built = in_body("ssf", after=after)
        body: Any = built.body.eval()
        fresh = [m for m in body.modules() if hasattr(m, "scale")]
        assert all(float(m.scale.min()) == float(m.scale.max()) == 1 and float(m.shift.abs().max()) == 0 for m in fresh)
        body.load_state_dict(plain.body.state_dict(), strict=False)
        shake(body)
        module = body.layer2[1].bn1 if after == "norm" else body.layer2[1]
        twin: Any = plain.body.eval().layer2[1].bn1 if after == "norm" else plain.body.eval().layer2[1]
        s = module.ssf if after == "norm" else module.adapter
        torch.testing.assert_close(module(x), twin(x) * s.scale[:, None, None] + s.shift[:, None, None])


def test_ssf_can_start_as_its_source_does() -> None:
    body = in_body("ssf", "resnet50", init_std=0.02).body
    scale = torch.cat([m.ssf.scale for m in body.modules() if isinstance(m, ScaledNorm)])
    assert 0.015 < float(scale.std()) < 0.025 and abs(float(scale.mean()) - 1) < 0.005


@pytest.mark.parametrize("weights", ["none", "file"])
@pytest.mark.parametrize(("method", "opened"), [("norm", {"weight", "bias"}), ("bitfit", {"bias"})])
def test_opened_norms_keep_their_statistics(method: str, opened: set[str], weights: str, weights_file: Any) -> None:
    """On FrozenNorm, where they are buffers and train nothing, and on BatchNorm2d, whose statistics would move."""
    path_or_none = weights if weights == "none" else weights_file("resnet18", 0.125)
    plain, built = (in_body(m, weights=path_or_none) for m in ("head", method))
    body: Any = built.body.train()
    norms = [(name, m) for name, m in body.named_modules() if isinstance(m, OpenNorm)]
    assert len(norms) == 20  # of a ResNet-18, the stem's and three shortcuts' counted
    assert all({n for n, p in m.named_parameters() if p.requires_grad} == opened for _, m in norms)
    built.body.load_state_dict(plain.body.state_dict(), strict=False)
    before = {name: value.clone() for name, value in body.state_dict().items()}
    x = torch.randn(2, 3, 64, 64)
    for key, value in plain.body.eval()(x).items():
        torch.testing.assert_close(body(x)[key], value)
    assert all(torch.equal(value, before[name]) for name, value in body.state_dict().items())
    names = [name for name in plain.body.state_dict() if "num_batches" not in name]
    assert sorted(body.state_dict()) == sorted(names)  # torchvision's


STAGE = {"bn1": 1, "layer1": 2, "layer2": 3, "layer3": 4, "layer4": 5}
IN_BODY: list[tuple[str, dict[str, Any], int]] = [  # method, options, stage from which on there is a graph
    ("norm", {}, 1),
    ("norm", {"first_stage": 4}, 4),
    ("bitfit", {}, 1),
    ("bitfit", {"first_stage": 2}, 2),
    ("ssf", {}, 1),
    ("ssf", {"first_stage": 5}, 5),
    ("ssf", {"after": "block"}, 2),  # the stem has no block
    ("ssf", {"after": "block", "first_stage": 3}, 3),
    ("conv_lora", {}, 2),
    ("conv_lora", {"targets": "all", "first_stage": 3}, 3),
    ("conv_adapter", {}, 2),
    ("conv_adapter", {"first_stage": 4}, 4),
    ("serial_adapter", {}, 2),
    ("serial_adapter", {"position": "back", "first_stage": 3}, 3),
    ("serial_adapter", {"norm": "bn", "kind": "basic"}, 2),
    ("partial", {}, 5),
    ("partial", {"stages": 4}, 2),
]


@pytest.mark.parametrize(("method", "options", "stage"), IN_BODY)
def test_earlier_stages_run_without_autograd_and_later_ones_learn(
    method: str, options: dict[str, Any], stage: int
) -> None:
    built = in_body(method, **options)
    shake(built.body)
    body = built.body.train()
    features = body(torch.randn(2, 3, 96, 96))
    assert [features[f"c{i}"].requires_grad for i in range(1, 6)] == [i >= stage for i in range(1, 6)]
    sum((features[f"c{i}"] ** 2).mean() for i in range(stage, 6)).backward()
    for name, parameter in body.named_parameters():
        learns = parameter.grad is not None and bool(parameter.grad.abs().max() > 0)
        assert learns == parameter.requires_grad, name
    trained = {STAGE[name.split(".")[0]] for name, p in body.named_parameters() if p.requires_grad}
    assert min(trained) == stage


@pytest.mark.parametrize(("method", "options", "stage"), IN_BODY)
def test_norms_of_the_base_keep_their_statistics_unless_trained(
    method: str, options: dict[str, Any], stage: int
) -> None:
    """On BatchNorm2d: only `partial` trains the base's norms; an adapter's own batch norm is live."""
    body = in_body(method, **options).body.train()
    live = {name for name, m in body.named_modules() if isinstance(m, nn.BatchNorm2d) and m.training}
    if method == "partial":
        assert live and all(int(name[5]) + 1 >= stage for name in live)
    else:
        assert all("adapter" in name for name in live) and bool(live) == (options.get("norm") == "bn")
