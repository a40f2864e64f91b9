"""Launches of tests: their space, workers that train nothing, and what a launch left in study and MLflow."""

from __future__ import annotations

from collections import Counter
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from studies import scored

from cst_search.execution.workers import SearchJob
from cst_search.study import reader
from cst_search.study.records import StudyInfo
from cst_search.study.study import Study
from cst_search.tracking.connection import default_tracking_uri

SPACE: dict[str, Any] = {
    "methods": ["cst", "head"],
    "shared": {"lr": {"float": [1e-3, 2e-2], "log": True}, "batch_size": {"choice": [2, 4]}},
    "cst": {"reduction": {"choice": [1, 2, 4]}, "mtc_stages": {"choice": [[2, 3, 4, 5], [5]]}},
}


def read(home: Path, name: str) -> StudyInfo:
    return Study.open(f"sqlite:///{home / 'studies.db'}", name).info()


def children(home: Path, name: str) -> Counter[int]:
    """How many MLflow runs each trial has."""
    client = MlflowClient(default_tracking_uri(home))
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`cst.kind` = 'trial'")
    return Counter(int(run.data.tags["cst.trial"]) for run in found)


class MadeUp:
    """Workers that train nothing; what each finish costs is noted in ``costs``: (records made, studies read whole)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.costs: list[tuple[int, int]] = []
        self.counts: Counter[str] = Counter()
        for place, name in ((reader, "trial_record"), (Study, "info")):
            original = getattr(place, name)

            def counted(*arguments: Any, name: str = name, original: Any = original) -> Any:
                self.counts[name] += 1
                return original(*arguments)

            monkeypatch.setattr(place, name, counted)

    def prepared(self) -> AbstractContextManager[None]:
        return nullcontext()

    def run(self, job: SearchJob) -> None:
        session, n_trials, estimate, events = job.session, job.n_trials, job.estimate, job.events
        for i in range(n_trials - session.study.info().n_ran()):
            suggestion = session.ask(estimate)
            assert suggestion is not None
            events.started(suggestion)
            self.counts.clear()
            events.finished(session.tell(suggestion.trial, scored(0.1 + 0.01 * i)))
            self.costs.append((self.counts["trial_record"], self.counts["info"]))
