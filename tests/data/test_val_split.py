"""A validation split for sets without one: reproducible, stratified, and without copies on both sides."""

from __future__ import annotations

import json
import random
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.options import ReadOptions
from cst_search.errors import DataError

CLASSES = {3: "common", 5: "rare", 8: "seldom"}
FIFTH = ReadOptions(val_fraction=0.2)


def draw(path: Path, number: int) -> None:
    """A picture whose bytes are the same with every version of every library."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (24, 16), (number % 256, number // 256, 7)).save(path)


def classes_of(number: int) -> list[int]:
    """40 images with 30 of class 3, 5 of class 5, 10 of class 8, some of several, 5 empty."""
    return [c for c, here in ((3, number % 4 != 0), (5, number % 8 == 1), (8, number % 4 == 2)) if here] or (
        [] if number % 8 == 0 else [3]
    )


def single(folder: Path, names: list[str], of_number: Any = classes_of) -> Path:
    """A set in one file. Image n has colour n, whatever its name."""
    images, annotations = [], []
    for number, name in enumerate(names):
        draw(folder / "images" / name, number)
        images.append({"id": number, "file_name": name, "width": 24, "height": 16})
        annotations += [
            {"id": len(annotations) + i, "image_id": number, "category_id": c, "bbox": [2, 2, 9, 9]}
            for i, c in enumerate(of_number(number))
        ]
    content = {
        "images": images, "annotations": annotations, "categories": [{"id": i, "name": n} for i, n in CLASSES.items()]
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(content))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return single(tmp_path / "set", [f"{i:02}.ppm" for i in range(40)])


def digests(data: DetectionData, split: str = "val") -> set[str]:
    return {image.digest for image in data.splits[split].images}


def test_without_the_option_the_message_names_it(folder: Path) -> None:
    with pytest.raises(DataError, match=r"has no val split(.|\n)*--val-fraction 0\.2 \(recipe field val_fraction\)"):
        load_data(folder)


def test_the_two_parts_are_the_whole(folder: Path) -> None:
    data, report = load_data(folder, FIFTH)
    assert list(data.splits) == ["train", "val"]
    assert {split: len(part.images) for split, part in data.splits.items()} == {"train": 32, "val": 8}
    assert not digests(data, "train") & digests(data) and len(digests(data, "train") | digests(data)) == 40
    whole, _ = load_data(folder, need=("train",))
    boxes = {image.file_name: (image.labels, image.boxes_xywh) for image in whole.splits["train"].images}
    for part in data.splits.values():
        assert {image.file_name: (image.labels, image.boxes_xywh) for image in part.images}.items() <= boxes.items()
    assert [(note.kind, note.split, note.examples) for note in report.notes if note.kind == "split-off"] == [
        ("split-off", "val", ("8 of 40 images, val_fraction 0.2, val_seed 0",))
    ]
    assert (report.n_images, report.n_boxes) == (40, sum(len(labels) for labels, _ in boxes.values()))


def test_every_class_has_its_share(folder: Path) -> None:
    data, _ = load_data(folder, FIFTH)
    count = {
        split: Counter(label for image in part.images for label in set(image.labels) or {0})
        for split, part in data.splits.items()
    }
    all_of = {label: sum(classes.count(c) for classes in map(classes_of, range(40))) for label, c in
              enumerate(CLASSES, start=1)}  # fmt: skip
    for label, n in (all_of | {0: 5}).items():
        assert count["val"][label] + count["train"][label] == n
        assert abs(count["val"][label] - n / 5) <= 1, (label, n, count)


def test_another_place_order_and_name_give_the_same_split(folder: Path, tmp_path: Path) -> None:
    """The pure function of content: another machine has another path, and lists files in another order."""
    expected = digests(load_data(folder, FIFTH)[0])
    other = tmp_path / "elsewhere"
    shutil.copytree(folder, other)
    content = json.loads((other / "result.json").read_text())
    random.Random(3).shuffle(content["images"])
    random.Random(4).shuffle(content["annotations"])
    for entry in content["images"]:
        (other / "images" / entry["file_name"]).rename(other / "images" / f"x{entry['file_name']}")
        entry["file_name"] = f"x{entry['file_name']}"
    content["categories"] = [{"id": c["id"] + 100, "name": c["name"]} for c in content["categories"]]
    for entry in content["annotations"]:
        entry["category_id"] += 100
    (other / "result.json").write_text(json.dumps(content))
    assert digests(load_data(other, FIFTH)[0]) == expected
    assert digests(load_data(folder, FIFTH, check_images=False)[0]) == expected


def test_the_split_is_pinned(folder: Path) -> None:
    """A recipe of an earlier version must get the split it was searched with: this list may never change."""
    data, _ = load_data(folder, FIFTH)
    assert [image.file_name for image in data.splits["val"].images] == PINNED


PINNED = "07.ppm 09.ppm 11.ppm 16.ppm 20.ppm 21.ppm 26.ppm 34.ppm".split()


def test_another_seed_gives_another_split(folder: Path) -> None:
    splits = [digests(load_data(folder, ReadOptions(val_fraction=0.2, val_seed=seed))[0]) for seed in range(3)]
    assert len(set(map(frozenset, splits))) == 3


def test_copies_of_an_original_stay_together(tmp_path: Path) -> None:
    names = [f"photo{i // 3}_jpg.rf.{i:032x}.ppm" for i in range(45)]
    data, _ = load_data(single(tmp_path, names, lambda number: [3]), FIFTH)
    originals = {split: {image.file_name.split(".rf.")[0] for image in part.images}
                 for split, part in data.splits.items()}  # fmt: skip
    assert len(data.splits["val"].images) == 9 and len(originals["val"]) == 3
    assert not originals["train"] & originals["val"]


def test_a_group_takes_the_room_of_all_its_images(tmp_path: Path) -> None:
    """Four copies, of which one has an object, fill half of the room; the two images that are left go to the other."""
    names = [f"photo_jpg.rf.{i:032x}.ppm" for i in range(4)] + ["rare.ppm", "seldom.ppm"]
    folder = single(tmp_path, names, lambda number: {0: [3], 4: [5], 5: [8]}.get(number, []))
    data, _ = load_data(folder, ReadOptions(val_fraction=0.5))
    assert {image.file_name for image in data.splits["val"].images} == {"rare.ppm", "seldom.ppm"}


def test_equal_files_stay_together(tmp_path: Path) -> None:
    folder = single(tmp_path, [f"{i}.ppm" for i in range(20)], lambda number: [3])
    for number in range(10, 20):
        draw(folder / "images" / f"{number}.ppm", number - 10)
    data, report = load_data(folder, FIFTH)
    assert len(data.splits["val"].images) == 4
    assert "leak" not in {note.kind for note in report.notes}


def test_the_split_is_kept_in_the_home(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "home" / "checked-images.json"
    first = digests(load_data(folder, FIFTH, cache=cache)[0])
    store = cache.with_name("val-splits.json")
    document = json.loads(store.read_text())
    [(key, entry)] = document["splits"].items()
    assert entry["fraction"] == 0.2 and set(entry["digests"]) == first and len(entry["file_names"]) == 8
    chosen = sorted(digests(load_data(folder, FIFTH)[0], "train"))[:5]
    store.write_text(json.dumps({"version": 1, "splits": {key: entry | {"digests": chosen}}}))
    assert digests(load_data(folder, FIFTH, cache=cache)[0]) == set(chosen), "a stored split is used"
    load_data(folder, ReadOptions(val_fraction=0.3), cache=cache)
    assert len(json.loads(store.read_text())["splits"]) == 2
    for damaged in ("", "[]", '{"version": 1}', '{"version": 1, "splits": {"x": 3}}'):
        store.write_text(damaged)
        assert digests(load_data(folder, FIFTH, cache=cache)[0]) == first


def test_a_set_with_a_validation_split_refuses_the_option(folder: Path) -> None:
    (folder / "result.json").rename(folder / "train.json")
    shutil.copy(folder / "train.json", folder / "val.json")
    with pytest.raises(DataError, match=r"--val-fraction .* has .*val\.json; leave the option out"):
        load_data(folder, FIFTH)


def test_a_test_split_stays(folder: Path) -> None:
    (folder / "result.json").rename(folder / "train.json")
    shutil.copy(folder / "train.json", folder / "test.json")
    data, _ = load_data(folder, FIFTH)
    assert {split: len(part.images) for split, part in data.splits.items()} == {"train": 32, "val": 8, "test": 40}


def test_too_few_images_are_an_empty_split(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"val +1  no image or no box is left \[empty-split\]"):
        load_data(single(tmp_path, ["a.ppm", "b.ppm"], lambda number: [3]), FIFTH)


def test_broken_images_are_left_out_before(folder: Path) -> None:
    (folder / "images" / "07.ppm").write_text("no image")
    with pytest.raises(DataError, match="image-unreadable"):
        load_data(folder, FIFTH)
    data, report = load_data(folder, FIFTH, skip_bad=True)
    assert sum(len(part.images) for part in data.splits.values()) == 39
    assert report.n_dropped_images == 1
