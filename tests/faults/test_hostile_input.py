"""What somebody else wrote, and means ill: nothing of it runs, leaves its folder, or shows a password."""

from __future__ import annotations

import html
import json
import os
import pickle
import re
import shutil
import socket
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from pages import browse
from PIL import Image
from searches import Place
from studies import Ran, make_study, run_cli, run_one, scored

import cst_search
from cst_search.config.catalog import study_folder
from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import load_data
from cst_search.data.images import CocoImages
from cst_search.execution import ray_jobs
from cst_search.execution.ray_files import private_folder, token_file
from cst_search.import_path import leave_working_folder, program
from cst_search.input_file import check_regular, read_regular
from cst_search.redaction import shown_address, without_password

SECRET = "hunter2%40x"  # percent-encoded, as a password with an @ must be
SECRETS = (SECRET, "hunter2@x", "hunter2")


# --- files that would run something ---------------------------------------------------------------------------------

PAYLOADS = [
    "!!python/object/apply:os.system ['touch {trap}']",
    "!!python/object/apply:subprocess.check_call [[touch, '{trap}']]",
    "!!python/object/new:os.mkdir ['{trap}']",
    "!!python/name:os.mkdir",
    "!!python/module:os",
]


@pytest.mark.parametrize("payload", PAYLOADS, ids=[payload.split()[0] for payload in PAYLOADS])
@pytest.mark.parametrize("command", ["launch --recipe {file}", "launch --space {file}", "train {file} --out {out}",
                                     "estimate --recipe {file}", "estimate --set data={payload}"])  # fmt: skip
def test_yaml_runs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, payload: str) -> None:
    monkeypatch.chdir(tmp_path)
    trap = tmp_path / "trap"
    payload = payload.format(trap=trap)
    (tmp_path / "mine.yaml").write_text(f"data: {payload}\n")
    ran = run_cli(
        *(w.format(file=tmp_path / "mine.yaml", out=tmp_path / "out", payload=payload) for w in command.split())
    )
    assert ran.code == 2 and "is not valid YAML" in ran.message
    assert not trap.exists() and os.listdir(tmp_path) == ["mine.yaml"]


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.trap}'",)


def test_the_bomb_would_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "trap")))
    assert (tmp_path / "trap").exists()


@pytest.mark.parametrize("name", ["w.pt", "w.pth", "w.safetensors", "w"])
@pytest.mark.parametrize(
    "write", [lambda bomb, path: path.write_bytes(pickle.dumps(bomb)), torch.save], ids=["pickle", "torch"]
)
def test_weights_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tiny_recipe: Callable[..., Recipe],
    write: Callable[[Any, Path], object], name: str,
) -> None:  # fmt: skip
    """As the base of a recipe, in training and in a search, and as what `predict` is given."""
    trap, weights = tmp_path / "trap", tmp_path / name
    monkeypatch.chdir(tmp_path)
    write({"conv1.weight": Bomb(trap)}, weights)
    write_yaml(tmp_path / "recipe.yaml", tiny_recipe(weights=str(weights), method="head").to_dict(), "test")
    write_yaml(tmp_path / "space.yaml", {"methods": ["head"]}, "test")
    for command in (
        ("train", "recipe.yaml", "--out", "out"),
        ("launch", "--data", tiny_folder, "--recipe", "recipe.yaml", "--space", "space.yaml", "--in-process"),
        ("predict", weights, tiny_folder / "val"),
    ):
        ran = run_cli(*command)
        assert ran.code == 2 and "cannot be read" in ran.message, ran
    assert not trap.exists()


# --- modules in the working folder ------------------------------------------------------------------------------------


def test_no_worker_imports_from_the_working_folder(
    place: Place, traps: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, sprung = traps
    monkeypatch.chdir(folder)
    ran = place.run("--workers", "1", trials=1)
    assert len(place.notes()) == 2 and not sprung.exists()
    # and what Ray wrote is nobody else's, and without the token that lets one in
    (session,), token = (private_folder() / "ray").glob(f"session_*_{ran.pid}"), token_file()
    assert (token.stat().st_mode & 0o777) == 0o600
    logs = [path.read_bytes() for path in session.rglob("*") if path.is_file()]
    assert logs and not any(token.read_bytes() in log for log in logs)


def test_no_process_of_ours_imports_from_the_working_folder(
    traps: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the command line, a trial's process and the check of an export begin with."""
    folder, sprung = traps
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", f":{Path(cst_search.__file__).parents[1]}:")
    monkeypatch.setattr(sys, "path", ["", str(folder), ".", *sys.path])
    monkeypatch.setenv("PYTHONSAFEPATH", "")
    done = subprocess.run([*program("numpy", "show_config")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    leave_working_folder()
    assert str(folder) not in map(os.path.abspath, sys.path)
    done = subprocess.run([sys.executable, "-c", "import numpy"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert not sprung.exists()


# --- files that would be read from elsewhere ------------------------------------------------------------------------


@pytest.fixture
def outside(tmp_path: Path, tiny_folder: Path) -> tuple[Path, Path]:
    """A copy of the tiny data set, and a picture beside it that it must not get at."""
    shutil.copytree(tiny_folder, tmp_path / "data")
    picture = tmp_path / "private.png"
    Image.new("RGB", (96, 64), (1, 2, 3)).save(picture)
    return tmp_path / "data", picture


WAYS_OUT: list[tuple[str, Callable[[Path, Path], str]]] = [
    ("upwards", lambda folder, picture: f"../../{picture.name}"),
    ("upwards from within", lambda folder, picture: f"sub/../../../{picture.name}"),
    ("an absolute path", lambda folder, picture: str(picture)),
    ("a link", lambda folder, picture: ((folder / "l.png").symlink_to(picture), "l.png")[1]),
    ("a relative link", lambda folder, picture: ((folder / "l.png").symlink_to(f"../../{picture.name}"), "l.png")[1]),
    (
        "a link to a link",
        lambda folder, picture: (
            (folder / "m.png").symlink_to(picture),
            (folder / "l.png").symlink_to("m.png"),
            "l.png",
        )[2],
    ),
    (
        "a folder that is a link",
        lambda folder, picture: ((folder / "sub").symlink_to(picture.parent), f"sub/{picture.name}")[1],
    ),
    ("another split", lambda folder, picture: "../val/0.png"),
    ("the folder itself", lambda folder, picture: "."),
]


@pytest.mark.parametrize(("why", "leave"), WAYS_OUT, ids=[row[0] for row in WAYS_OUT])
@pytest.mark.parametrize("skip", [False, True], ids=["stop", "skip-bad"])
def test_a_file_name_stays_in_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: tuple[Path, Path], tiny_recipe: Callable[..., Recipe],
    why: str, leave: Callable[[Path, Path], str], skip: bool,
) -> None:  # fmt: skip
    """It is refused; with --skip-bad it is left out; either way the file is not opened."""
    folder, picture = outside
    document = json.loads((folder / "train.json").read_text())
    document["images"][0]["file_name"] = leave(folder / "train", picture)
    (folder / "train.json").write_text(json.dumps(document))
    opened: list[str] = []
    original = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (opened.append(os.path.realpath(self)), original(self))[1])
    if skip:
        data, report = load_data(folder, skip_bad=True)
        assert [fault.kind for fault in report.faults] == ["path-outside"]
        train = CocoImages(data.splits["train"], image_size_px=64, max_size_px=96, hflip=False)
        assert len(train) == 7 and all(str(e.path).startswith(f"{folder / 'train'}/") for e in train.split.images)
    else:
        write_yaml(tmp_path / "recipe.yaml", tiny_recipe(data=str(folder)).to_dict(), "test")
        ran = run_cli("train", tmp_path / "recipe.yaml", "--out", tmp_path / "out", "--home", tmp_path / "home")
        assert ran.code == 2 and "file_name leaves the image folder [path-outside]" in ran.message
    assert opened and str(picture) not in opened


@pytest.mark.parametrize("name", ["../out", "a/../../out", "..", "."])
def test_the_name_of_a_study_stays_in_the_home(tmp_path: Path, name: str) -> None:
    """Others wrote it into a shared database; its page would be written, and old checkpoints deleted, elsewhere."""
    home = tmp_path / "home"
    session = make_study(home, name)
    session.begin_launch()
    run_one(session, scored(0.5, device_bytes=400), cst__reduction=4, batch_size=2, lr=0.01)
    session.end_launch()
    before = sorted(tmp_path.rglob("*"))
    assert run_cli("status", name, "--home", home).code == 0
    for command in ("sync", "confirm"):
        ran = run_cli(command, name, "--home", home)
        assert ran.code == 2 and "has a name that leads out of" in ran.message, ran
    assert sorted(tmp_path.rglob("*")) == before
    for usual in (Path("runs"), Path("../runs"), Path("x/../runs"), Path("/"), home):
        assert study_folder(usual, "a study") == usual / "a study"


# --- what is no file --------------------------------------------------------------------------------------------------


def test_only_regular_files_of_a_size_in_use_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "file").write_bytes(b"content")
    assert read_regular(tmp_path / "file", 7) == b"content"
    for path, most, why in (
        (tmp_path / "pipe", 9, "a pipe"), (Path("/dev/zero"), 9, "a device"),
        (tmp_path / "file", 6, "it has 7 bytes; at most 6 are read"),
    ):  # fmt: skip
        for read in (read_regular, check_regular):
            with pytest.raises(OSError, match=why):
                read(path, most)


@pytest.mark.parametrize("kind", ["pipe", "device", "bomb"])
def test_what_is_no_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outside: tuple[Path, Path], tiny_recipe: Callable[..., Recipe],
    kind: str,
) -> None:  # fmt: skip
    """As a recipe, a search space, weights, annotations and an image, within the time and memory of a message."""
    monkeypatch.chdir(tmp_path)
    folder, _ = outside

    def place(path: Path) -> Path:
        path.unlink(missing_ok=True)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "device":
            path.symlink_to("/dev/zero")
        elif path.suffix == ".pt":
            with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("archive/data/0", bytes(10**6))
        else:
            path.touch()
            os.truncate(path, 10**11)  # of which the disk holds nothing
        return path

    def refused(*command: Any) -> str:
        ran = run_cli(*command)
        assert ran.code == 2, ran
        return ran.message

    yaml, weights = place(tmp_path / "mine.yaml"), place(tmp_path / "mine.pt")
    launch = ("launch", "--in-process", "--home", "home", "--data")
    assert "mine.yaml" in refused(*launch, folder, "--recipe", yaml)
    assert "mine.yaml" in refused(*launch, folder, "--space", yaml)
    write_yaml(tmp_path / "recipe.yaml", tiny_recipe(weights=str(weights), method="head").to_dict(), "test")
    assert "mine.pt" in refused(*launch, folder, "--recipe", "recipe.yaml")
    place(folder / "train" / "0.png")
    assert "0.png" in refused(*launch, folder)
    place(folder / "val.json")
    assert "val" in refused(*launch, folder)


# --- names that would run in a page or on a terminal ----------------------------------------------------------------

SCRIPTS = [
    "<script>document.title='OWNED'</script>",
    "</script><script>document.title='OWNED'</script>",
    '"><img src=x onerror="document.title=\'OWNED\'">',
    "<svg onload=document.title='OWNED'>",
    "{{7*7}}{%print(1)%}",
    "javascript:document.title='OWNED'//",
]


def test_names_are_text_in_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the study, its data, a recipe's field, a method's option and a reason; drawn by a real browser."""
    monkeypatch.chdir(tmp_path)
    every = " ".join(SCRIPTS)
    recipe = Recipe(detector="fcos", backbone="resnet18", weights=every).to_dict()
    session = make_study(tmp_path, every, data=f"/data/{every}", recipe=recipe, target_device=every)
    session.begin_launch()
    run_one(session, scored(0.5, device_bytes=400), cst__reduction=4, batch_size=2, lr=0.01)
    run_one(session, {"outcome": "failed", "reason": every}, cst__reduction=4, batch_size=2, lr=0.02)
    session.end_launch()
    ran = run_cli("front", every, "--home", tmp_path, "-o", tmp_path / "page")
    assert ran.code == 0, ran
    dom, log = browse(tmp_path / "page" / "front.html")
    title = html.unescape(dom[dom.index("<title>") + 7 : dom.index("</title>")])
    assert title == f"{every} - Pareto front"  # what a script that ran would have changed
    assert dom.count("<script") == 2  # the data, the program
    tags = re.findall(r"<[a-z][^>]*>", re.sub(r"<(script|style|title).*?</\1>", "", dom, flags=re.DOTALL))
    assert tags and not [tag for tag in tags if "OWNED" in tag]  # in no attribute, in no tag of its own
    assert "&lt;script&gt;document.title='OWNED'&lt;/script&gt;" in dom  # it is shown, as text
    assert "{{7*7}}{%print(1)%}" in dom and "CONSOLE" not in log


STEERING = "a\x1b]0;OWNED\x07\x1b[2J\x9b31m\b\r\u202ecba\u2066\u200f\x7f\u2028\udc80[bold]b[/nothing][link=x]c"


def test_names_do_not_steer_a_terminal(tmp_path: Path) -> None:
    """Of a study, its data, a recipe's field and a reason: shown in every table and message, and no markup of rich."""
    name = STEERING.replace("\udc80", "") + "\nFORGED\tLINE"  # no database takes half a character
    recipe = Recipe(detector="fcos", backbone="resnet18", weights=name).to_dict()
    session = make_study(tmp_path, name, data=f"/data/{name}", recipe=recipe, target_device=name)
    session.begin_launch()
    run_one(session, scored(0.5, device_bytes=400), cst__reduction=4, batch_size=2, lr=0.01)
    # a reason may have several lines, which stay in their cell
    run_one(
        session,
        {"outcome": "failed", "reason": STEERING.replace("\udc80", "")},
        cst__reduction=4,
        batch_size=2,
        lr=0.02,
    )
    session.end_launch()
    where = ("--home", tmp_path)
    for command in (
        ("list", *where), ("status", name, *where), ("front", name, "--plot", *where), ("export", name, *where),
        ("confirm", name, *where), ("resume", name, *where), ("sync", name, *where), ("front", "x", *where),
        ("train", f"{tmp_path}/{STEERING}", "--out", tmp_path / "out"), ("doctor", "--no-ray", "--home", STEERING),
    ):  # fmt: skip
        ran = run_cli(*command)
        said = ran.out + ran.err
        assert not [sign for sign in said if sign != "\n" and not sign.isprintable()], ascii(said)
        assert "x1b" in said and "Traceback" not in said, ran
        assert not re.search(r"^\W*FORGED", said, re.MULTILINE) and "\t" not in said, said
    assert "[bold]b[/nothing][link=x]c" in run_cli("front", name, *where).out


def test_the_output_of_a_job_does_not_steer_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """It keeps its lines. `submit` shows it by the same two functions."""

    class Client:
        def get_job_logs(self, job: str) -> str:
            return f"first\n\t{STEERING}\nlast\n"

        async def tail_job_logs(self, job: str) -> AsyncIterator[str]:
            for line in self.get_job_logs(job).splitlines(keepends=True):
                yield line

    monkeypatch.setattr(ray_jobs.Jobs, "__init__", lambda self, address: vars(self).update(_client=Client()))
    for more in ((), ("--follow",)):
        ran = run_cli("job", "logs", "raysubmit_1", "--address", "http://head:8265", *more)
        first, middle, last = ran.out.split("\n")[:3]
        assert (first, last) == ("first", "last") and middle.startswith("\ta\\x1b]0;OWNED\\x07\\x1b[2J"), ran
        assert middle[1:].isprintable()


def test_class_names_are_text(tmp_path: Path, outside: tuple[Path, Path], tiny_recipe: Callable[..., Recipe]) -> None:
    """They go into pictures, JSON and the metadata of weights; a terminal gets no control character of theirs."""
    folder, _ = outside
    names = ["<script>alert(1)</script>", "\x1b[2J\x1b]0;OWNED\x07", "{{7*7}}"]
    for path in folder.glob("*.json"):
        document = json.loads(path.read_text())
        for category, name in zip(document["categories"], names, strict=True):
            category["name"] = name
        path.write_text(json.dumps(document))
    write_yaml(tmp_path / "recipe.yaml", tiny_recipe(data=str(folder), method="head").to_dict(), "test")
    flags = ("--home", tmp_path / "home", "--device", "cpu", "--cache-size", "0")
    ran = run_cli("train", tmp_path / "recipe.yaml", "--out", tmp_path / "out", *flags)
    assert ran.code == 0, ran
    seen = run_cli(
        "predict", tmp_path / "out", folder / "val", "--score", "0", "--out", tmp_path / "drawn", "--device", "cpu"
    )
    assert seen.code == 0, seen
    assert {found["class"] for image in json.loads(seen.out) for found in image["detections"]} <= set(names)
    assert "\x1b" not in ran.out + ran.err + seen.out + seen.err
    assert len(list((tmp_path / "drawn").glob("*.png"))) == 4 + 1  # the contact sheet


# --- passwords ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgresql://me:pw@host/x", "postgresql://me:***@host/x"),
        ("postgresql://:pw@host/x", "postgresql://:***@host/x"),
        ("postgresql://me:p@w/d@host/x", "postgresql://me:***@host/x"),
        ("postgresql://host/x?user=me&password=pw", "postgresql://host/x?user=me&password=***"),
        ("http://token@host", "http://***@host"),  # a token stands where a user does
        ("http://host:5000", "http://host:5000"),
        ("sqlite:////a/b@c/x.db", "sqlite:////a/b@c/x.db"),
    ],
)
def test_an_address_is_shown_without_its_password(url: str, shown: str) -> None:
    assert shown_address(url) == shown


def test_what_a_library_says_is_shown_without_a_password() -> None:
    url = f"http://me:{SECRET}@host:1/"
    said = f"cannot parse {url}api, http://me:{SECRET}@host:1/api; password {SECRET} or {SECRETS[1]} of me"
    assert not any(secret in without_password(said, url) for secret in SECRETS)
    assert without_password("me at host", url) == "me at host"
    assert without_password("no password", "http://host") == "no password"


@pytest.fixture(scope="module")
def nobody() -> Iterator[int]:
    """A port that refuses."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))  # taken, and not listened at
        yield one.getsockname()[1]


def leaks(ran: Ran, *folders: Path) -> list[str]:
    """Where the password is: output, and names and bytes of all files."""
    found = [name for name in ("out", "err") if any(secret in getattr(ran, name) for secret in SECRETS)]
    for path in (path for folder in folders for path in folder.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        if any(secret in path.name or secret.encode() in content for secret in SECRETS):
            found.append(str(path))
    return found


@pytest.fixture
def tiny(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]
) -> list[str]:
    """A launch of one trial in this process, in an empty folder with the home in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    write_yaml(tmp_path / "recipe.yaml", tiny_recipe(method="head").to_dict(), "test")
    write_yaml(tmp_path / "space.yaml", {"methods": ["head"], "shared": {"lr": {"float": [1e-3, 1e-2]}}}, "test")
    return ["--data", str(tiny_folder), "--recipe", "recipe.yaml", "--space", "space.yaml", "--home", "home",
            "--device", "cpu", "--in-process", "--trials", "1", "--study", "one"]  # fmt: skip


def test_the_search_for_passwords_finds_one(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "x.db").write_bytes(b"\0\0" + SECRET.encode())
    assert leaks(Ran(0, "", f"at {SECRET}"), tmp_path) == ["err", str(tmp_path / "deep" / "x.db")]


def test_a_password_of_mlflow_stays_with_it(tmp_path: Path, tiny: list[str], nobody: int) -> None:
    """A whole launch, a second one, sync, front, export and training from it, with a record that refuses."""
    uri = ["--tracking-uri", f"http://me:{SECRET}@127.0.0.1:{nobody}"]
    ran = run_cli("launch", *tiny, *uri)
    assert ran.code == 0 and f"MLflow http://me:***@127.0.0.1:{nobody}" in ran.out
    assert "MLflow did not take a record" in ran.out
    again = run_cli("resume", "one", "--home", "home", "--device", "cpu", "--in-process", "--trials", "2", *uri)
    assert again.code == 0, again
    exported = run_cli("export", "one", "--home", "home", "-o", "best.yaml", "--no-verify")
    assert exported.code == 0, exported
    trained = run_cli("train", "best.yaml", "--out", "out", "--home", "home", "--device", "cpu", *uri)
    assert trained.code == 0, trained
    others = [
        run_cli("sync", "one", "--home", "home", *uri),
        run_cli("front", "one", "--home", "home", "-o", "page", "--json"),
        run_cli("status", "one", "--home", "home", "--json"),
        run_cli("doctor", "--home", "home", "--no-ray", *uri),
    ]
    assert (tmp_path / "home" / "one" / "best.yaml").exists() and (tmp_path / "page" / "front.html").exists()
    for each in (ran, again, exported, trained, *others):
        assert leaks(each, tmp_path) == [] and "Traceback" not in each.out + each.err


@pytest.mark.parametrize(
    "command",
    ["launch", "list", "front one", "status one", "export one", "confirm one", "resume one", "sync one",
     "doctor --no-ray"],
)  # fmt: skip
@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg://me:{secret}@127.0.0.1:{port}/x",
        "postgresql+psycopg://127.0.0.1:{port}/x?user=me&password={secret}",
        "postgresql+psycopg://me:{secret}@127.0.0.1:port/x",
        "nosuch://me:{secret}@127.0.0.1:{port}/x",
    ],
    ids=["refuses", "in-the-query", "no-port", "no-driver"],
)
def test_a_password_of_a_storage_is_not_shown(
    tmp_path: Path, tiny: list[str], nobody: int, command: str, url: str
) -> None:
    storage = url.format(secret=SECRET, port=nobody)
    ran = run_cli(*command.split(), *(tiny if command == "launch" else ["--home", "home"]), "--storage", storage)
    assert ran.code == (1 if "doctor" in command else 2), (
        ran
    )  # a fault that the doctor finds is no mistake of its caller
    assert leaks(ran, tmp_path) == [] and "Traceback" not in ran.out + ran.err
    assert "***@127.0.0.1" in ran.out + ran.err or "password=***" in ran.out + ran.err


@pytest.mark.parametrize("command", ["list", "doctor --no-ray"])
def test_a_process_shows_no_password(tmp_path: Path, nobody: int, command: str) -> None:
    """With every word that libraries write to a terminal."""
    storage = f"postgresql+psycopg://me:{SECRET}@127.0.0.1:{nobody}/x"
    words = [*command.split(), "--home", str(tmp_path / "home"), "--storage", storage]
    environment = {**os.environ, "PYTHONWARNINGS": "always", "PYTHONFAULTHANDLER": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "cst_search.cli", *words], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert leaks(Ran(done.returncode, done.stdout, done.stderr), tmp_path) == []
    assert "me:***@127.0.0.1" in done.stdout + done.stderr and "Traceback" not in done.stderr
