"""The Python API: its examples run as they stand, in their order, and everything else looks at what they left."""

from __future__ import annotations

import doctest
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from studies import make_study, run_cli, run_one, scored

import cst_search
from cst_search import api
from cst_search.api import Search
from cst_search.commands import dataset
from cst_search.commands.options import ConfirmOptions, LaunchOptions, ResumeOptions, declared
from cst_search.config.loading import load_recipe
from cst_search.config.recipe import READING_FIELDS, Recipe
from cst_search.data.demo import write_demo
from cst_search.errors import ConfigError, StudyError, UnitError
from cst_search.study.records import StudyInfo


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, doctest.TestResults, str]]:
    """A folder in which the examples of `cst_search.api` have run, how they ended, and what doctest said."""
    folder = tmp_path_factory.mktemp("api")
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("CST_SEARCH_HOME", raising=False)
        # a tenth of the demo's images: what is learned from them is nobody's business here
        patch.setattr(dataset, "write_demo", partial(write_demo, n_train=24, n_val=8))
        examples = doctest.DocTestFinder().find(api, globs={})
        runner = doctest.DocTestRunner()
        for example in sorted(examples, key=lambda test: test.lineno or 0):  # launch first
            runner.run(example, out=said.append)
        yield folder, runner.summarize(verbose=False), "".join(said)


@pytest.fixture(scope="module")
def first(played: tuple[Path, Any, str]) -> Search:
    return cst_search.open_study("first", home=played[0] / "cst-runs")


def test_the_examples_are_true(played: tuple[Path, doctest.TestResults, str]) -> None:
    _, results, said = played
    assert results.failed == 0, said
    assert results.attempted > 20


def test_every_function_has_an_example() -> None:
    names = {
        example.name.removeprefix("cst_search.api.")
        for example in doctest.DocTestFinder().find(api)
        if example.examples
    }
    assert names >= set(cst_search.__all__) - {"__version__"}


def test_quiet_is_the_default(
    tiny_recipe: Callable[..., Recipe], tiny_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The examples printed nothing, or they would have failed."""
    cst_search.train(tiny_recipe(method="head"), data=tiny_folder, out=tmp_path / "aloud", home=tmp_path, quiet=False)
    assert "epoch 1/" in capfd.readouterr().out


def test_importing_the_package_loads_nothing() -> None:
    code = """
import sys, cst_search
heavy = {'torch', 'optuna', 'pydantic', 'rich', 'pandas', 'numpy', 'ray', 'mlflow'}
names = dir(cst_search)
print(heavy & {name.split('.')[0] for name in sys.modules})
print([n for n in cst_search.__all__ if n not in names])
cst_search.build_detector
print(heavy & {name.split('.')[0] for name in sys.modules})
try: cst_search.nosuch
except AttributeError as error: print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["set()", "[]", "set()", "module 'cst_search' has no attribute 'nosuch'"]


def test_a_submodule_shadows_no_function() -> None:
    """`import cst_search.x` sets the attribute x of the package, whatever stood there."""
    package = Path(cst_search.__file__).parent
    modules = {path.stem for path in package.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert modules & set(cst_search.__all__) == set()


def test_functions_take_what_the_commands_take() -> None:
    """Names and defaults are those of the options; a function has no --json, and takes fields as ``settings``."""
    from cst_search.cli import recipes, searches

    renamed = {"output": "out", "json_": None}
    for function, command in (
        (api.launch, searches.launch),
        (api.train, recipes.train),
        (api.estimate, recipes.estimate),
    ):
        options = {
            renamed.get(name, name): parameter.default
            for name, parameter in inspect.signature(command).parameters.items()
            if name not in READING_FIELDS
        }
        parameters = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        quiet = parameters.pop("quiet", None)
        assert quiet in (True, None)
        options.pop(None, None)
        options.pop("quiet", None)
        options.pop("verbose", None)  # about what is printed, as --quiet
        assert parameters == options, function


def test_the_api_declares_what_the_options_declare() -> None:
    """The signatures are written out for readers and type checkers; names and defaults are those of the options."""
    for function, options, left_out in (
        (api.launch, LaunchOptions, set(READING_FIELDS)),
        (Search.resume, ResumeOptions, {"home", "storage", "skip_bad", "cache_size"}),
        (Search.confirm, ConfirmOptions, {"home", "storage", "skip_bad", "data"}),
    ):
        parameters = {name: p.default for name, p in inspect.signature(function).parameters.items()}
        expected = {name: option.default for name, option in declared(options).items() if name not in left_out}
        assert {name: parameters[name] for name in parameters.keys() - {"self", "quiet"}} == expected, function


# --- a study ---------------------------------------------------------------------------------------------------------


def test_front_and_trials(first: Search) -> None:
    front, trials, info = first.front(), first.trials(), first.info
    columns = ["trial", "state", "map", "map50", "device_bytes", "working_bytes", "memory_source", "trainable_params",
               "petl_params", "delta_bytes", "inference_bytes", "flops", "marginal_flops"]  # fmt: skip
    assert list(front.columns[:13]) == columns
    assert {"config.method", "config.cst.reduction", "config.lr"} <= set(front.columns[8:])
    assert front["trial"].tolist() == [record.trial for record in info.front()]
    assert front["map"].is_monotonic_decreasing
    assert list(trials.columns[:6]) == ["trial", "state", "reason", "seconds", "feasible", "on_front"]
    assert trials["trial"].tolist() == [0, 1]
    assert trials.loc[trials["on_front"], "trial"].tolist() == sorted(front["trial"])
    record = info.trials[0]
    row = trials.set_index("trial").loc[0]
    assert row["config.cst.reduction"] == record.config["cst.reduction"] and row["device_bytes"] == record.device_bytes
    assert first.knee == info.knee() and first.hypervolume == info.hypervolume()


def test_an_empty_front_has_its_columns(tmp_path: Path) -> None:
    make_study(tmp_path, "empty")
    search = cst_search.open_study(home=tmp_path)  # the newest
    assert search.name == "empty"
    assert len(search.front()) == 0 and "config.method" in search.front().columns
    assert search.knee is None and search.hypervolume == 0
    with pytest.raises(StudyError, match="no feasible complete trial"):
        search.recipe()


def test_seeds_stand_in_the_front_once_it_was_confirmed(tmp_path: Path) -> None:
    from studies import fake_estimate

    from cst_search.study.trial_attributes import Repeat

    session = make_study(tmp_path)
    session.begin_launch()
    record = run_one(session, scored(0.5))
    session.end_launch()
    search = cst_search.open_study("made", home=tmp_path)
    assert "n_seeds" not in search.front()
    session.begin_launch(kind="confirm")
    session.plan([Repeat(record.trial, 1, session.study.info().full_epochs)])
    suggestion = session.ask(fake_estimate)  # type: ignore[arg-type]
    assert suggestion is not None
    session.tell(suggestion.trial, scored(0.3))
    session.end_launch()
    row = search.front().iloc[0]
    assert row["n_seeds"] == 2 and row["map"] == 0.5 and row["map_mean"] == pytest.approx(0.4)


def test_recipe_and_export_are_one(played: tuple[Path, Any, str], first: Search) -> None:
    exported = load_recipe(played[0] / "best.yaml")
    assert exported == first.recipe("best")
    with pytest.raises(ConfigError, match="--pick takes knee, best or trial=N"):
        first.recipe("worst")


def test_page(first: Search, tmp_path: Path) -> None:
    page = first.page(tmp_path / "page")
    assert page.name == "front.html" and page.stat().st_size > 10_000
    assert json.loads((tmp_path / "page" / "front.json").read_text())["study"] == "first"


def test_optuna_study(first: Search) -> None:
    study = first.optuna_study()
    assert study.study_name == "first" and len(study.trials) >= 2
    assert {trial.number for trial in study.best_trials} == set(first.front()["trial"])


def test_resume_has_nothing_to_do_and_leaves_no_trace(first: Search) -> None:
    before = dict(first.optuna_study().user_attrs)
    with pytest.raises(StudyError, match="already has 2 trials, so nothing is left to do"):
        first.resume(in_process=True)
    assert cst_search.open_study("first", home=first.home).optuna_study().user_attrs == before


def test_go_on_and_confirm(tiny_recipe: Callable[..., Recipe], tiny_folder: Path, tmp_path: Path) -> None:
    search = cst_search.launch(
        "6GB", data=tiny_folder, recipe=tiny_recipe(method="head", search_epochs=1), trials=1, study="on",
        space={"methods": ["head"], "shared": {"lr": {"float": [1e-3, 1e-2]}}}, home=tmp_path, in_process=True,
    )  # fmt: skip
    assert search.resume(2, in_process=True) is search
    assert len(search.trials()) == 2 and search.info.budget.memory_bytes == 6 * 10**9
    report = search.confirm(seeds=2, picks="best", in_process=True)
    assert report["study"] == "on" and len(search.info.repeats) == 1
    assert search.front()["n_seeds"].max() == 2
    assert [launch.kind for launch in search.info.launches] == ["launch", "launch", "confirm"]


def test_the_command_line_sees_the_same(first: Search) -> None:
    ran = run_cli("front", "first", "--home", first.home, "--json")
    report = json.loads(ran.out)
    assert [point["trial"] for point in report["front"]] == first.front()["trial"].tolist()
    assert report["knee"] == first.knee and report["hypervolume"] == first.hypervolume


# --- recipes ---------------------------------------------------------------------------------------------------------


def test_trained_weights_are_loaded(played: tuple[Path, Any, str]) -> None:
    trained = cst_search.load_trained(played[0] / "trained")
    assert trained.recipe == cst_search.load_trained(played[0] / "trained" / "weights.safetensors").recipe
    assert not trained.model.training and trained.recipe.epochs == 1
    untrained = cst_search.build_detector(trained.recipe, len(trained.class_names))
    changed = [
        name
        for (name, a), b in zip(trained.model.state_dict().items(), untrained.state_dict().values(), strict=True)
        if not torch.equal(a, b)
    ]
    assert changed and any(name.startswith("backbone.side") for name in changed)


def test_a_recipe_may_be_a_value_a_name_or_a_path(played: tuple[Path, Any, str]) -> None:
    recipe = load_recipe(played[0] / "best.yaml")
    wanted = cst_search.estimate(recipe)
    assert cst_search.estimate(played[0] / "best.yaml") == wanted
    assert cst_search.estimate(str(played[0] / "best.yaml"), {"batch_size": 1})["device_bytes"] < wanted["device_bytes"]
    assert cst_search.estimate(recipe, ["batch_size=1"]) == cst_search.estimate(recipe, {"batch_size": 1})


@pytest.mark.parametrize(
    ("arguments", "error", "said"),
    [
        ({"budget_mem": "6 gigs"}, UnitError, "6 gigs"),
        ({"budget_mem": 0}, UnitError, "above zero"),
        ({"budget_mem": 6}, UnitError, "--budget-mem: a memory size must have a unit .*got 6; write 6GB"),
        ({"budget_params": 2}, UnitError, "got 2; write 2M"),
        ({"device": "tpu"}, ConfigError, "--device must be one of auto, cpu, cuda; got 'tpu'"),
        ({"sampler": "best"}, ConfigError, "--sampler must be one of"),
        ({"stop_early": False, "eta": 2}, ConfigError, "give one"),
        ({"until": "converged"}, ConfigError, "after 30 trials at the earliest.* got --trials 10"),
        ({"until": "converged", "trials": 40, "sampler": "tpe"}, ConfigError, "pareto-no-prior; got --sampler tpe"),
        ({"settings": {"method": "nosuch"}}, ConfigError, "'nosuch'"),
        ({"settings": {"size": 1}}, ConfigError, "no such dimension: size"),
        ({"space": {"methods": []}}, ConfigError, "`methods` must be a list"),
        ({"recipe": "nosuch"}, ConfigError, "nosuch"),
    ],
)
def test_mistakes(tmp_path: Path, arguments: dict[str, Any], error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        cst_search.launch(**arguments, home=tmp_path / "home", in_process=True)
    assert not (tmp_path / "home").exists() or os.listdir(tmp_path / "home") == []


def test_units_are_numbers_too() -> None:
    from cst_search.units import parse_bytes, parse_count, parse_seconds

    assert (parse_count(2_000_000), parse_seconds(0.5)) == (2 * 10**6, 0.5)
    with pytest.raises(UnitError, match="write 6GB"):  # but not those of bytes
        parse_bytes(6)


def test_the_info_is_typed(first: Search) -> None:
    assert isinstance(first.info, StudyInfo)
    assert (Path(cst_search.__file__).parent / "py.typed").is_file()
