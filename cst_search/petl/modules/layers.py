"""What methods are built from: small layers, and surgery on a body that keeps torchvision's tensor names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cst_search.backbone.resnet import STAGES, Body, FrozenNorm

Norm = FrozenNorm | nn.BatchNorm2d

# --- layers of a side network or an adapter --------------------------------------------------------------------------


class GroupNorm(nn.GroupNorm):
    """GroupNorm that stays in the type of its input, as `resnet.FrozenNorm` does.

    Autocast on CUDA runs the stock one in fp32: it then keeps twice the bytes, and an operation that wants one type for
    its inputs, such as lerp, refuses what comes out. Its sums are in fp32 inside either way. Weight and bias are cast
    as autocast casts a convolution's: CUDA's kernel, unlike a CPU's, refuses them in another type than the input's.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)


def make_norm(kind: str, channels: int) -> nn.Module:
    """A norm for layers that a method adds: ``bn``, ``gn`` or ``none``."""
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    if kind == "gn":
        # at least four channels a group: with fewer, GroupNorm wipes out what a channel says about the whole image
        groups = next(n for n in range(min(32, max(1, channels // 4)), 0, -1) if channels % n == 0)
        return GroupNorm(groups, channels)
    return nn.Identity()


def make_block(kind: str, norm: str, channels: int) -> nn.Sequential:
    """A side block, (B, channels, H, W) -> the same: ``3x3``; ``depthwise`` (3x3 depth-wise, then 1x1); ``bottleneck``
    (1x1 to a quarter, 3x3, 1x1); ``1x1``. Norm and ReLU follow; a convolution has a bias where there is no norm.
    """

    def conv(c_in: int, c_out: int, k: int, groups: int = 1) -> nn.Conv2d:
        return nn.Conv2d(c_in, c_out, k, padding=k // 2, groups=groups, bias=norm == "none")

    if kind == "3x3":
        layers = [conv(channels, channels, 3)]
    elif kind == "1x1":
        layers = [conv(channels, channels, 1)]
    elif kind == "depthwise":
        layers = [conv(channels, channels, 3, groups=channels), conv(channels, channels, 1)]
    else:
        inner = max(1, channels // 4)
        layers = [conv(channels, inner, 1), conv(inner, inner, 3), conv(inner, channels, 1)]
    return nn.Sequential(*layers, make_norm(norm, channels), nn.ReLU(inplace=True))


# --- surgery on a body -----------------------------------------------------------------------------------------------


def modules_from(body: Body, first_stage: int) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """(parent, name below it, module) of every module in the stages first_stage..5; 1 is the stem. May be replaced."""
    children = [child for stage in STAGES[first_stage - 1 :] for child in stage]
    for parent_name, parent in list(body.named_modules()):
        for name, module in list(parent.named_children()):
            if f"{parent_name}.{name}".removeprefix(".").split(".")[0] in children:
                yield parent, name, module


def replace_norms(body: Body, first_stage: int, make: Callable[[Norm], nn.Module]) -> None:
    """Put ``make(norm)`` in the place of every norm from a stage on."""
    for parent, name, module in modules_from(body, first_stage):
        if isinstance(module, Norm):
            setattr(parent, name, make(module))


def replace_all(body: Body, kind: type[nn.Module], make: Callable[..., nn.Module]) -> None:
    """Put ``make(module)`` in the place of every module of exactly that kind."""
    for parent, name, module in modules_from(body, 1):
        if type(module) is kind:
            setattr(parent, name, make(module))


def still_norm(norm: Norm) -> FrozenNorm:
    """A FrozenNorm with the tensors (not copied) of another or of a BatchNorm2d."""
    still = FrozenNorm(norm.weight.numel(), norm.eps)
    _take_tensors(still, norm)
    return still


def _take_tensors(still: FrozenNorm, norm: Norm) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(still, name, getattr(norm, name).detach())


class OpenNorm(FrozenNorm):
    """A FrozenNorm whose ``weight`` or ``bias``, or both, are parameters under their old names; statistics stay."""

    def __init__(self, norm: Norm, opened: tuple[str, ...]) -> None:
        super().__init__(norm.weight.numel(), norm.eps)
        _take_tensors(self, norm)
        for name in opened:
            value = getattr(self, name).clone()
            delattr(self, name)
            setattr(self, name, nn.Parameter(value))


class ScaleShift(nn.Module):
    """``x * scale + shift`` per channel; scale ~ N(1, std), shift ~ N(0, std)."""

    def __init__(self, channels: int, std: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + std * torch.randn(channels))
        self.shift = nn.Parameter(std * torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype).reshape(1, -1, 1, 1) + self.shift.to(x.dtype).reshape(1, -1, 1, 1)


class ScaledNorm(FrozenNorm):
    """A FrozenNorm and a ScaleShift behind it, ``ssf``."""

    def __init__(self, norm: Norm, std: float) -> None:
        super().__init__(norm.weight.numel(), norm.eps)
        _take_tensors(self, norm)
        self.ssf = ScaleShift(norm.weight.numel(), std)

    def forward(self, x: Tensor) -> Tensor:
        return self.ssf(super().forward(x))

    def folded(self) -> FrozenNorm:
        """The FrozenNorm that does both."""
        still = still_norm(self)
        scale, shift = self.ssf.scale.detach(), self.ssf.shift.detach()
        still.weight, still.bias = self.weight * scale, self.bias * scale + shift
        return still


def residual_blocks(body: Body, first_stage: int) -> list[nn.Module]:
    """The residual blocks from a stage on, in the order of `BackboneShape.blocks`."""
    return [block for stage in STAGES[max(1, first_stage - 1) :] for child in stage for block in getattr(body, child)]


def path(block: nn.Module) -> list[nn.Conv2d]:
    """The convolutions of a residual block in order, its shortcut left out."""
    return [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]


def add_parallel(conv: nn.Conv2d, adapter: nn.Module) -> None:
    """From now on the convolution gives ``conv(x) + adapter(x)``; its own tensors keep their names."""
    conv.add_module("adapter", adapter)
    conv.register_forward_hook(_parallel)


def _parallel(conv: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return out + conv.adapter(args[0])  # type: ignore[operator]


def add_behind(block: nn.Module, adapter: nn.Module) -> None:
    """From now on the block gives ``adapter(block(x))``; its own tensors keep their names."""
    block.add_module("adapter", adapter)
    block.register_forward_hook(_behind)


def _behind(block: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return block.adapter(out)  # type: ignore[operator]
