"""Show the progress of a running search: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cst_search.memory.estimate import context_of
from cst_search.report.text_plot import live_plot
from cst_search.search.suggestion import Suggestion
from cst_search.study.importance import FEWEST, explained, order_of
from cst_search.study.records import TrialRecord
from cst_search.study.states import TrialState
from cst_search.study.wording import (
    best_words,
    describe,
    format_quality,
    memory_words,
    repeat_words,
    shared_values,
    shared_words,
)
from cst_search.units import format_count, format_seconds

_STYLE = {
    TrialState.COMPLETE: "green", TrialState.INFEASIBLE: "yellow", TrialState.FAILED: "red", TrialState.PRUNED: "blue",
    TrialState.RUNNING: "cyan", TrialState.INTERRUPTED: "yellow",
}  # fmt: skip
_CONFIGURATION = "method and main dimensions"
# columns of the live table, each with the least terminal width in characters at which it is shown; `study` only
# where there are several
_COLUMNS = {
    "study": 0, "trial": 0, _CONFIGURATION: 0, "epoch": 0, "map": 0, "memory": 80, "trainable": 100, "time": 90,
    "state": 60,
}  # fmt: skip
_ROWS = 14  # finished trials shown in the live table
_FRAME = 10  # lines of the live display besides those of its rows: titles, rules, progress, summary
_ORDERED_EVERY = 5  # trials: how often the dimensions are put into order
_PLOTTED = 200  # trials in the plot besides the front: it is drawn twice a second
_PLOT = 6  # lines of the plot inside its axes; it is left out where the terminal is too low for it


def _predicted_memory(suggestion: Suggestion) -> str:
    device_bytes = suggestion.estimate["device_bytes"]
    return memory_words(device_bytes - context_of(suggestion.estimate.get("breakdown")), device_bytes)


# beginnings of notes on a trial that only a developer needs: decisions of `trial.feature_cache`
FOR_DEVELOPERS = ("features kept", "features computed")


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


class Standing(NamedTuple):
    """Progress of a search so far.

    Attributes:
        n_rejected: number of suggestions rejected by predicted cost.
        front: numbers of the trials on the front.
    """

    hypervolume: float = 0.0
    n_rejected: int = 0
    front: Collection[int] = ()


_Key = tuple[str, int]  # study ("" where there is one), trial


def _name(key: _Key) -> str:
    study, trial = key
    return f"{study} trial {trial}" if study else f"trial {trial}"


@dataclass
class StudyView:
    """Receiver of the events of one of several studies (`workers.Events`), which one `View` shows.

    Attributes:
        n_done: trials in the study before this launch.
        epochs: length of a trial.
        on_finished: as of `View`, for this study.
    """

    view: View
    study: str
    n_done: int
    epochs: int
    on_finished: Callable[[], Standing]

    def started(self, suggestion: Suggestion) -> None:
        if suggestion.promoted_from is not None and (self.study, suggestion.trial) not in self.view.ended:
            self.n_done -= 1  # an earlier launch had stopped the trial
        self.view.started(suggestion, self.study)

    def progressed(self, trial: int, entry: Mapping[str, Any]) -> None:
        self.view.progressed(trial, entry, self.study)

    def finished(self, record: TrialRecord) -> None:
        self.view.finished(record, self.study)

    def left(self, trial: int, why: str) -> None:
        self.view.left(trial, why, self.study)


class View:
    """Shows the events of a search (`workers.Events`) and passes finished trials on.

    Args:
        title: title of the live table.
        n_trials: total trials in the study, including earlier launches.
        n_workers: concurrent trials, for the estimate of the remaining time.
        n_done: trials in the study before this launch.
        epochs: length of a trial.
        on_finished: called after every finished trial; returns what the search has reached.
        earlier: trials that ended before this launch.
        verbose: also show notes for developers: what the cache of feature maps decided, and why.

    The trials of several studies are shown in one view: `of` returns the receiver of each study's events, and says what
    ``epochs``, ``on_finished`` and ``earlier`` are for that study.
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
        on_finished: Callable[[], Standing],
        earlier: Sequence[TrialRecord] = (),
        verbose: bool = False,
    ) -> None:
        self.console, self.title = console, title
        self.n_trials, self.n_workers, self.n_done, self.epochs = n_trials, n_workers, n_done, epochs
        self.on_finished = on_finished
        self.studies: dict[str, StudyView] = {}  # where there are several
        self.running: dict[_Key, tuple[Suggestion, float, Mapping[str, Any]]] = {}
        self.ended: dict[_Key, TrialRecord] = {}
        # kept up to date with each trial, as the cost per trial must not grow with their number
        self._complete: dict[_Key, TrialRecord] = {}
        self._bests: dict[str, TrialRecord] = {}  # by study
        self._scored: dict[str, dict[int, tuple[Mapping[str, Any], float]]] = {}  # by study and trial
        self._order: dict[str, list[str]] = {}  # by study: the dimensions that matter, once they are known
        self._common: dict[str | None, tuple[int, Mapping[str, Any]]] = {}  # by study, None for all: n, what they share
        self._noted: set[_Key] = set()
        self.take_earlier(earlier)
        self.standings: dict[str, Standing] = {}  # by study
        self.begun, self.verbose = time.monotonic(), verbose
        self._said: set[str] = set()
        self._lock = threading.Lock()
        self._live = (
            _Live(get_renderable=self._render, console=console, refresh_per_second=2, transient=True)
            if console.is_terminal and not console.is_dumb_terminal
            else None
        )

    def of(
        self, study: str, n_done: int, epochs: int, on_finished: Callable[[], Standing],
        earlier: Sequence[TrialRecord] = (),
    ) -> StudyView:  # fmt: skip
        """Return the receiver of the events of one of several studies; ``n_done`` of its trials are done."""
        self.studies[study] = StudyView(self, study, n_done, epochs, on_finished)
        self.take_earlier(earlier, study)
        return self.studies[study]

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

    def started(self, suggestion: Suggestion, study: str = "") -> None:
        """Show that a trial has started, has restarted, or resumes from a checkpoint."""
        key = (study, suggestion.trial)
        with self._lock:
            self.running[key] = (suggestion, time.monotonic(), {})
            self._note(key, suggestion.config)
            if self.ended.pop(key, None) is None and suggestion.promoted_from is not None:
                self.n_done -= 1  # an earlier launch had stopped the trial
        if self._live is None:
            again = " (again)" if suggestion.again else ""
            if suggestion.promoted_from is not None:
                again = f" (goes on after epoch {suggestion.promoted_from})"
            memory = _predicted_memory(suggestion)
            what = repeat_words(suggestion.repeat_of, suggestion.config.get("seed")) + describe(suggestion.config, 8)
            self.say(f"{_name(key)} started{again}: {what}, predicted {memory}")

    def progressed(self, trial: int, entry: Mapping[str, Any], study: str = "") -> None:
        """Show an epoch of a running trial; ``entry`` as in its history."""
        key = (study, trial)
        with self._lock:
            if key in self.running:
                suggestion, begun, before = self.running[key]
                self.running[key] = (suggestion, begun, {**before, **entry})

    def left(self, trial: int, why: str, study: str = "") -> None:
        """Show that a trial was given back without a result."""
        key = (study, trial)
        with self._lock:
            self.running.pop(key, None)
        self.say(f"{_name(key)}: {why}")

    def finished(self, record: TrialRecord, study: str = "") -> None:
        """Show a finished trial, and each kind of note once."""
        standing = (self.studies[study].on_finished if study else self.on_finished)()
        key = (study, record.trial)
        with self._lock:
            self.running.pop(key, None)
            self.ended[key] = record
            self._take(key, record)
            if len(self._scored.get(study, ())) % _ORDERED_EVERY == 0:
                self._find_order(study)
            self.standings[study] = standing
        shown = record.notes if self.verbose else [note for note in record.notes if not note.startswith(FOR_DEVELOPERS)]
        for note in shown:  # one per kind: other trials differ only in milliseconds
            if (kind := note.partition(":")[0]) not in self._said:
                self._said.add(kind)
                self.say(f"{_name(key)}: {note}")
        if self._live is None:
            reason = f", {record.reason}" if record.reason else ""
            quality = f"map {format_quality(record.map)}, " if record.map is not None else ""
            memory = memory_words(record.working_bytes, record.device_bytes)
            self.say(
                f"{_name(key)} {record.state}: {quality}{memory}, "
                f"{format_count(record.trainable_params)} trainable, {format_seconds(record.seconds)}{reason} | "
                f"{self._n_finished()} of {self.n_trials}, {self._time_left()}, {self._reached()}"
            )
            self._say_new_best(record, study)

    def _say_new_best(self, record: TrialRecord, study: str) -> None:
        best = self._best(study)
        if best is not None and best.trial == record.trial:
            words = best_words(best, best.map, self._shared(study), self._order.get(study, ()))
            self.say((f"{study}: " if study else "") + words)

    # --- drawing ----------------------------------------------------------------------------------------------------

    def take_earlier(self, records: Sequence[TrialRecord], study: str = "") -> None:
        """Take trials that ended before this launch into account for the best one, and what all trials share."""
        for record in records:
            self._take((study, record.trial), record)
        self._find_order(study)

    def _find_order(self, study: str) -> None:
        """Order the dimensions of a study by what matters, if enough trials have ended to say."""
        scored = self._scored.get(study, {})
        if len(scored) >= FEWEST:
            self._order[study] = order_of(explained(list(scored.values())))

    def _take(self, key: _Key, record: TrialRecord) -> None:
        """Take a finished trial of the search into account for the best one, the plot, and what all trials share."""
        if record.repeat_of is not None:
            return
        self._note(key, record.config)
        if record.feasible and record.map is not None and record.state in (TrialState.COMPLETE, TrialState.PRUNED):
            self._scored.setdefault(key[0], {})[key[1]] = record.config, record.map
        if record.state == TrialState.COMPLETE and record.feasible and record.map is not None:
            self._complete[key] = record
            best = self._best(key[0])
            if best is None or record.map > (best.map or 0.0):
                self._bests[key[0]] = record

    def _note(self, key: _Key, config: Mapping[str, Any]) -> None:
        """Narrow what all trials share to what this one has too."""
        for of in () if key in self._noted else (None, key[0]):
            n, common = self._common.get(of, (0, config))
            self._common[of] = n + 1, shared_values([common, config])
        self._noted.add(key)

    def _best(self, study: str = "") -> TrialRecord | None:
        """Return the complete trial within the budget that has the highest mAP; the first of several."""
        return self._bests.get(study)

    def _shared(self, study: str | None = None) -> Mapping[str, Any]:
        """Return the dimensions that are equal in all trials so far, of one study or of all."""
        n, common = self._common.get(study, (0, {}))
        return common if n > 1 else {}

    def _n_finished(self) -> int:
        return self.n_done + len(self.ended)

    def _time_left(self) -> str:
        mean, now = self._mean_seconds(), time.monotonic()
        if mean is None:
            return "time left unknown"
        # a trial near or past the mean time counts with a tenth of it
        running = [max(0.1 * mean, mean - (now - begun)) for _, begun, _ in self.running.values()]
        waiting = max(0, self.n_trials - self._n_finished() - len(running))
        left = max([(sum(running) + waiting * mean) / self.n_workers, *running])
        return f"about {format_seconds(left)} left" if running or waiting else "none left"

    def _mean_seconds(self) -> float | None:
        """Return the mean time of a trial: of those that ended, else as far as epochs tell; None: nothing does yet."""
        if self.ended:
            return sum(r.seconds or 0.0 for r in self.ended.values()) / len(self.ended)
        now = time.monotonic()
        so_far = [
            (now - begun) / epoch * (self.studies[key[0]].epochs if key[0] else self.epochs)
            for key, (_, begun, entry) in self.running.items()
            if (epoch := entry.get("epoch", 0))
        ]
        return sum(so_far) / len(so_far) if so_far else None

    def _render(self) -> Group:
        with self._lock:
            # a narrow window first drops the columns that can be read later
            shown = [name for name, least in _COLUMNS.items()
                     if self.console.width >= least and (name != "study" or self.studies)]  # fmt: skip
            table = Table(expand=False, title=self.title, title_justify="left", title_style="bold")
            for name in shown:
                words = name in ("study", _CONFIGURATION, "state")
                table.add_column(name, justify="left" if words else "right", no_wrap=name != _CONFIGURATION)
            shared, best = self._shared(), {study: self._best(study) for study in self.studies or ("",)}
            for key, record in list(self.ended.items())[-_ROWS:]:
                first = best[key[0]]
                is_best = first is not None and record.trial == first.trial
                cells = self._finished_cells(key, record, is_best, shared)
                table.add_row(*(cells[name] for name in shown), style="bold" if is_best else None)
            for key in self.running:
                cells = self._running_cells(key, shared)
                table.add_row(*(cells[name] for name in shown))
            progress = Table.grid(padding=(0, 1))
            n = self._n_finished()
            progress.add_row(ProgressBar(total=max(1, self.n_trials), completed=n, width=30), self._summary(n))
            common = [Text(shared_words(shared), style="dim")] if shared else []
            only = best.get("")
            below = [] if only is None else [Text(best_words(only, only.map, shared, self._order.get("", ())))]
            return Group(table, *common, *self._plot(table.row_count), progress, *below)

    def _plot(self, n_rows: int) -> list[Text]:
        """Return the front as text, if the terminal has room for it below a table of so many rows."""
        if self.studies or self.console.height < n_rows + _FRAME + _PLOT + 4:
            return []
        front = self.standings.get("", Standing()).front
        ascii_only = self.console.options.ascii_only
        on_front = [self._complete["", trial] for trial in front if ("", trial) in self._complete]
        points = [*list(self._complete.values())[-_PLOTTED:], *on_front]
        text = live_plot(points, front, self.console.width, height=_PLOT, ascii_only=ascii_only)
        return [text] if text else []

    def _finished_cells(
        self, key: _Key, record: TrialRecord, is_best: bool, shared: Collection[str]
    ) -> dict[str, str | Text]:
        what = describe(record.config, leave_out=shared, order=self._order.get(key[0], ()))
        words = repeat_words(record.repeat_of, record.seed) + what
        return {
            "study": Text(key[0]),
            "trial": f"best {record.trial}" if is_best else str(record.trial),
            _CONFIGURATION: Text(words),
            "epoch": str(len(record.history)),
            "map": format_quality(record.map),
            "memory": memory_words(record.working_bytes, record.device_bytes),
            "trainable": format_count(record.trainable_params),
            "time": format_seconds(record.seconds),
            "state": Text(record.state, style=_STYLE.get(record.state, "")),
        }

    def _running_cells(self, key: _Key, shared: Collection[str]) -> dict[str, str | Text]:
        suggestion, begun, entry = self.running[key]
        epochs = self.studies[key[0]].epochs if key[0] else self.epochs
        again = repeat_words(suggestion.repeat_of, suggestion.config.get("seed"))
        return {
            "study": Text(key[0]),
            "trial": str(key[1]),
            _CONFIGURATION: Text(
                again + describe(suggestion.config, leave_out=shared, order=self._order.get(key[0], ()))
            ),
            "epoch": f"{entry.get('epoch', 0)}/{epochs}",
            "map": format_quality(entry.get("map")),
            "memory": _predicted_memory(suggestion),
            "trainable": format_count(suggestion.estimate["trainable_params"]),
            "time": format_seconds(time.monotonic() - begun),
            "state": Text(TrialState.RUNNING, style=_STYLE[TrialState.RUNNING]),
        }

    def _reached(self) -> str:
        """Return the hypervolume of the study, or what each of several has: trials, and its best mAP."""
        if not self.studies:
            return f"hypervolume {self.standings.get('', Standing()).hypervolume:.4f}"
        n_ended = Counter(study for study, _ in self.ended)
        best = {study: None if (record := self._best(study)) is None else record.map for study in self.studies}
        return ", ".join(
            f"{study} {view.n_done + n_ended[study]} (best {format_quality(best[study])})"
            for study, view in self.studies.items()
        )

    def _summary(self, n_finished: int) -> Text:
        n_rejected = sum(standing.n_rejected for standing in self.standings.values())
        return Text(
            f"{n_finished} of {self.n_trials} trials, {format_seconds(time.monotonic() - self.begun)} so far, "
            f"{self._time_left()}, {self._reached()}"
            + (f", {n_rejected} over the budget without a run" if n_rejected else "")
        )
