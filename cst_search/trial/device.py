"""Choose the device of a trial, and the memory that a trial may use on it."""

from __future__ import annotations

import os
import platform
import sys

import torch

from cst_search.config.recipe import DEVICES
from cst_search.errors import ConfigError, check_choice
from cst_search.memory.estimate import CONTEXT_BYTES
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

    The allocator then reserved 1.02 to 1.28 times the live tensors, and 1.03 to 1.64 times without (40 configurations
    on an H100, benchmarks/results/). Under WSL a refused allocation can then raise another error, so it stays off.
    """
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the second is for torch 2.9 and later
    if sys.platform == "linux" and "microsoft" not in platform.release().lower() and torch.version.hip is None:
        if not any(name in os.environ for name in names):
            os.environ[names[0]] = "expandable_segments:True"


def check_device(name: str) -> torch.device:
    """Return the device of ``--device``. Raises ConfigError if there is no such GPU."""
    check_choice("--device", name, DEVICES)
    device = choose_device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; use --device cpu or check the driver with nvidia-smi")
    return device


def allowance(bound_bytes: int, device: torch.device, flag: str) -> int:
    """Return the memory limit for `run_trial` from a bound on the whole process; on a GPU it excludes the context.

    Raises:
        ConfigError: the bound is not above the context; the message names the flag.
    """
    if device.type != "cuda":
        return bound_bytes
    if bound_bytes <= CONTEXT_BYTES:
        raise ConfigError(
            f"{flag} must be above the {format_bytes(CONTEXT_BYTES)} that CUDA itself takes of a GPU; "
            f"got {format_bytes(bound_bytes)}"
        )
    return bound_bytes - CONTEXT_BYTES
