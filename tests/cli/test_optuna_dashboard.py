"""optuna-dashboard as `ui --optuna` serves it: what it is told of a study over HTTP."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError

import pytest
from studies import make_study, run_cli, run_one, scored

from cst_search.search.session import SearchSession


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> SearchSession:
    """Trial 0 completed, 1 was measured over the budget, 2 ran out of memory; then random ones, some never run."""
    session = make_study(tmp_path_factory.mktemp("home"))
    session.begin_launch()
    run_one(session, scored(0.5), batch_size=2, cst__reduction=8)
    run_one(session, scored(0.9, device_bytes=2000), batch_size=2, cst__reduction=4)
    run_one(session, {"outcome": "oom", "reason": "refused"}, batch_size=4, cst__reduction=2)
    for quality in (0.3, 0.4, 0.6):
        run_one(session, scored(quality))
    session.end_launch()
    return session


@pytest.fixture(scope="module")
def served(session: SearchSession) -> Iterator[dict[str, Any]]:
    """The study as the server describes it to its page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    home = Path(session.study.url.removeprefix("sqlite:///")).parent
    command = [sys.executable, "-m", "cst_search.cli", "ui", "--optuna", "--home", str(home), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ})
    try:

        def get(path: str) -> Any:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
                return json.load(answer)

        for _ in range(600):
            try:
                found = get("/api/studies")["study_summaries"]
                break
            except URLError:
                assert server.poll() is None, server.stderr and server.stderr.read().decode()
                time.sleep(0.1)
        yield get(f"/api/studies/{found[0]['study_id']}?after=0")
    finally:
        server.kill()
        server.wait()


def test_what_is_over_the_budget_is_served_as_violated(session: SearchSession, served: dict[str, Any]) -> None:
    trials = {trial["number"]: trial for trial in served["trials"]}
    states = {record.trial: record.state for record in session.study.info().trials}
    assert states[0] == "complete" and states[1] == states[2] == "infeasible"
    for number, state in states.items():
        # the page's own rule: no constraints, or none above 0, is feasible
        feasible = all(value <= 0 for value in trials[number]["constraints"])
        assert feasible == (state == "complete"), (number, state)
    assert trials[1]["constraints"] == [1.0]  # twice the budget
    assert all(trial["constraints"] for trial in trials.values() if trial["state"] == "Complete")


def test_names(session: SearchSession, served: dict[str, Any]) -> None:
    assert served["objective_names"] == ["map", "device_bytes", "trainable_params"]
    assert served["directions"] == ["maximize", "minimize", "minimize"]
    attrs = {attr["key"]: json.loads(attr["value"]) for attr in served["trials"][1]["user_attrs"]}
    assert attrs["cst_result"]["reason"].startswith("measured over the budget: memory +100")


def test_optuna_itself_reads_both_kinds_of_constraints(session: SearchSession) -> None:
    trials = session.study.optuna_study().best_trials
    assert {trial.number for trial in trials} == {record.trial for record in session.study.info().front()}


def test_mistakes(tmp_path: Path) -> None:
    ran = run_cli("ui", "--optuna", "--home", tmp_path)
    assert ran.code == 2 and "does not exist" in ran.message
    ran = run_cli("ui", "--storage", "sqlite:///x.db")
    assert ran.code == 2 and "--storage is for --optuna" in ran.message
