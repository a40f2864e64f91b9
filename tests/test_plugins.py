"""Methods and detectors of other packages: the example as pip installs it, and made-up ones, sound and not."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib import invalidate_caches
from pathlib import Path

import pytest
import torch
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "benchmarks"))

import prediction
from studies import run_cli

from cst_search import plugins
from cst_search.commands.doctor import _plugins, examine
from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData, load_data
from cst_search.detector.build import build_detector, count_parameters
from cst_search.detector.registry import get_detector
from cst_search.errors import ConfigError, DataError
from cst_search.memory.estimate import InputShape
from cst_search.petl import METHODS, get_method, method_names
from cst_search.trial.cost import describe, predict
from cst_search.trial.run import run_trial

Make = Callable[..., Recipe]
EXAMPLE = Path(__file__).parent.parent / "examples" / "my-method"


def forget() -> None:
    for remembered in (plugins.found, plugins.load, get_method, get_detector):
        remembered.cache_clear()
    invalidate_caches()


@pytest.fixture
def brought(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """``brought("pkg", code, methods="name = pkg:X")``: a package as if it was installed."""
    monkeypatch.syspath_prepend(str(tmp_path / "site"))

    def bring(package: str, code: str, **entries: str) -> None:
        sys.modules.pop(package, None)
        info = tmp_path / "site" / f"{package}-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        groups = [f"[cst_search.{kind}]\n{lines}\n" for kind, lines in entries.items()]
        (info / "entry_points.txt").write_text("\n".join(groups))
        (tmp_path / "site" / f"{package}.py").write_text(code)
        forget()

    yield bring
    monkeypatch.undo()
    forget()


# --- the example -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder into which pip has installed the example."""
    target = tmp_path_factory.mktemp("target")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*pip, "--target", str(target), str(EXAMPLE)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def example(installed: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.syspath_prepend(str(installed))
    forget()
    yield
    monkeypatch.undo()
    forget()


def test_plugin_method_is_listed_with_its_package(example: None, tmp_path: Path) -> None:
    assert method_names() == (*METHODS, "channel_attention")
    found = json.loads(run_cli("ls", "--json").out)["plugins"]
    assert found == [{
        "kind": "methods", "name": "channel_attention", "package": "my-method", "version": "0.1.0",
        "value": "my_method:METHOD",
    }]  # fmt: skip
    assert "channel_attention method of my-method 0.1.0" in run_cli("ls").out
    findings = examine(tmp_path, "", "", with_ray=False)  # each is looked at when it is asked for
    (finding,) = itertools.takewhile(lambda each: each.name == "plug-ins", itertools.dropwhile(
        lambda each: each.name != "plug-ins", findings))  # fmt: skip
    assert finding.state == "ok" and "method channel_attention of my-method 0.1.0" in finding.text
    ran = run_cli("estimate", "--recipe", "demo", "--compare", "channel_attention,head", "--json")
    assert [row["method"] for row in json.loads(ran.out)["compare"]] == ["channel_attention", "head"]


@pytest.mark.parametrize("detector", ["fcos", "fasterrcnn"])
def test_plugin_formula_start_and_footprint_match_the_built_model(
    example: None, tiny_recipe: Make, detector: str
) -> None:
    recipe = tiny_recipe(method="channel_attention", options={"reduction": 4, "first_stage": 3}, detector=detector)
    model, plain = build_detector(recipe, 3), build_detector(tiny_recipe(method="head", detector=detector), 3)
    step, _ = describe(recipe, 3, InputShape(64, 64, 2))
    assert count_parameters(model)[0] == get_method(recipe.method).petl_params(
        step.shape, get_method(recipe.method).make_options(recipe.options)
    )
    assert predict(recipe, 3).petl_params == count_parameters(model)[0]
    images = [torch.rand(3, 64, 96)]
    with torch.no_grad():
        for a, b in zip(model.eval()(images), plain.eval()(images), strict=True):
            assert all(torch.equal(a[key], b[key]) for key in a)
    shape = InputShape(256, 320, 3)  # large enough for what depends on it to count
    recipe = replace(recipe, image_size_px=256, max_size_px=320)
    kept, active, _ = prediction.real_step(recipe, 3, shape, with_events=False)
    guess_kept, guess_active = prediction.predicted_step(recipe, 3, shape)
    assert guess_kept / kept == pytest.approx(1, abs=0.03) and guess_active / active == pytest.approx(1, abs=0.06)


def test_what_is_frozen_stays(example: None, tiny_recipe: Make, tiny_data: DetectionData) -> None:
    recipe = tiny_recipe(method="channel_attention")
    kept: list[dict[str, torch.Tensor]] = []
    result = run_trial(recipe, tiny_data, epochs=1, device="cpu", keep=lambda model: kept.append(model.state_dict()))
    assert result.outcome == "complete"
    before = build_detector(recipe, len(tiny_data.class_names)).state_dict()
    body = {name for name in before if name.startswith("backbone.body.")}
    changed = {name for name in body if not torch.equal(before[name], kept[0][name])}
    assert changed and all(".adapter." in name for name in changed)


def test_a_search_with_it_from_end_to_end(
    installed: Path, tiny_recipe: Make, tiny_folder: Path, tmp_path: Path
) -> None:
    """In processes of their own, the trials on Ray: search, export, train, predict."""
    write_yaml(tmp_path / "recipe.yaml", tiny_recipe(method="channel_attention").to_dict(), "test")
    space = {"methods": ["channel_attention"], "channel_attention": {"reduction": {"choice": [4, 8]}}}
    write_yaml(tmp_path / "space.yaml", space, "test")
    path = os.pathsep.join(filter(None, [str(installed), os.environ.get("PYTHONPATH")]))
    code = f"""
import cst_search
search = cst_search.launch(
    "6GB", data={str(tiny_folder)!r}, recipe="recipe.yaml", space="space.yaml", trials=1, workers=1, study="mine",
    settings={{"search_epochs": 1, "epochs": 1}},
)
search.export("best", verify=False)
metrics = cst_search.train("best.yaml", out="trained")
_, recipe, _ = cst_search.load_trained("trained")
found = cst_search.predict("trained", {str(tiny_folder / "val")!r}, score=0.0)
print(search.front()["config.method"].tolist(), metrics["outcome"], recipe.method, len(found))
"""
    environment = {**os.environ, "PYTHONPATH": path, "CST_SEARCH_HOME": str(tmp_path / "home")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "['channel_attention'] complete channel_attention 4\n"


# --- made-up ones ----------------------------------------------------------------------------------------------------

COPY = """
from dataclasses import replace
from cst_search.petl import METHODS
METHOD = replace(METHODS["head"], name="mine")
"""


def test_without_the_package_the_recipe_says_what_is_missing(tiny_recipe: Make) -> None:
    with pytest.raises(ConfigError, match=r"method must be one of .*; got 'channel_attention'"):
        build_detector(tiny_recipe(method="channel_attention"), 3)


@pytest.mark.parametrize(
    ("why", "code", "said"),
    [
        ("it raises", "1 / 0", "cannot be loaded: ZeroDivisionError: division by zero"),
        ("it needs what is not there", "import nosuch", "cannot be loaded: ModuleNotFoundError"),
        ("it lacks the name", "", "cannot be loaded: AttributeError"),
        ("it is no method", "METHOD = 5", "must be a cst_search.petl.base.Method, and is a int"),
        ("it has another name", COPY.replace("mine", "other"), "calls itself 'other'"),
        (
            "it brings no footprint",
            "from cst_search.petl import Method\nMETHOD = Method('mine', object, 1e-3, True, '', print, print)",
            "missing 1 required positional argument: 'footprint'",
        ),
    ],
)
def test_a_broken_one(brought: Callable[..., None], tmp_path: Path, why: str, code: str, said: str) -> None:
    brought("broken", code, methods="mine = broken:METHOD")
    (tmp_path / "recipe.yaml").write_text("method: mine\n")
    ran = run_cli("estimate", "--recipe", tmp_path / "recipe.yaml")
    assert ran.code == 2 and ran.out == ""
    assert "method 'mine' of package broken 1.0 (broken:METHOD)" in ran.message and said in ran.message
    assert "pip uninstall broken" in ran.message
    assert "mine" in run_cli("ls").out  # nothing is loaded for it
    assert [(finding.state, said in finding.text) for finding in _plugins()] == [("fault", True)]
    assert run_cli("estimate", "--recipe", "demo", "--json").code == 0  # others are not its business


def test_names_that_clash(brought: Callable[..., None], tmp_path: Path) -> None:
    brought("one", COPY, methods="mine = one:METHOD\ncst = one:METHOD")
    brought("two", COPY, methods="mine = two:METHOD")
    with pytest.raises(ConfigError, match=r"the name 'mine' of methods is brought by one 1\.0 and by two 1\.0; rename"):
        get_method("mine")
    with pytest.raises(ConfigError, match=r"the name 'cst' of methods is brought by cst-search and by one 1\.0"):
        get_method("cst")
    assert get_method("head").name == "head"
    assert [finding.state for finding in _plugins()] == ["fault", "fault"]


DETECTOR = """
from dataclasses import replace
from cst_search.detector.registry import DETECTORS
DETECTOR = replace(DETECTORS["retinanet"], name="mine")
"""


def test_a_detector(brought: Callable[..., None], tiny_recipe: Make, tiny_data: DetectionData) -> None:
    brought("dets", DETECTOR, detectors="mine = dets:DETECTOR")
    recipe = tiny_recipe(detector="mine", method="cst")
    assert recipe.used_stages == (3, 4, 5)
    own, stock = predict(recipe, 3), predict(tiny_recipe(detector="retinanet", method="cst"), 3)
    assert own == stock
    assert count_parameters(build_detector(recipe, 3))[1] == own.trainable_params
    assert run_trial(recipe, tiny_data, epochs=1, device="cpu").outcome == "complete"
    assert [(finding.state, "detector mine of dets 1.0" in finding.text) for finding in _plugins()] == [("ok", True)]


TOWER = """
from dataclasses import replace
from torchvision.models.detection.fcos import FCOSHead
from cst_search.detector import DETECTORS, DenseTower

def heads(tape, step, levels):  # a function of its own, that works as FCOS does
    return DETECTORS["fcos"].heads(tape, step, levels)

def build(backbone, n_labels, recipe):
    model = DETECTORS["fcos"].build(backbone, n_labels, recipe)
    model.head = FCOSHead(backbone.out_channels, 1, n_labels, num_convs=3)
    return model

DETECTOR = replace(
    DETECTORS["fcos"], name="mine", build=build, heads=heads,
    tower=lambda recipe: DenseTower(3, anchors_per_cell=1, group_norm=True, inplace_relu=False),
)
"""


def test_the_tower_of_a_detector_is_the_one_that_it_declares(brought: Callable[..., None], tiny_recipe: Make) -> None:
    """Its number of convolutions, its norm and its anchors: not RetinaNet's because its function is not FCOS's."""
    brought("towers", TOWER, detectors="mine = towers:DETECTOR")
    shape = InputShape(256, 320, 3)
    sizes = {"image_size_px": 256, "max_size_px": 320, "recompute": "none", "memsave": False, "fpn_channels": 64}
    recipe = tiny_recipe(detector="mine", method="head", **sizes)
    own = predict(recipe, 3, shape)
    assert own == predict(tiny_recipe(detector="fcos", method="head", head_convs=3, **sizes), 3, shape)
    assert count_parameters(build_detector(recipe, 3))[1] == own.trainable_params
    kept, active, _ = prediction.real_step(recipe, 3, shape, with_events=False)
    guess_kept, guess_active = prediction.predicted_step(recipe, 3, shape)
    assert guess_kept / kept == pytest.approx(1, abs=0.03) and guess_active / active == pytest.approx(1, abs=0.06)


def test_dense_heads_without_a_declared_tower_are_refused(brought: Callable[..., None], tiny_recipe: Make) -> None:
    code = DETECTOR.replace('name="mine"', 'name="mine", tower=None')
    brought("towerless", code, detectors="mine = towerless:DETECTOR")
    with pytest.raises(ConfigError, match="must declare its tower"):
        predict(tiny_recipe(detector="mine", method="head"), 3)


FORMAT = """
from functools import partial
from pathlib import Path
from cst_search.data.formats import DataFormat, SplitSource

def read(file):
    rows = [line.split(",") for line in file.read_text().splitlines()]
    names = sorted({row[0] for row in rows})
    return {
        "images": [{"id": i, "file_name": name} for i, name in enumerate(names)],
        "annotations": [
            {"image_id": names.index(name), "category_id": 1, "bbox": list(map(float, box)), "place": f"line {i}"}
            for i, (name, *box) in enumerate(rows, start=1)
        ],
        "categories": [{"id": 1, "name": "thing"}],
    }

def find(folder):
    files = {split: folder / f"{split}.csv" for split in ("train", "val")}
    return {split: SplitSource(file, folder, partial(read, file)) for split, file in files.items() if file.is_file()}

FORMAT = DataFormat("csv_rows", ("train.csv, val.csv: rows of file,x,y,w,h",), find)
"""


def csv_folder(folder: Path, row: str = "a.png,1,2,3,4") -> Path:
    for split in ("train", "val"):
        (folder / f"{split}.csv").write_text(row + "\n")
    Image.new("RGB", (20, 10)).save(folder / "a.png")
    return folder


def test_a_format_of_another_package_is_checked_like_ours(brought: Callable[..., None], tmp_path: Path) -> None:
    brought("rows", FORMAT, formats="csv_rows = rows:FORMAT")
    (tmp_path / "set").mkdir()
    data, _ = load_data(csv_folder(tmp_path / "set"))
    [image] = data.splits["train"].images
    assert (data.class_names, image.boxes_xywh, image.width) == (("thing",), ((1, 2, 3, 4),), 20)
    with pytest.raises(DataError, match=r"box-no-area\]: a\.png \(line 1\)"):
        load_data(csv_folder(tmp_path / "set", "a.png,1,2,0,4"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"rows of file,x,y,w,h"):
        load_data(tmp_path / "empty")
    assert "format csv_rows of rows 1.0 (rows:FORMAT)" in [finding.text for finding in _plugins()]
    assert "csv_rows" in run_cli("ls").out


def test_a_format_is_imported_only_where_ours_do_not_fit(
    brought: Callable[..., None], tiny_folder: Path, tmp_path: Path
) -> None:
    brought("broken", "raise RuntimeError('no')", formats="mine = broken:FORMAT")
    load_data(tiny_folder)
    with pytest.raises(ConfigError, match=r"format 'mine' of package broken 1\.0 .* cannot be loaded"):
        load_data(csv_folder(tmp_path))


def test_a_format_with_the_name_of_ours_is_refused(brought: Callable[..., None], tmp_path: Path) -> None:
    brought("rows", FORMAT.replace("csv_rows", "yolo"), formats="yolo = rows:FORMAT")
    with pytest.raises(ConfigError, match="the name 'yolo' of formats is brought by cst-search and by rows"):
        load_data(csv_folder(tmp_path))


def test_a_plugin_that_is_no_detector_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"detector must be one of fasterrcnn, .*; got 'mine'"):
        Recipe(detector="mine")
