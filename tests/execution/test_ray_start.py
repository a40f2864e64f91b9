"""Starting Ray beside the set-up of a search."""

from __future__ import annotations

import threading
from typing import Any
from unittest.mock import Mock

import pytest

from cst_search.execution import ray_start


@pytest.mark.parametrize(("n_faults", "starts"), [(2, True), (3, False)])
def test_a_start_while_the_environment_changes_is_tried_again(
    n_faults: int, starts: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As seen on a busy machine: Ray copied the environment while an import added to it."""
    faults = iter([RuntimeError("dictionary changed size during iteration")] * n_faults)

    def init(*_: Any, **__: Any) -> None:
        for fault in faults:
            raise fault

    left = []
    monkeypatch.setattr(ray_start, "init_ray", init)
    monkeypatch.setattr(ray_start, "leave_ray", lambda: left.append(True))
    error = ray_start.start_beside(1).exception(30)
    assert (error is None) == starts and len(left) == 2
    assert not ray_start.is_starting.is_set()


def test_another_fault_is_not_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room")

    monkeypatch.setattr(ray_start, "init_ray", init)
    monkeypatch.setattr(ray_start, "leave_ray", pytest.fail)
    assert str(ray_start.start_beside(1).exception(30)) == "no room"


def test_a_start_that_is_given_up_ends_while_it_waits_for_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """The end of a process aborts it while a thread is in Ray's C++ part."""
    is_asked = threading.Event()

    def no_node(*_: Any) -> None:
        is_asked.set()
        raise RuntimeError("no node yet")

    wait_for_node = ray_start._patient(no_node)
    monkeypatch.setattr(ray_start, "_is_raylet", lambda process: True)
    monkeypatch.setattr(ray_start.psutil, "Process", lambda: Mock(children=lambda: ["raylet"]))
    monkeypatch.setattr(ray_start, "init_ray", lambda *_, **__: wait_for_node())
    monkeypatch.setattr(ray_start, "leave_ray", pytest.fail)
    ready = ray_start.start_beside(1)
    assert is_asked.wait(30) and not ready.done() and ray_start.is_starting.is_set()
    ray_start.give_up_start(ready)
    assert ready.done() and not ray_start.is_starting.is_set()


def test_ray_is_left_if_it_has_started_when_it_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    monkeypatch.setattr(ray_start, "init_ray", lambda *_, **__: None)
    monkeypatch.setattr(ray_start, "leave_ray", lambda: left.append(True))
    ray_start.give_up_start(ray_start.start_beside(1))
    assert left == [True]


def test_a_start_that_does_not_end_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    hold = threading.Event()
    monkeypatch.setattr(ray_start, "_GIVE_UP_SECONDS", 0.05)
    monkeypatch.setattr(ray_start, "init_ray", lambda *_, **__: hold.wait(30))
    monkeypatch.setattr(ray_start, "leave_ray", lambda: None)
    ready = ray_start.start_beside(1)
    ray_start.give_up_start(ready)
    assert not ready.done() and ray_start.is_starting.is_set()
    hold.set()
    ready.result(30)


def test_workers_that_are_prepared_are_closed_without_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C between the start of Ray and the first trial."""
    from cst_search.execution import ray_tune

    given_up = []
    monkeypatch.setattr(ray_tune, "start_beside", lambda n_cpus: f"start with {n_cpus}")
    monkeypatch.setattr(ray_tune, "give_up_start", given_up.append)
    with pytest.raises(KeyboardInterrupt), ray_tune.Ray(2, 1.0).prepared():
        raise KeyboardInterrupt
    assert given_up == ["start with 2"]
