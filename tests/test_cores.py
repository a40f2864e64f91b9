"""How many cores there are, in containers of both kinds."""

from __future__ import annotations

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
