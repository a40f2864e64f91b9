"""Operations of a detector as shapes: their results, tensors kept for the backward pass, and temporaries.

Each fact about PyTorch is stated where it is used; tests/memory/test_estimate.py checks the whole against autograd on a
CPU. Standard library only.
"""

from __future__ import annotations

from collections.abc import Sequence

from cst_search.memory.autograd import Allocation, Recorder, ShapeTensor


class Tape(Recorder):
    """Recorder with the operations of a detector; ``live`` and ``peak`` are bytes. Arguments as in `Recorder`."""

    def cast(self, x: ShapeTensor, width: int) -> ShapeTensor:
        """Convert to another dtype; nothing is kept."""
        return x if x.width == width else self.op(x.shape, x, width=width)

    def weight_cast(self, n: int, trained: bool, key: str = "") -> list[Allocation]:
        """Return autocast's copy of a weight of n values; copies of trained weights live for the whole forward pass."""
        if not self.half:
            return []
        if not trained or self._again is not None:
            return [Allocation(self, 2 * n)]
        key = key or str(len(self._casts))
        if key not in self._casts:
            self._casts[key] = Allocation(self, 2 * n)
        return [self._casts[key]]

    def conv(
        self,
        x: ShapeTensor,
        c_out: int,
        k: int,
        stride: int = 1,
        *,
        trained: bool = True,
        bias: bool = False,
        groups: int = 1,
        lean: bool = False,
        key: str = "",
    ) -> ShapeTensor:
        """Record a padded convolution: it keeps its input (unless lean) and, under autocast, the copy of its weight.

        Args:
            trained: True if the weight is trained; a lean convolution is frozen.
            bias: True if a bias is trained; a frozen one takes part in nothing.
        """
        b, c_in, h, w = x.shape
        n = c_out * (c_in // groups) * k * k
        if self.half:
            x = self.cast(x, 2)
        copies = self.weight_cast(n, trained, key)
        lean = lean and not trained
        save: list[ShapeTensor | Allocation] = [] if lean else [x, *copies]
        params = 4 * ((n if trained else 0) + (c_out if bias else 0))
        shape = (b, c_out, -(-h // stride), -(-w // stride))
        self.flops += 2 * n * b * shape[2] * shape[3]
        copies_bytes = self._copies(x, shape)
        return self.op(
            shape,
            x,
            save=save,
            params=params,
            key=key,
            # under autocast the weight's gradient comes in two bytes first; a lean one casts its weight again
            transient=(2 * n if self.half and (trained or lean) else 0) + copies_bytes,
            transient_forward=copies_bytes,
        )

    def _copies(self, x: ShapeTensor, shape: tuple[int, int, int, int]) -> int:
        """Return the bytes of a convolution's workspace in the forward pass; in the backward pass it is as large."""
        b, c_out, h, w = shape
        return x.nbytes + b * c_out * h * w * x.width if self.conv_copies else 0

    def lora_conv(self, x: ShapeTensor, c_out: int, k: int, stride: int, rank: int) -> ShapeTensor:
        """Record a convolution with weight W + s * view(B A), summed at every step: it keeps its input and the sum."""
        b, c_in, h, w = x.shape
        n = c_out * c_in * k * k
        if self.half:
            x = self.cast(x, 2)
        n_low = rank * k * (c_in * k + c_out * k)
        low = self.weight_cast(n_low, True)  # A and B, which their product keeps
        product = Allocation(self, (2 if self.half else 4) * n)
        scaled = Allocation(self, product.nbytes)
        del product
        weight = Allocation(self, 4 * n)
        del scaled
        kept = Allocation(self, 2 * n) if self.half else weight
        shape = (b, c_out, -(-h // stride), -(-w // stride))
        self.flops += 2 * n * rank * k + 2 * n * b * shape[2] * shape[3]  # B A, then the convolution
        copies_bytes = self._copies(x, shape)
        return self.op(
            shape,
            x,
            save=[x, kept, *low],
            params=4 * n_low,
            transient=4 * n + copies_bytes,  # with the gradient of the sum
            transient_forward=copies_bytes,
            multiplies=True,
        )

    def side_block(self, kind: str, norm: str, x: ShapeTensor) -> ShapeTensor:
        """Mirror `petl.modules.layers.make_block`."""
        c, bias = x.shape[1], norm == "none"
        if kind == "depthwise":
            x = self.conv(x, c, 3, groups=c, bias=bias)
        elif kind == "bottleneck":
            inner = max(1, c // 4)
            x = self.conv(self.conv(x, inner, 1, bias=bias), inner, 3, bias=bias)
        return self.relu(self.norm(norm, self.conv(x, c, 3 if kind == "3x3" else 1, bias=bias)))

    def linear(self, x: ShapeTensor, c_out: int, *, trained: bool = True, bias: bool = True) -> ShapeTensor:
        """Record a linear layer: it keeps the copy of its weight and, if its weight is trained, its input.

        Args:
            bias: True if a bias is trained.
        """
        b, c_in = x.shape
        n = c_out * c_in
        if self.half:
            x = self.cast(x, 2)
        copies = self.weight_cast(n, trained)
        self.flops += 2 * n * b
        return self.op(
            (b, c_out),
            x,
            save=[x, *copies] if trained else copies,
            params=4 * ((n if trained else 0) + (c_out if bias else 0)),
            transient=2 * n if self.half and trained else 0,
            multiplies=True,
        )

    def frozen_norm(self, x: ShapeTensor, fused: bool = False) -> ShapeTensor:
        """Record ``x * scale + shift``, both constant: two results, the first freed at once; it keeps the scale.

        Args:
            fused: True for `backbone.lean_layers.constant_batch_norm`, which has one result and keeps buffers alone.
        """
        if fused:
            return self.op(x.shape, x)
        scale = [] if x.node is None else [Allocation(self, x.shape[1] * x.width)]
        return self.op(x.shape, self.op(x.shape, x, save=scale), passes=True)

    def open_norm(self, x: ShapeTensor, weight: bool, fused: bool = False) -> ShapeTensor:
        """Record a `frozen_norm` with a trained shift; ``weight``: a trained scale too, whose gradient needs x."""
        c = x.shape[1]
        if fused:
            return self.op(x.shape, x, save=[x] if weight else [], params=8 * c if weight else 4 * c)
        scale = Allocation(self, c * x.width)
        if not weight:
            scaled = self.op(x.shape, x, save=[scale])
        else:  # the scale is the weight times the inverse deviation, which it keeps
            scaled = self.op(x.shape, x, save=[x, scale, Allocation(self, 4 * c)], params=4 * c, transient=x.nbytes)
        del scale
        return self.op(x.shape, scaled, passes=True, params=4 * c)

    def batch_norm(self, x: ShapeTensor, key: str = "") -> ShapeTensor:
        """Record a BatchNorm2d: it keeps its input."""
        return self.op(x.shape, x, save=[x], params=8 * x.shape[1], key=key)

    def group_norm(self, x: ShapeTensor, key: str = "", stock: bool = False, trained: bool = True) -> ShapeTensor:
        """Record a GroupNorm: it keeps its input. Autocast on CUDA runs the stock one in fp32."""
        if stock and self.half and "group_norm" in self.fp32_ops:
            x = self.cast(x, 4)
        return self.op(x.shape, x, save=[x], params=8 * x.shape[1] if trained else 0, key=key)

    def norm(self, kind: str, x: ShapeTensor) -> ShapeTensor:
        """Record a norm that a method adds, see `petl.modules.layers.make_norm`."""
        if kind == "bn":
            self.norm_channels.append(x.shape[1])
            return self.batch_norm(x)
        return x if kind == "none" else self.group_norm(x)

    def relu(self, x: ShapeTensor, inplace: bool = True, lean: bool = False) -> ShapeTensor:
        """Record a ReLU: it keeps its result; a lean one keeps a bit per value (packing it takes three bytes)."""
        if not lean or not (self.recording and x.node is not None):
            return self.op(x.shape, x, alias=inplace, save_out=True)
        n = x.numel
        bits = Allocation(self, -(-n // 8))
        return self.op(x.shape, x, alias=inplace, save=[bits], transient=x.nbytes + n, transient_forward=3 * n)

    def add(self, a: ShapeTensor, b: ShapeTensor, inplace: bool = False) -> ShapeTensor:
        """Record a sum of two tensors: it keeps nothing."""
        return self.op(a.shape, a, b, alias=inplace, passes=a.width == b.width)

    def pointwise(
        self, *inputs: ShapeTensor, save: Sequence[ShapeTensor] = (), save_out: bool = False, width: int = 0
    ) -> ShapeTensor:
        """Record an elementwise operation; ``save`` and ``save_out`` as in `op`."""
        return self.op(inputs[0].shape, *inputs, save=save, save_out=save_out, width=width)

    def split(self, x: ShapeTensor, at_once: int) -> list[ShapeTensor]:
        """Return views of ``at_once`` images each; their gradients live until the last, then a new one joins them."""
        b, *rest = x.shape
        if at_once >= b:
            return [x]
        piece = x.nbytes * at_once // b
        whole = self.op(x.shape, x, alias=True, transient=x.nbytes - piece)
        sizes = [min(at_once, b - first) for first in range(0, b, at_once)]
        views = [self.op((n, *rest), whole, alias=True, passes=True) for n in sizes]
        for view, n in zip(views, sizes, strict=True):
            if view.node is not None:
                view.node.edges = [(view.node.edges[0][0], x.nbytes * n // b)]
        return views

    def cat(self, parts: Sequence[ShapeTensor], shape: tuple[int, ...]) -> ShapeTensor:
        """Record a concatenation; the gradients of the parts are views of the result's."""
        return self.op(shape, *parts, passes=True)

    def stack(self, parts: Sequence[ShapeTensor]) -> ShapeTensor:
        """Record a concatenation along the batch; a single part is returned as it is."""
        if len(parts) == 1:
            return parts[0]
        return self.cat(parts, (sum(part.shape[0] for part in parts), *parts[0].shape[1:]))
