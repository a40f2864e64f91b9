"""A search from end to end."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from launches import MadeUp, children, read
from mlflow import MlflowClient
from studies import Ran, run_cli

from cst_search.config.recipe import Recipe
from cst_search.execution.workers import SearchJob
from cst_search.petl import get_method
from cst_search.tracking.connection import default_tracking_uri
from cst_search.trial.cost import predict


@pytest.fixture(scope="module")
def budget(tiny_recipe: Callable[..., Recipe]) -> int:
    """Trainable parameters between those of reduction 1 and 2."""
    over, within = (predict(tiny_recipe(options={"reduction": r}), n_classes=3).trainable_params for r in (1, 2))
    return (over + within) // 2


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, base: Callable[..., list[str]], budget: int) -> tuple[Path, Ran]:
    home = tmp_path_factory.mktemp("home")
    ran = run_cli(
        "launch", "--in-process", *base(home), "--study", "first", "--trials", 4, "--budget-params", budget, "--json"
    )
    assert ran.code == 0, ran
    return home, ran


def test_a_launch_ends_with_a_front_and_its_files(launched: tuple[Path, Ran], budget: int) -> None:
    home, ran = launched
    report, info = json.loads(ran.out), read(home, "first")
    assert report["study"] == "first" and report["front"] and report["interrupted"] is False
    assert report["budget"] == {"memory_bytes": None, "params": budget, "delta_bytes": None, "flops": None}
    assert info.n_ran() == 4
    assert info.inputs["n_classes"] == 3 and info.limit_bytes is None
    assert all(record.trainable_params <= budget for record in info.trials if record.ran)  # type: ignore[operator]
    assert report["trials"]["complete"] == 4
    assert 0 < report["hypervolume"] <= 1 or all(entry["map"] == 0 for entry in report["front"])
    names = sorted(path.name for path in (home / "first").iterdir())
    assert names == ["best.yaml", "front.html", "front.json", "front.png"]
    # what is said on the way goes to standard error, so that the output is JSON alone
    assert "study first: 0 of 4 trials done" in ran.err and "cst-search export first --pick " in ran.err
    assert "trial 0 started" in ran.err and "4 of 4" in ran.err
    assert "best so far: trial " in ran.err
    assert f"cache {home / 'cache'}: up to " not in ran.err  # that is for --verbose
    assert len(list((home / "cache").glob("pixels-*.slots"))) == 2  # of both splits, shared by four trials


def test_the_first_trial_is_the_methods_own_choice(launched: tuple[Path, Ran]) -> None:
    first = read(launched[0], "first").trials[0]
    method = get_method("cst")
    options = method.make_options({})
    assert first.config["method"] == "cst"
    assert first.config["cst.reduction"] == options.reduction
    assert first.config["cst.mtc_stages"] == options.mtc_stages
    assert first.config["lr"] == method.lr
    assert first.config["batch_size"] == 2  # the recipe's


def test_mlflow_has_the_launch(launched: tuple[Path, Ran]) -> None:
    home, _ = launched
    info = read(home, "first")
    client = MlflowClient(default_tracking_uri(home))
    experiment = client.get_experiment_by_name("first")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.`cst.kind` = 'launch'")
    assert parent.info.status == "FINISHED"
    assert children(home, "first") == Counter(record.trial for record in info.trials)
    pages = {"front.html", "front.png", "front-small.png", "front.json"}
    for folder, names in (("pareto", pages), ("export", {"best.yaml"})):
        listed = {Path(artifact.path).name for artifact in client.list_artifacts(parent.info.run_id, folder)}
        assert listed == names
    assert (home / "artifacts" / "first").is_dir()
    steps = [m.step for m in client.get_metric_history(parent.info.run_id, "hypervolume")]
    assert steps == [record.trial for record in info.trials]
    front = client.search_runs([experiment.experiment_id], 'tags."cst.pareto" = "true"')
    assert {int(run.data.tags["cst.trial"]) for run in front} == {record.trial for record in info.front()}


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            ["--trials", "4"],
            "study 'first' already has 4 trials, so nothing is left to do; give --trials above",
        ),
        (["--trials", "5", "--objectives", "map"], "was made with another --objectives"),
        (["--trials", "5", "--budget-params", "1M"], "was made with another --budget-params"),
        (["--trials", "5", "--set", "epochs=9"], "was made with another --recipe"),
        (["--trials", "5", "--space", "{lr}"], "was made with another --space"),
        (["--trials", "5", "--limit-mem", "1GB"], "was made with another --limit-mem"),
    ],
)
def test_a_study_is_not_continued_by_mistake(
    launched: tuple[Path, Ran], base: Callable[..., list[str]], budget: int, more: list[str], said: str
) -> None:
    home, _ = launched
    before = read(home, "first")
    more = [word.format(lr=base(home, "lr")[5]) for word in more]
    ran = run_cli("launch", "--in-process", *base(home), "--study", "first", "--budget-params", budget, *more)
    assert (ran.code, said in ran.message) == (2, True), ran
    assert read(home, "first") == before


def test_cost_of_a_finished_trial_does_not_grow(
    tmp_path: Path, base: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    workers = MadeUp(monkeypatch)
    monkeypatch.setattr("cst_search.commands.worker_setup.make_workers", lambda *_: (workers, 1, 1))
    for n_trials in (12, 24):  # the second launch goes on
        ran = run_cli("launch", *base(tmp_path, "lr"), "--study", "many", "--trials", n_trials)
        assert ran.code == 0, ran
    assert workers.costs == [(1, 0)] * 24
    info = read(tmp_path, "many")
    last = next(line for line in ran.out.splitlines() if "24 of 24" in line and "complete" in line)
    assert last.endswith(f"hypervolume {info.hypervolume():.4f}")
    assert children(tmp_path, "many") == Counter(range(24))


def test_relative_home_is_the_same_folder_for_all_workers(
    tmp_path: Path, base: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ray's workers are in folders of their own: what trials share, and their checkpoints, are still in --home."""
    (tmp_path / "runs").mkdir()
    monkeypatch.chdir(tmp_path)
    seen: list[Any] = []

    class Noting(MadeUp):
        def run(self, job: SearchJob) -> None:
            seen.append(job.task)
            super().run(job)

    workers = Noting(monkeypatch)
    monkeypatch.setattr("cst_search.commands.worker_setup.make_workers", lambda *_: (workers, 1, 1))
    flags = [*base(Path("runs"), "lr", search_epochs=20), "--study", "cut", "--trials", "1"]
    assert run_cli("launch", *flags).code == 0
    (task,) = seen
    assert task.cache.folder == tmp_path / "runs" / "cache"
    assert task.checkpoints.folder == tmp_path / "runs" / "cut" / "checkpoints"
