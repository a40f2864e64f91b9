"""Starting Ray beside the set-up of a search."""

from __future__ import annotations

from typing import Any

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
