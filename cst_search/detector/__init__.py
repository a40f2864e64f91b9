"""torchvision detectors with a PETL method in place, and their weights on disk."""

from typing import TYPE_CHECKING

from cst_search.lazy import lazy_names

if TYPE_CHECKING:
    from cst_search.detector.base import Detector as Detector
    from cst_search.detector.build import build_detector as build_detector
    from cst_search.detector.build import count_parameters as count_parameters
    from cst_search.detector.build import trained_tensors as trained_tensors
    from cst_search.detector.registry import DETECTORS as DETECTORS
    from cst_search.detector.registry import get_detector as get_detector
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "build_detector": "build",
            "count_parameters": "build",
            "trained_tensors": "build",
            "Detector": "base",
            "DETECTORS": "registry",
            "get_detector": "registry",
        },
    )
