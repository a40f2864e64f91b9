"""From a point of the front to a recipe that trains anywhere, and what the training leaves behind."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
import torch
from mlflow import MlflowClient
from rich.console import Console
from safetensors.torch import load_file
from studies import fake_estimate, make_study, run_cli, run_one, scored

from cst_search.commands import export as exports
from cst_search.commands import train as training
from cst_search.commands.dataset import image_sizes
from cst_search.commands.export import export, exported_recipe, pick_trial
from cst_search.commands.options import ReadingOptions
from cst_search.config.loading import load_recipe, read_yaml
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.detector.weights import load_trained
from cst_search.errors import ConfigError, RunError, StudyError
from cst_search.memory.estimate import worst_input
from cst_search.search.session import SearchSession
from cst_search.study.records import Budget, StudyInfo
from cst_search.tracking.connection import default_tracking_uri
from cst_search.tracking.mlflow_record import MlflowRecord
from cst_search.trial.cost import predict


@pytest.fixture
def session(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> SearchSession:
    """0 dominated, 1 best, 2 knee, 3 smallest, 4 over the budget, 5 failed, 6 still running."""
    recipe = tiny_recipe()
    (tmp_path / "home").mkdir()
    session = make_study(tmp_path / "home", recipe=recipe.to_dict(), data=recipe.data)
    session.begin_launch()
    for i, (quality, measured) in enumerate(((0.2, 800), (0.6, 900), (0.55, 400), (0.1, 300), (0.7, 1100))):
        run_one(session, scored(quality, device_bytes=measured), cst__reduction=4, batch_size=2, lr=0.01 + i / 1000)
    run_one(session, {"outcome": "failed", "reason": "a fault"}, cst__reduction=4, batch_size=2, lr=0.016)
    session.enqueue({"method": "cst", "cst.reduction": 4, "batch_size": 2, "lr": 0.017})
    session.ask(fake_estimate)  # type: ignore[arg-type]
    return session


@pytest.fixture
def info(session: SearchSession) -> StudyInfo:
    return session.study.info()


@pytest.mark.parametrize(("pick", "trial"), [("best", 1), ("knee", 2), ("trial=3", 3), ("trial=0", 0)])
def test_picks(info: StudyInfo, pick: str, trial: int) -> None:
    assert {r.trial for r in info.front()} == {1, 2, 3}
    assert pick_trial(info, pick).trial == trial


@pytest.mark.parametrize("suggested", ["knee", "best"])
def test_without_a_pick_it_is_the_suggested_point(
    info: StudyInfo, suggested: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(StudyInfo, "suggested_pick", lambda info: suggested)
    assert pick_trial(info, None) == pick_trial(info, suggested)
    assert pick_trial(info, "knee") != pick_trial(info, "best")


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
    session = make_study(tmp_path, "empty")
    with pytest.raises(
        StudyError, match=r"'empty' has no feasible complete trial yet; continue it with:  cst-search resume"
    ):
        pick_trial(session.study.info(), pick)


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
    assert header[0] == f"# cst-search train best.yaml --data {info.data} --out trained"
    assert "Trial 1 of study made: map 0.600 after 2 epochs" in header[2]


def test_a_place_where_nothing_can_be_written(info: StudyInfo, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output .*file/best.yaml: cannot be written"):
        export(info, "best", tmp_path / "file" / "best.yaml")
    with pytest.raises(ConfigError, match="cannot be written"):
        export(info, "best", tmp_path)  # a folder


# --- verified -------------------------------------------------------------------------------------------------------

# what `measure` prints; the parameters are those of trial 1, made up by `fake_estimate`
FOUND: dict[str, Any] = {
    "outcome": "complete", "reason": None, "device": "a GPU", "torch": "2.9", "steps": 4, "step_seconds": 0.1,
    "loss": 2.0, "petl_params": 10, "trainable_params": 1200, "predicted_bytes": 500, "memory_source": "measured",
    "device_bytes": 950, "process_bytes": 980, "process_source": "nvidia-smi",
}  # fmt: skip
ON_CPU = {"device": "cpu", "memory_source": "predicted", "device_bytes": None, "process_bytes": None,
          "process_source": None}  # fmt: skip


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[list[str]]]:
    """``measured(**changes)``: have the fresh process say FOUND with changes. Returns the commands that were run."""

    def say(returncode: int = 0, stdout: str | None = None, stderr: str = "", **changes: Any) -> list[list[str]]:
        commands: list[list[str]] = []

        def run(command: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
            commands.append(command)
            text = json.dumps(FOUND | changes) if stdout is None else stdout
            return subprocess.CompletedProcess(command, returncode, text, stderr)

        monkeypatch.setattr(exports.subprocess, "run", run)
        return commands

    return say


@pytest.mark.parametrize(
    ("why", "changes", "n_bytes", "source"),
    [
        ("the device says it of this process", {}, 980, "measured"),
        ("it does not: the allocator and the stated context", {"process_source": "nvidia-smi of the device"}, 950,
         "measured"),
        ("exactly the budget", {"process_bytes": 1000}, 1000, "measured"),
        ("no GPU", ON_CPU, 500, "predicted"),
        # this trial has measured 900 bytes on a GPU, which counts for more than what is predicted
        ("no GPU, and predicted above the budget", ON_CPU | {"predicted_bytes": 1100}, 1100, "predicted"),
    ],
)  # fmt: skip
def test_verification_results_are_written_into_the_recipe(
    info: StudyInfo, tmp_path: Path, measured: Any, why: str, changes: dict[str, Any], n_bytes: int, source: str
) -> None:
    commands = measured(**changes)
    record = pick_trial(info, "best")
    verified = exports.verify(info, record, tmp_path / "home")
    ((_, _, _, _, *arguments),) = commands
    assert arguments == ["--data", info.data, "--cache", str(tmp_path / "home" / "checked-images.json"),
                         "--budget-mem", "1000B"]  # fmt: skip
    export(info, "best", tmp_path / "best.yaml", verified)
    origin = load_recipe(str(tmp_path / "best.yaml")).origin or {}
    assert (origin["verified"]["device_bytes"], origin["verified"]["memory_source"]) == (n_bytes, source)
    assert origin["verified"]["data"] == "dataset"
    assert origin["device_bytes"] == (n_bytes if source == "measured" else 900)  # the record's, on a GPU


REFUSED: list[tuple[str, str, dict[str, Any], list[str]]] = [
    # why, which trial, what differs from FOUND, what is said
    ("other parameters", "trial=1", {"trainable_params": 1300, "petl_params": 11},
     ["1,300 trainable parameters, in the record 1,200", "11 parameters of the method, in the record 10"]),
    ("more memory than the budget", "trial=1", {"process_bytes": 1001},
     ["it needs 1 kB (measured) on a GPU, 1 bytes above the budget of 1 kB"]),
    ("it ran out of the budget", "trial=1", {"outcome": "oom", "reason": "CUDA out of memory.", "device_bytes": 1200},
     ["memory ran out (CUDA out of memory.)", "200 bytes above the budget"]),
    ("it does not train", "trial=1", {"outcome": "nonfinite", "reason": "the loss is nan at batch 1"},
     ["it does not train here: the loss is nan at batch 1"]),
    ("this machine's own memory ran out", "trial=1", ON_CPU | {"outcome": "oom", "reason": "std::bad_alloc"},
     ["it does not train here: std::bad_alloc"]),
    ("no GPU, predicted in the search, and above the budget now", "trial=7", ON_CPU | {"predicted_bytes": 1100},
     ["it needs 1.1 kB (predicted) on cpu, 100 bytes above the budget of 1 kB"]),
]  # fmt: skip


@pytest.mark.parametrize(("why", "pick", "changes", "said"), REFUSED, ids=[row[0] for row in REFUSED])
def test_trials_that_differ_from_their_record_are_refused_and_not_written(
    session: SearchSession, tmp_path: Path, measured: Any, why: str, pick: str, changes: dict[str, Any], said: list[str]
) -> None:
    run_one(session, scored(0.3), cst__reduction=4, batch_size=2, lr=0.018)  # trial 7: its memory is predicted
    measured(returncode=1 if "outcome" in changes else 0, **changes)
    target = tmp_path / "new" / "best.yaml"
    ran = run_cli("export", "made", "--home", tmp_path / "home", "--pick", pick, "-o", target)
    assert ran.code == 1 and ran.out == ""
    number = pick.partition("=")[2]
    assert f" cst-search: trial {number} of study 'made' was not exported: " in ran.message
    assert all(text in ran.message for text in said), ran.message
    assert ran.message.endswith("write it as it is recorded with --no-verify")
    assert not target.parent.exists()


@pytest.mark.parametrize(
    ("why", "answer", "said"),
    [
        ("a mistake", {"returncode": 2, "stderr": "noise\nweights DEFAULT: could not be fetched"},
         "could not be verified: weights DEFAULT: could not be fetched. --no-verify writes"),
        ("killed", {"returncode": -9}, "its process ended by SIGKILL, perhaps as this machine's memory ran out"),
        ("nothing at all", {"returncode": 1}, "it said nothing"),
    ],
)  # fmt: skip
def test_a_verification_that_does_not_come_about(
    info: StudyInfo, tmp_path: Path, measured: Any, why: str, answer: dict[str, Any], said: str
) -> None:
    measured(stdout="", **answer)
    with pytest.raises(RunError, match=re.escape(said)):
        exports.verify(info, pick_trial(info, "best"), tmp_path)


def test_verification_without_the_dataset_uses_its_image_sizes(
    session: SearchSession, tmp_path: Path, measured: Any
) -> None:
    commands = measured(**ON_CPU)
    inputs = {"n_classes": 3, "max_boxes": 9, "sizes": [[480, 640], [640, 480]]}
    recipe = dict(session.study.info().recipe) | {"data": str(tmp_path / "gone")}
    info = dataclasses.replace(session.study.info(), recipe=recipe, inputs=inputs)
    verified = exports.verify(info, pick_trial(info, "best"), tmp_path)
    assert commands[0][4:12] == ["--n-classes", "3", "--height", "96", "--width", "96", "--boxes", "9"]
    assert verified["data"] == "synthetic"
    with pytest.raises(StudyError, match=r"the dataset of study 'made' is not at .*gone.*; put it there, or give"):
        exports.verify(dataclasses.replace(info, inputs={}), pick_trial(info, "best"), tmp_path)


def test_a_place_that_cannot_be_written_is_said_before_the_work(info: StudyInfo, tmp_path: Path, measured: Any) -> None:
    commands = measured()
    (tmp_path / "file").write_text("")
    for target in (tmp_path / "file" / "best.yaml", tmp_path):
        ran = run_cli("export", "made", "--home", tmp_path / "home", "--pick", "best", "-o", target)
        assert (ran.code, "cannot be written" in ran.message) == (2, True), ran
    assert commands == []


def test_a_configuration_is_really_verified(
    tiny_recipe: Callable[..., Recipe], tiny_data: DetectionData, tmp_path: Path
) -> None:
    """From a study with true figures, in a real process: what CI has of it, which is no GPU. It takes 4 s."""
    recipe = tiny_recipe(method="head", loader_workers=1)
    cost = predict(recipe, 3, worst_input(recipe, image_sizes(tiny_data), 3))
    session = make_study(
        tmp_path,
        recipe=recipe.to_dict(),
        data=recipe.data,
        budget=Budget(cost.device_bytes, None),
        space={"methods": ["head"], "shared": {"lr": {"float": [1e-3, 2e-3]}}},
    )
    suggestion = session.ask(lambda config: cost)
    assert suggestion is not None
    session.tell(suggestion.trial, scored(0.4))
    path = tmp_path / "best.yaml"
    ran = run_cli("export", "made", "--home", tmp_path, "--pick", "trial=0", "-o", path)
    assert ran.code == 0, ran
    device = "on cpu: parameters as recorded, 2 steps on the worst batch (loss "
    assert f"verified {device}" in ran.out and "(memory_source: predicted)" in ran.out
    origin = load_recipe(str(path)).origin or {}
    assert (origin["memory_source"], origin["device_bytes"]) == ("predicted", cost.device_bytes)
    assert origin["verified"]["device_bytes"] == cost.device_bytes and origin["verified"]["loss"] > 0


# --- used -----------------------------------------------------------------------------------------------------------


def test_an_exported_recipe_trains_elsewhere(
    session: SearchSession, tmp_path: Path, tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    uri = default_tracking_uri(home)
    mirror = MlflowRecord(uri, home / "artifacts", warn=pytest.fail)
    mirror.start(session.study.info(), session.describe_launch({}))
    mirror.sync(session.study.info())
    assert mirror.close()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    ran = run_cli("export", "made", "--home", home, "--pick", "best", "-o", elsewhere / "best.yaml", "--no-verify",
                  "--json")  # fmt: skip
    assert ran.code == 0
    assert (json.loads(ran.out)["trial"], json.loads(ran.out)["verified"]) == (1, None)

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
    assert listed == {"metrics.json", "recipe.yaml"}  # the weights are a model
    logged = client.get_logged_model(training.outputs.model_outputs[0].model_id)
    assert (logged.source_run_id, str(logged.status), logged.tags["cst.trial"]) == (training.info.run_id, "READY", "1")
    note = logged.tags["mlflow.note.content"]
    assert note.startswith("Trial 1 of study made") and f'load_model("models:/{logged.model_id}")' in note
    assert {m.key: m.value for m in logged.metrics}["val_map"] == training.data.metrics["val_map"]

    # and loaded from there it finds what `predict` finds, in a file or in what a served model is sent
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    model = mlflow.pyfunc.load_model(f"models:/{logged.model_id}")
    pictures = [entry.path for entry in tiny_data.splits["val"].images[:2]]
    ran = run_cli("predict", "trained", *pictures, "--no-draw", "--score", "0.1", "--device", "cpu")
    assert "have nothing" not in ran.err
    drawn = run_cli("predict", "trained", pictures[0], "--out", "drawn", "--device", "cpu")
    assert "1 picture(s) in drawn" in drawn.err and len(list(Path("drawn").iterdir())) == 1
    none = run_cli("predict", "trained", *pictures, "--no-draw", "--score", "1.0", "--device", "cpu")
    assert "2 of 2 image(s) have nothing of --score 1 or more" in none.err
    wanted = [{name: one[name] for name in ("width", "height", "detections")} for one in json.loads(ran.out)]
    sent = base64.b64encode(pictures[1].read_bytes()).decode()
    images = [str(pictures[0]), sent]
    assert model.predict(images, params={"score": 0.1}) == wanted and wanted[0]["detections"]
    assert all(not one["detections"] for one in model.predict(images, params={"score": 1.0}))
    with pytest.raises(ValueError, match="image must be the path of a file or a file in base64"):
        model.predict(["no-such.png"])

    # what is there is never overwritten
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    ran = run_cli("train", "best.yaml", "--out", "trained", "--home", home)
    assert ran.code == 2
    assert ran.message == "cst-search: --out trained: exists and is not empty; choose another folder"
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_a_training_that_fails_says_so(tmp_path: Path, info: StudyInfo, monkeypatch: pytest.MonkeyPatch) -> None:
    """Exit code 1: the person has done nothing wrong."""
    from cst_search.commands import train as training
    from cst_search.trial.result import TrialResult

    def explode(*arguments: Any, **options: Any) -> TrialResult:
        return TrialResult("nonfinite", petl_params=1, trainable_params=1, reason="the loss is nan at step 3")

    monkeypatch.setattr(training, "run_trial", explode)
    export(info, "best", tmp_path / "best.yaml")
    ran = run_cli("train", tmp_path / "best.yaml", "--out", tmp_path / "out", "--home", tmp_path / "home2")
    assert ran.code == 1
    assert ran.message == "cst-search: training ended: the loss is nan at step 3"
    assert not (tmp_path / "out" / "weights.safetensors").exists()


def test_a_training_that_is_cut_off_goes_on_with_the_same_command(
    tiny_recipe: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are those of a training that nobody disturbed, to the last bit."""
    recipe, epochs, end = tiny_recipe(epochs=5), [], 3
    run = training.run_trial

    def watched(*args: Any, report: Callable[[dict[str, Any]], object], **kwargs: Any) -> Any:
        def reported(entry: dict[str, Any]) -> None:
            report(entry)
            epochs.append(entry["epoch"])
            if entry["epoch"] == end:
                raise KeyboardInterrupt

        return run(*args, report=reported, **kwargs)

    def train(folder: str) -> str:
        text = io.StringIO()
        options: dict[str, Any] = {
            "data": None,
            "settings": (),
            "device": "cpu",
            "skip_bad": False,
            "tracking_uri": None,
            "reading": ReadingOptions(),
        }
        training.train(recipe, tmp_path / folder, home=tmp_path / "home", console=Console(file=text), **options)
        return text.getvalue()

    monkeypatch.setattr(training, "run_trial", watched)
    with pytest.raises(KeyboardInterrupt):
        train("cut")
    assert [path.name for path in (tmp_path / "cut").iterdir()] == ["checkpoint.pt"]
    (tmp_path / "cut" / "checkpoint.pt.1.part").write_bytes(b"")  # as a kill leaves it
    end = 0
    said = train("cut")
    assert epochs == [1, 2, 3, 3, 4, 5] and "began anew" not in said
    train("whole")
    names = {"weights.safetensors", "metrics.json", "recipe.yaml"}
    assert {path.name for path in (tmp_path / "cut").iterdir()} == names
    cut, whole = (load_file(tmp_path / name / "weights.safetensors") for name in ("cut", "whole"))
    assert cut.keys() == whole.keys() and all(torch.equal(cut[name], whole[name]) for name in whole)
