"""Import torchvision without torch's compiler, whose import takes 1.4 s of CPU time and which nothing here uses.

`torchvision.ops.roi_align` imports one function of the compiler, and calls it only for a deterministic RoI Align on a
GPU. A stand-in for that function imports the compiler when it is called.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any

_ASKS, _COMPILER = "torchvision.ops.roi_align", "torch._dynamo.utils"


def is_compile_supported(device_type: str) -> Any:
    """Return whether torch compiles for a kind of device, as torch says."""
    return import_module(_COMPILER).is_compile_supported(device_type)


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        sys.modules[_COMPILER] = stand_in = ModuleType(_COMPILER)
        stand_in.is_compile_supported = is_compile_supported  # type: ignore[attr-defined]
        asks_for_more = False
        try:
            super().exec_module(module)
        except ImportError:
            asks_for_more = True
        finally:
            del sys.modules[_COMPILER]
        if asks_for_more:
            super().exec_module(module)


class _Finder:
    """Finds that one module of torchvision, as long as nobody has imported the compiler."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != _ASKS or _COMPILER in sys.modules:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and type(spec.loader) is SourceFileLoader:
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


def import_torchvision_without_it() -> None:
    """Begin to import torchvision without the compiler, in this process."""
    sys.meta_path.insert(0, _Finder)
