"""Workers and their contract, which both kinds share: `InProcess` here, and `ray_tune.Ray`.

Workers take suggestions from the search session until ``n_trials`` of the study have run, none are left, or ``stop()``
returns True. They report every epoch and every result to the session, and what happens to ``events``. A failing trial
is a record, never the end of the search. A trial that was stopped at a rung may be handed out again and resumes from
its checkpoint. The searches of several studies share the workers in turn. `Workers.run`, `Supply` and `Turns` do all of
that; each kind of workers only runs trials.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from cst_search.execution.task import Task, execute
from cst_search.trial.result import Outcome

if TYPE_CHECKING:  # every worker imports this module, so imports cost time
    from cst_search.memory.estimate import Estimate
    from cst_search.search.session import SearchSession
    from cst_search.search.suggestion import Suggestion
    from cst_search.study.records import TrialRecord


class Events(Protocol):
    """Receiver of events in the trials of a launch.

    A trial that is stopped at a rung counts as finished; it is started again when it is promoted.
    """

    def started(self, suggestion: Suggestion) -> None: ...

    def progressed(self, trial: int, entry: Mapping[str, Any]) -> None: ...

    def finished(self, record: TrialRecord) -> None: ...

    def left(self, trial: int, why: str) -> None:
        """Report that a trial has left this launch before it ended."""


@dataclass(frozen=True)
class SearchJob:
    """A search as it is passed to the workers.

    Attributes:
        session: search session, which suggests configurations and records results.
        n_trials: total trials in the study, including earlier launches, at which the search ends.
        estimate: function from a configuration to its predicted cost.
        stop: function that returns True when no further trial may start (the time limit).
        events: receiver of events.
    """

    session: SearchSession
    task: Task
    n_trials: int
    estimate: Callable[[dict[str, Any]], Estimate]
    stop: Callable[[], bool]
    events: Events


class Workers(ABC):
    """Runs the trials of searches. Subclasses start, run and stop them; this class keeps the contract.

    Attributes:
        go_on: command that continues the search, for a last message if the workers die with all their trials.
        say: prints a line; None: nobody listens.
    """

    go_on = "cst-search resume"
    say: Callable[[str], None] | None = None

    @abstractmethod
    def prepare(self) -> None:
        """Begin to start slow parts and return at once. Optional: `run` does it too."""

    @contextmanager
    def prepared(self) -> Iterator[None]:
        """Context in which slow parts start while a search is set up, which then calls `run`."""
        try:
            self.prepare()
            yield
        finally:
            self.close()

    def run(self, *jobs: SearchJob) -> None:
        """Run the trials of one or more jobs, in turn, until all of them end."""
        turns = Turns([Supply(job) for job in jobs])
        try:
            self._run_all(turns)
            turns.close()
        finally:
            self.close()

    @abstractmethod
    def _run_all(self, turns: Turns) -> None:
        """Run trials until nothing is left to run."""

    @abstractmethod
    def close(self) -> None:
        """Release what `prepare` and `run` made. May be called again, and after a failure."""


class Supply:
    """Hands out the trials of a job and receives their reports. Both kinds of workers use it.

    Attributes:
        n_turns: number of times that the study had a worker, earlier launches included.
    """

    def __init__(self, job: SearchJob) -> None:
        self.job = job
        self.n_turns = job.session.study.info().n_ran()
        self.has_more = self.n_turns < job.n_trials

    def is_empty(self) -> bool:
        """Return True if nothing is left to run: no further configuration, and no stopped trial to promote."""
        return not self.has_more and self.job.session.due() is None

    def next(self) -> Suggestion | None:
        """Return the next trial to run: a promoted one, else a new configuration. None if there is none at present."""
        if self.job.stop():
            return None
        suggestion = self.job.session.promote()
        if suggestion is None and (self.has_more or self.job.session.has_returned()):
            suggestion = self.job.session.ask(self.job.estimate, self.job.n_trials)
            self.has_more = suggestion is not None
            if suggestion is not None and not suggestion.again:
                self._drop(suggestion.trial)  # of an earlier study with this name
        if suggestion is not None:
            self.n_turns += 1
            self.job.events.started(suggestion)
        return suggestion

    def progressed(self, trial: int, entry: Mapping[str, Any]) -> bool:
        """Report a finished epoch of a trial. Returns False if the trial must stop."""
        goes_on = self.job.session.progress(trial, entry)
        if self.job.task.checkpoints is not None:
            self.job.task.checkpoints.trim()
        self.job.events.progressed(trial, entry)
        return goes_on

    def ended(self, trial: int, result: Mapping[str, Any]) -> None:
        """Report the result of a trial."""
        record = self.job.session.tell(trial, result)
        if record is None:
            self.job.events.left(trial, "another launch took it up, for which this one seemed dead; it counts there")
            return
        if not record.waits:
            self._drop(trial)
        self.job.events.finished(record)

    def lost(self, trial: int) -> None:
        """Report that a trial's worker ended without a result: killed, out of host memory, or its node is gone."""
        if self.job.session.give_back(trial):
            self.job.events.left(trial, "its worker process ended; it is tried again, once")
        else:
            reason = "its worker process ended twice (killed, or out of host memory)"
            self.ended(trial, {"outcome": Outcome.FAILED, "reason": reason})

    def close(self) -> None:
        """End the stopped trials, which are not promoted any more, unless the search was cut short."""
        if not self.job.stop() and not self.has_more:
            for trial in self.job.session.close_stopped():
                self._drop(trial)

    def _drop(self, trial: int) -> None:
        if self.job.task.checkpoints is not None:
            self.job.task.checkpoints.drop(trial)


class Handout(NamedTuple):
    """A trial to run, and the supply that it is from, which is the ``place``-th of all."""

    place: int
    supply: Supply
    suggestion: Suggestion


class Turns:
    """The supplies of one or more studies, which take turns: the next free worker goes to the one that had the fewest.

    So studies that are given the same number of trials have about as many at any time. A study that has no trial to run
    at present, as its last ones are running or it has ended, is passed over.
    """

    def __init__(self, supplies: Sequence[Supply]) -> None:
        self.supplies = supplies

    def is_empty(self) -> bool:
        """Return True if nothing is left to run in any study."""
        return all(supply.is_empty() for supply in self.supplies)

    def is_over(self) -> bool:
        """Return True if no further trial may start (the time limit)."""
        return all(supply.job.stop() for supply in self.supplies)

    def next(self) -> Handout | None:
        """Return the next trial to run; None: no study has one at present."""
        for supply in sorted(self.supplies, key=lambda supply: supply.n_turns):
            if (suggestion := supply.next()) is not None:
                return Handout(self.supplies.index(supply), supply, suggestion)
        return None

    def close(self) -> None:
        """End the stopped trials of all studies; see `Supply.close`."""
        for supply in self.supplies:
            supply.close()


class InProcess(Workers):
    """Runs trials one after the other in this process: for tests, debugging, and where Ray cannot run."""

    def prepare(self) -> None:
        """Do nothing: there is nothing to start."""

    def _run_all(self, turns: Turns) -> None:
        while (handout := turns.next()) is not None:
            supply, trial = handout.supply, handout.suggestion.trial
            recorded = supply.job.session.recorded(trial)
            result = execute(
                supply.job.task, trial, handout.suggestion.config, partial(supply.progressed, trial), recorded
            )
            supply.ended(trial, result)

    def close(self) -> None:
        from cst_search.trial import isolated_process

        isolated_process.stop()
