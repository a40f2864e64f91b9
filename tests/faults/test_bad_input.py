"""Whatever a person may get wrong: exit code 2, one message with the rule, the value and the remedy, nothing written.

Here: flags and addresses of every command; test_bad_files.py: files; test_generated_input.py: drawn at random. Mistakes
of spelling in flags are in tests/cli/test_mistakes.py too.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from pathlib import Path

import pytest
import torch
from studies import Ran
from wrong_commands import NESTED, REMEMBERED, TINY, check

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
    ("nothing to export", "export empty --home {home}", ("no feasible complete trial yet", "cst-search resume empty")),
    ("one seed", "confirm made --home {home} --seeds 1", ("--seeds", "equal to 2")),
    ("no epochs", "confirm made --home {home} --epochs 0", ("--epochs takes search, full or", "'0'")),
    (
        "many digits of epochs",
        f"confirm made --home {{home}} --epochs {'9' * 5000}",
        ("--epochs takes search, full or",),
    ),
    ("a point that is none", "confirm made --home {home} --picks 0,7", ("--picks takes front", "'7'", "[0]")),
    ("many digits of a point", f"confirm made --home {{home}} --picks {'9' * 5000}", ("--picks takes front", "[0]")),
    (
        "nothing to confirm",
        "confirm empty --home {home}",
        ("no feasible complete trial yet", "cst-search resume empty"),
    ),
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
