"""The command line as a person meets it: the front as characters, several studies, completion, quiet, JSON."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import typer
from mlflow import MlflowClient
from pages import made_info
from rich.console import Console, Group
from studies import make_study, run_cli, run_one, scored

from cst_search.cli import app
from cst_search.config import catalog
from cst_search.config.recipe import Recipe
from cst_search.errors import UserError
from cst_search.petl import METHODS
from cst_search.report.console import PlainConsole
from cst_search.report.labels import telling_cost
from cst_search.report.tables import front_table, status_table
from cst_search.report.text_plot import front_plot
from cst_search.search.pareto_sampler import ParetoSampler
from cst_search.search.session import SearchSession
from cst_search.study.importance import importance, order_of
from cst_search.study.outlook import Outlook
from cst_search.study.records import Budget, StudyInfo
from cst_search.study.study import Study
from cst_search.tracking.views import TAG


def fill(session: SearchSession, figures: Sequence[tuple[float, int]]) -> SearchSession:
    """Complete trials with such mAP and device bytes."""
    session.begin_launch()
    for i, (quality, measured) in enumerate(figures):
        run_one(session, scored(quality, device_bytes=measured), cst__reduction=4, batch_size=2, lr=0.01 + i / 1000)
    session.end_launch()
    return session


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``one``: best at the top right, knee between, least at the bottom left, one dominated, one over the budget;
    ``two``: better points.
    """
    home = tmp_path_factory.mktemp("home")
    fill(make_study(home, "one"), [(0.6, 900), (0.55, 400), (0.2, 300), (0.4, 600), (0.9, 2000)])
    fill(make_study(home, "two"), [(0.7, 900), (0.6, 350)])
    return home


@pytest.fixture(scope="module")
def info(home: Path) -> StudyInfo:
    return Study.open(f"sqlite:///{home / 'studies.db'}", "one").info()


# --- the table -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [80, 160])
def test_a_configuration_is_read_in_lines_and_not_in_a_column_of_words(info: StudyInfo, width: int) -> None:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(front_table(info, width))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert max(map(len, lines)) <= width
    beside = [line for line in lines if "│" in line and "lr 0." in line]
    below = [line for line in lines if line.startswith("trial 0: cst, lr ")]
    assert (len(beside), len(below)) == ((0, 1) if width == 80 else (len(info.front()), 0))
    assert lines[-1] == "in all of them: batch 2, reduction 4, recompute neck"


def test_what_mattered_is_named_and_shown_first() -> None:
    info = made_info(60)
    trials = tuple(replace(r, map=0.8 if r.config["augment"] == "none" else 0.2) for r in info.trials)
    info = replace(info, trials=trials, repeats=())
    for table in (front_table(info, 200), status_table(info, info.trials, None, {}, order_of(importance(info)))):
        console = Console(width=200, file=io.StringIO(), color_system=None)
        console.print(table)
        said = console.file.getvalue()  # type: ignore[attr-defined]
        configurations = re.findall("lr [0-9].*augment none", said)
        assert configurations
        assert all(re.match(r"lr [^ ]+, batch \d+, augment none", one) for one in configurations)
        if isinstance(table, Group):
            assert said.count("what mattered for mAP: augment ") == 1


def test_status_names_the_best_trial_and_leaves_out_what_all_trials_share(home: Path) -> None:
    said = run_cli("status", "one", "--home", home).out
    (best,) = [line for line in said.splitlines() if "best 0" in line]
    assert "0.600" in best and "lr" in best and "reduction" not in best
    assert "in all of them: batch 2, reduction 4" in said
    assert "best so far: trial 0, map 0.600, " in said and "trainable: cst, lr " in said


def test_the_next_commands_are_the_same_in_front_and_export(home: Path) -> None:
    said = " ".join(run_cli("front", "one", "--home", home).out.split())
    assert f"next: cst-search export one --pick knee -o best.yaml --home {home} knee: trial 1, map 0.550, " in said
    assert "or best: trial 0, map 0.600, " in said and ": --pick best cst-search train best.yaml " in said
    assert said.count(f"--out trained --home {home}") == 1
    assert "next:" not in run_cli("front", "one", "two", "--home", home).out


def test_the_newest_study_is_taken_where_none_is_named(home: Path, tmp_path: Path) -> None:
    for command in ("status", "front", "export"):
        more = ("-o", tmp_path / "best.yaml", "--no-verify") if command == "export" else ()
        ran = run_cli(command, "--home", home, *more)
        assert ran.code == 0 and "the newest study, two:" in ran.err
        assert ran.out == run_cli(command, "two", "--home", home, *more).out != ""
        assert command == "status" or ran.out.count(f" --out trained --home {home}\n") == 1
    nothing = run_cli("status", "--home", tmp_path)
    assert nothing.code == 2 and f"there are no studies in {tmp_path} yet" in nothing.err


def test_the_reference_is_in_units(home: Path) -> None:
    said = run_cli("front", "one", "--home", home).out
    assert "of 1 (reference map 0, working_bytes 1.6 kB, trainable_params 2k)" in said


# --- the plot --------------------------------------------------------------------------------------------------------


def test_the_plot_puts_points_where_they_are(info: StudyInfo) -> None:
    lines = front_plot([info], 68, height=9).plain.split("\n")
    assert lines[0] == f"0.600 │{' ' * 59}●"  # best and dearest
    assert lines[8] == f"0.200 │●{' ' * 59}"
    assert lines[1].index("◆") == 7 + round(100 / 600 * 59)  # the knee, a sixth of the way
    assert lines[4].index("·") == 7 + round(300 / 600 * 59)
    assert lines[9].startswith("  map └──") and "300 B" in lines[10] and lines[10].endswith("900 B")
    assert lines[11].strip() == "● front   ◆ knee   · other complete trials"


def test_a_plot_in_ascii_is_ascii(info: StudyInfo) -> None:
    text = front_plot([info], 60, ascii_only=True).plain
    assert text.isascii() and "o" in text and "K" in text


@pytest.mark.parametrize("width", [28, 40, 79, 300])
def test_a_plot_is_as_wide_as_there_is_room(info: StudyInfo, width: int) -> None:
    lines = front_plot([info], width).plain.split("\n")[:-1]
    assert max(map(len, lines)) == min(width, 100) - 1


def test_no_plot_where_there_is_no_room_or_nothing(info: StudyInfo, tmp_path: Path) -> None:
    assert not front_plot([info], 20)
    assert not front_plot([make_study(tmp_path, "empty").study.info()], 80)


def test_a_single_point_is_plotted_in_the_middle(tmp_path: Path) -> None:
    session = fill(make_study(tmp_path, "single"), [(0.5, 300)])
    lines = front_plot([session.study.info()], 48, height=9).plain.split("\n")
    assert lines[4].index("◆") == 7 + 20


def test_the_plot_takes_the_cost_that_spans_most(tmp_path: Path) -> None:
    session = make_study(tmp_path, "flat")
    session.begin_launch()
    run_one(session, scored(0.5, device_bytes=500), cst__reduction=8, batch_size=2, lr=0.01)
    run_one(session, scored(0.6, device_bytes=900), cst__reduction=2, batch_size=2, lr=0.01)
    session.end_launch()
    axis = front_plot([session.study.info()], 68).plain.split("\n")[-2]
    assert axis.split() == ["500", "B", "working", "memory", "900", "B"]  # a span of 1.8; of the parameters 1.3


@pytest.mark.parametrize(
    "memory, params, drawn",
    [
        ([300, 600], [10, 1000], "working_bytes"),  # a factor of two tells enough
        ([300, 599], [10, 1000], "trainable_params"),
        ([300, 599], [10, 11], "working_bytes"),
        ([300, 400], [0, 50], "trainable_params"),
        ([], [], "working_bytes"),
    ],
)
def test_a_front_is_drawn_over_a_cost_that_varies(memory: list[int], params: list[int], drawn: str) -> None:
    assert telling_cost({"working_bytes": memory, "trainable_params": params}) == drawn


def test_plot_is_shown_on_a_terminal_or_on_request(home: Path) -> None:
    for command in ("front", "status"):
        assert "◆ knee" not in run_cli(command, "one", "--home", home).out
        assert "◆ knee" in run_cli(command, "one", "--home", home, "--plot").out


def test_an_output_that_is_no_utf8_gets_ascii(tmp_path: Path) -> None:
    """And a name that it has no letters for is no traceback."""
    fill(make_study(tmp_path, "caf\u00e9 \u4e2d"), [(0.5, 300), (0.6, 600)])
    command = [sys.executable, "-m", "cst_search.cli", "front", "--home", str(tmp_path), "--plot"]
    done = subprocess.run(command, capture_output=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0 and done.stdout.isascii() and b"K knee" in done.stdout
    assert b"Front of caf? ?" in done.stdout and b"caf\\xe9" not in done.stdout


# --- several studies -------------------------------------------------------------------------------------------------


def test_fronts_side_by_side(home: Path) -> None:
    ran = run_cli("front", "one", "two", "--home", home, "--plot")
    assert ran.code == 0
    assert "Front of one" in ran.out and "Front of two" in ran.out and "A one   B two" in ran.out
    rows = [line.split("│")[1:-1] for line in ran.out.partition("Side by side")[2].splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in row] for row in rows]
    assert [row[:5] for row in cells] == [["one", "5", "3", "0.600", "300 B"], ["two", "2", "2", "0.700", "350 B"]]
    # both were made with the same reference point
    assert [row[5] for row in cells] == [row[6] for row in cells]
    reports = json.loads(run_cli("front", "one", "two", "--home", home, "--json").out)
    assert [report["study"] for report in reports] == ["one", "two"]
    single = json.loads(run_cli("front", "one", "--home", home, "--json").out)
    assert single == reports[0]


def test_a_common_hypervolume_needs_the_same_data(home: Path) -> None:
    fill(make_study(home, "other", data="/elsewhere"), [(0.5, 300)])
    ran = run_cli("front", "one", "other", "--home", home)
    assert "their data or objectives differ, so there is no common hypervolume" in ran.out
    # each is a task of its own then: what they cost together, and the command that divides a budget among them
    plans = ran.out.partition("Together in one storage budget")[2]
    assert "worst map" in plans and "cst-search allocate one other --budget-storage 1MB -o plan" in plans
    every = run_cli("front", "--all", "--home", home)
    assert every.out == run_cli("front", "one", "two", "other", "--home", home).out and "allocate" not in every.out
    both = run_cli("front", "one", "--all", "--home", home)
    assert both.code == 2 and "--all stands for every study; leave out one, or --all" in both.message


def test_a_common_reference_is_the_worst_of_all(home: Path) -> None:
    wider = {"map": 0.0, "device_bytes": 3200.0, "trainable_params": 2000.0}
    fill(make_study(home, "wide", reference_point=wider), [(0.6, 900), (0.55, 400), (0.2, 300), (0.4, 600)])
    ran = run_cli("front", "one", "wide", "--home", home)
    rows = [line.split("│")[1:-1] for line in ran.out.partition("Side by side")[2].splitlines() if line.startswith("│")]
    own, common = ([row[i].strip() for row in rows] for i in (5, 6))
    assert own[0] != own[1] and common == [own[1], own[1]]  # the same points, by the wider reference


def test_a_comparison_is_written(home: Path, tmp_path: Path) -> None:
    ran = run_cli("front", "one", "two", "one", "--home", home, "-o", tmp_path)
    assert ran.code == 0 and f"{tmp_path / 'comparison.html'}" in ran.err
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert [study["study"] for study in written["studies"]] == ["one", "two"]


# --- completion ------------------------------------------------------------------------------------------------------


def completed(words: str, home: Path) -> list[str]:
    """What bash offers for the last word."""
    environment = {
        **os.environ, "COMP_WORDS": words, "COMP_CWORD": str(len(words.split(" ")) - 1),
        "_CST_SEARCH_COMPLETE": "complete_bash", "CST_SEARCH_HOME": str(home),
    }  # fmt: skip
    code = "import sys; from cst_search.cli import main; sys.argv = ['cst-search']; main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=home)
    assert done.stderr == ""
    return done.stdout.split()


def complete(function: Callable[..., list[str]], incomplete: str, **params: Any) -> list[str]:
    context = typer.Context(typer.main.get_command(app))
    context.params = params
    return function(context, incomplete)


def test_a_shell_completes(home: Path) -> None:
    assert completed("cst-search front tw", home) == ["two"]
    # more than one word, or bash would go on behind "method="
    assert completed("cst-search launch --set meth", home)[:3] == ["method=", "method=bitfit", "method=conv_adapter"]
    assert completed("cst-search launch --set epo", home) == ["epochs=", "epochs=12"]
    # bash takes words apart at "=", and replaces the last part
    assert completed("cst-search launch --set epochs = 3 --set method = conv", home) == ["conv_adapter", "conv_lora"]
    assert "bitfit" in completed("cst-search launch --set method =", home)


def test_completions(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cst_search.cli import completion

    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "deep.yaml").touch()
    assert {"one", "two"} <= set(complete(completion.studies, "", home=home))
    assert complete(completion.studies, "", home=tmp_path) == []
    assert complete(completion.recipes, "m") == ["mine.yaml"]
    assert complete(completion.recipes, "folder/") == ["folder/deep.yaml"]
    assert set(complete(completion.recipes, "")) == {*catalog.names("trials"), "mine.yaml", "folder/"}
    assert complete(completion.spaces, "pe") == ["petl"]
    assert complete(completion.settings, "method=conv") == ["method=conv_adapter", "method=conv_lora"]
    assert complete(completion.settings, "cst.re") == ["cst.reduction="]
    assert complete(completion.methods, "cst,he") == ["cst,head"]
    assert set(complete(completion.methods, "")) == {*METHODS, "all"}
    assert complete(completion.picks, "k") == ["knee"]


def test_completion_is_quick_and_never_an_error(tmp_path: Path) -> None:
    from cst_search.cli import completion

    (tmp_path / "studies.db").write_text("this is no database")
    assert complete(completion.studies, "", home=tmp_path) == []
    assert complete(completion.settings, "nosuch.") == []
    assert complete(completion.recipes, "/no/such/folder/") == []
    code = """
import sys, typer
from cst_search.cli import app, completion
context = typer.Context(typer.main.get_command(app))
for name in ("studies", "recipes", "spaces", "shipped", "settings", "methods", "picks"):
    getattr(completion, name)(context, "")
completion.settings(context, "cst.")
print({name.split(".")[0] for name in sys.modules} & {"torch", "optuna", "pydantic", "ray", "mlflow", "sqlalchemy"})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


# --- programs --------------------------------------------------------------------------------------------------------

WITHOUT_JSON = {"ui"}  # prints nothing of its own
WORKS = {"launch", "resume", "confirm", "train", "export", "sync"}


def test_predict_names_the_first_images_on_a_terminal_and_is_json_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        {"class": "ca\nt", "score": 0.91, "box": [1, 2, 3, 4]},
        {"class": "dog", "score": 0.5, "box": [1, 2, 3, 4]},
    ]
    results = [{"image": f"{i}.png", "detections": found if i else []} for i in range(25)]
    monkeypatch.setattr("cst_search.trial.multi_inference.split_runs", lambda paths: (paths[:1], paths[1:]))
    monkeypatch.setattr("cst_search.trial.inference.predict", lambda *_, **__: results)
    command = ("predict", "run", "images", "--no-draw")
    assert json.loads(run_cli(*command).out) == results
    monkeypatch.setattr(PlainConsole, "is_terminal", True)
    first, second, *_, last = lines = run_cli(*command).out.splitlines()
    assert (first, second) == ("0.png: nothing", r"1.png: ca\nt 0.91, dog 0.50") and len(lines) == 21
    assert last == "... and 5 more; --json has all, with boxes"
    assert json.loads(run_cli(*command, "--json").out) == results


@pytest.mark.parametrize(("given", "chosen"), [((), None), (("--pick", "knee"), "knee"), (("--pick", ""), "")])
def test_export_hands_the_pick_on(  # None: the suggested point, see `pick_trial`
    home: Path, monkeypatch: pytest.MonkeyPatch, given: tuple[str, ...], chosen: str | None
) -> None:
    def stop(info: StudyInfo, pick: str | None, *_: object, **__: object) -> None:
        raise UserError(f"asked for {pick!r}")

    monkeypatch.setattr("cst_search.commands.export.export_verified", stop)
    assert f"asked for {chosen!r}" in run_cli("export", "one", "--home", home, *given).message


def test_every_command_that_prints_has_json() -> None:
    root = typer.main.get_command(app)
    commands = dict(root.commands)  # type: ignore[attr-defined]
    for group in ("job", "data"):
        commands |= {f"{group} {name}": command for name, command in commands.pop(group).commands.items()}
    flags = {name: {flag for p in command.params for flag in p.opts} for name, command in commands.items()}
    assert {name for name in flags if "--json" not in flags[name]} == WITHOUT_JSON
    assert {name for name in flags if "--quiet" in flags[name]} == WORKS


def test_cp_for_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert json.loads(run_cli("cp", "demo", "--json").out) == {"name": "demo", "kind": "trials", "path": "demo.yaml"}


def test_quiet_says_nothing_and_errors_are_still_said(
    tmp_path: Path, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]
) -> None:
    out = tmp_path / "out"
    from cst_search.config.loading import write_yaml

    write_yaml(tmp_path / "recipe.yaml", tiny_recipe(method="head").to_dict(), "test")
    words = ["train", tmp_path / "recipe.yaml", "--data", tiny_folder, "--out", out, "--home", tmp_path / "home"]
    ran = run_cli(*words, "--quiet")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    ran = run_cli(*words, "--quiet")
    assert ran.code == 2 and ran.out == "" and "exists and is not empty" in ran.message


def test_sync_for_programs(home: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    ran = run_cli("sync", "two", "--home", home, "--tracking-uri", uri, "--json")
    assert ran.code == 0, ran
    shown = json.loads(ran.out)
    assert (shown["study"], shown["trials"], shown["repeats"]) == ("two", 2, 0)
    client = MlflowClient(uri)  # what is there has the views of today, whichever version made it
    key, experiment = f"{TAG}cst-front", client.get_experiment_by_name("two")
    assert experiment is not None and key in experiment.tags
    client.delete_experiment_tag(experiment.experiment_id, key)
    assert run_cli("sync", "two", "--home", home, "--tracking-uri", uri, "--quiet").code == 0
    assert client.get_experiment(experiment.experiment_id).tags[key] == experiment.tags[key]


def test_no_color_reaches_what_is_started(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from cst_search.cli.app import out

    monkeypatch.setenv("NO_COLOR", "")
    monkeypatch.setattr(out, "no_color", False)
    assert run_cli("--no-color", "list", "--home", home).code == 0
    assert out.no_color and os.environ["NO_COLOR"] == "1"


def test_status_says_what_further_trials_would_bring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the sampler expected it at the last suggestion that says it: the second has no outlook."""
    outlooks = [Outlook(gain=0.002, noise=0.02), None]

    def suggest(self: ParetoSampler, *_: Any) -> dict[str, Any]:
        self.outlook = outlooks.pop(0)
        return self._layout.params(self._layout.draw(1, self._rng)[0])

    monkeypatch.setattr(ParetoSampler, "sample_relative", suggest)
    session = make_study(tmp_path, sampler="pareto-no-prior", budget=Budget())
    session.suggester.begin()
    for _ in range(2):
        run_one(session, scored(0.5))
    assert "the next 10" not in run_cli("status", "made", "--home", tmp_path).out  # too few trials
    monkeypatch.setattr("cst_search.study.records.LEAST_SAID", 2)
    said = run_cli("status", "made", "--home", tmp_path).out
    assert (
        "the next 10 trials are expected to add about 1.0 % to the hypervolume; other seeds change it by 2.0 %" in said
    )
    report = json.loads(run_cli("status", "made", "--home", tmp_path, "--json").out)
    assert report["outlook"] == {"gain": 0.002, "noise": 0.02}
