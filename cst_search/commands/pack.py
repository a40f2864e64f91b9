"""Put trained runs into a bundle, or take tasks out of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from cst_search.detector.bundle import Bundle
from cst_search.errors import ConfigError
from cst_search.trial.multi_inference import task_name


def pack(runs: Sequence[Path], folder: Path, drop: Sequence[str] = ()) -> Bundle:
    """Drop tasks from a bundle, then add runs under the names of their folders. Returns the bundle.

    Raises:
        ConfigError: there is nothing to do, a name is taken or unknown, or a run or its base cannot be read.
    """
    if not runs and not drop:
        raise ConfigError("name runs to pack, or tasks to take out with --drop")
    bundle = Bundle(folder)
    names = [task_name(run) for run in runs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ConfigError(f"runs of one bundle must be folders of different names; twice: {', '.join(twice)}")
    for name in drop:
        bundle.drop(name)
    for name, run in zip(names, runs, strict=True):
        bundle.add(name, run)
    return bundle
