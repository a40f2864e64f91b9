"""Programs in processes of their own that need not import torch, Ray and MLflow first.

To import them takes 5 to 8 s of a core, most of what a search with made-up trials takes. So one process, the *server*,
imports them once, and is forked for each program: a process like any other, with its own pid, signals and end.
The processes of a test run that have one niceness, which a fork takes over, share a server.

    python tests/warm.py FD     the server; programs are asked for on connections to this socket
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import IO

# what a launch imports; that only Linux has it in a form that can be forked is of no matter: see `start`
MODULES = (
    "cst_search.cli", "cst_search.commands.launch", "cst_search.commands.confirm", "cst_search.execution.ray_tune",
    "cst_search.tracking.mlflow_record", "cst_search.trial.run", "cst_search.report.figure", "cst_search.report.html",
    "cst_search.search.pareto_sampler",
    # and what these import as they work: 1.4 s of each search
    "cst_search.execution.ray_cluster", "cst_search.trial.isolated_process", "scipy.linalg",
    "scipy.optimize", "matplotlib.figure", "matplotlib.backends.backend_agg", "mlflow.store.tracking.sqlalchemy_store",
    "optuna.storages._rdb.models", "alembic.command", "jinja2", "rich.progress",
)  # fmt: skip
_NUMBER = struct.Struct("<i")


class Forked:
    """What the tests use of `subprocess.Popen`, with standard output and error in one pipe or in a file."""

    def __init__(self, words: list[str], env: dict[str, str], stdout: IO[str] | None = None) -> None:
        output, theirs = os.pipe() if stdout is None else (None, os.dup(stdout.fileno()))
        self._status, status = os.pipe()
        request = json.dumps({"words": words, "env": env, "cwd": os.getcwd()}).encode()
        socket.send_fds(_server(), [request], [theirs, status])
        for end in (theirs, status):
            os.close(end)
        self.stdout = None if output is None else open(output, encoding="utf-8", errors="replace")
        self.pid = self._number()
        self.returncode: int | None = None

    def _number(self) -> int:
        content = os.read(self._status, _NUMBER.size)
        assert content, "the server of tests/warm.py has ended"
        return int(_NUMBER.unpack(content)[0])

    def wait(self, timeout: float | None = None) -> int:
        if self.returncode is None:
            if not select.select([self._status], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = self._number()
            os.close(self._status)
        return self.returncode

    def poll(self) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def start(words: list[str], env: dict[str, str], stdout: IO[str] | None = None) -> Forked | subprocess.Popen[str]:
    """Start ``python WORDS``, where WORDS are ``-m MODULE ...`` or ``FILE ...``; ``stdout`` None: a pipe.

    A fresh interpreter takes it where there is no fork server to be had, or where the environment holds what the
    dynamic linker reads.
    """
    if sys.platform == "linux" and "LD_PRELOAD" not in env:
        return Forked(words, env, stdout)
    env = env | {"PYTHONUNBUFFERED": "1"}
    output = subprocess.PIPE if stdout is None else stdout
    return subprocess.Popen([sys.executable, *words], stdout=output, stderr=subprocess.STDOUT, text=True, env=env)


def run(command: list[str], *, stdout: IO[str], stderr: int, env: dict[str, str]) -> Forked | subprocess.Popen[str]:
    """Take the place of `subprocess.run`, for Python's programs with both outputs in one file."""
    assert command[0] == sys.executable and stderr == subprocess.STDOUT
    process = start(command[1:], env, stdout)
    process.wait()
    return process


def finished(words: list[str], env: dict[str, str], seconds: float) -> tuple[int, str]:
    """Run ``python WORDS`` to its end. Returns its exit code and its output, which is to be short."""
    process = start(words, env)
    assert process.stdout is not None
    try:
        return process.wait(seconds), process.stdout.read()
    finally:
        process.kill()


@lru_cache
def _server() -> socket.socket:
    """A connection to the server, which is started by the first that asks and ends with its last connection."""
    run = os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    path = Path(tempfile.gettempdir(), f"cst-warm-{os.getuid()}", f"{run[:12]}-{os.nice(0)}")
    path.parent.mkdir(mode=0o700, exist_ok=True)
    ours = _socket()
    with _locked(path):
        try:
            ours.connect(str(path))
        except OSError:  # there is none, or it was killed
            path.unlink(missing_ok=True)
            with _socket() as theirs:
                theirs.bind(str(path))
                theirs.listen(64)
                number = theirs.fileno()
                subprocess.run([sys.executable, __file__, str(number)], pass_fds=[number], stdin=subprocess.DEVNULL)
            ours.connect(str(path))
    return ours


def _socket() -> socket.socket:
    return socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """While nobody else connects to a server, starts one, or ends one."""
    import fcntl  # Windows has none

    with open(path.parent / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


# --- the server -------------------------------------------------------------------------------------------------------


def _import_all() -> dict[str, str]:
    """Return what the modules set in the environment as they are imported."""
    before = set(os.environ)
    for name in MODULES:
        importlib.import_module(name)
    return {name: value for name, value in os.environ.items() if name not in before}


def serve(listener: socket.socket) -> tuple[bytes, list[int]]:
    """Fork for each request. Returns in the processes of the programs alone, with the request."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for those that `_watch`
    gc.freeze()  # else every fork copies it all at its first collection
    connections: set[socket.socket] = set()
    while True:
        for ready in select.select([listener, *connections], [], [])[0]:
            if ready is listener:
                connections.add(listener.accept()[0])
                continue
            request, pipes, *_ = socket.recv_fds(ready, 2**20, 2)
            if not request:
                connections.remove(ready)
                ready.close()
                if not connections:
                    _end(listener)
                continue
            if os.fork() == 0:
                for one in (listener, *connections):
                    one.close()
                for number in (signal.SIGCHLD, signal.SIGHUP):  # of which `nohup pytest` has the second ignored
                    signal.signal(number, signal.SIG_DFL)
                _watch(pipes)
                return request, pipes
            for pipe in pipes:
                os.close(pipe)


def _end(listener: socket.socket) -> None:
    """End, unless somebody has connected meanwhile."""
    path = Path(listener.getsockname())
    with _locked(path):
        if not select.select([listener], [], [], 0)[0]:
            path.unlink()
            os._exit(0)


def _watch(pipes: list[int]) -> None:
    """Fork once more; the parent says on the second pipe who the program is and how it ended."""
    if (pid := os.fork()) == 0:
        return
    os.close(pipes[0])
    os.write(pipes[1], _NUMBER.pack(pid))
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    with contextlib.suppress(BrokenPipeError):
        os.write(pipes[1], _NUMBER.pack(code))
    os._exit(0)


def _take_folders(path: str) -> None:
    """Look for modules where a fresh interpreter would, and first for the one that it imports first."""
    new = [folder for folder in path.split(os.pathsep) if folder and folder not in sys.path]
    sys.path[1:1] = new
    if any(Path(folder, "sitecustomize.py").exists() for folder in new):
        importlib.import_module("sitecustomize")


def main() -> None:
    if os.fork():  # it is the child of nobody, as its programs are of several test processes
        os._exit(0)
    defaults = _import_all()
    request, (output, status) = serve(socket.socket(fileno=int(sys.argv[1])))
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    os.close(status)
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(line_buffering=True, write_through=True)  # type: ignore[union-attr]
    asked = json.loads(request)
    os.environ.clear()
    os.environ.update(defaults | asked["env"])
    if "RAY_AUTH_TOKEN" in os.environ:  # Ray has read, as it was imported, that there was none
        from ray._private.authentication_test_utils import reset_auth_token_state

        reset_auth_token_state()
    os.chdir(asked["cwd"])
    _take_folders(asked["env"].get("PYTHONPATH", ""))
    words: list[str] = asked["words"]
    if words[0] == "-m":
        sys.argv, sys.path[0] = words[1:], os.getcwd()
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv, sys.path[0] = words, os.path.dirname(words[0])
        runpy.run_path(words[0], run_name="__main__")


if __name__ == "__main__":
    main()
