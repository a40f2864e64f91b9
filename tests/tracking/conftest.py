"""Fixtures for the record in MLflow."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow_runs import SETTINGS
from studies import fake_estimate, make_study, run_one, scored

from cst_search.search.session import SearchSession
from cst_search.tracking.connection import default_tracking_uri
from cst_search.tracking.mlflow_record import MlflowRecord


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: to make its tables takes seconds."""
    return default_tracking_uri(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def session(tmp_path: Path, request: pytest.FixtureRequest) -> SearchSession:
    """Complete, failed, out of memory and rejected trials, and one that still runs."""
    session = make_study(tmp_path, request.node.name)
    session.begin_launch()
    run_one(session, scored(0.4), cst__reduction=4, batch_size=4)  # 600 bytes
    session.enqueue({"method": "cst", "cst.reduction": 1, "batch_size": 8})  # over the budget
    run_one(session, {"outcome": "failed", "reason": "ValueError: x"})
    run_one(session, {"outcome": "oom", "reason": "no memory"})
    run_one(session, {"outcome": "nonfinite", "reason": "nan"})
    run_one(session, scored(0.5, device_bytes=950), cst__reduction=2, batch_size=4)
    session.ask(fake_estimate)  # type: ignore[arg-type]
    return session


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cst_search.tracking.connection._PAUSE_SECONDS", 0.0)


@pytest.fixture
def record(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``record(study)`` -> a launch that puts the study into MLflow as it is now; the warnings."""

    def write(session: SearchSession, *, parent: bool = True, artifacts: Any = None) -> list[str]:
        warnings: list[str] = []
        mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=warnings.append)
        if parent:
            mirror.start(session.study.info(), session.describe_launch(SETTINGS))
        mirror.sync(session.study.info())
        if artifacts:
            mirror.finish(session.study.info(), artifacts, "FINISHED")
        assert mirror.close() == (not warnings)
        return warnings

    return write
