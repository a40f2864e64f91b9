"""Faults in files that a person gives: recipes, --set, search spaces, data sets, weights. See test_bad_input.py."""

from __future__ import annotations

import json
import os
import pickle
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from studies import Ran
from wrong_commands import NESTED, REMEMBERED, TINY, check

Document = dict[str, Any]


# --- recipes --------------------------------------------------------------------------------------------------------


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
