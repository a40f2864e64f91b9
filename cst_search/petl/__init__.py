"""The PETL methods: one file each, one registry. Other packages may bring more, see `plugins`."""

from functools import cache

from cst_search import plugins
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
from cst_search.petl.base import HasBody, Method

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

__all__ = ["METHODS", "HasBody", "Method", "get_method", "method_names"]


def method_names() -> tuple[str, ...]:
    """All methods: ours, then those of other packages."""
    return tuple(dict.fromkeys((*METHODS, *plugins.names("methods"))))


@cache
def get_method(name: str) -> Method:
    """The method of that name. Raises ConfigError, naming those that exist."""
    return plugins.get("methods", name, Method, METHODS)
