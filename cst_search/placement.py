"""Several trials on one GPU: which share of it a trial asks for, and what it is held to. Numbers only; Ray keeps the
books (`search.py`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
