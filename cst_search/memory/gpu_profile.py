"""Costs of a GPU as `cst_search.trial.calibrate` measured them, used instead of the H100's. Standard library only."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cst_search.config.catalog import default_home
from cst_search.errors import ConfigError
from cst_search.memory.gpu_costs import GENERIC, GpuCosts

#: path of the profile that a process and its trials use, or ``none``; without it that of the home folder
VARIABLE = "CST_SEARCH_GPU_PROFILE"
_UNUSED = "none"
_NAME = "gpu-profile.json"


@dataclass(frozen=True)
class GpuProfile:
    """Measured costs of a GPU.

    Attributes:
        made: date, as 2026-11-29.
        torch: version of PyTorch.
        costs: as `gpu_costs` defines them; the target is the GPU's name.
        unmeasured: what could not be measured, for which the H100's figure stands.
        n_configs: configurations that were measured.
        error_before, error: median size of predicted / measured - 1 of device bytes on these, with the H100's costs and
            with these. None: the driver did not say what the process takes.
    """

    made: str
    torch: str
    costs: GpuCosts
    unmeasured: tuple[str, ...]
    n_configs: int
    error_before: float | None
    error: float | None


def profile_path(home: Path | None = None) -> Path:
    """Return the file of the profile: that of the environment, else that in a home folder."""
    named = os.environ.get(VARIABLE)
    return Path(named) if named and home is None else (home or default_home()) / _NAME


def write_profile(profile: GpuProfile, rows: list[dict[str, Any]], home: Path) -> Path:
    """Write a profile, with what was measured for it, into a home folder."""
    path = profile_path(home)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps({**asdict(profile), "rows": rows}, indent=1) + "\n", encoding="utf-8")
    part.replace(path)
    return path


def read_profile(path: Path) -> GpuProfile | None:
    """Read a profile; None if there is none. Raises ConfigError if the file is none."""
    if not path.is_file():
        return None
    try:
        content: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        own = {name: content[name] for name in GpuProfile.__dataclass_fields__}
        return GpuProfile(**{**own, "costs": GpuCosts(**own["costs"]), "unmeasured": tuple(own["unmeasured"])})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} must be a profile of `python -m cst_search.trial.calibrate` ({type(error).__name__}: {error}); "
            f"make it anew or delete it"
        ) from error


def choose_profile(home: Path, *, on_cluster: bool) -> GpuProfile | None:
    """Choose the profile that this process and the trials that it starts use: that of a home folder, if there is one.

    Args:
        on_cluster: True if trials run on other machines too, whose GPUs no profile of this one describes.
    """
    path = profile_path(home).absolute()
    profile = None if on_cluster else read_profile(path)
    os.environ[VARIABLE] = _UNUSED if profile is None else str(path)
    return profile


def local_costs() -> GpuCosts:
    """Return the costs of this machine's GPU as calibrated, else those of a GPU that is not known."""
    if os.environ.get(VARIABLE) == _UNUSED:
        return GENERIC
    profile = read_profile(profile_path())
    return GENERIC if profile is None else profile.costs
