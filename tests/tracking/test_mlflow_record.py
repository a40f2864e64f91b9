"""MLflow as the view of a study: runs, metrics, tags and files of every trial and launch."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow_runs import on_front, runs, tagged
from studies import fake_estimate, make_study, run_one, scored, shorter_rungs

from cst_search.config.recipe import Recipe
from cst_search.search.session import SearchSession
from cst_search.study.objectives import OBJECTIVES
from cst_search.tracking.mlflow_record import MlflowRecord

pytestmark = pytest.mark.usefixtures("at_once")


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
    assert [reach(number, 1, quality) for number, quality in zip(numbers, (0.5, 0.35, 0.1, 0.2), strict=True)] == [
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
