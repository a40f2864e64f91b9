"""Add trained runs to a bundle, remove tasks from it, and export it to MLflow and ONNX."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from cst_search.config.catalog import check_folder
from cst_search.detector.bundle import Bundle, is_bundle
from cst_search.errors import ConfigError
from cst_search.trial.multi_inference import task_name


def pack(runs: Sequence[Path], folder: Path, drop: Sequence[str] = ()) -> Bundle:
    """Drop tasks from a bundle, then add runs under the names of their folders; all or nothing. Returns the bundle.

    Raises:
        ConfigError: there is nothing to do, a name is taken or unknown, or a run or its base cannot be read.
    """
    if not runs and not drop:
        raise ConfigError("name runs to pack, or tasks to take out with --drop")
    bundle = Bundle(folder)
    bundle.change([(task_name(run), run) for run in runs], drop)
    return bundle


@contextmanager
def opened(runs: Sequence[Path]) -> Iterator[Bundle]:
    """Yield a temporary bundle of some runs, deleted after the ``with`` block, or the existing bundle that is named.

    Raises ConfigError as `pack` does, and if the named bundle is damaged or empty.
    """
    with tempfile.TemporaryDirectory(prefix="cst-search-") as scratch:
        if len(runs) == 1 and is_bundle(runs[0]):
            bundle = Bundle(runs[0])
            bundle.check()
        else:
            bundle = pack(runs, Path(scratch) / "bundle")
        yield bundle


def check_new(option: str, path: Path) -> None:
    """Raise ConfigError if an option names what exists already, or what cannot be written."""
    if path.exists():
        raise ConfigError(f"{option} {path}: exists; choose another name")
    check_folder(option, path.parent)


def write_mlflow_model(bundle: Bundle, folder: Path) -> None:
    """Write a bundle as a model of MLflow, with a copy of the bundle; see `tracking.models.save_bundle`."""
    from cst_search.tracking.models import save_bundle

    save_bundle(folder, bundle.folder, list(bundle.tasks))


def write_onnx_file(bundle: Bundle, path: Path) -> None:
    """Write the detectors of a bundle as one ONNX file; see `deployment.onnx_file`."""
    from cst_search.deployment.onnx_file import write_onnx

    write_onnx(bundle, path)
