"""A process of its own for a trial whose memory is limited on a CPU.

The limit is one of a process (`memory_limit`). In a worker's process it would bind Ray's threads too, and an
allocation refused to one of those ends the worker; nor does a process give back all that a trial took, so the next
trial there would be held to something else. So a worker starts one *server*, which imports torch and then forks a
process for each trial: 10 ms instead of 3 s, the same memory at the beginning every time, all of it given back at the
end, and whatever a refused allocation breaks, up to a segmentation fault in a library that did not look, breaks there.

The server has a single thread (a fork copies no other one) and is in a session of its own: Ctrl-C in a terminal
reaches the launch alone, which then ends it. It ends by itself, with its trial, when whoever started it is gone.
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
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cst_search.config.recipe import Recipe
from cst_search.data.coco import DetectionData
from cst_search.data.disk_cache import Cache
from cst_search.trial.result import Outcome
from cst_search.units import format_bytes

_START = "import sys; sys.path[:] = {path!r}; from cst_search.trial.isolated_process import serve; serve()"
_HEADER = struct.Struct("<QQ")  # of a request: its length and the limit, in bytes
# What comes on the server's standard input, by its first byte. One byte is the answer to each report; the answer to a
# trial that died meanwhile is read between two requests.
_REQUEST, _GO_ON, _STOP = b"r", b"g", b"s"
_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of prctl(2)
_LOOK_SECONDS = 0.01  # between two looks at the memory of a trial, for one that is killed
# A process that dies with this share of its limit in use is taken to have run out. Of 450 trials with a limit drawn at
# random below their need six had a segmentation fault, in a library that used what it had been refused; five had been
# seen at 90 to 100 % of the limit, the sixth was not watched.
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
) -> dict[str, Any]:
    """`run.run_trial` on the CPU in a process of its own. Returns what `TrialResult.to_dict` gives.

    No fault of the trial is raised: what it raises, and its death, are results too.

    Args:
        threads: CPU threads; 0: torch's default.
    """
    global _server
    if _server is not None and not _server.is_alive():
        stop()
    if _server is None:
        _server = _Server()
    options = {"epochs": epochs, "cache": cache, "rungs": rungs, "checkpoint": checkpoint}
    request = pickle.dumps((recipe, data, threads, options))
    try:
        return _server.run(request, memory_limit_bytes, report)
    except BaseException:  # Ctrl-C, say: nobody will read what the trial still has to tell
        stop()
        raise


def stop() -> None:
    """End the server of this process, if it has one, and the trial at work there."""
    global _server
    if _server is not None:
        _server.close()
        _server = None


def fault(error: Exception) -> dict[str, Any]:
    """The result of a trial that raised."""
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    return {"outcome": Outcome.FAILED, "reason": f"{type(error).__name__}: {error} ({last.name}, line {last.lineno})"}


class _Server:
    """The worker's end: requests in, lines of JSON out."""

    def __init__(self) -> None:
        # OpenBLAS would start threads as numpy is imported; glibc's further arenas would blur the peak
        environment = os.environ | {"OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", _START.format(path=sys.path)],
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
            except ValueError:  # cut off: its writer was killed
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
        with contextlib.suppress(BrokenPipeError):  # then there is nothing to read either
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
    """Run what comes on standard input, one trial after the other, until it is closed."""
    out = os.dup(1)
    os.dup2(2, 1)  # what a library prints must not get between the messages

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
    text = ("\n" + json.dumps(message) + "\n").encode()  # the first: a trial that was killed may have left half a line
    while text:
        text = text[os.write(out, text) :]


def _run(request: bytes, limit: int, out: int, answers: int) -> None:
    """The trial, in its own process."""
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
    """Wait for the trial, pass answers on, say how it ended. End it when nobody is there to hear of it."""
    held = 0
    while (waited := os.waitpid(pid, os.WNOHANG))[0] == 0:
        if select.select([0], [], [], _LOOK_SECONDS)[0]:
            if not (said := _read(1)):
                os.killpg(0, signal.SIGKILL)  # the session: itself, the trial, and what that started
            with contextlib.suppress(BrokenPipeError):  # the trial has just died
                os.write(answer, said)
        held = max(held, _held(pid, limit))
    code = os.waitstatus_to_exitcode(waited[1])
    how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
    reason = f"its process ended by {how}, when it held {format_bytes(held)} of {format_bytes(limit)}"
    outcome = Outcome.OOM if held >= _FULL * limit and -code not in (signal.SIGKILL, signal.SIGTERM) else Outcome.FAILED
    _write(out, {"ended": {"outcome": outcome, "reason": reason, "limit_bytes": limit, "held_bytes": held}})


def _held(pid: int, limit: int) -> int:
    """The most that a trial has had of its limit so far; 0 while none is in force."""
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
