"""A search from end to end, with real processes where a process is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from studies import Ran, run_cli

from cst_search.config import write_yaml
from cst_search.petl import get_method
from cst_search.recipe import Recipe
from cst_search.record import default_tracking_uri
from cst_search.results import StudyInfo
from cst_search.suggest import Study

SPACE = {
    "methods": ["cst", "head"],
    "shared": {"lr": {"float": [1e-3, 2e-2], "log": True}, "batch_size": {"choice": [2, 4]}},
    "cst": {"reduction": {"choice": [1, 2, 4]}, "mtc_stages": {"choice": [[2, 3, 4, 5], [5]]}},
}


@pytest.fixture(scope="module")
def base(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]
) -> Callable[..., list[str]]:
    """``base(home, search_epochs=1)`` -> the flags of a search on the tiny data set."""
    folder = tmp_path_factory.mktemp("launch")
    write_yaml(folder / "space.yaml", SPACE, "test")

    def flags(home: Path, search_epochs: int = 1) -> list[str]:
        recipe = folder / f"recipe-{search_epochs}.yaml"
        write_yaml(recipe, tiny_recipe(search_epochs=search_epochs).to_dict(), "test")
        return ["--data", str(tiny_folder), "--recipe", str(recipe), "--space", str(folder / "space.yaml"),
                "--home", str(home), "--device", "cpu"]  # fmt: skip

    return flags


def read(home: Path, name: str) -> StudyInfo:
    return Study.open(f"sqlite:///{home / 'studies.db'}", name).info()


def children(home: Path, name: str) -> Counter[int]:
    """How many MLflow runs each trial has."""
    client = MlflowClient(default_tracking_uri(home))
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], "tags.`cst.kind` = 'trial'")
    return Counter(int(run.data.tags["cst.trial"]) for run in found)


# --- one search -----------------------------------------------------------------------------------------------------

PARAMS = 20_000  # of the tiny recipe's space about half is below


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory, base: Callable[..., list[str]]) -> tuple[Path, Ran]:
    home = tmp_path_factory.mktemp("home")
    ran = run_cli(
        "launch", "--in-process", *base(home), "--study", "first", "--trials", 4, "--budget-params", PARAMS, "--json"
    )
    assert ran.code == 0, ran
    return home, ran


def test_a_launch_ends_with_a_front_and_its_files(launched: tuple[Path, Ran]) -> None:
    home, ran = launched
    report, info = json.loads(ran.out), read(home, "first")
    assert report["study"] == "first" and report["front"] and report["interrupted"] is False
    assert report["budget"] == {"memory_bytes": None, "params": PARAMS}
    assert info.n_ran() == 4
    assert all(record.trainable_params <= PARAMS for record in info.trials if record.ran)  # type: ignore[operator]
    assert report["trials"]["complete"] == 4
    assert 0 < report["hypervolume"] <= 1 or all(entry["map"] == 0 for entry in report["front"])
    names = sorted(path.name for path in (home / "first").iterdir())
    assert names == ["best.yaml", "front.html", "front.json", "front.png"]
    # what is said on the way goes to standard error, so that the output is JSON alone
    assert "study first: 0 of 4 trials done" in ran.err and "cst-search export first --pick knee" in ran.err
    assert "trial 0 started" in ran.err and "4 of 4" in ran.err


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
    for folder, names in (("pareto", {"front.html", "front.png", "front.json"}), ("export", {"best.yaml"})):
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
        (["--trials", "4"], "study 'first' already has 4 trials; give --trials above that to go on"),
        (["--trials", "5", "--objectives", "map"], "was made with another --objectives"),
        (["--trials", "5", "--budget-params", "1M"], "was made with another --budget-mem/--budget-params"),
        (["--trials", "5", "--set", "epochs=9"], "was made with another --recipe"),
        (["--trials", "5", "--space", "cst"], "was made with another --space"),
    ],
)
def test_a_study_is_not_continued_by_mistake(
    launched: tuple[Path, Ran], base: Callable[..., list[str]], more: list[str], said: str
) -> None:
    home, _ = launched
    before = read(home, "first")
    ran = run_cli(
        "launch", "--in-process", *base(home), "--study", "first", "--budget-params", PARAMS, *more
    )  # fmt: skip
    assert (ran.code, said in ran.message) == (2, True), ran
    assert read(home, "first") == before


def test_a_budget_that_excludes_all_is_said_and_ends(
    tmp_path: Path, base: Callable[..., list[str]], launched: tuple[Path, Ran]
) -> None:
    ran = run_cli("launch", "--in-process", *base(tmp_path), "--trials", 2, "--budget-params", "1k")
    assert ran.code == 1  # it ran, and found nothing
    assert "--budget-params 1k is below all of" in ran.out and "few or none will fit" in ran.out
    assert "the sampler found no further configuration within the budget" in ran.out
    assert "no trial completed within the budget" in ran.message
    info = read(tmp_path, "shapes-1")  # a name of its own: the data set's
    assert info.n_ran() == 0 and info.counts()["infeasible"] == len(info.trials) > 0


def test_a_budget_far_above_is_said(launched: tuple[Path, Ran], tmp_path: Path, base: Callable[..., list[str]]) -> None:
    ran = run_cli("launch", "--in-process", *base(tmp_path), "--trials", 1, "--budget-mem", "80GB", "--objectives",
                  "map", "--time-limit", "1d")  # fmt: skip
    assert ran.code == 0
    assert "--budget-mem 80 GB is above everything in this space" in ran.out
    assert "would exclude about half" in ran.out


# --- searches that are cut off --------------------------------------------------------------------------------------


@contextmanager
def started(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A launch in a process of its own; whatever it started is ended with the block."""
    command = [sys.executable, "-m", "cst_search.cli", "launch", *arguments]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    )
    family: dict[int, psutil.Process] = {}
    process.family = family  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()
        for relative in family.values():
            if relative.is_running():  # false when the number belongs to another process now
                relative.kill()


def until(process: Any, text: str) -> str:
    """Read the output up to a line with the text; note the processes that there are."""
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            process.family.update({p.pid: p for p in psutil.Process(process.pid).children(recursive=True)})
            return seen
    raise AssertionError(f"the launch ended without {text!r}:\n{seen}")


def finished(info: StudyInfo) -> dict[int, Any]:
    return {r.trial: r for r in info.trials if r.state not in ("running", "interrupted")}


@pytest.mark.parametrize("form", ["in-process", "ray"])
def test_a_search_that_is_killed_and_stopped_loses_nothing(
    tmp_path: Path, base: Callable[..., list[str]], form: str
) -> None:
    """kill -9, then Ctrl-C, then to the end, always with the same command; the last one in this process."""
    n_trials = 5
    flags = [*base(tmp_path, search_epochs=6), "--study", "cut", "--trials", str(n_trials)]
    how = ["--in-process"] if form == "in-process" else ["--workers", "1"]

    with started(*flags, *how) as process:
        until(process, "trial 1 started")
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    killed = read(tmp_path, "cut")
    assert killed.by_number(0).state == "complete"  # type: ignore[union-attr]
    assert killed.counts()["running"] == 0

    with started(*flags, *how) as process:
        seen = until(process, "trial 2 started")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=120)
        assert process.returncode == 130, seen + rest
    assert "study cut: 1 of 5 trials done" in seen
    assert "trial 1 started (again, its launch died)" in seen
    assert "go on with the same command and --study cut" in rest
    assert "Traceback" not in seen + rest
    stopped = read(tmp_path, "cut")
    assert finished(killed).items() <= finished(stopped).items()  # what was finished stays as it was
    assert stopped.by_number(1).state == "complete"  # type: ignore[union-attr]
    assert stopped.counts()["running"] == 0
    still_open = [record.trial for record in stopped.trials if record.state == "interrupted"]

    ran = run_cli("launch", *flags, "--in-process")
    assert ran.code == 0, ran
    done = read(tmp_path, "cut")
    assert finished(stopped).items() <= finished(done).items()
    assert done.n_ran() == n_trials == len(done.trials)  # none lost, none counted twice
    assert [record.trial for record in done.trials] == list(range(n_trials))
    assert {record.state for record in done.trials} == {"complete"}
    for number in still_open:
        assert done.by_number(number).config == stopped.by_number(number).config  # type: ignore[union-attr]
        assert f"trial {number} started (again, its launch died)" in ran.out
    assert children(tmp_path, "cut") == Counter(range(n_trials))
