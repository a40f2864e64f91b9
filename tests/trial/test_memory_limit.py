"""What a limit sets and restores, and which exceptions mean that memory ran out."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cst_search.errors import ConfigError
from cst_search.trial import memory_limit as module
from cst_search.trial.memory_limit import MemoryLimit, memory_limit

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
GB = 10**9
only_linux = pytest.mark.skipif(not module.CPU_IS_LIMITED, reason="only Linux limits the memory of a CPU process")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of 10 GB as far as a limit sees it: what was called, and how often memory was refused."""
    seen = SimpleNamespace(fractions=[], n_emptied=0, n_refused=0, reserved=0)

    def empty() -> None:
        seen.n_emptied += 1

    def get_fraction(device: int) -> float:
        assert device == 3  # as torch: a device without a number is refused
        return 0.9

    def set_fraction(fraction: float, device: int) -> None:
        assert device == 3
        seen.fractions.append(fraction)

    for name, function in {
        "get_device_properties": lambda device: SimpleNamespace(total_memory=10 * GB),
        "current_device": lambda: 3,
        "get_per_process_memory_fraction": get_fraction,
        "set_per_process_memory_fraction": set_fraction,
        "memory_stats": lambda device: {"num_ooms": seen.n_refused},
        "max_memory_reserved": lambda device: seen.reserved,
        "empty_cache": empty,
    }.items():
        monkeypatch.setattr(torch.cuda, name, function, raising=False)
    return seen


# --- a GPU ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "fraction"),
    [
        (5_500_000_000, 0.55),
        (10 * GB, 1.0),
        (80 * GB, 1.0),  # more than there is: torch takes a fraction up to 1
        (1, 1e-10),
    ],
)
def test_the_allocator_is_bound_and_freed_again(gpu: SimpleNamespace, limit: int, fraction: float) -> None:
    with memory_limit(CUDA, limit) as held:
        assert gpu.fractions == [pytest.approx(fraction)]
        assert gpu.n_emptied == 1  # what an earlier trial left in the cache counts otherwise
        assert (held.kind, held.limit_bytes) == ("allocator", limit)
        gpu.reserved = 123
    assert gpu.fractions[1:] == [0.9]  # what was in force before
    gpu.reserved = 456
    assert held.peak_bytes() == 123  # while it was in force


def test_it_is_restored_whatever_happens_and_once(gpu: SimpleNamespace) -> None:
    with pytest.raises(KeyboardInterrupt), memory_limit(torch.device("cuda:3"), GB) as held:
        held.lift()
        raise KeyboardInterrupt
    assert gpu.fractions == [0.1, 0.9]


def test_an_older_torch_cannot_say_what_was_in_force(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.cuda, "get_per_process_memory_fraction")
    with memory_limit(CUDA, GB):
        pass
    assert gpu.fractions == [0.1, 1.0]


def test_without_a_limit_nothing_is_set_and_the_peak_is_known(gpu: SimpleNamespace) -> None:
    with memory_limit(CUDA, None) as held:
        gpu.reserved = 77
    assert (gpu.fractions, gpu.n_emptied, held.kind, held.limit_bytes, held.peak_bytes()) == ([], 0, "none", None, 77)


# --- what means that memory ran out ---------------------------------------------------------------------------------

MIB = 2**20
CPU_TEXT = (
    "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory: "
    "you tried to allocate 2097152 bytes. Error code 12 (Cannot allocate memory)"
)
CUDA_TEXT = "CUDA out of memory. Tried to allocate 20.50 MiB. GPU 0 has a total capacity of 10.00 GiB"


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


REFUSALS: list[tuple[str, torch.device, Exception, int | None]] = [
    # why, device, exception, bytes asked for
    ("torch's own type", CUDA, torch.OutOfMemoryError(CUDA_TEXT), round(20.5 * MIB)),
    ("its message over several lines", CUDA, torch.OutOfMemoryError(CUDA_TEXT + "\nSee documentation"), 21495808),
    ("outside the allocator", CUDA, RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"), None),
    ("a cuBLAS handle", CUDA, RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"), None),
    ("cuDNN 9", CUDA, RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), None),
    ("a tensor on a CPU", CPU, RuntimeError(CPU_TEXT), 2 * MIB),
    ("C++'s own, through torch", CPU, RuntimeError("std::bad_alloc"), None),
    ("Python's own", CPU, MemoryError(), None),
    ("numpy's", CPU, MemoryError("Unable to allocate 7.50 GiB for an array with shape (1000000000,)"), 8053063680),
    ("a fork", CPU, OSError(errno.ENOMEM, "Cannot allocate memory"), None),
    ("a file that is mapped", CPU, RuntimeError("unable to mmap 5 bytes from <x>: Cannot allocate memory (12)"), None),
    ("a reader wraps it", CPU, caused(ConfigError("x cannot be read"), RuntimeError(CPU_TEXT)), 2 * MIB),
    (
        "a loader process had it",
        CPU,
        RuntimeError(f"Caught RuntimeError in DataLoader worker process 0.\nOriginal ...:\nRuntimeError: {CPU_TEXT}"),
        2 * MIB,
    ),
]  # fmt: skip
OTHERS: list[tuple[str, torch.device, Exception]] = [
    ("a bug", CPU, RuntimeError("mat1 and mat2 shapes cannot be multiplied")),
    ("a user's error", CPU, ConfigError("out of memory is not a method")),
    ("words alone", CPU, ValueError("std::bad_alloc")),
    ("another error of the system", CPU, OSError(errno.ENOENT, "No such file or directory")),
    ("another CUDA error", CUDA, RuntimeError("CUDA error: an illegal memory access was encountered")),
    # the host's memory is not what a GPU's budget is about
    ("the host's memory, of a trial on a GPU", CUDA, MemoryError()),
    ("likewise, by torch", CUDA, RuntimeError(CPU_TEXT)),
    # may have another cause, and memory was not at its end
    ("oneDNN, for another reason", CPU, RuntimeError("could not create a primitive")),
    ("cuDNN, for another reason", CUDA, RuntimeError("GET was unable to find an engine to execute this computation")),
]


@pytest.mark.parametrize(("why", "device", "error", "asked"), REFUSALS, ids=[row[0] for row in REFUSALS])
def test_errors_that_mean_out_of_memory(
    gpu: SimpleNamespace, why: str, device: torch.device, error: Exception, asked: int | None
) -> None:
    found = MemoryLimit(device, None).refusal(error)  # also where no limit is set: it is what it is
    assert found is not None and found.asked_bytes == asked
    assert found.reason and "\n" not in found.reason


@pytest.mark.parametrize(("why", "device", "error"), OTHERS, ids=[row[0] for row in OTHERS])
def test_other_errors_do_not_count_as_out_of_memory(
    gpu: SimpleNamespace, why: str, device: torch.device, error: Exception
) -> None:
    assert MemoryLimit(device, None).refusal(error) is None


def test_the_line_that_says_it_is_the_reason(gpu: SimpleNamespace) -> None:
    found = [MemoryLimit(device, None).refusal(error) for _, device, error, _ in REFUSALS]
    assert [r.reason for r in found[1:2] + found[-1:]] == [CUDA_TEXT, f"RuntimeError: {CPU_TEXT}"]  # type: ignore[union-attr]


def test_cudnn_counts_when_the_allocator_refused_something(gpu: SimpleNamespace) -> None:
    limit = MemoryLimit(CUDA, None)
    gpu.n_refused += 1
    assert limit.refusal(RuntimeError("GET was unable to find an engine to execute this computation")) is not None
    assert limit.refusal(RuntimeError("a bug")) is None


@pytest.mark.parametrize(
    ("why", "peak", "runs_out"),
    [("all of it was used", 100 * MIB, True), ("near enough", 99 * MIB, True), ("half was left", 50 * MIB, False)],
)
def test_onednn_counts_when_the_process_was_at_its_end(
    monkeypatch: pytest.MonkeyPatch, why: str, peak: int, runs_out: bool
) -> None:
    monkeypatch.setattr(module, "CPU_IS_LIMITED", True)
    monkeypatch.setattr(MemoryLimit, "peak_bytes", lambda self: peak)
    found = MemoryLimit(CPU, 100 * MIB).refusal(RuntimeError("could not create a primitive"))
    assert (found is not None) == runs_out


def test_an_exception_that_is_its_own_context_ends_the_search() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__context__, second.__context__ = second, first
    assert MemoryLimit(CPU, None).refusal(first) is None


# --- a CPU ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "now", "grown"),
    [
        ("nothing happened", (100, 300, 300), 0),
        ("it grew and stays", (150, 350, 350), 50),
        ("it grew and gave back", (110, 310, 390), 90),
        ("below an older peak, of which nothing is known", (110, 280, 300), 10),
        ("it shrank", (90, 290, 300), 0),
    ],
)
def test_the_peak_of_a_process(why: str, now: tuple[int, int, int], grown: int) -> None:
    names = ("VmData", "VmSize", "VmPeak")
    before = dict(zip(names, (100, 300, 300), strict=True))
    assert module._grown(before, dict(zip(names, now, strict=True))) == grown


PROCESS = """
import resource, torch
import numpy as np
from cst_search.trial.memory_limit import memory_limit, process_memory
torch.set_num_threads(2)
cpu, MB = torch.device("cpu"), 10**6
soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
def tried(make):
    with memory_limit(cpu, 100 * MB) as limit:
        bound = resource.getrlimit(resource.RLIMIT_DATA)
        assert bound[1] == hard and 0 <= process_memory()["VmData"] + 100 * MB - bound[0] < MB
        kept = torch.ones(40 * MB // 4)
        try:
            make()
        except Exception as error:
            refusal = limit.refusal(error)
            assert resource.getrlimit(resource.RLIMIT_DATA) == (soft, hard)
            assert refusal is not None, error
            kind = MemoryError if isinstance(error, MemoryError) else type(error)
            print(kind.__name__, refusal.asked_bytes, round(limit.peak_bytes() / MB))
    assert resource.getrlimit(resource.RLIMIT_DATA) == (soft, hard)
tried(lambda: torch.empty(70 * MB, dtype=torch.uint8))
tried(lambda: np.empty(70 * MB, dtype=np.uint8))
tried(lambda: bytearray(70 * MB))
def given_back():
    torch.ones(50 * MB, dtype=torch.uint8)
    torch.empty(70 * MB, dtype=torch.uint8)
tried(given_back)
with memory_limit(cpu, 100 * MB) as limit:
    torch.ones(80 * MB, dtype=torch.uint8)  # less than before in this process
assert 80 <= limit.peak_bytes() / MB < 82, limit.peak_bytes()
torch.empty(300 * MB, dtype=torch.uint8)
lower = process_memory()["VmData"] + 30 * MB
resource.setrlimit(resource.RLIMIT_DATA, (lower, hard))
with memory_limit(cpu, 100 * MB):
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == lower  # somebody else's limit is not raised
assert resource.getrlimit(resource.RLIMIT_DATA) == (lower, hard)
"""


@only_linux
def test_a_process_is_bound_and_freed_again() -> None:
    """In a process of its own: a limit binds every thread of one."""
    environment = os.environ | {"MALLOC_ARENA_MAX": "1"}
    done = subprocess.run([sys.executable, "-c", PROCESS], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows] == ["RuntimeError", "MemoryError", "MemoryError", "RuntimeError"]
    assert [row[1] for row in rows] == ["70000000", "70044877", "None", "70000000"]  # numpy says 66.8 MiB
    assert [int(row[2]) for row in rows] == [pytest.approx(40, abs=1)] * 3 + [pytest.approx(90, abs=1)]


def test_systems_without_a_cpu_limit_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_IS_LIMITED", False)
    with memory_limit(CPU, GB) as held:
        assert (held.kind, held.limit_bytes, held.peak_bytes()) == ("none", None, None)
        assert str(held) == "memory is not limited, which on a CPU only Linux can do"


def test_memory_limit_describes_itself(gpu: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CPU_IS_LIMITED", True)
    assert str(MemoryLimit(CUDA, 5_500_000_000)) == "torch may hold at most 5.5 GB"
    assert str(MemoryLimit(CPU, 300_000_000)) == "the process may grow by at most 300 MB"
    assert str(MemoryLimit(CPU, None)) == "memory is not limited"


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_is_above_zero(limit: int) -> None:
    with pytest.raises(ConfigError, match=f"must be above 0 bytes; got {limit}"):
        MemoryLimit(CPU, limit)


def test_a_process_that_has_ended_has_no_memory(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert module.process_memory(process.pid) == {}


def test_no_error_text_belongs_to_two_kinds() -> None:
    kinds: list[tuple[str, ...]] = [module._HOST, module._DEVICE, module._HOST_MAYBE, module._DEVICE_MAYBE]
    texts = [text for kind in kinds for text in kind]
    contains: Callable[[str, str], bool] = lambda a, b: a != b and a in b  # noqa: E731
    assert len(set(texts)) == len(texts) and not any(contains(a, b) for a in texts for b in texts)
