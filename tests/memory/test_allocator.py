"""The simulated caching allocator: cases worked out by hand from CUDACachingAllocator.cpp, and its rules at random."""

from __future__ import annotations

import itertools
import random

import pytest

from cst_search.memory import allocator as module
from cst_search.memory.allocator import Block, CachingAllocator, expands_segments
from cst_search.memory.reserved import Process
from cst_search.memory.tape import Tape

MIB = 2**20
kinds = pytest.mark.parametrize("expandable", [True, False], ids=["expandable", "native"])


def reserved(expandable: bool, *sizes: int) -> int:
    """Bytes reserved for allocations that all live."""
    allocator = CachingAllocator(expandable=expandable)
    for size in sizes:
        allocator.allocate(size)
    return allocator.reserved_bytes


@pytest.mark.parametrize(
    ("why", "sizes", "native", "expandable"),
    [
        ("nothing", (), 0, 0),
        ("one byte takes a page of the small pool", (1,), 2 * MIB, 2 * MIB),
        ("two of 1 MiB fill it", (MIB, MIB), 2 * MIB, 2 * MIB),
        ("512 bytes more do not fit", (MIB, MIB, 1), 4 * MIB, 4 * MIB),
        ("1 MiB is small, one byte more is large", (MIB, MIB + 1), 22 * MIB, 22 * MIB),
        ("below 10 MiB a native segment has 20 MiB", (9 * MIB, 9 * MIB), 20 * MIB, 20 * MIB),
        ("from there on what is asked, by 2 MiB", (10 * MIB, 11 * MIB), 22 * MIB, 40 * MIB),
        ("large ones of their own, or one after the other by pages", (30 * MIB, 30 * MIB), 60 * MIB, 60 * MIB),
        ("an expandable segment goes on where it ended", (50 * MIB + 1, 9 * MIB), 72 * MIB, 60 * MIB),
    ],
)
def test_reserved_bytes(why: str, sizes: tuple[int, ...], native: int, expandable: int) -> None:
    assert (reserved(False, *sizes), reserved(True, *sizes)) == (native, expandable)


def test_a_native_rest_of_up_to_1_mib_is_not_split_off() -> None:
    """19 of 20 MiB: the last MiB stays with the block in a native segment, and is free in an expandable one."""
    for expandable, size in ((False, 20 * MIB), (True, 19 * MIB)):
        allocator = CachingAllocator(expandable=expandable)
        allocator.allocate(5 * MIB)
        block = allocator.allocate(14 * MIB)
        assert allocator.reserved_bytes == 20 * MIB and block.size == size - 5 * MIB


@kinds
def test_the_smallest_block_that_is_large_enough_is_taken(expandable: bool) -> None:
    allocator = CachingAllocator(expandable=expandable)
    blocks = [allocator.allocate(size * MIB) for size in (40, 2, 24, 2, 60, 2)]
    before = allocator.reserved_bytes
    for i in (0, 2, 4):
        allocator.free(blocks[i])
    assert allocator.allocate(22 * MIB).address == blocks[2].address
    assert allocator.allocate(22 * MIB).address == blocks[0].address
    assert allocator.reserved_bytes == before


def test_the_end_of_an_expandable_segment_is_used_last() -> None:
    allocator = CachingAllocator(expandable=True)
    first, wall = allocator.allocate(15 * MIB), allocator.allocate(2 * MIB)  # 3 MiB are left at the end
    allocator.free(first)
    assert allocator.allocate(2 * MIB).address == first.address
    assert wall.address == 15 * MIB and allocator.reserved_bytes == 20 * MIB


@kinds
def test_neighbours_that_are_free_become_one(expandable: bool) -> None:
    allocator = CachingAllocator(expandable=expandable)
    blocks = [allocator.allocate(6 * MIB) for _ in range(3)]
    for i in (0, 2, 1):
        allocator.free(blocks[i])
    assert allocator.allocate(18 * MIB).address == 0 and allocator.reserved_bytes == 20 * MIB


@kinds
@pytest.mark.parametrize("seed", range(3))
def test_live_blocks_never_overlap_and_everything_can_be_freed(expandable: bool, seed: int) -> None:
    rng, allocator, live = random.Random(seed), CachingAllocator(expandable=expandable), dict[int, Block]()
    for i in range(2000):
        if live and rng.random() < 0.5:
            allocator.free(live.pop(rng.choice(sorted(live))))
        else:
            size = rng.choice([1, 600, 2**16, 900_000, 3 * MIB, 12 * MIB, 50 * MIB])
            live[i] = block = allocator.allocate(size)
            assert size <= block.size <= size + (512 if expandable or size <= MIB else MIB + 512)
        for small in (True, False):
            here = sorted((b.address, b.size) for b in live.values() if (b.pool is allocator._small) == small)
            assert all(a + size <= b for (a, size), (b, _) in itertools.pairwise(here))
    most = allocator.reserved_bytes
    for block in live.values():
        allocator.free(block)
    free = [block for pool in (allocator._small, allocator._large) for block in pool.by_key.values()]
    assert sum(block.size for block in free) == most == allocator.reserved_bytes
    assert len(free) == 2 or not expandable  # one segment in each pool, whole again


@kinds
def test_to_touch_is_to_allocate_and_free_at_once(expandable: bool) -> None:
    rng = random.Random(0)
    touched, plain = (CachingAllocator(expandable=expandable) for _ in range(2))
    live: dict[CachingAllocator, list[Block]] = {touched: [], plain: []}
    for _ in range(400):
        size, at = rng.choice((300, 9000, MIB, 3 * MIB, 25 * MIB)), rng.randrange(9)
        touched.touch(size)
        plain.free(plain.allocate(size))
        for allocator, blocks in live.items():
            if at < len(blocks):
                allocator.free(blocks.pop(at))
            blocks.append(allocator.allocate(size // 2))
        assert touched.reserved_bytes == plain.reserved_bytes
        assert touched._small.free == plain._small.free and touched._large.free == plain._large.free


# --- a process -------------------------------------------------------------------------------------------------------


def test_a_trace_has_every_allocation_its_end_and_the_first_multiplications() -> None:
    trace: list[int] = []
    tape = Tape(trace=trace)
    x = tape.tensor(1, 5)
    y = tape.linear(x, 3)
    tape.linear(y, 3)
    assert trace == [20, 0, 12, 12, ~3]  # the second result is dropped at once
    del x
    tape.backward()
    assert trace.count(0) == 2 and tape.peak > 0  # once more in autograd's thread
    tape.trace = None
    n = len(trace)
    del y
    assert len(trace) == n


def test_images_and_gradients_live_until_the_update_and_states_ever_after() -> None:
    process = Process(weights=[8 * MIB], trained=[8 * MIB], passes=[[8 * MIB, 8 * MIB]])
    # weight, image, gradient, two states and a temporary of 8 MiB each, in pages of 20
    assert process.reserved_bytes(expandable=True, workspace_bytes=0) == 60 * MIB
    without = Process(weights=[8 * MIB], trained=[], passes=[[8 * MIB, ~0, 8 * MIB]])
    assert without.reserved_bytes(expandable=True, workspace_bytes=0) == 20 * MIB


def test_cublas_keeps_its_workspaces() -> None:
    def needed(*passes: list[int]) -> int:
        return Process([], [], passes).reserved_bytes(expandable=True, workspace_bytes=20 * MIB)

    assert needed([0]) == needed([0], [0]) == 20 * MIB  # allocated once
    assert needed([0, 0]) == 40 * MIB
    assert needed([0, 40 * MIB, ~1]) == 60 * MIB


# --- which way -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "platform", "release", "environ", "expands"),
    [
        ("Linux", "linux", "6.1.0", {}, True),
        ("WSL", "linux", "5.15.153.1-microsoft-standard-WSL2", {}, False),
        ("Windows", "win32", "10", {}, False),
        ("no CUDA there: a prediction for another machine", "darwin", "24.0.0", {}, True),
        ("configured", "linux", "6.1.0", {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:False"}, False),
        ("configured, but not this", "linux", "6.1.0", {"PYTORCH_ALLOC_CONF": "max_split_size_mb:64"}, False),
        ("turned on", "linux", "x-microsoft", {"PYTORCH_ALLOC_CONF": "a:1, expandable_segments: true"}, True),
        ("set to nothing", "linux", "6.1.0", {"PYTORCH_CUDA_ALLOC_CONF": ""}, False),
    ],
)
def test_segments_are_expandable_where_trials_make_them_so(
    monkeypatch: pytest.MonkeyPatch, why: str, platform: str, release: str, environ: dict[str, str], expands: bool
) -> None:
    monkeypatch.setattr(module.sys, "platform", platform)
    monkeypatch.setattr(module.platform, "release", lambda: release)
    assert expands_segments(environ) is expands
