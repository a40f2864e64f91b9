"""Environments in which users of Ray, Optuna and MLflow had trouble; each with the address of their report."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from searches import Place
from studies import make_study, run_cli, run_one, scored

from cst_search.study.fast_reads import log_ahead
from cst_search.study.study import default_storage

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


def test_a_home_with_any_name_behind_a_proxy_and_what_ray_leaves_open(place: Place, tmp_path: Path) -> None:
    """Nothing is written beside the home, a proxy is passed by, and Ray's files and ports are closed to others."""
    home = place.home / "a?b #c%41 d'\u00e9\""
    home.mkdir()
    before = {*os.listdir(place.home), "token"}
    there = Place(home, place._flags, storage=default_storage(home))
    token = tmp_path / "token"
    there.env = {"http_proxy": "http://127.0.0.1:9", "all_proxy": "http://127.0.0.1:9",
                 "RAY_AUTH_TOKEN_PATH": str(token)}  # fmt: skip
    with there.search("--workers", "1", trials=3, seconds=0.3) as one:
        one.until(lambda: len(there.notes()) >= 2)
        words = " ".join(word for process in one.relatives() for word in process.cmdline())
        (session,) = {Path(found) for found in re.findall(r"/\S*/session_[\d_-]+(?=/logs)", words)}
        folders = {path: stat.S_IMODE(path.stat().st_mode) for path in (token, session.parents[1])}
        assert one.wait() == 0, one.output
    assert folders == {token: 0o600, session.parents[1]: 0o700}
    there.check(3, {})
    assert there.runs() == dict.fromkeys(there.finished(), 1)
    assert set(os.listdir(place.home)) == before
    assert {"studies.db", "mlflow.db"} <= set(os.listdir(home))


def test_a_quota_of_cpu_time(tmp_path: Path) -> None:
    """Of a control group of the kernel, as a container has one."""
    group = Path(f"/sys/fs/cgroup/cpu/cst-search-test-{os.getpid()}")
    try:
        group.mkdir()
        (group / "cpu.cfs_quota_us").write_text("100000")
    except OSError:
        pytest.skip("no control group can be made here")
    try:
        count = f"exec '{sys.executable}' -c 'from cst_search.cores import n_cores; print(n_cores())'"
        done = subprocess.run(
            ["bash", "-c", f"echo $$ > {group}/cgroup.procs && {count}"], capture_output=True, text=True
        )
        assert done.stdout.strip() == "1", done
    finally:
        group.rmdir()
