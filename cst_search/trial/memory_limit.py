"""Limit the memory of a block of code, and recognise the errors that mean out of memory. Needs torch alone.

On a GPU the caching allocator refuses allocations beyond the limit (`torch.cuda.set_per_process_memory_fraction`). The
limit is exact up to the page of 20 MiB by which segments grow (5 MB above it were seen on an H100). It covers all that
torch holds, in use or cached, but neither the CUDA context nor memory that libraries allocate themselves
(pytorch#58466). A caller with a budget for the whole process subtracts the context first.

On a CPU under Linux (4.7 or later) the limit is the process's RLIMIT_DATA, set to its current usage plus the limit. The
kernel counts the heap and every private writable mapping, hence all tensors, but also thread stacks. It counts neither
shared mappings (the cache of decoded images) nor read-only ones (code, mapped files). The limit covers the process, so
anything else that runs in it can be refused memory too; a search therefore gives each trial its own process
(`isolated_process`). Other systems do not limit a CPU's memory: macOS accepts RLIMIT_DATA and ignores it.
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

# messages of refused allocations whose exception type is not specific
_HOST = ("DefaultCPUAllocator", "std::bad_alloc", "Cannot allocate memory")
_DEVICE = (
    "CUDA out of memory", "CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED",
    "DEVICE_ALLOCATION_FAILED",
)  # fmt: skip
# Messages that may have another cause: they count only if memory was nearly exhausted. oneDNN names no reason when it
# gets no memory for a kernel's code: in each of 80 such refusals (three detectors, 128 and 320 px, random limits) at
# most 0.26 MB were left at the peak. A thread needs 8 MiB for its stack. cuDNN gives up if no algorithm gets its
# workspace.
_HOST_MAYBE = ("could not create a primitive", "could not execute a primitive", "failed to map segment", "new thread")
_HOST_NEAR_BYTES = 12 * 2**20
_DEVICE_MAYBE = ("unable to find an engine to execute", "valid cuDNN algorithm")
_ASKED = re.compile(r"(?:tried|unable) to allocate ([\d.]+) (bytes|[KMGT]iB)", re.IGNORECASE)
_UNITS = {"bytes": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "tib": 2**40}


@dataclass(frozen=True)
class Refusal:
    """A refused allocation: the line of the message that reports it, and the requested bytes if it names them."""

    reason: str
    asked_bytes: int | None


class MemoryLimit:
    """The limit that a `memory_limit` block enforces.

    Attributes:
        kind: ``allocator`` (on a GPU), ``process`` (on a CPU), or ``none`` if nothing is enforced.
        limit_bytes: the limit; None if nothing is enforced.
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
        self._undo: list[Any] = []  # the settings before the block
        self._before: dict[str, int] = {}
        self._peak: int | None = None  # set when the limit is lifted
        self._filler: mmap.mmap | None = None

    def __str__(self) -> str:
        if self.kind == "none":
            return "memory is not limited" + (", which on a CPU only Linux can do" if self._is_in_vain else "")
        what = "torch may hold at most" if self.kind == "allocator" else "the process may grow by at most"
        return f"{what} {format_bytes(self.limit_bytes)}"

    def peak_bytes(self) -> int | None:
        """Return the peak in bytes of the limited memory while the limit was in force; None if it is not measured.

        On a GPU it is measured even without a limit, since the last `torch.cuda.reset_peak_memory_stats`.
        """
        if self._peak is None and self.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.device)
        if self._peak is None and self.kind == "process":
            return min(_grown(self._before, process_memory()), self.limit_bytes or 0)
        return self._peak

    def refusal(self, error: BaseException) -> Refusal | None:
        """Return the refused allocation if an exception means out of memory, else None.

        Lifts the limit first, because handling the error needs memory too.
        """
        self.lift()
        seen: set[int] = set()
        current: BaseException | None = error
        while current is not None and id(current) not in seen:  # an image reader wraps the exception that it caught
            seen.add(id(current))
            if (line := self._line(current)) is not None:
                asked = _ASKED.search(line)
                return Refusal(line, round(float(asked[1]) * _UNITS[asked[2].lower()]) if asked else None)
            current = current.__cause__ or current.__context__
        return None

    def _line(self, error: BaseException) -> str | None:
        """Return the line of the message that reports out of memory, or None."""
        lines = str(error).splitlines() or [type(error).__name__]
        if isinstance(error, torch.OutOfMemoryError):
            return lines[0]
        if not isinstance(error, RuntimeError | MemoryError | OSError | ImportError):
            return None
        on_gpu = self.device.type == "cuda"
        # on a GPU the host's memory is not limited, and says nothing about the device's
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

    # --- enforcement -------------------------------------------------------------------------------------------------

    def enforce(self) -> None:
        if self.kind == "allocator":
            # unlike others, these functions need a device with an index
            index = torch.cuda.current_device() if self.device.index is None else self.device.index
            get = getattr(torch.cuda, "get_per_process_memory_fraction", None)  # newer than set_...
            self._undo = [(get(index) if get is not None else 1.0, index)]
            torch.cuda.empty_cache()  # memory cached by earlier work must not count
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
        """Restore the settings from before the block. A second call does nothing."""
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
    """Limit the memory of a block: on a CPU the growth of the process, on a GPU the allocator's total. None: no limit.

    Sets the soft limit only. The previous setting is restored however the block ends.
    """
    limit = MemoryLimit(device, limit_bytes)
    limit.enforce()
    try:
        yield limit
    finally:
        limit.lift()


def process_memory(pid: int | str = "self") -> dict[str, int]:
    """Return VmData, VmSize and VmPeak of a Linux process in bytes; empty if it has ended. See proc_pid_status(5)."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            lines = [line.split() for line in file if line.startswith(("VmData:", "VmSize:", "VmPeak:"))]
    except OSError:
        return {}
    return {name.rstrip(":"): int(kib) * 1024 for name, kib, _ in lines}


def _grown(before: dict[str, int], now: dict[str, int]) -> int:
    """Return the peak growth of VmData in bytes between two results of `process_memory`.

    Linux records the peak of the whole address space only. Its decrease since then is private memory that was freed,
    because the rest (code, shared mappings) hardly shrinks. The result is valid only if the peak is a new one. glibc
    trims each new arena by 64 MB, which looks like freed memory; MALLOC_ARENA_MAX=1, as in `isolated_process`,
    prevents that.
    """
    lost = now["VmPeak"] - now["VmSize"] if now["VmPeak"] > before["VmPeak"] else 0
    return max(0, now["VmData"] - before["VmData"] + lost)


def _fill(now: dict[str, int]) -> mmap.mmap | None:
    """Map the address space up to its peak, so that any growth makes a new peak: see `_grown`.

    A mapping without access rights costs nothing and does not count as data. Creating a thread leaves 64 MB to fill.
    """
    gap = now["VmPeak"] - now["VmSize"]
    try:
        return mmap.mmap(-1, gap, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0) if gap else None
    except OSError:
        return None


def _start_threads() -> None:
    """Create torch's threads now, so that their stacks count as memory in use before the limit."""
    torch.zeros(torch.get_num_threads() * 2**16).add_(1)  # torch gives a thread at least 2**15 elements


def _n_refused(device: torch.device) -> int:
    return int(torch.cuda.memory_stats(device).get("num_ooms", 0))
