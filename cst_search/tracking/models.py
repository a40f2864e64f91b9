"""Write trained detectors as models of MLflow: a folder that `mlflow.pyfunc.load_model` and `mlflow models serve` read.

The code of a model is a file of this wing (``pyfunc_*.py``), which MLflow copies into the folder: no pickle.
"""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow.pyfunc
from mlflow.models import Model
from PIL import Image

from cst_search import __version__

logging.getLogger("mlflow.models.signature").setLevel(logging.CRITICAL)  # else a line for each model that is written


def save_detector(folder: Path, weights: Path, logged_as: Model) -> None:
    """Write the model of a run.

    Args:
        folder: a new one.
        weights: the file that `cst-search train` wrote.
        logged_as: what MLflow knows the model as.
    """
    _save(folder, "pyfunc_model.py", {"weights": weights}, {}, mlflow_model=logged_as)


def save_bundle(folder: Path, bundle: Path, tasks: Sequence[str]) -> None:
    """Write the model of a bundle, with a copy of the bundle.

    Args:
        folder: a new one.
        tasks: names of the bundle's tasks, for the signature: all of them are run unless a request names some.
    """
    _save(folder, "pyfunc_bundle.py", {"bundle": bundle}, {"tasks": list(tasks)})


def _save(
    folder: Path, code: str, artifacts: Mapping[str, Path], params: Mapping[str, Any], **options: Any
) -> None:  # fmt: skip
    """Write a model with an input example, from which MLflow takes the parameters' types and defaults."""
    import torch
    import torchvision

    versions = {"cst-search": __version__, "torch": torch.__version__, "torchvision": torchvision.__version__}
    mlflow.pyfunc.save_model(
        folder,
        python_model=str(Path(__file__).with_name(code)),
        artifacts={name: str(path) for name, path in artifacts.items()},
        input_example=([_grey_png()], {"score": 0.5, **params}),
        pip_requirements=[f"{name}=={version.partition('+')[0]}" for name, version in versions.items()],
        **options,
    )


def _grey_png() -> str:
    """Return a small image file in base64, as a served model takes images."""
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "grey").save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()
