"""What MLflow is told of one training: parameters, curves, files, and the model as MLflow loads it."""

from __future__ import annotations

import base64
import io
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric, Param
from mlflow.models import Model
from PIL import Image

from cst_search import __version__
from cst_search.tracking.descriptions import model_description
from cst_search.trial.outcome import Outcome

NOTE = "mlflow.note.content"  # of a run and of a model: its description
METRICS = ("map", "map50", "loss", "images_per_second")  # of an epoch


def params(values: Mapping[str, Any]) -> list[Param]:
    """Flat parameters; a tuple as ``[3, 4, 5]``, None as ``none``; MLflow takes 6,000 characters a value."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    text = {key: str(list(v)) if isinstance(v, tuple) else "none" if v is None else str(v) for key, v in flat.items()}
    return [Param(key, value[:6000]) for key, value in text.items()][:100]


def log_training(
    client: MlflowClient, experiment: str, tags: Mapping[str, str], result: Mapping[str, Any],
    configuration: Sequence[Param], files: Sequence[Path],
) -> None:  # fmt: skip
    """A run for a full-length training.

    Args:
        tags: of the run; one that has the same ``cst.training`` is gone on with.
        result: as `trial.TrialResult.to_dict`.
        files: weights (``.safetensors``) become a logged model of the run, others artifacts.
    """
    end = int(time.time() * 1000)
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
    metrics = [
        Metric(name, float(entry[name]), end, int(entry["epoch"]))
        for entry in result["history"]
        for name in METRICS
        if entry.get(name) is not None
    ]
    for split, scores in result["final"].items():
        for name in ("map", "map50", "map75"):
            metrics.append(Metric(f"{split}_{name}", scores[name], end, result["epochs"], model_id=model_id))
    for start in range(0, len(metrics), 1000):
        client.log_batch(run_id, metrics=metrics[start : start + 1000])
    client.log_batch(run_id, params=configuration)
    client.set_terminated(run_id, "FINISHED" if result["outcome"] == Outcome.COMPLETE else "FAILED")


def _log_model(
    client: MlflowClient, experiment: str, run_id: str, weights: Path, epochs: int, tags: Mapping[str, str]
) -> str:
    """Log trained weights as a model of the run; its id. By the client alone: nothing global of MLflow's changes."""
    import torch
    import torchvision

    model = client.create_logged_model(
        experiment, name="detector", source_run_id=run_id, model_type="detector",
        tags={key: value for key, value in tags.items() if key.startswith("cst.")},
    )  # fmt: skip
    note = model_description(tags["cst.study"], tags["cst.trial"], epochs, model.model_id)
    client.set_logged_model_tags(model.model_id, {NOTE: note})
    versions = {"cst-search": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__}
    status = LoggedModelStatus.FAILED
    try:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "model"
            mlflow.pyfunc.save_model(
                folder,
                python_model=str(Path(__file__).with_name("pyfunc_model.py")),
                artifacts={"weights": str(weights)},
                input_example=([_grey_png()], {"score": 0.5}),
                pip_requirements=[f"{name}=={version.partition('+')[0]}" for name, version in versions.items()],
                mlflow_model=Model(artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id),
            )
            client.log_model_artifacts(model.model_id, str(folder))
        status = LoggedModelStatus.READY
    finally:
        client.finalize_logged_model(model.model_id, status)
    client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=epochs)])
    return str(model.model_id)


def _grey_png() -> str:
    """An image file in base64: how an image goes to a served model."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
