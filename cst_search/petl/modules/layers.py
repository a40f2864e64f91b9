"""Building blocks of methods: small layers, and changes to a body that keep torchvision's tensor names."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cst_search.backbone.resnet import STAGES, Body, FrozenNorm

Norm = FrozenNorm | nn.BatchNorm2d

# --- layers of a side network or an adapter --------------------------------------------------------------------------


class GroupNorm(nn.GroupNorm):
    """GroupNorm that returns the dtype of its input, as `resnet.FrozenNorm` does.

    Autocast on CUDA runs the stock GroupNorm in fp32: it then keeps twice the bytes, and operations that need inputs of
    one dtype, such as lerp, reject its output. Its sums are in fp32 either way. Weight and bias are cast as autocast
    casts those of a convolution: the CUDA kernel, unlike the CPU's, rejects them in another dtype than the input's.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
            return F.group_norm(x, self.num_groups, weight, bias, self.eps)


def make_norm(kind: str, channels: int) -> nn.Module:
    """Return a norm for layers that a method adds: ``bn``, ``gn`` or ``none``."""
    if kind == "bn":
        return nn.BatchNorm2d(channels)
    if kind == "gn":
        # at least four channels per group: with fewer, GroupNorm removes what a channel says about the whole image
        groups = next(n for n in range(min(32, max(1, channels // 4)), 0, -1) if channels % n == 0)
        return GroupNorm(groups, channels)
    return nn.Identity()


def make_block(kind: str, norm: str, channels: int) -> nn.Sequential:
    """Return a side block, (B, channels, H, W) -> the same shape.

    Kinds: ``3x3``; ``depthwise`` (3x3 depth-wise, then 1x1); ``bottleneck`` (1x1 to a quarter, 3x3, 1x1); ``1x1``. Norm
    and ReLU follow; the convolutions have a bias if there is no norm.
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


# --- changes to a body -----------------------------------------------------------------------------------------------


def modules_from(body: Body, first_stage: int) -> Iterator[tuple[nn.Module, str, nn.Module]]:
    """Yield (parent, name in the parent, module) for the stages first_stage..5; 1 is the stem.

    Modules may be replaced during iteration.
    """
    children = [child for stage in STAGES[first_stage - 1 :] for child in stage]
    for parent_name, parent in list(body.named_modules()):
        for name, module in list(parent.named_children()):
            if f"{parent_name}.{name}".removeprefix(".").split(".")[0] in children:
                yield parent, name, module


def replace_norms(body: Body, first_stage: int, make: Callable[[Norm], nn.Module]) -> None:
    """Replace every norm from a stage on by ``make(norm)``."""
    for parent, name, module in modules_from(body, first_stage):
        if isinstance(module, Norm):
            setattr(parent, name, make(module))


def replace_all(body: Body, kind: type[nn.Module], make: Callable[..., nn.Module]) -> None:
    """Replace every module of exactly the type ``kind`` by ``make(module)``."""
    for parent, name, module in modules_from(body, 1):
        if type(module) is kind:
            setattr(parent, name, make(module))


def still_norm(norm: Norm) -> FrozenNorm:
    """Return a FrozenNorm that shares the tensors (not copied) of another FrozenNorm or of a BatchNorm2d."""
    still = FrozenNorm(norm.weight.numel(), norm.eps)
    _take_tensors(still, norm)
    return still


def _take_tensors(still: FrozenNorm, norm: Norm) -> None:
    still.as_batch_norm = not isinstance(norm, FrozenNorm) or norm.as_batch_norm
    for name in ("weight", "bias", "running_mean", "running_var"):
        setattr(still, name, getattr(norm, name).detach())


class OpenNorm(FrozenNorm):
    """FrozenNorm whose ``weight`` or ``bias``, or both, are parameters under their old names; statistics stay fixed."""

    def __init__(self, norm: Norm, opened: tuple[str, ...]) -> None:
        super().__init__(norm.weight.numel(), norm.eps)
        _take_tensors(self, norm)
        for name in opened:
            value = getattr(self, name).clone()
            delattr(self, name)
            setattr(self, name, nn.Parameter(value))


class ScaleShift(nn.Module):
    """Layer ``x * scale + shift`` per channel; initial scale ~ N(1, std), shift ~ N(0, std)."""

    def __init__(self, channels: int, std: float) -> None:
        super().__init__()
        self.scale = nn.Parameter(1 + std * torch.randn(channels))
        self.shift = nn.Parameter(std * torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale.to(x.dtype).reshape(1, -1, 1, 1) + self.shift.to(x.dtype).reshape(1, -1, 1, 1)


class ScaledNorm(FrozenNorm):
    """FrozenNorm followed by a ScaleShift, ``ssf``."""

    def __init__(self, norm: Norm, std: float) -> None:
        super().__init__(norm.weight.numel(), norm.eps)
        _take_tensors(self, norm)
        self.ssf = ScaleShift(norm.weight.numel(), std)

    def forward(self, x: Tensor) -> Tensor:
        return self.ssf(super().forward(x))

    def folded(self) -> FrozenNorm:
        """Return one FrozenNorm equal to norm and ScaleShift together."""
        still = still_norm(self)
        scale, shift = self.ssf.scale.detach(), self.ssf.shift.detach()
        still.weight, still.bias = self.weight * scale, self.bias * scale + shift
        return still


def residual_blocks(body: Body, first_stage: int) -> list[nn.Module]:
    """Return the residual blocks from a stage on, in the order of `BackboneShape.blocks`."""
    return [block for stage in STAGES[max(1, first_stage - 1) :] for child in stage for block in getattr(body, child)]


def path(block: nn.Module) -> list[nn.Conv2d]:
    """Return the convolutions of a residual block in order, without its shortcut."""
    return [getattr(block, name) for name in ("conv1", "conv2", "conv3") if hasattr(block, name)]


def add_parallel(conv: nn.Conv2d, adapter: nn.Module) -> None:
    """Make a convolution return ``conv(x) + adapter(x)``, in place; its own tensors keep their names."""
    conv.add_module("adapter", adapter)
    conv.register_forward_hook(_parallel)


def _parallel(conv: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return out + conv.adapter(args[0])  # type: ignore[operator]


def add_behind(block: nn.Module, adapter: nn.Module) -> None:
    """Make a block return ``adapter(block(x))``, in place; its own tensors keep their names."""
    block.add_module("adapter", adapter)
    block.register_forward_hook(_behind)


def _behind(block: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> Tensor:
    return block.adapter(out)  # type: ignore[operator]
