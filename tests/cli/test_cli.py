"""The command line: a person's mistakes, help, and the commands that read. (What searches is in test_launch.py.)"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import typer.rich_utils
from studies import FakeEstimate, Ran, fake_estimate, make_study, run_cli, run_one, scored

from cst_search import __version__, cli
from cst_search.cli import app
from cst_search.config import catalog
from cst_search.config.loading import write_yaml
from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.petl import METHODS
from cst_search.search.session import SearchSession
from cst_search.study.study import Study
from cst_search.trial import cost

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one study: two points on the front, one dominated, one failed, one running."""
    home = tmp_path / "home"
    home.mkdir()
    fill(make_study(home, "<script>alert(1)</script>"))
    return home


def fill(session: SearchSession) -> SearchSession:
    session.begin_launch()
    for i, (quality, measured) in enumerate(((0.6, 900), (0.5, 400), (0.4, 500))):
        run_one(session, scored(quality, device_bytes=measured), cst__reduction=4, batch_size=2, lr=0.01 + i / 1000)
    run_one(
        session, {"outcome": "failed", "reason": "ValueError: [/bold] & <b>"}, cst__reduction=4, batch_size=2, lr=0.02
    )
    session.enqueue({"method": "cst", "cst.reduction": 4, "batch_size": 2, "lr": 0.015})
    session.ask(fake_estimate)  # type: ignore[arg-type]
    return session


NAME = "<script>alert(1)</script>"


# --- a person's mistakes --------------------------------------------------------------------------------------------

# why, the command, what the message must contain. {tmp}: a folder with a tiny data set, recipes and spaces
# (`mistakes` below); {gone}: nothing.
MISTAKES: list[tuple[str, str, tuple[str, ...]]] = [
    ("a unit that is none", "launch --budget-mem 6GBB", ("a memory size must be", "6GiB", "'6GBB'")),
    ("a comma for a point", "launch --budget-mem 6,5GB", ("a memory size must be", "'6,5GB'")),
    ("nothing at all", "launch --budget-mem 0", ("must be above zero", "'0'")),
    ("no unit", "launch --budget-mem 6", ("--budget-mem: a memory size must have a unit", "'6'", "write 6GB")),
    ("a limit without a unit", "launch --limit-mem 8", ("--limit-mem: ", "write 8GB")),
    ("a cache without a unit", "launch --cache-size 20", ("--cache-size: ", "write 20GB")),
    ("a time without a unit", "launch --time-limit 8", ("--time-limit: a duration must have a unit", "8m or 8h")),
    ("two parameters", "launch --budget-params 2", ("--budget-params: ", "'2'", "write 2M")),
    ("a fit without a unit", "estimate --fit 6", ("--fit: a memory size must have a unit", "write 6GB")),
    ("a storage without a unit", "allocate a b --budget-storage 8", ("a memory size must have a unit", "write 8GB")),
    ("a field misspelt", "launch --set batchsize=4", ("no such dimension: batchsize", "did you mean 'batch_size'?")),
    ("an option misspelt", "launch --set cst.reducton=4", ("no option 'reducton'", "did you mean 'reduction'?")),
    ("a method misspelt", "estimate --set method=CST1", ("method must be one of", "did you mean 'cst'?")),
    ("a part of a method", "estimate --set method=lora", ("got 'lora'", "did you mean 'conv_lora'?")),
    ("a method to compare", "estimate --compare cst,hed", ("got 'cst,hed'", "did you mean 'head'?")),
    ("a choice misspelt", "estimate --set precision=fp36", ("precision must be one of", "did you mean 'fp32'?")),
    ("a recipe misspelt", "estimate --recipe resnet5", ("recipe 'resnet5'", "did you mean 'resnet50'?")),
    ("a device misspelt", "launch --device cuda:0", ("'cuda:0'", "did you mean 'cuda'?")),
    ("an objective misspelt", "launch --objectives map,trainable", ("did you mean 'trainable_params'?",)),
    ("a negative budget", "launch --budget-mem=-6GB", ("a memory size must be", "'-6GB'")),
    ("bytes for a count", "launch --budget-params 2MB", ("a parameter count must be", "2M or 500k", "'2MB'")),
    ("a duration", "launch --time-limit soon", ("a duration must be", "10m", "'soon'")),
    ("no trials", "launch --trials 0", ("--trials",)),
    ("a fraction of a trial", "launch --trials 1.5", ("--trials",)),
    ("no workers", "launch --workers 0", ("--workers",)),
    ("a negative seed", "launch --seed -1", ("--seed",)),
    ("a device that is none", "launch --device tpu", ("--device must be one of auto, cpu, cuda", "'tpu'")),
    ("a GPU where there is none", "launch --device cuda", ("--device cuda: torch sees no GPU here",)),
    (
        "two objectives for a sampler that models one",
        "launch --sampler pareto --objectives map,map50",
        ("--sampler pareto models exactly one of map and map50", "map and map50", "another --sampler: tpe"),
    ),
    (
        "a sampler that is none",
        "launch --sampler bayes",
        ("--sampler must be one of pareto, pareto-no-prior, tpe, nsga2, gp, random", "'bayes'"),
    ),
    ("objectives", "launch --objectives map,speed", ("--objectives takes different names", "'map,speed'")),
    ("an objective twice", "launch --objectives map,map", ("--objectives takes different names", "'map,map'")),
    ("an unknown flag", "launch --budget 6GB", ("No such option", "--budget")),
    ("a slash in a name", "launch --study a/b", ("--study must be a name", "without slashes", "'a/b'")),
    ("a name that leaves its folder", "launch --study ..", ("--study must be a name", "'..'")),
    ("a name without letters", "launch --study=", ("--study must be a name", "''")),
    ("a name with a control character", "launch --study a\x1bb", ("--study must be a name", "'a\\x1bb'")),
    ("a name that is taken by a file", "launch --study studies.db", ("--study must be a name", "'studies.db'")),
    ("an unknown recipe", "launch --recipe nosuch", ("recipe 'nosuch' is neither", "demo")),
    ("an unknown space", "launch --space nosuch", ("search space 'nosuch' is neither", "cst")),
    ("a recipe that is no YAML", "launch --recipe {tmp}/broken.yaml", ("broken.yaml: is not valid YAML", "line")),
    ("a recipe with faults", "launch --recipe {tmp}/faults.yaml", ("epochs", "'12'", "typo is not a field")),
    ("a space with faults", "launch --space {tmp}/faults.yaml", ("faults.yaml", "`methods` must be a list")),
    ("a space of an unknown method", "launch --space {tmp}/lora9.yaml", ("method must be one of", "'lora9'")),
    ("a recipe of an unknown method", "launch --set method=lora9", ("method must be one of", "'lora9'")),
    ("no data", "launch --data {gone}", ("{gone}",)),
    ("a file for a folder", "launch --data {tmp}/faults.yaml", ("faults.yaml",)),
    ("a folder without a data set", "launch --data {tmp}/empty", ("{tmp}/empty has", "train.json")),
    ("a data set with faults", "launch --data {tmp}/shapes", ("1 fault", "--skip-bad")),
    ("a setting without a value", "launch --set lr", ("--set takes name=value", "'lr'")),
    ("an unknown setting", "launch --set rate=1", ("no such dimension: rate",)),
    ("a setting out of range", "launch --set epochs=0", ("epochs must be a whole number", "got 0")),
    ("a setting of the wrong kind", "launch --set width=wide", ("width must be a number", "'wide'")),
    ("an option of the wrong kind", "launch --set cst.mtc_stages=5", ("mtc_stages must be a list", "got 5")),
    ("an option that is none", "launch --set cst.size=5", ("'cst' has no option 'size'", "reduction")),
    ("a database that is none", "launch --storage studies", ("--storage takes a database URL",)),
    (
        "a kind of database that is none",
        "launch --storage nosuch://me:pw@host/x",
        ("--storage takes", "nosuch://me:***@host"),
    ),
    ("a size of the cache that is none", "launch --cache-size lots", ("a memory size must be", "'lots'")),
    ("likewise", "train demo --out {gone} --cache-size -1GB", ("a memory size must be", "'-1GB'")),
    (
        "a driver that is missing",
        "launch --storage postgresql+pg8000://me:pw@host/x",
        ("postgresql+pg8000://me:***@host/x: its driver", "cst-search[cluster]"),
    ),
    ("a database that we do not take", "launch --storage mysql://me:pw@host/x", ("takes a database URL", "mysql")),
    ("weights that are not there", "launch --set weights={gone}", ("weights must be DEFAULT, COCO", "{gone}")),
    ("an unknown command", "lanch", ("No such command 'lanch'",)),
    ("no study", "front", ("there are no studies in",)),
    ("data to look at", "data check {gone}", ("there is no folder {gone}",)),
    ("no data to look at", "data check {tmp}/empty", ("{tmp}/empty has no split", "--val-fraction", "data.yaml")),
    ("a share that is none", "data check {tmp}/shapes --val-fraction 2", ("val_fraction must be a share from 0.01",)),
    ("a share of a set with a split", "data check {tmp}/shapes --val-fraction 0.2", ("is for a set without",)),
    ("a sheet that is there", "data check {tmp}/shapes --sheet {tmp}/faults.yaml", ("--sheet must be a new file",)),
    ("a place that is taken", "data convert {tmp}/shapes {tmp}", ("OUT must be a new folder",)),
    ("a data set with faults", "data convert {tmp}/shapes {gone}", ("1 fault", "--skip-bad")),
    ("no studies at all", "front mine", ("there are no studies in", "cst-search launch", "--home")),
    ("likewise", "status mine", ("there are no studies in", "--home")),
    ("likewise", "export mine", ("there are no studies in", "--home")),
    ("a storage that is not there", "front mine --storage sqlite:///{gone}/x.db", ("does not exist",)),
    ("likewise", "list --storage sqlite:///{gone}/x.db", ("does not exist",)),
    ("no record to look at", "ui", ("there is no record in", "--home")),
    ("a port that is none", "ui --port 99999", ("--port",)),
    ("nothing shipped of that name", "cp nosuch {gone}", ("nothing shipped is called 'nosuch'", "demo")),
    ("a file that is there", "cp demo {tmp}/faults.yaml", ("faults.yaml exists", "--force")),
    ("a folder that is not there", "cp demo {gone}/x.yaml", ("{gone}/x.yaml cannot be written",)),
    ("a recipe to train that is none", "train nosuch --out {gone}", ("recipe 'nosuch' is neither",)),
    ("nowhere to put it", "train demo", ("Missing option", "--out")),
    ("a place that is taken", "train demo --out {tmp}", ("--out {tmp}: exists and is not empty",)),
    ("a place that is a file", "train demo --out {tmp}/faults.yaml", ("faults.yaml: exists and is not empty",)),
    ("a device to train on", "train demo --out {gone} --device gpu", ("--device must be one of", "'gpu'")),
    ("a GPU to train on", "train demo --out {gone} --device cuda", ("--device cuda: torch sees no GPU here",)),
    ("data to train on", "train demo --out {gone} --data {tmp}/empty", ("{tmp}/empty has",)),
    ("a method to train", "train demo --out {gone} --set method=lora9", ("method must be one of", "'lora9'")),
    ("an estimate of nothing", "estimate --recipe nosuch", ("recipe 'nosuch' is neither",)),
    ("an estimate of a wrong value", "estimate --recipe demo --set lr=fast", ("lr must be a number", "'fast'")),
    ("of an option of another method", "estimate --recipe demo --set csr.x=8", ("--set csr.x: the method is 'cst'",)),
    ("of no classes", "estimate --classes 0", ("--classes",)),
    ("a memory to fit that is none", "estimate --fit 6GBB", ("a memory size must be", "6GiB", "'6GBB'")),
    ("a card that is none", "estimate --device RTX3061", ("--device must be a card", "'RTX3061'", "near it: RTX 3060")),
    ("a card of two sizes", "estimate --device A100", ("several cards: A100 40GB, A100 80GB; give one",)),
    ("more than the card has", "estimate --device T4 --fit 16GB", ("--fit must be within", "(T4: 15.6 GB)", "'16GB'")),
    ("a method to compare", "estimate --compare cst,lora9", ("--compare takes different methods", "'cst,lora9'")),
    ("operations without a unit", "launch --budget-flops 5", ("must have a unit", "'5'", "5GFLOP or 5GMAC")),
    ("operations or multiply-adds", "launch --budget-flops 5G", ("must have a unit", "'5G'", "5GFLOP or 5GMAC")),
    ("a delta without a unit", "launch --budget-delta 4", ("must have a unit", "'4'")),
    (
        "no objective",
        "launch --objectives map,flop",
        ("--objectives takes", "'map,flop'", "marginal_flops", "did you mean 'flops'?"),
    ),
    ("no number of tasks", "estimate --tasks 1,x", ("--tasks takes whole numbers from 1 to 10000", "'1,x'", "1,5,20")),
    ("no task", "estimate --tasks 0", ("--tasks takes whole numbers", "'0'")),
    ("too many tasks", "estimate --tasks 10001", ("--tasks takes whole numbers", "'10001'")),
    ("no method to compare", "estimate --compare=", ("--compare takes different methods", "''", "side_tuning")),
]


@pytest.fixture(scope="module")
def mistakes(tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path) -> Path:
    import shutil

    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "broken.yaml").write_text("lr: [1,\n")
    (folder / "faults.yaml").write_text("epochs: '12'\ntypo: 1\n")
    (folder / "lora9.yaml").write_text("methods: [lora9]\n")
    (folder / "empty").mkdir()
    shutil.copytree(tiny_folder, folder / "shapes")
    annotations = json.loads((folder / "shapes" / "train.json").read_text())
    annotations["annotations"][0]["bbox"][2] = -5
    (folder / "shapes" / "train.json").write_text(json.dumps(annotations))
    return folder


@pytest.mark.parametrize(
    ("why", "command", "said"), MISTAKES, ids=[f"{command.split()[0]}: {why}" for why, command, _ in MISTAKES]
)
def test_a_mistake_is_one_message_and_nothing_is_written(
    mistakes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, why: str, command: str, said: tuple[str, ...]
) -> None:
    if "GPU" in why and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("CST_SEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "300")
    before = {path: path.stat().st_mtime_ns for path in mistakes.rglob("*")}
    places = {"tmp": str(mistakes), "gone": str(tmp_path / "gone")}
    ran = run_cli(*(word.format(**places) for word in command.split(" ")))
    assert ran.code == 2, ran
    for part in said:
        assert part.format(**places) in ran.message
    if "cst-search: " in ran.err:  # ours: the rule, the value, the remedy, and no more
        assert ran.err.startswith("cst-search: ") and ran.err.count("cst-search: ") == 1
    assert "Traceback" not in ran.err and ran.out == ""
    # what was decoded of a data set is kept, so that the next check is quick
    allowed = {tmp_path / "home" / "checked-images.json"} if "faults" in why else set()
    assert {path for path in tmp_path.rglob("*") if path.is_file()} <= allowed
    assert allowed or not (tmp_path / "home").exists()
    assert {path: path.stat().st_mtime_ns for path in mistakes.rglob("*")} == before


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("front", "nosuch"), "there is no study 'nosuch' in"),
        (("status", "nosuch"), repr(NAME)),  # those that exist are named
        (("export", "nosuch"), "there is no study 'nosuch'"),
        (("export", NAME, "--pick", "smallest", "-o", "x.yaml"), "--pick takes knee, best or trial=N; got 'smallest'"),
        (("export", NAME, "--pick", "trial=3", "-o", "x.yaml"), "trial 3 is failed; complete are [0, 1, 2]"),
        (("export", NAME, "-o", "file/x.yaml"), "cannot be written"),
        (("launch", "--study", NAME), "--study must be a name of 1 to 100 characters without slashes"),
    ],
)
def test_mistakes_with_a_study(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    before = sorted(tmp_path.rglob("*"))
    ran = run_cli(*command, "--home", home)
    assert (ran.code, said in ran.message) == (2, True), ran
    assert sorted(tmp_path.rglob("*")) == before


def test_a_home_that_is_a_file(tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "file").write_text("")
    ran = run_cli("launch", "--in-process", "--data", tiny_folder, "--home", tmp_path / "file")
    assert ran.code == 2 and "cannot" in ran.message and str(tmp_path / "file") in ran.message


def test_a_program_ends_at_once_and_yet_in_order() -> None:
    """Threads that are waited for, what was registered for the end, and what was printed."""
    code = """
import atexit, sys, threading, time
from cst_search import cli
def main():
    threading.Thread(target=lambda: (time.sleep(0.3), print("thread"))).start()
    atexit.register(print, "the end")
    sys.exit({code})
cli.main = main
cli.run()
"""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    for given, expected, said in (("0", 0, ""), ("2", 2, ""), ("None", 0, ""), ("'why'", 1, "why\n")):
        command = [sys.executable, "-c", code.replace("{code}", given)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)
        assert (done.returncode, done.stdout, done.stderr) == (expected, "thread\nthe end\n", said)


def test_a_real_process_says_the_same(tmp_path: Path) -> None:
    """As the person has it: an exit code, one line on standard error that a pipe does not break, no traceback."""
    command = [sys.executable, "-m", "cst_search.cli", "front", "x" * 200, "--home", str(tmp_path / "none")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("cst-search: there are no studies in ") and ended.stderr.count("\n") == 1


# --- help -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = run_cli(command, "--help")
    assert ran.code == 0
    assert f"cst-search {command}" in ran.out
    short = run_cli(command, "-h")
    assert short.out == ran.out


def test_what_is_written_has_one_option_in_every_command() -> None:
    """A person who has typed ``train ... --out`` types ``pack ... --out``."""
    found = {
        name: set(parameter.opts)
        for name, command in typer.main.get_command(app).commands.items()  # type: ignore[attr-defined]
        for parameter in command.params
        if {"--out", "--output"} & set(parameter.opts)
    }
    assert set(found) == {"allocate", "export", "front", "pack", "predict", "train"}
    assert all(flags == {"--out", "--output", "-o"} for flags in found.values())


def test_every_command_is_in_a_group() -> None:
    """The help of 21 commands in a row is read by nobody."""
    groups = [one.rich_help_panel for one in (*app.registered_commands, *app.registered_groups)]
    assert set(groups) == {"Search", "Use what was found", "Before a search", "Records and clusters"}


def test_help_names_every_command_and_needs_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['cst-search', '--help']\n"
        "from cst_search import cli\n"
        "try: cli.main()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'ray', 'optuna', 'mlflow', 'numpy', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    assert all(f" {command} " in ended.stdout for command in COMMANDS)


def test_without_a_command_there_is_help() -> None:
    ran = run_cli()
    assert "launch" in ran.out + ran.err


def test_version() -> None:
    assert run_cli("--version") == Ran(0, f"cst-search {__version__}\n", "")


# --- commands that read ---------------------------------------------------------------------------------------------


def test_list(home: Path) -> None:
    make_study(home, "second")
    ran = run_cli("list", "--home", home, "--json")
    first, second = json.loads(ran.out)
    assert set(first) == {"study", "started", "data", "trials", "best_map", "hypervolume"}
    assert (first["study"], first["best_map"], first["trials"]["complete"]) == (NAME, 0.6, 3)
    assert (second["study"], second["best_map"], second["trials"]["total"]) == ("second", None, 0)
    text = run_cli("list", "--home", home)
    assert text.code == 0 and NAME in text.out and "second" in text.out


def test_list_where_there_is_nothing(tmp_path: Path) -> None:
    ran = run_cli("list", "--home", tmp_path / "none")
    assert ran.code == 0 and "no studies in" in ran.out
    assert json.loads(run_cli("list", "--home", tmp_path / "none", "--json").out) == []
    assert not (tmp_path / "none").exists()


def test_status(home: Path) -> None:
    content = json.loads(run_cli("status", NAME, "--home", home, "--json").out)
    assert set(content) == {"study", "trials", "hypervolume", "outlook", "all", "repeats"}
    assert [entry["state"] for entry in content["all"]] == ["complete"] * 3 + ["failed", "running"]
    assert content["all"][3]["reason"] == "ValueError: [/bold] & <b>"
    text = run_cli("status", NAME, "--home", home)
    assert text.code == 0
    assert "[/bold] & <b>" in text.out  # what a trial said is no markup
    assert "5 trials (3 complete, 1 failed, 1 running)" in text.out


def test_status_of_many_trials_shows_the_last_and_what_has_not_finished(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli.studies, "_ROWS", 2)
    whole = Study.open(f"sqlite:///{home / 'studies.db'}", NAME).info()
    states = ["interrupted", "complete", "failed", "running", "complete", "infeasible"]
    trials = tuple(replace(whole.trials[0], trial=10 + i, state=state) for i, state in enumerate(states))
    info = replace(whole, trials=trials)
    monkeypatch.setattr(Study, "info", lambda self: info)

    def shown(*arguments: str) -> list[int]:
        text = run_cli("status", NAME, "--home", home, *arguments).out
        assert ("the last 2; --all shows the 2 before them too" in text) == (not arguments)
        assert "6 trials (" in text
        return [int(number) for number in re.findall(r"^│ +(?:best )?(\d+) +│", text, re.MULTILINE)]

    assert shown() == [10, 13, 14, 15]
    assert shown("--all") == [10, 11, 12, 13, 14, 15]


def test_front(home: Path) -> None:
    report = json.loads(run_cli("front", NAME, "--home", home, "--json").out)
    assert set(report) == {
        "study", "objectives", "budget", "trials", "reference_point", "compared_reference", "context_bytes",
        "hypervolume", "knee", "suggested_pick", "front", "methods", "importance",
    }  # fmt: skip
    assert [set(objective) for objective in report["objectives"]] == [{"name", "goal"}] * 3
    assert report["budget"] == {"memory_bytes": 1000, "params": None, "delta_bytes": None, "flops": None}
    assert set(report["trials"]) == {"total", "complete", "pruned", "infeasible", "failed", "running", "repeats"}
    assert set(report["reference_point"]) == {"map", "device_bytes", "trainable_params"}
    assert [entry["trial"] for entry in report["front"]] == [0, 1]
    for entry in report["front"]:
        assert list(entry) == [
            "trial", "config", "map", "map50", "device_bytes", "working_bytes", "memory_source", "trainable_params",
            "petl_params", "delta_bytes", "inference_bytes", "flops", "marginal_flops",
            "n_seeds", "map_mean", "map_std", "map50_mean", "map50_std",
        ]  # fmt: skip
        assert set(entry["config"]) == {"method", "cst.reduction", "cst.mtc_stages", "batch_size", "lr", "recompute"}
    assert report["knee"] in (0, 1)
    text = run_cli("front", NAME, "--home", home)
    assert text.code == 0 and NAME in text.out and f"knee {report['knee']}" in text.out


def test_front_writes_a_page_in_which_a_hostile_name_is_text(home: Path, tmp_path: Path) -> None:
    ran = run_cli("front", NAME, "--home", home, "-o", tmp_path / "page", "--json")
    assert ran.code == 0 and json.loads(ran.out)["study"] == NAME
    assert sorted(path.name for path in (tmp_path / "page").iterdir()) == ["front.html", "front.json", "front.png"]
    page = (tmp_path / "page" / "front.html").read_text()
    assert NAME not in page and "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "& <b>" not in page  # the reason of the failed trial


def test_front_of_a_study_without_one(home: Path) -> None:
    make_study(home, "second")
    ran = run_cli("front", "second", "--home", home)
    assert ran.code == 0 and "no feasible complete trial yet" in ran.out
    report = json.loads(run_cli("front", "second", "--home", home, "--json").out)
    assert (report["front"], report["knee"], report["hypervolume"]) == ([], None, 0.0)


def test_the_storage_of_a_team(home: Path) -> None:
    ran = run_cli("front", NAME, "--storage", f"sqlite:///{home / 'studies.db'}", "--json")
    assert ran.code == 0 and len(json.loads(ran.out)["front"]) == 2


def test_home_is_taken_from_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CST_SEARCH_HOME", str(home))
    assert json.loads(run_cli("list", "--json").out)[0]["study"] == NAME


def test_estimate(tmp_path: Path, tiny_recipe: Callable[..., Recipe]) -> None:
    write_yaml(tmp_path / "mine.yaml", tiny_recipe(method="cst").to_dict(), "test")

    def estimate(*more: Any) -> dict[str, Any]:
        ran = run_cli("estimate", "--recipe", tmp_path / "mine.yaml", "--classes", 3, "--json", *more)
        assert ran.code == 0, ran
        return json.loads(ran.out)

    found = estimate("--set", "cst.reduction=4", "--set", "batch_size=4")
    assert list(found) == [
        "config", "device_bytes", "working_bytes", "reserved_bytes", "active_bytes", "trainable_params",
        "petl_params", "delta_bytes", "inference_bytes", "flops", "marginal_flops", "breakdown", "target_device",
    ]  # fmt: skip
    assert {"method": "cst", "cst.reduction": 4, "batch_size": 4}.items() <= found["config"].items()
    assert 0 < found["active_bytes"] <= found["reserved_bytes"] <= found["device_bytes"]
    assert sum(found["breakdown"].values()) == found["device_bytes"]
    assert found["working_bytes"] == found["device_bytes"] - found["breakdown"]["context"]
    assert 0 < found["petl_params"] < found["trainable_params"]
    assert estimate("--set", "batch_size=16")["device_bytes"] > found["device_bytes"]
    text = run_cli("estimate", "--recipe", tmp_path / "mine.yaml")
    assert text.code == 0 and "device memory" in text.out and "trainable parameters" in text.out
    assert "CUDA context (fixed cost)" in text.out and "working memory" in text.out


@pytest.fixture
def formula(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe], int]:
    """Device bytes by a formula instead of a trace: 1 GB, and 1 GB for every million pixels of the batch; `full` 4."""

    def needed(recipe: Recipe) -> int:
        pixels = recipe.batch_size * recipe.image_size_px * recipe.max_size_px
        return 10**9 + 1000 * pixels * (4 if recipe.method == "full" else 1)

    def predict(recipe: Recipe, n_classes: int, shape: Any, gpu: Any) -> FakeEstimate:
        n = needed(recipe)
        parts = {"weights": 10**8, "rest_of_it": n - 11 * 10**8, "context": 10**9}
        return FakeEstimate(n, trainable_params=1000, reserved_bytes=n - 10, active_bytes=n - 20, breakdown=parts)

    monkeypatch.setattr(cost, "predict", predict)
    return needed


SQUARE = ("estimate", "--recipe", "small", "--set", "image_size_px=1000", "--set", "max_size_px=1000")  # batch 4


def test_estimate_is_a_table_with_a_bar_for_each_part(formula: Callable[[Recipe], int]) -> None:
    ran = run_cli(*SQUARE)
    lines = {line.split("│")[1].strip(): line for line in ran.out.splitlines() if line.count("│") > 3}
    assert list(lines) == [
        "weights",
        "rest of it",
        "CUDA context (fixed cost)",
        "active memory",
        "reserved memory",
        "working memory",
        "device memory",
    ]
    assert [part in lines["weights"] for part in ("100 MB", "2 %")] == [True, True]
    assert lines["rest of it"].count("█") > 20 > lines["weights"].count("█")
    assert "5 GB" in lines["device memory"] and "What fits" not in ran.out


@pytest.mark.parametrize("device", [(), ("--device", "A100 40GB")])
def test_estimate_fit(formula: Callable[[Recipe], int], device: tuple[str, ...]) -> None:
    content = json.loads(run_cli(*SQUARE, "--fit", "6GB", *device, "--json").out)
    assert list(content)[-1] == "fit" and "compare" not in content
    fit = content["fit"]
    assert set(fit) == {"budget_bytes", "device", "recipe", "bounds", "methods", "cheapest", "smaller_network"}
    assert fit["budget_bytes"] == 6 * 10**9
    assert (fit["device"] and fit["device"]["name"]) == (device[1] if device else None)
    assert fit["recipe"] == {"batch_size": 4, "image_size_px": 1000, "max_size_px": 1000}
    assert fit["bounds"] == {"batch_size": 256, "image_size_px": 2048}
    methods = {row["method"]: row for row in fit["methods"]}
    assert list(methods) == list(METHODS)
    assert methods["head"] == {
        "method": "head", "device_bytes": 5 * 10**9, "batch_1_bytes": 2 * 10**9, "fits": True, "batch_size": 5,
        "image_size_px": 1088, "image_size_px_batch_1": 2048, "changes": [],
    }  # fmt: skip
    assert (methods["full"]["fits"], methods["full"]["batch_size"]) == (False, 1)
    (change,) = methods["full"]["changes"]
    assert change == {"settings": {"batch_size": 1, "accumulate": 4}, "device_bytes": 5 * 10**9}
    text = run_cli(*SQUARE, "--fit", "6GB", *device)
    assert text.code == 0 and "What fits in" in text.out and "83 % used, 1 GB left" in text.out
    assert "batch_size=1 accumulate=4 (5 GB)" in text.out and "2048+ px" in text.out


def test_estimate_where_nothing_fits(formula: Callable[[Recipe], int]) -> None:
    ran = run_cli(*SQUARE, "--fit", "1.5GB")
    assert ran.code == 0  # that is an answer too
    assert "too large by 3.5 GB" in ran.out
    assert "no method fits at batch 1 and 1000 px; the one that needs least, cst, needs 2 GB" in ran.out
    assert "batch_size=1 image_size_px=704 max_size_px=704 (1.5 GB)" in ran.out


def test_estimate_for_a_card(formula: Callable[[Recipe], int]) -> None:
    device = json.loads(run_cli(*SQUARE, "--device", "jetson orin nano", "--json").out)["fit"]["device"]
    assert device["name"] == "Jetson Orin Nano 8GB" and device["usable_bytes"] < device["memory_bytes"] == 2**33
    text = run_cli(*SQUARE, "--device", "jetson orin nano")
    assert "What fits in the 7.91 GB of Jetson Orin Nano 8GB" in text.out and "shared with the CPU" in text.out
    assert any("unmeasured on Ampere" in note for note in device["notes"]) and "unmeasured on Ampere" in text.out


def test_estimate_compare(formula: Callable[[Recipe], int]) -> None:
    content = json.loads(run_cli(*SQUARE, "--compare", "head,full", "--json").out)
    assert "fit" not in content
    head, full = content["compare"]
    assert head == {
        "method": "head", "device_bytes": 5 * 10**9, "reserved_bytes": 5 * 10**9 - 10, "active_bytes": 5 * 10**9 - 20,
        "trainable_params": 1000, "petl_params": 10, "device_ratio": 5 / 17,
        "active_ratio": (5 * 10**9 - 20) / (17 * 10**9 - 20), "working_bytes": 4 * 10**9, "working_ratio": 4 / 16,
        "trainable_ratio": 1.0, "saved_bytes": 4000,
    }  # fmt: skip
    assert (full["method"], full["device_ratio"]) == ("full", 1.0)
    text = run_cli(*SQUARE, "--compare", "head,full")
    assert text.code == 0 and "29 %" in text.out and "100 %" in text.out
    assert "working" in text.out and "25 %" in text.out


def test_estimate_tasks() -> None:
    content = json.loads(run_cli(*SQUARE, "--tasks", "1,5", "--json").out)
    own, adapters, whole = content["tasks"]
    assert [(row["kind"], row["method"]) for row in content["tasks"]] == [
        ("one base", "cst"), ("one base", "conv_lora"), ("whole", None),
    ]  # fmt: skip
    for row in (own, adapters, whole):
        assert [cost["n_tasks"] for cost in row["costs"]] == [1, 5]
    one, five = own["costs"]
    assert five["flops"] - one["flops"] == 4 * content["marginal_flops"] < 4 * content["flops"]
    assert five["storage_bytes"] - one["storage_bytes"] == 4 * content["delta_bytes"]
    one, five = whole["costs"]
    assert five["flops"] == 5 * one["flops"] and five["storage_bytes"] == 5 * one["storage_bytes"]
    assert adapters["costs"][1]["flops"] == 5 * adapters["costs"][0]["flops"]  # they enter the body

    text = run_cli(*SQUARE, "--tasks", "1,5").out
    assert "cst, one base" in text and "merged adapters" in text and "GFLOP" in text
    assert "tasks" not in json.loads(run_cli(*SQUARE, "--json").out)


@pytest.mark.parametrize("words", [("--compare",), ("--compare", "--json"), ("--compare=all",), ("--compare", "all")])
def test_compare_without_a_list_means_all_methods(formula: Callable[[Recipe], int], words: tuple[str, ...]) -> None:
    before = run_cli("estimate", "--recipe", "small", *words, *(() if "--json" in words else ("--json",)))
    after = run_cli("estimate", "--json", "--recipe", "small", *words)
    assert before == after
    assert [row["method"] for row in json.loads(before.out)["compare"]] == list(METHODS)


def test_ls_and_cp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = json.loads(run_cli("ls", "--json").out)
    assert found.pop("plugins") == []
    assert found.pop("detectors") == list(DETECTORS) and all(name in run_cli("ls").out for name in DETECTORS)
    assert found == {kind: catalog.names(kind) for kind in ("trials", "search_spaces")}  # type: ignore[arg-type]
    text = run_cli("ls").out
    assert all(name in text for names in found.values() for name in names)
    monkeypatch.chdir(tmp_path)
    for kind, names in found.items():
        for name in names:
            ran = run_cli("cp", name)
            assert (ran.code, ran.out) == (0, f"{name}.yaml\n")
            assert (tmp_path / f"{name}.yaml").read_bytes() == catalog.shipped(kind, name).read_bytes()
    (tmp_path / "demo.yaml").write_text("changed")
    assert run_cli("cp", "demo").code == 2
    assert (tmp_path / "demo.yaml").read_text() == "changed"
    assert run_cli("cp", "demo", "--force").code == 0
    assert (tmp_path / "demo.yaml").read_text() != "changed"


def test_ui_becomes_mlflow_on_loopback_without_telemetry(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "mlflow.db").write_text("")
    seen: dict[str, Any] = {}

    def become(path: str, command: list[str], environment: dict[str, str]) -> None:
        seen.update(command=command, environment=environment)

    monkeypatch.setattr(os, "execve", become)
    assert run_cli("ui", "--home", home, "--port", 5055).code == 0
    command = seen["command"]
    assert command[command.index("--host") + 1] == "127.0.0.1" and command[command.index("--port") + 1] == "5055"
    assert seen["environment"]["MLFLOW_DISABLE_TELEMETRY"] == "true"


def _with_subcommands(command: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    yield words, command
    for name, inner in getattr(command, "commands", {}).items():
        yield from _with_subcommands(inner, (*words, name))


def test_help_has_every_text_whole_and_no_python_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rich drops "[default: ...]" and "cst-search[onnx]" as markup; recent typer shows `<list[str]>` for a value."""
    monkeypatch.setattr(typer.rich_utils, "MAX_WIDTH", 400)
    for words, command in _with_subcommands(typer.main.get_command(app)):
        shown = run_cli(*words, "--help").out.replace("\u2502", " ")
        flat = " ".join(shown.split())
        texts = [text for p in command.params if (text := getattr(p, "help", None))]
        assert [text for text in texts if " ".join(text.split()) not in flat] == [], words
        assert re.findall(r"<\w+.*?>|\w+\[\w+\]|[{}]", shown) == [], words
        assert not re.search(r"^ +(--json|--help +-h) +[A-Z]{2,}", shown, re.M), words  # a flag takes no value
