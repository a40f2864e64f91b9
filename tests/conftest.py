"""How the suite runs: in which order, in which processes. Fixtures: trial_fixtures.py, shared_fixtures.py."""

from __future__ import annotations

import gc
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

# A search takes a thread a core. Where other tests have the cores, its threads would spin as they wait for each other,
# and a tiny trial take five times its CPU seconds. Read as torch is imported, here and in every process of a test.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# what is imported and collected stays: looking 5,000 times for garbage in it takes a third of the start of each process
gc.disable()


# Files with many processes each, which mostly wait for one another. Side by side they starve each other, until Ray
# gives its own up: those of a lane run one after the other, in one process, from the beginning.
_LANES = {
    "test_faults": "one machine",
    "test_environments": "one machine",
    "test_frozen_launches": "one machine",
    "test_lost_studies": "one machine",
    "test_busy_machine": "one machine",
    "test_workers": "one machine",
    "test_ray_cluster": "cluster",
    "test_cluster_faults": "cluster",
    "test_stock": "cluster",
    "test_gpu_sharing": "cluster",
}
# next, so that none is the tail: those of 15 CPU seconds and more, the longest first; Ray's last, when lanes have ended
_LONG = (
    "test_build", "test_docs", "test_generated_input", "test_sessions_together", "test_estimate", "test_launch_cut_off",
    "test_parts", "test_bad_files", "test_mlflow_sync", "test_export", "test_feature_cache", "test_run",
    "test_isolated_process", "test_hostile_input", "test_page_in_browser", "test_plane_in_browser", "test_parity",
    "test_pruned_starts", "test_bad_input", "test_promotion", "test_launch", "test_lean_layers", "test_checkpoints",
    "test_coco_eval", "test_mlflow_ui", "test_confirm", "test_plugins",
)  # fmt: skip


def _turn(item: pytest.Item) -> tuple[int, str, int]:
    stem = item.path.stem
    return (0, _LANES[stem], 0) if stem in _LANES else (1, "", _LONG.index(stem) if stem in _LONG else len(_LONG))


@pytest.hookimpl(trylast=True)  # xdist has said by then which process it is
def pytest_configure(config: pytest.Config) -> None:
    """Import the fixtures in processes that run tests; xdist's own process need not wait for torch and MLflow."""
    if not config.pluginmanager.has_plugin("dsession"):
        config.pluginmanager.import_plugin("trial_fixtures")
        config.pluginmanager.import_plugin("shared_fixtures")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=_turn)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Spare every garbage collection of the run a look at all that has been imported: a third of a second each."""
    gc.freeze()
    gc.enable()


@pytest.hookimpl(trylast=True)  # after the fixtures of the session
def pytest_sessionfinish() -> None:
    """Look for garbage once: as they end, pytest and Python each do so again, for a second in each process."""
    gc.collect()
    gc.freeze()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return one process more than there are cores, as the two lanes together take one core; None: xdist decides."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return None if "PYTEST_XDIST_AUTO_NUM_WORKERS" in os.environ else n_cores + 1


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Let processes of the lanes go first: what waits for them ends after so many seconds."""
    if "PYTEST_XDIST_WORKER" in os.environ and item.path.stem not in _LANES:
        _give_way()


@lru_cache
def _give_way() -> None:
    if hasattr(os, "nice"):
        os.nice(19)  # Ray's workers have 15


class _Scheduling(LoadFileScheduling):
    """A file is run by one process, so that its fixtures are made once; a lane too."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.split("::", 1)[0]
        return _LANES.get(Path(path).stem, path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduling:
    return _Scheduling(config, log)
