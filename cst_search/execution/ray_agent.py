"""Stand in for an agent of a Ray node: it tells the raylet that it serves nothing, and waits for the raylet's end.

A raylet does not start without its agents, and waits for them. This file is run with the kind of agent and the
arguments of Ray's own one, and imports nothing but modules of the interpreter.
"""

from __future__ import annotations

import os
import sys
import time

# files in which an agent leaves its ports for the raylet, with -1 for what it does not serve: ray/dashboard/agent.py
_PORTS = {
    "dashboard_agent": ("metrics_agent_port", "metrics_export_port", "dashboard_agent_listen_port"),
    "runtime_env_agent": ("runtime_env_agent_port",),
}
_LOOK_SECONDS = 0.5


def main() -> None:
    raylet = os.getppid()
    kind, *words = sys.argv[1:]
    given = dict(word.removeprefix("--").split("=", 1) for word in words if "=" in word)
    for port in _PORTS[kind]:
        path = os.path.join(given["session-dir"], f"{port}_{given['node-id']}")
        part = f"{path}.{os.getpid()}"
        with open(part, "w") as file:
            file.write("-1")
        os.rename(part, path)
    while os.getppid() == raylet:
        time.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    main()
