"""Write the detectors of a bundle as one ONNX file: from an image of any size to boxes in its pixels.

    image (uint8, height x width x 3, RGB) -> NAME.boxes (n, 4), NAME.scores (n,), NAME.labels (n,) for each task

Resizing and normalising are in the graph (`image_graph`), decoding the file and turning it by its EXIF orientation are
not. Detectors on one body at one image size share its pass, as in `trial.multi_inference`. What can be merged into the
body is merged. The graph computes in fp32, one image a call.

torch's tracing exporter (``dynamo=False``) is used: torchvision describes its detectors to it. The exporter by
torch.export, torch's default, refuses them, since the number of boxes depends on the image.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from cst_search import __version__
from cst_search.deployment.image_graph import IMAGE, OPSET, factors_name, image_graph, pixels_name
from cst_search.detector.build import merge, restored
from cst_search.detector.bundle import Bundle
from cst_search.detector.parts import merge_low_rank
from cst_search.detector.trained_file import TrainedFile
from cst_search.errors import ConfigError
from cst_search.petl import get_method
from cst_search.trial.multi_inference import MultiPredictor, Task, sharing_body

if TYPE_CHECKING:
    from onnx import ModelProto

_KINDS = ("boxes", "scores", "labels")  # outputs of a task
METADATA = "cst_search"  # key of the file's metadata
_TRACED_HW = (96, 128)  # of the image that the exporter follows through the detectors; the graph takes any


def write_onnx(bundle: Bundle, path: Path) -> None:
    """Write all tasks of a bundle to an ONNX file, and run it once. Call `Bundle.check` before.

    Its metadata has, under ``cst_search``, the version, and for each task its classes (label 1 first) and outputs.

    Raises:
        ConfigError: onnx or onnxruntime is not installed, or a detector cannot be exported.
    """
    _check_installed()
    detectors = MultiPredictor("cpu")
    for name in bundle.tasks:
        file = bundle.trained(name)
        detectors.add_model(name, _plain(file), file.recipe, file.class_names)
    groups = [[detectors.tasks[name] for name in names] for names in detectors.groups()]
    sizes = list(dict.fromkeys(_size(tasks[0]) for tasks in groups))
    with _naming(detectors.tasks.values()):
        model = _joined(_traced(groups, sizes), sizes)
        _describe(model, groups)
        _run_once(model)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def output_names(task: str, n_tasks: int) -> list[str]:
    """Return the names of a task's outputs: with the task in front, unless it is the only one."""
    return [kind if n_tasks == 1 else f"{task}.{kind}" for kind in _KINDS]


def _check_installed() -> None:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"--onnx needs {error.name}: pip install 'cst-search[onnx]'") from None


def _plain(file: TrainedFile) -> nn.Module:
    """Return a detector for inference alone: what can be merged is merged, and nothing saves memory in training."""
    recipe = replace(file.recipe, memsave=False, recompute="none")
    model = restored(file._replace(recipe=recipe)).eval()
    if get_method(recipe.method).merge is None:
        merge_low_rank(model)
    else:
        merge(model, recipe)
    transform: Any = model.transform
    transform.resize = lambda image, target=None: (image, target)  # the image comes in its size
    return model


def _size(task: Task) -> tuple[int, int]:
    return task.recipe.image_size_px, task.recipe.max_size_px


class _Detectors(nn.Module):
    """All detectors: pixels and factors of each size -> boxes in pixels of the image, scores and labels of each."""

    def __init__(self, groups: Sequence[Sequence[Task]], sizes: Sequence[tuple[int, int]]) -> None:
        super().__init__()
        self.groups, self.sizes = groups, sizes
        self.models = nn.ModuleList(task.model for tasks in groups for task in tasks)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        found = []
        for tasks in self.groups:
            i = 2 * self.sizes.index(_size(tasks[0]))
            with sharing_body(tasks):
                for task in tasks:
                    [output] = task.model([inputs[i]])
                    known = output["labels"] > 0  # 0 is background, see `trial.engine.detect`
                    boxes = output["boxes"][known] * inputs[i + 1]
                    found += [boxes, output["scores"][known], output["labels"][known]]
        return found


def _names(groups: Sequence[Sequence[Task]]) -> list[str]:
    tasks = [task for group in groups for task in group]
    return [name for task in tasks for name in output_names(task.name, len(tasks))]


@torch.no_grad()
def _traced(groups: Sequence[Sequence[Task]], sizes: Sequence[tuple[int, int]]) -> ModelProto:
    """Return the graph of all detectors behind the resized images."""
    import onnx

    pixels, factors = torch.rand(3, *_TRACED_HW), torch.ones(4)
    inputs = [name for i in range(len(sizes)) for name in (pixels_name(i), factors_name(i))]
    names = _names(groups)
    axes = {pixels_name(i): {1: f"h_{i}", 2: f"w_{i}"} for i in range(len(sizes))}
    with tempfile.TemporaryDirectory(prefix="cst-search-") as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of values that a trace keeps; the tests compare other images
        file = Path(folder) / "detectors.onnx"
        torch.onnx.export(
            _Detectors(groups, sizes).eval(), (pixels, factors) * len(sizes), file, dynamo=False, opset_version=OPSET,
            input_names=inputs, output_names=names, dynamic_axes=axes | {name: {0: f"n of {name}"} for name in names},
        )  # fmt: skip
        return onnx.load(file)


def _joined(detectors: ModelProto, sizes: Sequence[tuple[int, int]]) -> ModelProto:
    """Put the graph that resizes in front of the one that detects."""
    from onnx import compose

    first = compose.add_prefix(image_graph(sizes, detectors.ir_version), "resize/", rename_inputs=False)
    made = [name for i in range(len(sizes)) for name in (pixels_name(i), factors_name(i))]
    return compose.merge_models(first, detectors, io_map=[(f"resize/{name}", name) for name in made])


def _describe(model: ModelProto, groups: Sequence[Sequence[Task]]) -> None:
    """Set the file's metadata."""
    from onnx import helper

    tasks = [task for group in groups for task in group]
    content = {
        "version": __version__,
        "input": f"{IMAGE}: RGB, uint8 (height, width, 3), turned as a viewer shows it",
        "tasks": {
            task.name: {"classes": list(task.class_names), "outputs": output_names(task.name, len(tasks))}
            for task in tasks
        },
    }
    model.producer_name, model.producer_version = "cst-search", __version__
    model.doc_string = "Boxes are x1, y1, x2, y2 in pixels of the image; label 1 is the first class."
    helper.set_model_props(model, {METADATA: json.dumps(content, ensure_ascii=False)})


def _run_once(model: ModelProto) -> None:
    """Run a file on an image of another shape than the traced one. Raises what onnxruntime raises."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # errors; it warns of shapes that the exporter guessed
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # takes longer than one run
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    session.run(None, {IMAGE: np.full((50, 40, 3), 127, np.uint8)})


@contextmanager
def _naming(tasks: Iterable[Task]) -> Iterator[None]:
    """Turn any error of exporter and runtime into one message."""
    try:
        yield
    except Exception as error:  # each has its own errors; all mean that the graph cannot be had
        kinds = dict.fromkeys(f"{task.recipe.detector} with {task.recipe.method}" for task in tasks)
        reason = (str(error).strip().splitlines() or [""])[0]
        raise ConfigError(
            f"--onnx: {', '.join(kinds)} cannot be exported ({type(error).__name__}: {reason}); "
            f"pack the runs into a bundle, or --mlflow"
        ) from error
