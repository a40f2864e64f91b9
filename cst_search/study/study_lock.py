"""Locks that let one launch of a study at a time choose what to run, one for each kind of database.

Who waits says for whom. A holder that is frozen (SIGSTOP, a suspended machine) does not block the others for as long as
it sleeps: its lock is broken, and when it wakes it finds that it holds it no longer.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import psutil
import sqlalchemy
from sqlalchemy import text

from cst_search.errors import RunError

try:
    import fcntl
except ImportError:  # Windows, where a search has its machine for itself
    fcntl = None  # type: ignore[assignment]

SAY_SECONDS, MOST_SECONDS = 3.0, 900.0  # of waiting, until it is said and until it is given up
_LOOK_SECONDS = 1.0  # between looks at who holds the lock


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock.

    Attributes:
        launch: ID of its launch; empty: it has not begun one yet.
        since: time at which it took the lock, in seconds as Unix time.
        token: tells this time of holding it from others.
    """

    host: str
    pid: int
    launch: str
    since: float = field(default_factory=time.time)
    token: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def here(cls, launch: str) -> Holder:
        return cls(socket.gethostname(), os.getpid(), launch)

    def __str__(self) -> str:
        launch = f" (launch {self.launch})" if self.launch else ""
        since = datetime.fromtimestamp(self.since, UTC).strftime("%H:%M:%S UTC")
        return f"process {self.pid} on {self.host}{launch} since {since}"


class Lock(Protocol):
    """A lock in one kind of database."""

    def take(self) -> bool:
        """Take the lock if it is free, without waiting."""

    def is_held(self) -> bool:
        """Return whether it is still this one's, once it was taken."""

    def holder(self) -> Holder | None:
        """Return who holds it, as far as that can be seen."""

    def break_(self, holder: Holder) -> None:
        """Take it from this holder, if it still has it; it is free then."""

    def release(self) -> None:
        """Give it back."""


def wait_for(lock: Lock, is_dead: Callable[[Holder], bool], say: Callable[[str], None]) -> None:
    """Take a lock, break that of a dead holder, and say once for whom it waits. Raises RunError after 15 minutes."""
    begun, looked, said, is_broken = time.monotonic(), 0.0, False, False
    while not lock.take():
        waited = time.monotonic() - begun
        if waited - looked >= _LOOK_SECONDS:
            looked, holder = waited, lock.holder()
            who = "another process" if holder is None else str(holder)
            if holder is not None and not is_broken and is_dead(holder):
                is_broken = True  # it may fail: PostgreSQL lets a user end connections of his own alone
                lock.break_(holder)
                say(f"note: the lock of the study is taken from {who}, which has given no sign of life for long")
            elif waited >= SAY_SECONDS and not said:
                said = True
                say(f"waiting for the lock of the study, held by {who}")
            elif waited >= MOST_SECONDS:
                raise RunError(
                    f"the lock of the study is held by {who}, for {waited / 60:.0f} minutes; finished trials are "
                    f"kept; end that process, then continue with `cst-search resume`"
                )
        time.sleep(0.05)  # instead of blocking, so that Ctrl-C works


def is_stopped(pid: int) -> bool:
    """Return whether a process on this host exists and does not run, as after SIGSTOP."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


class FileLock:
    """Lock of a SQLite database: `flock` of a file beside it, with the holder as its content."""

    def __init__(self, path: Path, me: Holder) -> None:
        self._path, self._me = path, me
        self._fd: int | None = None

    def take(self) -> bool:
        fd = _open_locked(self._path)
        if fd is not None:
            os.ftruncate(fd, 0)
            with suppress(OSError):  # a full disk: held without a name
                os.pwrite(fd, json.dumps(asdict(self._me)).encode(), 0)
            self._fd = fd
        return fd is not None

    def is_held(self) -> bool:
        return self._fd is not None and _is_at(self._fd, self._path)

    def holder(self) -> Holder | None:
        try:
            return Holder(**json.loads(self._path.read_bytes()))
        except (OSError, ValueError, TypeError):  # taken this moment, or by an earlier version
            return None

    def break_(self, holder: Holder) -> None:
        """Remove the file; the next holder creates a new one."""
        with _one_at_a_time(self._path.with_name(f"{self._path.name}.break")):
            if self.holder() == holder:
                self._path.unlink(missing_ok=True)

    def release(self) -> None:
        if self._fd is not None:
            os.ftruncate(self._fd, 0)
            os.close(self._fd)
            self._fd = None


def _open_locked(path: Path) -> int | None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    with suppress(BlockingIOError):
        if fcntl is not None:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_at(fd, path):  # else another process broke the lock in between
            return fd
    os.close(fd)
    return None


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


@contextmanager
def _one_at_a_time(path: Path) -> Iterator[None]:
    while (fd := _open_locked(path)) is None:
        time.sleep(0.01)
    try:
        yield
    finally:
        os.close(fd)


class AdvisoryLock:
    """Lock of a PostgreSQL database: an advisory lock, whose connection is named after the holder.

    Args:
        key: number of the lock.
    """

    _HOLDER = text(
        "SELECT a.pid, a.application_name, extract(epoch from a.query_start) FROM pg_locks l "
        "JOIN pg_stat_activity a ON a.pid = l.pid WHERE l.locktype = 'advisory' AND l.granted "
        "AND a.datname = current_database() AND ((l.classid::bigint << 32) | l.objid::bigint) = :key"
    )

    def __init__(self, engine: sqlalchemy.Engine, key: int, me: Holder) -> None:
        self._key = {"key": key}
        self._connection = engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        # PostgreSQL keeps 63 bytes
        name = f"cst-search {me.launch or '-'} {me.pid} {me.host}".encode()[:63].decode(errors="ignore")
        self._ask("SELECT set_config('application_name', :name, false)", {"name": name})

    def _ask(self, question: str, values: dict[str, Any]) -> Any:
        return self._connection.execute(text(question), values).scalar()

    def take(self) -> bool:
        return bool(self._ask("SELECT pg_try_advisory_lock(:key)", self._key))

    def is_held(self) -> bool:
        try:
            self._ask("SELECT 1", {})
        except sqlalchemy.exc.SQLAlchemyError:
            return False
        return True

    def holder(self) -> Holder | None:
        row = self._connection.execute(self._HOLDER, self._key).first()
        words = [] if row is None else str(row[1]).split(" ", 3)
        if row is None or len(words) != 4 or not words[2].isdecimal():
            return None
        launch = "" if words[1] == "-" else words[1]
        return Holder(words[3], int(words[2]), launch, float(row[2]), token=str(row[0]))

    def break_(self, holder: Holder) -> None:
        """End the holder's connection, which frees the lock."""
        with suppress(sqlalchemy.exc.ProgrammingError):  # it is another user's
            self._ask("SELECT pg_terminate_backend(:pid)", {"pid": int(holder.token)})

    def release(self) -> None:
        with suppress(sqlalchemy.exc.SQLAlchemyError):  # a broken connection holds no lock
            self._ask("SELECT pg_advisory_unlock(:key)", self._key)
        self.close()

    def close(self) -> None:
        """Close the connection of a lock that is not held."""
        with suppress(sqlalchemy.exc.SQLAlchemyError):
            self._connection.close()
