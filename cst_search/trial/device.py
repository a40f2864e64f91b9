"""Choose the device of a trial, and the memory that a trial may use on it."""

from __future__ import annotations

import os

import torch

from cst_search.config.recipe import DEVICES
from cst_search.errors import ConfigError, check_choice
from cst_search.memory.allocator import CONFIG_VARIABLES, EXPANDABLE, can_expand_segments
from cst_search.memory.estimate import CONTEXT_WITH_BLAS_BYTES
from cst_search.units import format_bytes


def choose_device(name: str = "auto") -> torch.device:
    """Return the device of a name; ``auto`` is CUDA if there is a GPU, else the CPU.

    Call it before anything is on the GPU: it configures CUDA's allocator.
    """
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda":
        _expand_segments()
    return device


def _expand_segments() -> None:
    """Turn on expandable segments in CUDA's allocator, unless the environment configures it.

    The allocator then reserved 1.01 to 1.33 times the live tensors (80 configurations on an H100), and 1.03 to 1.64
    times without (40; benchmarks/results/).
    """
    if can_expand_segments() and torch.version.hip is None:
        if not any(name in os.environ for name in CONFIG_VARIABLES):
            os.environ[CONFIG_VARIABLES[0]] = EXPANDABLE


def check_device(name: str) -> torch.device:
    """Return the device of ``--device``. Raises ConfigError if there is no such GPU."""
    check_choice("--device", name, DEVICES)
    device = choose_device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; use --device cpu or check the driver with nvidia-smi")
    return device


def check_bound(bound_bytes: int, device: torch.device, flag: str) -> int:
    """Return a bound on the memory of a trial's process, as `run_trial` takes it.

    Raises:
        ConfigError: on a GPU, it is not above the CUDA context; the message names the flag.
    """
    if device.type == "cuda" and bound_bytes <= CONTEXT_WITH_BLAS_BYTES:
        raise ConfigError(
            f"{flag} must be above the {format_bytes(CONTEXT_WITH_BLAS_BYTES)} that CUDA itself takes of a GPU; "
            f"got {format_bytes(bound_bytes)}"
        )
    return bound_bytes


def without_context(bound_bytes: int | None, context_bytes: int) -> int | None:
    """Return what `memory_limit` takes, from a bound on the process and the CUDA context in it (0 on a CPU)."""
    # a bound below the context is no fault here: nothing fits into it
    return None if bound_bytes is None else max(1, bound_bytes - context_bytes)
