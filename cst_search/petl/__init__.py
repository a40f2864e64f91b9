"""PETL methods and their registry, one file per method. Other packages can add methods, see `plugins`.

Exports everything that a method in another package needs. Importing this package does not load torch; the helpers in
`modules.layers`, which need torch, are imported on first use.
"""

from functools import cache
from typing import TYPE_CHECKING

from cst_search import plugins
from cst_search.lazy import lazy_names
from cst_search.memory.plan import MemoryPlan
from cst_search.memory.resnet_shapes import BackboneShape, BlockShape, ConvShape
from cst_search.memory.tape import ShapeTensor, Tape
from cst_search.petl import (
    bitfit,
    conv_adapter,
    conv_lora,
    cst,
    full,
    head,
    lst,
    norm,
    partial,
    serial_adapter,
    side_tuning,
    ssf,
)
from cst_search.petl.base import (
    HasBody,
    Method,
    NoOptions,
    check,
    from_stage,
    nothing_to_merge,
    one_of,
    whole,
)
from cst_search.petl.side_blocks import block_params, norm_params

METHODS: dict[str, Method] = {
    module.METHOD.name: module.METHOD
    for module in (
        cst,
        lst,
        side_tuning,
        head,
        norm,
        bitfit,
        ssf,
        conv_lora,
        conv_adapter,
        serial_adapter,
        partial,
        full,
    )
}

if TYPE_CHECKING:
    from cst_search.petl.modules.layers import add_behind, make_block, make_norm, path, residual_blocks
    from cst_search.petl.modules.side_network import SideNetwork

_BUILDING = {
    **dict.fromkeys(("add_behind", "make_block", "make_norm", "path", "residual_blocks"), "layers"),
    "SideNetwork": "side_network",
}

__all__ = [
    "METHODS",
    "BackboneShape",
    "BlockShape",
    "ConvShape",
    "HasBody",
    "MemoryPlan",
    "Method",
    "NoOptions",
    "ShapeTensor",
    "SideNetwork",
    "Tape",
    "add_behind",
    "block_params",
    "check",
    "from_stage",
    "get_method",
    "make_block",
    "make_norm",
    "method_names",
    "norm_params",
    "nothing_to_merge",
    "one_of",
    "path",
    "residual_blocks",
    "whole",
]

# torch is needed for these alone
__getattr__ = lazy_names(__name__, {name: f"modules.{module}" for name, module in _BUILDING.items()})


def method_names() -> tuple[str, ...]:
    """Return the names of all methods: built-in ones first, then those of other packages."""
    return tuple(dict.fromkeys((*METHODS, *plugins.names("methods"))))


@cache
def get_method(name: str) -> Method:
    """Return the method called ``name``. Raises ConfigError, listing the known methods, if there is none."""
    return plugins.get("methods", name, Method, METHODS)
