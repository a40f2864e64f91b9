"""Connect to an existing Ray cluster, check its nodes, and follow nodes that join or leave.

The cluster is never shut down, only disconnected from. `node_check` defines the checks of a node, `gpu_sharing.Fleet`
assigns trials to nodes.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

# Ray reads these on import. By default it retries a refused connection 20 times, once a second; its client tries for
# half a minute.
os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "3")
os.environ.setdefault("RAY_CLIENT_MAX_CONNECTION_TIMEOUT_S", "5")

from cst_search.execution.ray_start import init_ray, leave_ray  # first: it sets environment variables that Ray reads

import ray  # isort: skip
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # isort: skip

from cst_search.errors import ConfigError, RunError, StudyError
from cst_search.execution.gpu_sharing import Fleet, Node
from cst_search.execution.interrupt import end_at_once
from cst_search.execution.node_check import NodeReport, NodeRequirements, inspect_node

if TYPE_CHECKING:
    import torch

_ANSWER_SECONDS = 5  # time for a Ray head to answer
_CHECK_SECONDS = 300  # a node may have to fetch the package, import torch for the first time, and download weights
_REFRESH_SECONDS = 2.0
_GONE_SECONDS = 30.0  # a head that is silent for longer is gone; Ray itself waits 60
# environment variables of a search that a trial's process needs; nodes were started without them
_TRIAL_ENVIRONMENT = ("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "TUNE_FUNCTION_THREAD_TIMEOUT_S", "RAY_AIR_NEW_OUTPUT",
                      "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "TUNE_DISABLE_STRICT_METRIC_CHECKING")  # fmt: skip
_BUSY = "Starting Ray client server failed"  # the head allows 30 s for the start of each client's process
_FORMS = "--address takes auto, HOST:PORT of a Ray head (6379 unless told otherwise), or ray://HOST:10001"
_TOKEN = (
    "if the cluster asks for a token, this machine needs the same: RAY_AUTH_MODE=token and RAY_AUTH_TOKEN, "
    "or ~/.ray/auth_token"
)


class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        fleet: nodes that trials are assigned to; set after `check` by the code that runs trials.
        nodes: nodes that passed the check, by Ray's node id.
    """

    def __init__(self, address: str, say: Callable[[str], None]) -> None:
        """Connect to a cluster. Raises ConfigError if there is none, or it refuses access."""
        self.address, self.say = address, say
        self.is_client = address.startswith("ray://")
        self.fleet = Fleet()
        self.nodes: dict[str, Node] = {}
        self._wanted: NodeRequirements | None = None
        self._looking: dict[str, Any] = {}  # new nodes -> Ray's reference to their report
        self._refused: set[str] = set()
        self._refreshed = time.monotonic()
        self._left = threading.Event()
        if not ray.is_initialized():
            _connect(address)

    def device(self, name: str) -> torch.device:
        """Return the torch device for ``--device``; ``auto`` means GPUs if the cluster has any."""
        import torch

        has_gpus = any(node.n_gpus for node in self._alive().values())
        if name == "cuda" and not has_gpus:
            raise ConfigError(
                f"--device cuda: no node of the cluster has a GPU that Ray knows of; give --num-gpus to `ray start` "
                f"there, or use --device cpu (the nodes: {'; '.join(map(str, self._alive().values()))})"
            )
        return torch.device("cuda" if has_gpus and name != "cpu" else "cpu")

    def describe_nodes(self) -> str:
        """Return text such as ``10.0.0.1: 8 CPUs; ...`` for all nodes, even those that cannot run trials."""
        return "; ".join(f"{node.name}: {node.n_cpus:g} CPUs, {node.n_gpus} GPUs" for node in self._alive().values())

    def check_storage(self, url: str) -> None:
        """Raise StudyError if several nodes would share a SQLite database, which is a file on one machine."""
        n_nodes = len(self._alive())
        if url.startswith("sqlite") and n_nodes > 1:
            raise StudyError(
                f"a search on several nodes needs a database that outlives any of them, and the storage is SQLite, a "
                f"file of one machine; the cluster has {n_nodes} nodes. Give --storage "
                f"postgresql+psycopg://USER:PASSWORD@HOST/NAME, or --storage @FILE with that URL in it"
            )

    def check(self, wanted: NodeRequirements) -> None:
        """Inspect every node that can run trials, and print notes on minor problems.

        Raises:
            ConfigError: a node lacks something, or no node can run trials; one message lists everything.
        """
        self._wanted = wanted
        able = {key: node for key, node in self._alive().items() if self._is_able(node)}
        if not able:
            kind = "GPU" if wanted.on_gpus else "CPU"
            raise ConfigError(
                f"no node of the cluster offers a {kind} for trials; it has "
                f"{'; '.join(map(str, self._alive().values())) or 'no node'}. Give --num-{kind.lower()}s to `ray start`"
            )
        references = {key: _look_there(key, wanted) for key in able}
        ray.wait(list(references.values()), num_returns=len(references), timeout=_CHECK_SECONDS)
        found = {key: _found(reference) for key, reference in references.items()}
        faults = [f"  {able[key].name}: {'; '.join(f.faults)}" for key, f in found.items() if f.faults]
        if faults:
            raise ConfigError(
                f"every node must have the data and the weights at the same path, and the same torch; of {len(able)} "
                f"node(s) {len(faults)} lack(s) something:\n" + "\n".join(faults) + "\nShare or copy what is missing, "
                "install what differs, or leave the node out of the cluster. Nothing was started"
            )
        self.nodes = {key: _with_gpus(node, found[key]) for key, node in able.items()}
        self._note(found)

    def refresh(self) -> None:
        """Add nodes that have joined and drop nodes that are gone. Acts at most every two seconds."""
        if time.monotonic() - self._refreshed < _REFRESH_SECONDS or self._wanted is None:
            return
        alive = self._alive()
        for key in [key for key in self.nodes if key not in alive]:
            self.say(f"note: node {self.nodes.pop(key).name} has gone")
        for key, node in alive.items():
            if key not in self.nodes and key not in self._looking and key not in self._refused and self._is_able(node):
                self._looking[key] = _look_there(key, self._wanted)
        references = list(self._looking.values())
        done = ray.wait(references, num_returns=len(references), timeout=0)[0] if references else []
        for key in [key for key, reference in self._looking.items() if reference in done or key not in alive]:
            found = _found(self._looking.pop(key))
            if key in alive and not found.faults:
                self.nodes[key] = _with_gpus(alive[key], found)
                self.say(f"node {self.nodes[key]} has joined")
            elif key in alive:
                self._refused.add(key)
                self.say(f"note: node {alive[key].name} has joined, and gets no trial: {'; '.join(found.faults)}")
        self.fleet.set_nodes(self.nodes.values())
        self._refreshed = time.monotonic()

    def watch(self, go_on: str) -> None:
        """End this process if the head node is gone for good. Ray itself would hang for a minute, then kill it.

        Args:
            go_on: command that continues the search, for the last message.
        """
        where = self.address if self.is_client else ray.get_runtime_context().gcs_address
        arguments = where.removeprefix("ray://"), go_on, self._left
        threading.Thread(target=_watch, args=arguments, name="head", daemon=True).start()

    def close(self) -> None:
        """Disconnect from the cluster, which keeps running."""
        self._left.set()
        leave_ray()

    @contextmanager
    def driver_stays_here(self) -> Iterator[None]:
        """Keep Tune's driver in this process; with ray:// it would run on the head, with a copy of the searcher.

        For that, Tune must not notice that this is a client, and needs a folder for its files.
        """
        if not self.is_client:
            yield
            return
        from ray.train._internal import storage

        with (
            tempfile.TemporaryDirectory(prefix="cst-search-ray-") as folder,
            patch.object(ray.util.client.ray, "is_connected", lambda: False),
            patch.object(storage, "_get_ray_train_session_dir", lambda: folder),
        ):
            yield

    def _is_able(self, node: Node) -> bool:
        assert self._wanted is not None
        return node.n_gpus > 0 if self._wanted.on_gpus else node.n_cpus >= 1

    def _alive(self) -> dict[str, Node]:
        return {
            node["NodeID"]: Node(
                node["NodeManagerAddress"], node["Resources"].get("CPU", 0.0), int(node["Resources"].get("GPU", 0))
            )
            for node in ray.nodes()
            if node["Alive"]
        }

    def _note(self, found: Mapping[str, NodeReport]) -> None:
        token = self._wanted and self._wanted.token
        apart = sorted(self.nodes[key].name for key, f in found.items() if not f.is_shared)
        if token and apart:
            self.say(
                f"note: {token.parent} is not shared with {', '.join(apart)}: a trial that goes on on another node "
                f"than it was stopped on begins anew there; --home on a shared folder avoids it"
            )
        watched = sorted(self.nodes[key].name for key, f in found.items() if f.memory_monitor)
        if watched:
            self.say(
                f"note: Ray's memory monitor is on in {', '.join(watched)}: where a node is short of memory it ends a "
                f"trial, and with that the search; RAY_memory_monitor_refresh_ms=0 before `ray start` turns it off"
            )


def _watch(where: str, go_on: str, left: threading.Event) -> None:
    host, _, port = where.rpartition(":")
    heard = time.monotonic()
    while not left.wait(_REFRESH_SECONDS):
        try:
            socket.create_connection((host.strip("[]"), int(port)), _ANSWER_SECONDS).close()
            heard = time.monotonic()
        except OSError:
            if not left.is_set() and time.monotonic() - heard > _GONE_SECONDS:
                end_at_once(f"the head of the Ray cluster at {where} is gone", go_on, code=1)


# --- connecting -----------------------------------------------------------------------------------------------------


def _connect(address: str) -> None:
    where = address.removeprefix("ray://")
    if address != "auto":
        match = re.fullmatch(r"(?P<host>\[[0-9a-fA-F:]+\]|[^:/@\s]+):(?P<port>\d{1,5})", where)
        if match is None or not 0 < int(match["port"]) < 65536:
            jobs = "; http:// is the job server's, for `cst-search submit`" if address.startswith("http") else ""
            raise ConfigError(f"{_FORMS}; got {address!r}{jobs}")
        if why := _silence(match["host"].strip("[]"), int(match["port"]), is_client=where != address):
            raise ConfigError(f"--address {address}: no Ray cluster answers there ({why}); {_FORMS}")
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        try:
            init_ray(address, runtime_env=_runtime_env())
        except ConnectionError as error:
            if _BUSY not in str(error):
                raise
            init_ray(address, runtime_env=_runtime_env())
    except ConnectionError as error:
        raise ConfigError(f"--address {address}: {_first_lines(error)}; {_FORMS}; {_TOKEN}") from None
    except Exception as error:  # e.g. another version of Ray or Python, or a runtime environment that cannot be created
        raise RunError(f"--address {address}: Ray does not connect: {_first_lines(error)}; {_TOKEN}") from error


def _silence(host: str, port: int, *, is_client: bool) -> str | None:
    """Return the reason why no Ray answers at an address, or None if one does.

    Ray itself would wait for two minutes and then end the process.
    """
    try:
        socket.create_connection((host, port), _ANSWER_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    if os.environ.get("RAY_USE_TLS", "0") != "0":
        return None
    try:
        import grpc
    except ImportError:
        return None
    with grpc.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=_ANSWER_SECONDS)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                return "another service listens there"
            return None if is_client else "that is the port of ray:// addresses"
    return "that is a Ray head's own port, to be given without ray://" if is_client else None


def _runtime_env() -> dict[str, Any]:
    """Return Ray's runtime environment with this package and its settings, for nodes that have only torch."""
    settings = {name: os.environ[name] for name in _TRIAL_ENVIRONMENT if name in os.environ}
    made: dict[str, Any] = {"env_vars": settings}
    # a job has its own environment, and ours is added to it; a job that we submitted already has the package
    job = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR") or "{}").get("runtime_env") or {}
    if job:
        os.environ["RAY_OVERRIDE_JOB_RUNTIME_ENV"] = "1"
    if "py_modules" not in job:
        made |= {"py_modules": [str(Path(__file__).parents[1])], "excludes": ["**/__pycache__"]}
    return made


def _first_lines(error: BaseException) -> str:
    return " ".join(line.strip() for line in str(error).splitlines()[:6] if line.strip()) or type(error).__name__


# --- checking nodes --------------------------------------------------------------------------------------------------


def _look_there(node_id: str, wanted: NodeRequirements) -> Any:
    """Start the check of a node. Returns Ray's reference to its report.

    With GPUs the process ends after the check, because it may hold memory of one.
    """
    there = NodeAffinitySchedulingStrategy(node_id, soft=False)
    task = ray.remote(num_cpus=0, max_calls=1 if wanted.on_gpus else 0)(inspect_node)
    return task.options(scheduling_strategy=there).remote(wanted)


def _found(reference: Any) -> NodeReport:
    try:
        return ray.get(reference, timeout=1)
    except ray.exceptions.GetTimeoutError:
        return NodeReport([f"no answer within {_CHECK_SECONDS} s"])
    except Exception as error:  # the node is gone, or the package cannot be sent there
        return NodeReport([f"the check did not run there: {type(error).__name__}: {_first_lines(error)[:500]}"])


def _with_gpus(node: Node, found: NodeReport) -> Node:
    return Node(node.name, node.n_cpus, node.n_gpus, min(found.gpu_bytes, default=0))
