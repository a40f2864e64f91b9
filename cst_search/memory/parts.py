"""Neck and heads of a detector as shapes, by how much of them is trained. Standard library only.

A recipe's ``neck`` and ``head`` choose a mode:

==========  =============================================================================================
train       every parameter
norm        scale and shift of norms, and the biases of convolutions and linear layers
lora        B (A x) added to every convolution and linear layer; A: k x k, c_in -> r; B: 1 x 1, r -> c_out
frozen      nothing (neck only)
predictor   nothing but the last layers (heads only)
==========  =============================================================================================

The last layers of the heads, which give classes and boxes, are trained in full in every mode. `detector.parts` does
to the modules what is described here; tests compare the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cst_search.memory.tape import ShapeTensor, Tape


@dataclass(frozen=True)
class LayerShape:
    """Convolution or linear layer of neck or heads.

    Attributes:
        kernel: 1 for a linear layer.
        norm: True if a norm with scale and shift follows.
        statistics: True if that norm is a BatchNorm2d, with a mean and a variance per channel.
        last: True for a layer that gives classes or boxes.
    """

    c_in: int
    c_out: int
    kernel: int = 1
    bias: bool = True
    norm: bool = False
    statistics: bool = False
    last: bool = False

    @property
    def n_params(self) -> int:
        """Number of parameters, those of the norm behind the layer included."""
        return self.c_in * self.c_out * self.kernel**2 + self._n_channel_params

    @property
    def _n_channel_params(self) -> int:
        return self.c_out * (self.bias + 2 * self.norm)

    def lora_params(self, rank: int) -> int:
        """Return the parameters that ``lora`` adds: r (c_in k^2 + c_out)."""
        return 0 if self.last else rank * (self.c_in * self.kernel**2 + self.c_out)

    def trained_params(self, mode: str, rank: int) -> int:
        """Return the number of trained parameters in a mode."""
        if mode == "train" or self.last:
            return self.n_params
        return {"norm": self._n_channel_params, "lora": self.lora_params(rank)}.get(mode, 0)


@dataclass(frozen=True)
class Part:
    """Neck or heads in one mode: records layers on a tape as the mode trains them.

    Attributes:
        mode: see the module.
        rank: rank of ``lora``.
        lean: True if frozen layers are lean, see `backbone.lean_layers`.
    """

    mode: str = "train"
    rank: int = 8
    lean: bool = True

    @property
    def lean_relus(self) -> bool:
        """True if a ReLU keeps a bit per value: no trained layer behind it keeps its result anyway."""
        return self.lean and self.mode not in ("train", "lora")

    def trains(self, last: bool) -> bool:
        """Return whether the weights of a layer are trained."""
        return last or self.mode == "train"

    def conv(
        self,
        tape: Tape,
        x: ShapeTensor,
        c_out: int,
        k: int,
        stride: int = 1,
        *,
        key: str = "",
        bias: bool = True,
        last: bool = False,
    ) -> ShapeTensor:
        """Record a convolution; ``key`` names parameters that several calls share."""
        if self.trains(last):
            return tape.conv(x, c_out, k, stride, bias=bias, key=key)
        opened = bias and self.mode == "norm"
        out = tape.conv(x, c_out, k, stride, trained=False, bias=opened, lean=self.lean, key=key)
        if self.mode != "lora":
            return out
        low = tape.conv(x, self.rank, k, stride, key=key and f"{key}.A")
        return tape.add(out, tape.conv(low, c_out, 1, key=key and f"{key}.B"), inplace=True)

    def linear(self, tape: Tape, x: ShapeTensor, c_out: int, *, last: bool = False) -> ShapeTensor:
        """Record a linear layer with bias."""
        if self.trains(last):
            return tape.linear(x, c_out)
        out = tape.linear(x, c_out, trained=False, bias=self.mode == "norm")
        if self.mode != "lora":
            return out
        low = tape.linear(x, self.rank, bias=False)
        return tape.add(out, tape.linear(low, c_out, bias=False), inplace=True)

    def batch_norm(self, tape: Tape, x: ShapeTensor, key: str) -> ShapeTensor:
        """Record a BatchNorm2d; a frozen lean one keeps the scale of each channel."""
        if self.mode in ("train", "norm"):
            return tape.batch_norm(x, key=key)
        return tape.op(x.shape, x, save=[] if self.lean else [x])

    def group_norm(self, tape: Tape, x: ShapeTensor, key: str) -> ShapeTensor:
        """Record a GroupNorm of torchvision; its backward pass reads its input, frozen or not."""
        return tape.group_norm(x, key=key, stock=True, trained=self.mode in ("train", "norm"))

    def relu(self, tape: Tape, x: ShapeTensor, *, inplace: bool = True, before_last: bool = False) -> ShapeTensor:
        """Record a ReLU; ``before_last``: its result is the input of a last layer, which keeps it."""
        return tape.relu(x, inplace=inplace, lean=self.lean_relus and not before_last)


def count_params(layers: Sequence[LayerShape]) -> int:
    """Return the parameters of layers as the detector is built, before a mode adds any."""
    return sum(layer.n_params for layer in layers)


def count_trained(layers: Sequence[LayerShape], part: Part) -> int:
    """Return the parameters of layers that a part's mode trains."""
    return sum(layer.trained_params(part.mode, part.rank) for layer in layers)


def count_values(layers: Sequence[LayerShape], part: Part) -> int:
    """Return all values of layers: parameters, with those that ``lora`` adds, and statistics of norms."""
    added = sum(layer.lora_params(part.rank) for layer in layers) if part.mode == "lora" else 0
    return count_params(layers) + added + sum(2 * layer.c_out for layer in layers if layer.statistics)
