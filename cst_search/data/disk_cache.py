"""What trials of a node need not do twice: slots of bytes in files, shared by processes and kept between launches.

A *key* stands for all that its bytes depend on, by content. It is one sparse file ``<kind>-<hash>.slots``:

    n words of 8 bytes, one a slot: 0 = empty, else the checksum of its bytes | then the slots, one after the other

* A slot's word is written after its bytes, and whoever reads it for the first time checks the sum. So a writer that is
  killed at any moment, two that write the same slot, or a machine that lost power leave an empty slot at worst.
* All keys of a folder stay within one bound. A key in use counts with all that it may grow to, others with the blocks
  that they take; what was not used for longest makes room. In use is what a live process holds a shared `flock` on,
  which the kernel drops with the process.
* Files are read and written with `pread` and `pwrite`, through the page cache that all processes share. A map of
  memory was read no faster (614 kB slots on a busy machine: 1.2 to 1.6 ms, against 1.4), was written five times slower,
  and on a full disk is a signal that ends the process rather than an error.
* No fault of a disk ends a trial: what cannot be opened is computed, what cannot be written is not kept, and a note
  says so once.

Own code, because diskcache took seven times as long to write such a slot and ten times to read one (a file and a row of
SQLite for each), LMDB seven times to write one (one writer at a time), neither removes whole keys by their last use
without touching those at work, and a trial shall run with torch, torchvision and pycocotools alone.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cst_search.units import format_bytes

try:
    import fcntl
except ImportError:  # Windows: without locks nothing is kept
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1  # part of every key; another one when the layout of the files changes
_WORD = 8
_BLOCK = 4096
_UNIT = 512  # of st_blocks, whatever the file system's own
_MOST_BYTES = 10 * 10**9
_SHARE_OF_DISK = 10  # of what is free, one part


@dataclass(frozen=True)
class Cache:
    """Where trials keep what they share, and how much of it; it travels to the workers.

    Attributes:
        n_trials: that are expected to share it, this one included: what one trial keeps is worth that much more.
    """

    folder: Path
    bound_bytes: int
    n_trials: int = 1


def default_bound(folder: Path) -> int:
    """The smaller of 10 GB and a tenth of the disk's free bytes, those that the folder takes among them."""
    there = next(place for place in (folder, *folder.absolute().parents) if place.exists())
    return min(_MOST_BYTES, (shutil.disk_usage(there).free + taken_bytes(folder)) // _SHARE_OF_DISK)


def taken_bytes(folder: Path) -> int:
    """Bytes of disk that the keys of a folder take."""
    return sum(_taken(path) for path in folder.glob("*.slots")) if folder.is_dir() else 0


def _taken(path: Path) -> int:
    try:
        return path.stat().st_blocks * _UNIT
    except OSError:  # removed meanwhile
        return 0


class Store:
    """A `Cache` as one trial uses it.

    Attributes:
        notes: what there is to say about it, one line each.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        self.notes: list[str] = []

    def open(
        self, kind: str, identity: Mapping[str, Any], sizes: Sequence[int], *, partly: bool = False
    ) -> Slots | None:
        """The slots of a key, made where there are none.

        Args:
            identity: all that the bytes depend on; ready for JSON.
            sizes: bytes of each slot.
            partly: the first slots will do if not all fit; they then take at most half of the bound.

        Returns:
            None: there is no room for it, or the folder cannot be used, which becomes a note.
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
        n_kept: the slots that there is room for, from the first on.
    """

    def __init__(self, path: Path, sizes: Sequence[int], length: int = 0, store: Store | None = None) -> None:
        """Args: length: bytes that the file shall have at least; it never shrinks."""
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
        """bool (slots): what seems to be filled; only `read` knows for sure."""
        words = np.zeros(len(self.sizes), np.uint64)
        with contextlib.suppress(OSError):
            os.preadv(self._fd, [words.data], 0)
        return words != 0

    def has(self, i: int) -> bool:
        """Whether slot i seems to be filled."""
        if i >= self.n_kept:
            return False
        try:
            return any(os.pread(self._fd, _WORD, _WORD * i))
        except OSError as error:
            self._failed(error)
            return False

    def read(self, i: int, into: np.ndarray) -> bool:
        """Fill ``into`` (uint8, contiguous, of the slot's size). False: the slot is empty, and ``into`` undefined."""
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
        """Fill slot i with ``data`` (uint8, contiguous, of the slot's size), which is the same whoever writes it."""
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
    """Offsets of the slots in their file, and the end of the last."""
    header = -(-_WORD * len(sizes) // _BLOCK) * _BLOCK
    return header + np.concatenate([[0], np.cumsum(np.asarray(sizes, np.int64))])


def _checksum(data: np.ndarray) -> bytes:
    """8 bytes, never all zero. A sum is enough to see pages that are missing or another writer's."""
    flat = data.reshape(-1)
    whole = len(flat) // _WORD * _WORD
    total = int(np.add.reduce(flat[:whole].view(np.uint64), dtype=np.uint64)) + int(flat[whole:].sum(dtype=np.uint64))
    return (total % 2**63 + 1).to_bytes(_WORD, "little")


def _write_all(fd: int, data: np.ndarray, offset: int) -> None:
    view = data.data.cast("B")
    while len(view):  # a disk that is nearly full takes a part
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done


# --- the bound --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time opens and removes keys."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        _flock(fd)
        yield
    finally:
        os.close(fd)


def _flock(fd: int, *, shared: bool = False, wait: bool = True) -> None:
    if fcntl is None:
        raise OSError("this system has no flock")
    fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))


def _make_room(cache: Cache, path: Path, ends: np.ndarray, partly: bool) -> int | None:
    """Remove what was not used for longest, as far as needed. Returns the bytes that a key's file may have.

    None, and nothing is removed: it would not help.
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
    if present > room:  # the bound has become smaller
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
    """Bytes that a key takes on the disk; None: a live process has it open."""
    fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        _flock(fd, wait=False)
        return os.fstat(fd).st_blocks * _UNIT
    except BlockingIOError:
        return None
    finally:
        os.close(fd)


def open_cache(home: Path, bound_bytes: int | None, n_trials: int) -> tuple[Cache | None, str]:
    """The cache of ``--cache-size`` (0: none; None: `default_bound`), and what there is to say about it."""
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
