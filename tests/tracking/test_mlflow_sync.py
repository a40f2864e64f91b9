"""MLflow is brought up to date: what an earlier version, a lost response or a killed launch left out, once each."""

from __future__ import annotations

import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run
from mlflow_runs import SETTINGS, on_front, runs, tagged
from studies import fake_estimate, make_study, open_session, run_cli, run_one, scored

from cst_search.search.session import SearchSession
from cst_search.study.pareto import hypervolume_by_trial
from cst_search.study.tally import Tally
from cst_search.study.trial_attributes import Repeat
from cst_search.tracking import runs as run_entries
from cst_search.tracking.mlflow_record import MlflowRecord

pytestmark = pytest.mark.usefixtures("at_once")


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


def curve(uri: str, parent: Run) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in MlflowClient(uri).get_metric_history(parent.info.run_id, "hypervolume")]


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
