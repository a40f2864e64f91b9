"""A training step in shapes alone: which tensors live when, by arithmetic.

A `Tape` replays what eager PyTorch does with memory: an operation makes a tensor, autograd keeps some of what it read
or made, names go out of scope, and the backward pass walks the operations in reverse, making gradients and letting go
of what was kept. Nothing is computed. Storages are freed by Python's own reference counts, as PyTorch's are, so code
that is written like the model's (`training_step.py`) frees its temporaries where the model does. Standard library only.

What an operation keeps is a fact about PyTorch; each is stated where it is used, and tests/memory/test_estimate.py
checks the whole against autograd on a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

T = TypeVar("T")


class Storage:
    """Bytes that live as long as something refers to them."""

    __slots__ = ("nbytes", "shared", "tape")

    def __init__(self, tape: Tape, nbytes: int) -> None:
        if tape.block > 1:
            nbytes = -(-nbytes // tape.block) * tape.block
        self.tape, self.nbytes, self.shared = tape, nbytes, False
        tape.live += nbytes
        if tape.live > tape.peak:
            tape.peak = tape.live

    def __del__(self) -> None:
        self.tape.live -= self.nbytes


class Tensor:
    """A shape over a storage.

    Attributes:
        shape: as in PyTorch.
        width: bytes of a value.
        node: the operation that made it, if a gradient will be asked for.
    """

    __slots__ = ("node", "shape", "storage", "width")

    def __init__(self, storage: Storage, shape: tuple[int, ...], width: int, node: Node | None = None) -> None:
        self.storage, self.shape, self.width, self.node = storage, shape, width, node

    @property
    def numel(self) -> int:
        n = 1
        for size in self.shape:
            n *= size
        return n

    @property
    def nbytes(self) -> int:
        return self.numel * self.width


class Node:
    """An operation that the backward pass will visit."""

    __slots__ = ("edges", "frame", "grad", "key", "params", "passes", "saved", "slots", "transient")

    def __init__(self) -> None:
        self.edges: list[tuple[Node, int]] = []  # who made the inputs, and the bytes of their gradients
        self.saved: list[Storage] = []
        self.grad: Storage | None = None
        self.passes = False  # the gradient goes on as it is (a sum, a view)
        self.params = 0  # bytes of the gradients of parameters that are made here
        self.key = ""  # the name of those parameters, where they are shared
        self.transient = 0  # further bytes while the operation's backward runs
        self.frame: _Frame | None = None
        self.slots: list[int] = []


class _Frame:
    """A recomputed part: its inputs are kept, by the closure, and what it saves is not."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function, self.n_slots = function, 0
        self.found: list[Storage | None] | None = None


class _Stop(Exception):
    pass


class Tape:
    """Live and peak bytes of one step, relative to what was there when it began.

    Args:
        half: autocast to a type of two bytes.
        fp32_ops: operations that autocast runs in four bytes; they differ between devices.
        block: storages are rounded up to multiples of this (CUDA's allocator: 512 bytes).
        adds_up: gradients of parameters are there already (accumulation), and what is made is added to them.
        drops: gradients of parameters are dropped as soon as they are made.
        sums_in_place: several gradients of one tensor are added up in the first of them, where nothing else holds it.
            (Autograd makes a new tensor of every sum while a dispatch mode watches it.)
        conv_copies: convolutions take a workspace as large as what they read and make. cuDNN's kernels for tensor
            cores want channels last, and copy what is not. (Fitted on an H100, docs/memory.md; not documented.)

    Attributes:
        multiplies: matrices were multiplied outside of convolutions: cuBLAS is there.
    """

    def __init__(
        self,
        *,
        half: bool = False,
        fp32_ops: frozenset[str] = frozenset(),
        block: int = 1,
        adds_up: bool = False,
        drops: bool = False,
        sums_in_place: bool = True,
        conv_copies: bool = False,
    ) -> None:
        self.conv_copies, self.multiplies = conv_copies, False
        self.half, self.fp32_ops, self.block = half, fp32_ops, block
        self.adds_up, self.drops, self.sums_in_place = adds_up, drops, sums_in_place
        self.live = self.peak = 0
        self.recording = True  # grad mode
        self._nodes: list[Node] = []
        self._frame: _Frame | None = None
        self._again: _Frame | None = None
        self._casts: dict[
            str, Storage
        ] = {}  # autocast's copies of trained weights, kept until the forward pass is over
        self._grads: dict[str, Storage] = {}  # of parameters

    # --- recording ----------------------------------------------------------------------------------------------------

    def tensor(self, *shape: int, width: int = 4) -> Tensor:
        n = width
        for size in shape:
            n *= size
        return Tensor(Storage(self, n), shape, width)

    @contextlib.contextmanager
    def no_grad(self, on: bool = True) -> Iterator[None]:
        before, self.recording = self.recording, self.recording and not on
        try:
            yield
        finally:
            self.recording = before

    def op(
        self,
        shape: tuple[int, ...],
        *inputs: Tensor,
        save: Sequence[Tensor | Storage] = (),
        save_out: bool = False,
        width: int = 0,
        alias: bool = False,
        passes: bool = False,
        params: int = 0,
        key: str = "",
        transient: int = 0,
        transient_forward: int = 0,
    ) -> Tensor:
        """Record an operation.

        Args:
            shape: of the result.
            save: what autograd keeps of the inputs, if a gradient will be asked for; ``save_out`` adds the result.
            width: of the result; 0: the widest of the inputs.
            alias: the result is in the storage of the first input (in place, or a view).
            passes: the gradient of each input is the result's, not a new tensor.
            params: bytes of parameters that are trained here.
            key: their name, where several operations share them; their gradients are then added up in one place.
            transient: bytes that live beside the gradients while the backward of this operation runs.
            transient_forward: bytes that live beside inputs and result while it runs.
        """
        node = None
        if self.recording and (params or any(t.node is not None for t in inputs)):
            node = Node()
            self._keep(node, save)
        width = width or max(t.width for t in inputs)
        if alias:
            storage = inputs[0].storage
        else:
            n = width
            for size in shape:
                n *= size
            storage = Storage(self, n)
        if transient_forward:
            Storage(self, transient_forward)
        out = Tensor(storage, shape, width, node)
        if node is not None:
            if save_out:
                self._keep(node, (out,))
            node.edges = [(t.node, t.nbytes) for t in inputs if t.node is not None]
            node.passes, node.params, node.key, node.transient = passes, params, key, transient
            if self._again is None:
                self._nodes.append(node)
        return out

    def _keep(self, node: Node, tensors: Sequence[Tensor | Storage]) -> None:
        if not tensors:
            return
        storages = [t if isinstance(t, Storage) else t.storage for t in tensors]
        if self._again is not None:
            self._again.found.extend(storages)  # type: ignore[union-attr]
            if len(self._again.found) >= self._again.n_slots:  # type: ignore[arg-type]
                raise _Stop
        elif self._frame is not None:
            node.frame = self._frame
            node.slots.extend(range(self._frame.n_slots, self._frame.n_slots + len(storages)))
            self._frame.n_slots += len(storages)
        else:
            node.saved.extend(storages)

    def recompute(self, function: Callable[[], T]) -> T:
        """Run a function, keep only what its closure holds (torch.utils.checkpoint, the form that is not reentrant)."""
        if not self.recording:
            return function()
        assert self._frame is None and self._again is None, "recomputed parts do not nest"
        self._frame = _Frame(function)
        try:
            return function()
        finally:
            self._frame = None

    def _run_again(self, frame: _Frame) -> None:
        frame.found, self._again = [], frame
        recording, self.recording = self.recording, True
        with contextlib.suppress(_Stop):
            frame.function()
        self._again, self.recording = None, recording

    # --- the backward pass --------------------------------------------------------------------------------------------

    def end_forward(self) -> None:
        """Leave autocast, which lets go of its copies of weights."""
        self._casts.clear()

    def backward(self) -> None:
        """Walk back from the last operation. Gradients of parameters live as long as the tape."""
        self.recording = False
        if self._nodes:
            self._nodes[-1].grad = Storage(self, 4)
        while self._nodes:
            node = self._nodes.pop()
            grad = node.grad
            if grad is None:
                continue
            if node.slots:
                frame = node.frame
                assert frame is not None
                if frame.found is None:
                    self._run_again(frame)
                node.saved.extend(frame.found[slot] for slot in node.slots)  # type: ignore[index, misc]
                for slot in node.slots:
                    frame.found[slot] = None  # type: ignore[index]
                del frame
            beside = Storage(self, node.transient) if node.transient else None
            mine: Storage | None = None
            made = self._make_grads(node) if node.params and not self.half else None
            if node.passes and len(node.edges) > 1:
                grad.shared = True
            for target, nbytes in node.edges:
                mine = grad if node.passes else Storage(self, nbytes)
                if target.grad is None:
                    target.grad = mine
                elif target.grad.shared or not self.sums_in_place:
                    target.grad = Storage(self, nbytes)
                mine = None
            # an operation's gradient and what it kept live until it is done
            node.saved, node.frame, node.grad, node.edges = [], None, None, []
            del grad
            if node.params and self.half:  # cast from the gradients in two bytes, which are `beside`
                made = self._make_grads(node)
            del beside, made
        self.recording = True

    def _make_grads(self, node: Node) -> Storage:
        """The gradients of a node's parameters, or more of them where others share the parameters."""
        mine = Storage(self, node.params)
        if self.drops:
            return mine
        key = node.key or str(len(self._grads))
        if key not in self._grads:
            if node.key or not self.adds_up:
                self._grads[key] = mine
        elif not self.sums_in_place:
            self._grads[key] = Storage(self, node.params)
        return mine

    # --- operations ---------------------------------------------------------------------------------------------------

    def cast(self, x: Tensor, width: int) -> Tensor:
        """To another type; nothing is kept."""
        return x if x.width == width else self.op(x.shape, x, width=width)

    def weight_cast(self, n: int, trained: bool, key: str = "") -> list[Storage]:
        """Autocast's copy of a weight of n values; that of a trained one stays for the whole forward pass."""
        if not self.half:
            return []
        if not trained or self._again is not None:
            return [Storage(self, 2 * n)]
        key = key or str(len(self._casts))
        if key not in self._casts:
            self._casts[key] = Storage(self, 2 * n)
        return [self._casts[key]]

    def conv(
        self,
        x: Tensor,
        c_out: int,
        k: int,
        stride: int = 1,
        *,
        trained: bool = True,
        bias: bool = False,
        groups: int = 1,
        lean: bool = False,
        key: str = "",
    ) -> Tensor:
        """A padded convolution: keeps its input (a lean one does not) and, under autocast, the copy of its weight."""
        b, c_in, h, w = x.shape
        n = c_out * (c_in // groups) * k * k
        if self.half:
            x = self.cast(x, 2)
        copies = self.weight_cast(n, trained, key)
        lean = lean and not trained
        save: list[Tensor | Storage] = [] if lean else [x, *copies]
        params = 4 * (n + (c_out if bias else 0)) if trained else 0
        shape = (b, c_out, -(-h // stride), -(-w // stride))
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

    def _copies(self, x: Tensor, shape: tuple[int, int, int, int]) -> int:
        """Bytes of a convolution's workspace, going forward; going back its gradients are as large."""
        b, c_out, h, w = shape
        return x.nbytes + b * c_out * h * w * x.width if self.conv_copies else 0

    def lora_conv(self, x: Tensor, c_out: int, k: int, stride: int, rank: int) -> Tensor:
        """A convolution with a weight that is summed anew, W + s * view(B A): keeps its input and that sum."""
        b, c_in, h, w = x.shape
        n = c_out * c_in * k * k
        if self.half:
            x = self.cast(x, 2)
        n_low = rank * k * (c_in * k + c_out * k)
        low = self.weight_cast(n_low, True)  # A and B, which their product keeps
        product = Storage(self, (2 if self.half else 4) * n)
        scaled = Storage(self, product.nbytes)
        del product
        weight = Storage(self, 4 * n)
        del scaled
        kept = Storage(self, 2 * n) if self.half else weight
        self.multiplies = True
        shape = (b, c_out, -(-h // stride), -(-w // stride))
        copies_bytes = self._copies(x, shape)
        return self.op(
            shape,
            x,
            save=[x, kept, *low],
            params=4 * n_low,
            transient=4 * n + copies_bytes,  # with the gradient of the sum
            transient_forward=copies_bytes,
        )

    def side_block(self, kind: str, norm: str, x: Tensor) -> Tensor:
        """`petl.layers.make_block`."""
        c, bias = x.shape[1], norm == "none"
        if kind == "depthwise":
            x = self.conv(x, c, 3, groups=c, bias=bias)
        elif kind == "bottleneck":
            inner = max(1, c // 4)
            x = self.conv(self.conv(x, inner, 1, bias=bias), inner, 3, bias=bias)
        return self.relu(self.norm(norm, self.conv(x, c, 3 if kind == "3x3" else 1, bias=bias)))

    def linear(self, x: Tensor, c_out: int) -> Tensor:
        """A trained linear layer with bias: keeps its input."""
        b, c_in = x.shape
        self.multiplies = True
        if self.half:
            x = self.cast(x, 2)
        copies = self.weight_cast(c_out * c_in, True)
        return self.op(
            (b, c_out),
            x,
            save=[x, *copies],
            params=4 * (c_out * c_in + c_out),
            transient=2 * c_out * c_in if self.half else 0,
        )

    def frozen_norm(self, x: Tensor) -> Tensor:
        """``x * scale + shift``, both constant: two results, the first of which goes at once; keeps nothing big."""
        return self.op(x.shape, self.op(x.shape, x), passes=True)

    def open_norm(self, x: Tensor, weight: bool) -> Tensor:
        """The same with a trained shift, and perhaps a trained scale, whose gradient needs the input and a product."""
        c = x.shape[1]
        scaled = self.op(x.shape, x, save=[x] if weight else [], params=4 * c if weight else 0,
                         transient=x.nbytes if weight else 0)  # fmt: skip
        return self.op(x.shape, scaled, passes=True, params=4 * c)

    def batch_norm(self, x: Tensor) -> Tensor:
        """BatchNorm2d: keeps its input."""
        return self.op(x.shape, x, save=[x], params=8 * x.shape[1])

    def group_norm(self, x: Tensor, key: str = "", stock: bool = False) -> Tensor:
        """GroupNorm: keeps its input. The stock one is run in four bytes by autocast on CUDA."""
        if stock and self.half and "group_norm" in self.fp32_ops:
            x = self.cast(x, 4)
        return self.op(x.shape, x, save=[x], params=8 * x.shape[1], key=key)

    def norm(self, kind: str, x: Tensor) -> Tensor:
        """A norm that a method adds, see `petl.layers.make_norm`."""
        return x if kind == "none" else self.batch_norm(x) if kind == "bn" else self.group_norm(x)

    def relu(self, x: Tensor, inplace: bool = True, lean: bool = False) -> Tensor:
        """ReLU: keeps its result; a lean one a bit a value, for which it holds three bytes a value for a moment."""
        if not lean or not (self.recording and x.node is not None):
            return self.op(x.shape, x, alias=inplace, save_out=True)
        n = x.numel
        bits = Storage(self, -(-n // 8))
        return self.op(x.shape, x, alias=inplace, save=[bits], transient=x.nbytes + n, transient_forward=3 * n)

    def add(self, a: Tensor, b: Tensor, inplace: bool = False) -> Tensor:
        """A sum, which keeps nothing."""
        return self.op(a.shape, a, b, alias=inplace, passes=a.width == b.width)

    def pointwise(self, *inputs: Tensor, save: Sequence[Tensor] = (), save_out: bool = False, width: int = 0) -> Tensor:
        """Any operation value by value."""
        return self.op(inputs[0].shape, *inputs, save=save, save_out=save_out, width=width)

    def split(self, x: Tensor, at_once: int) -> list[Tensor]:
        """Views of some images each; their gradients live until the last has come, and are then joined in a new one."""
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

    def cat(self, parts: Sequence[Tensor], shape: tuple[int, ...]) -> Tensor:
        """Concatenated; the gradients of the parts are views of the result's."""
        return self.op(shape, *parts, passes=True)
