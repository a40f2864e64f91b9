"""Show the progress of a running search: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cst_search.memory.estimate import context_of
from cst_search.search.suggestion import Suggestion
from cst_search.study.records import TrialRecord
from cst_search.study.states import TrialState
from cst_search.study.wording import describe, format_quality, memory_words, repeat_words
from cst_search.units import format_count, format_seconds

_STYLE = {
    TrialState.COMPLETE: "green", TrialState.INFEASIBLE: "yellow", TrialState.FAILED: "red", TrialState.PRUNED: "blue",
    TrialState.RUNNING: "cyan", TrialState.INTERRUPTED: "yellow",
}  # fmt: skip
_CONFIGURATION = "method and main dimensions"
# columns of the live table, each with the least terminal width in characters at which it is shown
_COLUMNS = {
    "trial": 0, _CONFIGURATION: 0, "epoch": 0, "map": 0, "memory": 80, "trainable": 100, "time": 90,
    "state": 60,
}  # fmt: skip
_ROWS = 14  # finished trials shown in the live table


def _predicted_memory(suggestion: Suggestion) -> str:
    device_bytes = suggestion.estimate["device_bytes"]
    return memory_words(device_bytes - context_of(suggestion.estimate.get("breakdown")), device_bytes)


class _Live(Live):
    """A live display that survives a narrowed terminal.

    rich moves the cursor up by the number of lines it drew, which is too few once the terminal has wrapped them.
    Terminals wrap or cut lines differently, so the screen is cleared.
    """

    _drawn_in: tuple[int, int] | None = None

    def refresh(self) -> None:
        size = self.console.width, self.console.height
        if self._drawn_in is not None and (size[0] < self._drawn_in[0] or size[1] < self._drawn_in[1]):
            self.console.clear()
        self._drawn_in = size
        super().refresh()


class View:
    """Shows the events of a search (`workers.Events`) and passes finished trials on.

    Args:
        title: title of the live table.
        n_trials: total trials in the study, including earlier launches.
        n_workers: concurrent trials, for the estimate of the remaining time.
        n_done: trials in the study before this launch.
        epochs: length of a trial.
        on_finished: called after every finished trial; returns the hypervolume and the number of rejected suggestions.
    """

    def __init__(
        self,
        console: Console,
        *,
        title: str,
        n_trials: int,
        n_workers: int,
        n_done: int,
        epochs: int,
        on_finished: Callable[[], tuple[float, int]],
    ) -> None:
        self.console, self.title = console, title
        self.n_trials, self.n_workers, self.n_done, self.epochs = n_trials, n_workers, n_done, epochs
        self.on_finished = on_finished
        self.running: dict[int, tuple[Suggestion, float, Mapping[str, Any]]] = {}
        self.ended: dict[int, TrialRecord] = {}
        self.begun, self.hypervolume, self.n_rejected = time.monotonic(), 0.0, 0
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._live = (
            _Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)
            if console.is_terminal and not console.is_dumb_terminal
            else None
        )

    def __enter__(self) -> View:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line above the table."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    # --- events -----------------------------------------------------------------------------------------------------

    def started(self, suggestion: Suggestion) -> None:
        """Show that a trial has started, has restarted, or resumes from a checkpoint."""
        with self._lock:
            self.running[suggestion.trial] = (suggestion, time.monotonic(), {})
            if self.ended.pop(suggestion.trial, None) is None and suggestion.promoted_from is not None:
                self.n_done -= 1  # an earlier launch had stopped the trial
        if self._live is None:
            again = " (again)" if suggestion.again else ""
            if suggestion.promoted_from is not None:
                again = f" (goes on after epoch {suggestion.promoted_from})"
            memory = _predicted_memory(suggestion)
            what = repeat_words(suggestion.repeat_of, suggestion.config.get("seed")) + describe(suggestion.config)
            self.say(f"trial {suggestion.trial} started{again}: {what}, predicted {memory}")

    def progressed(self, trial: int, entry: Mapping[str, Any]) -> None:
        """Show an epoch of a running trial; ``entry`` as in its history."""
        with self._lock:
            if trial in self.running:
                suggestion, begun, before = self.running[trial]
                self.running[trial] = (suggestion, begun, {**before, **entry})

    def left(self, trial: int, why: str) -> None:
        """Show that a trial was given back without a result."""
        with self._lock:
            self.running.pop(trial, None)
        self.say(f"trial {trial}: {why}")

    def finished(self, record: TrialRecord) -> None:
        """Show a finished trial, and each kind of note once."""
        hypervolume, n_rejected = self.on_finished()
        with self._lock:
            self.running.pop(record.trial, None)
            self.ended[record.trial] = record
            self.hypervolume, self.n_rejected = hypervolume, n_rejected
        for note in record.notes:  # one per kind: other trials differ only in milliseconds
            if (kind := note.partition(":")[0]) not in self._said:
                self._said.add(kind)
                self.say(f"trial {record.trial}: {note}")
        if self._live is None:
            reason = f", {record.reason}" if record.reason else ""
            quality = f"map {format_quality(record.map)}, " if record.map is not None else ""
            memory = memory_words(record.working_bytes, record.device_bytes)
            self.say(
                f"trial {record.trial} {record.state}: {quality}{memory}, "
                f"{format_count(record.trainable_params)} trainable, {format_seconds(record.seconds)}{reason} | "
                f"{self._n_finished()} of {self.n_trials}, {self._time_left()}, hypervolume {self.hypervolume:.4f}"
            )

    # --- drawing ----------------------------------------------------------------------------------------------------

    def _n_finished(self) -> int:
        return self.n_done + len(self.ended)

    def _time_left(self) -> str:
        if not self.ended:
            return "time left unknown"
        mean = sum(r.seconds or 0.0 for r in self.ended.values()) / len(self.ended)
        now = time.monotonic()
        # a trial near or past the mean time counts with a tenth of it
        running = [max(0.1 * mean, mean - (now - begun)) for _, begun, _ in self.running.values()]
        waiting = max(0, self.n_trials - self._n_finished() - len(running))
        left = max([(sum(running) + waiting * mean) / self.n_workers, *running])
        return f"about {format_seconds(left)} left"

    def _render(self) -> Group:
        with self._lock:
            # a narrow window first drops the columns that can be read later
            shown = [name for name, least in _COLUMNS.items() if self.console.width >= least]
            table = Table(expand=False, title=self.title, title_justify="left", title_style="bold")
            for name in shown:
                words = name in (_CONFIGURATION, "state")
                table.add_column(name, justify="left" if words else "right", no_wrap=name != _CONFIGURATION)
            rows = [self._finished_cells(record) for record in list(self.ended.values())[-_ROWS:]]
            for cells in [*rows, *map(self._running_cells, self.running)]:
                table.add_row(*(cells[name] for name in shown))
            progress = Table.grid(padding=(0, 1))
            n = self._n_finished()
            progress.add_row(ProgressBar(total=max(1, self.n_trials), completed=n, width=30), self._summary(n))
            return Group(table, progress)

    def _finished_cells(self, record: TrialRecord) -> dict[str, str | Text]:
        return {
            "trial": str(record.trial),
            _CONFIGURATION: Text(repeat_words(record.repeat_of, record.seed) + describe(record.config)),
            "epoch": str(len(record.history)),
            "map": format_quality(record.map),
            "memory": memory_words(record.working_bytes, record.device_bytes),
            "trainable": format_count(record.trainable_params),
            "time": format_seconds(record.seconds),
            "state": Text(record.state, style=_STYLE.get(record.state, "")),
        }

    def _running_cells(self, trial: int) -> dict[str, str | Text]:
        suggestion, begun, entry = self.running[trial]
        again = repeat_words(suggestion.repeat_of, suggestion.config.get("seed"))
        return {
            "trial": str(trial),
            _CONFIGURATION: Text(again + describe(suggestion.config)),
            "epoch": f"{entry.get('epoch', 0)}/{self.epochs}",
            "map": format_quality(entry.get("map")),
            "memory": _predicted_memory(suggestion),
            "trainable": format_count(suggestion.estimate["trainable_params"]),
            "time": format_seconds(time.monotonic() - begun),
            "state": Text(TrialState.RUNNING, style=_STYLE[TrialState.RUNNING]),
        }

    def _summary(self, n_finished: int) -> Text:
        return Text(
            f"{n_finished} of {self.n_trials} trials, {format_seconds(time.monotonic() - self.begun)} so far, "
            f"{self._time_left()}, hypervolume {self.hypervolume:.4f}"
            + (f", {self.n_rejected} over the budget without a run" if self.n_rejected else "")
        )
