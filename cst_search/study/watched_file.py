"""Watch the SQLite file of a running launch, and copy it if it is deleted or replaced.

A process goes on writing to a file that was deleted or replaced, where nobody else can read it. As long as the file is
open, it can be copied with all that is in it.
"""

from __future__ import annotations

import itertools
import os
import sqlite3
import tempfile
import threading
from contextlib import closing, suppress
from pathlib import Path

from cst_search.errors import RunError

_WATCHED: dict[Path, WatchedFile] = {}  # by path: studies of one launch share a file, and then its copy
_KEPT_OPEN: list[WatchedFile] = []  # SQLite would remove, as it closes one, the log of the file that is there now


class WatchedFile:
    """A database file that this process works on, held open so that it can be copied after it has vanished.

    Attributes:
        n_users: storages in this process that use it.
        lock: held while a copy is made; who writes to the file holds it too, so that no write misses the copy.
        rescued: the copy, which takes the place of the file; None: the file is there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lock = threading.RLock()
        self.rescued: Path | None = None
        self.n_users = 0
        self._identity = _identity(path)
        self._connection = sqlite3.connect(path, timeout=60, check_same_thread=False)
        self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # opens SQLite's log beside it, too
        self._logs = {log: _identity(log) for log in (Path(f"{path}-wal"), Path(f"{path}-shm"))}

    def fate(self) -> str | None:
        """Return what happened to the file, e.g. ``deleted``; None: it is there."""
        try:
            now = _identity(self.path)
        except OSError:  # a network that is away says nothing of the file
            return None
        if now == self._identity:
            return None
        return "deleted" if now is None else "replaced by another file"

    def rescue(self) -> Path:
        """Copy the vanished file: beside its place, or else to the folder of temporary files. Raises RunError."""
        faults = []
        for folder in (self.path.parent, Path(tempfile.gettempdir())):
            copy = _free_name(folder / f"{self.path.stem}-rescued-{os.getpid()}{self.path.suffix}")
            try:
                folder.mkdir(parents=True, exist_ok=True)
                with closing(sqlite3.connect(copy)) as target:
                    self._connection.backup(target)
                    target.execute("PRAGMA journal_mode = DELETE")  # one plain file
            except (OSError, sqlite3.Error) as error:
                with suppress(OSError):
                    copy.unlink()
                faults.append(f"{copy}: {error}")
            else:
                self._remove_logs()
                self.rescued = copy
                return copy
        raise RunError(
            f"the file of the studies, {self.path}, was {self.fate()}, and it cannot be copied: {'; '.join(faults)}; "
            f"make room, or give another place to TMPDIR, and search again"
        )

    def _remove_logs(self) -> None:
        """Remove SQLite's log if it was left behind; SQLite would take it for that of a file in the same place."""
        for log, identity in self._logs.items():
            if identity is not None and _identity(log) == identity:
                log.unlink(missing_ok=True)


def watch_file(path: Path) -> WatchedFile:
    """Begin to watch a file; one that is watched already is shared. End it with `unwatch_file`."""
    watched = _WATCHED.get(path) or _WATCHED.setdefault(path, WatchedFile(path))
    watched.n_users += 1
    return watched


def unwatch_file(watched: WatchedFile) -> None:
    """End what `watch_file` began."""
    watched.n_users -= 1
    if not watched.n_users:
        del _WATCHED[watched.path]
        if watched.rescued is None:
            watched._connection.close()
        else:
            _KEPT_OPEN.append(watched)


def _identity(path: Path) -> tuple[int, int] | None:
    """Return device and number of a file; None: there is none."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_dev, found.st_ino


def _free_name(path: Path) -> Path:
    names = (path.with_stem(f"{path.stem}-{n}") if n else path for n in itertools.count())
    return next(name for name in names if not name.exists())
