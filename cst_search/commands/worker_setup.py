"""Set up the execution of trials: this machine or a cluster, device, memory limit of a trial, and workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cst_search.commands.budget_survey import Survey
from cst_search.commands.options import RunOptions
from cst_search.commands.output import Say
from cst_search.config.recipe import DEVICES, Recipe
from cst_search.cores import n_cores
from cst_search.data.dataset import DetectionData
from cst_search.errors import ConfigError, check_choice
from cst_search.execution.gpu_sharing import Fleet, Placement, cpus_of_each
from cst_search.execution.workers import InProcess, Workers
from cst_search.study.records import Budget
from cst_search.trial.device import check_bound, check_device
from cst_search.trial.memory_limit import MemoryLimit
from cst_search.units import format_bytes

if TYPE_CHECKING:
    import torch

    from cst_search.execution.ray_cluster import Cluster


@dataclass(frozen=True)
class Machines:
    """The machines of a launch.

    Attributes:
        cluster: Ray cluster that runs the trials; None: this machine.
        device: device on which trials train.
        limit_bytes: memory limit of each trial, as `trial.run.run_trial` takes it; None: no limit.
    """

    cluster: Cluster | None
    device: torch.device
    limit_bytes: int | None

    def limit_words(self) -> str:
        """Return the memory limit of each trial in words."""
        if self.device.type == "cuda" and self.limit_bytes is not None:
            return f"at most {format_bytes(self.limit_bytes)} of the GPU, the CUDA context included"
        return str(MemoryLimit(self.device, self.limit_bytes))


@dataclass(frozen=True)
class WorkerSetup:
    """The workers of a launch.

    Attributes:
        n_workers: maximum number of concurrent trials.
        threads: CPU threads per trial; 0: torch's default.
        placement: assignment of trials to GPUs; None: trials run on CPUs.
    """

    machines: Machines
    workers: Workers
    n_workers: int
    threads: int
    placement: Placement | Fleet | None

    @property
    def gpu_bytes(self) -> int | None:
        """Memory in bytes of the GPU that trials share, an upper bound for suggestions; None: trials run on CPUs."""
        return None if self.placement is None else self.placement.gpu_bytes

    def __str__(self) -> str:
        return f"{self.n_workers} worker(s) on {self.machines.device}, {self.threads or 'all'} CPU thread(s) each"


def find_machines(options: RunOptions, storage: str, budget: Budget, limit_bytes: int | None, say: Say) -> Machines:
    """Connect to the cluster, if there is one, and choose the device. Raises UserError."""
    cluster = connect(options, storage, say)
    device = device_of(options.device, cluster)
    return Machines(cluster, device, memory_limit_of(budget, limit_bytes, device))


def set_up_workers(
    options: RunOptions,
    machines: Machines,
    uses: Sequence[tuple[Recipe, DetectionData]],
    survey: Survey,
    n_trials: int,
) -> WorkerSetup:
    """Check the nodes of a cluster and make the workers. Starts nothing. Raises ConfigError.

    Args:
        uses: recipe and dataset of each search that the workers will run.
        survey: predicted costs of all of them.
    """
    cluster = machines.cluster
    if cluster is not None:
        for recipe, data in uses:
            check_nodes(cluster, options.home, recipe, data, machines.device)
    placement = None if machines.device.type != "cuda" else gpu_placement(machines.limit_bytes, cluster)
    largest = max((recipe for recipe, _ in uses), key=lambda recipe: recipe.loader_workers)
    workers, n_workers, threads = make_workers(options, n_trials, placement, largest, survey, cluster)
    return WorkerSetup(machines, workers, n_workers, threads, placement)


def connect(options: RunOptions, storage: str, say: Say) -> Cluster | None:
    """Connect to the cluster of ``--address``. Returns None if it is not given. Raises UserError."""
    if options.address is None:
        return None
    if options.in_process:
        raise ConfigError("--in-process runs the trials in this process, and --address on a cluster; give one of them")
    from cst_search.execution.ray_cluster import Cluster

    cluster = Cluster(options.address, say)
    cluster.check_storage(storage)
    return cluster


def check_nodes(cluster: Cluster, home: Path, recipe: Recipe, data: DetectionData, device: Any) -> None:
    """Inspect every node. Raises ConfigError that lists what each lacks.

    Args:
        home: folder that all nodes should share, because it holds the checkpoints.
    """
    from cst_search.execution import node_check

    with node_check.token(home) as token:
        cluster.check(node_check.requirements_of(recipe, data, on_gpus=device.type == "cuda", token=token))


def device_of(name: str, cluster: Cluster | None) -> Any:
    """Return the torch device for ``--device``, here or on a cluster. Raises ConfigError if there is no GPU."""
    check_choice("--device", name, DEVICES)
    return check_device(name) if cluster is None else cluster.device(name)


def memory_limit_of(budget: Budget, limit_bytes: int | None, device: Any) -> int | None:
    """Return the memory limit of each trial, as `run_trial` takes it. Raises ConfigError if --limit-mem is too low."""
    if limit_bytes is not None:
        return check_bound(limit_bytes, device, "--limit-mem")
    if device.type != "cuda" or budget.memory_bytes is None:
        return None
    # a budget below the context excludes every suggestion; `show_budget` prints a note about that
    return budget.memory_bytes


def gpu_placement(limit: int | None, cluster: Cluster | None = None) -> Placement | Fleet:
    """Return how trials share the GPUs of this machine or of a cluster."""
    if cluster is not None:
        fleet = Fleet(on_gpus=True, most_bytes=limit)
        fleet.set_nodes(cluster.nodes.values())
        return fleet
    import torch

    n_gpus = torch.cuda.device_count()
    gpu_bytes = min(torch.cuda.get_device_properties(i).total_memory for i in range(n_gpus))
    return Placement(n_gpus, gpu_bytes, limit)


def make_workers(
    options: RunOptions,
    n_trials: int,
    placement: Placement | Fleet | None,
    recipe: Recipe,
    survey: Survey,
    cluster: Cluster | None = None,
) -> tuple[Workers, int, int]:
    """Return (workers, maximum number of concurrent trials, CPU threads per trial; 0: torch's default)."""
    if cluster is not None:
        return _cluster_workers(options, n_trials, placement, recipe, survey, cluster)
    assert not isinstance(placement, Fleet)
    cores = n_cores()
    n_workers = options.workers or max(1, min(cores, n_trials))
    if placement is not None and not options.workers:
        # as many of the smallest trials as fit, with a core per process, but at least one per GPU
        most = min(placement.n_at_once(survey.device_bytes[0]), cores // (1 + recipe.loader_workers))
        n_workers = min(max(most, placement.n_gpus), n_trials)
    threads = max(1, cores // n_workers)
    if options.in_process:
        return InProcess(), 1, threads if placement is None else 0
    from cst_search.execution.ray_tune import Ray

    cpus = float(threads) if placement is None else 1.0
    return Ray(n_workers, cpus, placement), n_workers, threads


def _cluster_workers(
    options: RunOptions,
    n_trials: int,
    placement: Placement | Fleet | None,
    recipe: Recipe,
    survey: Survey,
    cluster: Cluster,
) -> tuple[Workers, int, int]:
    """Do as `make_workers` for a cluster: trials use all the room on its nodes, now and later, up to ``--workers``."""
    nodes = list(cluster.nodes.values())
    if isinstance(placement, Fleet):
        fleet = placement
        fleet.cpus = 1.0 + recipe.loader_workers  # one core per process of a trial
        n_on = {node: fleet.n_on(node, survey.device_bytes[0]) for node in nodes}
        threads = min((max(1, int(node.n_cpus) // n) for node, n in n_on.items() if n), default=1)
    else:
        threads = cpus_of_each(nodes, options.workers or n_trials)
        fleet = Fleet(cpus=float(threads))
    fleet.n_most = options.workers
    fleet.set_nodes(nodes)
    cluster.fleet = fleet
    n_workers = max(1, min(fleet.n_at_once(survey.device_bytes[0]), n_trials))
    from cst_search.execution.ray_tune import Ray

    return Ray(n_workers, fleet.cpus, cluster=cluster), n_workers, threads
