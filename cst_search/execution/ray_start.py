"""Start Ray on this machine, with the environment that a search needs. Import it before any module of Ray."""

from __future__ import annotations

import gc
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import ExitStack, contextmanager, suppress
from typing import Any
from unittest.mock import patch

# When Ray's memory monitor ends a worker, the whole Tune driver ends too (seen with ray 2.60); the trial itself or the
# kernel handles out-of-memory. Usage statistics stay off. Set before Ray starts.
os.environ.setdefault("RAY_memory_monitor_refresh_ms", "0")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DEDUP_LOGS", "1")
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Ray's handler in C++ prints a stack on SIGTERM before ours, which ends the search in an orderly way
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
# the figures of each node would be open to the network, on all addresses and without a token
os.environ.setdefault("RAY_enable_metrics_collection", "0")
# Ray starts an idle worker for each CPU, half a second and 80 MB each, and Tune's trials get workers of their own
os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
# Ray gives its workers niceness 15: beside any other program at 0 they get a thirtieth of a core, and a search that
# takes 2 min took more than 10 min. Trials are what the search is for; `nice cst-search launch` makes room for others.
os.environ.setdefault("RAY_worker_niceness", "0")
# Ray kills a worker that has not come up in 60 s and starts another; on a busy machine that would never end
os.environ.setdefault("RAY_worker_register_timeout_seconds", "600")
# no CSV, JSON and TensorBoard files per trial, and no warning about a new output engine
os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
# A stopped trial ends when its process is reused. By default Ray waits 2 s for that, then loses the next trial.
os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "120")

import psutil
import ray

from cst_search.cores import wait_passively
from cst_search.errors import RunError
from cst_search.execution import ray_agent
from cst_search.execution.interrupt import end_at_once, is_ending
from cst_search.execution.ray_files import keep_token_private, private_folder
from cst_search.loopback import reach_loopback_directly
from cst_search.redaction import shown_address

reach_loopback_directly()
wait_passively()  # workers have this environment

_LOOK_SECONDS = 1.0  # between looks at Ray's own processes
_TRIES = 3  # starts, if the environment changes meanwhile
# Set until Ray has started or failed. Until then this process must neither take Ray down nor end as Python ends it: a
# call of Ray's C++ part on the starting thread may abort it (exit code -6).
is_starting = threading.Event()
_is_given_up = threading.Event()
_GIVE_UP_SECONDS = 5.0  # for a start to end that is given up
_START_SECONDS = 600.0  # for Ray's node to appear; Ray itself gives up after 30 s, which a busy machine may need
# Methods of Ray's node that start what a search on this machine does not use: the autoscaler, the process that passes
# workers' output to the driver, and the job server. Starting Ray then takes 3 s of CPU time instead of 5.
_UNUSED = ("start_monitor", "start_log_monitor", "start_api_server")
# Nor are a node's agents, which serve the dashboard and make environments for workers: 2 s of CPU time, and the raylet
# waits for them. A Ray job and a hook may ask for such an environment. How an agent reports to its raylet is internal
# to Ray, so that other versions than the one that this was tried on start their own agents.
AGENTS_TRIED_ON = "2.60."
_ASKS_FOR_ENVIRONMENTS = ("RAY_JOB_CONFIG_JSON_ENV_VAR", "RAY_RUNTIME_ENV_HOOK")


def init_ray(address: str, **options: Any) -> None:
    """Call `ray.init` with passwords hidden, as Ray shows the driver's command line to all users of the cluster.

    Workers get an import path without the working folder, which Ray puts first on it unless a job brings its own.

    Args:
        address: "local" starts Ray on this machine, with what a search needs alone and files that nobody else can read.
    """
    from ray._private import utils
    from ray.job_config import JobConfig

    if address == "local":
        keep_token_private()
        options["_temp_dir"] = str(private_folder() / "ray")
    with ExitStack() as patches:
        for owner, name, own in (
            (utils, "get_entrypoint_name", lambda: " ".join(map(shown_address, sys.argv))),
            (JobConfig, "_runtime_env_has_working_dir", lambda self: True),
        ):
            patches.enter_context(patch.object(owner, name, own))
        if address == "local":
            patches.enter_context(_little_of_a_node())
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **options)


@contextmanager
def _little_of_a_node() -> Iterator[None]:
    """Start a node without the processes that a search on this machine does not use.

    Functions within Ray are replaced on the versions that this was tried on alone.
    """
    from ray._private import node, ray_constants, services, utils

    agent, maker = ray_constants.PROCESS_TYPE_DASHBOARD_AGENT, ray_constants.PROCESS_TYPE_RUNTIME_ENV_AGENT
    is_tried = ray.__version__.startswith(AGENTS_TRIED_ON)
    can_stand_in = os.name == "posix" and is_tried  # elsewhere a process does not learn that its parent has ended
    unused = {
        agent: can_stand_in and not has_metrics(),
        maker: can_stand_in and not any(map(os.environ.get, _ASKS_FOR_ENVIRONMENTS)),
    }

    def start_of(command: Callable[..., list[str]]) -> Callable[..., list[str]]:
        def start_of_command(component: str, *more: Any, **options: Any) -> list[str]:
            if unused.get(component):
                return [sys.executable, "-S", ray_agent.__file__, component]
            return command(component, *more, **options)

        return start_of_command

    with ExitStack() as patches:
        for name in _UNUSED:
            patches.enter_context(patch.object(node.Node, name, lambda *_, **__: None, create=True))
        if is_tried:
            command = services._build_python_executable_command_memory_profileable
            patches.enter_context(patch.object(services, command.__name__, start_of(command)))
            patches.enter_context(patch.object(services, "get_node", _patient(services.get_node)))
        if unused[agent]:  # Ray would import the dashboard's libraries to see if they are there
            patches.enter_context(patch.object(utils, "get_dashboard_dependency_error", lambda: None))
        yield


def _patient(get_node: Callable[..., Any]) -> Callable[..., Any]:
    """Return a form of Ray's function that waits for the node as long as its process runs, up to 10 minutes."""

    def wait_for_node(*arguments: Any) -> Any:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return get_node(*arguments)
            except RuntimeError:  # it is not there yet
                is_over = _is_given_up.is_set() or time.monotonic() > deadline
                if is_over or not any(map(_is_raylet, psutil.Process().children())):
                    raise
            time.sleep(0.1)

    return wait_for_node


def _is_raylet(process: psutil.Process) -> bool:
    try:
        return process.name() == "raylet" and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def start_beside(n_cpus: int) -> Future[None]:
    """Start Ray on a thread and return at once. The future completes when Ray has started, or raises its error."""
    ready: Future[None] = Future()
    logging.getLogger("ray").setLevel(logging.ERROR)  # hides its message on leaving SIGTERM to us
    is_starting.set()
    _is_given_up.clear()
    # a daemon: on Linux, processes that a thread has started end with it, so it must live as long as this process
    threading.Thread(target=_start, args=(n_cpus, ready), name="ray", daemon=True).start()
    return ready


def _start(n_cpus: int, ready: Future[None]) -> None:
    try:
        for n_left in reversed(range(_TRIES)):
            try:
                init_ray("local", num_cpus=n_cpus, include_dashboard=False)  # "local" overrides RAY_ADDRESS
                break
            except RuntimeError as error:
                # Ray reads the environment while the main thread imports libraries that add to it
                if not n_left or "changed size during iteration" not in str(error):
                    raise
                leave_ray()
    except BaseException as error:
        is_starting.clear()
        ready.set_exception(error)
    else:
        is_starting.clear()
        ready.set_result(None)
    threading.Event().wait()


def give_up_start(ready: Future[None]) -> None:
    """End a start of `start_beside` that nobody waits for any more, and leave Ray if it had just started."""
    _is_given_up.set()
    with suppress(TimeoutError):
        if ready.exception(_GIVE_UP_SECONDS) is None:
            leave_ray()


def leave_ray() -> None:
    """Call `ray.shutdown` while no garbage is collected.

    Cyclic garbage holds Ray's references to objects and actors. If another thread happens to collect it while Ray shuts
    down, Ray's C++ part ends this process with exit code 1 ("The core worker has already been shutdown").
    """
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        ray.shutdown()
    finally:
        if was_on:
            gc.enable()


def has_metrics() -> bool:
    """Return whether Ray's figures for Prometheus are served, which only the user can have asked for."""
    return os.environ["RAY_enable_metrics_collection"].lower() in ("1", "true")


def watch_own_ray(go_on: str, left: threading.Event) -> None:
    """End this process within 2 s if a process of the Ray started here dies. Ray itself would hang for minutes.

    Args:
        go_on: command that continues the search, for the last message.
        left: set once Ray is to be shut down.
    """
    threading.Thread(target=_watch, args=(go_on, left), name="own ray", daemon=True).start()


def _watch(go_on: str, left: threading.Event) -> None:
    from ray._private import ray_constants, worker

    vital = {ray_constants.PROCESS_TYPE_RAYLET, ray_constants.PROCESS_TYPE_GCS_SERVER}
    family: list[psutil.Process] = []
    while not left.wait(_LOOK_SECONDS):
        node = worker._global_node
        if node is None:
            return
        dead = [kind for kind, _ in node.dead_processes() if kind in vital]
        if dead and not left.is_set() and not is_ending.is_set():
            # workers are children of the raylet, and are not ours any more if it has ended
            how = f"Ray's own process {dead[0]} has ended (killed, or out of host memory)"
            end_at_once(how, go_on, code=1, also=[process for process in family if process.is_running()])
        family = psutil.Process().children(recursive=True)


def try_ray() -> None:
    """Start Ray, run a task on it, and shut it down. Raises RunError if a step fails."""
    ours = not ray.is_initialized()
    try:
        if ours:
            init_ray("local", num_cpus=1, include_dashboard=False)
        answer = ray.get(ray.remote(lambda: 6 * 7).remote(), timeout=60)
    except Exception as error:
        raise RunError(f"Ray does not work here: {(str(error).splitlines() or [''])[0]}") from error
    finally:
        if ours:
            leave_ray()
    if answer != 42:
        raise RunError("Ray does not work here: a task came back with another answer")
