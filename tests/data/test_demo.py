"""The embedded demo: deterministic, valid COCO, all or nothing; and the weights shipped for it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cst_search.data import demo
from cst_search.data.demo import CATEGORIES, IMAGE_SIZE_PX, MARKER, draw_image, write_demo
from cst_search.errors import ConfigError

N = len(CATEGORIES)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_demo(tmp_path_factory.mktemp("demo") / "set", n_train=12, n_val=8)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def split(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def test_two_writes_are_byte_identical(drawn: Path, tmp_path: Path) -> None:
    assert files(write_demo(tmp_path / "again", n_train=12, n_val=8)) == files(drawn)


def test_an_image_does_not_depend_on_how_many_are_drawn(drawn: Path, tmp_path: Path) -> None:
    fewer, more = files(write_demo(tmp_path / "few", n_train=N, n_val=N)), files(drawn)
    assert all(more[name] == content for name, content in fewer.items() if name.endswith(".png"))
    few = split(tmp_path / "few", "train")["annotations"]
    assert split(drawn, "train")["annotations"][: len(few)] == few


@pytest.mark.parametrize(
    "other",
    [
        (1, "train", 0),  # another seed
        (0, "val", 0),  # another split
        (0, "train", 1),  # another index
    ],
)
def test_seed_split_and_index_all_matter(other: tuple[int, str, int]) -> None:
    assert not np.array_equal(draw_image(0, "train", 0)[0], draw_image(*other)[0])


@pytest.mark.parametrize("name", ["train", "val"])
def test_the_annotations_are_valid_coco(drawn: Path, name: str) -> None:
    content = split(drawn, name)
    assert [category["id"] for category in content["categories"]] == list(range(1, N + 1))
    assert [image["id"] for image in content["images"]] == list(range(1, len(content["images"]) + 1))
    assert [row["id"] for row in content["annotations"]] == list(range(1, len(content["annotations"]) + 1))
    assert {row["category_id"] for row in content["annotations"]} == set(range(1, N + 1))
    assert {row["image_id"] for row in content["annotations"]} == {image["id"] for image in content["images"]}
    for image in content["images"]:
        with Image.open(drawn / name / image["file_name"]) as picture:
            assert (picture.mode, picture.size) == ("RGB", (image["width"], image["height"]))
    for row in content["annotations"]:
        x, y, w, h = row["bbox"]
        assert 0 <= x < x + w <= IMAGE_SIZE_PX and 0 <= y < y + h <= IMAGE_SIZE_PX
        assert row["area"] == w * h > 0
        assert row["iscrowd"] == 0


def test_the_default_set_has_the_promised_statistics() -> None:
    drawn = [draw_image(0, "train", index) for index in range(60)]
    counts = [len(labels) for _, _, labels in drawn]
    sides = [max(w, h) for _, boxes, _ in drawn for _, _, w, h in boxes]
    assert (min(counts), max(counts)) >= (1, 4) and max(counts) <= 6
    assert 12 <= np.quantile(sides, 0.05) and np.quantile(sides, 0.95) <= 62


def test_a_complete_set_is_not_redrawn(drawn: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "_write_split", lambda *args: pytest.fail("drawn again"))
    assert write_demo(drawn, n_train=12, n_val=8) == drawn


@pytest.mark.parametrize(
    "change",
    [
        {"n_train": N + 1},  # another size
        {"seed": 1},  # other pictures
        {"version": -1},  # drawn by older code
    ],
)
def test_a_set_of_another_kind_is_redrawn(
    tmp_path: Path, change: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr(demo, "VERSION", change.pop("version", demo.VERSION))
        write_demo(folder, n_train=N, n_val=N)
    (folder / "train.json").write_text("stale")
    write_demo(folder, **({"n_train": N, "n_val": N} | (change or {})))
    assert split(folder, "train")["images"]
    assert list(tmp_path.iterdir()) == [folder]  # nothing is left of the old one


def test_an_interrupted_write_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(seed: int, name: str, index: int) -> Any:
        if (name, index) == ("val", 2):
            raise KeyboardInterrupt
        return draw_image(seed, name, index)

    monkeypatch.setattr(demo, "draw_image", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_demo(tmp_path / "set", n_train=N, n_val=N)
    assert list(tmp_path.iterdir()) == []


def test_two_processes_may_draw_the_same_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, write_split = tmp_path / "set", demo._write_split

    def meanwhile(*args: Any) -> None:
        write_split(*args)
        if args[1] == "val":  # the other one is ready first
            with monkeypatch.context() as patch:
                patch.setattr(demo, "_write_split", write_split)
                write_demo(folder, n_train=N, n_val=N)

    monkeypatch.setattr(demo, "_write_split", meanwhile)
    write_demo(folder, n_train=N, n_val=N)
    assert list(tmp_path.iterdir()) == [folder]
    assert split(folder, "val")["images"]


def test_a_folder_with_other_things_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="not a demo data set"):
        write_demo(tmp_path)
    assert (tmp_path / "thesis.txt").read_text() == "precious"


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert (write_demo(tmp_path / ".", n_train=N, n_val=N) / MARKER).is_file()


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least 6"):
        write_demo(tmp_path / "set", n_train=5)


@pytest.fixture(scope="module")
def weights() -> Iterator[Path]:
    pytest.importorskip("torch")
    yield Path(demo.__file__).parents[1] / "backbone" / "weights" / "demo-resnet18.safetensors"


def test_the_weights_file_is_small_and_says_where_it_comes_from(weights: Path) -> None:
    from safetensors import safe_open

    assert weights.stat().st_size <= 6_000_000
    with safe_open(weights, "pt") as file:
        assert set(file.metadata()) >= {"what", "script", "command", "source_map", "date"}
        assert not [name for name in file.keys() if name.endswith("num_batches_tracked")]


def test_the_weights_load_and_give_finite_features(weights: Path) -> None:
    import torch

    from cst_search.backbone.resnet import Body, load_weights

    body = Body("resnet18", width=0.5)
    assert load_weights(body, "resnet18", "demo") != load_weights(Body("resnet18", width=0.5), "resnet18", "none")
    image = torch.from_numpy(draw_image(0, "val", 0)[0]).permute(2, 0, 1)[None] / 255
    for name, feature in body.eval()(image).items():
        assert feature.isfinite().all() and feature.std() > 0.01, name
