"""Optuna's database beside Optuna: reading what is new in it at a stroke, and SQLite that does not wait for the disk.

Optuna makes objects of every parameter, value and attribute of every trial, about 20 rows each. A record needs two of
them, and they are read here by two statements, of those trials alone that have not been read. That both readings agree
is tested, so that a change of Optuna's tables shows.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy
from sqlalchemy import column, table

_STUDIES = table("studies", column("study_id"), column("study_name"))
_TRIALS = table("trials", column("trial_id"), column("study_id"), column("number"), column("state", sqlalchemy.String))
_ATTRIBUTES = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))

# where a file is one machine's own; on a network two machines would each have their own memory of SQLite's log
_LOCAL = {"apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "ntfs", "overlay", "tmpfs", "xfs", "zfs"}


@dataclass(frozen=True)
class StoredTrial:
    """A trial as it stands in the database. ``state``: Optuna's name of it, such as RUNNING."""

    trial_id: int
    number: int
    state: str
    user_attrs: dict[str, Any]

    @property
    def is_finished(self) -> bool:
        """A finished trial never changes again: Optuna refuses to write to it."""
        return self.state not in ("RUNNING", "WAITING")


def read_trials(engine: sqlalchemy.Engine, study: str, after: int, also: Collection[int] = ()) -> list[StoredTrial]:
    """Trials of a study in the order in which they were made.

    Args:
        after: only those with a greater trial_id. Within a study ids grow as trials are made, in every database:
            Optuna locks the study meanwhile.
        also: trial_ids to read besides, smaller ones.
    """
    found = []
    with engine.connect() as connection:
        for chosen in [_TRIALS.c.trial_id > after, *([_TRIALS.c.trial_id.in_(list(also))] if also else [])]:
            where = sqlalchemy.and_(
                _TRIALS.c.study_id
                == sqlalchemy.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == study).scalar_subquery(),
                chosen,
            )
            # the state first: a trial that ends in between is taken for running, and read again
            trials = connection.execute(
                sqlalchemy.select(_TRIALS.c.trial_id, _TRIALS.c.number, _TRIALS.c.state).where(where)
            ).all()
            if not trials:
                continue
            attributes: dict[int, dict[str, Any]] = {row.trial_id: {} for row in trials}
            rows = connection.execute(
                sqlalchemy.select(_ATTRIBUTES).join(_TRIALS, _TRIALS.c.trial_id == _ATTRIBUTES.c.trial_id).where(where)
            )
            for trial_id, key, value in rows:
                if trial_id in attributes:  # else it was made in between
                    attributes[trial_id][key] = json.loads(value)
            found += [StoredTrial(row.trial_id, row.number, row.state, attributes[row.trial_id]) for row in trials]
    return sorted(found, key=lambda trial: trial.trial_id)


def log_ahead(engine: sqlalchemy.Engine, on: bool) -> None:
    """Have SQLite write a log ahead of its file (WAL) while a launch works, and one plain file again after it.

    Without it every one of the 20 writes of a trial waits for the disk several times, with it none does, and readers
    no longer wait for the writer. What a killed process wrote is there either way; a machine that loses power may lose
    the last trials, never the file. Nothing is done for other databases, and where the file may be on a network.
    """
    path = engine.url.database
    if engine.dialect.name != "sqlite" or not path or not Path(path).is_file() or not _is_local(Path(path)):
        return
    engine.dispose()  # connections that are open hold the mode fast
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0)) as connection:  # another process reads it
        connection.execute(f"PRAGMA journal_mode = {'WAL' if on else 'DELETE'}")


def dont_wait_for_the_disk(connection: sqlite3.Connection, _: Any) -> None:
    """For a new connection. With a log ahead, waiting when the log is full keeps the file whole: sqlite.org/wal.html"""
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        connection.execute("PRAGMA synchronous = NORMAL")


def check_connection(url: str) -> None:
    """Raises what SQLAlchemy raises where a database does not let us in, within seconds where it is another machine."""
    patience = {"connect_timeout": 10} if url.startswith("postgresql") else {}
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=patience)
    engine.connect().close()


def is_of_optuna(path: Path) -> bool:
    """Whether a SQLite file has Optuna's tables, or none yet. Also true where that cannot be seen: Optuna says why."""
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    except sqlite3.Error:
        return True
    return not tables or "studies" in tables


def _is_local(path: Path) -> bool:
    folder = path.absolute().resolve()
    mounts = {Path(part.mountpoint): part.fstype.lower() for part in psutil.disk_partitions(all=True)}
    mounted = next((parent for parent in folder.parents if parent in mounts), None)
    return mounted is not None and mounts[mounted] in _LOCAL
