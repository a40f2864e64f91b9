"""Storage of studies: Optuna's, in SQLite for one machine or PostgreSQL for many.

A server may restart in the middle of a search: `Storage` retries until it is back. Several launches may work on one
study: `Storage.alone` lets one of them at a time choose what to run, and `Storage.now` is a clock that they share.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import random
import socket
import sys
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from optuna.trial import Trial, TrialState

from cst_search.errors import RunError, StudyError
from cst_search.redaction import shown_address, without_password
from cst_search.study.database_urls import is_sqlite, sqlite_file
from cst_search.study.fast_reads import (
    StoredTrial,
    dont_wait_for_the_disk,
    dont_wait_for_the_frozen,
    is_of_optuna,
    read_study_names,
    read_study_value,
)
from cst_search.study.stored_form import DamagedError
from cst_search.study.study_lock import AdvisoryLock, FileLock, Holder, is_stopped, wait_for
from cst_search.study.watched_file import WatchedFile, unwatch_file, watch_file
from cst_search.visible import visible

WAIT_SECONDS = 900  # maximum wait for an unreachable server; an operating system update takes less
BEAT = "cst_beat:"  # study attribute: time of a launch's last heartbeat, by the database's clock
DEAD_SECONDS = 60.0  # without a heartbeat
_KINDS = ("sqlite", "postgresql")
_ANSWERED: set[str] = set()  # URLs of servers that have answered this process: they are right
_T = TypeVar("_T")


def check_storage(url: str, flag: str = "--storage", kinds: Collection[str] = _KINDS) -> str:
    """Return the URL with its password hidden. Raises StudyError if it is unsupported or its driver is missing."""
    example = f"{flag} takes a database URL such as sqlite:///studies.db or postgresql+psycopg://host/name"
    try:
        made = sqlalchemy.make_url(url)
        dialect = made.get_dialect()
    except sqlalchemy.exc.NoSuchModuleError:
        raise StudyError(f"{example}; there is no kind of database for {shown_address(url)}") from None
    except (sqlalchemy.exc.ArgumentError, ValueError):  # ValueError: a port that is not a number
        raise StudyError(f"{example}; got {shown_address(url)!r}") from None
    if made.get_backend_name() not in kinds:
        raise StudyError(f"{example}; {made.get_backend_name()} is not among them")
    try:
        dialect.import_dbapi()
    except ImportError as error:
        hint = "; pip install 'cst-search[cluster]' brings psycopg, for postgresql+psycopg://..."
        raise StudyError(
            f"{flag} {shown_address(url)}: its driver is not installed: {error}"
            f"{hint if made.get_backend_name() == 'postgresql' else ''}"
        ) from None
    return shown_address(url)


def _is_away(error: BaseException | None) -> bool:
    """Return whether the server is unreachable or the connection broke; SQLite: another process locked it too long."""
    while error is not None:
        if isinstance(error, sqlalchemy.exc.DBAPIError):
            if type(error.orig).__module__.startswith("sqlite3"):
                return "locked" in str(error.orig) or "busy" in str(error.orig)
            return error.connection_invalidated or isinstance(
                error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError
            )
        error = error.__cause__ or error.__context__
    return False


def _first_line(error: BaseException) -> str:
    while not isinstance(error, sqlalchemy.exc.DBAPIError) and (inner := error.__cause__ or error.__context__):
        error = inner
    text = str(error.orig) if isinstance(error, sqlalchemy.exc.DBAPIError) else str(error)
    return (text.strip().splitlines() or [type(error).__name__])[0]


def _say_aside(line: str) -> None:
    print(visible(line), file=sys.stderr, flush=True)


class Storage(optuna.storages.RDBStorage):
    """Optuna's storage with retries: calls are repeated while the server is unreachable, for at most `WAIT_SECONDS`.

    A retried call may find its work already done. Setting an attribute twice is harmless; creating a trial twice leaves
    an empty one (see `SearchSession.begin_launch`); a trial that had already ended is checked.

    Attributes:
        say: called with each line about a wait, once when it begins and once when the server is back; by default it
            prints to standard error.
        launch: ID of this process's launch, by which others name it while it holds the lock; empty: it has none yet.
        rescued: copy that this storage uses since its SQLite file was deleted or replaced; see `watch`. None: it has
            its file.

    Raises (every call):
        RunError: the server stayed unreachable, or SQLite cannot write because its disk is full or its file damaged.
    """

    def __init__(self, url: str) -> None:
        self.shown = check_storage(url)
        self.say: Callable[[str], None] = _say_aside
        self._gave_up = self._said_away = False
        self.launch = ""
        self.rescued: Path | None = None
        self._watched: WatchedFile | None = None
        sqlite = is_sqlite(url)
        # SQLite: several processes write, so wait for the lock rather than fail; `patiently` waits longer, and says so
        connect_args: dict[str, Any] = {"timeout": 10} if sqlite else {"connect_timeout": 10}
        pool = {} if sqlite else {"pool_size": 3, "max_overflow": 5}
        super().__init__(url, engine_kwargs={"connect_args": connect_args, "pool_pre_ping": True, **pool})
        if sqlite:
            sqlalchemy.event.listen(self.engine, "connect", dont_wait_for_the_disk)
            sqlalchemy.event.listen(self.engine, "do_connect", self._choose_file)
        else:
            sqlalchemy.event.listen(self.engine, "connect", dont_wait_for_the_frozen)

    # --- a file that vanishes ---------------------------------------------------------------------------------------

    def watch(self) -> None:
        """Go on with a copy, `rescued`, once a SQLite file is deleted or replaced; `say` is told. End it by `unwatch`.

        Without it SQLite would go on writing where nobody can read it.
        """
        path = self.engine.url.database
        if self.engine.dialect.name == "sqlite" and path and Path(path).is_file():
            self._watched = watch_file(Path(path))

    def unwatch(self) -> None:
        """End what `watch` began."""
        if self._watched is not None:
            unwatch_file(self._watched)
            self._watched = None

    def _follow_file(self) -> None:
        watched = self._watched
        if watched is None or self.rescued is not None:
            return
        if watched.rescued is None and (fate := watched.fate()) is not None:
            copy = watched.rescue()
            self.say(f"the storage {self.shown} was {fate}; all that was in it is in {copy}, and so is what still ends")
        if watched.rescued is not None:
            self.rescued = watched.rescued
            self.engine.dispose()

    def _choose_file(self, dialect: Any, record: Any, arguments: list[Any], options: dict[str, Any]) -> None:
        """Give a new connection the copy in place of the file; SQLite would make an empty one."""
        self._follow_file()
        if self.rescued is not None:
            arguments[0] = str(self.rescued)

    # --- calls ------------------------------------------------------------------------------------------------------

    def _reason(self, error: BaseException) -> str:
        return without_password(_first_line(error), self.url)

    def patiently(self, call: Callable[[], _T]) -> _T:
        """Return the result of a call, retrying it while the server is unreachable."""
        begun, said, pause = time.monotonic(), False, 0.2
        while True:
            try:
                with nullcontext() if self._watched is None else self._watched.lock:
                    self._follow_file()
                    result = call()
            except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                if self._watched is not None and self.rescued is None and self._watched.fate() is not None:
                    continue  # without its log, SQLite does not write to a deleted file
                if not _is_away(error):
                    reason = _first_line(error)
                    if any(words in reason for words in ("malformed", "not a database", "no such table")):
                        raise RunError(
                            f"the storage {self.shown} is damaged, or another program has written into its file: "
                            f"{reason}; restore it from a copy, then continue with `cst-search resume`"
                        ) from error
                    if "disk" in reason:  # SQLite's "database or disk is full", "disk I/O error"
                        raise RunError(
                            f"the storage {self.shown} cannot be written: {reason}; finished trials are kept; "
                            f"make room, then continue with `cst-search resume`"
                        ) from error
                    if any(words in reason for words in ("readonly", "read-only", "permission denied")):
                        kind = RunError if self.launch else StudyError
                        raise kind(
                            f"the storage {self.shown} cannot be written: {self._reason(error)}; finished trials are "
                            f"kept; give this user the right to write there, or choose another --storage"
                        ) from error
                    raise
                if self._gave_up or time.monotonic() - begun > WAIT_SECONDS:
                    self._gave_up, self._said_away = True, False  # calls during shutdown must not wait as long
                    raise RunError(
                        f"the storage {self.shown} was away for {WAIT_SECONDS / 60:.0f} minutes "
                        f"({self._reason(error)}); finished trials are kept; continue with `cst-search resume`"
                    ) from error
                if not self._said_away and time.monotonic() - begun > 1:  # once, also if other threads wait
                    said = self._said_away = True
                    self.say(f"the storage {self.shown} is away ({self._reason(error)}); waiting for it")
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 1.5, 5.0)
            except json.JSONDecodeError as error:  # Optuna's, of an attribute
                raise DamagedError(f"an attribute in {self.shown} is damaged: it is not JSON: {error}") from None
            else:
                self._gave_up = False
                if said:
                    self._said_away = False
                    self.say(f"the storage is back after {time.monotonic() - begun:.0f} s")
                return result

    def set_trial_state_values(self, trial_id: int, state: TrialState, values: Any = None) -> bool:
        n_tries = 0

        def call() -> bool:
            nonlocal n_tries
            n_tries += 1
            try:
                return super(Storage, self).set_trial_state_values(trial_id, state, values)
            except optuna.exceptions.UpdateFinishedTrialError:
                # the reply to the first call may have been lost
                if n_tries > 1 and self.get_trial(trial_id).state == state:
                    return True
                raise

        with self._while_it_is_there():
            return self.patiently(call)

    @contextmanager
    def _while_it_is_there(self) -> Iterator[None]:
        try:
            yield
        except KeyError:  # Optuna's, of a record that does not exist
            raise RunError(
                f"the study is not in the storage {self.shown} any more: another program, optuna-dashboard say, has "
                f"deleted it; restore the database from a copy, or search anew"
            ) from None

    def now(self) -> float:
        """Return the time of the database's clock, which all launches share, in seconds as Unix time."""
        kind = (
            "strftime('%s', 'now')" if self.engine.dialect.name == "sqlite" else "extract(epoch from clock_timestamp())"
        )

        def call() -> float:
            with self.engine.connect() as connection:
                return float(connection.execute(sqlalchemy.text(f"SELECT {kind}")).scalar_one())

        return self.patiently(call)

    @contextmanager
    def alone(self, study: str) -> Iterator[Callable[[], bool]]:
        """Hold the study's lock: no other process that works on the study is inside. The lock ends with the process.

        Yields:
            A function that returns whether the lock is still held; a restart of the server releases it.
        """
        me = Holder.here(self.launch)
        path = self.engine.url.database
        if self.engine.dialect.name == "sqlite":
            if not path or not Path(path).is_file():
                yield lambda: True
                return
            lock: FileLock | AdvisoryLock = FileLock(Path(f"{path}.lock"), me)
            wait_for(lock, self._is_dead, self.say)
        else:
            key = int.from_bytes(hashlib.sha256(f"cst-search {study}".encode()).digest()[:8], "big", signed=True)
            lock = self.patiently(lambda: self._advisory_lock(key, me))
        try:
            yield lock.is_held
        finally:
            lock.release()

    def _advisory_lock(self, key: int, me: Holder) -> AdvisoryLock:
        lock = AdvisoryLock(self.engine, key, me)
        try:
            wait_for(lock, self._is_dead, self.say)
        except BaseException:
            lock.close()
            raise
        return lock

    def _is_dead(self, holder: Holder) -> bool:
        """Return whether the holder of a lock gives no sign of life; on this host, if it is a stopped process, too."""
        if holder.host == socket.gethostname() and not is_stopped(holder.pid):
            return False
        key = BEAT + holder.launch
        beat = self.patiently(lambda: read_study_value(self.engine, key)) if holder.launch else holder.since
        return self.now() - (beat if isinstance(beat, int | float) else holder.since) > DEAD_SECONDS


def _patient(name: str) -> Any:
    method = getattr(optuna.storages.RDBStorage, name)

    @functools.wraps(method)
    def call(self: Storage, *args: Any, **kwargs: Any) -> Any:
        # a name may never have been there
        with nullcontext() if name == "get_study_id_from_name" else self._while_it_is_there():
            return self.patiently(lambda: method(self, *args, **kwargs))

    return call


# The methods that Optuna's cache in front of the storage calls; `set_trial_state_values` is above.
for _name in (
    "create_new_study", "delete_study", "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name",
    "get_study_name_from_id", "get_study_directions", "get_study_user_attrs", "get_study_system_attrs",
    "get_all_studies", "_create_new_trial", "_set_trial_param", "get_trial_id_from_study_id_trial_number",
    "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr", "get_trial", "_get_trials",
):  # fmt: skip
    setattr(Storage, _name, _patient(_name))


def _make(url: str, n_tries: int = 8) -> Storage:
    """Return a storage, creating its tables. Retries while another launch is creating them at the same moment.

    RuntimeError is caught because Optuna reads a version that is not written yet, and takes it for a different one.
    """
    for left in reversed(range(n_tries)):
        try:
            return Storage(url)
        except (
            sqlalchemy.exc.DBAPIError,
            optuna.exceptions.StorageInternalError,
            AssertionError,
            RuntimeError,
        ) as error:
            if not left or (_is_away(error) and not is_sqlite(url)):
                raise
            time.sleep(random.uniform(0.1, 0.5))
    raise AssertionError


def _connect(url: str, make: bool) -> Storage:
    """Return a storage. A server that is starting, or has answered before, is waited for as in `Storage.patiently`.

    Any other that does not answer may have a misspelt address.
    """
    begun, is_said = time.monotonic(), False
    while True:
        try:
            storage = _make(url) if make else Storage(url)
        except (sqlalchemy.exc.DBAPIError, optuna.exceptions.StorageInternalError) as error:
            is_there = url in _ANSWERED or "the database system is " in _first_line(error)  # starting up, in recovery
            if not is_there or not _is_away(error) or time.monotonic() - begun > WAIT_SECONDS:
                raise
            if not is_said:
                reason = without_password(_first_line(error), url)
                _say_aside(f"the storage {shown_address(url)} is away ({reason}); waiting for it")
                is_said = True
            time.sleep(1)
        else:
            if not is_sqlite(url):
                _ANSWERED.add(url)
            return storage


def open_storage(url: str, *, make: bool = False) -> Storage:
    """Open a storage; ``make`` creates one that does not exist. Raises StudyError with the reason if it is unusable."""
    shown = check_storage(url)
    path = sqlite_file(url)
    try:
        if path is not None and not path.exists():
            if not make:  # SQLite would create an empty database at a misspelt path
                raise StudyError(f"the storage {shown} does not exist; `cst-search launch` makes it")
            path.parent.mkdir(parents=True, exist_ok=True)
        elif path is not None and not is_of_optuna(path):  # Optuna would add its tables to another program's
            raise StudyError(f"{shown} is not a storage of studies but another database; choose another file")
        return _connect(url, make)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError, OSError) as error:
        # RuntimeError: created by another version of Optuna; its message says how to proceed
        reason = without_password(_first_line(error), url)
        if path is not None and path.is_file() and "unable to open" in reason and not os.access(path.parent, os.W_OK):
            reason += (
                f"; a search was at work on it or was killed, and SQLite cannot write beside it there; copy it, and "
                f"{path.name}-wal if there is one, to a folder of yours"
            )
        if path is None and _is_away(error):
            reason += "; start its server, or give another --storage"
        raise StudyError(f"the storage {shown} cannot be used: {reason}") from None


def try_storage(url: str) -> int | None:
    """Return the number of studies in a storage after a trial write, cleaned up; None: its file does not exist yet.

    Raises StudyError if the storage cannot be used.
    """
    check_storage(url)
    path = sqlite_file(url)
    if path is not None and not path.is_file():
        return None
    storage = open_storage(url)
    name = f"cst-search doctor {uuid.uuid4().hex}"
    try:
        storage.delete_study(storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], name))
        return len(storage.get_all_studies())
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RunError) as error:
        # Optuna reports any insert that the database refuses as a duplicate name, without the reason
        raise StudyError(f"the storage {storage.shown} cannot be written: {storage._reason(error)}") from None
    finally:
        storage.engine.dispose()


def alone(storage: optuna.storages.BaseStorage | None, study: str) -> AbstractContextManager[Callable[[], bool]]:
    """Return `Storage.alone`, or a no-op lock for a study in memory, which no other process can reach."""
    return storage.alone(study) if isinstance(storage, Storage) else nullcontext(lambda: True)


# --- Optuna internals: no public names --------------------------------------------------------------------------------


@contextmanager
def experimental() -> Iterator[None]:
    """Silence Optuna's warnings about experimental features used on purpose: `group` of TPE, GP, metric names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def study_names(storage: Storage, having: str) -> list[str]:
    """Return the names of the studies that have a user attribute, in the order they were created."""
    return storage.patiently(lambda: read_study_names(storage.engine, having))


def trials_in_memory(study: optuna.Study, after: int, also: Collection[int]) -> list[StoredTrial]:
    """Return trials of a study without a database, as `fast_reads.read_trials` does."""
    return [
        StoredTrial(trial._trial_id, trial.number, trial.state.name, trial.user_attrs)
        for trial in study.get_trials(deepcopy=False)
        if trial._trial_id > after or trial._trial_id in also
    ]


def add_running_trial(study: optuna.Study, user_attrs: Mapping[str, Any]) -> Trial:
    """Add a running trial without parameters.

    A trial from ``ask`` would have parameters: TPE counts a running trial as a bad one, GP as one whose value is
    pending.
    """
    begun = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=dict(user_attrs))
    return Trial(study, study._storage.create_new_trial(study._study_id, begun))


def set_dashboard_constraint(study: optuna.Study, trial: Trial, violation: float) -> None:
    """Store a constraint where optuna-dashboard 0.21 looks for it; <= 0 is feasible.

    The dashboard reads only the list that Optuna 4 wrote; without it infeasible trials look feasible. Optuna 5 adds
    that list to the named constraints, and its GP sampler fits a model to each, so one entry is enough.
    """
    study._storage.set_trial_system_attr(trial._trial_id, "constraints", [violation])
