"""Launches of a study: who is alive, who is dead, and who may join."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
from studies import fake_estimate, make_study, move, scored, stop_the_heart

from cst_search.errors import StudyError
from cst_search.search.session import SearchSession
from cst_search.study import launch_registry as launches
from cst_search.study.storage import DEAD_SECONDS


def ask(session: SearchSession) -> Any:
    return session.ask(fake_estimate)  # type: ignore[arg-type]


def test_two_launches_at_a_time_are_refused(tmp_path: Path) -> None:
    first, second = make_study(tmp_path), make_study(tmp_path)
    first.begin_launch()
    with pytest.raises(StudyError, match=rf"'made' is being worked on by process {os.getpid()} on this host"):
        second.begin_launch()
    first.end_launch()
    second.begin_launch()


def test_reused_process_id_does_not_keep_a_dead_launch_alive(tmp_path: Path) -> None:
    first, second = make_study(tmp_path), make_study(tmp_path)
    launch = first.begin_launch()
    ask(first)
    raw = optuna.load_study(study_name="made", storage=first.study.url)
    key = f"cst_launch:{launch}"
    raw.set_user_attr(key, raw.user_attrs[key] | {"created": psutil.Process().create_time() - 3600})
    assert second.study.info().trials[0].state == "interrupted"
    second.begin_launch()
    assert ask(second).again


def test_a_launch_on_another_host_lives_while_its_heart_beats(tmp_path: Path) -> None:
    first, second, third = (make_study(tmp_path) for _ in range(3))
    first.begin_launch()
    mine = ask(first)
    move(first)
    assert second.study.info().trials[0].state == "running"
    second.begin_launch()  # two hosts may work on one study
    assert not ask(second).again
    stop_the_heart(first, DEAD_SECONDS - 5)
    assert third.study.info().by_number(mine.trial).state == "running"  # type: ignore[union-attr]
    stop_the_heart(first)
    assert third.study.info().by_number(mine.trial).state == "interrupted"  # type: ignore[union-attr]
    assert [launch.state for launch in second.study.launches()] == []  # as none said what it is
    again = ask(second)
    assert (again.trial, again.again) == (mine.trial, True)
    # it was not dead, it slept: whatever it brings is not counted
    assert first.progress(mine.trial, {"epoch": 1, "map": 0.9}) is False
    assert first.tell(mine.trial, scored(0.9)) is None
    assert second.tell(again.trial, scored(0.4)).map == 0.4  # type: ignore[union-attr]
    assert [r.map for r in third.study.info().trials if r.state == "complete"] == [0.4]


def test_a_running_launch_writes_heartbeats(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launches, "BEAT_SECONDS", 0.02)
    session = make_study(tmp_path)
    beats: list[Any] = []
    write = type(session.study.optuna_study()).set_user_attr

    def note(self: Any, key: str, value: Any) -> None:
        if key.startswith("cst_beat:"):
            beats.append((key, value))
        write(self, key, value)

    monkeypatch.setattr(type(session.study.optuna_study()), "set_user_attr", note)
    launch = session.begin_launch()
    own = f"cst_beat:{launch}"  # the studies of other tests have hearts too
    deadline = time.monotonic() + 30
    while len([key for key, _ in beats if key == own]) < 4 and time.monotonic() < deadline:
        time.sleep(0.02)
    session.end_launch()
    n = len([key for key, _ in beats if key == own])
    time.sleep(0.2)
    assert n >= 4 and len([key for key, _ in beats if key == own]) == n
    assert all(abs(value - time.time()) < 60 for _, value in beats)
