"""The command line with trials that do nothing, many in flight at once: `python slots.py FOLDER N LOSS launch ...`.

Of a launch with --in-process all is real but the workers: N trials are handed out at a time, which end in a random
order. A share LOSS of them loses its worker first. FOLDER/ended has a byte for each that ended.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

from cst_search import cli
from cst_search.commands import worker_setup
from cst_search.execution.workers import Handout, Turns, Workers
from cst_search.trial.result import Outcome, TrialResult


class Slots(Workers):
    """Takes the place of `workers.InProcess`."""

    def __init__(self, folder: str, n: str, loss: str) -> None:
        self.n, self.loss, self.rng = int(n), float(loss), random.Random(0)
        self.ended = Path(folder, "ended")

    def prepare(self) -> None:
        """Do nothing: there is nothing to start."""

    def _run_all(self, turns: Turns) -> None:
        at_work: list[Handout] = []
        while True:
            while len(at_work) < self.n and (handout := turns.next()) is not None:
                at_work.append(handout)
            if not at_work:
                return
            place = self.rng.randrange(len(at_work))
            at_work[place], at_work[-1] = at_work[-1], at_work[place]
            _, supply, suggestion = at_work.pop()
            if self.rng.random() < self.loss:
                supply.lost(suggestion.trial)
                continue
            entry, result = made_up(suggestion.estimate["petl_params"], self.rng)
            supply.progressed(suggestion.trial, entry)
            supply.ended(suggestion.trial, result)
            with self.ended.open("ab") as ended:
                ended.write(b".")

    def close(self) -> None:
        """Do nothing: there is nothing to end."""


def made_up(n_params: int, rng: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the history entry of a trial's one epoch, and its result."""
    score = min(0.95, n_params / (n_params + 2e5) * rng.uniform(0.5, 1))
    entry = {"epoch": 1, "loss": 1.0, "images_per_second": 1.0, "map": score, "map50": score}
    result = TrialResult(
        Outcome.COMPLETE, 1, 1, map=score, map50=score, loss=1.0, seconds=1.0, epochs=1, history=[entry]
    )
    return entry, result.to_dict()


def main() -> None:
    given, sys.argv[1:] = sys.argv[1:4], sys.argv[4:]
    worker_setup.InProcess = lambda: Slots(*given)  # type: ignore
    cli.main()


if __name__ == "__main__":
    main()
