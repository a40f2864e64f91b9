"""Run a trial with a CPU memory limit in a separate process.

The limit applies to a whole process (`memory_limit`). In a worker's process it would also bind Ray's threads, and a
refused allocation in one of those ends the worker. Nor does a process return all memory of a trial, so the next trial
would have another limit. Therefore a worker starts one *server*, which imports torch once and then forks a process for
each trial. That takes 10 ms instead of 3 s. Each trial starts with the same memory and returns all of it at the end.
The damage of a refused allocation, up to a segmentation fault in a library that does not check, stays in the fork.

The server has a single thread (a fork copies no other one) and a session of its own: Ctrl-C in a terminal reaches only
the launch, which then ends the server. It also ends by itself, with its trial, when its parent process is gone.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import pickle
import select
import signal
import struct
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.data.disk_cache import Cache
from cst_search.import_path import program
from cst_search.trial.result import Outcome
from cst_search.units import format_bytes

_HEADER = struct.Struct("<QQ")  # header of a request: its length and the memory limit, both in bytes
# The first byte of a message on the server's standard input. Each report is answered with one byte; the answer for a
# trial that died in the meantime is read between two requests.
_REQUEST, _GO_ON, _STOP = b"r", b"g", b"s"
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_LOOK_SECONDS = 0.01  # between two readings of a trial's memory, which tell why it was killed
# A process that dies with this share of its limit in use counts as out of memory. Of 450 trials with a random limit
# below their need, six had a segmentation fault in a library that used a refused allocation. Five of them had been seen
# at 90 to 100 % of the limit; the sixth was not observed.
_FULL = 0.8


def run_in_own_process(
    recipe: Recipe,
    data: DetectionData,
    *,
    epochs: int,
    threads: int,
    memory_limit_bytes: int,
    report: Callable[[dict[str, Any]], object],
    cache: Cache | None = None,
    rungs: tuple[int, ...] = (),
    checkpoint: Path | None = None,
    recorded: Sequence[Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """Run `run.run_trial` on the CPU in a separate process. Returns the result as `TrialResult.to_dict` gives it.

    No fault of the trial is raised: its exceptions and its death become results.

    Args:
        threads: CPU threads; 0: torch's default.
    """
    global _server
    if _server is not None and not _server.is_alive():
        stop()
    if _server is None:
        _server = _Server()
    options = {"epochs": epochs, "cache": cache, "rungs": rungs, "checkpoint": checkpoint, "recorded": recorded}
    request = pickle.dumps((recipe, data, threads, options))
    try:
        return _server.run(request, memory_limit_bytes, report)
    except BaseException:  # e.g. Ctrl-C: nobody will read further messages of the trial
        stop()
        raise


def stop() -> None:
    """End the server of this process, if there is one, with its running trial."""
    global _server
    if _server is not None:
        _server.close()
        _server = None


def fault(error: Exception) -> dict[str, Any]:
    """Return the result of a trial that raised an exception."""
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    return {"outcome": Outcome.FAILED, "reason": f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})"}


class _Server:
    """The worker's end of the server: requests in, lines of JSON out."""

    def __init__(self) -> None:
        # OpenBLAS would start threads when numpy is imported; more arenas of glibc would blur the peak
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        self._process = subprocess.Popen(
            program("cst_search.trial.isolated_process", "serve"),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def run(self, request: bytes, limit: int, report: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
        assert self._process.stdout is not None
        result: dict[str, Any] | None = None
        self._send(_REQUEST + _HEADER.pack(len(request), limit) + request)
        for line in self._process.stdout:
            try:
                message = json.loads(line)
            except ValueError:  # an incomplete line: its writer was killed
                continue
            if "entry" in message:
                self._send(_STOP if report(message["entry"]) is False else _GO_ON)
            elif "result" in message:
                result = message["result"]
            else:
                return result if result is not None else message["ended"]
        return result or {"outcome": Outcome.FAILED, "reason": "the process that runs the trials ended (killed?)"}

    def _send(self, content: bytes) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # the server died; reading finds that out
            self._process.stdin.write(content)
            self._process.stdin.flush()

    def close(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self._process.wait()


_server: _Server | None = None
atexit.register(stop)


# --- the server's process -------------------------------------------------------------------------------------------


def serve() -> None:
    """Run the trials requested on standard input, one after the other, until it is closed."""
    out = os.dup(1)
    os.dup2(2, 1)  # output of libraries must not mix with the messages

    import cst_search.trial.run  # noqa: F401

    while kind := _read(1):
        if kind != _REQUEST:
            continue
        n_bytes, limit = _HEADER.unpack(_read(_HEADER.size))
        request = _read(n_bytes)
        answers, answer = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                _run(request, limit, out, answers)
            finally:
                os._exit(0)
        os.close(answers)
        _watch(pid, limit, out, answer)
        os.close(answer)


def _read(n_bytes: int) -> bytes:
    found = bytearray()
    while len(found) < n_bytes and (part := os.read(0, min(2**20, n_bytes - len(found)))):
        found += part
    return bytes(found)


def _write(out: int, message: dict[str, Any]) -> None:
    text = ("\n" + json.dumps(message) + "\n").encode()  # leading newline: a killed trial may have left half a line
    while text:
        text = text[os.write(out, text) :]


def _run(request: bytes, limit: int, out: int, answers: int) -> None:
    """Run the trial, in its own process."""
    import ctypes

    ctypes.CDLL(None).prctl(_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    import torch

    from cst_search.trial.run import run_trial

    recipe, data, threads, options = pickle.loads(request)
    if threads:
        torch.set_num_threads(threads)

    def report(entry: dict[str, Any]) -> bool:
        _write(out, {"entry": entry})
        return os.read(answers, 1) != _STOP

    try:
        result = run_trial(
            recipe, data, device="cpu", memory_limit_bytes=limit, report=report, **options
        ).to_dict()  # fmt: skip
    except Exception as error:
        result = fault(error)
    _write(out, {"result": result})


def _watch(pid: int, limit: int, out: int, answer: int) -> None:
    """Wait for the trial, pass answers on and report how it ended. Kill it if the worker is gone."""
    held = 0
    while (waited := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if select.select([0], [], [], _LOOK_SECONDS)[0]:
            if not (said := _read(1)):
                os.killpg(0, signal.SIGKILL)  # the whole session: the server, the trial and its children
            with contextlib.suppress(BrokenPipeError):  # the trial has just died
                os.write(answer, said)
        held = max(held, _held(pid, limit))
    code = os.waitstatus_to_exitcode(waited[1])
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    reason = f"its process ended by {how}, when it held {format_bytes(held)} of {format_bytes(limit)}"
    outcome = Outcome.OOM if held >= _FULL * limit and -code not in (signal.SIGKILL, signal.SIGTERM) else Outcome.FAILED
    _write(out, {"ended": {"outcome": outcome, "reason": reason, "limit_bytes": limit, "held_bytes": held}})


def _held(pid: int, limit: int) -> int:
    """Return the peak in bytes that a trial has used of its limit so far; 0 while no limit is in force."""
    import resource

    from cst_search.trial.memory_limit import process_memory

    try:
        bound, _ = resource.prlimit(pid, resource.RLIMIT_DATA)
    except ProcessLookupError:
        return 0
    now = process_memory(pid)
    if bound == resource.RLIM_INFINITY or not now:
        return 0
    return min(limit, limit - (bound - now["VmData"] - (now["VmPeak"] - now["VmSize"])))
