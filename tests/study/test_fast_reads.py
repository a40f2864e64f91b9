"""The database beside Optuna: both read the same, only what is new is read, and SQLite does not wait for the disk."""

from __future__ import annotations

import dataclasses
import random
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import psutil
import pytest
import sqlalchemy
from optuna.trial import TrialState
from studies import fake_estimate, make_study, open_session, run_one, scored

from cst_search.search.session import SearchSession
from cst_search.study import fast_reads as database
from cst_search.study import trial_attributes as stored
from cst_search.study.fast_reads import read_trials
from cst_search.study.study import Study


def engine_of(session: SearchSession) -> sqlalchemy.Engine:
    assert session.study.storage is not None
    return session.study.storage.engine


def as_optuna_reads(session: SearchSession) -> list[tuple[int, int, str, dict[str, Any]]]:
    trials = optuna.load_study(study_name=session.study.name, storage=session.study.url).get_trials()
    return [(t._trial_id, t.number, t.state.name, t.user_attrs) for t in trials]


def test_both_readings_agree(tmp_path: Path) -> None:
    """Every state that Optuna has, an attribute of somebody else's, and another study in the same database."""
    session, other = make_study(tmp_path), make_study(tmp_path, "other")
    for result in (scored(0.4), {"outcome": "failed", "reason": "é \u2028"}, {"outcome": "oom", "reason": "x"}):
        run_one(session, result)
        run_one(other, result)
    session.ask(fake_estimate)  # type: ignore[arg-type]
    raw = session.study.optuna_study()
    raw.add_trial(optuna.create_trial(state=TrialState.PRUNED, user_attrs={"theirs": [1, None]}))
    raw.enqueue_trial({"lr": 0.01})
    for one in (session, other):
        found = read_trials(engine_of(one), one.study.name, after=-1)
        assert [(t.trial_id, t.number, t.state, t.user_attrs) for t in found] == as_optuna_reads(one)
    assert {t.state for t in read_trials(engine_of(session), "made", after=-1)} == {state.name for state in TrialState}


def test_which_trials_are_finished() -> None:
    for state in TrialState:
        assert database.StoredTrial(1, 0, state.name, {}).is_finished == state.is_finished()


def test_only_what_is_asked_for_is_read(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    for i in range(5):
        run_one(session, scored(0.1 * i))
    ids = [trial.trial_id for trial in read_trials(engine_of(session), session.study.name, after=-1)]
    for after, also, expected in ((ids[2], [], ids[3:]), (ids[2], [ids[0]], [ids[0], *ids[3:]]), (ids[-1], [], [])):
        assert [t.trial_id for t in read_trials(engine_of(session), session.study.name, after, also)] == expected


# --- SQLite's log ---------------------------------------------------------------------------------------------------


def mode(path: Path) -> str:
    connection = sqlite3.connect(path)
    found = connection.execute("PRAGMA journal_mode").fetchone()[0]
    connection.close()
    return found


def test_sqlite_uses_wal_during_a_launch(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    assert mode(tmp_path / "studies.db") == "delete"
    session.begin_launch()
    assert mode(tmp_path / "studies.db") == "wal"
    with engine_of(session).connect() as connection:
        assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 1  # NORMAL
    run_one(session, scored(0.4))
    reader = open_session(session.study.url, session.study.name)
    assert len(reader.study.info().trials) == 1  # at the same time
    engine_of(reader).dispose()
    session.end_launch()
    assert {path.name for path in tmp_path.iterdir()} == {"studies.db", "studies.db.lock"}
    assert mode(tmp_path / "studies.db") == "delete"


def test_readers_do_not_block_the_writer(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    session.begin_launch()
    run_one(session, scored(0.4))
    reader = sqlite3.connect(tmp_path / "studies.db")
    reader.execute("BEGIN")
    assert reader.execute("SELECT count(*) FROM trials").fetchone() == (1,)
    run_one(session, scored(0.5))
    assert reader.execute("SELECT count(*) FROM trials").fetchone() == (1,)
    session.end_launch()  # the log stays as long as somebody reads
    reader.close()
    assert mode(tmp_path / "studies.db") == "wal"
    assert Study.open(session.study.url, session.study.name).info().n_ran() == 2


DIES = """
    import os, sys
    from pathlib import Path
    sys.path.insert(0, sys.argv[1])
    from studies import make_study, run_one, scored
    study = make_study(Path(sys.argv[2]))
    study.begin_launch()
    for i in range(3):
        run_one(study, scored(0.4))
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_launch_wrote_is_there(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(DIES), str(Path(__file__).parents[1]), str(tmp_path)], timeout=120
    )
    assert ended.returncode == -9
    assert (tmp_path / "studies.db-wal").stat().st_size > 0
    session = make_study(tmp_path)
    assert session.study.info().n_ran() == 3
    session.begin_launch()
    session.end_launch()
    assert {path.name for path in tmp_path.iterdir()} == {"studies.db", "studies.db.lock"}


@pytest.mark.parametrize(
    ("mounts", "expected"),
    [
        ([("/", "ext4")], "wal"),
        ([("/", "ext4"), ("{home}", "nfs4")], "delete"),
        ([("/", "nfs4"), ("{home}", "xfs")], "wal"),
        ([("/", "fuse.sshfs")], "delete"),
        ([], "delete"),  # not known
    ],
)
def test_no_wal_on_network_file_systems(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mounts: list[tuple[str, str]], expected: str
) -> None:
    parts = [SimpleNamespace(mountpoint=point.format(home=tmp_path), fstype=kind) for point, kind in mounts]
    monkeypatch.setattr(psutil, "disk_partitions", lambda all: parts)
    session = make_study(tmp_path)
    session.begin_launch()
    assert mode(tmp_path / "studies.db") == expected


# --- a study that several processes write to ------------------------------------------------------------------------


def test_incremental_reads_agree_with_full_reads_while_others_write(tmp_path: Path) -> None:
    """Three views of one study that take turns at random, against one that reads everything anew."""
    rng = random.Random(1)
    results: list[dict[str, Any]] = [
        scored(0.4), scored(0.9, device_bytes=1500), {"outcome": "oom", "reason": "x"},
        {"outcome": "nonfinite", "reason": "nan"}, {"outcome": "failed", "reason": "y"},
        scored(0.3, device_bytes=200, reserved_bytes=700),
    ]  # fmt: skip
    views = [make_study(tmp_path) for _ in range(3)]
    views[0].begin_launch()
    for seed, view in enumerate(views):
        spec = view.study.spec
        view.study.spec = dataclasses.replace(spec, seed=seed)  # else they suggest the same
        view.suggester.begin()
        view.study.spec = spec
        view.study.launch_registry.id = views[0].launch_id  # so that what they hand out counts as running
    running: list[tuple[SearchSession, int]] = []
    for step in range(60):
        view = rng.choice(views)
        action = rng.random()
        if action < 0.45 or not running:
            suggestion = view.ask(fake_estimate)  # type: ignore[arg-type]
            assert suggestion is not None
            running.append((view, suggestion.trial))
        elif action < 0.8:
            owner, number = running.pop(rng.randrange(len(running)))
            result = rng.choice(results)
            told = owner.tell(number, result)
            assert told == Study.open(owner.study.url, owner.study.name).info().by_number(number)
        if step % 4 == 0:
            view = rng.choice(views)
            fresh = Study.open(view.study.url, view.study.name)
            info = view.study.info()
            assert info == fresh.info()
            done = [record for record in info.trials if record.state not in ("running", "interrupted")]
            assert sorted(view.study.finished(), key=lambda record: record.trial) == done  # each of them once
            unfinished = {number for number, *_ in ((n,) for _, n in running)}
            assert view.study.first_running() == min(unfinished, default=len(info.trials))
    assert {record.state for record in info.trials} == {"complete", "infeasible", "failed", "running"}


def test_a_finished_trial_causes_reads_of_new_rows_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that our reading fetches and records that are made, for one more trial after 3 and after 60."""
    session = make_study(tmp_path)
    session.begin_launch()
    made, read = [], []
    record, reading = stored.trial_record, database.read_trials

    def count_record(trial: Any, *arguments: Any) -> Any:
        made.append(trial.number)
        return record(trial, *arguments)

    def count_reading(*arguments: Any) -> Any:
        found = reading(*arguments)
        read.extend(found)
        return found

    monkeypatch.setattr("cst_search.study.reader.trial_record", count_record)
    monkeypatch.setattr("cst_search.study.reader.read_trials", count_reading)
    costs = []
    for i in range(61):
        made.clear(), read.clear()
        seen = len(session.study.finished())
        number = run_one(session, scored(0.01 * i), cst__reduction=8, batch_size=2, lr=0.001 + 1e-5 * i).trial
        assert [r.trial for r in session.study.finished(since=seen)][-1] == number
        session.study.first_running()
        costs.append((len(made), len(read)))
    # as it waits in the queue, when it is handed out, as it runs, and when it has ended
    assert costs[3] == costs[60] == (1, 4)
