"""The architecture as tables: which wing may import which, which wing uses which library. Read from the sources."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
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

BELOW_TRIAL = ("config", "data", "memory", "backbone", "petl", "detector")
FORMER = {"inference"}  # addresses that are kept for what was written earlier
# wing: the wings that it may import, or single modules of them. `ROOT` may be used by all and uses nothing of ours.
ROOT = {"errors", "units", "plugins", "redaction", "lazy", "import_path", "visible", "input_file", "cores", "loopback",
        "uncompiled", "waiting"}  # fmt: skip
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "config": (),
    "data": ("config",),
    "memory": ("config", "data.resize"),
    "backbone": ("config", "memory"),
    "petl": ("config", "memory", "backbone"),
    "detector": ("config", "memory", "backbone", "petl"),
    "trial": BELOW_TRIAL,
    "deployment": (*BELOW_TRIAL, "trial.multi_inference"),
    "study": ("config", "memory", "trial.result"),
    "search": ("config", "memory", "study", "trial.cost", "trial.default_config", "trial.result"),
    "execution": (*BELOW_TRIAL, "trial", "study", "search"),
    "tracking": ("config", "study", "trial.inference", "trial.multi_inference", "trial.result"),
    "report": ("config", "memory", "study", "search.suggestion", "trial.result"),
    "commands": (*BELOW_TRIAL, "trial", "study", "search", "execution", "tracking", "report", "deployment"),
    "cli": (*BELOW_TRIAL, "trial", "study", "report", "tracking", "commands"),
    "api": (*BELOW_TRIAL, "trial", "study", "report", "commands"),
}


# --- reading imports -------------------------------------------------------------------------------------------------


def _imports(tree: ast.AST, module: str, path: Path, *, for_types: bool = True) -> Iterator[str]:
    """Dotted names of all imports, also inside functions and, with ``for_types``, those for type checkers alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            body = [*node.body, *node.orelse] if for_types else node.orelse
            yield from _imports(ast.Module(body, []), module, path, for_types=for_types)
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
            yield from _imports(node, module, path, for_types=for_types)


@cache
def imports(module: str, for_types: bool = False) -> frozenset[str]:
    path = MODULES[module]
    return frozenset(_imports(ast.parse(path.read_text()), module, path, for_types=for_types))


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


def test_imports_in_functions_and_conditions_are_read(tmp_path: Path) -> None:
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
    found = {
        for_types: set(_imports(ast.parse(source), "cst_search.x", tmp_path / "x.py", for_types=for_types))
        for for_types in (False, True)
    }
    assert found[False] == {
        "typing", "typing.TYPE_CHECKING", "one", "two.three", "two.three.four", "five",
        "cst_search", "cst_search.seven",
    }  # fmt: skip
    assert found[True] == found[False] | {"nine"}


# --- wings -----------------------------------------------------------------------------------------------------------


def graph() -> dict[str, set[str]]:
    """Module -> our modules that it imports, without the package's own name; imports for type checkers included.

    ``from cst_search.study import storage`` counts as an import of ``study.storage``, not of the package ``study``.
    """
    found: dict[str, set[str]] = {}
    for module in MODULES:
        names = {name for name in imports(module, for_types=True) if name in MODULES and name != module}
        deeper = {name for name in names if any(other.startswith(f"{name}.") for other in names)}
        found[_short(module)] = {_short(name) for name in names - deeper} - {""}
    return found


def _short(module: str) -> str:
    return module.removeprefix("cst_search").removeprefix(".")


def _is_in(module: str, wings: tuple[str, ...]) -> bool:
    return any(module == wing or module.startswith(f"{wing}.") for wing in wings)


def broken_rules(modules: Mapping[str, set[str]]) -> list[str]:
    """Imports that `MAY_IMPORT` does not allow, as "module imports other"."""
    broken = []
    for module, found in modules.items():
        wing = module.split(".")[0]
        if module in {"", *FORMER}:
            continue
        allowed = () if wing in ROOT else MAY_IMPORT[wing]
        broken += [
            f"{module} imports {other}" for other in found if other not in ROOT and not _is_in(other, (wing, *allowed))
        ]
    return sorted(broken)


def cycles(modules: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, directly or not."""
    left = {module: set(found) & set(modules) for module, found in modules.items()}
    while leaves := [module for module, found in left.items() if not found]:
        for module in leaves:
            del left[module]
        left = {module: found - set(leaves) for module, found in left.items()}
    # the rest leads into a cycle; keep what is led to as well
    while roots := [module for module in left if not any(module in found for found in left.values())]:
        for module in roots:
            del left[module]
    return [sorted(left)] if left else []


def test_every_module_is_in_a_wing() -> None:
    tops = {_short(module).split(".")[0] for module in MODULES} - {""}
    assert tops == {*MAY_IMPORT, *ROOT, *FORMER}


def test_imports_between_wings_run_one_way() -> None:
    assert broken_rules(graph()) == []


def test_no_module_imports_itself_through_others() -> None:
    assert cycles(graph()) == []


@pytest.mark.parametrize(
    ("module", "other"),
    [
        ("study.reader", "search.session"),  # reading needs no sampler
        ("trial.run", "study.study"),  # a trial does not know that it is searched for
        ("report.html", "tracking.views"),
        ("memory.estimate", "petl.base"),
        ("tracking.runs", "commands.launch"),
        ("errors", "units"),  # what all use, uses nothing
    ],
)
def test_a_broken_rule_is_found(module: str, other: str) -> None:
    modules = graph()
    modules.setdefault(module, set()).add(other)
    found = broken_rules(modules)
    assert found == ([] if module == "errors" else [f"{module} imports {other}"])
    if module == "errors":
        modules.setdefault(other, set()).add(module)
        assert cycles(modules) == [[module, other]]


def test_a_cycle_is_found() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == [["b", "c"]]
    assert cycles({"a": {"b"}, "b": set()}) == []


def test_the_architecture_page_names_files_that_exist() -> None:
    page = PACKAGE.parent / "docs" / "architecture.md"
    if not page.is_file():
        pytest.skip("not a checkout")
    named = set(re.findall(r"`((?:[a-z_]+/)+[a-z_]+\.(?:py|yaml))`", page.read_text()))
    assert len(named) > 10
    assert {name for name in named if not (PACKAGE / name).is_file() and not (PACKAGE.parent / name).is_file()} == set()


# --- size ------------------------------------------------------------------------------------------------------------

LONGEST = {ast.FunctionDef: 60, ast.AsyncFunctionDef: 60, ast.ClassDef: 300}  # lines, signature and docstring included


def too_long(path: Path) -> list[str]:
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if type(node) in LONGEST)
    sizes = ((node, node.end_lineno - node.lineno + 1) for node in nodes)
    return [f"{path.name}: {node.name} has {n} lines" for node, n in sizes if n > LONGEST[type(node)]]


def test_functions_and_classes_are_short(tmp_path: Path) -> None:
    line = "        x = 1"
    short, long = tmp_path / "short.py", tmp_path / "long.py"
    short.write_text("\n".join(["def f():", *[line] * 59]))
    long.write_text("\n".join(["class A:", "    async def f():", *[line] * 60, *["    y = 2"] * 239]))
    assert too_long(short) == []
    assert too_long(long) == ["long.py: A has 301 lines", "long.py: f has 61 lines"]
    assert [fault for path in MODULES.values() for fault in too_long(path)] == []


# --- libraries -------------------------------------------------------------------------------------------------------

# a trial runs where there are torch, torchvision and pycocotools; faster-coco-eval, safetensors and yaml are imported
# where used
_OF_A_TRIAL = sorted(name for name in map(_short, MODULES) if _is_in(name, (*BELOW_TRIAL, "trial")))
ALONE = [name for name in (*_OF_A_TRIAL, "execution.node_check") if name != "config.loading"]
SERVICES = {"ray", "optuna", "mlflow", "matplotlib", "pydantic", "typer", "rich", "sqlalchemy", "psutil"}
OF_A_TRIAL = {"torch", "torchvision", "pycocotools", "faster_coco_eval", "numpy", "PIL", "safetensors", "yaml"}
# modules that need the standard library only, and so do the modules that they import
ARITHMETIC = [
    "units", "errors", "plugins",
    *sorted(name for name in map(_short, MODULES) if _is_in(name, ("memory", "config.recipe", "config.search_space"))),
    "execution.gpu_sharing", "study.seed_statistics",
]  # fmt: skip


@pytest.mark.parametrize("name", ALONE)
def test_a_trial_reaches_no_service(name: str) -> None:
    for module in closure(f"cst_search.{name}"):
        assert not third_party(module) & SERVICES, module
        assert third_party(module) <= OF_A_TRIAL, module


@pytest.mark.parametrize("name", ARITHMETIC)
def test_arithmetic_needs_the_standard_library_only(name: str) -> None:
    for module in closure(f"cst_search.{name}"):
        assert third_party(module) <= {"yaml"}, module


@pytest.mark.parametrize("name", ALONE)
def test_what_a_trial_can_do_without_is_imported_inside_functions(name: str) -> None:
    path = MODULES[f"cst_search.{name}"]
    statements = [n for n in ast.parse(path.read_text()).body if isinstance(n, ast.Import | ast.ImportFrom)]
    top = {found.split(".")[0] for found in _imports(ast.Module(statements, []), name, path)}
    assert not top & {"faster_coco_eval", "safetensors", "yaml"}


@pytest.mark.parametrize(
    ("library", "owners"),
    [
        ("optuna", ("study", "search")),
        ("scipy", ("search", "study.allocation")),
        ("sqlalchemy", ("study",)),
        ("ray", ("execution",)),
        ("grpc", ("execution",)),
        ("aiohttp", ("execution",)),
        ("mlflow", ("tracking",)),
        ("av", ("commands.video",)),
        ("onnx", ("deployment",)),
        ("onnxruntime", ("deployment.onnx_file",)),
        ("matplotlib", ("report.figure",)),
        ("jinja2", ("report.html",)),
        ("moocore", ("study.pareto",)),
        ("pandas", ("api",)),
        ("pydantic", ("config.loading",)),
        ("typer", ("cli",)),
        ("rich", ("report", "commands", "cli", "api")),
        ("pycocotools", ("trial.coco_eval",)),
        ("faster_coco_eval", ("trial.coco_eval",)),
        ("safetensors", ("backbone.resnet", "detector.trained_file")),
        (
            "torchvision",
            ("backbone", "data.augmentation", "detector", "trial.feature_cache", "tracking.models", "commands.doctor"),
        ),
    ],
)
def test_a_library_has_one_owner(library: str, owners: tuple[str, ...]) -> None:
    users = {_short(module) for module in MODULES if library in third_party(module)}
    assert users and {name for name in users if not _is_in(name, owners)} == set()
    assert {owner for owner in owners if not any(_is_in(name, (owner,)) for name in users)} == set()


def private_names_of_optuna(tree: ast.AST) -> set[str]:
    """Private modules and attributes of Optuna that a module uses; `self`'s own attributes are not Optuna's."""
    nodes = list(ast.walk(tree))
    modules = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    attributes = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and not (isinstance(node.value, ast.Name) and node.value.id == "self")
    }
    private = {name for name in modules if name.startswith("optuna.") and "._" in name}
    return private | attributes & {"_storage", "_study_id", "_trial_id"}


def test_private_names_of_optuna_have_two_owners() -> None:
    assert private_names_of_optuna(ast.parse("study._storage.f(trial._trial_id); self._storage")) == {
        "_storage", "_trial_id",
    }  # fmt: skip
    users = {_short(name) for name, path in MODULES.items() if private_names_of_optuna(ast.parse(path.read_text()))}
    assert users == {"study.storage", "study.optuna_cache"}


def test_every_third_party_import_is_declared() -> None:
    """Beside each dependency stands the file that uses it (pyproject.toml); so each has a line there."""
    pyproject = PACKAGE.parent / "pyproject.toml"
    if not pyproject.is_file():
        pytest.skip("not a checkout")
    text = pyproject.read_text().lower()
    names = {"PIL": "pillow", "yaml": "pyyaml", "optuna_dashboard": "optuna-dashboard",
             "faster_coco_eval": "faster-coco-eval"}  # fmt: skip
    used = {library for module in MODULES for library in third_party(module)}
    assert {lib for lib in used if f'"{names.get(lib, lib).lower()}' not in text} == set()


# --- the public names ------------------------------------------------------------------------------------------------


def test_public_names() -> None:
    """What `import cst_search` gives: the functions of `cst_search.api`, loaded when they are used."""
    assert cst_search.__all__ == [
        "Search", "__version__", "allocate", "build_detector", "estimate", "launch", "load_trained", "open_study",
        "predict", "predict_video", "train",
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
        ("memory", "Estimate InputShape worst_input"),
        ("data", "load_data DetectionData CocoImages loader"),
        ("detector", "build_detector count_parameters trained_tensors Detector DETECTORS get_detector"),
        ("petl", "METHODS Method get_method method_names"),
        ("config.recipe", "Recipe"),
        ("memory.fit", "what_fits compare_methods Fit MethodFit MethodCost"),
        ("memory.gpus", "Card cards find_card"),
        ("data.disk_cache", "Cache Store Slots open_cache"),
        ("detector.weights", "save_trained load_trained"),
        ("trial.memory_limit", "memory_limit MemoryLimit"),
        ("trial.measure", "measure synthetic_batch dataset_batch Batch Measured"),
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


def loaded_by(*commands: list[str], first: str = "") -> tuple[str, set[str]]:
    """Run commands in a fresh interpreter; return what they print, and the libraries that it has loaded at its end.

    Args:
        first: code that runs before them.
    """
    code = f"""
import sys
from cst_search.cli import main
{first}
for words in {commands!r}:
    sys.argv = ["cst-search", *words]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
print("LOADED", *sorted({{name.split(".")[0] for name in sys.modules}}))
"""
    done = python("-c", code)
    assert done.returncode == 0, done.stderr
    shown, _, names = done.stdout.partition("LOADED")
    return shown, set(names.split())


@pytest.mark.parametrize(
    ("args", "by_typer"),
    [
        (["--help"], set()),
        (["launch", "--help"], {"pydantic"}),  # typer._adapters loads it to describe a command's parameters
    ],
)
def test_help_loads_nothing_heavy(args: list[str], by_typer: set[str]) -> None:
    shown, loaded = loaded_by(args)
    assert "Usage" in shown and "typer" in loaded
    assert loaded & HEAVY <= by_typer


def test_estimate_does_not_load_torch() -> None:
    shown, loaded = loaded_by(
        ["estimate", "--recipe", "resnet50"],
        ["estimate", "--recipe", "demo", "--set", "method=conv_lora", "--json"],
        ["estimate", "--recipe", "demo", "--fit", "6GB"],
        ["estimate", "--recipe", "demo", "--compare", "all", "--device", "RTX 3060 12GB"],
        first="import cst_search.petl; cst_search.petl.method_names = lambda: ('cst', 'head')",  # of twelve
    )
    assert "conv_lora" in shown and "pydantic" in loaded and not loaded & (HEAVY - {"pydantic"})


def test_reading_a_study_does_not_wait_for_torch() -> None:
    code = (
        "import sys, cst_search.study.study, cst_search.report.progress; "
        "print('LOADED', *{n.split('.')[0] for n in sys.modules})"
    )
    loaded = set(python("-c", code).stdout.split())
    assert "optuna" in loaded and not loaded & {"torch", "torchvision", "ray", "mlflow", "sklearn", "matplotlib"}


def test_a_trial_runs_where_there_is_nothing_but_torch_without_its_compiler(
    tiny_recipe: Callable[..., Recipe], tiny_folder: Path, tmp_path: Path
) -> None:
    """`python -m cst_search.trial` in an interpreter that refuses to find the services and torch's compiler."""
    (tmp_path / "sitecustomize.py").write_text(
        "import sys\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] in {sorted(SERVICES | {'moocore', 'jinja2', 'faster_coco_eval'})!r} "
        "or name == 'torch._dynamo':\n"
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
