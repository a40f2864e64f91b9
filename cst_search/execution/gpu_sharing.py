"""Several trials on one GPU: which share of it a trial asks for, and what it is held to; on a cluster also to which
node it goes. Numbers only. On one machine Ray keeps the books (`search.py`), on a cluster a `Fleet` does: Ray can be
asked for a GPU, not for one that is large enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from cst_search.units import format_bytes

# A trial asks for so much more than its prediction: of 240 real steps the worst was 6.9 % off (docs/memory.md). What a
# device's constants are off comes on top, and is what a study corrects from its own trials.
MARGIN = 0.10
# Shares are whole hundredths. Ray keeps four decimals and drops the rest; and shares that are alike let Ray use a
# worker's process again.
_STEPS = 100


@dataclass(frozen=True)
class Placement:
    """GPUs that trials share.

    Attributes:
        n_gpus: of them.
        gpu_bytes: total memory of one, of the smallest.
        context_bytes: what CUDA takes of a GPU for every process.
        most_bytes: what the allocator of any trial is held to at most, that is by the budget; None: nothing more.
    """

    n_gpus: int
    gpu_bytes: int
    context_bytes: int
    most_bytes: int | None = None

    def share(self, device_bytes: int) -> float:
        """Share of a GPU for a trial that is predicted to need so many device bytes: above 0, at most 1."""
        wanted = math.ceil(_STEPS * device_bytes * (1 + MARGIN) / self.gpu_bytes)
        return min(max(wanted, 1), _STEPS) / _STEPS

    def limit_bytes(self, share: float) -> int:
        """What the allocator of a trial with that share is held to; the context is taken off."""
        held = round(share * _STEPS) * self.gpu_bytes // _STEPS - self.context_bytes
        return max(1, held if self.most_bytes is None else min(held, self.most_bytes))

    def n_at_once(self, device_bytes: int) -> int:
        """Trials of so many predicted device bytes that fit at a time."""
        return self.n_gpus * int(_STEPS // round(self.share(device_bytes) * _STEPS))

    def __str__(self) -> str:
        each = f"{self.n_gpus} GPU{'s' if self.n_gpus > 1 else ''} of {format_bytes(self.gpu_bytes)}"
        return f"a trial gets its predicted memory and {MARGIN:.0%} more of {each}, and is held to that"


@dataclass(frozen=True)
class Node:
    """A machine of a cluster.

    Attributes:
        name: as Ray calls it: its IP address.
        gpu_bytes: total memory of one of its GPUs, of the smallest; 0 without.
    """

    name: str
    n_cpus: float
    n_gpus: int = 0
    gpu_bytes: int = 0

    def __str__(self) -> str:
        gpus = f", {self.n_gpus} GPU{'s' if self.n_gpus > 1 else ''} of {format_bytes(self.gpu_bytes)}"
        return f"{self.name}: {self.n_cpus:g} CPUs{gpus if self.n_gpus else ''}"


@dataclass(frozen=True)
class Place:
    """Where a trial goes, and what it asks of that node.

    Attributes:
        gpu: share of one GPU; 0: the trial runs on CPUs.
        limit_bytes: what its allocator is held to; None: nothing is placed on a GPU.
    """

    node: str
    cpus: float
    gpu: float = 0.0
    limit_bytes: int | None = None


@dataclass
class _Load:
    """What is left of a node: CPUs, and hundredths of each GPU."""

    cpus: float
    gpus: list[int]
    n_trials: int = 0


@dataclass
class Fleet:
    """The nodes that trials may go to, and which trial is where.

    A trial goes to a GPU that is large enough for it, of these to the node with the least to do, of these to the
    smallest GPU, so that the large ones stay free for who needs them. It asks for its share of that GPU, as in
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
    placed: dict[str, tuple[Place, int]] = field(default_factory=dict)  # trial -> its place, the GPU's number there

    def set_nodes(self, nodes: Iterable[Node]) -> None:
        """These are there now; trials of one that has gone keep their place until they are freed."""
        self.nodes = {node.name: node for node in nodes if self.can_use(node)}

    def can_use(self, node: Node) -> bool:
        """Whether any trial can run there."""
        return node.n_gpus > 0 if self.on_gpus else node.n_cpus >= self.cpus

    @property
    def gpu_bytes(self) -> int | None:
        """Of the largest GPU; None: trials run on CPUs."""
        return max((node.gpu_bytes for node in self.nodes.values()), default=0) if self.on_gpus else None

    def place(self, trial: str, device_bytes: int) -> Place | None:
        """Where a trial that is predicted to need so many device bytes goes now; None: it must wait."""
        if self.n_most is not None and len(self.placed) >= self.n_most:
            return None
        loads = {node.name: self._load(node) for node in self.nodes.values()}
        for node in sorted(self.nodes.values(), key=lambda node: self._order(node, loads[node.name])):
            load, cpus = loads[node.name], self._cpus_on(node)
            if load.cpus < cpus - 1e-9:
                continue
            if not self.on_gpus:
                return self._put(trial, Place(node.name, cpus), 0)
            if device_bytes > node.gpu_bytes:
                continue
            gpus = self._gpus_of(node)
            share = gpus.share(device_bytes)
            # as Ray chooses among the GPUs of a node: the fullest that still has room
            room = [(left, i) for i, left in enumerate(load.gpus) if left >= round(share * _STEPS)]
            if room:
                return self._put(trial, Place(node.name, cpus, share, gpus.limit_bytes(share)), min(room)[1])
        return None

    def free(self, trial: str) -> None:
        """A trial has ended, however."""
        self.placed.pop(trial, None)

    def is_full(self) -> bool:
        """Whether not even the smallest trial has room now."""
        if self.n_most is not None and len(self.placed) >= self.n_most:
            return True
        loads = [(node, self._load(node)) for node in self.nodes.values()]
        return not any(
            load.cpus >= self._cpus_on(node) - 1e-9 and (not self.on_gpus or any(load.gpus)) for node, load in loads
        )

    def n_at_once(self, device_bytes: int) -> int:
        """Trials of so many predicted device bytes that the empty fleet has room for, `n_most` at most."""
        n = sum(self.n_on(node, device_bytes) for node in self.nodes.values())
        return n if self.n_most is None else min(n, self.n_most)

    def n_on(self, node: Node, device_bytes: int) -> int:
        """Of these, the trials on one node."""
        by_cpus = int(node.n_cpus / self._cpus_on(node) + 1e-9)
        if not self.on_gpus:
            return by_cpus
        return min(by_cpus, self._gpus_of(node).n_at_once(device_bytes)) if device_bytes <= node.gpu_bytes else 0

    def _gpus_of(self, node: Node) -> Placement:
        return Placement(node.n_gpus, node.gpu_bytes, self.context_bytes, self.most_bytes)

    def _cpus_on(self, node: Node) -> float:
        return min(self.cpus, node.n_cpus / node.n_gpus) if self.on_gpus else self.cpus

    def _load(self, node: Node) -> _Load:
        load = _Load(node.n_cpus, [_STEPS] * node.n_gpus)
        for place, gpu in self.placed.values():
            if place.node == node.name:
                load.cpus -= place.cpus
                load.n_trials += 1
                if self.on_gpus and gpu < node.n_gpus:
                    load.gpus[gpu] -= round(place.gpu * _STEPS)
        return load

    def _order(self, node: Node, load: _Load) -> tuple[float, int, str]:
        return load.n_trials / (node.n_gpus if self.on_gpus else node.n_cpus), node.gpu_bytes, node.name

    def _put(self, trial: str, place: Place, gpu: int) -> Place:
        self.placed[trial] = place, gpu
        return place

    def __str__(self) -> str:
        return f"a trial gets its predicted memory and {MARGIN:.0%} more of a GPU that has it, and is held to that"


def cpus_of_each(nodes: Iterable[Node], n_trials: int) -> int:
    """Whole CPUs, as many as each of ``n_trials`` at a time can have; 1 where there is not even one for each."""
    cpus = [int(node.n_cpus) for node in nodes]
    wanted = min(n_trials, sum(cpus))
    return next((n for n in range(max(cpus, default=1), 1, -1) if sum(c // n for c in cpus) >= wanted), 1)
