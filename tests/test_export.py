"""From a point of the front to a recipe that trains anywhere, and what the training leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from studies import fake_estimate, make_study, run_cli, run_one, scored

from cst_search.config import load_recipe, read_yaml
from cst_search.data import DetectionData
from cst_search.errors import ConfigError, StudyError
from cst_search.export import export, exported_recipe, pick_trial
from cst_search.recipe import Recipe
from cst_search.record import MlflowRecord, default_tracking_uri
from cst_search.results import StudyInfo
from cst_search.suggest import Study
from cst_search.weights import load_trained


@pytest.fixture
def study(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> Study:
    """0 dominated, 1 best, 2 knee, 3 smallest, 4 over the budget, 5 failed, 6 still running."""
    recipe = tiny_recipe()
    (tmp_path / "home").mkdir()
    study = make_study(tmp_path / "home", recipe=recipe.to_dict(), data=recipe.data)
    study.begin_launch()
    for i, (quality, measured) in enumerate(((0.2, 800), (0.6, 900), (0.55, 400), (0.1, 300), (0.7, 1100))):
        run_one(study, scored(quality, device_bytes=measured), cst__reduction=4, batch_size=2, lr=0.01 + i / 1000)
    run_one(study, {"outcome": "failed", "reason": "a fault"}, cst__reduction=4, batch_size=2, lr=0.016)
    study.enqueue({"method": "cst", "cst.reduction": 4, "batch_size": 2, "lr": 0.017})
    study.ask(fake_estimate)  # type: ignore[arg-type]
    return study


@pytest.fixture
def info(study: Study) -> StudyInfo:
    return study.info()


@pytest.mark.parametrize(("pick", "trial"), [("best", 1), ("knee", 2), ("trial=3", 3), ("trial=0", 0)])
def test_picks(info: StudyInfo, pick: str, trial: int) -> None:
    assert {r.trial for r in info.front()} == {1, 2, 3}
    assert pick_trial(info, pick).trial == trial


@pytest.mark.parametrize(
    ("pick", "said"),
    [
        ("smallest", "--pick takes knee, best or trial=N; got 'smallest'"),
        ("", "--pick takes knee, best or trial=N; got ''"),
        ("Knee", "--pick takes knee, best or trial=N"),
        ("1", "--pick takes knee, best or trial=N"),
        ("trial=99", "trial 99 does not exist; complete are [0, 1, 2, 3]"),
        ("trial=", "does not exist"),
        ("trial=-1", "does not exist"),
        ("trial=one", "does not exist"),
        ("trial=1.0", "does not exist"),
        ("trial=²", "does not exist"),  # a digit for str.isdigit, no number for int
        ("trial=4", "trial 4 is infeasible"),
        ("trial=5", "trial 5 is failed"),
        ("trial=6", "trial 6 is running"),
    ],
)
def test_bad_picks(info: StudyInfo, pick: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        pick_trial(info, pick)
    assert said in str(caught.value)


@pytest.mark.parametrize("pick", ["knee", "best"])
def test_a_study_without_a_front(tmp_path: Path, pick: str) -> None:
    study = make_study(tmp_path, "empty")
    with pytest.raises(StudyError, match=r"'empty' has no feasible complete trial yet; run `cst-search launch --study"):
        pick_trial(study.info(), pick)


def test_the_exported_recipe_is_complete(info: StudyInfo, tmp_path: Path) -> None:
    path = tmp_path / "new" / "best.yaml"
    record = export(info, "best", path)
    recipe = load_recipe(str(path))
    expected = exported_recipe(info, record)
    assert recipe.to_dict() == json.loads(json.dumps(expected.to_dict()))
    assert set(read_yaml(path)) == set(vars(recipe))  # every field is written: no default of a later version counts
    # the study's recipe with the trial's configuration over it
    assert (recipe.method, recipe.lr, recipe.batch_size) == ("cst", 0.011, 2)
    assert recipe.options["reduction"] == 4
    assert recipe.detector == info.recipe["detector"]
    origin = recipe.origin or {}
    assert (origin["study"], origin["trial"], origin["map"], origin["device_bytes"]) == ("made", 1, 0.6, 900)
    assert (origin["memory_source"], origin["searched_epochs"]) == ("measured", 2)
    header = path.read_text().splitlines()
    assert header[0] == f"# cst-search train best.yaml --data {info.data} --out best"
    assert "Trial 1 of study made: map 0.600 after 2 epochs" in header[2]


def test_a_place_where_nothing_can_be_written(info: StudyInfo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .*file/best.yaml: cannot be written"):
        export(info, "best", tmp_path / "file" / "best.yaml")
    with pytest.raises(ConfigError, match="cannot be written"):
        export(info, "best", tmp_path)  # a folder


def test_an_exported_recipe_trains_elsewhere(
    study: Study, tmp_path: Path, tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    uri = default_tracking_uri(home)
    mirror = MlflowRecord(uri, home / "artifacts", warn=pytest.fail)
    mirror.start(study.info(), "abc", {})
    mirror.sync(study.info())
    assert mirror.close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ran = run_cli("export", "made", "--home", home, "--pick", "best", "-o", elsewhere / "best.yaml", "--json")
    assert ran.code == 0 and json.loads(ran.out)["trial"] == 1

    monkeypatch.chdir(elsewhere)
    ran = run_cli("train", "best.yaml", "--out", "trained", "--device", "cpu", "--home", home, "--json")
    assert (ran.code, json.loads(ran.out)["outcome"]) == (0, "complete"), ran.err
    folder = elsewhere / "trained"
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.json", "recipe.yaml", "weights.safetensors"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == json.loads(ran.out)
    assert set(metrics["final"]) == {"val", "test"}
    assert load_recipe("trained/recipe.yaml").to_dict() == load_recipe("best.yaml").to_dict()
    _, recipe, class_names = load_trained(folder / "weights.safetensors")
    assert (recipe.method, recipe.options["reduction"], class_names) == ("cst", 4, tiny_data.class_names)

    # in MLflow: beside the trial that it came from
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("made")
    assert experiment is not None
    (training,) = client.search_runs([experiment.experiment_id], "tags.`cst.kind` = 'training'")
    (trial,) = client.search_runs([experiment.experiment_id], "tags.`cst.kind` = 'trial' and tags.`cst.trial` = '1'")
    tags = training.data.tags
    assert tags["cst.trial"] == "1" and tags["cst.trial_run"] == trial.info.run_id
    assert tags["mlflow.parentRunId"] == trial.data.tags["mlflow.parentRunId"]
    assert training.data.metrics["val_map"] == pytest.approx(metrics["final"]["val"]["map"])
    assert training.data.params["cst.reduction"] == "4"
    listed = {artifact.path for artifact in client.list_artifacts(training.info.run_id)}
    assert listed == {"metrics.json", "recipe.yaml", "weights.safetensors"}

    # what is there is never overwritten
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    ran = run_cli("train", "best.yaml", "--out", "trained", "--home", home)
    assert ran.code == 2
    assert ran.message == "cst-search: --out trained: exists and is not empty; choose another folder"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_training_that_fails_says_so(tmp_path: Path, info: StudyInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1: the person has done nothing wrong."""
    from cst_search import train
    from cst_search.trial import TrialResult

    def explode(*arguments: Any, **options: Any) -> TrialResult:
        return TrialResult("nonfinite", petl_params=1, trainable_params=1, reason="the loss is nan at step 3")

    monkeypatch.setattr(train, "run_trial", explode)
    export(info, "best", tmp_path / "best.yaml")
    ran = run_cli("train", tmp_path / "best.yaml", "--out", tmp_path / "out", "--home", tmp_path / "home2")
    assert ran.code == 1
    assert ran.message == "cst-search: training ended: the loss is nan at step 3"
    assert not (tmp_path / "out" / "weights.safetensors").exists()
