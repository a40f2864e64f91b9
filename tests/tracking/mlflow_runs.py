"""What MLflow has of a study."""

from __future__ import annotations

from mlflow import MlflowClient
from mlflow.entities import Run

from cst_search.search.session import SearchSession

SETTINGS = {"recipe": {"detector": "fcos", "lr": None}, "space": "cst", "trials": 8, "objectives": "map,device_bytes"}


def runs(uri: str, session: SearchSession, kind: str = "trial") -> list[Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(session.study.name)
    assert experiment is not None
    found = list(client.search_runs([experiment.experiment_id], f"tags.`cst.kind` = '{kind}'"))
    return sorted(found, key=lambda run: int(run.data.tags.get("cst.trial", 0)))


def tagged(uri: str, session: SearchSession) -> list[int]:
    """What the filter of the user interface shows."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(session.study.name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], 'tags."cst.pareto" = "true"')
    return sorted(int(run.data.tags["cst.trial"]) for run in found)


def on_front(session: SearchSession) -> list[int]:
    return sorted(record.trial for record in session.study.info().front())
