"""The storage: in SQLite and in PostgreSQL, when the server is away, and when others use it too."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
import sqlalchemy
from postgres import PASSWORD, Server, find_binaries, server
from studies import fake_estimate, make_spec, open_session, run_one, scored

from cst_search.errors import RunError, StudyError
from cst_search.redaction import shown_address
from cst_search.search.session import SearchSession
from cst_search.study import storage
from cst_search.study.storage import Storage, check_storage, open_storage, try_storage
from cst_search.study.study import Study, list_studies

NEEDS_POSTGRES = pytest.mark.skipif(find_binaries() is None, reason="PostgreSQL is not installed")


@pytest.fixture(scope="module")
def restarting() -> Iterator[Server]:
    """A server of this file's own, as it is stopped again and again."""
    if find_binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with server() as made:
        yield made


def make(url: str, **changes: Any) -> SearchSession:
    return SearchSession(Study.create(url, "made", make_spec(**changes)))


def test_a_study_lives_in_every_kind_of_database(storage_url: str) -> None:
    """From its making to its end and on: suggestions, progress, every outcome, another launch, another reader."""
    assert try_storage(storage_url) == (None if storage_url.startswith("sqlite") else 0)
    session = make(storage_url, sampler="pareto")
    session.begin_launch()
    faults = [{"outcome": outcome, "reason": "x"} for outcome in ("oom", "nonfinite", "failed")]
    results = [scored(0.3), scored(0.5, device_bytes=1500), *faults, scored(0.4)]
    for result in results:
        run_one(session, result)
    cut = session.ask(fake_estimate)  # type: ignore[arg-type]
    assert cut is not None
    session.progress(cut.trial, {"epoch": 1, "map": 0.1})
    session.describe_launch({"trials": 9})
    session.end_launch()
    reader = open_session(storage_url, "made")
    assert reader.study.info() == session.study.info() and list_studies(storage_url) == ["made"]
    assert [r.state for r in reader.study.info().trials if r.ran] == [
        "complete", "infeasible", "infeasible", "failed", "failed", "complete", "interrupted",
    ]  # fmt: skip
    reader.begin_launch()
    again = reader.ask(fake_estimate)  # type: ignore[arg-type]
    assert again is not None and (again.trial, again.again) == (cut.trial, True)
    reader.tell(again.trial, scored(0.45))
    reader.end_launch()
    assert [launch.state for launch in reader.study.launches()] == ["ended"]
    assert try_storage(storage_url) == 1


def test_the_clock_is_the_databases(storage_url: str) -> None:
    made = open_storage(storage_url, make=True)
    assert abs(made.now() - time.time()) < 30


def test_only_one_process_holds_the_study_lock(storage_url: str) -> None:
    made = [open_storage(storage_url, make=True) for _ in range(3)]
    inside, most, done = 0, 0, []

    def work(own: Storage) -> None:
        nonlocal inside, most
        for _ in range(5):
            with own.alone("one study"):
                inside += 1
                most = max(most, inside)
                time.sleep(0.01)
                inside -= 1
            time.sleep(0.06)  # longer than the others wait before they ask again
        done.append(own)

    threads = [threading.Thread(target=work, args=(own,)) for own in made]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert most == 1 and len(done) == 3


# --- a server that goes away -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_a_restart_is_waited_for(restarting: Server, mode: str) -> None:
    """A whole search goes on through it: nothing is lost, nothing is there twice. Of two who wait one says so."""
    url = restarting.database(f"restart-{mode}")
    session = make(url)
    said: list[str] = []
    assert session.study.storage is not None
    session.study.storage.say = said.append
    session.begin_launch()
    is_down = threading.Event()

    def restart() -> None:
        restarting.stop(mode)
        is_down.set()
        beside = threading.Thread(target=session.study.storage.now)  # as a heartbeat
        beside.start()
        time.sleep(2.5)
        restarting.start()
        beside.join()

    restarter = threading.Thread(target=restart)
    told: list[int] = []
    for i in range(8):
        if i == 3:
            restarter.start()
            assert is_down.wait(60)
        suggestion = session.ask(fake_estimate)  # type: ignore[arg-type]
        assert suggestion is not None
        session.progress(suggestion.trial, {"epoch": 1, "map": 0.1})
        session.tell(suggestion.trial, scored(0.01 * i))
        told.append(suggestion.trial)
    restarter.join()
    session.end_launch()
    info = Study.open(url, "made").info()
    assert [r.trial for r in info.trials if r.ran] == told and {r.state for r in info.trials if r.ran} == {"complete"}
    assert len(said) == 2 and "is away" in said[0] and "waiting for it" in said[0] and "is back after" in said[1]
    assert PASSWORD not in str(said)


@NEEDS_POSTGRES
@pytest.mark.parametrize("when", ["before it has a trial", "with a trial half asked for", "that is taken for dead"])
def test_losing_the_lock_while_choosing_repeats_the_choice(
    postgres: Server, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    """As in a restart of the server: another launch of the same seed comes in between, and takes the same."""
    url = postgres.database(f"lock-{len(when)}")
    first, second = make(url, sampler="random"), make(url, sampler="random")
    for session in (first, second):
        session.begin_launch(shares_machine=True)
    between: list[Any] = []

    def lose() -> None:
        if between:
            return
        engine = sqlalchemy.create_engine(postgres.url)
        with engine.connect() as connection:
            holders = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'"
            assert connection.exec_driver_sql(holders).all() == [(True,)]
        engine.dispose()
        between.append(second.ask(fake_estimate))  # type: ignore[arg-type]

    def estimate(config: dict[str, Any]) -> Any:
        if "half" in when:
            lose()
        return fake_estimate(config)

    if "before" in when:
        ask = first.study.optuna_study().ask
        monkeypatch.setattr(first.study.optuna_study(), "ask", lambda: (lose(), ask())[1])
    if "dead" in when:  # by the other: without a configuration, and its launch does not hold the lock
        sample = first.study.optuna_study().sampler.sample_independent

        def sampled(study: Any, trial: Any, *arguments: Any) -> Any:
            if not between:
                lose()
            return sample(study, trial, *arguments)

        monkeypatch.setattr(first.study.optuna_study().sampler, "sample_independent", sampled)
    chosen = first.ask(estimate)  # type: ignore[arg-type]
    assert chosen is not None and between[0] is not None and chosen.config != between[0].config
    for session, suggestion in ((first, chosen), (second, between[0])):
        assert session.tell(suggestion.trial, scored(0.4)) is not None
        session.end_launch()
    info = Study.open(url, "made").info()
    assert [r.state for r in info.trials] == ["complete"] * 2


def test_a_server_that_was_there_is_waited_for_as_a_study_is_opened(
    restarting: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A launch opens its database several times before it begins. One that never answered is refused at once."""
    url = restarting.database("opening")
    restarting.stop()
    starter = threading.Timer(1.5, restarting.start)
    try:
        with pytest.raises(StudyError, match=r"cannot be used: .*; start its server, or give another --storage"):
            list_studies(url, make=True)
        assert capsys.readouterr().err == ""
    finally:
        starter.start()
    monkeypatch.setattr(storage, "_ANSWERED", {url})
    assert list_studies(url, make=True) == []
    starter.join()
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and "is away" in said[0] and said[0].endswith("waiting for it") and PASSWORD not in said[0]

    connect, n_tries = storage._make, 0

    def starting(url: str) -> storage.Storage:
        nonlocal n_tries
        n_tries += 1
        if n_tries == 1:
            raise sqlalchemy.exc.OperationalError("", {}, Exception("FATAL:  the database system is starting up"))
        return connect(url)

    monkeypatch.setattr(storage, "_make", starting)
    monkeypatch.setattr(storage, "_ANSWERED", set())
    assert list_studies(url, make=True) == [] and n_tries == 2


def test_an_unreachable_server_ends_the_search_with_a_message(
    restarting: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make(restarting.database("away"))
    session.begin_launch()
    monkeypatch.setattr(storage, "WAIT_SECONDS", 1.0)
    restarting.stop()
    try:
        with pytest.raises(
            RunError, match=r"was away for .* finished trials are kept; continue with `cst-search resume`"
        ):
            session.ask(fake_estimate)  # type: ignore[arg-type]
        monkeypatch.setattr(storage, "WAIT_SECONDS", 60.0)
        begun = time.monotonic()
        with pytest.raises(RunError):  # on the way out, say; it does not wait again
            session.end_launch()
        assert time.monotonic() - begun < 30
    finally:
        restarting.start()
    monkeypatch.undo()
    session.end_launch()


@pytest.mark.parametrize("lost", [True, False])
def test_a_lost_response_does_not_end_a_trial_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: bool
) -> None:
    """The server had done it when the connection broke: the second call finds the trial ended, as it was to be."""
    session = make(f"sqlite:///{tmp_path / 'studies.db'}")
    session.begin_launch()
    suggestion = session.ask(fake_estimate)  # type: ignore[arg-type]
    assert suggestion is not None
    real, n_calls = optuna.storages.RDBStorage.set_trial_state_values, 0

    def breaks(self: Any, *arguments: Any) -> bool:
        nonlocal n_calls
        n_calls += 1
        if n_calls == 1:
            if lost:
                real(self, *arguments)
            raise sqlalchemy.exc.OperationalError("", {}, Exception("server closed the connection unexpectedly"))
        return real(self, *arguments)

    monkeypatch.setattr(optuna.storages.RDBStorage, "set_trial_state_values", breaks)
    record = session.tell(suggestion.trial, scored(0.4))
    assert record is not None and record.map == 0.4 and n_calls == 2
    assert [r.state for r in session.study.info().trials] == ["complete"]


def test_another_fault_is_not_waited_for(tmp_path: Path) -> None:
    made = open_storage(f"sqlite:///{tmp_path / 'studies.db'}", make=True)
    begun = time.monotonic()
    with pytest.raises(KeyError):
        made.get_study_id_from_name("nobody")
    with made.engine.connect() as connection:
        connection.exec_driver_sql("DROP TABLE studies")
        connection.commit()
    with pytest.raises(RunError, match="is damaged, or another program has written into its file"):
        made.get_study_name_from_id(99)
    assert time.monotonic() - begun < 20


# --- what cannot be used ----------------------------------------------------------------------------------------------


def test_a_database_of_a_newer_optuna_is_refused(storage_url: str) -> None:
    made = open_storage(storage_url, make=True)
    with made.engine.connect() as connection:
        connection.exec_driver_sql("UPDATE alembic_version SET version_num = 'v99.0.0.a'")
        connection.commit()
    made.engine.dispose()
    with pytest.raises(StudyError, match=r"cannot be used: The runtime optuna version .* updating optuna"):
        open_storage(storage_url)


def test_a_study_of_a_newer_format_is_refused(storage_url: str) -> None:
    session = make(storage_url)
    stamp = session.study.optuna_study().user_attrs["cst_study"]
    session.study.optuna_study().set_user_attr("cst_study", stamp | {"format": 99, "version": "9.9"})
    with pytest.raises(StudyError, match=r"was written by cst-search 9\.9, which is newer; update cst-search"):
        Study.open(storage_url, "made")


@NEEDS_POSTGRES
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("s3cret", "wrong-s3cret"), "password authentication failed"),
        (("/postgres", "/nobody"), 'database "nobody" does not exist'),
        (("127.0.0.1:", "127.0.0.1:1"), "cannot be used: "),
    ],
)
def test_why_a_server_cannot_be_used(postgres: Server, change: tuple[str, str], said: str) -> None:
    head, _, tail = postgres.url.rpartition(change[0])
    url = f"{head}{change[1]}{tail}"
    with pytest.raises(StudyError) as caught:
        open_storage(url)
    assert said in str(caught.value) and "s3cret" not in str(caught.value) and "searcher:***@" in str(caught.value)


@pytest.mark.parametrize("read", [lambda url: Study.open(url, "made"), list_studies], ids=["open", "list"])
def test_reading_a_missing_storage_does_not_create_it(tmp_path: Path, read: Callable[[str], Any]) -> None:
    with pytest.raises(StudyError, match="does not exist"):
        read(f"sqlite:///{tmp_path}/new/studies.db")
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "studies.db"
    path.write_text("not a database, but long enough to be read as the head of one " * 20)
    with pytest.raises(StudyError, match=r"the storage sqlite.* cannot be used: .*file is not a database"):
        list_studies(f"sqlite:///{path}")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:hunter2@db.example:5432/studies",  # the driver is not installed
        "postgresql://me:hunter2@db.example/studies",
        "postgresql://me:hunter2@db.example:port/studies",  # a port that is no number
        "postgresql+nosuch://me:hunter2@db.example/studies",
        "nosuch://me:hunter2@db.example/studies",
        "sqlite://me:hunter2@/studies.db",
        "postgresql+psycopg://db.example/studies?user=me&password=hunter2",
        "postgresql://me:hun%2Fter2hunter2@db.example/studies",
        "me:hunter2@db.example",
    ],
)
def test_no_fault_of_a_storage_shows_its_password(url: str) -> None:
    with pytest.raises(StudyError) as caught:
        list_studies(url)
    shown, cause = str(caught.value), caught.value.__cause__
    assert "hunter2" not in shown
    assert cause is None
    assert "--storage" in shown or "storage" in shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:pw@host:5432/db", "postgresql://me:***@host:5432/db"),
        ("postgresql://me@host/db", "postgresql://me@host/db"),
        ("postgresql://host/db?password=pw&x=1", "postgresql://host/db?password=***&x=1"),
        ("postgresql://host/db?sslmode=require&sslpassword=pw", "postgresql://host/db?sslmode=require&sslpassword=***"),
        ("http://me:p@ss/w@host:5000", "http://me:***@host:5000"),  # not percent-encoded
        ("https://:token@host/path", "https://:***@host/path"),
        ("https://host/path?access_token=abc#x", "https://host/path?access_token=***"),
        ("sqlite:////home/me/a:b.db", "sqlite:////home/me/a:b.db"),
        ("./mlruns", "./mlruns"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert shown_address(url) == shown
    if url.startswith("sqlite"):  # else its driver must be there
        assert check_storage(url) == shown
