"""The detectors by name: ours, and those of other packages."""

from __future__ import annotations

from functools import cache

from cst_search import plugins
from cst_search.config.recipe import USED_STAGES
from cst_search.detector.base import Detector
from cst_search.lazy import deferred
from cst_search.memory import training_step as footprint

_OURS = {
    "fasterrcnn": ("faster_rcnn", footprint.run_fasterrcnn, footprint.fasterrcnn_params, True),
    "retinanet": ("retinanet", footprint.run_retinanet, footprint.retinanet_params, False),
    "fcos": ("fcos", footprint.run_fcos, footprint.fcos_params, False),
}
DETECTORS = {
    name: Detector(name, deferred(f"cst_search.detector.{module}", "build"), USED_STAGES[name], heads, params, pooled)
    for name, (module, heads, params, pooled) in _OURS.items()
}


@cache
def get_detector(name: str) -> Detector:
    """The detector of that name. Raises ConfigError, naming those that exist."""
    return plugins.get("detectors", name, Detector, DETECTORS)
