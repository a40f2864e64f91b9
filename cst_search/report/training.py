"""Show how far a full training is: steps and time left, on a terminal in one line that changes, elsewhere as lines."""

from __future__ import annotations

import time

from rich.console import Console
from rich.status import Status

from cst_search.units import format_seconds

_EVERY_SECONDS = 30.0  # between lines where the output is no terminal


class TrainingProgress:
    """Called after each batch of a training, as `trial.epochs.TrialSetup.on_step`.

    Args:
        n_epochs: length of the training.
    """

    def __init__(self, console: Console, n_epochs: int) -> None:
        self.console, self.n_epochs = console, n_epochs
        self._status = Status("preparing ...", console=console) if console.is_terminal else None
        self._begun: tuple[float, int] | None = None  # time and number of steps at the first call
        self._said = time.monotonic()

    def __enter__(self) -> TrainingProgress:
        if self._status is not None:
            self._status.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._status is not None:
            self._status.stop()

    def __call__(self, epoch: int, step: int, n_steps: int) -> None:
        now, done = time.monotonic(), (epoch - 1) * n_steps + step
        if self._begun is None:  # the first step, of a resumed training too, also prepares; it tells no time
            self._begun = (now, done)
        line = f"epoch {epoch}/{self.n_epochs}, step {step}/{n_steps}, {self._left(now, done, self.n_epochs * n_steps)}"
        if self._status is not None:
            self._status.update(line)
        elif now - self._said >= _EVERY_SECONDS:
            self._said = now
            self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def _left(self, now: float, done: int, total: int) -> str:
        assert self._begun is not None
        begun, first = self._begun
        if done == first:
            return "time left unknown"
        return f"about {format_seconds((now - begun) / (done - first) * (total - done))} left"
