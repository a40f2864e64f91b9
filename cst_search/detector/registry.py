"""Registry of detectors by name: built-in ones and those of other packages. Needs no torch."""

from __future__ import annotations

from functools import cache

from cst_search import plugins
from cst_search.detector import faster_rcnn, faster_rcnn_v2, fcos, retinanet, retinanet_v2
from cst_search.detector.base import Detector

_MODULES = (faster_rcnn, retinanet, fcos, faster_rcnn_v2, retinanet_v2)
DETECTORS = {module.DETECTOR.name: module.DETECTOR for module in _MODULES}


@cache
def get_detector(name: str) -> Detector:
    """Return the detector called ``name``. Raises ConfigError, listing the known detectors, if there is none."""
    return plugins.get("detectors", name, Detector, DETECTORS)
