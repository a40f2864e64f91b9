"""What a person sees while a search runs: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cst_search.search.suggestion import Suggestion
from cst_search.study import pareto
from cst_search.study.records import StudyInfo, TrialRecord, common_reference
from cst_search.study.states import TrialState
from cst_search.study.wording import describe, repeat_words
from cst_search.units import format_bytes, format_count, format_seconds

_STYLE = {
    TrialState.COMPLETE: "green", TrialState.INFEASIBLE: "yellow", TrialState.FAILED: "red", TrialState.PRUNED: "blue",
    TrialState.RUNNING: "cyan", TrialState.INTERRUPTED: "yellow",
}  # fmt: skip
# of the live table, and how wide a terminal must be for each
_COLUMNS = {
    "trial": 0, "method and main dimensions": 0, "epoch": 0, "map": 0, "memory": 80, "trainable": 100, "time": 90,
    "state": 60,
}  # fmt: skip
_BESIDE = 120  # characters of a terminal from which on a front's configurations have a column
_ROWS = 14  # finished trials that the live table keeps in sight


class _Live(Live):
    """rich's, which moves up by as many lines as it drew: too few once a narrower terminal has wrapped them.

    How terminals wrap, or cut, what stands on them differs, so that the screen is cleared then.
    """

    _drawn_in: tuple[int, int] | None = None

    def refresh(self) -> None:
        size = self.console.width, self.console.height
        if self._drawn_in is not None and (size[0] < self._drawn_in[0] or size[1] < self._drawn_in[1]):
            self.console.clear()
        self._drawn_in = size
        super().refresh()


class View:
    """Hears what happens (`workers.Events`) and shows it; passes finished trials on.

    Args:
        n_trials: that the study shall have in the end.
        n_workers: for the time left.
        n_done: trials that the study had before.
        on_finished: called after every finished trial; returns the hypervolume, and how many suggestions were rejected.
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
        """A line above the table."""
        self.console.print(line, markup=False, highlight=False, soft_wrap=True)

    # --- events -----------------------------------------------------------------------------------------------------

    def started(self, suggestion: Suggestion) -> None:
        with self._lock:
            self.running[suggestion.trial] = (suggestion, time.monotonic(), {})
            if self.ended.pop(suggestion.trial, None) is None and suggestion.promoted_from is not None:
                self.n_done -= 1  # an earlier launch had stopped it
        if self._live is None:
            again = " (again)" if suggestion.again else ""
            if suggestion.promoted_from is not None:
                again = f" (goes on after epoch {suggestion.promoted_from})"
            memory = format_bytes(suggestion.estimate["device_bytes"])
            what = repeat_words(suggestion.repeat_of, suggestion.config.get("seed")) + describe(suggestion.config)
            self.say(f"trial {suggestion.trial} started{again}: {what}, predicted {memory}")

    def progressed(self, trial: int, entry: Mapping[str, Any]) -> None:
        with self._lock:
            if trial in self.running:
                suggestion, begun, before = self.running[trial]
                self.running[trial] = (suggestion, begun, {**before, **entry})

    def left(self, trial: int, why: str) -> None:
        with self._lock:
            self.running.pop(trial, None)
        self.say(f"trial {trial}: {why}")

    def finished(self, record: TrialRecord) -> None:
        hypervolume, n_rejected = self.on_finished()
        with self._lock:
            self.running.pop(record.trial, None)
            self.ended[record.trial] = record
            self.hypervolume, self.n_rejected = hypervolume, n_rejected
        for note in record.notes:  # one of each kind: the next trials measure other milliseconds
            if (kind := note.partition(":")[0]) not in self._said:
                self._said.add(kind)
                self.say(f"trial {record.trial}: {note}")
        if self._live is None:
            reason = f", {record.reason}" if record.reason else ""
            quality = f"map {record.map:.3f}, " if record.map is not None else ""
            self.say(
                f"trial {record.trial} {record.state}: {quality}{format_bytes(record.device_bytes)}, "
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
        # one that takes longer than the others did is not over before it says so
        running = [max(0.1 * mean, mean - (now - begun)) for _, begun, _ in self.running.values()]
        waiting = max(0, self.n_trials - self._n_finished() - len(running))
        left = max([(sum(running) + waiting * mean) / self.n_workers, *running])
        return f"about {format_seconds(left)} left"

    def _render(self) -> Group:
        with self._lock:
            table = Table(expand=False, title=self.title, title_justify="left", title_style="bold")
            what = "method and main dimensions"
            # in a narrow window what tells trials apart goes before what can be read later
            shown = [name for name, least in _COLUMNS.items() if self.console.width >= least]
            for name in shown:
                words = name in (what, "state")
                table.add_column(name, justify="left" if words else "right", no_wrap=name != what)

            def add(cells: Mapping[str, str | Text]) -> None:
                table.add_row(*(cells[name] for name in shown))

            for record in list(self.ended.values())[-_ROWS:]:
                add({
                    "trial": str(record.trial),
                    what: Text(repeat_words(record.repeat_of, record.seed) + describe(record.config)),
                    "epoch": str(len(record.history)),
                    "map": f"{record.map:.3f}" if record.map is not None else "-",
                    "memory": format_bytes(record.device_bytes),
                    "trainable": format_count(record.trainable_params),
                    "time": format_seconds(record.seconds),
                    "state": Text(record.state, style=_STYLE.get(record.state, "")),
                })  # fmt: skip
            for number, (suggestion, begun, entry) in self.running.items():
                again = repeat_words(suggestion.repeat_of, suggestion.config.get("seed"))
                add({
                    "trial": str(number),
                    what: Text(again + describe(suggestion.config)),
                    "epoch": f"{entry.get('epoch', 0)}/{self.epochs}",
                    "map": f"{entry['map']:.3f}" if "map" in entry else "-",
                    "memory": format_bytes(suggestion.estimate["device_bytes"]),
                    "trainable": format_count(suggestion.estimate["trainable_params"]),
                    "time": format_seconds(time.monotonic() - begun),
                    "state": Text(TrialState.RUNNING, style=_STYLE[TrialState.RUNNING]),
                })  # fmt: skip
            n = self._n_finished()
            line = Text(
                f"{n} of {self.n_trials} trials, {format_seconds(time.monotonic() - self.begun)} so far, "
                f"{self._time_left()}, hypervolume {self.hypervolume:.4f}"
                + (f", {self.n_rejected} over the budget without a run" if self.n_rejected else "")
            )
            progress = Table.grid(padding=(0, 1))
            progress.add_row(ProgressBar(total=max(1, self.n_trials), completed=n, width=30), line)
            return Group(table, progress)


def seed_cells(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """Mean, spread and number of a point's seeds as a table shows them; ``entry`` as of `StudyInfo.brief`."""
    mean, std = entry["map_mean"], entry["map_std"]
    return ("-" if mean is None else f"{mean:.3f}"), ("-" if std is None else f"{std:.3f}"), str(entry["n_seeds"])


def front_table(info: StudyInfo, width: int) -> Group:
    """The front, best mAP first, the knee marked; what all points share stands below it.

    Args:
        width: of the terminal. Where a column of configurations would be narrow they stand below, over the whole of it.
    """
    front, knee = info.front(), info.knee()
    first = front[0].config if front else {}
    shared = {key for key in first if all(key in r.config and r.config[key] == first[key] for r in front)}
    shared -= {"method"} if len(front) > 1 else set(first)
    sources = {record.memory_source for record in front}
    entries = [info.brief(record) for record in front]
    confirmed = any(entry["n_seeds"] > 1 for entry in entries)
    table = Table(title=f"Front of {info.name}", title_justify="left", title_style="bold")
    memory = f"memory ({sources.pop()})" if len(sources) == 1 else "memory"
    seeds = ("mean", "std", "seeds") if confirmed else ()
    beside = width >= _BESIDE
    for name in ("trial", *seeds, "map", "map50", memory, "trainable", "petl", *(["configuration"] if beside else [])):
        table.add_column(name, justify="left" if name == "configuration" else "right")
    below = Table.grid(padding=(0, 1))
    for record, entry in zip(front, entries, strict=True):
        words = Text(describe({k: v for k, v in record.config.items() if k not in shared}, 20))
        below.add_row(f"trial {record.trial}:", words)
        table.add_row(
            Text(f"{'knee ' if record.trial == knee else ''}{record.trial}"),
            *seed_cells(entry)[: len(seeds)],
            f"{record.map:.3f}" if record.map is not None else "-",
            f"{record.map50:.3f}" if record.map50 is not None else "-",
            format_bytes(record.device_bytes) + (f" {record.memory_source}" if sources else ""),
            format_count(record.trainable_params),
            format_count(record.petl_params),
            *([words] if beside else []),
        )
    parts: list[RenderableType] = [table] if beside else [table, below]
    if shared:
        parts.append(
            Text("in all of them: " + describe({k: v for k, v in first.items() if k in shared}, 20).removeprefix("? "))
        )
    return Group(*parts)


def comparison_table(infos: Sequence[StudyInfo]) -> Table:
    """A row a study; hypervolumes are comparable where there is a common reference point."""
    reference = common_reference(infos)
    table = Table(title="Side by side", title_justify="left", title_style="bold")
    table.add_column("study")
    for name in ("trials", "points", "best map", "least memory", "hypervolume", "common hypervolume"):
        table.add_column(name, justify="right")
    for info in infos:
        front, best = info.front(), info.best_map()
        common = None if reference is None else pareto.hypervolume(info.values(), info.objectives, reference)
        table.add_row(
            Text(info.name),
            str(len(info.trials)),
            str(len(front)),
            "-" if best is None else f"{best:.3f}",
            format_bytes(min((record.device_bytes or 0 for record in front), default=None)),
            f"{info.hypervolume():.4f}",
            "-" if common is None else f"{common:.4f}",
        )
    return table
