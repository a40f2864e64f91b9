"""How many cores there are, in containers of both kinds."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from cst_search import cores


@pytest.mark.parametrize(
    ("why", "membership", "files", "expected"),
    [
        ("no limit", "0::/", {"cpu.max": "max 100000"}, 64),
        ("no control groups", "", {}, 64),
        ("version 2, a container", "0::/", {"cpu.max": "400000 100000"}, 4),
        ("version 2, a part of a core", "0::/", {"cpu.max": "250000 100000"}, 2),
        ("version 2, less than a core", "0::/", {"cpu.max": "50000 100000"}, 1),
        ("version 2, more than there are", "0::/", {"cpu.max": "9900000 100000"}, 64),
        ("version 2, a slice above", "0::/a.slice/b",
         {"a.slice/cpu.max": "300000 100000", "a.slice/b/cpu.max": "max 1"}, 3),
        ("version 1", "4:memory:/m\n3:cpu,cpuacct:/docker/1", {
            "cpu,cpuacct/docker/1/cpu.cfs_quota_us": "800000\n",
            "cpu,cpuacct/docker/1/cpu.cfs_period_us": "100000\n"}, 8),
        ("version 1, its own group as the root", "3:cpu:/docker/1",
         {"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "50000"}, 3),
        ("version 1, no limit", "3:cpu:/", {"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 64),
        ("both, the lower one counts", "3:cpu:/\n0::/", {
            "cpu/cpu.cfs_quota_us": "500000", "cpu/cpu.cfs_period_us": "100000", "cpu.max": "200000 100000"}, 2),
        ("nonsense", "0::/", {"cpu.max": ""}, 64),
    ],
)  # fmt: skip
def test_a_quota_counts_as_affinity_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str, membership: str, files: dict[str, str], expected: int
) -> None:
    for name, content in {"membership": membership, **files}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    monkeypatch.setattr(cores, "_MEMBERSHIP", tmp_path / "membership")
    monkeypatch.setattr(cores, "_GROUPS", tmp_path)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(64)), raising=False)
    assert cores.n_cores() == expected
    monkeypatch.setattr(cores, "_MEMBERSHIP", tmp_path / "none")
    assert cores.n_cores() == 64


def test_a_machine_is_busy_by_all_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """The load in a container is that of the machine: its quota of 2 cores says nothing of it."""
    monkeypatch.setattr(cores, "_quotas", lambda: iter([2.0]))
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    for load, expected in ((5.0, ""), (64.0, ""), (70.25, "load 70.2 on 64 cores")):
        monkeypatch.setattr("os.getloadavg", lambda load=load: (load, 0.0, 0.0))
        assert cores.busy_words() == expected
    monkeypatch.delattr("os.getloadavg")  # Windows
    assert cores.busy_words() == ""


# prints the policy when torch is looked for, or when the command line is about to run
AS_TORCH_COMES = """
import os, sys
os.getloadavg = lambda: (float(sys.argv[1]), 0, 0)
class Look:
    def find_spec(self, name, *more):
        if name == "torch":
            print(os.environ.get("OMP_WAIT_POLICY"), flush=True)
            os._exit(0)
sys.meta_path.insert(0, Look())
"""


@pytest.mark.parametrize(
    "program",
    ["import cst_search.trial.__main__",
     "from cst_search import cli; cli.main = lambda: __import__('torch'); cli.run()"],
)  # fmt: skip
@pytest.mark.parametrize(
    ("load", "policy", "expected"), [("999", None, "PASSIVE"), ("0", None, "None"), ("999", "ACTIVE", "ACTIVE")]
)
def test_threads_do_not_spin_on_a_busy_machine_unless_the_user_wants_it(
    monkeypatch: pytest.MonkeyPatch, program: str, load: str, policy: str | None, expected: str
) -> None:
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)  # the tests' own environment has it too
    if policy:
        monkeypatch.setenv("OMP_WAIT_POLICY", policy)
    done = subprocess.run([sys.executable, "-c", AS_TORCH_COMES + program, load], capture_output=True, text=True)
    assert done.stdout.strip() == expected, done
