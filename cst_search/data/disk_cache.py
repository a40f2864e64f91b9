"""Disk cache of a node: byte slots in files, shared by all trials and kept between launches.

A *key* identifies everything that its bytes depend on, by content. Each key is one sparse file ``<kind>-<hash>.slots``:

    n words of 8 bytes, one per slot: 0 = empty, else the checksum of its bytes | then the slots, one after the other

* A slot's word is written after its bytes, and every reader verifies the checksum on its first read. So a writer that
  is killed at any moment, two writers of the same slot, or a power failure leave an empty slot at worst.
* All keys of a folder stay within one bound. A key in use counts with the size it may grow to, others with the blocks
  they occupy. The least recently used keys are removed first. A key is in use while a live process holds a shared
  `flock` on it; the kernel releases the lock when the process ends.
* Files are read and written with `pread` and `pwrite`, through the page cache that all processes share. `mmap` read no
  faster (614 kB slots on a busy machine: 1.2 to 1.6 ms, against 1.4), wrote five times slower, and on a full disk
  raises a signal that ends the process instead of an error.
* No disk error ends a trial. If a file cannot be opened, its content is computed; if it cannot be written, nothing is
  kept. One note says so.

This is own code because diskcache took seven times as long to write such a slot and ten times to read one (one file and
one SQLite row per slot), and LMDB seven times to write one (a single writer at a time). Neither removes whole keys by
last use without touching those in use, and a trial must run with torch, torchvision and pycocotools alone.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import time
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cst_search.units import format_bytes

try:
    import fcntl
except ImportError:  # Windows has no flock: nothing is kept
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1  # part of every key; change it with the layout of the files
_WORD = 8
_BLOCK = 4096
_LOCK_SECONDS = 60.0  # a lock is held for some milliseconds, unless its process was stopped
_UNIT = 512  # bytes per unit of st_blocks, on any file system
_MOST_BYTES = 10 * 10**9
_SHARE_OF_DISK = 10  # one part in ten of the free space


@dataclass(frozen=True)
class Cache:
    """Folder and size bound of the disk cache; sent to the workers.

    Attributes:
        n_trials: number of trials expected to share an entry, this one included. Caching pays off that many times.
    """

    folder: Path
    bound_bytes: int
    n_trials: int = 1


def default_bound(folder: Path) -> int:
    """Return the default bound in bytes: 10 GB or a tenth of the free disk space, whichever is less.

    Space that the folder itself occupies counts as free.
    """
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return min(_MOST_BYTES, (shutil.disk_usage(there).free + taken_bytes(folder)) // _SHARE_OF_DISK)


def taken_bytes(folder: Path) -> int:
    """Return the bytes on disk that the keys of a folder occupy."""
    return sum(_taken(path) for path in folder.glob("*.slots")) if folder.is_dir() else 0


def _taken(path: Path) -> int:
    try:
        return path.stat().st_blocks * _UNIT
    except OSError:  # removed in the meantime
        return 0


class Store:
    """A `Cache` opened by one trial.

    Attributes:
        notes: lines for the user, e.g. that the cache is full.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.notes: list[str] = []

    def open(
        self, kind: str, identity: Mapping[str, Any], sizes: Sequence[int], *, partly: bool = False
    ) -> Slots | None:
        """Open the slots of a key, creating its file if needed.

        Args:
            identity: everything that the bytes depend on; ready for JSON.
            sizes: size of each slot in bytes.
            partly: accept only the first slots if not all fit; they then take at most half of the bound.

        Returns:
            The slots, or None if there is no room, or if the folder cannot be used, which becomes a note.
        """
        text = json.dumps([_FORMAT, kind, dict(identity), list(sizes)], sort_keys=True)
        name = f"{kind}-{hashlib.blake2b(text.encode(), digest_size=16).hexdigest()}.slots"
        ends = _ends(sizes)
        try:
            self.cache.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self.cache.folder / "lock"):
                path = self.cache.folder / name
                length = _make_room(self.cache, path, ends, partly)
                if length is None:
                    return None
                return Slots(path, sizes, length, self)
        except OSError as error:
            self.failed(error)
            return None

    def failed(self, error: OSError) -> None:
        line = f"cache off: {self.cache.folder} cannot be used ({error.strerror or error}); nothing is kept"
        if line not in self.notes:
            self.notes.append(line)


class Slots:
    """The slots of one key. Any number of processes may read and write them.

    Attributes:
        n_kept: number of slots with room in the file, counted from the first.
    """

    def __init__(self, path: Path, sizes: Sequence[int], length: int = 0, store: Store | None = None) -> None:
        """Open the file, and grow it to at least ``length`` bytes; it never shrinks."""
        self.path, self.sizes = path, list(sizes)
        self._ends, self._store = _ends(sizes), store
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        weakref.finalize(self, os.close, self._fd)
        _flock(self._fd, shared=True)
        os.utime(self._fd)
        if os.fstat(self._fd).st_size < length:
            os.ftruncate(self._fd, length)
        self.n_kept = int(np.searchsorted(self._ends[1:], os.fstat(self._fd).st_size, side="right"))
        self._is_checked = bytearray(len(self.sizes))
        self._is_writable = True

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.sizes)

    def is_filled(self) -> np.ndarray:
        """Return bool (slots,): True for slots that seem filled. Only `read` verifies them."""
        words = np.zeros(len(self.sizes), np.uint64)
        with contextlib.suppress(OSError):
            os.preadv(self._fd, [words.data], 0)
        return words != 0

    def has(self, i: int) -> bool:
        """Return True if slot i seems filled. Only `read` verifies it."""
        if i >= self.n_kept:
            return False
        try:
            return any(os.pread(self._fd, _WORD, _WORD * i))
        except OSError as error:
            self._failed(error)
            return False

    def read(self, i: int, into: np.ndarray) -> bool:
        """Read slot i into ``into`` (uint8, contiguous, of the slot's size).

        Returns False if the slot is empty; the content of ``into`` is then undefined.
        """
        if i >= self.n_kept:
            return False
        try:
            word = os.pread(self._fd, _WORD, _WORD * i)
            if not any(word) or os.preadv(self._fd, [into.data], int(self._ends[i])) != self.sizes[i]:
                return False
        except OSError as error:
            self._failed(error)
            return False
        if not self._is_checked[i]:
            if word != _checksum(into):
                return False
            self._is_checked[i] = 1
        return True

    def write(self, i: int, data: np.ndarray) -> None:
        """Write ``data`` (uint8, contiguous, of the slot's size) to slot i. All its writers have the same data."""
        if i >= self.n_kept or not self._is_writable:
            return
        assert data.nbytes == self.sizes[i]
        try:
            _write_all(self._fd, data, int(self._ends[i]))
            _write_all(self._fd, np.frombuffer(_checksum(data), np.uint8), _WORD * i)
        except OSError as error:
            self._failed(error)

    def _failed(self, error: OSError) -> None:
        self._is_writable = False
        if self._store is not None:
            self._store.failed(error)


def _reopen(path: Path, sizes: list[int]) -> Slots | None:
    try:
        return Slots(path, sizes)
    except OSError:
        return None


def _ends(sizes: Sequence[int]) -> np.ndarray:
    """Return the offsets of the slots in their file, and the end of the last one."""
    header = -(-_WORD * len(sizes) // _BLOCK) * _BLOCK
    return header + np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))])


def _checksum(data: np.ndarray) -> bytes:
    """Return a checksum of 8 bytes, never all zero. A sum suffices to detect missing or foreign pages."""
    flat = data.reshape(-1)
    whole = len(flat) // _WORD * _WORD
    total = int(np.add.reduce(flat[:whole].view(np.uint64), dtype=np.uint64)) + int(flat[whole:].sum(dtype=np.uint64))
    return (total % 2**63 + 1).to_bytes(_WORD, "little")


def _write_all(fd: int, data: np.ndarray, offset: int) -> None:
    view = data.data.cast("B")
    while len(view):  # a nearly full disk accepts only a part
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


# --- the bound --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the folder's lock: only one process at a time opens and removes keys."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _flock(fd)
        yield
    finally:
        os.close(fd)


def _flock(fd: int, *, shared: bool = False, wait: bool = True) -> None:
    """Lock a file. Raises OSError if it stays locked, e.g. by a process that was stopped: there is no cache then."""
    if fcntl is None:
        raise OSError("this system has no flock")
    deadline = time.monotonic() + (_LOCK_SECONDS if wait else 0.0)
    while True:
        try:
            fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if not wait:
                raise
            if time.monotonic() >= deadline:
                raise TimeoutError(errno.ETIMEDOUT, f"another process has it locked for {_LOCK_SECONDS:g} s") from None
            time.sleep(0.01)


def _make_room(cache: Cache, path: Path, ends: np.ndarray, partly: bool) -> int | None:
    """Remove the least recently used keys as far as needed. Returns the bytes that the key's file may have.

    Returns None, without removing anything, if that would not make enough room.
    """
    in_use, idle = 0, []
    for other in cache.folder.glob("*.slots"):
        if other == path:
            continue
        taken = _idle_bytes(other)
        if taken is None:
            in_use += other.stat().st_size
        else:
            idle.append((other.stat().st_mtime_ns, taken, other))
    room = cache.bound_bytes - in_use
    needed = int(ends[-1])
    if needed > room and partly:
        n_fit = int(np.searchsorted(ends[1:], min(room, cache.bound_bytes // 2), side="right"))
        needed = int(ends[n_fit]) if n_fit else room + 1
    needed = -(-needed // _BLOCK) * _BLOCK
    present = path.stat().st_size if path.exists() else 0
    if present > room:  # the bound was lowered
        if _idle_bytes(path) is None:
            return present
        path.unlink()
        present = 0
    needed = max(needed, present)
    if needed > room:
        return None
    idle.sort(reverse=True)
    left = sum(taken for _, taken, _ in idle)
    while left > room - needed:
        _, taken, oldest = idle.pop()
        oldest.unlink()
        left -= taken
    return needed


def _idle_bytes(path: Path) -> int | None:
    """Return the bytes that a key occupies on the disk, or None if a live process has it open."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _flock(fd, wait=False)
        return os.fstat(fd).st_blocks * _UNIT
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def open_cache(home: Path, bound_bytes: int | None, n_trials: int) -> tuple[Cache | None, str]:
    """Return the cache of ``--cache-size`` (0: no cache; None: `default_bound`) and a line for the user about it."""
    folder = home / "cache"
    bound = default_bound(folder) if bound_bytes is None else bound_bytes
    if bound == 0:
        return None, "cache off: --cache-size 0"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "lock"):
            pass
    except OSError as error:
        return None, f"cache off: {folder} cannot be used ({error.strerror or error})"
    return Cache(folder, bound, n_trials), (
        f"cache {folder}: up to {format_bytes(bound)}, {format_bytes(taken_bytes(folder))} taken"
    )
