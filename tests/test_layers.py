"""DESIGN section 2 as a table: who may import whom. Read from the sources, and tried in fresh interpreters."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import cst_search
from cst_search.config.recipe import Recipe

PACKAGE = Path(cst_search.__file__).parent
MODULES = {
    ".".join(("cst_search", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


def _imports(tree: ast.AST, module: str, path: Path) -> Iterator[str]:
    """Dotted names of all imports, also inside functions; not those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            yield from _imports(ast.Module(node.orelse, []), module, path)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
                base = ".".join([*parts[: len(parts) - node.level + 1], *filter(None, [base])])
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)
        else:
            yield from _imports(node, module, path)


@cache
def imports(module: str) -> frozenset[str]:
    path = MODULES[module]
    return frozenset(_imports(ast.parse(path.read_text()), module, path))


def third_party(module: str) -> set[str]:
    roots = {name.split(".")[0] for name in imports(module)}
    return roots - set(sys.stdlib_module_names) - {"cst_search"}


def closure(module: str) -> set[str]:
    """The module and all of ours that it imports, directly or not, at the top or inside functions."""
    seen, todo = set(), [module]
    while todo:
        current = todo.pop()
        if current not in seen:
            seen.add(current)
            todo += [name for name in imports(current) if name in MODULES]
    return seen


def test_the_reader_sees_what_is_hidden(tmp_path: Path) -> None:
    source = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import nine
else:
    import one
def f():
    from two.three import four
class A:
    def g(self):
        try: import five as six
        except ImportError: from . import seven
"""
    found = set(_imports(ast.parse(source), "cst_search.x", tmp_path / "x.py"))
    assert found == {
        "typing", "typing.TYPE_CHECKING", "one", "two.three", "two.three.four", "five",
        "cst_search", "cst_search.seven",
    }  # fmt: skip


# --- what a trial is made of -----------------------------------------------------------------------------------------

# they run alone where there are torch, torchvision and pycocotools; safetensors and yaml are imported where used
ALONE = [
    "trial", "engine", "detector", "backbone", "data", "data_check", "memory", "weights", "recipe", "units", "errors",
    "memory_limit", "trial_process", "measure", "checkpoints", "node_check",
    "devices", "fit", "cache", "features", "plugins",
    *sorted(name.removeprefix("cst_search.") for name in MODULES if name.startswith("cst_search.petl")),
]  # fmt: skip
ARITHMETIC = [
    "units",
    "errors",
    "plugins",
    "recipe",
    "space",
    "footprint",
    "tape",
    "shapes",
    "correction",
    "fit",
    "placement",
    "seeds",
]  # no torch either
SERVICES = {"ray", "optuna", "mlflow", "matplotlib", "pydantic", "typer", "rich", "sqlalchemy", "psutil"}
ALLOWED = {"torch", "torchvision", "pycocotools", "numpy", "PIL", "safetensors", "yaml"}


def test_the_methods_are_among_them() -> None:
    assert {"petl.cst", "petl.conv_lora"} <= set(ALONE)


@pytest.mark.parametrize("name", [*ALONE, "space"])
def test_a_trial_reaches_no_service(name: str) -> None:
    for module in closure(f"cst_search.{name}"):
        assert not third_party(module) & SERVICES, module
        assert third_party(module) <= ALLOWED, module


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_needs_the_standard_library_only(name: str) -> None:
    for module in closure(f"cst_search.{name}"):
        assert third_party(module) == set(), module


@pytest.mark.parametrize("name", ALONE)
@pytest.mark.parametrize("library", ["safetensors", "yaml"])
def test_safetensors_and_yaml_are_imported_inside_functions(name: str, library: str) -> None:
    tree = ast.parse(MODULES[f"cst_search.{name}"].read_text())
    statements = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    top = set(_imports(ast.Module(statements, []), "x", Path("x.py")))
    assert not any(n.split(".")[0] == library for n in top)


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("optuna", {"candidates", "importance", "launches", "parameters", "sampler", "samplers", "storage", "suggest"}),
        ("sklearn", {"sampler"}),
        ("scipy", {"sampler"}),
        ("sqlalchemy", {"database", "storage"}),
        ("ray", {"cluster", "search", "submit"}),
        ("grpc", {"cluster"}),
        ("aiohttp", {"submit"}),
        ("mlflow", {"record", "record_entries", "record_model"}),
        ("matplotlib", {"picture"}),
        ("jinja2", {"dashboard"}),
        ("moocore", {"pareto"}),
        ("pandas", {"api"}),
        ("pydantic", {"config"}),
        (
            "typer",
            {"cli.app", "cli.completion", "cli.jobs", "cli.recipes", "cli.searches", "cli.services", "cli.studies"},
        ),
        ("pycocotools", {"engine"}),
        ("safetensors", {"backbone", "weights"}),
    ],
)
def test_one_service_one_module(library: str, owners: set[str]) -> None:
    users = {name.removeprefix("cst_search.") for name in MODULES if library in third_party(name)}
    assert users == owners


def test_every_third_party_import_is_declared() -> None:
    """Beside each dependency stands the file that uses it (pyproject.toml); so each has a line there."""
    pyproject = PACKAGE.parent / "pyproject.toml"
    if not pyproject.is_file():
        pytest.skip("not a checkout")
    text = pyproject.read_text().lower()
    names = {"PIL": "pillow", "yaml": "pyyaml", "sklearn": "scikit-learn", "optuna_dashboard": "optuna-dashboard"}
    used = {library for module in MODULES for library in third_party(module)}
    assert {lib for lib in used if f'"{names.get(lib, lib).lower()}' not in text} == set()


def test_nothing_imports_the_command_line() -> None:
    users = {name for name in MODULES if any(found.startswith("cst_search.cli") for found in imports(name))}
    assert {name for name in users if not name.startswith("cst_search.cli")} == set()


# --- the public names ------------------------------------------------------------------------------------------------


def test_public_names() -> None:
    """What `import cst_search` gives: the functions of `cst_search.api`, loaded when they are used."""
    assert cst_search.__all__ == [
        "Search", "__version__", "build_detector", "estimate", "launch", "load_trained", "open_study", "predict",
        "train",
    ]  # fmt: skip
    known = {"import_module", "TYPE_CHECKING", "Any", *cst_search.__all__}
    names = [name for name in vars(cst_search) if not name.startswith("_") and f"cst_search.{name}" not in MODULES]
    assert set(names) <= known
    assert cst_search.__version__.count(".") == 2


@pytest.mark.parametrize(
    ("module", "names"),
    [
        # what a script of one's own is written with; a change here breaks people
        ("trial", "run_trial TrialResult choose_device"),
        ("memory", "predict worst_input Estimate InputShape"),
        ("memory_limit", "memory_limit MemoryLimit"),
        ("measure", "measure synthetic_batch dataset_batch Batch Measured"),
        ("fit", "what_fits compare_methods Fit MethodFit MethodCost"),
        ("devices", "Card cards find_card"),
        ("recipe", "Recipe"),
        ("cache", "Cache Store Slots open_cache"),
        ("data", "load_data DetectionData CocoImages loader"),
        ("detector", "build_detector count_parameters trained_tensors Detector DETECTORS get_detector"),
        ("weights", "save_trained load_trained"),
        ("petl", "METHODS Method get_method method_names"),
        ("errors", "CstSearchError UserError UnitError ConfigError DataError StudyError RunError"),
    ],
)
def test_module_names(module: str, names: str) -> None:
    loaded = __import__(f"cst_search.{module}", fromlist=["x"])
    assert [name for name in names.split() if not hasattr(loaded, name)] == []


# --- tried -----------------------------------------------------------------------------------------------------------


def python(*args: str, **options: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **options}
    return subprocess.run([sys.executable, *args], capture_output=True, text=True, env=environment, timeout=300)


HEAVY = {"torch", "torchvision", "ray", "mlflow", "optuna", "pydantic", "matplotlib", "numpy", "sqlalchemy"}


@pytest.mark.parametrize(
    ("args", "by_typer"),
    [
        (["--help"], set()),
        (["launch", "--help"], {"pydantic"}),  # typer._adapters loads it to describe a command's parameters
    ],
)
def test_help_loads_nothing_heavy(args: list[str], by_typer: set[str]) -> None:
    code = f"""
import sys
sys.argv = ["cst-search", *{args!r}]
try:
    from cst_search.cli import main
    main()
except SystemExit as stop:
    assert not stop.code, stop.code
print("LOADED", *sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split("LOADED")[1].split())
    assert "Usage" in done.stdout and "typer" in loaded
    assert loaded & HEAVY <= by_typer


def test_reading_a_study_does_not_wait_for_torch() -> None:
    code = "import sys, cst_search.search.session, cst_search.report.progress; print('LOADED', *{n.split('.')[0] for n in sys.modules})"
    loaded = set(python("-c", code).stdout.split())
    assert "optuna" in loaded and not loaded & {"torch", "torchvision", "ray", "mlflow", "sklearn", "matplotlib"}


def test_a_trial_runs_where_there_is_nothing_but_torch(
    tiny_recipe: Callable[..., Recipe], tiny_folder: Path, tmp_path: Path
) -> None:
    """`python -m cst_search.trial` in an interpreter that refuses to find the services."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {sorted(SERVICES | {'moocore', 'jinja2'})!r}:\n"
        "            raise ModuleNotFoundError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    check = python("-c", "import optuna", PYTHONPATH=str(tmp_path))
    assert "blocked: optuna" in check.stderr  # the block works
    recipe = tiny_recipe(method="cst")
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe.to_dict()))  # JSON is YAML
    command = ["-m", "cst_search.trial", str(tmp_path / "recipe.yaml"), "--data", str(tiny_folder), "--epochs", "1"]
    done = python(*command, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    first, _, rest = done.stdout.partition("\n")
    result = json.loads(rest)
    assert result["outcome"] == "complete" and result["history"] == [json.loads(first)]
