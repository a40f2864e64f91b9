"""MLflow as the view of a study: complete, rebuilt at will, and never in the way of a search."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import postgres as postgres_of_tests
import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from studies import fake_estimate, make_study, open_session, run_cli, run_one, scored, shorter_rungs

from cst_search.commands.search_loop import follow
from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.search.session import SearchSession
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.pareto import hypervolume_by_trial
from cst_search.study.tally import Tally
from cst_search.study.trial_attributes import Repeat
from cst_search.tracking import connection
from cst_search.tracking import runs as run_entries
from cst_search.tracking.connection import CallQueue, default_tracking_uri
from cst_search.tracking.mlflow_record import MlflowRecord

SETTINGS = {"recipe": {"detector": "fcos", "lr": None}, "space": "cst", "trials": 8, "objectives": "map,device_bytes"}


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all: to make its tables takes seconds."""
    return default_tracking_uri(tmp_path_factory.mktemp("mlflow"))


@pytest.fixture
def session(tmp_path: Path, request: pytest.FixtureRequest) -> SearchSession:
    """Complete, failed, out of memory and rejected trials, and one that still runs."""
    session = make_study(tmp_path, request.node.name)
    session.begin_launch()
    run_one(session, scored(0.4), cst__reduction=4, batch_size=4)  # 600 bytes
    session.enqueue({"method": "cst", "cst.reduction": 1, "batch_size": 8})  # over the budget
    run_one(session, {"outcome": "failed", "reason": "ValueError: x"})
    run_one(session, {"outcome": "oom", "reason": "no memory"})
    run_one(session, {"outcome": "nonfinite", "reason": "nan"})
    run_one(session, scored(0.5, device_bytes=950), cst__reduction=2, batch_size=4)
    session.ask(fake_estimate)  # type: ignore[arg-type]
    return session


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cst_search.tracking.connection._PAUSE_SECONDS", 0.0)


@pytest.fixture
def record(uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """``record(study)`` -> a launch that puts the study into MLflow as it is now; the warnings."""

    def write(session: SearchSession, *, parent: bool = True, artifacts: Any = None) -> list[str]:
        warnings: list[str] = []
        mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=warnings.append)
        if parent:
            mirror.start(session.study.info(), session.describe_launch(SETTINGS))
        mirror.sync(session.study.info())
        if artifacts:
            mirror.finish(session.study.info(), artifacts, "FINISHED")
        assert mirror.close() == (not warnings)
        return warnings

    return write


def runs(uri: str, session: SearchSession, kind: str = "trial") -> list[Run]:
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(session.study.name)
    assert experiment is not None
    found = list(client.search_runs([experiment.experiment_id], f"tags.`cst.kind` = '{kind}'"))
    return sorted(found, key=lambda run: int(run.data.tags.get("cst.trial", 0)))


def tagged(uri: str, session: SearchSession) -> list[int]:
    """What the filter of the user interface shows."""
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name(session.study.name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], 'tags."cst.pareto" = "true"')
    return sorted(int(run.data.tags["cst.trial"]) for run in found)


def on_front(session: SearchSession) -> list[int]:
    return sorted(record.trial for record in session.study.info().front())


def test_one_child_run_for_every_finished_trial(session: SearchSession, record: Any, uri: str) -> None:
    assert record(session) == []
    children, (parent,) = runs(uri, session), runs(uri, session, "launch")
    finished = [r for r in session.study.info().trials if r.state not in ("running", "interrupted")]
    assert [int(run.data.tags["cst.trial"]) for run in children] == [r.trial for r in finished]
    for run, trial in zip(children, finished, strict=True):
        tags = run.data.tags
        assert tags["mlflow.parentRunId"] == parent.info.run_id
        assert (tags["cst.method"], tags["cst.state"]) == (trial.config["method"], trial.state)
        assert tags["cst.feasible"] == str(trial.feasible).lower()
        assert tags["cst.memory_source"] == trial.memory_source
        assert tags.get("cst.reason") == trial.reason
        assert run.info.status == ("FAILED" if trial.state == "failed" else "FINISHED")
        assert set(run.data.params) == set(trial.config)
        assert run.data.metrics["device_bytes"] == trial.device_bytes
        assert run.data.metrics["working_bytes"] == trial.working_bytes
        assert run.data.metrics["working_mb"] == round((trial.working_bytes or 0) / 1e6, 3)
        assert {"active_bytes", "trainable_params", "petl_params"} <= set(run.data.metrics)
        assert not {"delta_bytes", "flops"} & set(run.data.metrics)  # no objectives: MLflow would draw them
        assert (tags["cst.delta_bytes"], tags["cst.flops"]) == (str(trial.delta_bytes), str(trial.flops))
        assert run.data.metrics.get("map") == trial.map
    assert {r.state for r in finished} == {"complete", "infeasible", "failed"}


def test_a_cost_of_detection_is_a_metric_where_the_study_compares_it(tmp_path: Path, record: Any, uri: str) -> None:
    session = make_study(tmp_path, "costs", objectives=(OBJECTIVES["map"], OBJECTIVES["flops"]))
    session.begin_launch()
    run_one(session, scored(0.4))
    assert record(session) == []
    run = runs(uri, session)[-1]
    trial = session.study.info().trials[-1]
    assert run.data.metrics["flops"] == trial.flops and "cst.flops" not in run.data.tags
    assert run.data.tags["cst.delta_bytes"] == str(trial.delta_bytes) and "delta_bytes" not in run.data.metrics


def test_runs_of_an_earlier_version_get_their_working_memory(
    session: SearchSession, record: Any, uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(run_entries, "_COST_METRICS", ("device_bytes", "trainable_params"))
        patch.setattr(run_entries, "in_mb", lambda record: {})
        record(session)
    before = [run.data.metrics for run in runs(uri, session)]
    assert before and not any("working_bytes" in metrics for metrics in before)
    record(session, parent=False)
    after = [run.data.metrics for run in runs(uri, session)]
    added = [{"working_bytes": m["device_bytes"], "working_mb": round(m["device_bytes"] / 1e6, 3)} for m in before]
    assert after == [metrics | more for metrics, more in zip(before, added, strict=True)]  # no context in these


def test_the_figures_of_every_epoch(session: SearchSession, record: Any, uri: str) -> None:
    record(session)
    client, run = MlflowClient(uri), runs(uri, session)[0]
    loss = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in loss] == [(1, 2.0), (2, 1.0)]
    quality = client.get_metric_history(run.info.run_id, "map")
    assert [(m.step, m.value) for m in quality] == [(2, 0.4)]
    assert {"map", "map50", "loss", "images_per_second"} <= set(run.data.metrics)
    assert run.data.params["cst.reduction"] == "4"
    assert run.data.params["cst.mtc_stages"] in ("[2, 3, 4, 5]", "[5]")


def test_a_history_of_any_length_is_taken_whole(tmp_path: Path, record: Any, uri: str) -> None:
    """MLflow takes 1,000 metrics in one call."""
    session = make_study(tmp_path, "long")
    session.begin_launch()
    history = [{"epoch": i, "loss": 1 / i, "images_per_second": 1.0, "map": 0.1, "map50": 0.1} for i in range(1, 301)]
    run_one(session, scored(0.1, history=history))
    assert record(session) == []
    run = runs(uri, session)[-1]  # others may have been rejected before it
    assert len(MlflowClient(uri).get_metric_history(run.info.run_id, "loss")) == 300
    assert run.data.metrics["device_bytes"] == session.study.info().trials[-1].device_bytes


def test_the_parent_has_the_settings_and_the_hypervolume_by_trial(
    session: SearchSession, record: Any, uri: str
) -> None:
    record(session)
    (parent,) = runs(uri, session, "launch")
    assert parent.data.params == {
        "recipe.detector": "fcos", "recipe.lr": "none", "space": "cst", "trials": "8",
        "objectives": "map,device_bytes",
    }  # fmt: skip
    history = MlflowClient(uri).get_metric_history(parent.info.run_id, "hypervolume")
    info = session.study.info()
    settled = [r.trial for r in info.trials if r.state != "running"]
    assert [m.step for m in history] == settled
    values = [m.value for m in history]
    assert values == sorted(values) and values[-1] == pytest.approx(info.hypervolume())


def test_hypervolume_of_trials_that_end_in_another_order(tmp_path: Path, uri: str) -> None:
    """Two workers: the later trial ends first, and the earlier one improves the front."""
    session = make_study(tmp_path, "two-workers")
    session.begin_launch()
    mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=pytest.fail)
    mirror.start(session.study.info(), session.describe_launch({}))
    early, late = (session.ask(fake_estimate) for _ in range(2))  # type: ignore[arg-type]
    assert early is not None and late is not None
    session.tell(late.trial, scored(0.1))
    mirror.sync(session.study.info())
    session.tell(early.trial, scored(0.8, device_bytes=100))
    mirror.sync(session.study.info())
    assert mirror.close()
    (parent,) = runs(uri, session, "launch")
    history = MlflowClient(uri).get_metric_history(parent.info.run_id, "hypervolume")
    volumes = {m.step: m.value for m in history}
    assert len(history) == len(session.study.info().trials)
    assert volumes[early.trial] > 0
    assert volumes[late.trial] == pytest.approx(session.study.info().hypervolume())
    assert parent.data.metrics["hypervolume"] == pytest.approx(session.study.info().hypervolume())


def test_trials_that_were_stopped_early(tmp_path: Path, uri: str) -> None:
    """In MLflow once it is for good; one that went on after all changes the last hypervolume."""
    recipe = Recipe(detector="fcos", backbone="resnet18", weights="none", search_epochs=4).to_dict()
    with shorter_rungs():
        session = make_study(tmp_path, "early", eta=2, recipe=recipe)
    session.begin_launch()
    mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=pytest.fail)
    mirror.start(session.study.info(), session.describe_launch({}))

    def reach(number: int, epoch: int, quality: float) -> bool:
        entry = {"epoch": epoch, "loss": 1.0, "images_per_second": 9.0, "map": quality, "map50": quality}
        goes_on = session.progress(number, entry | {"device_bytes": 900 - round(800 * quality)})
        if not goes_on:
            session.tell(number, {"outcome": "stopped"})
            mirror.sync(session.study.info())
        return goes_on

    trials = [session.ask(fake_estimate) for _ in range(4)]  # type: ignore[arg-type]
    numbers = [trial.trial for trial in trials if trial is not None]
    assert [reach(number, 1, quality) for number, quality in zip(numbers, (0.5, 0.4, 0.1, 0.2), strict=True)] == [
        True, False, False, False,
    ]  # fmt: skip
    session.tell(numbers[0], scored(0.5, device_bytes=500))
    mirror.sync(session.study.info())
    before = session.study.info().hypervolume()
    assert session.promote() is not None
    session.tell(numbers[1], scored(0.9, device_bytes=100))
    mirror.sync(session.study.info())
    session.close_stopped()
    mirror.sync(session.study.info())
    assert mirror.close()

    found = {int(run.data.tags["cst.trial"]): run for run in runs(uri, session)}
    states = {number: found[number].data.tags["cst.state"] for number in numbers}
    assert states == dict(zip(numbers, ("complete", "complete", "pruned", "pruned"), strict=True))
    stopped = found[numbers[2]]
    assert (stopped.info.status, stopped.data.tags["cst.feasible"], stopped.data.tags["cst.pareto"]) == (
        "FINISHED", "true", "false",
    )  # fmt: skip
    assert stopped.data.tags["cst.reason"] == "stopped after epoch 1 of 4"
    quality = MlflowClient(uri).get_metric_history(stopped.info.run_id, "map")
    assert [(m.step, m.value) for m in quality] == [(1, 0.1)]
    (parent,) = runs(uri, session, "launch")
    assert (
        parent.data.metrics["hypervolume"] == pytest.approx(session.study.info().hypervolume()) != pytest.approx(before)
    )


def test_incremental_record_equals_one_sync_at_the_end(
    tmp_path: Path, uri: str, record: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What `add` makes of a study of two workers, the server away for a while, is what `sync` makes of it at the end.

    A finish costs calls for what it changed: its own run, tags of the front, its hypervolume.
    """
    session = make_study(tmp_path, "by-trial")
    session.begin_launch()
    run_one(session, scored(0.2))  # of an earlier launch, and not in MLflow
    warnings: list[str] = []
    calls: Counter[str] = Counter()

    def counted(name: str) -> None:
        original = getattr(MlflowClient, name)

        def call(self: MlflowClient, *arguments: Any, **options: Any) -> Any:
            calls[name] += 1
            if away and name == "create_run":
                raise ConnectionError("away")
            return original(self, *arguments, **options)

        monkeypatch.setattr(MlflowClient, name, call)

    away = False
    for name in ("search_runs", "get_experiment_by_name", "create_run", "log_batch", "set_tag", "set_terminated"):
        counted(name)
    mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=warnings.append)
    mirror.start(session.study.info(), session.describe_launch({}))
    tally, n_told = Tally(session.study.info()), 0
    running = [session.ask(fake_estimate)]  # type: ignore[arg-type]
    for i, quality in enumerate([0.3, 0.1, 0.5, 0.4, 0.1, 0.2, 0.6, 0.1, 0.1, 0.1]):
        running.append(session.ask(fake_estimate))  # type: ignore[arg-type]
        ended = running.pop(i % 2)
        assert ended is not None
        away = i in (4, 5)
        session.tell(ended.trial, scored(quality, device_bytes=300 + 10 * i))
        new = session.study.finished(since=n_told)
        n_told += len(new)
        before = set(tally.front.members)
        tally.add(new, session.study.first_running())
        calls.clear()
        mirror.add(session.study.name, new, tally)
        taken = threading.Event()
        mirror._calls.put(taken.set)
        assert taken.wait(120)
        if i >= 7:
            assert calls["create_run"] == calls["set_terminated"] == len(new)
            assert calls["log_batch"] - len(new) in (0, 1)
            assert calls["set_tag"] == len((set(tally.front.members) ^ before) - {r.trial for r in new})
            assert calls["search_runs"] == calls["get_experiment_by_name"] == 0
    assert len(warnings) == 1 and "ConnectionError: away" in warnings[0]
    mirror.sync(session.study.info())  # as at the end of a launch
    mirror.close()

    def everything() -> Any:
        (parent,) = runs(uri, session, "launch")
        curve = MlflowClient(uri).get_metric_history(parent.info.run_id, "hypervolume")
        trials = {int(run.data.tags["cst.trial"]): run.data.to_dictionary() for run in runs(uri, session)}
        assert len(trials) == len(runs(uri, session))
        return trials, [(m.step, m.value) for m in curve]

    trials, curve = everything()
    info = session.study.info()
    assert set(trials) == {r.trial for r in info.trials if r.state not in ("running", "interrupted")}
    assert tagged(uri, session) == on_front(session)
    growth = hypervolume_by_trial(info.values(), info.objectives, info.reference)
    n_settled = session.study.first_running()
    assert [step for step, _ in curve] == list(range(n_settled))
    assert [value for _, value in curve] == pytest.approx(growth[:n_settled])
    record(session, parent=False)
    assert everything() == (trials, curve)  # nothing was left to do


def test_the_tag_follows_the_front(session: SearchSession, record: Any, uri: str) -> None:
    record(session)
    before = on_front(session)
    assert tagged(uri, session) == before and len(before) >= 2
    # better in everything: what stood there drops off
    run_one(session, scored(0.9, device_bytes=10), method="head", batch_size=2)
    record(session)
    assert tagged(uri, session) == on_front(session) == [session.study.info().trials[-1].trial]
    everyone = {run.data.tags["cst.pareto"] for run in runs(uri, session)}
    assert everyone == {"true", "false"}


def test_repeated_sync_changes_nothing(session: SearchSession, record: Any, uri: str) -> None:
    record(session)
    first = [(run.info.run_id, run.data.to_dictionary()) for run in runs(uri, session)]
    record(session, parent=False)
    session.end_launch()
    session.begin_launch()
    record(session)  # another launch: a parent of its own, no child twice
    assert [(run.info.run_id, run.data.to_dictionary()) for run in runs(uri, session)] == first
    assert len(runs(uri, session, "launch")) == 2


def test_sync_writes_a_whole_study_to_another_mlflow(
    session: SearchSession, record: Any, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch, a confirmation and another launch; MLflow took none of it, or the last trials alone are missing."""
    session.end_launch()
    names = [session.describe_launch(SETTINGS).id]
    session.begin_launch(kind="confirm")
    names.append(session.describe_launch({"seeds": 2}).id)
    session.plan([Repeat(session.study.info().front()[0].trial, 1, 4)])
    run_one(session, scored(0.45))
    session.end_launch()
    session = open_session(session.study.url, session.study.name)
    session.begin_launch()
    names.append(session.describe_launch(SETTINGS).id)
    run_one(session, scored(0.9, device_bytes=500))
    session.end_launch()

    for _ in range(2):  # again, it changes nothing
        ran = run_cli("sync", session.study.name, "--home", tmp_path, "--tracking-uri", uri)
        assert ran.code == 0 and f"has study {session.study.name}" in ran.out, ran
        info = session.study.info()
        (repeat,), children = runs(uri, session, "repeat"), runs(uri, session)
        parents = {
            run.data.tags["cst.launch"]: run for run in (*runs(uri, session, "launch"), *runs(uri, session, "confirm"))
        }
        assert list(parents) and set(parents) == set(names) and len(runs(uri, session, "launch")) == 2
        assert [parents[name].info.status for name in names] == ["FINISHED"] * 3
        assert parents[names[0]].data.params["trials"] == "8" and parents[names[1]].data.params["seeds"] == "2"
        finished = {r.trial: r for r in info.trials if r.state in ("complete", "failed", "infeasible")}
        assert [int(run.data.tags["cst.trial"]) for run in children] == sorted(finished)
        for run in (*children, repeat):
            number = int(run.data.tags["cst.trial"])
            launch = finished[number].launch if number in finished else names[1]
            assert run.data.tags["mlflow.parentRunId"] == parents[str(launch)].info.run_id
        assert tagged(uri, session) == sorted(r.trial for r in info.front())
        history = [
            (m.step, m.value)
            for name in (names[0], names[2])
            for m in MlflowClient(uri).get_metric_history(parents[name].info.run_id, "hypervolume")
        ]
        growth = hypervolume_by_trial(info.values(), info.objectives, info.reference)
        assert sorted(history) == list(zip([r.trial for r in info.trials], growth, strict=True))
        files = MlflowClient(uri).list_artifacts(parents[names[2]].info.run_id, "pareto")
        assert sorted(Path(f.path).name for f in files) == [
        "front-small.png", "front.html", "front.json", "front.png"
    ]  # fmt: skip
        confirmed = next(run for run in children if run.data.metrics.get("n_seeds") == 2)
        assert confirmed.data.tags["cst.verdict"]

    away = run_cli("sync", session.study.name, "--home", tmp_path, "--tracking-uri", "http://127.0.0.1:9")
    assert away.code == 1 and "MLflow did not take a record" in away.err


def test_sync_leaves_the_trials_of_a_running_launch_to_it(session: SearchSession, uri: str, tmp_path: Path) -> None:
    """To sync beside it makes nothing twice."""
    session.describe_launch(SETTINGS)
    assert run_cli("sync", session.study.name, "--home", tmp_path, "--tracking-uri", uri).code == 0
    assert runs(uri, session) == runs(uri, session, "launch") == []
    session.end_launch()
    assert run_cli("sync", session.study.name, "--home", tmp_path, "--tracking-uri", uri).code == 0
    assert len(runs(uri, session)) > 3 and len(runs(uri, session, "launch")) == 1


def test_launch_started_before_its_server_still_gets_a_run(
    session: SearchSession, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=warnings.append)
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "get_experiment_by_name", lambda *_: 1 / 0)
        mirror.start(session.study.info(), session.describe_launch(SETTINGS))
        done = threading.Event()
        mirror._calls.put(done.set)
        assert done.wait(60) and len(warnings) == 1
    mirror.sync(session.study.info())
    mirror.finish(session.study.info(), {}, "FINISHED")
    mirror.close()
    (parent,) = runs(uri, session, "launch")
    assert parent.info.status == "FINISHED" and parent.data.metrics["hypervolume"] > 0
    assert {run.data.tags["mlflow.parentRunId"] for run in runs(uri, session)} == {parent.info.run_id}


@pytest.mark.parametrize("is_same_launch", [True, False])
def test_a_run_that_was_cut_off_is_completed(
    session: SearchSession, record: Any, uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_same_launch: bool
) -> None:
    """The server goes away between making the run and filling it; or the launch is killed there."""
    original = MlflowClient.set_terminated
    calls = []

    def fail_twice(self: MlflowClient, *arguments: Any, **options: Any) -> None:
        calls.append(arguments)
        if len(calls) <= 2:
            raise ConnectionError("gone")
        original(self, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "set_terminated", fail_twice)
    warnings: list[str] = []
    mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=warnings.append)
    mirror.sync(session.study.info())
    if is_same_launch:
        mirror.sync(session.study.info())
    mirror.close()
    assert len(warnings) == 1 and "ConnectionError: gone" in warnings[0]
    if not is_same_launch:
        record(session)
    finished = [r.trial for r in session.study.info().trials if r.state != "running"]
    children = runs(uri, session)
    assert [int(run.data.tags["cst.trial"]) for run in children] == finished
    assert {run.info.status for run in children} == {"FINISHED", "FAILED"}
    assert tagged(uri, session) == on_front(session)


def test_lost_response_creates_no_second_run(
    session: SearchSession, uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The server made the run, and went away before it said so."""
    original, asked = MlflowClient.create_run, []

    def lose_the_answer(self: MlflowClient, *arguments: Any, **options: Any) -> Any:
        made = original(self, *arguments, **options)
        asked.append(made)
        if len(asked) in (1, 2, 5):
            raise ConnectionError("reset")
        return made

    monkeypatch.setattr(MlflowClient, "create_run", lose_the_answer)
    batch, batches = MlflowClient.log_batch, []

    def fail_once(self: MlflowClient, *arguments: Any, **options: Any) -> None:
        batches.append(arguments)
        if len(batches) == 1:  # the settings of the launch
            raise ConnectionError("reset")
        batch(self, *arguments, **options)

    monkeypatch.setattr(MlflowClient, "log_batch", fail_once)
    warnings: list[str] = []
    mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=warnings.append)
    mirror.start(session.study.info(), session.describe_launch(SETTINGS))
    for _ in range(3):
        mirror.sync(session.study.info())
    mirror.finish(session.study.info(), {}, "FINISHED")
    mirror.training(
        session.study.name, {"trial": 1}, {"outcome": "complete", "seconds": 1, "history": [], "final": {}}, []
    )
    mirror.close()
    finished = [r.trial for r in session.study.info().trials if r.state != "running"]
    assert [int(run.data.tags["cst.trial"]) for run in runs(uri, session)] == finished
    assert len(runs(uri, session, "launch")) == len(runs(uri, session, "training")) == 1
    assert runs(uri, session, "launch")[0].data.params["trials"] == str(SETTINGS["trials"])
    assert len(asked) == len(finished) + 2


def test_sync_delivers_what_the_server_missed_at_the_end_of_a_launch(
    session: SearchSession, uri: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It took all trials; it was away when the launch ended, or the launch was killed."""
    first = session.describe_launch(SETTINGS)
    mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=lambda _: None)
    mirror.start(session.study.info(), first)
    mirror.sync(session.study.info())
    with monkeypatch.context() as patch:
        patch.setattr(MlflowClient, "set_tag", lambda *_: 1 / 0)
        mirror.finish(session.study.info(), {}, "FINISHED")
        assert not mirror.close()
    assert [run.info.status for run in runs(uri, session, "launch")] == ["RUNNING"]
    before = curve(uri, runs(uri, session, "launch")[0])
    session.end_launch()
    assert run_cli("sync", session.study.name, "--home", tmp_path, "--tracking-uri", uri).code == 0
    (parent,) = runs(uri, session, "launch")
    assert parent.info.status == "FINISHED" and "mlflow.note.content" in parent.data.tags
    assert [f.path for f in MlflowClient(uri).list_artifacts(parent.info.run_id)] == ["export", "pareto"]
    after = curve(uri, parent)
    assert set(before) <= set(after) and len({step for step, _ in after}) == len(after)

    second = open_session(session.study.url, session.study.name)
    second.begin_launch()
    mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=lambda _: None)
    mirror.start(second.study.info(), second.describe_launch(SETTINGS))
    assert mirror.close()
    second.end_launch()  # its record was killed before it could say so
    third = open_session(session.study.url, session.study.name)
    third.begin_launch()
    mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=lambda _: None)
    mirror.start(third.study.info(), third.describe_launch(SETTINGS))
    mirror.sync(third.study.info())
    mirror.finish(third.study.info(), {}, "FINISHED")
    assert mirror.close()
    assert [run.info.status for run in runs(uri, session, "launch")] == ["FINISHED"] * 3


def curve(uri: str, parent: Run) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(parent.info.run_id, "hypervolume")]


def test_artifacts_and_the_end_of_the_parent(session: SearchSession, record: Any, uri: str, tmp_path: Path) -> None:
    (tmp_path / "front.json").write_text("{}")
    (tmp_path / "best.yaml").write_text("detector: fcos")
    assert record(session, artifacts={"pareto": [tmp_path / "front.json"], "export": [tmp_path / "best.yaml"]}) == []
    (parent,) = runs(uri, session, "launch")
    assert parent.info.status == "FINISHED"
    client = MlflowClient(uri)
    for folder, name in (("pareto", "front.json"), ("export", "best.yaml")):
        listed = client.list_artifacts(parent.info.run_id, folder)
        assert [artifact.path for artifact in listed] == [f"{folder}/{name}"]


def test_a_deleted_experiment_is_one_warning(session: SearchSession, record: Any, uri: str) -> None:
    record(session)
    client = MlflowClient(uri)
    client.delete_experiment(client.get_experiment_by_name(session.study.name).experiment_id)  # type: ignore[union-attr]
    (warning,) = record(session)
    assert "was deleted in MLflow; restore it there" in warning


def test_a_database_appears_whole_or_not_at_all(
    session: SearchSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch that was killed while MLflow made its tables left a file that MLflow never took again."""
    path = tmp_path / "new" / "mlflow.db"
    seen: list[bool] = []
    original = MlflowClient.search_experiments

    def look(self: MlflowClient, *arguments: Any, **options: Any) -> Any:
        found = original(self, *arguments, **options)
        seen.append(path.exists())
        return found

    monkeypatch.setattr(MlflowClient, "search_experiments", look)
    mirror = MlflowRecord(f"sqlite:///{path}", tmp_path / "artifacts", warn=pytest.fail)
    mirror.sync(session.study.info())
    assert mirror.close()
    assert seen == [False]
    assert [file.name for file in path.parent.iterdir()] == ["mlflow.db"]
    assert tagged(f"sqlite:///{path}", session) == on_front(session)


def test_what_a_killed_launch_left_of_a_database_is_removed(tmp_path: Path) -> None:
    home, hour = socket.gethostname(), 3600
    left = {f"{home}-4194305-1": 0, "4194305-1": 2 * hour, "elsewhere-1-1": 2 * hour}  # name -> seconds since
    kept = {f"{home}-{os.getpid()}-1": 2 * hour, "elsewhere-1-2": 0}
    for name, age in (left | kept).items():
        part = tmp_path / f"mlflow.db.{name}.part"
        part.touch()
        os.utime(part, (time.time() - age,) * 2)
    (tmp_path / f"mlflow.db.{home}-4194305-1.part-journal").touch()
    (tmp_path / "mlflow.db").touch()
    connection._make_database(default_tracking_uri(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"mlflow.db", *(f"mlflow.db.{name}.part" for name in kept)}


def test_a_close_that_runs_out_of_time_says_how_to_deliver_the_rest() -> None:
    """And what MLflow logs of its own, SQL and tracebacks, is not printed."""
    said: list[str] = []
    go = threading.Event()
    calls = CallQueue("http://nowhere", said.append)
    calls.studies |= {"made", "of mine"}
    calls.put(lambda: bool(go.wait(30)))
    assert not calls.close(0.05)
    go.set()
    assert said == ["MLflow has not taken everything within 0 s; the rest is delivered by:  "
                    "cst-search sync made 'of mine'"]  # fmt: skip
    assert not logging.getLogger("mlflow.store.db.utils").isEnabledFor(logging.ERROR)


# --- a server that is not there -------------------------------------------------------------------------------------

SECRET = "hunter2"


@pytest.mark.parametrize(
    "address", [f"http://me:{SECRET}@127.0.0.1:9", f"http://me:{SECRET}@127.0.0.1:9/", f"nosuch://me:{SECRET}@host"]
)
def test_a_fault_is_one_line_without_the_password(
    session: SearchSession, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, address: str
) -> None:
    warnings: list[str] = []
    mirror = MlflowRecord(address, tmp_path / "artifacts", warn=warnings.append)
    mirror.start(session.study.info(), session.describe_launch(SETTINGS))
    for _ in range(3):
        mirror.sync(session.study.info())
    assert not mirror.close()
    (warning,) = warnings
    assert "MLflow did not take a record" in warning and "the study keeps it" in warning
    assert SECRET not in warning and "\n" not in warning


def test_a_launch_ends_well_without_its_server_and_the_next_one_delivers(
    tmp_path: Path, tiny_folder: Path, tiny_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    home = tmp_path / "home"
    write_yaml(tmp_path / "recipe.yaml", tiny_recipe(method="head").to_dict(), "test")
    write_yaml(
        tmp_path / "space.yaml", {"methods": ["head"], "shared": {"lr": {"float": [1e-3, 1e-2], "log": True}}}, "test"
    )
    command = ["launch", "--in-process", "--data", tiny_folder, "--recipe", tmp_path / "recipe.yaml", "--space",
               tmp_path / "space.yaml", "--study", "lonely", "--home", home]  # fmt: skip
    ran = run_cli(*command, "--trials", 2, "--tracking-uri", f"http://me:{SECRET}@127.0.0.1:9")
    assert ran.code == 0
    assert ran.out.count("MLflow did not take a record") == 1
    assert "http://me:***@127.0.0.1:9" in ran.out
    session = open_session(f"sqlite:///{home / 'studies.db'}", "lonely")
    assert session.study.info().counts()["complete"] == 2
    assert (home / "lonely" / "front.json").exists()
    for path in home.rglob("*"):
        assert not path.is_file() or SECRET.encode() not in path.read_bytes(), path
    assert SECRET not in ran.out + ran.err

    ran = run_cli(*command, "--trials", 3, "--tracking-uri", uri)
    assert (ran.code, "did not take" in ran.out) == (0, False)
    assert [int(run.data.tags["cst.trial"]) for run in runs(uri, session)] == [0, 1, 2]
    assert tagged(uri, session) == on_front(session)
    assert (home / "artifacts" / "lonely").is_dir()  # a bare database: not into ./mlruns of the current folder


def test_concurrent_launches_record_each_trial_once(uri: str, tmp_path: Path, request: Any) -> None:
    """Two at work bring their own, each told of both; one dies without, and the other brings the rest at its end."""
    first = make_study(tmp_path, request.node.name)
    first.begin_launch(shares_machine=True)
    second = open_session(first.study.url, first.study.name)
    second.begin_launch(shares_machine=True)
    warnings: list[str] = []
    mirrors = [MlflowRecord(uri, tmp_path / "artifacts", warn=warnings.append) for _ in range(2)]
    for session, mirror in zip((first, second), mirrors, strict=True):
        mirror.start(session.study.info(), session.describe_launch(SETTINGS))
    reports = [follow(session.study, mirror) for session, mirror in zip((first, second), mirrors, strict=True)]
    for turn in range(4):
        run_one((first, second)[turn % 2], scored(0.1 * turn))
        for session in (first, second):
            session.study.info()  # reads of the other's
        for report in reports:
            report()
    mirrors[0].sync(first.study.info())
    silent = run_one(second, scored(0.9))  # of which its mirror is not told
    second.end_launch()
    mirrors[1].close()
    assert not warnings
    info = first.study.info()
    mirrors[0].sync(info)
    mirrors[0].finish(first.study.info(), {}, "FINISHED")
    assert mirrors[0].close()
    found = {int(run.data.tags["cst.trial"]): run for run in runs(uri, first)}
    wanted = [r.trial for r in info.trials if r.state not in ("running", "interrupted")]
    assert len(runs(uri, first)) == len(found) and sorted(found) == wanted and silent.trial in found
    parents = {run.data.tags["cst.launch"]: run.info.run_id for run in runs(uri, first, "launch")}
    assert len(parents) == 2
    for record in info.trials:
        assert found[record.trial].data.tags["mlflow.parentRunId"] == parents[record.launch or ""]


def test_mlflow_in_postgresql(session: SearchSession, record: Any, postgres: Any, tmp_path: Path) -> None:
    """Without a server between: all of it, again and again; the password stays in the address."""
    uri = str(postgres.database("mlflow"))
    (tmp_path / "report.txt").write_text("the front")
    mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=pytest.fail)
    launch = session.describe_launch(SETTINGS)
    for _ in range(2):
        mirror.start(session.study.info(), launch)
        mirror.sync(session.study.info())
        mirror.finish(session.study.info(), {"pareto": [tmp_path / "report.txt"]}, "FINISHED")
    assert mirror.close()
    children, (parent,) = runs(uri, session), runs(uri, session, "launch")
    assert len(children) == len([r for r in session.study.info().trials if r.state != "running"])
    assert tagged(uri, session) == on_front(session)
    assert (tmp_path / "artifacts" / session.study.name / parent.info.run_id / "artifacts/pareto/report.txt").is_file()
    everything = str([run.to_dictionary() for run in (*children, parent)])
    assert postgres_of_tests.PASSWORD not in everything and parent.info.status == "FINISHED"
