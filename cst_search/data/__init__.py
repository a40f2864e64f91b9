"""Data sets: formats, reading, validation, images, the disk cache and the demo dataset."""

from typing import TYPE_CHECKING

from cst_search.lazy import lazy_names

if TYPE_CHECKING:
    from cst_search.data.dataset import DetectionData as DetectionData
    from cst_search.data.dataset import load_data as load_data
    from cst_search.data.images import CocoImages as CocoImages
    from cst_search.data.images import loader as loader
else:
    __getattr__ = lazy_names(
        __name__,
        {
            "load_data": "dataset",
            "DetectionData": "dataset",
            "CocoImages": "images",
            "loader": "images",
        },
    )
