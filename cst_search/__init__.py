"""cst-search: finds the parameter-efficient fine-tuning configuration of an object detector for the GPU you have.

What the command line does, in Python (`cst_search.api`):

    import cst_search

    search = cst_search.launch("6GB", data="DIR")
    print(search.front())
    cst_search.train(search.recipe("knee"), out="trained")

Importing the package costs nothing: what a name needs is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cst_search.uncompiled import import_torchvision_without_it as _import_torchvision_without_it

if TYPE_CHECKING:
    from cst_search.api import (
        Search,
        allocate,
        build_detector,
        estimate,
        launch,
        load_trained,
        open_study,
        predict,
        predict_video,
        train,
    )

_import_torchvision_without_it()

__version__ = "0.1.0"
__all__ = [
    "Search",
    "__version__",
    "allocate",
    "build_detector",
    "estimate",
    "launch",
    "load_trained",
    "open_study",
    "predict",
    "predict_video",
    "train",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'cst_search' has no attribute {name!r}")
    return getattr(import_module("cst_search.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
