"""One launch of several data sets: a study for each, on the same workers."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow import MlflowClient
from studies import make_study, run_cli, run_one, scored

import cst_search
from cst_search.commands import worker_setup
from cst_search.commands.checks import name_studies
from cst_search.commands.options import LaunchOptions, launches_of
from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.errors import ConfigError
from cst_search.execution.workers import InProcess, Turns
from cst_search.study.records import StudyInfo
from cst_search.study.study import Study, list_studies
from cst_search.tracking.connection import default_tracking_uri

SPACE = {"methods": ["head"], "shared": {"lr": {"float": [1e-3, 2e-2], "log": True}}}


@pytest.fixture
def sets(tmp_path: Path, tiny_folder: Path) -> list[Path]:
    for name in ("cells", "cards"):
        shutil.copytree(tiny_folder, tmp_path / name)
    return [tmp_path / "cells", tmp_path / "cards"]


@pytest.fixture
def flags(tmp_path: Path, sets: list[Path], tiny_recipe: Callable[..., Recipe]) -> list[str]:
    write_yaml(tmp_path / "space.yaml", SPACE, "test")
    write_yaml(tmp_path / "recipe.yaml", tiny_recipe(search_epochs=1).to_dict(), "test")
    data = [word for folder in sets for word in ("--data", str(folder))]
    return [*data, "--recipe", str(tmp_path / "recipe.yaml"), "--space", str(tmp_path / "space.yaml"),
            "--home", str(tmp_path / "home"), "--device", "cpu", "--in-process", "--no-stop-early"]  # fmt: skip


def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'home' / 'studies.db'}"


def info(tmp_path: Path, name: str) -> StudyInfo:
    return Study.open(url(tmp_path), name).info()


def test_each_data_set_has_its_study_and_they_take_turns(tmp_path: Path, sets: list[Path], flags: list[str]) -> None:
    ran = run_cli("launch", *flags, "--study", "fleet", "--trials", "2", "--budget-mem", "6GB")
    assert ran.code == 0, ran
    starts = [line.partition(" started")[0] for line in ran.out.splitlines() if " started" in line]
    assert starts == ["fleet-cells trial 0", "fleet-cards trial 0", "fleet-cells trial 1", "fleet-cards trial 1"]
    beginning = ran.out.partition("fleet-cells trial 0 started")[0].splitlines()
    assert sum(line.startswith("weights: ") for line in beginning) == 1  # what holds for both is said once
    assert re.search(r"4 of 4, none left, fleet-cells 2 \(best 0\.\d+\), fleet-cards 2 \(best 0\.\d+\)", ran.out)
    assert "cst-search front fleet-cells fleet-cards -o comparison" in ran.out
    assert "cst-search allocate fleet-cells fleet-cards --budget-storage 3MB -o plan" in ran.out
    client = MlflowClient(default_tracking_uri(tmp_path / "home"))
    for folder in sets:
        study = info(tmp_path, f"fleet-{folder.name}")
        assert (study.data, study.budget.memory_bytes) == (str(folder), 6 * 10**9)
        assert [record.state for record in study.trials] == ["complete"] * 2
        assert (tmp_path / "home" / study.name / "front.html").exists()
        experiment = client.get_experiment_by_name(study.name)
        assert experiment is not None
        runs = client.search_runs([experiment.experiment_id])
        assert sorted(run.data.tags["cst.kind"] for run in runs) == ["launch", "trial", "trial"]
        assert {run.info.status for run in runs} == {"FINISHED"}

    # the same command, and `resume` with several names, go on; a study that has its trials already is reported again
    again = run_cli("launch", *flags, "--study", "fleet", "--trials", "2", "--budget-mem", "6GB")
    assert again.code == 2 and "study 'fleet-cells' already has 2 trials, so nothing is left to do" in again.message
    home = ["--home", str(tmp_path / "home"), "--device", "cpu", "--in-process"]
    assert run_cli("resume", "fleet-cards", *home, "--trials", "3").code == 0
    both = run_cli("resume", "fleet-cells", "fleet-cards", *home, "--trials", "3", "--json")
    assert both.code == 0, both
    assert [(one["study"], one["trials"]["complete"]) for one in json.loads(both.out)] == [
        ("fleet-cells", 3), ("fleet-cards", 3)
    ]  # fmt: skip


def test_ctrl_c_ends_all_of_them_and_says_how_to_go_on(
    tmp_path: Path, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(InProcess):
        def _run_all(self, turns: Turns) -> None:
            handout = turns.next()
            assert handout is not None
            raise KeyboardInterrupt

    monkeypatch.setattr(worker_setup, "make_workers", lambda *_: (Stopped(), 1, 1))
    ran = run_cli("launch", *flags, "--study", "fleet", "--trials", "2")
    assert ran.code == 130
    assert "continue with:  cst-search resume fleet-cells fleet-cards --home" in ran.out
    monkeypatch.undo()
    home = ["--home", str(tmp_path / "home"), "--device", "cpu", "--in-process"]
    assert run_cli("resume", "fleet-cells", "fleet-cards", *home).code == 0
    for name in ("fleet-cells", "fleet-cards"):
        assert [record.state for record in info(tmp_path, name).trials] == ["complete"] * 2


def test_all_data_sets_are_checked_before_a_study_is_made(tmp_path: Path, sets: list[Path], flags: list[str]) -> None:
    (sets[0] / "train.json").write_text("{}")
    (sets[1] / "val.json").unlink()
    ran = run_cli("launch", *flags, "--study", "fleet", "--trials", "1")
    assert ran.code == 2
    assert "nothing was started: 2 of 2 cannot be searched" in ran.message
    assert "study 'fleet-cells'" in ran.message and "study 'fleet-cards'" in ran.message
    assert list_studies(url(tmp_path), make=True) == []


def test_a_study_that_differs_leaves_no_new_ones(tmp_path: Path, flags: list[str]) -> None:
    make_study(tmp_path / "home", "fleet-cards")
    ran = run_cli("launch", *flags, "--study", "fleet", "--trials", "1")
    assert ran.code == 2 and "study 'fleet-cards' exists and was made with another" in ran.message
    assert list_studies(url(tmp_path)) == ["fleet-cards"]


@pytest.mark.parametrize(
    ("study", "folders", "names"),
    [
        (None, ["cells", "cards"], ["cells-2", "cards-1"]),  # there is a study cells-1
        ("s", ["cells", "cards"], ["s-cells", "s-cards"]),
        ("s", ["a/set", "b/set", "c"], ["s-a-set", "s-b-set", "s-c"]),
        ("s", ["x/a/set", "y/a/set"], ["s-x-a-set", "s-y-a-set"]),
        ("s", ["a b", "demo"], ["s-a-b", "s-demo"]),
        ("s", ["cells"], ["s"]),
        (None, ["cells"], [None]),
    ],
)
def test_names_of_the_studies(tmp_path: Path, study: str | None, folders: list[str], names: list[str]) -> None:
    make_study(tmp_path, "cells-1")
    data = [folder if folder == "demo" else str(tmp_path / folder) for folder in folders]
    each = launches_of(data=data, study=study, home=tmp_path)
    assert [options.study for options in name_studies(each, f"sqlite:///{tmp_path / 'studies.db'}")] == names


@pytest.mark.parametrize(
    ("study", "folders", "says"),
    [
        ("s", ["cells", "../{here}/cells"], "given twice: "),
        ("s", ["a/b c", "a/b-c"], "would have equal names"),
        ("s" * 98, ["cells", "cards"], "--study must be a name of 1 to 100 characters"),
    ],
)
def test_names_that_are_not_possible(tmp_path: Path, study: str, folders: list[str], says: str) -> None:
    data = [str(tmp_path / folder.format(here=tmp_path.name)) for folder in folders]
    with pytest.raises(ConfigError, match=says):
        name_studies(launches_of(data=data, study=study, home=tmp_path), f"sqlite:///{tmp_path / 'studies.db'}")


def test_options_of_each_launch_differ_in_their_data_alone() -> None:
    one, other = launches_of(data=["a", Path("b")], trials=3, budget_mem="6GB")
    assert (one.data, other.data) == ("a", "b") and replace(one, data="b") == other
    assert launches_of(trials=3) == [LaunchOptions.read(trials=3)] == launches_of(data=[], trials=3)
    with pytest.raises(ConfigError, match="one --data is read here; got a, b"):
        LaunchOptions.read(data=["a", "b"])


def test_the_demo_has_fewer_trials_unless_they_are_given() -> None:
    assert LaunchOptions.read().trials == LaunchOptions.read(data="demo").trials == 10
    assert [one.trials for one in launches_of(data=["a", "demo"])] == [16, 10]
    assert LaunchOptions.read(trials=16).trials == 16 and LaunchOptions.read(data="a", trials=1).trials == 1


def test_a_list_of_folders_from_python(tmp_path: Path, sets: list[Path], tiny_recipe: Callable[..., Recipe]) -> None:
    searches = cst_search.launch(
        "6GB", data=sets, recipe=tiny_recipe(search_epochs=1), space=SPACE, trials=1, in_process=True,
        home=tmp_path / "home", device="cpu",
    )  # fmt: skip
    assert [search.name for search in searches] == ["cells-1", "cards-1"]
    assert [len(search.trials()) for search in searches] == [1, 1]
    (one,) = cst_search.launch(
        "6GB", data=sets[:1], recipe=tiny_recipe(search_epochs=1), space=SPACE, trials=1, in_process=True,
        home=tmp_path / "home", device="cpu", study="one",
    )  # fmt: skip
    assert one.name == "one"


def test_studies_of_different_memory_are_resumed_with_their_own_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each trial is held to its own study's limit, though the workers are shared."""
    limits: dict[str, int | None] = {}

    class Noting(InProcess):
        def run(self, *jobs: object) -> None:
            limits.update({job.session.study.name: job.task.memory_limit_bytes for job in jobs})  # type: ignore
            raise KeyboardInterrupt

    for name, limit in (("small", 10**9), ("large", 2 * 10**9)):
        run_one(make_study(tmp_path, name, limit_bytes=limit), scored(0.1))
    monkeypatch.setattr(worker_setup, "make_workers", lambda *_: (Noting(), 1, 1))
    home = ["--home", str(tmp_path), "--device", "cpu", "--in-process", "--trials", "3"]
    assert run_cli("resume", "small", "large", *home).code == 130
    assert limits == {"small": 10**9, "large": 2 * 10**9}
