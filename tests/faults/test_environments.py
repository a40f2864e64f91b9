"""Environments in which users of Ray, Optuna and MLflow had trouble; each with the address of their report."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from searches import Place
from studies import make_study, run_cli, run_one, scored

from cst_search.study.fast_reads import log_ahead

# what another project set for itself
OF_ANOTHER_PROJECT = {
    # MLflow's own calls take the run and the experiment from here: github.com/mlflow/mlflow/issues/2649, .../673
    "MLFLOW_RUN_ID": "744b34adb6174fd2bae34b67aaae93a0", "MLFLOW_EXPERIMENT_ID": "999",
    "MLFLOW_EXPERIMENT_NAME": "theirs", "MLFLOW_TRACKING_URI": "http://127.0.0.1:9",
    "OPTUNA_STORAGE": "sqlite:////nowhere/theirs.db",
    # Ray's own start joins that cluster: github.com/ray-project/ray/pull/7977
    "RAY_ADDRESS": "127.0.0.1:9", "RAY_NAMESPACE": "theirs",
}  # fmt: skip


def test_a_search_in_a_strange_environment(place: Place) -> None:
    """All of it at once, with real processes.

    Few files: github.com/ray-project/ray/issues/11309, a worker dies after 1,000 samples. No home folder, as for a
    random user id in a container: github.com/ray-project/ray/issues/14155.
    """
    place.env = OF_ANOTHER_PROJECT | {"HOME": "/dev/null/home"}
    with place.search("--workers", "2", trials=6) as one:
        psutil.Process(one.pid).rlimit(psutil.RLIMIT_NOFILE, (256, 256))
        assert one.wait() == 0, one.output
    place.check(6, {})
    assert place.runs() == dict.fromkeys(place.finished(), 1)


def test_standard_streams_are_closed(tmp_path: Path) -> None:
    """As of a service. Ray asks them for numbers of files: github.com/ray-project/ray/issues/9239, .../15551."""
    program = f"'{sys.executable}' -m cst_search.cli"
    done = subprocess.run(["bash", "-c", f"exec {program} list --home '{tmp_path}' <&- >&- 2>&-"])
    assert done.returncode == 0
    opened = "import os; from cst_search import cli; cli._open_streams(); print('to', 'nowhere', flush=True); "
    opened += f"os._exit(os.open('{tmp_path}', os.O_RDONLY))"  # a file of its own
    done = subprocess.run(["bash", "-c", f"exec '{sys.executable}' -c \"{opened}\" <&- >&- 2>&-"])
    assert done.returncode > 2


def test_a_study_that_can_only_be_read(tmp_path: Path) -> None:
    """On a file system without writing: github.com/optuna/optuna/pull/5103. As a search left it, killed or not."""
    home, there = tmp_path / "home", tmp_path / "there"
    session = make_study(home)
    storage = session.study.storage
    assert storage is not None
    log_ahead(storage.engine, True)
    session.begin_launch()
    run_one(session, scored(0.5), cst__reduction=4, batch_size=2, lr=0.01)
    there.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(there)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        names = ("studies.db", "studies.db-wal", "studies.db-shm")
        for kind, left in (("killed", names), ("torn", names[:1])):
            (there / kind).mkdir()
            for name in left:
                shutil.copy(home / name, there / kind)
        session.end_launch()
        shutil.copytree(home, there / "ended")
        subprocess.run(["mount", "-o", "remount,ro", str(there)], check=True)
        for kind in ("killed", "ended"):
            where = ("made", "--home", there / kind)
            for command in (("list", *where[1:]), ("status", *where), ("front", *where, "-o", tmp_path / "page"),
                            ("export", *where, "--no-verify", "-o", tmp_path / "best.yaml")):  # fmt: skip
                ran = run_cli(*command)
                assert ran.code == 0, (kind, ran)
        assert "trial 0" in run_cli("front", "made", "--home", there / "killed").out
        ran = run_cli("status", "made", "--home", there / "torn")
        assert ran.code == 2 and "copy it, and studies.db-wal if there is one, to a folder of yours" in ran.message
    finally:
        storage.engine.dispose()
        subprocess.run(["umount", "-l", str(there)], check=True)
