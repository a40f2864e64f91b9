"""The PETL methods: one file each, one registry."""

from cst_search.errors import ConfigError
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
from cst_search.petl.base import HasBody, Method, SideNetwork

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

__all__ = ["METHODS", "HasBody", "Method", "SideNetwork", "get_method"]


def get_method(name: str) -> Method:
    """The method of that name. Raises ConfigError, naming those that exist."""
    if name not in METHODS:
        raise ConfigError(f"method must be one of {', '.join(sorted(METHODS))}; got {name!r}")
    return METHODS[name]
