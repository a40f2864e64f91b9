"""Whatever a person may get wrong: exit code 2, one message with the rule, the value and the remedy, nothing written.

Mistakes of spelling in flags are in test_cli.py too; here are those in files and addresses, and every command.
"""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file
from studies import FakeEstimate, Ran, make_study, run_cli, run_one, scored

from cst_search.commands import budget_survey, study_setup, worker_setup
from cst_search.commands import train as training
from cst_search.commands.dataset import dataset_inputs
from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.detector.build import build_detector
from cst_search.detector.weights import save_trained
from cst_search.errors import UserError
from cst_search.execution.ray_tune import Ray
from cst_search.execution.workers import InProcess
from cst_search.trial import cost

Document = dict[str, Any]

# which images of a data set were decoded is kept, so that the check after the correction is quick
REMEMBERED = {"gone", "gone/home", "gone/home/checked-images.json", "home/checked-images.json"}
# flags with which a launch would be over in seconds, if it took what it must not take
TINY = "launch --data {data} --recipe {recipe} --space {space} --device cpu --in-process --trials 1"


@pytest.fixture(scope="module")
def places(
    tmp_path_factory: pytest.TempPathFactory, tiny_folder: Path, tiny_recipe: Callable[..., Recipe],
    tiny_data: DetectionData,
) -> Mapping[str, str]:  # fmt: skip
    """What is sound, for the commands to name. All rows share it, as none may change it."""
    folder = tmp_path_factory.mktemp("sound")
    recipe = tiny_recipe(method="head", data=str(folder / "data"))
    write_yaml(folder / "recipe.yaml", recipe.to_dict(), "test")
    write_yaml(folder / "space.yaml", {"methods": ["head"], "shared": {"lr": {"float": [1e-3, 1e-2]}}}, "test")
    shutil.copytree(tiny_folder, folder / "data")
    (folder / "home").mkdir()
    (folder / "full").mkdir()
    (folder / "full" / "file").write_text("kept")
    made = {"recipe": recipe.to_dict(), "data": str(folder / "data"), "inputs": dataset_inputs(tiny_data)}
    session = make_study(folder / "home", **made)
    session.begin_launch()
    run_one(session, scored(0.5, device_bytes=400), cst__reduction=4, batch_size=2, lr=0.01)
    session.end_launch()
    make_study(folder / "home", "empty", **made)
    with torch.random.fork_rng():
        save_trained(build_detector(recipe, 3), recipe, ("a", "b", "c"), folder / "weights.safetensors")
    shutil.copy(folder / "data" / "val" / "0.png", folder / "image.png")
    names = {"data": "data", "recipe": "recipe.yaml", "space": "space.yaml", "home": "home", "full": "full",
             "file": "full/file", "trained": "weights.safetensors", "image": "image.png"}  # fmt: skip
    return {name: str(folder / path) for name, path in names.items()} | {"sound": str(folder)}


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Every path below a folder with its content; links are not followed. Of a SQLite file what is in its tables."""

    def content(path: Path) -> bytes | str | None:
        if path.is_symlink() or not path.is_file():
            return os.readlink(path) if path.is_symlink() else None
        found = path.read_bytes()
        if not found.startswith(b"SQLite format 3"):
            return found
        with closing(sqlite3.connect(path)) as database:
            return "\n".join(database.iterdump())

    return {str(path): content(path) for path in folder.rglob("*")}


@pytest.fixture
def run(
    places: Mapping[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[Ran, set[str]]]:
    """``run(command, files)`` -> what the command line did, and the paths that it made or changed.

    ``files`` lie in {tmp}, the working folder; {gone} is not there; without --home everything would go to {gone}/home.
    """
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("CST_SEARCH_HOME", str(tmp_path / "gone" / "home"))
    monkeypatch.setenv("COLUMNS", "300")

    def begin(*_: Any, **__: Any) -> None:
        raise AssertionError("it began to train")

    for owner, name in ((InProcess, "prepare"), (Ray, "prepare"), (training, "run_trial")):
        monkeypatch.setattr(owner, name, begin)

    def ran(
        command: str, files: Mapping[str, str | bytes] | None = None, as_process: bool = False
    ) -> tuple[Ran, set[str]]:
        for name, content in (files or {}).items():
            path = work / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.encode() if isinstance(content, str) else content)
        words = [word.format(**places, tmp=work, gone=tmp_path / "gone") for word in shlex.split(command)]
        folders = (tmp_path, Path(places["sound"]))
        before = [tree(folder) for folder in folders]
        if as_process:
            done = subprocess.run([sys.executable, "-m", "cst_search.cli", *words], capture_output=True, text=True)
            result = Ran(done.returncode, done.stdout, done.stderr)
        else:
            result = run_cli(*words)
        after = [tree(folder) for folder in folders]
        changed = {
            os.path.relpath(path, folder)
            for folder, a, b in zip(folders, before, after, strict=True)
            for path in a.keys() | b.keys()
            if a.get(path, 0) != b.get(path, 0)
        }
        return result, changed

    return ran


def check(ran: Ran, said: tuple[str, ...], where: Mapping[str, str]) -> None:
    """One message that says what must be said, and exit code 2."""
    assert ran.code == 2, ran
    assert "Traceback" not in ran.out + ran.err
    lines = ran.err.splitlines()
    if lines[0].startswith("cst-search: "):
        assert sum(line.startswith("cst-search: ") for line in lines) == 1
    else:  # typer's, of flags that it reads by itself
        assert lines[0].startswith("Usage: ") and ran.err.count(" Error ") == 1
    for part in said:
        assert part.format(**where) in ran.message, ran.message


# --- flags ----------------------------------------------------------------------------------------------------------

# why, the command, what the message must contain
FLAGS: list[tuple[str, str, tuple[str, ...]]] = [
    ("a size in another language", "launch --budget-mem 6Go", ("a memory size must be", "6GiB", "'6Go'")),
    ("a size below zero", "launch --limit-mem=-1GB", ("a memory size must be", "'-1GB'")),
    ("no size", "launch --budget-mem=", ("a memory size must be", "''")),
    ("not a number of bytes", "launch --budget-mem nan", ("a memory size must be", "'nan'")),
    ("infinite bytes", f"launch --budget-mem {'9' * 400}", ("must be above zero and finite", "6GiB")),
    ("a count of nothing", "launch --budget-params 0.0M", ("must be above zero", "'0.0M'")),
    ("no time", "launch --time-limit 0s", ("a duration must be above zero", "'0s'")),
    ("two flags that deny one another", "launch --eta 3 --no-stop-early", ("--eta 3", "--no-stop-early", "give one")),
    ("nothing is stopped at one in one", "launch --eta 1", ("--eta", "equal to 2")),
    ("a seed that is too large", f"launch --seed {2**31}", ("--seed", "equal to 2147483647")),
    ("a study name of many bytes", f"launch --study {'é' * 100}", ("--study must be a name", "é")),
    ("a study name that no terminal shows", "launch --study \u202egpj", ("--study must be a name", "\\u202e")),
    ("a user that is not there", "launch --data ~nosuchuser/data", ("~nosuchuser/data", "no such user")),
    ("likewise", "launch --recipe ~nosuchuser/r.yaml", ("~nosuchuser/r.yaml", "no such user")),
    ("likewise", "train {recipe} --out {gone} --data ~nosuchuser/d", ("~nosuchuser/d", "no such user")),
    ("likewise", TINY + " --set weights=~nosuchuser/w.pt", ("~nosuchuser/w.pt", "no such user")),
    ("a path that is too long", f"launch --recipe {'x' * 5000}", ("ame too long", "xxx")),
    ("likewise", f"launch --data /{'x' * 5000}", ("ame too long", "xxx")),
    ("likewise", f"front made --home /{'x' * 5000}", ("ame too long", "xxx")),
    ("likewise", f"train {{recipe}} --out /{'x' * 5000}", ("ame too long", "xxx")),
    ("likewise", f"predict {{trained}} /{'x' * 5000}.png --no-draw", ("ame too long", "xxx")),
    ("a home that is a file", TINY + " --home {file}", ("--home {file}", "cannot be")),
    ("a home in a file", "launch --device cpu --in-process --home {file}/home", ("{file}", "cannot be")),
    (
        "a home that nobody can make",
        "launch --device cpu --in-process --home /proc/nobody/may",
        ("--home /proc/nobody/may", "cannot be"),
    ),
    ("a home that is a file, to train", "train {recipe} --out {gone} --home {file}", ("--home {file}", "cannot be")),
    ("a home that is a file, to look at", "ui --home {file}", ("there is no record in {file}", "--home")),
    ("a page into a file", "front made --home {home} -o {file}", ("--output {file}", "cannot be written")),
    ("a page below a file", "front made --home {home} -o {file}/x", ("--output {file}/x", "cannot be written")),
    ("an export onto a folder", "export made --home {home} -o {full}", ("--output {full}", "cannot be written")),
    ("a trial that is none", "export made --home {home} --pick trial=7", ("trial 7 does not exist", "[0]")),
    ("a trial without a number", "export made --home {home} --pick trial=x", ("--pick trial=x", "[0]")),
    ("a trial of many digits", f"export made --home {{home}} --pick trial={'9' * 5000}", ("does not exist", "[0]")),
    ("nothing to export", "export empty --home {home}", ("no feasible complete trial yet", "cst-search launch")),
    ("one seed", "confirm made --home {home} --seeds 1", ("--seeds", "equal to 2")),
    ("no epochs", "confirm made --home {home} --epochs 0", ("--epochs takes search, full or", "'0'")),
    (
        "many digits of epochs",
        f"confirm made --home {{home}} --epochs {'9' * 5000}",
        ("--epochs takes search, full or",),
    ),
    ("a point that is none", "confirm made --home {home} --picks 0,7", ("--picks takes front", "'7'", "[0]")),
    ("many digits of a point", f"confirm made --home {{home}} --picks {'9' * 5000}", ("--picks takes front", "[0]")),
    ("nothing to confirm", "confirm empty --home {home}", ("no feasible complete trial yet", "cst-search launch")),
    ("other data to confirm on", "confirm made --home {home} --data {gone} --device cpu", ("{gone}", "--data")),
    ("a device to confirm on", "confirm made --home {home} --device tpu", ("--device must be one of", "'tpu'")),
    ("no study of that name", "confirm nosuch --home {home}", ("there is no study 'nosuch'", "'made'")),
    ("likewise", "resume nosuch --home {home}", ("there is no study 'nosuch'", "'made'")),
    ("likewise", "sync nosuch --home {home}", ("there is no study 'nosuch'", "'made'")),
    ("likewise", "status nosuch --home {home}", ("there is no study 'nosuch'", "'made'")),
    ("to resume what does not say how far", "resume empty --home {home} --device cpu", ("give --trials",)),
    ("to resume for no trials", "resume made --home {home} --trials 0", ("--trials", "equal to 1")),
    (
        "to resume for as many as there are",
        "resume made --home {home} --trials 1 --device cpu --in-process",
        ("already has 1 trials", "--trials"),
    ),
    ("a cache to resume with", "resume made --home {home} --cache-size many", ("a memory size must be", "'many'")),
    (
        "another budget than the study's",
        TINY + " --home {home} --study made --budget-mem 5GB",
        ("made with another", "--budget-mem", "--study"),
    ),
    ("to train into a folder with files", "train {recipe} --out {full}", ("--out {full}: exists and is not empty",)),
    ("to train into a file's folder", "train {recipe} --out {file}/x", ("--out {file}/x", "cannot be")),
    ("to train a folder", "train {full} --out {gone}", ("is neither a file nor a shipped one",)),
    ("a device to detect on", "predict {trained} {image} --device gpu", ("--device must be one of", "'gpu'")),
    ("a GPU to detect on", "predict {trained} {image} --device cuda", ("--device cuda: torch sees no GPU here",)),
    ("a score above all", "predict {trained} {image} --score 2", ("--score", "equal to 1")),
    ("a score that is none", "predict {trained} {image} --score nan", ("--score", "equal to 1")),
    ("no image", "predict {trained}", ("name images, or a folder of them, behind the run",)),
    ("an image that is not there", "predict {trained} {gone}/x.png", ("there is no image or folder {gone}/x.png",)),
    ("a folder without images", "predict {trained} {full}", ("{full} holds no image", ".png")),
    ("a text for an image", "predict {trained} {file}", ("{file} cannot be read as an image",)),
    ("an image for weights", "predict {image} {image}", ("trained weights", "cannot be read")),
    ("a folder that train did not write", "predict {full} {image}", ("is neither a folder written by",)),
    ("pictures into a file", "predict {trained} {image} --out {file}", ("--out {file}", "cannot be written")),
    ("more classes than there can be", f"estimate --recipe {{recipe}} --classes {10**12}", ("--classes",)),
    ("more boxes than there can be", f"estimate --recipe {{recipe}} --max-boxes {10**30}", ("--max-boxes",)),
    ("a card and a memory that deny one another", "estimate --device T4 --fit 1TB", ("--fit must be within", "'1TB'")),
    ("a method twice", "estimate --compare cst,cst", ("--compare takes different methods", "'cst,cst'")),
    (
        "a file where the page would be",
        "launch --study file --home {full} --recipe {recipe} --data {data}",
        ("{file}", "cannot be written"),
    ),
    ("a flag for a name", "launch --study --in-process --home {gone}", ("not beginning with -", "'--in-process'")),
    ("an argument too many", "status made more --home {home}", ("unexpected extra argument", "more")),
    ("a flag of another command", "doctor --trials 3", ("No such option", "--trials")),
    ("a host without a record", "ui --host 0.0.0.0 --home {gone}", ("there is no record in", "--home")),
    ("a port of text", "ui --port http", ("--port", "integer")),
    ("a port below all", "ui --port 0", ("--port", "equal to 1")),
    ("a flag that ls has not", "ls --yaml", ("No such option", "--yaml")),
    ("a path for a name", "cp ../demo {gone}", ("nothing shipped is called '../demo'", "demo")),
    ("a copy into a file's folder", "cp demo {file}/x", ("{file}/x cannot be written",)),
]


@pytest.mark.parametrize(("why", "command", "said"), FLAGS, ids=[f"{row[1].split()[0]}: {row[0]}" for row in FLAGS])
def test_flags(
    run: Callable[..., tuple[Ran, set[str]]], places: Mapping[str, str], tmp_path: Path, why: str, command: str,
    said: tuple[str, ...],
) -> None:  # fmt: skip
    if "GPU" in why and torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    ran, changed = run(command)
    check(ran, said, {**places, "gone": str(tmp_path / "gone")})
    allowed = REMEMBERED if "another budget" in why else set()
    assert changed <= allowed


# --- recipes --------------------------------------------------------------------------------------------------------

NESTED = "[" * 5000
LAUGHS = "a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
)

OF_METHODS: dict[str, tuple[str, tuple[str, ...]]] = {
    "a method that is none": ("method: lora9\n", ("method must be one of", "'lora9'")),
    "an option that is none": ("method: cst\noptions: {size: 5}\n", ("'cst' has no option 'size'", "reduction")),
    "an option out of range": ("method: cst\noptions: {reduction: 0}\n", ("reduction", "0")),
    "an option of the wrong kind": (
        "method: cst\noptions: {mtc_stages: all}\n",
        ("mtc_stages must be a list", "'all'"),
    ),
}
RECIPES: list[tuple[str, str | bytes, tuple[str, ...]]] = [
    ("nothing", "", ("must hold `name: value` lines", "NoneType")),
    ("a list", "[epochs, 3]\n", ("must hold `name: value` lines", "list")),
    ("a text", "epochs 3\n", ("must hold `name: value` lines", "str")),
    ("no UTF-8", b"data: \xff\xfe\n", ("must be a UTF-8 text file", "byte 6")),
    ("a key twice", "lr: 0.1\nlr: 0.2\n", ("the key 'lr' stands twice", "line 2")),
    ("a name nearly right", "image_size: 800\n", ("image_size is not a field of a recipe", "image_size_px")),
    ("a name of nothing", "wibble: 1\n", ("wibble is not a field of a recipe",)),
    ("a quoted number", "epochs: '3'\n", ("epochs", "integer", "'3'")),
    ("a list for a number", "lr: [0.1]\n", ("lr", "[0.1]")),
    ("a mapping for a text", "data: {a: 1}\n", ("data", "string")),
    ("not a number", "lr: .nan\n", ("lr must be above 0 and below 10", "nan")),
    ("no end", "clip_norm: .inf\n", ("clip_norm must be above 0", "inf")),
    ("a learning rate below zero", "lr: -1\n", ("lr must be above 0", "-1")),
    ("too many epochs", "epochs: 10001\n", ("epochs must be a whole number from 1 to 10000", "10001")),
    ("more digits than Python reads", f"epochs: {'9' * 5000}\n", ("is not valid YAML", "digits")),
    ("more than fits into 64 bits", f"epochs: {'9' * 400}\n", ("epochs", "999")),
    *((why, *row) for why, row in OF_METHODS.items()),
    ("a float beyond all", "width: 1e999\n", ("width must be from 0.05 to 4", "inf")),
    (
        "two sizes that do not go together",
        "image_size_px: 900\nmax_size_px: 800\n",
        ("max_size_px must be from image_size_px",),
    ),
    ("an anchor in itself", "options: &a {b: *a}\n", ("contains itself",)),
    ("a billion laughs", LAUGHS, ("too large", "aliases")),
    ("brackets without end", f"options: {NESTED}\n", ("is not valid YAML", "nested too deeply")),
    ("a date that is none", "data: 2024-13-45\n", ("is not valid YAML", "month")),
    ("a tag that reads code", "data: !!python/object/apply:os.system ['true']\n", ("is not valid YAML", "os.system")),
    ("a tag with a wrong value", "epochs: !!int three\n", ("is not valid YAML", "three")),
    ("a tag without a value", "epochs: !!int\n", ("is not valid YAML", "line 1")),
    ("a tag of dates", "data: !!timestamp soon\n", ("is not valid YAML", "!!timestamp")),
    ("a tag of truth", "hflip: !!bool perhaps\n", ("is not valid YAML", "perhaps")),
    ("digits without a digit", "epochs: 0x_\n", ("is not valid YAML",)),
    ("keys that repeat another's", "a: &a {lr: 1}\n<<: *a\n", ("is not valid YAML", "<<")),
    ("an alias of nothing", "lr: *gone\n", ("is not valid YAML", "undefined alias")),
    ("an image, not a recipe", b"\x89PNG\r\n\x1a\n\x00", ("must be a UTF-8 text file",)),
]


@pytest.mark.parametrize(("why", "content", "said"), RECIPES, ids=[row[0] for row in RECIPES])
@pytest.mark.parametrize("command", ["train {tmp}/mine.yaml --out {gone}/out", "estimate --recipe {tmp}/mine.yaml"])
def test_recipes(
    run: Callable[..., tuple[Ran, set[str]]], why: str, content: str | bytes, said: tuple[str, ...], command: str
) -> None:
    ran, changed = run(command, {"mine.yaml": content})
    check(ran, said if why in OF_METHODS else ("mine.yaml", *said), {})
    assert (changed, ran.out) == (set(), "")


# --- --set ----------------------------------------------------------------------------------------------------------

SETTINGS: list[tuple[str, str, tuple[str, ...]]] = [
    ("a bracket that is not closed", "lr=[1", ("--set 'lr=[1'", "is not valid YAML")),
    ("a date that is none", "data=2024-13-45", ("--set 'data=2024-13-45'", "is not valid YAML")),
    ("brackets without end", f"lr={NESTED}", ("--set", "is not valid YAML", "nested too deeply")),
    ("more digits than Python reads", f"lr={'9' * 5000}", ("--set", "is not valid YAML", "digits")),
    ("a tag that reads code", "data=!!python/name:os.system", ("--set", "is not valid YAML")),
    ("an anchor in itself", "lr=&a [*a]", ("--set", "contains itself")),
    ("a name nearly right", "batchsize=2", ("no such dimension: batchsize", "batch_size")),
    ("a part of an option", "head.a.b=1", ("'head' has no option 'a.b'",)),
    ("options of another method", "cst.reduction=4", ("--set cst.reduction", "'head'")),
    ("a method in a list", "method=[head]", ("method must be a text", "['head']")),
]


@pytest.mark.parametrize(("why", "setting", "said"), SETTINGS, ids=[row[0] for row in SETTINGS])
@pytest.mark.parametrize(
    "command", ["train {recipe} --out {gone}/out", "estimate --recipe {recipe}", "launch --recipe {recipe}"]
)
def test_settings(
    run: Callable[..., tuple[Ran, set[str]]], why: str, setting: str, said: tuple[str, ...], command: str
) -> None:
    ran, changed = run(f"{command} --set {shlex.quote(setting)}")
    check(ran, said, {})
    assert (changed, ran.out) == (set(), "")


# --- search spaces --------------------------------------------------------------------------------------------------

SPACES: list[tuple[str, str, tuple[str, ...]]] = [
    ("no methods", "shared: {}\n", ("`methods` must be a list of one or more", "None")),
    ("an empty list of methods", "methods: []\n", ("`methods` must be a list of one or more", "[]")),
    ("a method twice", "methods: [head, head]\n", ("methods has a name twice",)),
    ("an unknown method", "methods: [head, adalora]\n", ("method must be one of", "'adalora'")),
    ("a section of no method", "methods: [head]\ncst: {}\n", ("no such section: cst", "per listed method")),
    ("low above high", "methods: [head]\nshared: {lr: {float: [1, 0.1]}}\n", ("shared.lr", "low < high", "[1, 0.1]")),
    ("low that is high", "methods: [head]\nshared: {lr: {float: [1, 1]}}\n", ("shared.lr", "low < high")),
    (
        "the logarithm of zero",
        "methods: [head]\nshared: {lr: {float: [0, 1], log: true}}\n",
        ("shared.lr", "low above 0"),
    ),
    ("nothing to choose", "methods: [head]\nshared: {lr: {choice: []}}\n", ("shared.lr", "needs a list", "[]")),
    ("a choice twice", "methods: [head]\nshared: {lr: {choice: [1, 1]}}\n", ("shared.lr", "choices must differ")),
    (
        "a choice of mappings",
        "methods: [head]\nshared: {lr: {choice: [{a: 1}]}}\n",
        ("shared.lr", "a choice is a value"),
    ),
    ("three bounds", "methods: [head]\nshared: {lr: {float: [1, 2, 3]}}\n", ("shared.lr", "needs [low, high]")),
    ("bounds of text", "methods: [head]\nshared: {lr: {float: [a, b]}}\n", ("shared.lr", "needs [low, high]")),
    (
        "bounds that are no numbers",
        "methods: [head]\nshared: {lr: {float: [.nan, 1]}}\n",
        ("shared.lr", "needs [low, high]"),
    ),
    (
        "bounds beyond all",
        f"methods: [head]\nshared: {{batch_size: {{int: [1, {'9' * 400}]}}}}\n",
        ("shared.batch_size", "needs [low, high]"),
    ),
    (
        "half an image",
        "methods: [head]\nshared: {batch_size: {int: [1.5, 3]}}\n",
        ("shared.batch_size", "needs [low, high]"),
    ),
    (
        "a rule that is none",
        "methods: [head]\nshared: {lr: {range: [1, 2]}}\n",
        ("shared.lr must be one of {{choice: [...]}}",),
    ),
    ("a value for a rule", "methods: [head]\nshared: {lr: 0.1}\n", ("shared.lr must be one of", "0.1")),
    ("a list for a section", "methods: [head]\nshared: [lr]\n", ("shared must hold", "['lr']")),
    ("an empty list for a section", "methods: [head]\nshared: []\n", ("shared must hold", "[]")),
    (
        "a field that may not vary",
        "methods: [head]\nshared: {seed: {int: [0, 9]}}\n",
        ("shared.seed is not a field of the recipe that may vary",),
    ),
    (
        "an option that is none",
        "methods: [cst]\ncst: {size: {choice: [1, 2]}}\n",
        ("'cst' has no option 'size'", "reduction"),
    ),
    (
        "an option of one method in many",
        "methods: [head, norm, cst, ssf, lst, full]\ncst: {size: {choice: [1, 2]}}\n",
        ("'cst' has no option 'size'",),
    ),
    (
        "one choice of many out of range",
        "methods: [head]\nshared: {batch_size: {int: [1, 1025]}}\n",
        ("batch_size must be a whole number from 1 to 1024", "1025"),
    ),
    (
        "likewise",
        "methods: [head]\nshared: {lr: {float: [1.0e-3, 10], log: true}}\n",
        ("lr must be above 0 and below 10", "10"),
    ),
    ("a billion laughs", LAUGHS, ("too large", "aliases")),
    ("a choice in itself", "methods: [head]\nshared: {lr: {choice: &a [*a]}}\n", ("contains itself",)),
]


@pytest.mark.parametrize(("why", "content", "said"), SPACES, ids=[row[0] for row in SPACES])
def test_spaces(run: Callable[..., tuple[Ran, set[str]]], why: str, content: str, said: tuple[str, ...]) -> None:
    command = "launch --data {data} --recipe {recipe} --space {tmp}/mine.yaml --device cpu --in-process --trials 1"
    ran, changed = run(command, {"mine.yaml": content})
    check(ran, said, {})
    assert (changed, ran.out) == (set(), "")


# --- data sets ------------------------------------------------------------------------------------------------------


def box(**changes: Any) -> Callable[[Document], object]:
    return lambda coco: coco["annotations"][0].update(changes)


def image(**changes: Any) -> Callable[[Document], object]:
    return lambda coco: coco["images"][0].update(changes)


def text(content: str | bytes) -> Callable[[Path], object]:
    """An annotation file that is none."""
    return lambda folder: (folder / "train.json").write_bytes(content.encode() if isinstance(content, str) else content)


def link_out(folder: Path) -> None:
    (folder / "train" / "0.png").rename(folder.parent / "outside.png")
    (folder / "train" / "0.png").symlink_to(folder.parent / "outside.png")


def folder_out(folder: Path) -> None:
    (folder / "train").rename(folder.parent / "outside")
    (folder / "train").mkdir()
    (folder / "train" / "sub").symlink_to(folder.parent / "outside")
    path = folder / "train.json"
    path.write_text(path.read_text().replace('"file_name": "', '"file_name": "sub/'))


DATA_SETS: list[tuple[str, Callable[[Document], object] | None, Callable[[Path], object] | None, tuple[str, ...]]] = [
    ("no JSON", None, text("images: []"), ("train.json is not JSON",)),
    ("nothing", None, text(""), ("train.json is not JSON",)),
    ("no text", None, text(b"\xff\xd8\xff"), ("train.json is not JSON",)),
    (
        "half of it",
        None,
        lambda f: (f / "train.json").write_text((f / "train.json").read_text()[:-40]),
        ("train.json is not JSON",),
    ),
    ("brackets without end", None, text("[" * 100_000), ("train.json is not JSON",)),
    ("many digits", None, text('{"images": ' + "9" * 5000 + "}"), ("train.json is not JSON",)),
    ("a list", None, text("[]"), ("train.json must hold an object, holds a list",)),
    ("no images", lambda coco: coco.pop("images"), None, ("train.json has no 'images'",)),
    ("no categories", lambda coco: coco.pop("categories"), None, ("train.json has no 'categories'",)),
    (
        "a text for a list",
        lambda coco: coco.update(annotations="none"),
        None,
        ("'annotations' must be a list, is a text",),
    ),
    ("an empty list", lambda coco: coco.update(annotations=[]), None, ("[empty-split]",)),
    ("a category without a name", lambda coco: coco["categories"][0].pop("name"), None, ("[category-entry]",)),
    (
        "a category that no file can hold",
        lambda coco: coco["categories"][0].update(name="\ud800"),
        None,
        ("[category-entry]",),
    ),
    (
        "a category twice",
        lambda coco: coco["categories"].append({"id": 2, "name": "x"}),
        None,
        ("[category-id-twice]",),
    ),
    ("an image twice", lambda coco: coco["images"].append(dict(coco["images"][0])), None, ("[image-id-twice]",)),
    ("an unknown category", box(category_id=77), None, ("[category-unknown]", "category_id is 77")),
    ("an unknown image", box(image_id=77), None, ("[image-unknown]", "image_id is 77")),
    ("an image without a name", image(file_name=None), None, ("[image-entry]",)),
    ("a size in words", image(width="wide"), None, ("[image-entry]", "0.png", "width is")),
    ("a size beyond all", image(width=10**400), None, ("[image-entry]", "0.png")),
    ("an id beyond all", image(id=10**400), None, ("[image-entry]", "0.png")),
    ("another size", image(width=97), None, ("[image-size]", "says 97x64, is 96x64")),
    ("a box of text", box(bbox="1 2 3 4"), None, ("[box-malformed]",)),
    ("a box of three numbers", box(bbox=[1, 2, 3]), None, ("[box-malformed]",)),
    ("a box that is no number", box(bbox=[float("nan"), 1, 2, 3]), None, ("[box-malformed]", "NaN")),
    ("a box without end", box(bbox=[0, 0, float("inf"), 3]), None, ("[box-malformed]", "Infinity")),
    ("a box below zero", box(bbox=[5, 5, -3, 3]), None, ("[box-no-area]",)),
    ("a box outside", box(bbox=[90, 60, 20, 20]), None, ("[box-outside]", "in 96x64")),
    ("a box far outside", box(bbox=[1e308, 1e308, 1e308, 1e308]), None, ("[box-outside]",)),
    ("a crowd of two", box(iscrowd=2), None, ("[annotation-entry]", "iscrowd")),
    ("an absolute path", image(file_name="/etc/passwd"), None, ("[path-outside]", "/etc/passwd")),
    ("a path upwards", image(file_name="../val/0.png"), None, ("[path-outside]", "../val/0.png")),
    ("a path that no file has", image(file_name="a\0b.png"), None, ("[image-missing]",)),
    ("a path that is too long", image(file_name="x" * 5000), None, ("[image-missing]",)),
    ("a link out of the folder", None, link_out, ("[path-outside]", "0.png")),
    ("a folder that is a link out", None, folder_out, ("[path-outside]", "sub/0.png")),
    ("an image that is gone", None, lambda f: (f / "train" / "0.png").unlink(), ("[image-missing]", "0.png")),
    (
        "half an image",
        None,
        lambda f: (f / "train" / "0.png").write_bytes((f / "train" / "0.png").read_bytes()[:-30]),
        ("[image-truncated]", "0.png"),
    ),
    (
        "a text for an image",
        None,
        lambda f: (f / "train" / "0.png").write_text("%!PS"),
        ("[image-unreadable]", "0.png"),
    ),
    (
        "too many pixels",
        image(width=20_000, height=20_000),
        lambda f: Image.new("1", (20_000, 20_000)).save(f / "train" / "0.png"),
        ("[image-too-large]", "0.png"),
    ),
    (
        "other classes than in training",
        None,
        lambda f: (f / "val.json").write_text((f / "val.json").read_text().replace("disc", "ring")),
        ("[categories-differ]", "ring"),
    ),
    ("no validation", None, lambda f: (f / "val.json").unlink(), ("no val split", "train.json")),
    (
        "two annotation files",
        None,
        lambda f: shutil.copy(f / "train.json", f / "train" / "_annotations.coco.json"),
        ("must have one annotation file", "_annotations.coco.json"),
    ),
    ("no folder of images", None, lambda f: shutil.rmtree(f / "train"), ("has no image folder beside it", "train/")),
]


@pytest.mark.parametrize(("why", "coco", "folder", "said"), DATA_SETS, ids=[row[0] for row in DATA_SETS])
def test_data_sets(
    run: Callable[..., tuple[Ran, set[str]]], tmp_path: Path, tiny_folder: Path, why: str,
    coco: Callable[[Document], object] | None, folder: Callable[[Path], object] | None, said: tuple[str, ...],
) -> None:  # fmt: skip
    data = tmp_path / "data"
    shutil.copytree(tiny_folder, data)
    if coco is not None:
        document = json.loads((data / "train.json").read_text())
        coco(document)
        (data / "train.json").write_text(json.dumps(document))
    if folder is not None:
        folder(data)
    ran, changed = run(f"train {{recipe}} --out {{gone}}/out --data {data}")
    check(ran, said, {})
    assert changed <= REMEMBERED
    assert ran.out == ""


# --- weights --------------------------------------------------------------------------------------------------------


class Bomb:
    """Unpickling it makes a folder."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("boom",)


def pickled(path: Path) -> None:
    path.write_bytes(pickle.dumps({"conv1.weight": Bomb()}))


WEIGHTS: list[tuple[str, str, Callable[[Path], object], tuple[str, ...]]] = [
    ("a pickle with code", "w.pt", pickled, ("w.pt", "cannot be read as tensors", "may run code", "state_dict")),
    (
        "torch's file with code",
        "w.pth",
        lambda path: torch.save({"x": Bomb()}, path),
        ("w.pth", "cannot be read as tensors", "may run code", "state_dict"),
    ),
    ("a pickle called safetensors", "w.safetensors", pickled, ("w.safetensors", "cannot be read as tensors")),
    ("nothing", "w.pt", lambda path: path.write_bytes(b""), ("w.pt", "cannot be read as tensors")),
    ("a text", "w.pt", lambda path: path.write_text("hello"), ("w.pt", "cannot be read as tensors")),
    (
        "half of it",
        "w.safetensors",
        lambda path: (save_file({"x": torch.ones(99)}, path), path.write_bytes(path.read_bytes()[:-9])),
        ("w.safetensors", "cannot be read as tensors"),
    ),
    ("a list", "w.pt", lambda path: torch.save([torch.ones(1)], path), ("must hold a dictionary of tensors",)),
    (
        "another network",
        "w.safetensors",
        lambda path: save_file({"fc.weight": torch.ones(1)}, path),
        ("do not fit resnet18", "tensors are missing"),
    ),
    ("nothing there", "w.pt", lambda path: None, ("weights must be DEFAULT, COCO", "w.pt")),
]


@pytest.mark.parametrize(("why", "name", "write", "said"), WEIGHTS, ids=[row[0] for row in WEIGHTS])
@pytest.mark.parametrize("command", [TINY, "train {recipe} --out {gone}/out --device cpu"])
@pytest.mark.filterwarnings("error")  # torch's would be a second message
def test_weights(
    run: Callable[..., tuple[Ran, set[str]]], tmp_path: Path, command: str, why: str, name: str,
    write: Callable[[Path], object], said: tuple[str, ...],
) -> None:  # fmt: skip
    write(tmp_path / name)
    ran, changed = run(f"{command} --set weights={tmp_path / name}")
    check(ran, said, {})
    assert changed <= REMEMBERED
    assert ran.err.count("\n") == 1


@pytest.mark.parametrize(("why", "name", "write", "said"), WEIGHTS[:6], ids=[row[0] for row in WEIGHTS[:6]])
def test_trained_weights(
    run: Callable[..., tuple[Ran, set[str]]], tmp_path: Path, why: str, name: str, write: Callable[[Path], object],
    said: tuple[str, ...],
) -> None:  # fmt: skip
    write(tmp_path / name)
    ran, changed = run(f"predict {tmp_path / name} {{image}}")
    check(ran, ("trained weights", name, "cannot be read"), {})
    assert (changed, ran.out) == (set(), "")


# --- addresses ------------------------------------------------------------------------------------------------------

ADDRESSES: list[tuple[str, str, tuple[str, ...]]] = [
    ("no address", "--storage studies", ("--storage takes a database URL", "sqlite:///")),
    ("nothing", "--storage=", ("--storage", "must not be empty")),
    ("a web page", "--storage http://host/studies", ("no kind of database", "http://host/studies")),
    ("a kind that is none", "--storage mongodb://me:SECRET@host/x", ("no kind of database", "mongodb://me:***@host")),
    ("a driver that is none", "--storage sqlite+nosuch:///x.db", ("no kind of database", "sqlite+nosuch")),
    (
        "a port that is no number",
        "--storage postgresql+psycopg://me:SECRET@host:port/x",
        ("--storage takes a database URL", "me:***@host:port"),
    ),
    (
        "a port beyond all",
        "--storage postgresql+psycopg://me:SECRET@127.0.0.1:99999/x",
        ("me:***@127.0.0.1:99999", "cannot be used"),
    ),
    (
        "nobody there",
        "--storage postgresql+psycopg://me:SECRET@127.0.0.1:1/x",
        ("me:***@127.0.0.1:1", "cannot be used"),
    ),
    ("a file that is no database", "--storage sqlite:///{image}", ("{image}", "cannot be used", "not a database")),
    ("another program's database", "--storage sqlite:///{tmp}/other.db", ("other.db", "is not a storage of studies")),
    ("a folder for a database", "--storage sqlite:///{full}", ("{full}", "cannot be used")),
    ("a database below a file", "--storage sqlite:///{file}/x.db", ("{file}/x.db",)),
]
TRACKING: list[tuple[str, str, tuple[str, ...]]] = [
    ("a kind that is none", "gopher://me:SECRET@host", ("--tracking-uri", "gopher://me:***@host", "http://")),
    (
        "a port that is no number",
        "http://me:SECRET@host:port",
        ("--tracking-uri", "http://me:***@host:port", "http://"),
    ),
    ("no host", "http://", ("--tracking-uri", "'http://'")),
    ("nothing", "", ("--tracking-uri", "must not be empty")),
    ("a slash too few", "http:/host:5000", ("--tracking-uri", "'http:/host:5000'")),
    ("a database that is none", "mongodb://me:SECRET@host/x", ("--tracking-uri", "mongodb://me:***@host/x")),
    ("a driver that is missing", "mysql://me:SECRET@host/x", ("--tracking-uri", "mysql://me:***@host/x", "driver")),
]


@pytest.mark.parametrize(("why", "flag", "said"), ADDRESSES, ids=[row[0] for row in ADDRESSES])
@pytest.mark.parametrize("command", [TINY, "front made", "list", "status made", "sync made"])
def test_addresses_of_studies(
    run: Callable[..., tuple[Ran, set[str]]], places: Mapping[str, str], tmp_path: Path, command: str, why: str,
    flag: str, said: tuple[str, ...],
) -> None:  # fmt: skip
    if "another program" in why:
        with closing(sqlite3.connect(tmp_path / "work" / "other.db")) as database:
            database.execute("CREATE TABLE alembic_version (version_num VARCHAR(32))")
            database.execute("INSERT INTO alembic_version VALUES ('c0ffee')")
            database.commit()
    ran, changed = run(f"{command} {flag}")
    check(ran, said, places)
    assert "SECRET" not in ran.out + ran.err
    assert changed <= REMEMBERED


@pytest.mark.parametrize(("why", "uri", "said"), TRACKING, ids=[row[0] for row in TRACKING])
@pytest.mark.parametrize(
    "command",
    [
        TINY,
        "sync made --home {home}",
        "confirm made --home {home} --in-process --device cpu",
        "resume made --home {home} --in-process --device cpu --trials 2",
        "train {recipe} --out {gone}/out --device cpu",
    ],
    ids=["launch", "sync", "confirm", "resume", "train"],
)
def test_addresses_of_records(
    run: Callable[..., tuple[Ran, set[str]]], places: Mapping[str, str], command: str, why: str, uri: str,
    said: tuple[str, ...],
) -> None:  # fmt: skip
    ran, changed = run(f"{command} --tracking-uri={uri}")
    check(ran, said, places)
    assert "SECRET" not in ran.out + ran.err
    assert (changed, ran.out) == (set(), "")


# --- as a process ---------------------------------------------------------------------------------------------------

PROCESSES: list[tuple[str, str, str | bytes, tuple[str, ...]]] = [
    ("a budget", "launch --budget-mem 6Go", "", ("a memory size must be",)),
    ("a recipe", "train {tmp}/mine.yaml --out {gone}", f"options: {NESTED}\n", ("nested too deeply",)),
    ("a storage", "front x --storage postgresql+psycopg://me:SECRET@127.0.0.1:1/x", "", ("cannot be used",)),
    ("weights", "predict {image} {image}", "", ("cannot be read",)),
    ("a name in no encoding", "launch --data '{tmp}/\udcff'", "", ("there is no folder",)),
]


@pytest.mark.parametrize(("why", "command", "content", "said"), PROCESSES, ids=[row[0] for row in PROCESSES])
def test_processes(
    run: Callable[..., tuple[Ran, set[str]]], places: Mapping[str, str], why: str, command: str, content: str,
    said: tuple[str, ...],
) -> None:  # fmt: skip
    """Nothing but the message comes out of a process: no traceback, no warning of a library, no word as it ends."""
    ran, changed = run(command, {"mine.yaml": content}, as_process=True)
    check(ran, said, places)
    assert ran.err.startswith("cst-search: ") and "Warning" not in ran.err and "SECRET" not in ran.err
    assert (changed, ran.out) == (set(), "")


# --- generated ------------------------------------------------------------------------------------------------------


class Reached(UserError):
    """All was taken, and the work would begin."""


def reached(*_: Any, **__: Any) -> None:
    raise Reached("reached")


def bounded(n_examples: int) -> Callable[[Any], Any]:
    """The same examples every time, without a data base of them, and no matter how slow the machine is."""
    slow = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.function_scoped_fixture)
    return settings(max_examples=n_examples, derandomize=True, database=None, deadline=None, suppress_health_check=slow)


def works_or_says_why(ran: Ran) -> None:
    """The property: it works, or it is one message; an exception of another kind comes through `run_cli`."""
    if ran.code:
        check(ran, (), {})


@pytest.fixture
def nothing_slow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Costs by a formula, and an end where workers or a trial would begin."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CST_SEARCH_HOME", str(tmp_path / "home"))
    fake = FakeEstimate(10**9, trainable_params=10**6)
    for owner in (budget_survey, cost):
        monkeypatch.setattr(owner, "predict", lambda *_, **__: fake)
    monkeypatch.setattr(worker_setup, "make_workers", reached)
    monkeypatch.setattr(study_setup, "check_weights", lambda *_, **__: ("weights", True))
    monkeypatch.setattr(training, "check_weights", reached)


numbers = st.one_of(
    st.integers(-10, 10**20).map(str),
    st.floats().map(str),
    st.sampled_from(["", "0", "007", "1_000", "1e3", "\u0663", "\xb2"]),
)
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
amounts = st.one_of(
    texts, st.tuples(numbers, st.sampled_from(["", "B", "kb", "GB", "GiB", "M", "k", "s", "h", "x"])).map("".join)
)


@bounded(150)
@given(st.dictionaries(
    st.sampled_from(["--budget-mem", "--budget-params", "--limit-mem", "--cache-size", "--time-limit", "--trials",
                     "--seed", "--workers", "--eta", "--objectives", "--sampler", "--device", "--study", "--set"]),
    amounts, min_size=1, max_size=3,
))  # fmt: skip
@example({"--budget-mem": "9" * 300, "--budget-params": "9" * 300})
@example({"--limit-mem": "9" * 300 + "TB", "--cache-size": "9" * 300})
def test_generated_flags(nothing_slow: None, places: Mapping[str, str], flags: dict[str, str]) -> None:
    fixed = ["--data", places["data"], "--recipe", places["recipe"], "--space", places["space"], "--in-process"]
    works_or_says_why(run_cli("launch", *fixed, *(f"{name}={value}" for name, value in flags.items())))


@bounded(30)
@given(fit=amounts, n_classes=numbers, max_boxes=numbers, device=texts, compare=texts)
@example(fit="9" * 300, n_classes="1", max_boxes="1", device="T4", compare="all")
def test_generated_estimates(
    nothing_slow: None, places: Mapping[str, str], fit: str, n_classes: str, max_boxes: str, device: str, compare: str
) -> None:
    given = {"--fit": fit, "--classes": n_classes, "--max-boxes": max_boxes, "--device": device, "--compare": compare}
    for name, value in given.items():
        works_or_says_why(run_cli("estimate", "--recipe", places["recipe"], f"{name}={value}"))


fields = st.sampled_from([*vars(Recipe()), "imagesize", "<<", "~"])
leaves = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just(10**400), st.dates(), st.binary(max_size=4),
    st.sampled_from(["demo", "none", "cst", "fcos", "resnet18", "auto"]),
)  # fmt: skip
values = st.recursive(
    leaves, lambda v: st.lists(v, max_size=3) | st.dictionaries(texts | st.integers(), v, max_size=3), max_leaves=6
)
marks = [*"[]{}:,-?&*!|>%@`#'\"\n \t", "a", "lr", "epochs", ": ", "- ", "&a ", "*a", "<<: ", "---\n", "\ufeff"]
odd = ["!!int ", "!!set ", "!!omap ", "!!python/tuple ", "0x", "0b", "2024-13-40", "12:61:61", ".nan", "1e999"]
fragments = st.lists(st.sampled_from([*marks, *odd]), max_size=14).map("".join)
recipes = st.dictionaries(fields, values, max_size=4).map(lambda d: yaml.dump(d, allow_unicode=True)) | fragments


@bounded(150)
@given(text=recipes)
@example("!!set 3")
@example("options: {a: !!python/object/apply:os.system [ls]}")
def test_generated_recipes(nothing_slow: None, places: Mapping[str, str], tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    works_or_says_why(run_cli("train", tmp_path / "mine.yaml", "--out", tmp_path / "out", "--data", places["data"]))
    works_or_says_why(run_cli("estimate", "--recipe", places["recipe"], "--set", f"lr={text}"))


rules = st.one_of(
    values,
    st.fixed_dictionaries({"choice": st.lists(leaves, max_size=3)}),
    st.fixed_dictionaries({"float": st.lists(st.floats(), min_size=2, max_size=2)}, optional={"log": leaves}),
    st.fixed_dictionaries({"int": st.lists(st.integers(), min_size=2, max_size=2)}, optional={"log": leaves}),
)
sections = st.dictionaries(fields | st.sampled_from(["reduction", "temperature"]), rules, max_size=3) | values
spaces = st.fixed_dictionaries(
    {"methods": st.lists(st.sampled_from(["cst", "head", "full", "lora9"]), max_size=3) | values},
    optional={"shared": sections, "cst": sections, "head": sections, "nosuch": sections},
).map(lambda d: yaml.dump(d, allow_unicode=True))


@bounded(200)
@given(text=spaces | fragments)
def test_generated_spaces(nothing_slow: None, places: Mapping[str, str], tmp_path: Path, text: str) -> None:
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    ran = run_cli("launch", "--data", places["data"], "--recipe", places["recipe"], "--space", tmp_path / "mine.yaml")
    works_or_says_why(ran)


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.just(10**400)
    | st.just("../0.png"),
    lambda v: (
        st.lists(v, max_size=4)
        | st.dictionaries(st.sampled_from(["id", "name", "bbox"]) | st.text(max_size=4), v, max_size=3)
    ),
    max_leaves=6,
)


@bounded(200)
@given(data=st.data())
def test_generated_data_sets(
    nothing_slow: None, places: Mapping[str, str], tmp_path: Path, data: st.DataObject
) -> None:
    """A sound annotation file with one to three places changed, or bytes cut away."""
    folder = tmp_path / "generated"
    if not folder.exists():
        shutil.copytree(places["data"], folder)
    document = json.loads((Path(places["data"]) / "train.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        here: Any = document
        while True:
            keys = list(here) if isinstance(here, dict) else list(range(len(here)))
            key = data.draw(st.sampled_from(keys)) if keys else None
            if key is None or not isinstance(here[key], dict | list) or data.draw(st.integers(0, 3)) == 0:
                break
            here = here[key]
        if key is not None:
            here[key] = data.draw(json_values)
    text = json.dumps(document).encode()
    (folder / "train.json").write_bytes(
        text[: data.draw(st.integers(0, len(text)))] if data.draw(st.integers(0, 9)) == 0 else text
    )
    skip = data.draw(st.sampled_from([(), ("--skip-bad",)]))
    ran = run_cli("train", places["recipe"], "--out", tmp_path / "out", "--data", folder, *skip)
    works_or_says_why(ran)
    assert not (tmp_path / "out").exists()
