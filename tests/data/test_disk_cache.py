"""Slots in files: whole or not at all, for several processes, within a bound, whatever the disk does."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import resource
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from cst_search.data import disk_cache
from cst_search.data.disk_cache import Cache, Slots, Store, default_bound, open_cache, taken_bytes

SIZES = [5000, 5001, 300_000, 0, 17]  # not multiples of 8 or of a block; one empty
KEY = {"images": "some"}


def content(i: int, size: int) -> np.ndarray:
    return np.random.default_rng(i).integers(0, 256, size, dtype=np.uint8)


def slots(folder: Path, bound: int = 10**8, key: object = "some", sizes: list[int] = SIZES, **options: bool) -> Slots:
    found = Store(Cache(folder, bound)).open("test", {"key": key}, sizes, **options)
    assert found is not None
    return found


def value(found: Slots, i: int) -> np.ndarray | None:
    into = np.empty(found.sizes[i], np.uint8)
    return into if found.read(i, into) else None


def whole(found: Slots) -> list[bool]:
    """Of each slot whether it is filled; what is filled must be right."""
    values = [value(found, i) for i in range(len(found.sizes))]
    assert all(v is None or np.array_equal(v, content(i, len(v))) for i, v in enumerate(values))
    return [v is not None for v in values]


def fill(found: Slots) -> None:
    for i, size in enumerate(found.sizes):
        found.write(i, content(i, size))


def test_written_slots_are_read_by_other_processes_and_later(tmp_path: Path) -> None:
    first, second = slots(tmp_path), slots(tmp_path)
    assert whole(first) == [False] * 5 and not first.is_filled().any()
    first.write(1, content(1, 5001))
    assert whole(first) == whole(second) == [False, True, False, False, False]
    assert second.has(1) and not second.has(0) and list(second.is_filled()) == whole(second)
    copy = pickle.loads(pickle.dumps(first))
    fill(copy)
    del first, second, copy
    assert all(whole(slots(tmp_path)))


@pytest.mark.parametrize("key, sizes", [("other", SIZES), ("some", [*SIZES, 1])])
def test_another_key_is_another_file(tmp_path: Path, key: str, sizes: list[int]) -> None:
    fill(slots(tmp_path))
    assert not any(whole(slots(tmp_path, key=key, sizes=sizes)))


@pytest.mark.parametrize("at", [0, 4999, 2500])
def test_slots_with_a_wrong_checksum_count_as_empty_and_are_rewritten(tmp_path: Path, at: int) -> None:
    """A page that a power cut lost, or half of another writer's."""
    fill(slots(tmp_path))
    path = next(tmp_path.glob("*.slots"))
    with path.open("r+b") as file:
        file.seek(4096 + at)
        byte = file.read(1)[0]
        file.seek(4096 + at)
        file.write(bytes([byte ^ 1]))
    found = slots(tmp_path)
    assert whole(found) == [False, True, True, True, True]
    found.write(0, content(0, 5000))
    assert all(whole(found))


def test_a_file_that_was_cut_off_is_filled_again(tmp_path: Path) -> None:
    fill(slots(tmp_path))
    path = next(tmp_path.glob("*.slots"))
    os.truncate(path, 4096 + 5000)
    found = slots(tmp_path)
    assert whole(found)[:3] == [True, False, False]
    fill(found)
    assert all(whole(found))


# --- several processes ------------------------------------------------------------------------------------------------

MANY = [50_000] * 40


def _fill_often(folder: Path, times: int) -> None:
    found = slots(folder, sizes=MANY)
    for _ in range(times):
        fill(found)


def _start(*args: object) -> multiprocessing.Process:
    process = multiprocessing.get_context("fork").Process(target=_fill_often, args=args)
    process.start()
    return process


def test_several_writers_at_a_time(tmp_path: Path) -> None:
    writers = [_start(tmp_path, 5) for _ in range(3)]
    found = slots(tmp_path, sizes=MANY)
    seen = 0
    while any(writer.is_alive() for writer in writers):
        seen = max(seen, sum(whole(found)))  # never a wrong byte
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    assert all(whole(found)) and all(whole(slots(tmp_path, sizes=MANY)))


def test_a_writer_that_is_killed_leaves_whole_slots(tmp_path: Path) -> None:
    for _ in range(3):
        writer = _start(tmp_path, 10**6)
        found = slots(tmp_path, sizes=MANY)
        while not found.is_filled().any():
            time.sleep(0.001)
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        whole(found)
    fill(found)
    assert all(whole(found))


# --- the bound --------------------------------------------------------------------------------------------------------

ONE = [10_000] * 10  # with the header 26 blocks


def test_least_recently_used_keys_are_removed_first(tmp_path: Path) -> None:
    bound = 350_000  # three of them
    for n, key in enumerate("abc"):
        found = slots(tmp_path, bound, key, ONE)
        fill(found)
        os.utime(found.path, (n, n))
        del found
    os.utime(slots(tmp_path, bound, "a", ONE).path)  # used again
    for key in "de":
        fill(slots(tmp_path, bound, key, ONE))
        assert taken_bytes(tmp_path) <= bound
    assert all(whole(slots(tmp_path, bound, "a", ONE))) and all(whole(slots(tmp_path, bound, "e", ONE)))
    assert not any(whole(slots(tmp_path, 10**9, "b", ONE)))


def test_keys_in_use_are_never_removed(tmp_path: Path) -> None:
    bound = 250_000  # two of them
    used = slots(tmp_path, bound, "a", ONE)  # counts with what it may grow to
    fill(slots(tmp_path, bound, "b", ONE))
    third = slots(tmp_path, bound, "c", ONE)
    assert len(list(tmp_path.glob("*.slots"))) == 2
    store = Store(Cache(tmp_path, bound))
    assert store.open("test", {"key": "d"}, ONE) is None and store.notes == []
    fill(used)
    fill(third)
    assert all(whole(used)) and taken_bytes(tmp_path) <= bound


def test_partly_keeps_the_first_slots_if_not_all_fit(tmp_path: Path) -> None:
    assert Store(Cache(tmp_path, 100_000)).open("test", KEY, ONE) is None
    assert list(tmp_path.glob("*.slots")) == []
    found = slots(tmp_path, 100_000, sizes=ONE, partly=True)
    fill(found)
    assert whole(found) == [True] * found.n_kept + [False] * (10 - found.n_kept) and found.n_kept == 4
    assert taken_bytes(tmp_path) <= 100_000
    assert Store(Cache(tmp_path, 10_000)).open("other", KEY, ONE, partly=True) is None
    del found
    larger = slots(tmp_path, 10**6, sizes=ONE, partly=True)
    assert sum(whole(larger)) == 4 and larger.n_kept == 10


def test_a_smaller_bound_holds_for_a_key_that_was_larger(tmp_path: Path) -> None:
    fill(slots(tmp_path, sizes=ONE))
    found = slots(tmp_path, 60_000, sizes=ONE, partly=True)
    fill(found)
    assert 0 < found.n_kept < 10 and taken_bytes(tmp_path) <= 60_000


# --- disks that will not ----------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_made_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    store = Store(Cache(tmp_path / "file" / "cache", 10**6))
    assert store.open("test", KEY, SIZES) is None
    assert store.open("test", {"images": "other"}, SIZES) is None
    assert len(store.notes) == 1 and store.notes[0].startswith("cache off: ") and str(tmp_path) in store.notes[0]
    cache, line = open_cache(tmp_path / "file", 10**6, 1)
    assert cache is None and line.startswith("cache off: ")


def test_a_lock_that_is_not_given_back_is_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of a process which was stopped: trials go on without a cache."""
    monkeypatch.setattr(disk_cache, "_LOCK_SECONDS", 0.05)
    store = Store(Cache(tmp_path, 10**6))
    with disk_cache._locked(tmp_path / "lock"):
        assert store.open("images", {}, [10]) is None
    assert store.notes == [f"cache off: {tmp_path} cannot be used (another process has it locked for 0.05 s); "
                           f"nothing is kept"]  # fmt: skip
    assert store.open("images", {}, [10]) is not None


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_without_leave_to_write_is_a_note(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    store = Store(Cache(tmp_path, 10**6))
    assert store.open("test", KEY, SIZES) is None and len(store.notes) == 1


def _write_on_a_full_disk(folder: Path, queue: multiprocessing.Queue) -> None:
    store = Store(Cache(folder, 10**8))
    found = store.open("test", KEY, SIZES)
    assert found is not None
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # what is written above fails with EFBIG
    fill(found)
    queue.put((whole(found), store.notes))


def test_a_full_disk_is_a_note_and_what_is_there_is_read(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    process = context.Process(target=_write_on_a_full_disk, args=(tmp_path, queue))
    process.start()
    filled, notes = queue.get(timeout=120)
    process.join()
    assert filled == [True, True, False, False, False]
    assert len(notes) == 1 and "cache off: " in notes[0]


# --- how much ---------------------------------------------------------------------------------------------------------


def test_default_bound(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5 * 10**9})())
    assert default_bound(tmp_path / "not" / "yet") == 5 * 10**8
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 10**12})())
    assert default_bound(tmp_path) == 10**10


def test_open_cache(tmp_path: Path) -> None:
    assert open_cache(tmp_path, 0, 3) == (None, "cache off: --cache-size 0")
    cache, line = open_cache(tmp_path, 2 * 10**9, 3)
    assert cache == Cache(tmp_path / "cache", 2 * 10**9, 3) and "up to 2 GB, 0 B taken" in line
