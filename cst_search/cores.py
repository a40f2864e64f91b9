"""The CPU cores that this process may use, and whether others use them. Standard library only."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath

_MEMBERSHIP, _GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def n_cores() -> int:
    """Return how many cores this process may use: by its affinity, and by the CPU quota of its container if any.

    ``docker run --cpus=4`` sets a quota and leaves the affinity at all cores. A part of a core is no core: 2.5 are two.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, int(min([allowed, *_quotas()])))


def busy_words() -> str:
    """Return e.g. ``load 23.4 on 2 cores`` if more is to run on this machine than it has cores, else an empty text.

    The load is that of the whole machine, in a container too, so it is compared with all cores and not with `n_cores`.
    """
    if not hasattr(os, "getloadavg"):  # Windows
        return ""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    return f"load {load:.1f} on {cores} cores" if load > cores else ""


def wait_passively() -> None:
    """On a busy machine, have torch's threads sleep while they wait for one another. Call it before torch is imported.

    Where other programs run too, spinning threads take the core from the one that they wait for: a step of a ResNet-18
    with two threads took 5.9 s, and 0.85 s with threads that sleep (two cores, load 6; one thread 0.83 s). On a quiet
    machine sleeping threads run one after the other: an epoch of the demo took 6.8 s, and 3.8 s with threads that spin.
    """
    if busy_words():
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


def _quotas() -> Iterator[float]:
    """Yield the CPU time per time of every control group that this process is in, where it has a limit.

    Sources: docs.kernel.org/admin-guide/cgroup-v2.html (``cpu.max``) and docs.kernel.org/scheduler/sched-bwc.html
    (``cpu.cfs_quota_us``, version 1).
    """
    try:
        lines = _MEMBERSHIP.read_text().splitlines()
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, group = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = _GROUPS / controllers  # of version 2, which names no controllers, the root itself
        # a container sees its own group as the root, whatever the path says
        for folder in (PurePosixPath(group), *PurePosixPath(group).parents):
            with suppress(OSError, ValueError):
                there = root / str(folder).lstrip("/")
                if controllers:
                    quota, period = ((there / name).read_text() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us"))
                else:
                    quota, period = (there / "cpu.max").read_text().split()
                if float(quota) > 0:  # version 1 has -1 for no limit, version 2 `max`, which is no number
                    yield float(quota) / float(period)
