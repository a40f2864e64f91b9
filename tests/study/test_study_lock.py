"""The lock of a study in a SQLite file."""

from __future__ import annotations

import errno
import os
from dataclasses import make_dataclass
from pathlib import Path
from typing import Any

import pytest

from cst_search.study.study_lock import FileLock


def test_a_full_disk_leaves_the_lock_without_the_name_of_its_holder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    me: Any = make_dataclass("Me", [("host", str)])("here")
    lock = FileLock(tmp_path / "studies.db.lock", me)
    monkeypatch.setattr(os, "pwrite", full)
    assert lock.take() and lock.is_held() and lock.holder() is None
