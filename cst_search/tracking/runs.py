"""Content of one run in MLflow: parameters, metrics, tags, artifacts, and the logged model.

All tags of cst-search begin with ``cst.``. `launch_tags`, `trial_tags` and `training_tags` set them, except
``cst.verdict`` and a changed ``cst.pareto``, which `mlflow_mirror` writes later.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param
from mlflow.models import Model

from cst_search.study.objectives import OF_INFERENCE
from cst_search.study.records import LaunchRecord, TrialRecord
from cst_search.study.seed_statistics import Sample
from cst_search.study.states import TrialState
from cst_search.tracking.descriptions import model_description, run_name
from cst_search.tracking.models import save_detector
from cst_search.tracking.views import IN_MB
from cst_search.trial.result import Outcome

NOTE = "mlflow.note.content"  # tag with the description of a run or a model
EPOCH_METRICS = ("map", "map50", "loss", "images_per_second")
_COST_METRICS = ("device_bytes", "working_bytes", "active_bytes", "trainable_params", "petl_params")
RUN_STATUS = {
    TrialState.COMPLETE: "FINISHED", TrialState.INFEASIBLE: "FINISHED", TrialState.PRUNED: "FINISHED",
    TrialState.FAILED: "FAILED",
}  # fmt: skip
_BATCH = 1000  # metrics and params that MLflow accepts in one call; at most 100 of them params


# --- parameters and metrics ------------------------------------------------------------------------------------------


def params(values: Mapping[str, Any]) -> list[Param]:
    """Return values as flat parameters: a tuple as ``[3, 4, 5]``, None as ``none``.

    At most 100 parameters of 6,000 characters each, which is MLflow's limit for one call.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    text = {key: str(list(v)) if isinstance(v, tuple) else "none" if v is None else str(v) for key, v in flat.items()}
    return [Param(key, value[:6000]) for key, value in text.items()][:100]


def in_mb(record: TrialRecord) -> dict[str, float]:
    """Return a trial's working memory for people: MLflow's tables and axes show bytes with all their digits."""
    return {} if record.working_bytes is None else {IN_MB: round(record.working_bytes / 1e6, 3)}


def log_metrics(client: MlflowClient, run_id: str, metrics: Sequence[Metric]) -> None:
    """Log any number of metrics, 1,000 per call."""
    for start in range(0, len(metrics), _BATCH):
        client.log_batch(run_id, metrics=metrics[start : start + _BATCH])


def hypervolume_metrics(volumes: Sequence[tuple[int, float]]) -> list[Metric]:
    """Return the hypervolume curve of a launch from (trial, hypervolume after it); the step is the trial's number."""
    now = _now_ms()
    return [Metric("hypervolume", value, now, trial) for trial, value in volumes]


def seed_metrics(sample: Sample) -> list[Metric]:
    """Return mAP over the seeds of a confirmed trial; the step is the number of seeds."""
    values = {"map_mean": sample.mean, "map_std": sample.std, "map_new_mean": sample.new_mean, "n_seeds": sample.n}
    now = _now_ms()
    return [Metric(key, float(v), now, sample.n) for key, v in values.items() if v is not None]


def _epoch_metrics(history: Sequence[Mapping[str, Any]], time_ms: int) -> list[Metric]:
    return [
        Metric(name, float(entry[name]), time_ms, int(entry["epoch"]))
        for entry in history
        for name in EPOCH_METRICS
        if entry.get(name) is not None
    ]


def _now_ms() -> int:
    return int(time.time() * 1000)


# --- the run of a launch, a trial, a repeat ---------------------------------------------------------------------------


def launch_tags(study: str, launch: LaunchRecord) -> dict[str, str]:
    """Return the tags of a launch's run; ``cst.kind`` is ``launch`` or ``confirm``."""
    return {"cst.kind": launch.kind, "cst.study": study, "cst.launch": launch.id}


def create_launch_run(client: MlflowClient, experiment: str, study: str, launch: LaunchRecord) -> str:
    """Create the run of a launch without its settings. Returns the run's id."""
    begun = datetime.fromisoformat(launch.begun)
    run = client.create_run(
        experiment,
        start_time=int(begun.timestamp() * 1000),
        run_name=f"{launch.kind} {begun.astimezone():%Y-%m-%d %H:%M}",
        tags=launch_tags(study, launch),
    )
    return str(run.info.run_id)


def trial_tags(study: str, record: TrialRecord, on_front: bool, charted: Collection[str]) -> dict[str, str]:
    """Return the tags of a trial's run; a repeat also has the trial it repeats and its seed.

    Args:
        charted: costs of detection that the study compares: they are metrics, see `fill_trial_run`. The others are
            tags, as MLflow draws a chart of every metric.
    """
    tags = {
        "cst.kind": "trial",
        "cst.study": study,
        "cst.trial": str(record.trial),
        "cst.method": str(record.config.get("method")),
        "cst.state": record.state,
        "cst.feasible": str(record.feasible).lower(),
        "cst.pareto": str(on_front).lower(),
        "cst.memory_source": record.memory_source,
        "cst.memory_correction": f"{record.memory_correction:.3f}",
    }
    if record.repeat_of is not None:
        tags |= {"cst.kind": "repeat", "cst.repeat_of": str(record.repeat_of), "cst.seed": str(record.seed),
                 "cst.epochs": str(record.repeat_epochs)}  # fmt: skip
    if record.reason:
        tags["cst.reason"] = record.reason[:5000]
    others = {name: getattr(record, name) for name in OF_INFERENCE if name not in charted}
    return tags | {f"cst.{name}": str(value) for name, value in others.items() if value is not None}


def create_trial_run(
    client: MlflowClient, experiment: str, study: str, record: TrialRecord, on_front: bool, parent: str | None,
    charted: Collection[str],
) -> str:  # fmt: skip
    """Create the run of a finished trial without parameters and metrics. Returns the run's id.

    Args:
        parent: run of the trial's launch.
        charted: see `trial_tags`.
    """
    tags = trial_tags(study, record, on_front, charted)
    if parent is not None:
        tags["mlflow.parentRunId"] = parent
    begin = _now_ms() - round((record.seconds or 0.0) * 1000)
    run = client.create_run(experiment, start_time=begin, run_name=run_name(record), tags=tags)
    return str(run.info.run_id)


def fill_trial_run(client: MlflowClient, run_id: str, record: TrialRecord, charted: Collection[str]) -> None:
    """Log a trial's parameters, metrics per epoch and costs, and end its run; ``charted`` as of `trial_tags`."""
    now, last = _now_ms(), len(record.history)
    costs = {name: getattr(record, name) for name in (*_COST_METRICS, *charted)}
    metrics = _epoch_metrics(record.history, now)
    metrics += [Metric(name, float(value), now, last) for name, value in costs.items() if value is not None]
    metrics += [Metric(name, value, now, last) for name, value in in_mb(record).items()]
    first = _BATCH - 100
    client.log_batch(run_id, metrics=metrics[:first], params=params(record.config))
    log_metrics(client, run_id, metrics[first:])
    client.set_terminated(run_id, RUN_STATUS[record.state])


# --- the run of a full training ---------------------------------------------------------------------------------------


def training_tags(
    study: str, key: str, origin: Mapping[str, Any], result: Mapping[str, Any], trial_run: str | None, parent: str
) -> dict[str, str]:
    """Return the tags of a full training's run.

    Args:
        key: identifier of the training, by which an incomplete run is found again.
        origin: dict with the ``trial`` that the training comes from.
        trial_run: run of that trial, or None if MLflow does not have it.
        parent: run of the launch of ``trial_run``.
    """
    tags = {"cst.kind": "training", "cst.study": study, "cst.trial": str(origin.get("trial")),
            "cst.state": result["outcome"], "cst.training": key}  # fmt: skip
    if trial_run is not None:
        tags |= {"cst.trial_run": trial_run, "mlflow.parentRunId": parent}
    return tags


def log_training(
    client: MlflowClient, experiment: str, tags: Mapping[str, str], result: Mapping[str, Any],
    configuration: Sequence[Param], files: Sequence[Path],
) -> None:  # fmt: skip
    """Log a full training: parameters, metrics, files and the trained model.

    Args:
        tags: tags from `training_tags`; an existing run with the same ``cst.training`` is completed.
        result: result of the training, as `TrialResult.to_dict`.
        files: weights (``.safetensors``) become a logged model of the run, other files become artifacts.
    """
    end = _now_ms()
    begin = end - round(result["seconds"] * 1000)
    name = f"training of trial {tags['cst.trial']}"
    found = client.search_runs([experiment], f"tags.`cst.training` = '{tags['cst.training']}'", max_results=1)
    run = found[0] if found else client.create_run(experiment, start_time=begin, run_name=name, tags=dict(tags))
    run_id = run.info.run_id
    model_id = None
    for path in files:
        if path.suffix == ".safetensors":
            model_id = _log_model(client, experiment, run_id, path, result["epochs"], tags)
        else:
            client.log_artifact(run_id, str(path))
    metrics = _epoch_metrics(result["history"], end)
    for split, scores in result["final"].items():
        for name in ("map", "map50", "map75"):
            metrics.append(Metric(f"{split}_{name}", scores[name], end, result["epochs"], model_id=model_id))
    log_metrics(client, run_id, metrics)
    client.log_batch(run_id, params=configuration)
    client.set_terminated(run_id, "FINISHED" if result["outcome"] == Outcome.COMPLETE else "FAILED")


def _log_model(
    client: MlflowClient, experiment: str, run_id: str, weights: Path, epochs: int, tags: Mapping[str, str]
) -> str:
    """Log trained weights as a model of the run. Returns the model's id.

    Uses only the client, so no global setting of MLflow changes.
    """
    model = client.create_logged_model(
        experiment, name="detector", source_run_id=run_id, model_type="detector",
        tags={key: value for key, value in tags.items() if key.startswith("cst.")},
    )  # fmt: skip
    note = model_description(tags["cst.study"], tags["cst.trial"], epochs, model.model_id)
    client.set_logged_model_tags(model.model_id, {NOTE: note})
    status = LoggedModelStatus.FAILED
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            logged_as = Model(artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id)
            save_detector(folder, weights, logged_as)
            client.log_model_artifacts(model.model_id, str(folder))
        status = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(model.model_id, status)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=epochs)])
    return str(model.model_id)
