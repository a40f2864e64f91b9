"""Share GPUs among trials: the fraction of a GPU that a trial requests, its memory limit, and on a cluster its node.

Arithmetic only. On one machine Ray does the accounting (`ray_tune`). On a cluster a `Fleet` does it, because a request
to Ray can name a GPU but not its memory size.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from cst_search.units import format_bytes

# Margin above the predicted memory: the worst of 240 real steps was 6.9 % off (docs/memory.md). Errors in a device's
# constants add to that; a study corrects them from its own trials.
MARGIN = 0.10
# Shares are whole hundredths: Ray truncates them to four decimals, and equal shares let it reuse a worker's process.
_STEPS = 100


@dataclass(frozen=True)
class Placement:
    """GPUs of one machine that trials share.

    Attributes:
        n_gpus: number of GPUs.
        gpu_bytes: total memory of the smallest of them.
        most_bytes: upper bound of any trial's memory, from the budget; None: only its share bounds it.
    """

    n_gpus: int
    gpu_bytes: int
    most_bytes: int | None = None

    def share(self, device_bytes: int) -> float:
        """Return the share of a GPU for a trial with that many predicted device bytes: above 0, at most 1."""
        wanted = math.ceil(_STEPS * device_bytes * (1 + MARGIN) / self.gpu_bytes)
        return min(max(wanted, 1), _STEPS) / _STEPS

    def limit_bytes(self, share: float) -> int:
        """Return the memory limit in bytes of a trial with that share, its CUDA context included."""
        held = round(share * _STEPS) * self.gpu_bytes // _STEPS
        return held if self.most_bytes is None else min(held, self.most_bytes)

    def n_at_once(self, device_bytes: int) -> int:
        """Return the number of trials with that many predicted device bytes that fit at the same time."""
        return self.n_gpus * int(_STEPS // round(self.share(device_bytes) * _STEPS))

    def __str__(self) -> str:
        each = f"{self.n_gpus} GPU{'s' if self.n_gpus > 1 else ''} of {format_bytes(self.gpu_bytes)}"
        return f"a trial gets its predicted memory and {MARGIN:.0%} more of {each}, and is held to that"


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
        name: its IP address, as Ray names nodes.
        gpu_bytes: total memory of its smallest GPU; 0 if it has none.
    """

    name: str
    n_cpus: float
    n_gpus: int = 0
    gpu_bytes: int = 0

    def __str__(self) -> str:
        gpus = f", {self.n_gpus} GPU{'s' if self.n_gpus > 1 else ''} of {format_bytes(self.gpu_bytes)}"
        return f"{self.name}: {self.n_cpus:g} CPUs{gpus if self.n_gpus else ''}"


@dataclass(frozen=True)
class Assignment:
    """The node that a trial is assigned to, and the resources it requests there.

    Attributes:
        gpu: share of one GPU; 0: the trial runs on CPUs.
        limit_bytes: its memory limit, as `trial.run.run_trial` takes it; None: the trial is not on a GPU.
    """

    node: str
    cpus: float
    gpu: float = 0.0
    limit_bytes: int | None = None


@dataclass
class _NodeLoad:
    """Free resources of a node: CPUs, and hundredths of each GPU."""

    cpus: float
    gpus: list[int]
    n_trials: int = 0


@dataclass
class Fleet:
    """The nodes that trials may be assigned to, and the assignment of each trial.

    A trial goes to a GPU that is large enough for it: among these to the least loaded node, and then to the smallest
    GPU, so that large ones stay free for trials that need them. It requests its share of that GPU, as in `Placement`.

    Attributes:
        cpus: CPUs per trial. A node with too few CPUs for all its GPUs gives each trial fewer, so no GPU stays idle.
        on_gpus: True if trials run on GPUs.
        most_bytes: as in `Placement`.
        n_most: maximum number of concurrent trials; None: as many as fit.
    """

    cpus: float = 1.0
    on_gpus: bool = False
    most_bytes: int | None = None
    n_most: int | None = None
    nodes: dict[str, Node] = field(default_factory=dict)
    placed: dict[str, tuple[Assignment, int]] = field(default_factory=dict)  # trial -> where it is, its GPU's index

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """Set the present nodes. Trials of a node that is gone stay assigned until they are freed."""
        self.nodes = {node.name: node for node in nodes if self.can_use(node)}

    def can_use(self, node: Node) -> bool:
        """Return True if trials can run on a node."""
        return node.n_gpus > 0 if self.on_gpus else node.n_cpus >= self.cpus

    @property
    def gpu_bytes(self) -> int | None:
        """Memory of the largest GPU; None: trials run on CPUs."""
        return max((node.gpu_bytes for node in self.nodes.values()), default=0) if self.on_gpus else None

    def place(self, trial: str, device_bytes: int) -> Assignment | None:
        """Assign a trial with that many predicted device bytes to a node. Returns None if it must wait."""
        if self.n_most is not None and len(self.placed) >= self.n_most:
            return None
        loads = {node.name: self._load(node) for node in self.nodes.values()}
        for node in sorted(self.nodes.values(), key=lambda node: self._order(node, loads[node.name])):
            load, cpus = loads[node.name], self._cpus_on(node)
            if load.cpus < cpus - 1e-9:
                continue
            if not self.on_gpus:
                return self._put(trial, Assignment(node.name, cpus), 0)
            if device_bytes > node.gpu_bytes:
                continue
            gpus = self._gpus_of(node)
            share = gpus.share(device_bytes)
            # as Ray chooses among the GPUs of a node: the fullest one with enough room
            room = [(left, i) for i, left in enumerate(load.gpus) if left >= round(share * _STEPS)]
            if room:
                return self._put(trial, Assignment(node.name, cpus, share, gpus.limit_bytes(share)), min(room)[1])
        return None

    def free(self, trial: str) -> None:
        """Free the assignment of a trial that has ended."""
        self.placed.pop(trial, None)

    def is_full(self) -> bool:
        """Return True if there is no room even for the smallest trial."""
        if self.n_most is not None and len(self.placed) >= self.n_most:
            return True
        loads = [(node, self._load(node)) for node in self.nodes.values()]
        return not any(
            load.cpus >= self._cpus_on(node) - 1e-9 and (not self.on_gpus or any(load.gpus)) for node, load in loads
        )

    def n_at_once(self, device_bytes: int) -> int:
        """Return how many trials with that many predicted device bytes fit on the empty fleet; at most `n_most`."""
        n = sum(self.n_on(node, device_bytes) for node in self.nodes.values())
        return n if self.n_most is None else min(n, self.n_most)

    def n_on(self, node: Node, device_bytes: int) -> int:
        """Return how many trials with that many predicted device bytes fit on one empty node."""
        by_cpus = int(node.n_cpus / self._cpus_on(node) + 1e-9)
        if not self.on_gpus:
            return by_cpus
        return min(by_cpus, self._gpus_of(node).n_at_once(device_bytes)) if device_bytes <= node.gpu_bytes else 0

    def _gpus_of(self, node: Node) -> Placement:
        return Placement(node.n_gpus, node.gpu_bytes, self.most_bytes)

    def _cpus_on(self, node: Node) -> float:
        return min(self.cpus, node.n_cpus / node.n_gpus) if self.on_gpus else self.cpus

    def _load(self, node: Node) -> _NodeLoad:
        load = _NodeLoad(node.n_cpus, [_STEPS] * node.n_gpus)
        for place, gpu in self.placed.values():
            if place.node == node.name:
                load.cpus -= place.cpus
                load.n_trials += 1
                if self.on_gpus and gpu < node.n_gpus:
                    load.gpus[gpu] -= round(place.gpu * _STEPS)
        return load

    def _order(self, node: Node, load: _NodeLoad) -> tuple[float, int, str]:
        return load.n_trials / (node.n_gpus if self.on_gpus else node.n_cpus), node.gpu_bytes, node.name

    def _put(self, trial: str, place: Assignment, gpu: int) -> Assignment:
        self.placed[trial] = place, gpu
        return place

    def __str__(self) -> str:
        return f"a trial gets its predicted memory and {MARGIN:.0%} more of a GPU that has it, and is held to that"


def cpus_of_each(nodes: Iterable[Node], n_trials: int) -> int:
    """Return the whole CPUs for each of ``n_trials`` concurrent trials; 1 if there are fewer CPUs than trials."""
    cpus = [int(node.n_cpus) for node in nodes]
    wanted = min(n_trials, sum(cpus))
    return next((n for n in range(max(cpus, default=1), 1, -1) if sum(c // n for c in cpus) >= wanted), 1)
