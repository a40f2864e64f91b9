"""The documentation: it builds, loads nothing from elsewhere, and every command, flag and example in it works."""

from __future__ import annotations

import os
import random
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from smaller_demo import use_smaller_demo
from studies import command_of

pytest.importorskip("material", reason="building the documentation needs the extra `docs`, which `test` includes")

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import figures  # noqa: E402  (of tools/, which is no package)
import reference  # noqa: E402

import cst_search  # noqa: E402
from cst_search.cli import _with_compare_all, app  # noqa: E402
from cst_search.units import format_bytes, format_count  # noqa: E402

PAGES = [ROOT / "README.md", ROOT / "deploy/README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = {name: {flag for p in parameters for flag in p.flags} for name, _, parameters in reference.commands()}


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    return reference.pages()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link or an anchor that leads nowhere is an error."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    return folder


class Loaded(HTMLParser):
    """What a browser fetches to show a page; links that a person may click are not among it."""

    def __init__(self) -> None:
        super().__init__()
        self.urls: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.urls += [url for name in ("src", "srcset", "poster") if (url := values.get(name))]
        if tag == "link":
            self.urls.append(values.get("href") or "")


def test_the_site_loads_nothing_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        assert len(loaded.urls) > 3  # styles and scripts at least
        assert not [url for url in loaded.urls if "//" in url and not url.startswith("data:")], page
    for style in site.rglob("*.css"):
        assert not re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//[^)]*", style.read_text(encoding="utf-8")), (
            style
        )


def test_every_page_is_in_the_menu(site: Path) -> None:
    menu = (site / "index.html").read_text(encoding="utf-8")
    for page in site.rglob("index.html"):
        if page.parent != site:
            assert f'href="{page.parent.relative_to(site).as_posix()}/"' in menu, page


# --- the reference ----------------------------------------------------------------------------------------------------


def rows_of(text: str, section: str = "") -> dict[str, list[str]]:
    """The rows of the tables of a page, or of one section of it, by their first cell."""
    if section:
        text = re.split(rf"^## {re.escape(section)}$", text, flags=re.M)[1].partition("\n## ")[0]
    cells = [[c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line[:1] == "|"]
    return {row[0].strip("`"): row[1:] for row in cells}


def test_the_reference_has_every_field_of_a_recipe_with_its_bounds(made: dict[str, str]) -> None:
    rows = rows_of(made["reference/recipe.md"])
    assert [name for name, row in rows.items() if not row[-1]] == []  # each says what it means
    assert rows["warmup"][:3] == ["number", "`0.1`", "a share from 0 to 0.9"]
    assert rows["backbone"][2] == "one of resnet18, resnet34, resnet50, resnet101"
    assert rows["fpn_channels"][2].endswith("a multiple of 32 from 64 on for fcos and retinanet_v2")
    assert rows["recompute"][-1].startswith("computed again instead of kept: none;")  # its comment has two lines


def test_the_reference_has_every_option_of_a_method_with_its_bounds(made: dict[str, str]) -> None:
    text = made["reference/methods.md"]
    for name, method in reference.METHODS.items():
        rows = rows_of(text, name)
        wanted = [field.name for field in reference.fields(method.options)]
        assert [option for option in rows if option not in ("option", "---")] == wanted
        assert [option for option, row in rows.items() if not row[1] or not row[2]] == [], name
    assert rows_of(text, "cst")["reduction"][:2] == ["`4`", "a whole number from 1 to 256"]


def test_the_reference_says_which_fields_may_vary(made: dict[str, str]) -> None:
    (line,) = (line for line in made["reference/space.md"].splitlines() if "that may vary:" in line)
    assert "`batch_size`" in line and "`lr`" in line and "`search_epochs`" not in line and "`weights`" not in line


def test_the_reference_has_every_command(made: dict[str, str]) -> None:
    text = made["reference/commands.md"]
    assert re.findall(r"^## (.+)$", text, flags=re.M) == list(COMMANDS)
    rows = rows_of(text, "launch")
    assert rows["--trials"] == [
        "whole number from 1 on",
        "16; on the demo 10",
        "Total trials in the study, including earlier launches.",
    ]
    assert rows["--data"][1] == "the embedded demo" and rows["--stop-early`, `--no-stop-early"][0] == ""
    assert rows_of(text, "job stop")["JOB"][0] == "required"


def test_the_reference_has_every_function_of_the_api(made: dict[str, str]) -> None:
    api = pytest.importorskip("cst_search.api")
    text = made["reference/python.md"]
    names = set(cst_search.__all__) - {"__version__"}
    assert set(re.findall(r"^## (.+)$", text, flags=re.M)) == names
    assert "### Search.front\n\n```python\nSearch.front() -> pandas.DataFrame\n```" in text
    assert "    space: SpaceLike | None = None,\n" in text
    assert '* `budget_mem`: GPU memory budget per trial, e.g. `"6GB"`.' in text
    assert text.count("```pycon") == sum(">>>" in (getattr(api, name).__doc__ or "") for name in names)


# --- what the texts name ----------------------------------------------------------------------------------------------


def commands_in(text: str) -> Iterator[str]:
    """Every ``cst-search ...`` of a text: lines of blocks, and words between backticks."""
    yield from re.findall(r"^(?: {4}|\$ )?(cst-search .*)$", text, flags=re.M)
    yield from (" ".join(words.split()) for words in re.findall(r"`(cst-search [^`]+)`", text))
    yield from re.findall(r"&& (cst-search [^\n]+)", text)


def words_of(command: str) -> list[str]:
    """Its words, without a comment, a pipe, or what stands for the rest; a number where one is meant."""
    words = shlex.split(command.replace("\\|", "|").partition(" | ")[0], comments=True)
    return ["4" if word == "N" else word for word in words[1:] if word not in ("...", "&&")]


def check(words: list[str]) -> None:
    """Parse a command as the program does; nothing is run. Raises what the program would complain of."""
    command: Any = command_of(app)
    context = command.make_context("cst-search", ["ls"])
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"there is no command {name!r}"
        command = command.commands[name]
        if hasattr(command, "commands"):
            continue
        if name == "submit" and "--" in words:
            check(words[words.index("--") + 1 :])
        context = command.make_context(name, list(words), parent=context)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_command_of_a_text_is_understood(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("storage.url").write_text("postgresql+psycopg://USER:PASSWORD@HOST/NAME")
    for command in commands_in(page.read_text(encoding="utf-8")):
        words = _with_compare_all(words_of(command))
        if " ".join(words) not in {*COMMANDS, "--help"} and words[:1] != ["COMMAND"]:  # else it is but named
            try:
                check(words)
            except Exception as error:
                pytest.fail(f"{page.name}: {command}\n{type(error).__name__}: {error} {getattr(error, 'message', '')}")


# of other programs
FOREIGN = {
    "metrics.md": {"--config", "--config.file"},
    "README.md": {"--num-cpus", "--gpus"},
    "operations.md": {"--install-completion"},
}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_flag_of_a_text_exists(page: Path) -> None:
    named = set(re.findall(r"`(--[a-z][a-z.-]*)", page.read_text(encoding="utf-8")))
    assert named - set().union(*COMMANDS.values()) - FOREIGN.get(page.name, set()) == set()


def test_the_readme_has_its_two_commands_and_every_command_in_its_table() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "\n    pip install . && cst-search launch --budget-mem 6GB\n" in text
    assert "\n    pip install '.[test]' && pytest\n" in text
    table = text.partition("## Commands")[2].partition("\n## ")[0]
    named = {
        word for line in re.findall(r"^\| (.*?) (?<!\\)\|", table, flags=re.M) for word in re.findall(r"`(\w+)", line)
    }
    assert {name.partition(" ")[0] for name in COMMANDS} <= named


def test_the_readme_is_short_and_lines_of_prose_end_at_120_characters() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120
    for page in PAGES:
        text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        lines = [line for line in text.splitlines() if not line.startswith(("|", "    "))]  # tables, code
        assert lines and max(map(len, lines)) <= 120, page.name


# --- figures of the texts ---------------------------------------------------------------------------------------------


def test_the_readmes_table_is_of_the_measured_results() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = [
        [f"{p.map_mean:.3f} ({p.map_std:.3f})", format_count(p.trainable_params), format_bytes(p.saved_bytes),
         f"{p.working_bytes / 1e6:.0f} MB"]
        for p in figures.points().values()
    ]  # fmt: skip
    table = [row for name, row in rows_of(text).items() if " px" in name]
    assert len(table) == 4 and all(row in rows for row in table)
    best, found = (float(row[0][:5]) for row in table[:2])
    assert f"keeps {100 * found / best:.0f} %" in " ".join(text.split())


def test_the_page_on_memory_has_what_the_model_predicts() -> None:
    rows = rows_of((ROOT / "docs/gpu-memory.md").read_text(encoding="utf-8"))
    needed = [figures.memory_of(method) for method in figures.METHODS]
    assert rows["GB"] == [f"`{method}`" for method in figures.METHODS]
    for label, name in (("allocated", "active_bytes"), ("reserved", "reserved_bytes"), ("nvidia-smi", "device_bytes")):
        (row,) = (row for cell, row in rows.items() if label in cell)
        assert row == [f"{n[name] / 1e9:.2f}" for n in needed], label
    assert all(sum(n["breakdown"].get(part, 0) for part in figures.PARTS) == n["device_bytes"] for n in needed)
    for cell, (size, *_) in rows.items():
        if re.fullmatch(r"[\w= ]+=[\w= ]+", cell):
            predicted = cst_search.estimate("resnet50", ["method=full", *cell.split()])["device_bytes"]
            assert size == f"{predicted / 1e9:.2f} GB", cell


def test_the_table_for_choosing_a_method_is_that_of_the_methods() -> None:
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8").partition("## How they compare on seven data sets")[2]
    of_sets, of_costs = text.partition("| method | mAP50")[::2]
    means, costs = rows_of(of_sets), rows_of(of_costs.partition("\n\n")[0])
    full = float(means["full`, lr 1e-3"][0])
    chosen = rows_of((ROOT / "docs/choosing.md").read_text(encoding="utf-8"), "The figures behind it")
    names = [name for name in means if name in costs and name not in ("method", "---")]
    assert list(chosen) == ["method", "---", *names] and len(names) == 16
    for name, (mean, share, *cost) in list(chosen.items())[2:]:
        assert mean == means[name][0] and share == f"{100 * float(mean) / full:.0f} %", name
        assert cost[:3] == costs[name][1:4], name


def test_pictures_are_small_and_all_of_them_are_shown() -> None:
    shown = {name for page in PAGES for name in re.findall(r"pictures/([\w.-]+)\)", page.read_text(encoding="utf-8"))}
    there = {path.name: path.stat().st_size for path in (ROOT / "docs/pictures").iterdir()}
    assert set(there) == shown
    assert there["front.png"] < 150_000 and max(there.values()) < 200_000


# --- examples ---------------------------------------------------------------------------------------------------------


# a quarter of the pixels: what is tested is that the examples run
SMALLER = ('settings={"search_epochs": ', 'settings={"image_size_px": 64, "max_size_px": 64, "search_epochs": ')


@contextmanager
def one_core() -> Iterator[None]:
    """A search takes a thread a core; on a busy machine they wait for each other, for minutes."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {random.choice(sorted(cores))})
    try:
        yield
    finally:
        os.sched_setaffinity(0, cores)


def run_cells(cells: list[str], folder: Path) -> list[Any]:
    """Run cells in this process, which has imported all that a kernel would import anew. Returns what they show."""
    pytest.importorskip("IPython", reason="running a notebook needs the extra `test`")
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.capture import capture_output
    from traitlets.config import Config

    class ZMQInteractiveShell(InteractiveShell):  # the name by which rich knows that it writes into a notebook
        pass

    config, shown = Config(), []
    config.HistoryManager.enabled = False
    shell = ZMQInteractiveShell.instance(
        config=config, ipython_dir=str(folder / "ipython"), user_module=ModuleType("notebook")
    )
    try:
        with shell.builtin_trap, shell.display_trap:
            for cell in cells:
                with capture_output() as said:
                    shell.run_cell(cell).raise_error()
                shown += said.outputs
    finally:
        shell.restore_sys_module_state()
        ZMQInteractiveShell.clear_instance()
    return shown


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Any]]:
    """Run the notebook with fewer epochs: its folder, which the Python page uses too, and what its cells show."""
    pytest.importorskip("cst_search.api")
    nbformat = pytest.importorskip("nbformat")
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.read(reference.NOTEBOOK, as_version=4)
    cells = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    cells = [cell.replace("EPOCHS = 3, 2, 4", "EPOCHS = 1, 1, 1").replace(*SMALLER) for cell in cells]
    assert sum(SMALLER[1] in cell or "= 1, 1, 1" in cell for cell in cells) == 2
    with pytest.MonkeyPatch.context() as patch:
        use_smaller_demo(patch, folder)
        patch.delenv("CST_SEARCH_HOME", raising=False)
        patch.chdir(folder)
        with one_core():
            return folder, run_cells(cells, folder)


def test_the_notebook_runs_and_draws_its_pictures(played: tuple[Path, list[Any]]) -> None:
    folder, shown = played
    assert sum("image/png" in one.data for one in shown) == 2
    assert (folder / "trained/weights.safetensors").is_file() and (folder / "front/front.html").is_file()


def test_the_notebook_is_kept_without_outputs() -> None:
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(reference.NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert not [cell for cell in notebook.cells if cell.cell_type == "code" and (cell.outputs or cell.execution_count)]


def test_the_blocks_of_the_python_page_run(
    played: tuple[Path, list[Any]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(played[0])
    use_smaller_demo(monkeypatch, tmp_path)  # else the one that is there would be drawn anew
    text = (ROOT / "docs/python.md").read_text(encoding="utf-8").replace(*SMALLER)
    assert SMALLER[1] in text
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, flags=re.M | re.S))
    assert len(blocks) > 5
    names: dict[str, Any] = {}
    for block in blocks:
        line = text.count("\n", 0, block.start()) + 1
        with one_core():
            exec(compile("\n" * line + block[1], "docs/python.md", "exec"), names)  # a traceback names the line
    said = capsys.readouterr().out
    assert "device_bytes" in said and "lr must be above 0 and below 10; got -1" in said
