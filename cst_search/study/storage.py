"""Where studies are kept: Optuna's storage in SQLite, for one machine, or PostgreSQL, for many.

A server may restart in the middle of a search: `Storage` asks again until it is back. Several launches may work on one
study: `Storage.alone` lets one of them at a time choose what to run, and `Storage.now` is a clock that they share.
"""

from __future__ import annotations

import functools
import hashlib
import random
import time
import uuid
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Any, TypeVar

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.trial import Trial, TrialState

from cst_search.errors import RunError, StudyError
from cst_search.redaction import shown_address, without_password
from cst_search.study.fast_reads import StoredTrial, dont_wait_for_the_disk, is_of_optuna

WAIT_SECONDS = 900  # for a server that is away; an operating system's update takes less
_KINDS = ("sqlite", "postgresql")
_T = TypeVar("_T")


def check_storage(url: str, flag: str = "--storage", kinds: Collection[str] = _KINDS) -> str:
    """The URL with its password hidden. Raises StudyError: no URL of a database that we take, or without its driver."""
    example = f"{flag} takes a database URL such as sqlite:///studies.db or postgresql+psycopg://host/name"
    try:
        made = sqlalchemy.make_url(url)
        dialect = made.get_dialect()
    except sqlalchemy.exc.NoSuchModuleError:
        raise StudyError(f"{example}; there is no kind of database for {shown_address(url)}") from None
    except (sqlalchemy.exc.ArgumentError, ValueError):  # ValueError: a port that is no number
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


def is_sqlite(url: str) -> bool:
    return sqlalchemy.make_url(url).get_backend_name() == "sqlite"


def _is_away(error: BaseException | None) -> bool:
    """Whether a server did not answer, or its connection broke; SQLite: another process held the file too long."""
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


class Storage(optuna.storages.RDBStorage):
    """Optuna's storage, whose calls are made again while the server is away, for `WAIT_SECONDS` at most.

    A call that is made again may find its work done: an attribute is the same when it is set twice, a trial that was
    made twice has one with nothing in it (see `SearchSession.begin_launch`), one that had ended is looked at.

    Attributes:
        say: is told, once, that the server is away, and that it is back.

    Raises (every call):
        RunError: the server stayed away; or SQLite cannot write, as its disk is full.
    """

    def __init__(self, url: str) -> None:
        self.shown = check_storage(url)
        self.say: Callable[[str], None] = lambda line: None
        self._gave_up = self._said_away = False
        sqlite = is_sqlite(url)
        # SQLite: several processes write; wait for the lock rather than fail
        connect_args: dict[str, Any] = {"timeout": 60} if sqlite else {"connect_timeout": 10}
        pool = {} if sqlite else {"pool_size": 3, "max_overflow": 5}
        super().__init__(url, engine_kwargs={"connect_args": connect_args, "pool_pre_ping": True, **pool})
        if sqlite:
            sqlalchemy.event.listen(self.engine, "connect", dont_wait_for_the_disk)

    def _reason(self, error: BaseException) -> str:
        return without_password(_first_line(error), self.url)

    def patiently(self, call: Callable[[], _T]) -> _T:
        """Make a call, and make it again while the server is away."""
        begun, said, pause = time.monotonic(), False, 0.2
        while True:
            try:
                result = call()
            except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
                if not _is_away(error):
                    reason = _first_line(error)
                    if "disk" in reason:  # SQLite's "database or disk is full", "disk I/O error"
                        raise RunError(
                            f"the storage {self.shown} cannot be written: {reason}; what is finished is kept; "
                            f"make room, then go on with `cst-search resume`"
                        ) from error
                    raise
                if self._gave_up or time.monotonic() - begun > WAIT_SECONDS:
                    self._gave_up, self._said_away = True, False  # what is called on the way out shall not wait as long
                    raise RunError(
                        f"the storage {self.shown} was away for {WAIT_SECONDS / 60:.0f} minutes "
                        f"({self._reason(error)}); what is finished is kept; go on with `cst-search resume`"
                    ) from error
                if not self._said_away and time.monotonic() - begun > 1:  # whoever else waits, on another thread
                    said = self._said_away = True
                    self.say(f"the storage {self.shown} is away ({self._reason(error)}); waiting for it")
                time.sleep(pause * random.uniform(0.5, 1.5))
                pause = min(pause * 1.5, 5.0)
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
                # the answer to the first call may have been lost on its way
                if n_tries > 1 and self.get_trial(trial_id).state == state:
                    return True
                raise

        return self.patiently(call)

    def now(self) -> float:
        """Seconds of the database's clock, that all launches share; as Unix time."""
        kind = (
            "strftime('%s', 'now')" if self.engine.dialect.name == "sqlite" else "extract(epoch from clock_timestamp())"
        )

        def call() -> float:
            with self.engine.connect() as connection:
                return float(connection.execute(sqlalchemy.text(f"SELECT {kind}")).scalar_one())

        return self.patiently(call)

    @contextmanager
    def alone(self, study: str) -> Iterator[Callable[[], bool]]:
        """While it lasts no other process is within, of those that work on the study. It ends with the process.

        Gives what tells whether it still lasts: with a restart of the server it does not.
        """
        if self.engine.dialect.name == "sqlite":
            with self._file_lock():
                yield lambda: True
            return
        key = int.from_bytes(hashlib.sha256(f"cst-search {study}".encode()).digest()[:8], "big", signed=True)
        connection = self.patiently(lambda: self._lock(key))
        try:
            yield lambda: _answers(connection)
        finally:
            with suppress(sqlalchemy.exc.SQLAlchemyError):  # a connection that broke holds nothing
                connection.execute(sqlalchemy.text("SELECT pg_advisory_unlock(:key)"), {"key": key})
            with suppress(sqlalchemy.exc.SQLAlchemyError):
                connection.close()

    def _lock(self, key: int) -> sqlalchemy.Connection:
        connection = self.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        try:
            # asked for, not waited for: so Ctrl-C gets through
            while not connection.execute(sqlalchemy.text("SELECT pg_try_advisory_lock(:key)"), {"key": key}).scalar():
                time.sleep(0.05)
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _file_lock(self) -> Iterator[None]:
        path = self.engine.url.database
        if not path or not Path(path).is_file():
            yield
            return
        lock = FileLock(f"{path}.lock")
        while True:
            try:
                lock.acquire(timeout=1)
                break
            except Timeout:
                continue
        try:
            yield
        finally:
            lock.release()


def _answers(connection: sqlalchemy.Connection) -> bool:
    try:
        connection.execute(sqlalchemy.text("SELECT 1"))
    except sqlalchemy.exc.SQLAlchemyError:
        return False
    return True


def _patient(name: str) -> Any:
    method = getattr(optuna.storages.RDBStorage, name)

    @functools.wraps(method)
    def call(self: Storage, *args: Any, **kwargs: Any) -> Any:
        return self.patiently(lambda: method(self, *args, **kwargs))

    return call


# what Optuna's cache, which stands before the storage, calls; and `set_trial_state_values` above
for _name in (
    "create_new_study", "delete_study", "set_study_user_attr", "set_study_system_attr", "get_study_id_from_name",
    "get_study_name_from_id", "get_study_directions", "get_study_user_attrs", "get_study_system_attrs",
    "get_all_studies", "_create_new_trial", "_set_trial_param", "get_trial_id_from_study_id_trial_number",
    "set_trial_intermediate_value", "set_trial_user_attr", "set_trial_system_attr", "get_trial", "_get_trials",
):  # fmt: skip
    setattr(Storage, _name, _patient(_name))


def _make(url: str, n_tries: int = 8) -> Storage:
    """A storage whose tables another launch may be making at this moment: then ours are refused, until they are there.

    RuntimeError: Optuna reads a version that is not written yet, and takes it for another one.
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


def open_storage(url: str, *, make: bool = False) -> Storage:
    """Raises StudyError: it cannot be used, with the reason."""
    shown = check_storage(url)
    path = sqlalchemy.make_url(url).database if is_sqlite(url) else None
    try:
        if path and path != ":memory:" and not path.startswith("file:") and not Path(path).exists():
            if not make:  # SQLite would make an empty database of a misspelt path
                raise StudyError(f"the storage {shown} does not exist; `cst-search launch` makes it")
            Path(path).parent.mkdir(parents=True, exist_ok=True)
        elif path and not is_of_optuna(Path(path)):  # Optuna would put its tables beside those of another program
            raise StudyError(f"{shown} is not a storage of studies but another database; choose another file")
        return _make(url) if make else Storage(url)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, ImportError, RuntimeError, OSError) as error:
        # RuntimeError: made by another version of Optuna, which says how to go on
        raise StudyError(f"the storage {shown} cannot be used: {without_password(_first_line(error), url)}") from None


def try_storage(url: str) -> int | None:
    """Write to a storage and clean up; the number of its studies. None: a file that does not exist yet.

    Raises StudyError: it cannot be used.
    """
    check_storage(url)
    path = sqlalchemy.make_url(url).database if is_sqlite(url) else None
    if path and not Path(path).is_file():
        return None
    storage = open_storage(url)
    name = f"cst-search doctor {uuid.uuid4().hex}"
    try:
        storage.delete_study(storage.create_new_study([optuna.study.StudyDirection.MINIMIZE], name))
        return len(storage.get_all_studies())
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RunError) as error:
        # Optuna takes whatever a database refuses to insert for a name that is there, and says nothing
        raise StudyError(f"the storage {storage.shown} cannot be written: {storage._reason(error)}") from None
    finally:
        storage.engine.dispose()


def alone(storage: optuna.storages.BaseStorage | None, study: str) -> AbstractContextManager[Callable[[], bool]]:
    """`Storage.alone`; in memory a process is alone anyway."""
    return storage.alone(study) if isinstance(storage, Storage) else nullcontext(lambda: True)


# --- what Optuna does not offer by public names -----------------------------------------------------------------------


@contextmanager
def experimental() -> Iterator[None]:
    """Silence Optuna's warnings of experimental parts used on purpose: `group` of TPE, GP, names of metrics."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        yield


def study_names(storage: Storage, having: str) -> list[str]:
    """Names of the studies that have a user attribute, in the order they were made."""
    studies = storage.get_all_studies()  # their summaries would read every trial
    return [study.study_name for study in sorted(studies, key=lambda s: s._study_id) if having in study.user_attrs]


def trials_in_memory(study: optuna.Study, after: int, also: Collection[int]) -> list[StoredTrial]:
    """Trials of a study that has no database, as `fast_reads.read_trials` reads them."""
    return [
        StoredTrial(trial._trial_id, trial.number, trial.state.name, trial.user_attrs)
        for trial in study.get_trials(deepcopy=False)
        if trial._trial_id > after or trial._trial_id in also
    ]


def add_running_trial(study: optuna.Study, user_attrs: Mapping[str, Any]) -> Trial:
    """Add a running trial without parameters.

    A trial that is asked for has parameters: TPE takes a running one for a bad one, GP for one whose value is about to
    be known.
    """
    begun = optuna.trial.create_trial(state=TrialState.RUNNING, user_attrs=dict(user_attrs))
    return Trial(study, study._storage.create_new_trial(study._study_id, begun))


def set_dashboard_constraint(study: optuna.Study, trial: Trial, violation: float) -> None:
    """Store a constraint where optuna-dashboard 0.21 looks for it: <= 0 is feasible.

    It reads only the list that Optuna 4 wrote; without it infeasible trials look feasible. Optuna 5 adds that list to
    the named constraints, and its GP sampler fits a model to each: one is enough.
    """
    study._storage.set_trial_system_attr(trial._trial_id, "constraints", [violation])
