"""Nodes of a Ray cluster on loopback addresses of this machine, started by the lines of deploy/README.md."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HEAD, NODE, APART = "127.0.0.2", "127.0.0.3", "127.0.0.4"
NODE_OPTIONS = "--num-cpus=2 --num-gpus=2"  # GPUs that exist in Ray's books alone


def lines_of_readme() -> dict[str, str]:
    """The lines of deploy/README.md by their name."""
    text = (ROOT / "deploy" / "README.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^```bash (\w+)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))


def free_ports(n: int) -> list[int]:
    """Between Ray's ports for workers and those that systems give out by themselves, or a part of Ray may take one."""
    found: list[int] = []
    while len(found) < n:
        port = 20000 + secrets.randbelow(12000)
        with contextlib.suppress(OSError):
            socket.create_server(("", port)).close()
            found.append(port)
    return found


@dataclass
class Machine:
    """A cluster under way, and the processes that hold its nodes."""

    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(24))
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.port, self.client_port, self.jobs_port = free_ports(3)
        self.address, self.client = f"{HEAD}:{self.port}", f"ray://{HEAD}:{self.client_port}"
        self.jobs = f"http://127.0.0.1:{self.jobs_port}"

    def start(self, kind: str, more: str, ip: str = NODE, before: str = "") -> None:
        """One node, by the README's line; its ports and ``more`` put in. ``before``: in a file system of its own."""
        lines = lines_of_readme()
        line = lines[kind].strip().replace("8265", str(self.jobs_port)).replace("10001", str(self.client_port))
        agent = free_ports(1)[0]  # 52365 may be another cluster's on this machine
        more = f"--dashboard-agent-listen-port={agent} {more}"
        line = f"{lines['settings']}\n{before}exec {line.replace('6379', str(self.port))} {more}"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = {key: value for key, value in os.environ.items() if not key.startswith(("RAY_", "PYTHONPATH"))}
        environment |= {"CLUSTER_TOKEN": self.token, "HEAD_IP": HEAD, "NODE_IP": ip, "PATH": path}
        # no processes that wait for work, a second of a core each, and no figures: as cst_search/execution/ray_start.py
        environment |= {"RAY_prestart_worker_first_driver": "0", "RAY_enable_metrics_collection": "0"}
        environment |= {"OMP_NUM_THREADS": "1"}
        log = self.folder / f"{kind}-{len(self.processes)}.log"
        command = ["unshare", "--mount", "--propagation", "private"] if before else []
        for _ in range(2):  # Ray gives its parts 30 s to start, which a busy machine may not have
            with log.open("wb") as file:
                process = subprocess.Popen(
                    [*command, "bash", "-c", line], cwd=self.folder, env=environment, stdout=file, stderr=file
                )
            ended = process.poll
            wait_for(lambda ended=ended: "Ray runtime started" in log.read_text() or ended() is not None, 180)
            if ended() is None:
                break
        assert process.poll() is None, log.read_text()
        self.processes.append(process)
        if kind == "head":  # the server of ray:// comes a little later
            wait_for(lambda: socket.socket().connect_ex((HEAD, self.client_port)) == 0, 90)

    def start_lacking(self, folder: str) -> subprocess.Popen[bytes]:
        """A node that has nothing in a folder."""
        self.start("node", "--num-cpus=2", APART, before=f"mount -t tmpfs none {folder}\n")
        return self.processes.pop()

    def end(self, *processes: subprocess.Popen[bytes]) -> None:
        for process in reversed(processes):
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in processes:
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def wait_for(condition: Callable[[], Any], seconds: float, pause: float = 0.1) -> Any:
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end, "not in time"
        time.sleep(pause)
    return found
