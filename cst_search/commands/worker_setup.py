"""Where trials run: the cluster or this machine, its device, the memory limit and the workers."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cst_search.config.recipe import DEVICES, Recipe
from cst_search.data.coco import DetectionData
from cst_search.errors import ConfigError, check_choice
from cst_search.execution.gpu_sharing import Fleet, Placement, cpus_of_each
from cst_search.execution.workers import InProcess, Workers
from cst_search.memory.estimate import CONTEXT_BYTES
from cst_search.trial.device import allowance, check_device

if TYPE_CHECKING:
    from cst_search.execution.ray_cluster import Cluster

from cst_search.commands.budget_survey import Survey
from cst_search.commands.options import LaunchOptions


def connect(options: LaunchOptions, storage: str, say: Callable[[str], None]) -> Cluster | None:
    """The cluster of ``--address``, if it is given. Raises UserError: it cannot be had, or not with these options."""
    if options.address is None:
        return None
    if options.in_process:
        raise ConfigError("--in-process runs the trials in this process, and --address on a cluster; give one of them")
    from cst_search.execution.ray_cluster import Cluster

    cluster = Cluster(options.address, say)
    cluster.check_storage(storage)
    return cluster


def check_nodes(cluster: Cluster, home: Path, recipe: Recipe, data: DetectionData, device: Any) -> None:
    """Have every node looked at. Raises ConfigError: what each lacks.

    Args:
        home: that nodes should share, as checkpoints are in it.
    """
    from cst_search.execution import node_check

    with node_check.token(home) as token:
        cluster.check(node_check.requirements_of(recipe, data, on_gpus=device.type == "cuda", token=token))


def device_of(name: str, cluster: Cluster | None) -> Any:
    """The torch device of ``--device``, here or on a cluster. Raises ConfigError: there is no GPU."""
    check_choice("--device", name, DEVICES)
    return check_device(name) if cluster is None else cluster.device(name)


def memory_limit_of(options: LaunchOptions, device: Any) -> int | None:
    """What each trial is held to, as `run_trial` takes it. Raises ConfigError: --limit-mem leaves nothing."""
    if options.limit_bytes is not None:
        return allowance(options.limit_bytes, device, "--limit-mem")
    if device.type != "cuda" or options.budget.memory_bytes is None:
        return None
    # a budget below the context lets no suggestion through, which is said where the space is surveyed
    return max(1, options.budget.memory_bytes - CONTEXT_BYTES)


def gpu_placement(limit: int | None, cluster: Cluster | None = None) -> Placement | Fleet:
    """The GPUs at hand, for trials to share."""
    if cluster is not None:
        fleet = Fleet(on_gpus=True, context_bytes=CONTEXT_BYTES, most_bytes=limit)
        fleet.set_nodes(cluster.nodes.values())
        return fleet
    import torch

    n_gpus = torch.cuda.device_count()
    gpu_bytes = min(torch.cuda.get_device_properties(i).total_memory for i in range(n_gpus))
    return Placement(n_gpus, gpu_bytes, CONTEXT_BYTES, limit)


def make_workers(
    options: LaunchOptions,
    placement: Placement | Fleet | None,
    recipe: Recipe,
    survey: Survey,
    cluster: Cluster | None = None,
) -> tuple[Workers, int, int]:
    """(workers, how many trials at a time at most, CPU threads of each; 0: torch's default)."""
    if cluster is not None:
        return _cluster_workers(options, placement, recipe, survey, cluster)
    assert not isinstance(placement, Fleet)
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    n_workers = options.workers or max(1, min(n_cores, options.trials))
    if placement is not None and not options.workers:
        # as many as fit of the smallest, and a core for each of their processes; but every GPU is used
        most = min(placement.n_at_once(survey.device_bytes[0]), n_cores // (1 + recipe.loader_workers))
        n_workers = min(max(most, placement.n_gpus), options.trials)
    threads = max(1, n_cores // n_workers)
    if options.in_process:
        return InProcess(), 1, threads if placement is None else 0
    from cst_search.execution.ray_tune import Ray

    cpus = float(threads) if placement is None else 1.0
    return Ray(n_workers, cpus, placement), n_workers, threads


def _cluster_workers(
    options: LaunchOptions, placement: Placement | Fleet | None, recipe: Recipe, survey: Survey, cluster: Cluster
) -> tuple[Workers, int, int]:
    """Likewise on a cluster, where ``--workers`` alone bounds what its nodes have room for, now and later."""
    nodes = list(cluster.nodes.values())
    if isinstance(placement, Fleet):
        fleet = placement
        fleet.cpus = 1.0 + recipe.loader_workers  # a core for each process of a trial
        n_on = {node: fleet.n_on(node, survey.device_bytes[0]) for node in nodes}
        threads = min((max(1, int(node.n_cpus) // n) for node, n in n_on.items() if n), default=1)
    else:
        threads = cpus_of_each(nodes, options.workers or options.trials)
        fleet = Fleet(cpus=float(threads))
    fleet.n_most = options.workers
    fleet.set_nodes(nodes)
    cluster.fleet = fleet
    n_workers = max(1, min(fleet.n_at_once(survey.device_bytes[0]), options.trials))
    from cst_search.execution.ray_tune import Ray

    return Ray(n_workers, fleet.cpus, cluster=cluster), n_workers, threads
