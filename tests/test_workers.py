"""One contract for both forms of workers. The trials are real and tiny: Ray's processes know no fakes.

Every form runs one script (`search_with`), and each test looks at one clause of the contract in what was heard.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import optuna
import pytest
from studies import FakeEstimate, fake_estimate, make_spec, make_study

from cst_search.cache import Cache
from cst_search.data import DetectionData
from cst_search.errors import RunError
from cst_search.memory_limit import CPU_IS_LIMITED
from cst_search.recipe import Recipe
from cst_search.results import Budget, StudyInfo, TrialRecord
from cst_search.suggest import Study, Suggestion
from cst_search.workers import InProcess, Task, Workers, execute

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
LIMITED_SPACE = {"methods": ["head"], "shared": {"batch_size": {"choice": [1, 8]}, "lr": {"float": [1e-3, 1e-2]}}}


def estimate(config: Mapping[str, Any]) -> FakeEstimate:
    return FakeEstimate(100 * config["batch_size"], trainable_params=10)


@dataclass
class Heard:
    """What a search said on its events, and the study when it ended."""

    events: list[tuple[str, int]] = field(default_factory=list)
    entries: list[tuple[int, Mapping[str, Any]]] = field(default_factory=list)
    records: list[TrialRecord] = field(default_factory=list)
    info: StudyInfo | None = None

    def started(self, suggestion: Suggestion) -> None:
        self.events.append(("started", suggestion.trial))

    def progressed(self, trial: int, entry: Mapping[str, Any]) -> None:
        self.events.append(("progressed", trial))
        self.entries.append((trial, entry))

    def finished(self, record: TrialRecord) -> None:
        self.events.append(("finished", record.trial))
        self.records.append(record)

    def of(self, trial: int) -> list[str]:
        return [kind for kind, number in self.events if number == trial]


@dataclass
class Script:
    """The searches that one form ran, one after the other on one study."""

    stopped_before: Heard
    first: Heard  # to 3 trials
    enough: Heard  # to 3 trials again
    stopped: Heard  # to 20, stopped after one
    n_workers: int
    limited: Heard  # another study, to 4, each trial held to LIMIT_BYTES
    limited_url: str
    folder: Path  # of the caches: `cache`, and `limited` of the trials with a limit


def search_with(
    workers: Workers, n_workers: int, recipe: Recipe, data: DetectionData, url: str, folder: Path
) -> Script:
    study = Study.create(url, "contract", make_spec(space=SPACE, budget=Budget(300, None), recipe=recipe.to_dict()))
    study.begin_launch()
    for width, batch_size in ((0.125, 4), (0.25, 2), (0.125, 2), (0.125, 2)):
        # trial 0 is over the budget, 1 raises, 2 and 3 are well
        study.enqueue({"method": "head", "width": width, "batch_size": batch_size})
    task = Task(recipe, data, EPOCHS, "cpu", threads=1, cache=Cache(folder / "cache", 10**8))

    def run(n_trials: int, stop: Callable[[Heard], bool]) -> Heard:
        heard = Heard()
        workers.run(
            study, task, n_trials=n_trials, estimate=estimate, stop=lambda: stop(heard), events=heard  # type: ignore[arg-type]
        )  # fmt: skip
        heard.info = study.info()
        return heard

    def limited() -> Heard:
        other = Study.create(url, "limited", make_spec(space=LIMITED_SPACE, budget=Budget(), recipe=recipe.to_dict()))
        other.begin_launch()
        # first one for each of Ray's two workers
        for i, batch_size in enumerate((8, 8, 1, 1)):
            other.enqueue({"method": "head", "batch_size": batch_size, "lr": 1e-3 * (i + 1)})
        heard = Heard()
        held = dataclasses.replace(task, memory_limit_bytes=LIMIT_BYTES, cache=Cache(folder / "limited", 10**8))
        workers.run(
            other, held, n_trials=4, estimate=estimate, stop=lambda: False, events=heard  # type: ignore[arg-type]
        )  # fmt: skip
        heard.info = other.info()
        return heard

    return Script(
        stopped_before=run(3, lambda heard: True),
        first=run(3, lambda heard: False),
        enough=run(3, lambda heard: False),
        stopped=run(20, lambda heard: bool(heard.records)),
        n_workers=n_workers,
        limited=limited(),
        limited_url=url,
        folder=folder,
    )


@pytest.fixture(scope="module", params=["in-process", "ray"])
def script(
    request: pytest.FixtureRequest,
    tiny_recipe: Callable[..., Recipe],
    tiny_data: DetectionData,
    weights_file: Callable[[str, float], str],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Script]:
    recipe = tiny_recipe(method="head", weights=weights_file("resnet18", 0.125))
    folder = tmp_path_factory.mktemp("workers")
    url = f"sqlite:///{folder}/studies.db"
    if request.param == "in-process":
        yield search_with(InProcess(), 1, recipe, tiny_data, url, folder)
        return
    import ray

    from cst_search.search import Ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        yield search_with(Ray(2, cpus=1), 2, recipe, tiny_data, url, folder)
    finally:
        ray.shutdown()


def test_so_many_trials_ran_in_the_end(script: Script) -> None:
    info = script.first.info
    assert info is not None
    assert info.n_ran() == 3
    assert info.counts()["running"] == info.counts()["interrupted"] == 0
    assert sorted(record.trial for record in script.first.records) == [r.trial for r in info.trials if r.ran]
    assert all(record == info.by_number(record.trial) for record in script.first.records)


def test_what_is_heard_of_a_trial_is_in_order(script: Script) -> None:
    for record in script.first.records:
        n_epochs = EPOCHS if record.state == "complete" else 0
        assert script.first.of(record.trial) == ["started", *["progressed"] * n_epochs, "finished"]


def test_progress_is_the_history_of_the_trial(script: Script) -> None:
    for record in script.first.records:
        heard = [entry for trial, entry in script.first.entries if trial == record.trial]
        assert heard == list(record.history)
        if record.state == "complete":
            assert [entry["epoch"] for entry in heard] == [1, 2]
            assert heard[-1]["map"] == record.map


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

    monkeypatch.setattr("cst_search.trial.run_trial", fall)
    result = execute(Task(tiny_recipe(), tiny_data, 1, "cpu", 1), {}, lambda entry: None)
    assert result["outcome"] == "failed"
    assert result["reason"].startswith("ZeroDivisionError: by the trial (fall, line ")


def test_ctrl_c_is_not_a_fault_of_the_trial(
    tiny_recipe: Callable[..., Recipe], tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cst_search.trial.run_trial", interrupted)
    with pytest.raises(KeyboardInterrupt):
        execute(Task(tiny_recipe(), tiny_data, 1, "cpu", 1), {}, lambda entry: None)


def test_a_configuration_that_is_no_recipe_fails_that_trial(
    tiny_recipe: Callable[..., Recipe], tiny_data: DetectionData
) -> None:
    task = Task(tiny_recipe(), tiny_data, 1, "cpu", 1)
    result = execute(task, {"method": "head", "batch_size": 0}, lambda entry: None)
    assert result["outcome"] == "failed"
    assert "batch_size must be a whole number from 1" in result["reason"]


# --- what Ray tells ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "result", "error", "state"),
    [
        ("stopped from outside, by Ctrl-C: the next launch takes it up", {"cst_entry": "{}"}, False, "running"),
        ("stopped before its first epoch", None, False, "running"),
        ("the process was killed: an outcome with a reason", None, True, "failed"),
        ("killed after an epoch", {"cst_entry": "{}"}, True, "failed"),
        ("an outcome", {"cst_result": '{"outcome": "oom", "reason": "x"}'}, False, "infeasible"),
    ],
)
def test_how_a_trial_of_ray_ends(
    tmp_path: Path, why: str, result: dict[str, Any] | None, error: bool, state: str
) -> None:
    from cst_search.search import StudySearcher

    study = make_study(tmp_path)
    study.begin_launch()
    heard = Heard()
    searcher = StudySearcher(study, fake_estimate, lambda: False, heard)  # type: ignore[arg-type]
    number = study.info().n_ran()
    config = searcher.suggest("a")["config"]
    searcher.on_trial_complete("a", result, error)
    record = next(record for record in study.info().trials if record.config == config)
    assert number == 0 and record.state == state
    assert heard.of(record.trial) == (["started"] if state == "running" else ["started", "finished"])
    if error:
        assert record.reason == "the worker process ended (killed, or out of host memory)"
    study.end_launch()
    if state == "running":
        assert study.record(record.trial).state == "interrupted"
    searcher.on_trial_complete("nobody", None, True)  # a trial that the searcher did not give is none of ours


# --- how Ray starts ---------------------------------------------------------------------------------------------------


def test_ray_starts_beside_on_a_thread_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux ends Ray's processes with the thread that started them; and one start is enough."""
    from cst_search import search

    calls: list[threading.Thread] = []
    go_on = threading.Event()

    def init(**options: Any) -> None:
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
    from cst_search import search

    def init(**options: Any) -> None:
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(search.ray, "is_initialized", lambda: False)
    monkeypatch.setattr(search.ray, "init", init)
    task = Task(None, None, 1, "cpu", 1)  # type: ignore[arg-type]
    with pytest.raises(RunError, match=r"^Ray did not start: The current node timed out .* --in-process runs"):
        search.Ray(2, cpus=1).run(
            make_study(tmp_path), task, n_trials=1, estimate=fake_estimate, stop=lambda: False, events=Heard()  # type: ignore[arg-type]
        )  # fmt: skip
