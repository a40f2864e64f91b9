"""Bytes that PyTorch's caching allocator reserves in a training process, by simulation.

As in a trial (`trial.run`, `trial.engine`): the weights, a method's look at the data, then two steps of the worst
batch, each with an update by AdamW, and a batch of evaluation. Further steps repeat the second (2, 3, 4 and 6 steps
gave the same peak). Standard library only.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from cst_search.memory.allocator import Block, CachingAllocator

_STEPS = 2


@dataclass(frozen=True)
class Process:
    """Allocations of a training process.

    Attributes:
        weights: bytes of each parameter and buffer.
        trained: bytes of each trained parameter.
        passes: traces (`autograd.Recorder`) of the forward and backward passes before each update. What a trace leaves
            allocated, images and gradients, lives until the update.
        start: trace of a pass before the optimiser exists; empty: none.
        evaluation: trace of a batch that is evaluated; empty: none is.
    """

    weights: Sequence[int]
    trained: Sequence[int]
    passes: Sequence[Sequence[int]]
    start: Sequence[int] = ()
    evaluation: Sequence[int] = ()

    def reserved_bytes(self, *, expandable: bool, workspace_bytes: int) -> int:
        """Return the bytes that the allocator reserves.

        Args:
            expandable: True for expandable segments, see `allocator`.
            workspace_bytes: of cuBLAS, in each of the two threads that multiply.
        """
        run = _Run(CachingAllocator(expandable=expandable), workspace_bytes)
        run.allocate(self.weights)
        run.free(run.replay(self.start))
        for step in range(_STEPS):
            left: list[Block] = []
            for trace in self.passes:
                left += run.replay(trace)
            run.update(self.trained, is_first=step == 0)
            run.free(left)
        run.free(run.replay(self.evaluation))
        return run.allocator.reserved_bytes


class _Run:
    """Process at work on an allocator."""

    def __init__(self, allocator: CachingAllocator, workspace_bytes: int) -> None:
        self.allocator, self._workspace_bytes = allocator, workspace_bytes
        self._n_workspaces = 0

    def allocate(self, sizes: Iterable[int]) -> list[Block]:
        return [self.allocator.allocate(size) for size in sizes]

    def free(self, blocks: Iterable[Block]) -> None:
        for block in blocks:
            self.allocator.free(block)

    def replay(self, trace: Sequence[int]) -> list[Block]:
        """Run a trace; return the blocks that it leaves allocated, without cuBLAS's workspaces."""
        blocks: list[Block | None] = [None] * len(trace)
        following = [*trace[1:], 0]
        allocate, free, n_multiplied = self.allocator.allocate, self.allocator.free, 0
        for position, event in enumerate(trace):
            if event > 0:
                if following[position] == ~position:
                    self.allocator.touch(event)
                else:
                    blocks[position] = allocate(event)
            elif event < 0:
                block, blocks[~event] = blocks[~event], None
                if block is not None:
                    free(block)
            else:
                n_multiplied += 1
                if n_multiplied > self._n_workspaces:
                    self._n_workspaces = n_multiplied
                    allocate(self._workspace_bytes)
        return [block for block in blocks if block is not None]

    def update(self, trained: Sequence[int], *, is_first: bool) -> None:
        """Update by AdamW (foreach): two states of each parameter, made at the first update, and one temporary list."""
        if is_first:
            self.allocate(size for size in trained for _ in range(2))
        self.free(self.allocate(trained))
