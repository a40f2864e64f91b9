"""Sharing GPUs among trials: the share of a GPU that a trial asks for, its memory limit, and on a cluster its node.

Arithmetic only. On one machine Ray does the accounting (`ray_tune`), on a cluster a `Fleet` does, as Ray can be asked
for a GPU but not for one that is large enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from cst_search.units import format_bytes

# Margin on top of the prediction: of 240 real steps the worst was 6.9 % off (docs/memory.md). Errors of a device's
# constants come on top; a study corrects those from its own trials.
MARGIN = 0.10
# Shares are whole hundredths. Ray keeps four decimals and drops the rest; and shares that are alike let Ray use a
# worker's process again.
_STEPS = 100


@dataclass(frozen=True)
class Placement:
    """GPUs of one machine that trials share.

    Attributes:
        n_gpus: number of GPUs.
        gpu_bytes: total memory of the smallest of them.
        context_bytes: GPU memory that CUDA itself takes for each process.
        most_bytes: upper bound of any trial's allocator, from the budget; None: only its share bounds it.
    """

    n_gpus: int
    gpu_bytes: int
    context_bytes: int
    most_bytes: int | None = None

    def share(self, device_bytes: int) -> float:
        """Share of a GPU for a trial with that many predicted device bytes: above 0, at most 1."""
        wanted = math.ceil(_STEPS * device_bytes * (1 + MARGIN) / self.gpu_bytes)
        return min(max(wanted, 1), _STEPS) / _STEPS

    def limit_bytes(self, share: float) -> int:
        """Memory limit in bytes of the allocator of a trial with that share; the CUDA context is taken off."""
        held = round(share * _STEPS) * self.gpu_bytes // _STEPS - self.context_bytes
        return max(1, held if self.most_bytes is None else min(held, self.most_bytes))

    def n_at_once(self, device_bytes: int) -> int:
        """Number of trials with that many predicted device bytes that fit at the same time."""
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
    """The node that a trial is assigned to, and what it asks of that node.

    Attributes:
        gpu: share of one GPU; 0: the trial runs on CPUs.
        limit_bytes: memory limit of its allocator; None: the trial is not on a GPU.
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

    A trial goes to a GPU that is large enough for it, of these to the node with the least to do, of these to the
    smallest GPU, so that the large ones stay free for trials that need them. It asks for its share of that GPU, as in
    `Placement`.

    Attributes:
        cpus: of a trial. On a node with more GPUs than that many CPUs for each it is a part of them: no GPU stays idle.
        on_gpus: trials run on GPUs.
        context_bytes, most_bytes: as in `Placement`.
        n_most: trials at a time; None: as many as there is room for.
    """

    cpus: float = 1.0
    on_gpus: bool = False
    context_bytes: int = 0
    most_bytes: int | None = None
    n_most: int | None = None
    nodes: dict[str, Node] = field(default_factory=dict)
    placed: dict[str, tuple[Assignment, int]] = field(default_factory=dict)  # trial -> where it is, its GPU's index

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """Set the nodes that are there now. Trials of a node that is gone stay assigned until they are freed."""
        self.nodes = {node.name: node for node in nodes if self.can_use(node)}

    def can_use(self, node: Node) -> bool:
        """Return whether any trial can run on a node."""
        return node.n_gpus > 0 if self.on_gpus else node.n_cpus >= self.cpus

    @property
    def gpu_bytes(self) -> int | None:
        """Memory of the largest GPU; None: trials run on CPUs."""
        return max((node.gpu_bytes for node in self.nodes.values()), default=0) if self.on_gpus else None

    def place(self, trial: str, device_bytes: int) -> Assignment | None:
        """Assign a trial with that many predicted device bytes to a node; None: it must wait."""
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
            # as Ray chooses among the GPUs of a node: the fullest that still has room
            room = [(left, i) for i, left in enumerate(load.gpus) if left >= round(share * _STEPS)]
            if room:
                return self._put(trial, Assignment(node.name, cpus, share, gpus.limit_bytes(share)), min(room)[1])
        return None

    def free(self, trial: str) -> None:
        """Free the assignment of a trial that has ended."""
        self.placed.pop(trial, None)

    def is_full(self) -> bool:
        """Return whether not even the smallest trial has room now."""
        if self.n_most is not None and len(self.placed) >= self.n_most:
            return True
        loads = [(node, self._load(node)) for node in self.nodes.values()]
        return not any(
            load.cpus >= self._cpus_on(node) - 1e-9 and (not self.on_gpus or any(load.gpus)) for node, load in loads
        )

    def n_at_once(self, device_bytes: int) -> int:
        """Trials with that many predicted device bytes that the empty fleet has room for; at most `n_most`."""
        n = sum(self.n_on(node, device_bytes) for node in self.nodes.values())
        return n if self.n_most is None else min(n, self.n_most)

    def n_on(self, node: Node, device_bytes: int) -> int:
        """Number of such trials that one node has room for."""
        by_cpus = int(node.n_cpus / self._cpus_on(node) + 1e-9)
        if not self.on_gpus:
            return by_cpus
        return min(by_cpus, self._gpus_of(node).n_at_once(device_bytes)) if device_bytes <= node.gpu_bytes else 0

    def _gpus_of(self, node: Node) -> Placement:
        return Placement(node.n_gpus, node.gpu_bytes, self.context_bytes, self.most_bytes)

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
    """Whole CPUs that each of ``n_trials`` concurrent trials can have; 1 if there is not even one for each."""
    cpus = [int(node.n_cpus) for node in nodes]
    wanted = min(n_trials, sum(cpus))
    return next((n for n in range(max(cpus, default=1), 1, -1) if sum(c // n for c in cpus) >= wanted), 1)
