"""Replay of eager PyTorch's memory use in shapes alone: arithmetic on the lifetimes of tensors, no computation.

A `Recorder` follows PyTorch: an operation makes a tensor, autograd keeps some of its inputs or its result, names go out
of scope, and the backward pass walks the operations in reverse, making gradients and freeing the kept tensors.
Allocations are freed by Python's reference counts, as in PyTorch, so code that is written like the model's
(`training_step`) frees its temporaries at the same points as the model. Standard library only.

The tensors that an operation keeps are facts about PyTorch. Each fact is stated where it is used, and
tests/memory/test_estimate.py checks the whole against autograd on a CPU.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from math import prod
from typing import TypeVar

T = TypeVar("T")


class Allocation:
    """Bytes of a device that live as long as something refers to them."""

    __slots__ = ("nbytes", "position", "shared", "tape")

    def __init__(self, tape: Recorder, nbytes: int) -> None:
        if tape.block > 1:
            nbytes = -(-nbytes // tape.block) * tape.block
        self.tape, self.nbytes, self.shared = tape, nbytes, False
        live = tape.live = tape.live + nbytes
        if live > tape.peak:
            tape.peak = live
        if tape.trace is not None and nbytes:
            self.position = len(tape.trace)
            tape.trace.append(nbytes)

    def __del__(self) -> None:
        tape = self.tape
        tape.live -= self.nbytes
        if tape.trace is not None and self.nbytes:
            tape.trace.append(~self.position)


class ShapeTensor:
    """Tensor without values: a shape over an `Allocation`.

    Attributes:
        shape: as in PyTorch.
        width: bytes per value.
        node: operation that made the tensor, if a gradient will be needed.
    """

    __slots__ = ("node", "shape", "storage", "width")

    def __init__(self, storage: Allocation, shape: tuple[int, ...], width: int, node: Node | None = None) -> None:
        self.storage, self.shape, self.width, self.node = storage, shape, width, node

    @property
    def numel(self) -> int:
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.width


class Node:
    """Operation that the backward pass will visit."""

    __slots__ = ("edges", "frame", "grad", "key", "multiplies", "params", "passes", "saved", "slots", "transient")

    def __init__(
        self, edges: list[tuple[Node, int]], passes: bool, params: int, key: str, transient: int, multiplies: bool
    ) -> None:
        self.edges = edges  # nodes of the inputs, and the bytes of their gradients
        self.saved: list[Allocation] = []
        self.grad: Allocation | None = None
        self.passes = passes  # the gradient is passed on unchanged (a sum, a view)
        self.params = params  # bytes of the parameter gradients made here
        self.key = key  # name of these parameters if they are shared
        self.transient = transient  # further bytes while the operation's backward runs
        self.multiplies = multiplies  # cuBLAS multiplies matrices in it
        self.frame: _Frame | None = None
        self.slots: list[int] = []


class _Frame:
    """Recomputed part of a step: the closure keeps its inputs; tensors saved inside are not kept."""

    def __init__(self, function: Callable[[], object]) -> None:
        self.function, self.n_slots = function, 0
        self.found: list[Allocation | None] | None = None


class _Stop(Exception):
    pass


class Recorder:
    """Recorder of a step's live and peak bytes, relative to its beginning, by autograd's rules.

    Args:
        half: True for autocast to a dtype of two bytes.
        fp32_ops: operations that autocast runs in four bytes; they differ between devices.
        block: allocation granularity in bytes; sizes are rounded up to its multiples (CUDA's allocator: 512 bytes).
        adds_up: True if gradients of parameters exist already (accumulation); new ones are added to them.
        drops: True if gradients of parameters are dropped as soon as they are made.
        sums_in_place: True if several gradients of one tensor are summed in the first of them, unless something else
            holds it. (Autograd makes a new tensor of every sum while a dispatch mode watches it.)
        conv_copies: True if convolutions take a workspace as large as their input and output together. cuDNN's kernels
            for tensor cores need channels last and copy other layouts. (Fitted on an H100, docs/memory.md; not
            documented.)
        trace: list that is given every event; None: none is. An allocation appends its bytes (above 0), its end appends
            ``~i`` (below 0), i being the index where the allocation was appended; and where cuBLAS multiplies for the
            first time in a thread, forward and backward, there is a 0: it then has its workspace.

    Attributes:
        live, peak: current bytes, and their maximum so far.
        flops: floating-point operations of the convolutions and matrix products of the forward pass so far, two for a
            multiply-add; biases and all other operations are not counted (the convention of
            `torch.utils.flop_counter`).
        norm_channels: channels of each batch norm that a method added so far.
        multiplies: True if matrices were multiplied outside of convolutions, so that cuBLAS has its workspace.
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
        trace: list[int] | None = None,
    ) -> None:
        self.conv_copies, self.multiplies, self.trace = conv_copies, False, trace
        self._multiplied: set[bool] = set()  # whether backward: the threads in which cuBLAS has its workspace
        self._backward = False
        self.half, self.fp32_ops, self.block = half, fp32_ops, block
        self.adds_up, self.drops, self.sums_in_place = adds_up, drops, sums_in_place
        self.live = self.peak = self.flops = 0
        self.norm_channels: list[int] = []
        self.recording = True  # grad mode
        self._nodes: list[Node] = []
        self._frame: _Frame | None = None
        self._again: _Frame | None = None
        self._casts: dict[
            str, Allocation
        ] = {}  # autocast's copies of trained weights, kept until the forward pass is over
        self._grads: dict[str, Allocation] = {}  # gradients of parameters, by key

    @property
    def gradients(self) -> list[int]:
        """Bytes of each gradient of parameters that the tape holds, in the order of the backward pass."""
        return [grad.nbytes for grad in self._grads.values()]

    # --- recording ----------------------------------------------------------------------------------------------------

    def tensor(self, *shape: int, width: int = 4) -> ShapeTensor:
        return ShapeTensor(Allocation(self, prod(shape) * width), shape, width)

    @contextlib.contextmanager
    def no_grad(self, on: bool = True) -> Iterator[None]:
        before, self.recording = self.recording, self.recording and not on
        try:
            yield
        finally:
            self.recording = before

    def multiply(self) -> None:
        """Record a matrix multiplication by cuBLAS."""
        self.multiplies = True
        if self.trace is not None and self._backward not in self._multiplied:
            self._multiplied.add(self._backward)
            self.trace.append(0)

    def op(
        self,
        shape: tuple[int, ...],
        *inputs: ShapeTensor,
        save: Sequence[ShapeTensor | Allocation] = (),
        save_out: bool = False,
        width: int = 0,
        alias: bool = False,
        passes: bool = False,
        params: int = 0,
        key: str = "",
        transient: int = 0,
        transient_forward: int = 0,
        multiplies: bool = False,
    ) -> ShapeTensor:
        """Record an operation.

        Args:
            shape: shape of the result.
            save: tensors that autograd keeps if a gradient will be needed.
            save_out: True if autograd keeps the result too.
            width: bytes per value of the result; 0: that of the widest input.
            alias: True if the result shares the storage of the first input (in place, or a view).
            passes: True if the gradient of each input is the result's, not a new tensor.
            params: bytes of the parameters trained here.
            key: name of parameters that several operations share; their gradients are added up in one place.
            transient: bytes that live beside the gradients while the backward of this operation runs.
            transient_forward: bytes that live beside inputs and result while the operation runs.
            multiplies: True if the operation multiplies matrices outside of convolutions, forward and backward.
        """
        if multiplies:
            self.multiply()
        node = None
        if self.recording:
            edges = [(t.node, t.nbytes) for t in inputs if t.node is not None]
            if edges or params:
                node = Node(edges, passes, params, key, transient, multiplies)
                if save:
                    self._keep(node, save)
        width = width or max([t.width for t in inputs])
        storage = inputs[0].storage if alias else Allocation(self, prod(shape) * width)
        if transient_forward:
            self.touch(transient_forward)
        out = ShapeTensor(storage, shape, width, node)
        if node is not None:
            if save_out:
                self._keep(node, (out,))
            if self._again is None:
                self._nodes.append(node)
        return out

    def touch(self, nbytes: int) -> None:
        """Allocate bytes and release them at once."""
        nbytes = -(-nbytes // self.block) * self.block
        self.peak = max(self.peak, self.live + nbytes)
        if self.trace is not None and nbytes:
            self.trace += (nbytes, ~len(self.trace))

    def _keep(self, node: Node, tensors: Sequence[ShapeTensor | Allocation]) -> None:
        storages = [t if isinstance(t, Allocation) else t.storage for t in tensors]
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
        """Run a function, keeping only what its closure holds (torch.utils.checkpoint, the non-reentrant form)."""
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
        """Leave autocast, which frees its copies of weights."""
        self._casts.clear()

    def backward(self) -> None:
        """Walk back from the last operation. Gradients of parameters live as long as the tape."""
        self.recording, self._backward = False, True
        if self._nodes:
            self._nodes[-1].grad = Allocation(self, 4)
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
            if node.multiplies:
                self.multiply()
            beside = Allocation(self, node.transient) if node.transient else None
            mine: Allocation | None = None
            made = self._make_grads(node) if node.params and not self.half else None
            if node.passes and len(node.edges) > 1:
                grad.shared = True
            for target, nbytes in node.edges:
                mine = grad if node.passes else Allocation(self, nbytes)
                if target.grad is None:
                    target.grad = mine
                elif target.grad.shared or not self.sums_in_place:
                    target.grad = Allocation(self, nbytes)
                mine = None
            # an operation's gradient and its kept tensors live until its backward is done
            node.saved, node.frame, node.grad, node.edges = [], None, None, []
            del grad
            if node.params and self.half:  # cast from the gradients in two bytes, which are `beside`
                made = self._make_grads(node)
            del beside, made
        self.recording, self._backward = True, False

    def _make_grads(self, node: Node) -> Allocation:
        """Return the gradients of a node's parameters; shared parameters add up in one place."""
        mine = Allocation(self, node.params)
        if self.drops:
            return mine
        key = node.key or str(len(self._grads))
        if key not in self._grads:
            if node.key or not self.adds_up:
                self._grads[key] = mine
        elif not self.sums_in_place:
            self._grads[key] = Allocation(self, node.params)
        return mine
