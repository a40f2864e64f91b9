"""What is built finds its files: wheel, source archive, wheel from the source archive, and the checkout itself."""

from __future__ import annotations

import email
import importlib.util
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from cst_search.config import catalog

ROOT = Path(__file__).resolve().parents[1]
KINDS = ("trials", "search_spaces")

needs_build = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("build", "hatchling", "pip")),
    reason="building needs build, hatchling and pip: install the extra `test`",
)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """``sdist``, the ``wheel`` built from it, and the wheel built from the ``checkout``."""
    folder = tmp_path_factory.mktemp("built")
    places = {}
    # without a choice `build` makes the wheel from the sdist
    for name, choice in (("from-sdist", []), ("checkout", ["--wheel"])):
        command = [sys.executable, "-m", "build", "--no-isolation", *choice, "--outdir", str(folder / name), str(ROOT)]
        subprocess.run(command, check=True, capture_output=True, timeout=300)
        (places[name],) = (folder / name).glob("*.whl")
    (places["sdist"],) = (folder / "from-sdist").glob("*.tar.gz")
    return {"wheel": places["from-sdist"], "checkout": places["checkout"], "sdist": places["sdist"]}


@needs_build
@pytest.mark.parametrize("name", ["wheel", "checkout"])
def test_a_wheel_holds_one_package_and_all_its_files(built: dict[str, Path], name: str) -> None:
    with zipfile.ZipFile(built[name]) as archive:
        files = archive.namelist()
    tops = {file.split("/")[0] for file in files}
    (info,) = (top for top in tops if top.endswith(".dist-info"))
    assert tops == {"cst_search", info}  # `trials` at the top would clobber other people's packages
    for kind in (*KINDS, "dashboards"):
        shipped = {f"cst_search/{kind}/{path.name}" for path in (ROOT / kind).iterdir() if path.is_file()}
        assert shipped and shipped <= set(files)
    names = (
        "backbone/weights/demo-resnet18.safetensors",
        "detector/coco_labels.txt",
        "detector/weights/demo-detector.safetensors",
        "memory/devices.yaml",
        "memory/memory.yaml",
        "search/prior.json.gz",
        "py.typed",
    )
    assert {f"cst_search/{name}" for name in names} <= set(files)
    assert f"{info}/licenses/LICENSE" in files
    assert not [file for file in files if file.endswith((".pyc", ".db")) or "cst-runs" in file or "tests/" in file]


@needs_build
def test_a_package_index_gets_what_it_shows(built: dict[str, Path]) -> None:
    with zipfile.ZipFile(built["wheel"]) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        said = email.message_from_bytes(archive.read(name))
    assert said["Description-Content-Type"] == "text/markdown" and said["License-Expression"] == "Apache-2.0"
    assert said.get_payload().startswith("# cst-search\n")
    versions = [c.rpartition(" ")[2] for c in said.get_all("Classifier", []) if re.search(r":: 3\.\d+$", c)]
    assert said["Requires-Python"] == f">={versions[0]}"  # the tests ran on this one
    assert "Typing :: Typed" in said.get_all("Classifier", [])  # py.typed, as above


@needs_build
def test_both_ways_give_the_same_wheel(built: dict[str, Path]) -> None:
    contents = []
    for name in ("wheel", "checkout"):
        with zipfile.ZipFile(built[name]) as archive:
            contents.append({entry.filename: entry.CRC for entry in archive.infolist()})
    assert contents[0] == contents[1]


@needs_build
def test_the_source_archive_can_be_tested(built: dict[str, Path]) -> None:
    with tarfile.open(built["sdist"]) as archive:
        files = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    tests = {f"tests/{path.name}" for path in (ROOT / "tests").glob("*.py")}
    assert tests | {"pyproject.toml", "README.md", "LICENSE"} <= files
    assert not [name for name in files if name.startswith((".git/", ".venv", "cst-runs", "dist/"))]


def names_seen(path: str | None, cwd: Path) -> list[str]:
    """Where the package lies and what it ships, as a fresh process in another folder sees it."""
    code = "from cst_search.config import catalog; print(catalog.__file__); "
    code += "; ".join(f"print(*catalog.names({kind!r}))" for kind in KINDS)
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    if path is not None:
        environment["PYTHONPATH"] = path
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, check=True, capture_output=True, text=True, timeout=60
    )
    return ended.stdout.splitlines()


@needs_build
@pytest.mark.parametrize("name", ["wheel", "checkout"])
def test_an_installed_wheel_finds_its_files(built: dict[str, Path], name: str, tmp_path: Path) -> None:
    target = tmp_path / "site"
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--quiet", "--no-index", "--no-compile",
               "--disable-pip-version-check", "--target", str(target), str(built[name])]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    where, *found = names_seen(str(target), cwd=tmp_path)
    assert Path(where).is_relative_to(target)
    assert found == [" ".join(catalog.names(kind)) for kind in KINDS]  # type: ignore[arg-type]


def test_the_checkout_finds_its_files_from_anywhere(tmp_path: Path) -> None:
    where, *found = names_seen(str(ROOT), cwd=tmp_path)
    assert Path(where).is_relative_to(ROOT)
    assert found == [" ".join(sorted(path.stem for path in (ROOT / kind).glob("*.yaml"))) for kind in KINDS]


def test_every_dependency_names_the_files_that_use_it() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    dependencies = tomllib.loads(text)["project"]["dependencies"]
    lines = {line.split('"')[1]: line for line in text.splitlines() if line.strip().startswith('"') and "#" in line}
    for dependency in dependencies:
        assert "cst_search/" in lines[dependency] or "not imported by us" in lines[dependency], dependency
