"""One contract for both forms of workers. The trials are real and tiny: Ray's processes know no fakes.

Every form runs one script (`search_with`), and each test looks at one clause of the contract in what was heard.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import optuna
import pytest
from studies import FakeEstimate, fake_estimate, make_spec, make_study, open_session, run_one, scored, shorter_rungs

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.data.disk_cache import Cache
from cst_search.errors import RunError
from cst_search.execution.task import Task, execute
from cst_search.execution.workers import InProcess, SearchJob, Supply, Turns, Workers
from cst_search.search.session import SearchSession
from cst_search.search.suggestion import Suggestion
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.records import Budget, StudyInfo, TrialRecord
from cst_search.study.study import Study
from cst_search.trial.checkpoint_folder import Checkpoints
from cst_search.trial.memory_limit import CPU_IS_LIMITED
from cst_search.trial.run import run_trial

SPACE = {
    "methods": ["head"],
    "shared": {
        "width": {"choice": [0.125, 0.25]},  # the weights are those of 0.125: with 0.25 a trial raises
        "batch_size": {"choice": [2, 4]},  # 4 is over the budget
        "lr": {"float": [1e-3, 1e-2]},
    },
}
EPOCHS = 2
# Images one by one need about 17 MB of a process on a CPU, all eight at once 70 MB.
LIMIT_BYTES = 40 * 10**6
# Batches of 3 to 10 cost 300 to 1000 bytes, the study's only objective: which trial stops where is known.
STOPPING_SPACE = {"methods": ["head"], "shared": {"batch_size": {"choice": list(range(3, 11))}}}
STOPPING_EPOCHS, STOPPING_RUNGS = 3, (1, 2)
LIMITED_SPACE = {"methods": ["head"], "shared": {"batch_size": {"choice": [1, 8]}, "lr": {"float": [1e-3, 1e-2]}}}


def estimate(config: Mapping[str, Any]) -> FakeEstimate:
    return FakeEstimate(100 * config["batch_size"], trainable_params=10)


@dataclass
class Heard:
    """What a search said on its events, and the study when it ended.

    Attributes:
        turns: of all searches that run together, the names in the order of their starts.
    """

    name: str = ""
    turns: list[str] = field(default_factory=list)
    events: list[tuple[str, int]] = field(default_factory=list)
    entries: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    records: list[TrialRecord] = field(default_factory=list)
    starts: list[Suggestion] = field(default_factory=list)
    info: StudyInfo | None = None

    def started(self, suggestion: Suggestion) -> None:
        self.starts.append(suggestion)
        self.turns.append(self.name)
        self.events.append(("started", suggestion.trial))

    def progressed(self, trial: int, entry: Mapping[str, Any]) -> None:
        self.events.append(("progressed", trial))
        self.entries.append((trial, entry))

    def finished(self, record: TrialRecord) -> None:
        self.events.append(("finished", record.trial))
        self.records.append(record)

    def left(self, trial: int, why: str) -> None:
        self.events.append(("left", trial))

    def of(self, trial: int) -> list[str]:
        return [kind for kind, number in self.events if number == trial]


# Of the searches that run together the next worker goes to the one that had the fewest turns: the study with early
# stopping has 12 stretches to run, that with a limit 4 trials, the one of the contract 3, and the last one none.
TURNS = ["stopping", "limited", "contract"] * 3 + ["stopping", "limited"] + ["stopping"] * 8


@dataclass
class Script:
    """The searches that one form ran: four studies together, one trial at a time; then one of them goes on alone."""

    stopped_before: Heard  # contract: no trial may start
    first: Heard  # contract: to 3 trials
    enough: Heard  # contract: to 3 trials again
    stopped: Heard  # contract: to 20, with all workers, stopped after one
    n_workers: int
    stopping: Heard  # to 8, with early stopping
    checkpoints: dict[int, list[str]]  # of that: those that there were when so many trials had ended
    limited: Heard  # to 4, each held to LIMIT_BYTES
    none: Heard  # to none
    turns: list[str]  # whose turn it was
    limited_url: str
    folder: Path  # of the caches: `cache`, and `limited` of the trials with a limit


def search_with(
    workers: Workers, alone: Workers, n_workers: int, recipe: Recipe, data: DetectionData, folder: Path
) -> Script:
    """``alone`` runs one trial at a time."""
    url = f"sqlite:///{folder}/studies.db"
    task = Task(recipe, data, EPOCHS, "cpu", threads=1, cache=Cache(folder / "cache", 10**8))
    turns: list[str] = []

    def never() -> bool:
        return False

    def make_job(name: str, queue: list[dict[str, Any]], spec: dict[str, Any], task: Task, n_trials: int,
                 stop: Callable[[], bool] = never) -> SearchJob:  # fmt: skip
        values: dict[str, Any] = {"space": SPACE, "budget": Budget(), "recipe": recipe.to_dict()}
        session = SearchSession(Study.create(url, name, make_spec(**values | spec)))
        session.begin_launch()
        for config in queue:
            session.enqueue({"method": "head", **config})
        return SearchJob(session, task, n_trials, estimate, stop, Heard(name, turns))  # type: ignore[arg-type]

    # trial 0 is over the budget, 1 raises, 2 and 3 are well
    queue = [{"width": w, "batch_size": n} for w, n in ((0.125, 4), (0.25, 2), (0.125, 2), (0.125, 2))]
    contract = make_job("contract", queue, {"budget": Budget(300, None)}, task, 3)

    queue = [{"batch_size": n, "lr": 1e-3 * (i + 1)} for i, n in enumerate((8, 8, 1, 1))]
    held = dataclasses.replace(task, memory_limit_bytes=LIMIT_BYTES, cache=Cache(folder / "limited", 10**8))
    limited = make_job("limited", queue, {"space": LIMITED_SPACE}, held, 4)

    checkpoints: dict[int, list[str]] = {}

    def look() -> bool:
        # first of all after a trial has ended, before another one of the study begins
        names = sorted(path.name for path in (folder / "checkpoints").glob("*"))
        checkpoints.setdefault(len(stopping.events.records), names)  # type: ignore[attr-defined]
        return False

    changed = dataclasses.replace(recipe, search_epochs=STOPPING_EPOCHS).to_dict()
    spec = {"space": STOPPING_SPACE, "recipe": changed, "eta": 2, "objectives": (OBJECTIVES["device_bytes"],)}
    kept = Task(recipe, data, STOPPING_EPOCHS, "cpu", threads=1, rungs=STOPPING_RUNGS,
                checkpoints=Checkpoints(folder / "checkpoints"))  # fmt: skip
    with shorter_rungs():
        stopping = make_job("stopping", [{"batch_size": n} for n in range(3, 11)], spec, kept, 8, look)

    none = make_job("none", [], {}, task, 0)

    def run(runner: Workers, *jobs: SearchJob) -> Any:
        """Returns what was heard of the first one."""
        runner.run(*jobs)
        for job in jobs:
            job.events.info = job.session.study.info()  # type: ignore[attr-defined]
        return jobs[0].events

    def again(n_trials: int, stop: Callable[[Heard], bool]) -> SearchJob:
        heard = Heard()
        return dataclasses.replace(contract, n_trials=n_trials, stop=lambda: stop(heard), events=heard)

    stopped_before = run(workers, again(3, lambda heard: True))
    heard_stopping = run(alone, stopping, limited, none, contract)
    checkpoints[-1] = sorted(path.name for path in (folder / "checkpoints").glob("*"))
    events: Any = (limited.events, none.events, contract.events)
    return Script(
        stopped_before=stopped_before,
        first=events[2],
        enough=run(workers, again(3, lambda heard: False)),
        stopped=run(workers, again(20, lambda heard: bool(heard.records))),
        n_workers=n_workers,
        stopping=heard_stopping,
        checkpoints=checkpoints,
        limited=events[0],
        none=events[1],
        turns=turns,
        limited_url=url,
        folder=folder,
    )


@pytest.fixture(scope="module")
def ray_of_two() -> Iterator[None]:
    """Ray, started once for the tests of this file: a search that finds it running leaves it running."""
    from cst_search.execution.ray_start import init_ray, leave_ray

    init_ray("local", num_cpus=2, include_dashboard=False)
    try:
        yield
    finally:
        leave_ray()


@pytest.fixture(scope="module", params=["in-process", "ray"])
def script(
    request: pytest.FixtureRequest,
    tiny_recipe: Callable[..., Recipe],
    tiny_data: DetectionData,
    weights_file: Callable[[str, float], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Script:
    recipe = tiny_recipe(method="head", weights=weights_file("resnet18", 0.125))
    folder = tmp_path_factory.mktemp("workers")
    if request.param == "in-process":
        return search_with(InProcess(), InProcess(), 1, recipe, tiny_data, folder)
    from cst_search.execution.ray_tune import Ray

    request.getfixturevalue("ray_of_two")
    return search_with(Ray(2, cpus=1), Ray(1, cpus=1), 2, recipe, tiny_data, folder)


def test_so_many_trials_ran_in_the_end(script: Script) -> None:
    info = script.first.info
    assert info is not None
    assert info.n_ran() == 3
    assert info.counts()["running"] == info.counts()["interrupted"] == 0
    assert sorted(record.trial for record in script.first.records) == [r.trial for r in info.trials if r.ran]
    assert all(record == info.by_number(record.trial) for record in script.first.records)


def test_what_is_heard_of_a_trial_is_in_order(script: Script) -> None:
    for heard in (script.first, script.stopped):
        for record in heard.records:
            n_epochs = EPOCHS if record.state == "complete" else 0
            assert heard.of(record.trial) == ["started", *["progressed"] * n_epochs, "finished"]


def test_progress_is_the_history_of_the_trial(script: Script) -> None:
    for heard in (script.first, script.stopped):
        for record in heard.records:
            entries = [entry for trial, entry in heard.entries if trial == record.trial]
            assert entries == list(record.history)
            if record.state == "complete":
                assert [entry["epoch"] for entry in entries] == [1, 2]
                assert entries[-1]["map"] == record.map


def test_studies_take_turns(script: Script) -> None:
    """Each trial is of its own study: what is shown of each below it has by its own task."""
    assert script.turns == TURNS
    assert script.none.events == [] and script.none.info is not None and not script.none.info.trials


def test_a_trial_that_raises_is_a_record_and_the_search_goes_on(script: Script) -> None:
    failed = next(record for record in script.first.records if record.trial == 1)
    assert failed.state == "failed"
    assert failed.reason is not None and failed.reason.startswith("ConfigError: weights ")
    assert "do not fit resnet18" in failed.reason
    others = [record for record in script.first.records if record.trial != 1]
    assert [record.state for record in others] == ["complete"] * 2
    assert all(record.feasible and record.map is not None and record.loss is not None for record in others)


def test_what_does_not_fit_never_takes_a_worker(script: Script) -> None:
    info = script.first.info
    assert info is not None
    rejected = [record for record in info.trials if record.config["batch_size"] == 4]
    assert rejected and all((r.state, r.ran) == ("infeasible", False) for r in rejected)
    assert not any(script.first.of(record.trial) for record in rejected)


def test_stop_before_the_first_trial(script: Script) -> None:
    assert script.stopped_before.events == []
    assert script.stopped_before.info is not None and script.stopped_before.info.trials == ()


def test_a_study_that_has_its_trials_gets_no_more(script: Script) -> None:
    assert script.enough.events == []


def test_a_study_goes_on_and_stop_ends_it(script: Script) -> None:
    before, after = script.first.info, script.stopped.info
    assert before is not None and after is not None
    n_more = after.n_ran() - 3
    # what was at work when stop() became true ends, nothing new begins
    assert 1 <= n_more <= 2 * script.n_workers
    assert after.trials[: len(before.trials)] == before.trials
    assert after.counts()["running"] == after.counts()["interrupted"] == 0
    assert len(script.stopped.records) == n_more


# Of n that reached a rung the cheapest n // 2 go on, at least one; each trial costs more than all before it.
STOPPING_STORY: list[tuple[int, int | None, int, str]] = [
    # trial, promoted from, last epoch, how it ended
    (0, None, 3, "complete"),  # the first at both rungs
    (1, None, 1, "pruned"),
    (2, None, 1, "pruned"),
    (3, None, 1, "pruned"),
    (1, 1, 2, "pruned"),  # now 2 of 4 go on; at the next rung it is second of two
    (4, None, 1, "pruned"),
    (5, None, 1, "pruned"),
    (2, 1, 2, "pruned"),  # 3 of 6; third of three
    (6, None, 1, "pruned"),
    (7, None, 1, "pruned"),
    (3, 1, 2, "pruned"),  # 4 of 8
    (1, 2, 3, "complete"),  # 2 of 4 at the second rung
]


def test_trials_stop_at_rungs_and_go_on_when_they_are_promoted(script: Script) -> None:
    heard, info = script.stopping, script.stopping.info
    assert info is not None
    story, starts = [], iter(heard.starts)
    records, epochs = iter(heard.records), iter(heard.entries)
    for number, promoted_from, last, state in STOPPING_STORY:
        suggestion, record = next(starts), next(records)
        story.append((suggestion.trial, suggestion.promoted_from, len(record.history), record.state))
        # of a checkpoint the last epoch is reported again, and the others not at all
        for epoch in range(promoted_from or 1, last + 1):
            trial, entry = next(epochs)
            assert (trial, entry["epoch"], "map" in entry) == (number, epoch, True)
        assert record.waits == (state == "pruned")
    assert story == STOPPING_STORY
    assert [next(starts, None), next(records, None), next(epochs, None)] == [None] * 3
    assert info.n_ran() == len(info.trials) == 8  # each configuration counts once
    assert not any(record.waits for record in info.trials)
    assert info.counts()["pruned"] == 6 and [record.trial for record in info.front()] == [0]
    for record in info.trials:
        assert [entry["epoch"] for entry in record.history] == list(range(1, len(record.history) + 1))
        if record.state == "pruned":
            assert (record.feasible, record.map) == (True, record.history[-1]["map"])
            assert record.seconds is not None and record.images_per_second is not None
            assert record.reason == f"stopped after epoch {len(record.history)} of 3"


def test_what_optuna_has_of_stopped_trials(script: Script) -> None:
    stored = optuna.load_study(study_name="stopping", storage=script.limited_url).get_trials()
    pruned, complete = optuna.trial.TrialState.PRUNED, optuna.trial.TrialState.COMPLETE
    assert [trial.state for trial in stored] == [complete, complete, *[pruned] * 6]
    assert all(trial.constraints["memory"] == 0 for trial in stored)


def test_checkpoints_are_kept_as_long_as_they_may_be_needed(script: Script) -> None:
    of = script.checkpoints
    assert of[0] == of[1] == []  # trial 0 is complete
    assert of[4] == ["1.pt", "2.pt", "3.pt"]
    assert of[11] == [f"{number}.pt" for number in range(1, 8)]
    assert of[12] == [f"{number}.pt" for number in range(2, 8)]  # trial 1 is complete
    assert of[-1] == []


def test_a_promoted_trial_is_as_one_that_never_stopped(
    script: Script, tiny_recipe: Callable[..., Recipe], tiny_data: DetectionData, weights_file: Callable[..., str]
) -> None:
    info = script.stopping.info
    assert info is not None
    record = info.trials[1]
    assert [suggestion.promoted_from for suggestion in script.stopping.starts if suggestion.trial == 1] == [None, 1, 2]
    recipe = tiny_recipe(method="head", weights=weights_file("resnet18", 0.125)).configured(record.config)
    through = run_trial(recipe, tiny_data, epochs=STOPPING_EPOCHS, device="cpu", rungs=STOPPING_RUNGS)

    def figures(history: Any) -> list[list[float]]:
        return [[entry[name] for name in ("epoch", "loss", "grad_norm", "map", "map50")] for entry in history]

    assert figures(record.history) == figures(through.history)


@pytest.mark.skipif(not CPU_IS_LIMITED, reason="only Linux limits the memory of a CPU process")
def test_running_out_of_memory_is_a_record_and_the_worker_goes_on(script: Script) -> None:
    info = script.limited.info
    assert info is not None
    assert info.n_ran() == len(info.trials) == len(script.limited.records) == 4  # none lost
    assert [record.config["batch_size"] for record in info.trials] == [8, 8, 1, 1]
    for record in info.trials:
        if record.config["batch_size"] == 1:
            assert (record.state, len(record.history)) == ("complete", EPOCHS)
            continue
        assert (record.state, record.feasible, record.ran, record.map) == ("infeasible", False, True, None)
        assert record.memory_source == "predicted"  # what a CPU's process held is no GPU's memory
        assert record.reason is not None and record.reason.startswith("out of memory (")
        assert "; it held " in record.reason and record.reason.endswith(" of 40 MB")
    assert {record.trial for record in info.front()} <= {2, 3}
    stored = optuna.load_study(study_name="limited", storage=script.limited_url).get_trials()
    for trial in stored:  # as data for the sampler, in both of optuna's forms
        assert trial.state == optuna.trial.TrialState.COMPLETE
        violation = trial.constraints["memory"]
        assert (violation > 0) == (trial.number in (0, 1))
        assert trial.system_attrs["constraints"] == [violation]


@pytest.mark.parametrize("folder", ["cache", "limited"])  # limited: each in a process of its own, on Linux
def test_trials_share_a_cache(script: Script, folder: str) -> None:
    """Whoever runs them: one file of pixels for each split, not one for each trial."""
    assert len(list((script.folder / folder).glob("pixels-*.slots"))) == 2


# --- one trial ------------------------------------------------------------------------------------------------------


def test_whatever_a_trial_raises_becomes_a_result(
    tiny_recipe: Callable[..., Recipe], tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fall(*arguments: Any, **options: Any) -> None:
        raise ZeroDivisionError("by the trial")

    monkeypatch.setattr("cst_search.trial.run.run_trial", fall)
    result = execute(Task(tiny_recipe(), tiny_data, 1, "cpu", 1), 0, {}, lambda entry: None)
    assert result["outcome"] == "failed"
    assert result["reason"].startswith("ZeroDivisionError: by the trial (fall, line ")


def test_ctrl_c_is_not_a_fault_of_the_trial(
    tiny_recipe: Callable[..., Recipe], tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cst_search.trial.run.run_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(Task(tiny_recipe(), tiny_data, 1, "cpu", 1), 0, {}, lambda entry: None)


def test_a_configuration_that_is_no_recipe_fails_that_trial(
    tiny_recipe: Callable[..., Recipe], tiny_data: DetectionData
) -> None:
    task = Task(tiny_recipe(), tiny_data, 1, "cpu", 1)
    result = execute(task, 0, {"method": "head", "batch_size": 0}, lambda entry: None)
    assert result["outcome"] == "failed"
    assert "batch_size must be a whole number from 1" in result["reason"]


# --- what Ray tells ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "result", "error", "state"),
    [
        ("stopped from outside, by Ctrl-C: the next launch takes it up", {"cst_entry": "{}"}, False, "running"),
        ("stopped before its first epoch", None, False, "running"),
        ("the process was killed: it is tried again", None, True, "again"),
        ("killed after an epoch", {"cst_entry": "{}"}, True, "again"),
        ("an outcome", {"cst_result": '{"outcome": "oom", "reason": "x"}'}, False, "infeasible"),
    ],
)
def test_how_a_trial_of_ray_ends(
    tmp_path: Path, why: str, result: dict[str, Any] | None, error: bool, state: str
) -> None:
    from cst_search.execution.ray_tune import StudySearcher

    session = make_study(tmp_path)
    session.begin_launch()
    heard = Heard()
    task: Any = SimpleNamespace(rungs=(), checkpoints=None)
    supply = Supply(SearchJob(session, task, 1, fake_estimate, lambda: False, heard))  # type: ignore[arg-type]
    searcher = StudySearcher(Turns([supply]))
    number = session.study.info().n_ran()
    config = searcher.suggest("a")["config"]
    searcher.on_trial_complete("a", result, error)
    record = next(record for record in session.study.info().trials if record.config == config)
    if error:  # it is handed out again, though the study was to have one trial, and the next time it has failed
        assert heard.of(record.trial) == ["started", "left"] and session.study.info().n_ran() == 0
        assert searcher.suggest("b") == {"task": 0, "trial": record.trial, "config": config, "recorded": "[]"}
        searcher.on_trial_complete("b", result, error)
        assert heard.of(record.trial) == ["started", "left", "started", "finished"]
        record = next(record for record in session.study.info().trials if record.config == config)
        assert record.state == "failed" and record.reason.startswith("its worker process ended twice")
        assert searcher.suggest("c") == "FINISHED" and session.study.info().n_ran() == 1
        return
    assert number == 0 and record.state == state
    assert heard.of(record.trial) == (["started"] if state == "running" else ["started", "finished"])
    session.end_launch()
    if state == "running":
        assert session.study.record(record.trial).state == "interrupted"
    searcher.on_trial_complete("nobody", None, True)  # a trial that the searcher did not give is none of ours


def test_a_first_suggestion_made_ahead_is_the_first_handed_out(tmp_path: Path) -> None:
    from cst_search.execution.ray_tune import StudySearcher

    session, heard = make_study(tmp_path), Heard()
    session.begin_launch()
    task: Any = SimpleNamespace(rungs=(), checkpoints=None)
    supply = Supply(SearchJob(session, task, 2, fake_estimate, lambda: False, heard))  # type: ignore[arg-type]
    searcher = StudySearcher(Turns([supply]))
    searcher.look_ahead()
    (ahead,) = [record for record in session.study.info().trials if record.state == "running"]
    assert searcher.suggest("a") == {"task": 0, "trial": ahead.trial, "config": ahead.config, "recorded": "[]"}
    assert searcher.suggest("b")["trial"] != ahead.trial and searcher.suggest("c") is None


# --- several studies on the same workers ----------------------------------------------------------------------------


def test_the_study_that_had_the_fewest_turns_is_next(tmp_path: Path) -> None:
    """Also counted: what earlier launches ran."""
    task: Any = SimpleNamespace(rungs=(), checkpoints=None)
    supplies = []
    for name, n_before in (("old", 2), ("new", 0)):
        session = make_study(tmp_path, name)
        session.begin_launch()
        for _ in range(n_before):
            run_one(session, scored(0.1))
        job = SearchJob(session, task, 4, fake_estimate, lambda: False, Heard())  # type: ignore[arg-type]
        supplies.append(Supply(job))
    turns, order = Turns(supplies), []
    while (handout := turns.next()) is not None:
        order.append(handout.place)
    assert order == [1, 1, 0, 1, 0, 1]
    assert turns.is_empty() and not turns.is_over()


# --- how Ray starts ---------------------------------------------------------------------------------------------------


def test_ray_starts_beside_on_a_thread_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux ends Ray's processes with the thread that started them; and one start is enough."""
    from cst_search.execution import ray_tune as search

    calls: list[threading.Thread] = []
    go_on = threading.Event()

    def init(*_: Any, **__: Any) -> None:
        calls.append(threading.current_thread())
        go_on.wait(60)

    monkeypatch.setattr(search.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(search.ray, "init", init)
    workers = search.Ray(2, cpus=1)
    workers.prepare()  # returns though init has not
    workers.prepare()
    ready = workers._ready
    assert ready is not None and not ready.done()
    go_on.set()
    ready.result(60)
    assert len(calls) == 1 and calls[0].is_alive() and calls[0] is not threading.main_thread()


def test_where_ray_cannot_start_there_is_one_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cst_search.execution import ray_tune as search

    def init(*_: Any, **__: Any) -> None:
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(search.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(search.ray, "init", init)
    task = Task(None, None, 1, "cpu", 1)  # type: ignore[arg-type]
    session = make_study(tmp_path)
    session.begin_launch()
    with pytest.raises(RunError, match=r"^Ray did not start: The current node timed out .* --in-process runs"):
        job = SearchJob(session, task, 1, fake_estimate, lambda: False, Heard())  # type: ignore[arg-type]
        search.Ray(2, cpus=1).run(job)
    session.end_launch()  # what was suggested ahead is there for the next
    again = open_session(f"sqlite:///{tmp_path / 'studies.db'}", session.study.name)
    again.begin_launch()
    suggestion = again.ask(fake_estimate, 1)  # type: ignore[arg-type]
    assert suggestion is not None and suggestion.again and len(again.study.info().trials) == suggestion.trial + 1
