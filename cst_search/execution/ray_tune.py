"""Run trials with Ray Tune, on the cores or GPUs of this machine or of a cluster.

Ray's own record (result files, searcher state, checkpoints) is not used: the study is the record, and Ray may die. One
trial of Ray is one *stretch* of a trial of the study. A trial that was stopped at a rung and is promoted becomes a new
trial of Ray, which resumes from the checkpoint.
"""

from __future__ import annotations

import json
import logging
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

from cst_search.execution.ray_start import (  # first: it sets environment variables that Ray reads
    give_up_start,
    leave_ray,
    start_beside,
    watch_own_ray,
)

import ray  # isort: skip
from ray import tune  # isort: skip
from ray.tune import Callback  # isort: skip
from ray.tune.execution import class_cache  # isort: skip
from ray.tune.schedulers import FIFOScheduler  # isort: skip
from ray.tune.search import Searcher  # isort: skip

from cst_search.cores import busy_words
from cst_search.errors import CstSearchError, RunError
from cst_search.execution.task import Task, execute
from cst_search.execution.workers import Handout, Turns, Workers
from cst_search.trial.result import Outcome
from cst_search.waiting import Waiting

if TYPE_CHECKING:  # every worker imports this module, so imports cost time
    from concurrent.futures import Future

    from cst_search.execution.gpu_sharing import Placement
    from cst_search.execution.ray_cluster import Cluster

_RESULT, _ENTRY = "cst_result", "cst_entry"
_PATIENCE_SECONDS = 600  # a node takes minutes to restart


class _Stays:
    """Base of objects that Tune must not copy. Tune writes and copies its inputs, for a restore that is not used."""

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self


class StudySearcher(_Stays, Searcher):
    """Passes suggestions of the search sessions to Ray, and Ray's outcomes to the sessions.

    Ray gets no metric. With one, a trial that lacks it would end the whole search, and several metrics are supported
    only by Ray's own OptunaSearch, which loses constraints.

    On a cluster it also assigns each trial to a node (`gpu_sharing.Fleet`). A suggestion without room waits here, and
    later ones wait behind it, so that a large trial is not overtaken forever.
    """

    def __init__(self, turns: Turns, placement: Placement | None = None, cluster: Cluster | None = None) -> None:
        super().__init__()
        self.turns, self.placement, self.cluster = turns, placement, cluster
        self.first: Handout | None = None  # made in advance
        self.fault: CstSearchError | None = None  # ends the search: the study's storage or all nodes are gone
        self.running: dict[str, Handout] = {}  # by Ray's name of the trial
        self.stopped: set[str] = set()
        self.waiting: list[Handout] = []  # waiting for room on the cluster
        self._last_placed = time.monotonic()

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Store an error that must end the search; Tune would treat it as the trial's error and continue."""
        try:
            yield
        except CstSearchError as error:
            self.fault = self.fault or error

    def look_ahead(self) -> None:
        """Make the first suggestion in advance: it takes a second or two, during which Ray starts."""
        with self.kept():
            self.first = self.turns.next()

    def suggest(self, trial_id: str) -> Any:
        if self.fault is not None:
            return Searcher.FINISHED
        if self.cluster is not None:
            return self._suggest_a_place(trial_id, self.cluster)
        handout = self._next()
        if handout is None:
            return self._nothing()
        task = self._started(trial_id, handout)
        if self.placement is None:
            return task
        share = self.placement.share(handout.suggestion.estimate["device_bytes"])
        return task | {"gpu": share, "limit_bytes": self.placement.limit_bytes(share)}

    def _next(self) -> Handout | None:
        if (first := self.first) is not None:
            self.first = None
            return first
        with self.kept():
            return self.turns.next()
        return None

    def _started(self, trial_id: str, handout: Handout) -> dict[str, Any]:
        self.running[trial_id] = handout
        suggestion = handout.suggestion
        # as text, as Tune would take it for parts of the search space
        recorded = json.dumps(handout.supply.job.session.recorded(suggestion.trial))
        return {
            "task": handout.place, "trial": suggestion.trial, "config": suggestion.config, "recorded": recorded
        }  # fmt: skip

    def _is_over(self) -> bool:
        return self.fault is not None or self.turns.is_over()

    def _nothing(self) -> Any:
        # None: nothing yet. A running trial may reach a rung at which a stopped one is promoted, or lose its worker and
        # run again
        return None if self.running and not self._is_over() else Searcher.FINISHED

    def _suggest_a_place(self, trial_id: str, cluster: Cluster) -> Any:
        cluster.refresh()
        if not self.waiting:
            if cluster.fleet.is_full() and not self._is_over():
                return self._wait()
            handout = self._next()
            if handout is None:
                return self._nothing()
            self.waiting.append(handout)
        place = cluster.fleet.place(trial_id, self.waiting[0].suggestion.estimate["device_bytes"])
        if place is None:
            return self._wait()
        task = self._started(trial_id, self.waiting.pop(0)) | {"node": place.node, "cpu": place.cpus}
        self._last_placed = time.monotonic()
        return task if place.limit_bytes is None else task | {"gpu": place.gpu, "limit_bytes": place.limit_bytes}

    def _wait(self) -> Any:
        if self.running:
            self._last_placed = time.monotonic()
            return None
        if time.monotonic() - self._last_placed > _PATIENCE_SECONDS:
            self.fault = RunError(
                "no node of the cluster that could run the next trial has come back; finished trials are kept, and "
                "`cst-search resume` goes on"
            )
            return Searcher.FINISHED
        time.sleep(0.1)  # Tune asks again at once if no trial is running
        return None

    def lost_its_node(self, trial_id: str, node: str) -> bool:
        """Take back the suggestion of a trial that has not begun if its node is gone. Returns True if so."""
        if self.cluster is None or trial_id not in self.running:
            return False
        self.cluster.refresh()
        if node in self.cluster.fleet.nodes:
            return False
        self.waiting.append(self.running.pop(trial_id))
        self.cluster.fleet.free(trial_id)
        return True

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        handout = self.running.pop(trial_id, None)
        if handout is None or self.fault is not None:
            return
        supply, number = handout.supply, handout.suggestion.trial
        if self.cluster is not None:
            self.cluster.fleet.free(trial_id)
        text = (result or {}).get(_RESULT)
        if text is not None:
            outcome = json.loads(text)
        elif trial_id in self.stopped:
            outcome = {"outcome": Outcome.STOPPED}
        else:
            if not error:  # stopped from outside (Ctrl-C): it stays unfinished, and the next launch resumes it
                return
            with self.kept():
                supply.lost(number)
            return
        with self.kept():
            supply.ended(number, outcome)

    def save(self, checkpoint_path: str) -> None:
        """Save nothing: the study's database is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Restore nothing: the study's database is the state."""


class StudyScheduler(_Stays, FIFOScheduler):
    """Reports each epoch of a trial to the search session, which decides if the trial continues."""

    def __init__(self, searcher: StudySearcher) -> None:
        super().__init__()
        self.searcher = searcher

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        for trial in list(tune_controller.get_live_trials()):
            if trial.status == trial.PENDING and self.searcher.lost_its_node(trial.trial_id, trial.config.get("node")):
                tune_controller.stop_trial(trial)  # Ray would wait forever for that node
        return super().choose_trial_to_run(tune_controller)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        handout = self.searcher.running.get(trial.trial_id)
        if handout is None or _ENTRY not in result:
            return self.CONTINUE
        goes_on = False
        with self.searcher.kept():
            goes_on = handout.supply.progressed(handout.suggestion.trial, json.loads(result[_ENTRY]))
        if goes_on and self.searcher.fault is None:
            return self.CONTINUE
        self.searcher.stopped.add(trial.trial_id)
        return self.STOP


class FirstSigns(_Stays, Callback):
    """Says no more that the workers are waited for once the first one runs, and then once a trial has an epoch."""

    def __init__(self, waiting: Waiting) -> None:
        self._waiting = waiting
        self._has_begun = False

    def on_trial_start(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        if not self._has_begun:
            self._has_begun = True
            self._waiting.now_for("the first epoch of a trial", only_if_busy=True)

    def on_trial_result(self, iteration: int, trials: Any, trial: Any, result: Any, **info: Any) -> None:
        self._waiting.over()

    def on_trial_error(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
        self._waiting.over()


def _trainable(config: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    task = tasks[config["task"]]
    if "limit_bytes" in config:  # its share of a GPU
        limit = min(config["limit_bytes"], task.memory_limit_bytes or config["limit_bytes"])
        task = replace(task, memory_limit_bytes=limit)

    def report(entry: dict[str, Any]) -> bool:
        try:
            # as text: Tune flattens nested results and converts numbers to its own types
            tune.report({_ENTRY: json.dumps(entry)})
        except SystemExit:  # Tune stops a trial this way when it reuses its process
            return False
        return True

    result = execute(task, config["trial"], config["config"], report, json.loads(config["recorded"]))
    if result["outcome"] == Outcome.STOPPED:
        sys.exit(0)  # as Tune requested; it ignores further reports
    tune.report({_RESULT: json.dumps(result)})


@contextmanager
def _without_environments() -> Iterator[None]:
    """Start workers as they are, with the environment of this process, which Ray on this machine has anyway.

    Tune asks for a variable of its own (of Lightning) and passes some on. Ray then starts each worker through a process
    that imports Ray, half a second, and through an agent that this machine's Ray lacks (`ray_start`).
    """

    def get(self: Any, trainable: type) -> Any:
        if trainable not in self._cache:
            self._cache[trainable] = ray.remote(trainable)
        return self._cache[trainable]

    with patch.object(class_cache._ActorClassCache, "get", get):
        yield


def _nobody(line: str) -> None:
    """Takes the place of `Workers.say`."""


class Ray(Workers):
    """Runs trials as Ray Tune trials, ``n_workers`` at a time; processes are reused from trial to trial.

    Args:
        n_workers: maximum number of concurrent trials.
        cpus: CPUs per trial.
        placement: the GPUs, which trials share by their predicted memory; None: trials run on the CPU. Ray starts
            trials in the order of their suggestion and asks for one suggestion ahead, so a large trial waits for room,
            but not forever.
        cluster: cluster that runs the trials, as many as its `Fleet` has room for; ``n_workers``, ``cpus`` and
            ``placement`` are then ignored. It is disconnected at the end. None: Ray is started and stopped here.
    """

    def __init__(
        self, n_workers: int, cpus: float, placement: Placement | None = None, cluster: Cluster | None = None
    ) -> None:
        self.n_workers, self.cpus, self.placement, self.cluster = n_workers, cpus, placement, cluster
        self._ready: Future[None] | None = None
        self._left = threading.Event()  # set when Ray is to be shut down
        self._is_ours = False  # True if Ray was started here
        self._scratch: str | None = None  # folder of Tune's own files

    def prepare(self) -> None:
        if self._ready is None and not ray.is_initialized():
            self._ready = start_beside(max(1, round(self.n_workers * self.cpus)))

    def _run_all(self, turns: Turns) -> None:
        if turns.is_empty():
            return
        self.prepare()
        searcher = StudySearcher(turns, self.placement, self.cluster)
        self._wait_for_ray(searcher)
        if threading.current_thread() is threading.main_thread():
            # on start, Ray's C++ part replaces Python's SIGTERM handler and treats the signal as a crash
            signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        # hide messages about Tune's own files, which come with a traceback if it is interrupted
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
        self._scratch = tempfile.mkdtemp(prefix="cst-search-ray-")
        start = _without_environments() if self.cluster is None else self.cluster.driver_stays_here()
        with start, self._waiting("the workers to start") as waiting:
            self._tuner(searcher, self._scratch, waiting).fit()
        if searcher.fault is not None:
            raise searcher.fault

    def _wait_for_ray(self, searcher: StudySearcher) -> None:
        """Wait until Ray has started, if it is started here, and make the first suggestion in the meantime."""
        if self._ready is None:
            return
        searcher.look_ahead()  # if Ray fails to start, the next launch resumes it
        try:
            with self._waiting("Ray to start"):
                self._ready.result()
        except Exception as error:
            busy = f"this machine is busy ({words}), so try again later; " if (words := busy_words()) else ""
            raise RunError(f"Ray did not start: {error} {busy}--in-process runs the trials without it") from error
        self._ready, self._is_ours = None, True
        self._left.clear()
        watch_own_ray(self.go_on, self._left)

    def _waiting(self, what: str) -> Waiting:
        if self.cluster is not None:
            return Waiting(f"{what} on the cluster", self.say or _nobody, "`ray status` there says why", is_here=False)
        remedy = "Ctrl-C ends it, `cst-search doctor` tries Ray, and --in-process does without"
        return Waiting(what, self.say or _nobody, remedy)

    def _tuner(self, searcher: StudySearcher, scratch: str, waiting: Waiting) -> tune.Tuner:
        cpus = self.cpus

        def resources(config: Mapping[str, Any]) -> Any:
            if "node" not in config:
                return {"cpu": cpus, "gpu": config.get("gpu", 0)}
            bundle = {"CPU": config["cpu"], f"node:{config['node']}": 0.001}
            return tune.PlacementGroupFactory([bundle | ({"GPU": config["gpu"]} if "gpu" in config else {})])

        trainable = tune.with_parameters(_trainable, tasks=[supply.job.task for supply in searcher.turns.supplies])
        return tune.Tuner(
            tune.with_resources(trainable, resources),
            tune_config=tune.TuneConfig(
                search_alg=searcher,
                scheduler=StudyScheduler(searcher),
                num_samples=-1,  # the searcher ends the search
                max_concurrent_trials=self.n_workers if self.cluster is None else None,
                reuse_actors=True,
            ),
            run_config=tune.RunConfig(
                name="search",
                storage_path=scratch,
                verbose=0,
                callbacks=[FirstSigns(waiting)],
                failure_config=tune.FailureConfig(max_failures=0),
            ),
        )

    def close(self) -> None:
        if self._ready is not None:
            give_up_start(self._ready)
            self._ready = None
        if self.cluster is not None:
            self.cluster.close()
        elif self._is_ours:
            self._left.set()
            leave_ray()
            self._is_ours = False
        if self._scratch is not None:
            shutil.rmtree(self._scratch, ignore_errors=True)
            self._scratch = None
