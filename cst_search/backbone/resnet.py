"""torchvision's ResNets as detection backbones of any width, run stage by stage, with or without pre-trained weights.

Tensors keep torchvision's names (``conv1.weight``, ``layer1.0.bn1.running_mean`` ...), so torchvision's weight files
load.
"""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum, get_model_weights
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops.misc import FrozenBatchNorm2d

from cst_search.backbone.lean_layers import constant_batch_norm
from cst_search.backbone.recompute import recompute
from cst_search.config.recipe import WEIGHTS_RULE
from cst_search.errors import ConfigError
from cst_search.input_file import check_stored
from cst_search.memory.resnet_shapes import RESNETS, BackboneShape, resnet_planes, resnet_shape

# children of the body in forward order, grouped: index 0 is the stem, i the stage that ends in C_{i+1}
BODY = "backbone.body."  # where a detector's tensors of the body lie
STAGES = (("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))


class FrozenNorm(FrozenBatchNorm2d):
    """FrozenBatchNorm2d that returns the dtype of its input.

    torchvision's multiplies by an fp32 scale, which under autocast turns every feature map back into fp32: full
    fine-tuning of a ResNet-50 Faster R-CNN then keeps more bytes in bf16 than in fp32. In fp32 the two are bitwise
    equal.

    Attributes:
        as_batch_norm: True to round as BatchNorm2d does in eval mode, for weights that were trained with one.
    """

    as_batch_norm = False

    def forward(self, x: Tensor) -> Tensor:
        if self.as_batch_norm:
            return constant_batch_norm(self, x)
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        shift = self.bias - self.running_mean * scale
        return x * scale.to(x.dtype).reshape(1, -1, 1, 1) + shift.to(x.dtype).reshape(1, -1, 1, 1)


class _WideResNet(ResNet):
    """torchvision's ResNet without classifier, with every channel count multiplied by ``width``."""

    def __init__(self, name: str, width: float, norm_layer: Callable[..., nn.Module]) -> None:
        nn.Module.__init__(self)
        counts, expansion = RESNETS[name]
        block: type[BasicBlock | Bottleneck] = BasicBlock if expansion == 1 else Bottleneck
        planes = resnet_planes(width)
        self._norm_layer = norm_layer
        self.inplanes, self.dilation, self.groups, self.base_width = planes[0], 1, 1, 64
        self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(self.inplanes)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
        for i, (n_planes, n_blocks) in enumerate(zip(planes, counts, strict=True)):
            setattr(self, f"layer{i + 1}", self._make_layer(block, n_planes, n_blocks, stride=1 if i == 0 else 2))
        self.stage_channels = (planes[0], *(n * expansion for n in planes))
        for module in self.modules():  # torchvision's initialisation, He et al. 2015
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class Body(nn.Module):
    """Convolutional part of a ResNet, run stage by stage.

    Attributes:
        stage_channels: channels of C1 (after the stem's pooling) to C5.
        grad_from: index into STAGES of the first stage that runs with autograd; ``len(STAGES)`` for none.
            Earlier stages run under ``no_grad`` and in eval mode: they keep no activations and update no statistics.
            In later stages, a batch norm with frozen weight and bias does not update its statistics either.
        recompute: True if residual blocks from grad_from on keep only their inputs and are recomputed in the backward
            pass.
        taps_blocks: True to return the output of every residual block too, e.g. ``c3.0`` for the first of stage 3.
    """

    def __init__(self, name: str, width: float = 1.0, frozen_norm: bool = True) -> None:
        """Build the body; ``frozen_norm``: FrozenNorm as in torchvision's pre-trained detectors, else BatchNorm2d."""
        super().__init__()
        net = _WideResNet(name, width, FrozenNorm if frozen_norm else nn.BatchNorm2d)
        self.name, self.width, self.frozen_norm = name, width, frozen_norm
        self.stage_channels: tuple[int, ...] = net.stage_channels
        self.stage_blocks: tuple[int, ...] = RESNETS[name][0]
        self.grad_from = len(STAGES)
        self.taps_blocks = False
        self.recompute = False
        for child in (name for stage in STAGES for name in stage):
            self.add_module(child, getattr(net, child))

    def train(self, mode: bool = True) -> Body:
        super().train(mode)
        for stage in STAGES[: self.grad_from]:
            for child in stage:
                getattr(self, child).train(False)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d) and not any(p.requires_grad for p in module.parameters()):
                module.train(False)
        return self

    def shape(self, used_stages: tuple[int, ...]) -> BackboneShape:
        return resnet_shape(self.name, self.width, used_stages, self.frozen_norm)

    def forward(self, x: Tensor) -> OrderedDict[str, Tensor]:
        """Return the feature maps of images (B, 3, H, W).

        ``{"c1".."c5"}``, each (B, stage_channels[i], H / s, W / s) with s = 4, 4, 8, 16, 32.
        """
        features: OrderedDict[str, Tensor] = OrderedDict()
        for index, stage in enumerate(STAGES):
            again = self.recompute and index >= self.grad_from
            with torch.set_grad_enabled(torch.is_grad_enabled() and index >= self.grad_from):
                for child in stage:
                    module = getattr(self, child)
                    if isinstance(module, nn.Sequential):
                        for j, block in enumerate(module):
                            x = recompute(block, x) if again else block(x)
                            if self.taps_blocks:
                                features[f"c{index + 1}.{j}"] = x
                    else:
                        x = module(x)
            features[f"c{index + 1}"] = x
        return features


def load_weights(body: Body, name: str, weights: str) -> str:
    """Load weights into the body and return its fingerprint, the first 16 hex digits of a SHA-256.

    Args:
        name: the ResNet's name, for ``IMAGENET``.
        weights: ``none``, ``IMAGENET`` (torchvision's weights, downloaded once), ``demo`` (shipped with the package),
            or the path of a ``.safetensors`` or ``.pt``/``.pth`` file with torchvision's tensor names, bare or below
            ``backbone.body.``.

    Raises:
        ConfigError: the file is missing, unreadable, or its tensors do not fit.
    """
    if weights != "none":
        load_body(body, read_body(name, weights), weights)
    return fingerprint(body)


def read_body(name: str, weights: str) -> dict[str, Tensor]:
    """Return the tensors that `load_weights` would load, by their names in the body or in a whole detector."""
    if weights == "IMAGENET":
        return fetch(get_model_weights(name).DEFAULT, weights)
    demo = Path(__file__).parent / "weights" / "demo-resnet18.safetensors"
    return read_tensors(demo if weights == "demo" else Path(weights))


def load_body(body: Body, state: Mapping[str, Tensor], weights: str) -> None:
    """Load tensors with torchvision's names, bare or below ``backbone.body.``; those of no body layer are left out.

    Args:
        weights: a recipe's ``weights``, for the message.

    Raises:
        ConfigError: they do not fit; the body is unchanged.
    """
    if any(key.startswith(BODY) for key in state):
        state = {key.removeprefix(BODY): value for key, value in state.items() if key.startswith(BODY)}
    own = body.state_dict()
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    wrong = [key for key in own if key in state and own[key].shape != state[key].shape]
    # a ResNet-34 begins like a ResNet-18: extra blocks in the file mean another network, a classifier does not
    children = {child for stage in STAGES for child in stage}
    unknown = [
        key
        for key in state
        if key.split(".")[0] in children and key not in own and not key.endswith("num_batches_tracked")
    ]
    if missing or wrong or unknown:
        raise ConfigError(
            f"weights {weights!r} do not fit {body.name}: {len(missing)} tensors are missing (first: {missing[:3]}), "
            f"{len(wrong)} have another shape (first: {wrong[:3]}), "
            f"{len(unknown)} are unknown (first: {unknown[:3]}); "
            f"check `backbone` and `width`, or use weights: none"
        )
    body.load_state_dict({key: state[key].to(own[key].dtype) for key in own if key in state}, strict=False)


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a ``.safetensors`` file, or of a pickled state_dict; code in the file does not run.

    Raises:
        ConfigError: the file is missing, or holds something else.
    """
    path = path.expanduser()
    if not path.is_file():
        raise ConfigError(f"weights must be {WEIGHTS_RULE}; there is no file {str(path)!r}")
    try:
        check_stored(path)
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file  # imported here: not needed for `none` or downloads

            return load_file(path)
        with warnings.catch_warnings():  # torch warns of a pickle's protocol before it refuses it
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to load it anyway
        raise ConfigError(
            f"weights file {str(path)!r} cannot be read as tensors: it holds something else, which may run code; "
            f"save the model's state_dict, or safetensors"
        ) from error
    except Exception as error:  # each reader has its own error; all mean a wrong file format
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"weights file {str(path)!r} cannot be read as tensors ({type(error).__name__}): {reason}"
        ) from error
    state = state.get("model", state.get("state_dict", state)) if isinstance(state, dict) else None
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError(f"weights file {str(path)!r} must hold a dictionary of tensors")
    return state


def fetch(weights: WeightsEnum, name: str) -> dict[str, Tensor]:
    """Return torchvision's weights, from torch's download cache or the network.

    Args:
        name: what a recipe calls them, for the message.

    Raises:
        ConfigError: the weights could not be fetched.
    """
    try:
        return weights.get_state_dict(progress=False, check_hash=True)
    except (OSError, RuntimeError) as error:  # no network (URLError), a full disk, a broken download
        raise ConfigError(
            f"weights {name}: {weights.url} could not be fetched ({error}); "
            f"go online once, or fetch it elsewhere and give its path as weights"
        ) from error


def fingerprint(tensors: nn.Module | Mapping[str, Tensor]) -> str:
    """Return the first 16 hex digits of a SHA-256 over names and bytes of all tensors: the identity of a base."""
    digest = hashlib.sha256()
    state = tensors.state_dict() if isinstance(tensors, nn.Module) else tensors
    for key, value in sorted(state.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
