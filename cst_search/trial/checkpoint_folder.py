"""The folder with the checkpoints of a study. Needs no torch: the description of a task, sent to workers, names it."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

BOUND_BYTES = 20 * 10**9  # bound for all checkpoints of a study


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of a study: ``<folder>/<trial>.pt``."""

    folder: Path
    bound_bytes: int = BOUND_BYTES

    def path(self, trial: int) -> Path:
        return self.folder / f"{trial}.pt"

    def drop(self, trial: int) -> None:
        """Delete a checkpoint. One that stays, on a disk that is away or read-only, is of no use to other trials."""
        with contextlib.suppress(OSError):
            self.path(trial).unlink()

    def trim(self) -> None:
        """Delete the oldest checkpoints until the rest is within the bound.

        A trial whose checkpoint is gone starts over: the same result, later.
        """
        found = []
        for path in self.folder.glob("*.pt"):
            with contextlib.suppress(OSError):
                found.append((path.stat(), path))
        total = sum(facts.st_size for facts, _ in found)
        for facts, path in sorted(found, key=lambda each: each[0].st_mtime_ns):
            if total <= self.bound_bytes:
                return
            with contextlib.suppress(OSError):
                path.unlink()
            total -= facts.st_size

    def tidy(self) -> None:
        """Delete half-written files of killed processes, and the folder if it is empty."""
        for part in self.folder.glob("*.part"):
            with contextlib.suppress(OSError):
                part.unlink()
        with contextlib.suppress(OSError):
            self.folder.rmdir()


def checkpoints_of(home: Path, study: str) -> Checkpoints:
    """Return the checkpoints of a study, shared by all its launches and confirmations."""
    return Checkpoints(home.absolute() / study / "checkpoints")
