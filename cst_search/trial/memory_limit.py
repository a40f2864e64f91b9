"""A bound on the memory that a piece of work may take, and what counts as running out of it. Needs torch alone.

On a GPU the caching allocator refuses what would pass the bound (`torch.cuda.set_per_process_memory_fraction`), give or
take the page of 20 MiB by which its segments grow (5 MB over were seen on an H100). It counts all that torch holds, in
use or cached, but neither the CUDA context nor what libraries take by themselves (pytorch#58466): who has a budget for
the whole process takes the context off first.

On a CPU under Linux (4.7 or later) it is the process's RLIMIT_DATA, set to what it holds now plus the bound. The kernel
counts the heap and every private writable mapping, so all tensors, but also thread stacks; it counts neither shared
mappings (the cache of decoded images) nor what is only read (code, mapped files). The bound is on the process:
whatever else runs in it can be refused memory too, so a search gives a trial a process of its own
(`isolated_process`). On other systems a CPU's memory is not limited: macOS accepts RLIMIT_DATA and ignores it.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from cst_search.errors import ConfigError
from cst_search.units import format_bytes

CPU_IS_LIMITED = sys.platform == "linux" and os.path.exists("/proc/self/status")

# what a refused allocation is called, where the type of the exception does not tell
_HOST = ("DefaultCPUAllocator", "std::bad_alloc", "Cannot allocate memory")
_DEVICE = (
    "CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
)  # fmt: skip
# What may have another cause, and counts only when memory was at its end. oneDNN names no reason when it cannot have
# memory for a kernel's code: of 80 such refusals (three detectors, 128 and 320 px, limits drawn at random) each came
# with at most 0.26 MB left at the peak. A thread needs 8 MiB for its stack. cuDNN gives up when no algorithm could have
# its workspace.
_HOST_MAYBE = ("could not create a primitive", "could not execute a primitive", "failed to map segment", "new thread")
_HOST_NEAR_BYTES = 12 * 2**20
_DEVICE_MAYBE = ("unable to find an engine to execute", "valid cuDNN algorithm")
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) (bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass(frozen=True)
class Refusal:
    """An allocation that was refused: the line that says so, and the bytes asked for where it names them."""

    reason: str
    asked_bytes: int | None


class MemoryLimit:
    """What `memory_limit` has in force.

    Attributes:
        kind: ``allocator`` (of the GPU), ``process`` (a CPU's), or ``none``: nothing is enforced.
        limit_bytes: None where nothing is enforced.
    """

    def __init__(self, device: torch.device, limit_bytes: int | None) -> None:
        if limit_bytes is not None and limit_bytes < 1:
            raise ConfigError(f"a memory limit must be above 0 bytes; got {limit_bytes}")
        self.device, self.kind, self.limit_bytes = device, "none", limit_bytes
        if device.type == "cuda":
            self.kind = "none" if limit_bytes is None else "allocator"
            self._n_refused = _n_refused(device)
        elif limit_bytes is not None and CPU_IS_LIMITED:
            self.kind = "process"
        self._is_in_vain = self.kind == "none" and limit_bytes is not None
        if self.kind == "none":
            self.limit_bytes = None
        self._undo: list[Any] = []  # what was in force before
        self._before: dict[str, int] = {}
        self._peak: int | None = None  # at the end
        self._filler: mmap.mmap | None = None

    def __str__(self) -> str:
        if self.kind == "none":
            return "memory is not limited" + (", which on a CPU only Linux can do" if self._is_in_vain else "")
        what = "torch may hold at most" if self.kind == "allocator" else "the process may grow by at most"
        return f"{what} {format_bytes(self.limit_bytes)}"

    def peak_bytes(self) -> int | None:
        """The most that was held of what is limited, while the limit was in force; None where nothing is measured.

        On a GPU it is measured without a limit too, from the last `torch.cuda.reset_peak_memory_stats` on.
        """
        if self._peak is None and self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device)
        if self._peak is None and self.kind == "process":
            return min(_grown(self._before, process_memory()), self.limit_bytes or 0)
        return self._peak

    def refusal(self, error: BaseException) -> Refusal | None:
        """What was refused, if an exception means that memory ran out; None: it means something else.

        Lifts the limit first: what comes after needs memory itself.
        """
        self.lift()
        seen: set[int] = set()
        current: BaseException | None = error
        while current is not None and id(current) not in seen:  # a reader wraps what it caught
            seen.add(id(current))
            if (line := self._line(current)) is not None:
                asked = _ASKED.search(line)
                return Refusal(line, round(float(asked[1]) * _UNITS[asked[2].lower()]) if asked else None)
            current = current.__cause__ or current.__context__
        return None

    def _line(self, error: BaseException) -> str | None:
        """The line of the message that says that memory ran out."""
        lines = str(error).splitlines() or [type(error).__name__]
        if isinstance(error, torch.OutOfMemoryError):
            return lines[0]
        if not isinstance(error, RuntimeError | MemoryError | OSError | ImportError):
            return None
        on_gpu = self.device.type == "cuda"
        # on a GPU the host's memory is not what is limited, and says nothing about the device's
        sure, maybe = (_DEVICE, _DEVICE_MAYBE) if on_gpu else (_HOST, _HOST_MAYBE)
        if not on_gpu and (isinstance(error, MemoryError) or getattr(error, "errno", None) == errno.ENOMEM):
            return next((line for line in reversed(lines) if line.strip()), type(error).__name__)
        found = next((line for line in lines if any(text in line for text in sure)), None)
        if found is None and self._is_at_its_end():
            found = next((line for line in lines if any(text in line for text in maybe)), None)
        return found

    def _is_at_its_end(self) -> bool:
        if self.device.type == "cuda":
            return _n_refused(self.device) > self._n_refused
        return self.kind == "process" and (self.peak_bytes() or 0) >= (self.limit_bytes or 0) - _HOST_NEAR_BYTES

    # --- in force -----------------------------------------------------------------------------------------------------

    def enforce(self) -> None:
        if self.kind == "allocator":
            # these take no device without a number, as the others do
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            get = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # newer than set_...
            self._undo = [(get(index) if get is not None else 1.0, index)]
            torch.cuda.empty_cache()  # of what is only cached nothing is kept from before
            total = torch.cuda.get_device_properties(self.device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, (self.limit_bytes or 0) / total), index)
        elif self.kind == "process":
            import resource

            _start_threads()
            self._filler = _fill(process_memory())
            old = resource.getrlimit(resource.RLIMIT_DATA)
            self._undo, self._before = [old], process_memory()
            bounds = [bound for bound in old if bound != resource.RLIM_INFINITY]
            soft = min([self._before["VmData"] + (self.limit_bytes or 0), *bounds])
            resource.setrlimit(resource.RLIMIT_DATA, (soft, old[1]))

    def lift(self) -> None:
        """Restore what was before. A second call does nothing."""
        if not self._undo:
            return
        old = self._undo.pop()
        if self.kind == "allocator":
            torch.cuda.set_per_process_memory_fraction(*old)
        else:
            import resource

            resource.setrlimit(resource.RLIMIT_DATA, old)
        self._peak = self.peak_bytes()
        if self._filler is not None:
            self._filler.close()


@contextmanager
def memory_limit(device: torch.device, limit_bytes: int | None) -> Iterator[MemoryLimit]:
    """Hold the block to ``limit_bytes`` more than a CPU process has, or to as much in a GPU's allocator; None: not.

    The soft limit only, and what was in force before is restored, however the block ends.
    """
    limit = MemoryLimit(device, limit_bytes)
    limit.enforce()
    try:
        yield limit
    finally:
        limit.lift()


def process_memory(pid: int | str = "self") -> dict[str, int]:
    """Bytes of VmData, VmSize and VmPeak of a Linux process; empty when it has ended. See proc_pid_status(5)."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file if line.startswith(("VmData:", "VmSize:", "VmPeak:"))]
    except OSError:
        return {}
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, _ in lines}


def _grown(before: dict[str, int], now: dict[str, int]) -> int:
    """The most by which VmData was above what it was, from two `process_memory`.

    Linux keeps the peak of the whole address space only. What it has lost since is private memory given back, for the
    rest (code, shared maps) hardly shrinks; it is known only once the peak is a new one. glibc trims each new arena by
    64 MB, which passes for memory given back: with MALLOC_ARENA_MAX=1, as in `isolated_process`, there is none.
    """
    lost = now["VmPeak"] - now["VmSize"] if now["VmPeak"] > before["VmPeak"] else 0
    return max(0, now["VmData"] - before["VmData"] + lost)


def _fill(now: dict[str, int]) -> mmap.mmap | None:
    """Bring the address space back to its peak, so that whatever comes makes a new one: see `_grown`.

    A mapping without any access costs nothing and does not count as data. Making a thread leaves 64 MB to fill.
    """
    gap = now["VmPeak"] - now["VmSize"]
    try:
        return mmap.mmap(-1, gap, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0) if gap else None
    except OSError:
        return None


def _start_threads() -> None:
    """Have torch's threads made now, so that their stacks count as what was there before."""
    torch.zeros(torch.get_num_threads() * 2**16).add_(1)  # 2**15 elements are torch's least share of one thread


def _n_refused(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0))
