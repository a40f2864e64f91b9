"""torchvision detectors with a PETL method in place, and their weights on disk.

Exports everything that a detector of another package needs to describe itself, without importing torch. Functions that
build detectors or count parameters are imported on first use.
"""

from typing import TYPE_CHECKING

from cst_search.detector.base import SCORE_THRESHOLD, Detector
from cst_search.detector.class_rows import ClassLayer
from cst_search.detector.registry import DETECTORS, get_detector
from cst_search.lazy import lazy_names
from cst_search.memory.dense_heads import (
    dense_head_layers,
    dense_heads,
    flatten_anchors,
    focal_loss,
    join_anchors,
    matching,
    run_by_level,
)
from cst_search.memory.parts import LayerShape
from cst_search.memory.plan import DenseTower, StepShape
from cst_search.memory.tape import Allocation, ShapeTensor, Tape

if TYPE_CHECKING:
    from cst_search.detector.build import build_detector, count_parameters, trained_tensors
else:
    __getattr__ = lazy_names(
        __name__, {"build_detector": "build", "count_parameters": "build", "trained_tensors": "build"}
    )

__all__ = [
    "DETECTORS",
    "SCORE_THRESHOLD",
    "Allocation",
    "ClassLayer",
    "DenseTower",
    "Detector",
    "LayerShape",
    "ShapeTensor",
    "StepShape",
    "Tape",
    "build_detector",
    "count_parameters",
    "dense_head_layers",
    "dense_heads",
    "flatten_anchors",
    "focal_loss",
    "get_detector",
    "join_anchors",
    "matching",
    "run_by_level",
    "trained_tensors",
]
