"""Simulation of PyTorch's caching allocator: bytes reserved for a sequence of allocations. Standard library only.

Follows c10/cuda/CUDACachingAllocator.cpp (torch 2.11, one stream, no limit, default settings), in its terms:

* Requests are rounded up to 512 bytes. Those of up to 1 MiB come from the small pool, others from the large pool.
* A request takes the smallest free block of its pool that is large enough (best fit) and splits off the rest. Adjacent
  free blocks are merged.
* Where no block is large enough, a pool reserves more. With expandable segments it has one segment, which grows at its
  end by pages of 2 MiB (small pool) or 20 MiB (large). Native segments are separate: 2 MiB in the small pool; in the
  large pool 20 MiB for requests below 10 MiB, and the request rounded up to 2 MiB above.
* Of a native block in the large pool a rest of up to 1 MiB is not split off, and counts as allocated.

Nothing is returned to the device: the allocator does that only when it runs out of memory.
"""

from __future__ import annotations

import os
import platform
import sys
from bisect import bisect_left, insort
from collections.abc import Mapping

_MIB = 2**20
MIN_BLOCK_BYTES = 512  # kMinBlockSize
_SMALL_BYTES = _MIB  # kSmallSize
_SMALL_BUFFER_BYTES = 2 * _MIB  # kSmallBuffer
_LARGE_BUFFER_BYTES = 20 * _MIB  # kLargeBuffer
_MIN_LARGE_BYTES = 10 * _MIB  # kMinLargeAlloc
_ROUND_LARGE_BYTES = 2 * _MIB  # kRoundLarge
# free blocks are sorted by size, then address: both in one integer, addresses below this
_ADDRESSES = 2**60

# environment variables that configure the allocator; torch 2.9 and later read the second too
CONFIG_VARIABLES = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")
EXPANDABLE = "expandable_segments:True"


def can_expand_segments() -> bool:
    """Return whether trials use expandable segments on this platform, unless the environment configures it.

    Windows has none. Under WSL a refused allocation can then raise another error. Where CUDA does not run (macOS), a
    prediction is for Linux.
    """
    return sys.platform != "win32" and "microsoft" not in platform.release().lower()


def expands_segments(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether trials started from here use expandable segments: as configured, else where they can."""
    for name in CONFIG_VARIABLES:
        if name in environ:
            return EXPANDABLE.lower() in environ[name].lower().replace(" ", "")
    return can_expand_segments()


class Block:
    """Part of a segment, allocated or free; ``previous`` and ``next`` are its neighbours in the segment."""

    __slots__ = ("address", "is_free", "next", "pool", "previous", "size")

    def __init__(self, pool: _Pool, address: int, size: int) -> None:
        self.pool, self.address, self.size, self.is_free = pool, address, size, False
        self.previous: Block | None = None
        self.next: Block | None = None


class _Pool:
    """Small or large pool: its free blocks.

    Attributes:
        split_bytes: smallest rest of a block that is split off.
        page_bytes: bytes by which an expandable segment grows.
        last: last block of the expandable segment.
    """

    __slots__ = ("by_key", "free", "last", "page_bytes", "split_bytes")

    def __init__(self, split_bytes: int, page_bytes: int) -> None:
        self.split_bytes, self.page_bytes = split_bytes, page_bytes
        self.free: list[int] = []
        self.by_key: dict[int, Block] = {}
        self.last: Block | None = None

    def put(self, block: Block) -> None:
        key = block.size * _ADDRESSES + block.address
        block.is_free = True
        insort(self.free, key)
        self.by_key[key] = block

    def take(self, block: Block) -> None:
        key = block.size * _ADDRESSES + block.address
        block.is_free = False
        del self.free[bisect_left(self.free, key)]
        del self.by_key[key]

    def has(self, size: int) -> bool:
        """Return whether a free block has at least ``size`` bytes."""
        return bool(self.free) and self.free[-1] >= size * _ADDRESSES

    def take_best_fit(self, size: int) -> Block | None:
        """Take the smallest free block of at least ``size`` bytes; None: there is none.

        The last block of an expandable segment counts with all that the segment can grow by (get_free_block), so any
        larger block goes before it.
        """
        free, at = self.free, bisect_left(self.free, size * _ADDRESSES)
        if at == len(free):
            return None
        block = self.by_key[free[at]]
        if block is self.last and at + 1 < len(free):
            at += 1
            block = self.by_key[free[at]]
        block.is_free = False
        del self.by_key[free[at]], free[at]
        return block


class CachingAllocator:
    """Caching allocator of one GPU.

    Attributes:
        reserved_bytes: bytes of all segments; they never shrink, so this is the peak.
    """

    def __init__(self, *, expandable: bool) -> None:
        self.expandable, self.reserved_bytes = expandable, 0
        self._small = _Pool(MIN_BLOCK_BYTES, _SMALL_BUFFER_BYTES)
        self._large = _Pool(MIN_BLOCK_BYTES if expandable else _SMALL_BYTES + 1, _LARGE_BUFFER_BYTES)

    def allocate(self, nbytes: int) -> Block:
        """Allocate at least one byte."""
        size = -(-nbytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES
        pool = self._small if size <= _SMALL_BYTES else self._large
        block = pool.take_best_fit(size)
        if block is None:
            block = self._extend(pool, size) if self.expandable else self._new_segment(pool, size)
        rest = block.size - size
        if rest >= pool.split_bytes:
            self._split(pool, block, rest)
        return block

    def touch(self, nbytes: int) -> None:
        """Allocate and free at once. Where a block is large enough, that leaves all as it was."""
        size = -(-nbytes // MIN_BLOCK_BYTES) * MIN_BLOCK_BYTES
        if not (self._small if size <= _SMALL_BYTES else self._large).has(size):
            self.free(self.allocate(nbytes))

    def free(self, block: Block) -> None:
        """Free an allocated block and merge it with free neighbours."""
        pool, before, behind = block.pool, block.previous, block.next
        if before is not None and before.is_free:
            pool.take(before)
            before.size += block.size
            _join(before, behind)
            if pool.last is block:
                pool.last = before
            block = before
        if behind is not None and behind.is_free:
            pool.take(behind)
            block.size += behind.size
            _join(block, behind.next)
            if pool.last is behind:
                pool.last = block
        pool.put(block)

    def _split(self, pool: _Pool, block: Block, rest: int) -> None:
        block.size -= rest
        remaining = Block(pool, block.address + block.size, rest)
        _join(remaining, block.next)
        _join(block, remaining)
        if pool.last is block:
            pool.last = remaining
        pool.put(remaining)

    def _new_segment(self, pool: _Pool, size: int) -> Block:
        if pool is self._small:
            nbytes = _SMALL_BUFFER_BYTES
        elif size < _MIN_LARGE_BYTES:
            nbytes = _LARGE_BUFFER_BYTES
        else:
            nbytes = -(-size // _ROUND_LARGE_BYTES) * _ROUND_LARGE_BYTES
        block = Block(pool, self.reserved_bytes, nbytes)
        self.reserved_bytes += nbytes
        return block

    def _extend(self, pool: _Pool, size: int) -> Block:
        """Grow the pool's segment until its last block, if free, has ``size`` bytes; return this block."""
        last = pool.last
        if last is None or not last.is_free:
            end = 0 if last is None else last.address + last.size
            block = Block(pool, end, 0)
            if last is not None:
                _join(last, block)
            pool.last = block
        else:
            block = last
            pool.take(block)
        grown = -(-(size - block.size) // pool.page_bytes) * pool.page_bytes
        block.size += grown
        self.reserved_bytes += grown
        return block


def _join(block: Block, behind: Block | None) -> None:
    block.next = behind
    if behind is not None:
        behind.previous = block
