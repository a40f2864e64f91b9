"""Direct access to Optuna's database: bulk reads of new trials, and SQLite that does not wait for the disk.

Optuna builds objects for every parameter, value and attribute of every trial, about 20 rows each. A record needs two of
them. Two statements read these here, and only for trials that have not been read. A test checks that both ways of
reading agree, so a change of Optuna's tables is noticed.
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

from cst_search.study.stored_form import DamagedError

_STUDIES = table("studies", column("study_id"), column("study_name"))
_STUDY_ATTRIBUTES = table("study_user_attributes", column("study_id"), column("key"), column("value_json"))
_TRIALS = table("trials", column("trial_id"), column("study_id"), column("number"), column("state", sqlalchemy.String))
_ATTRIBUTES = table("trial_user_attributes", column("trial_id"), column("key"), column("value_json"))

# File systems local to one machine. On a network each machine would have its own shared memory of SQLite's log.
_LOCAL = {"apfs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "hfs", "ntfs", "overlay", "tmpfs", "xfs", "zfs"}


@dataclass(frozen=True)
class StoredTrial:
    """A trial as stored in the database. ``state`` is Optuna's name, e.g. RUNNING."""

    trial_id: int
    number: int
    state: str
    user_attrs: dict[str, Any]

    @property
    def is_running(self) -> bool:
        """True for Optuna; the launch that ran the trial may be dead."""
        return self.state == "RUNNING"

    @property
    def is_finished(self) -> bool:
        """True once the trial can no longer change: Optuna refuses to write to a finished trial."""
        return self.state not in ("RUNNING", "WAITING")


def read_study_names(engine: sqlalchemy.Engine, having: str) -> list[str]:
    """Return the names of the studies that have a user attribute, whatever its value, in the order of creation."""
    chosen = sqlalchemy.select(_STUDIES.c.study_name).join(
        _STUDY_ATTRIBUTES, _STUDIES.c.study_id == _STUDY_ATTRIBUTES.c.study_id
    )
    with engine.connect() as connection:
        named = chosen.where(_STUDY_ATTRIBUTES.c.key == having).order_by(_STUDIES.c.study_id)
        return list(connection.execute(named).scalars())


def read_study_value(engine: sqlalchemy.Engine, key: str) -> Any:
    """Return a user attribute of the one study that has it; None: no study has it."""
    with engine.connect() as connection:
        chosen = sqlalchemy.select(_STUDY_ATTRIBUTES.c.value_json).where(_STUDY_ATTRIBUTES.c.key == key)
        found = connection.execute(chosen).scalar()
    return None if found is None else json.loads(found)


def read_trials(engine: sqlalchemy.Engine, study: str, after: int, also: Collection[int] = ()) -> list[StoredTrial]:
    """Read trials of a study, in the order in which they were created.

    Args:
        after: read only trials with a greater trial_id. Within a study, ids grow as trials are created, in every
            database, because Optuna locks the study meanwhile.
        also: smaller trial_ids to read as well.
    """
    found = []
    with engine.connect() as connection:
        for chosen in [_TRIALS.c.trial_id > after, *([_TRIALS.c.trial_id.in_(list(also))] if also else [])]:
            where = sqlalchemy.and_(
                _TRIALS.c.study_id
                == sqlalchemy.select(_STUDIES.c.study_id).where(_STUDIES.c.study_name == study).scalar_subquery(),
                chosen,
            )
            # Read the state first: a trial that ends in between counts as running and is read again.
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
                if trial_id in attributes:  # otherwise the trial was created in between
                    attributes[trial_id][key] = _value(value, trial_id, key)
            found += [StoredTrial(row.trial_id, row.number, row.state, attributes[row.trial_id]) for row in trials]
    return sorted(found, key=lambda trial: trial.trial_id)


def _value(text: str, trial_id: int, key: str) -> Any:
    try:
        return json.loads(text)
    except (json.JSONDecodeError, TypeError):
        raise DamagedError(f"{key} of the trial with id {trial_id} is damaged: {text!r:.60} is not JSON") from None


def log_ahead(engine: sqlalchemy.Engine, on: bool) -> None:
    """Switch SQLite to write-ahead logging (WAL) during a launch, or back to one plain file after it.

    Without WAL each of the 20 writes of a trial waits for the disk several times; with WAL none does, and readers do
    not wait for the writer. The writes of a killed process survive either way. A machine that loses power may lose the
    last trials, but never the file. Does nothing for other databases, or if the file may be on a network.
    """
    path = engine.url.database
    if engine.dialect.name != "sqlite" or not path or not Path(path).is_file() or not _is_local(Path(path)):
        return
    engine.dispose()  # open connections keep the mode from changing
    with suppress(sqlite3.Error), closing(sqlite3.connect(path, timeout=0)) as connection:  # another process reads it
        connection.execute(f"PRAGMA journal_mode = {'WAL' if on else 'DELETE'}")


def dont_wait_for_the_disk(connection: sqlite3.Connection, _: Any) -> None:
    """Relax syncing of a new connection in WAL mode. Syncs at checkpoints keep the file intact: sqlite.org/wal.html"""
    if connection.execute("PRAGMA journal_mode").fetchone()[0] == "wal":
        connection.execute("PRAGMA synchronous = NORMAL")


def dont_wait_for_the_frozen(connection: Any, _: Any) -> None:
    """Have PostgreSQL end the transaction of a process that was stopped in it, and others wait for rows in short.

    Otherwise they would wait for its rows as long as it sleeps.
    """
    with closing(connection.cursor()) as cursor:
        cursor.execute("SET idle_in_transaction_session_timeout = '60s'")
        cursor.execute("SET lock_timeout = '20s'")
    connection.commit()


def check_connection(url: str) -> None:
    """Open and close a connection. Raises SQLAlchemy's error if that fails, within seconds for a remote database."""
    patience = {"connect_timeout": 10} if url.startswith("postgresql") else {}
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool, connect_args=patience)
    engine.connect().close()


def is_of_optuna(path: Path) -> bool:
    """Return whether a SQLite file has Optuna's tables or no tables; True if unreadable, as Optuna then says why."""
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
