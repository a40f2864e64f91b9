"""A person's mistakes on the command line: one message, exit code 2, nothing written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from read_study import NAME
from studies import run_cli

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


def test_a_real_process_says_the_same(tmp_path: Path) -> None:
    """As the person has it: an exit code, one line on standard error that a pipe does not break, no traceback."""
    command = [sys.executable, "-m", "cst_search.cli", "front", "x" * 200, "--home", str(tmp_path / "none")]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("cst-search: there are no studies in ") and ended.stderr.count("\n") == 1
