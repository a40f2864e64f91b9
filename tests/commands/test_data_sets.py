"""`data check` and `data convert`: what is understood is shown, and our layout holds the same data."""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import layouts
import numpy as np
import pytest
from PIL import Image
from studies import run_cli

from cst_search.data.contact_sheet import choose, colour_of, draw_sheet
from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.options import ReadOptions
from cst_search.data.statistics import describe


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CST_SEARCH_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "home"


def boxes(data: DetectionData) -> dict[str, list[Any]]:
    """Split -> digest, size, and labels with boxes of each image."""
    return {
        name: [(e.digest, e.width, e.height, e.labels, e.boxes_xywh, e.iscrowd, e.areas) for e in split.images]
        for name, split in data.splits.items()
    }


# --- figures ---------------------------------------------------------------------------------------------------------


def test_figures_are_those_of_the_annotations(tiny_data: DetectionData, tiny_folder: Path) -> None:
    figures = describe(tiny_data)
    documents = {split: json.loads((tiny_folder / f"{split}.json").read_text()) for split in ("train", "val", "test")}
    for split, document in documents.items():
        found, of_image = figures["splits"][split], Counter(a["image_id"] for a in document["annotations"])
        counts = sorted(of_image[image["id"]] for image in document["images"])
        assert (found["n_images"], found["n_boxes"], found["n_crowd"]) == (len(counts), sum(counts), 0)
        assert found["n_empty"] == counts.count(0)
        assert found["boxes_per_image"] == [counts[0], np.median(counts), counts[-1]]
    names = {c["id"]: c["name"] for c in documents["train"]["categories"]}
    for row in figures["classes"]:
        of_class = [
            (image, a)
            for document in documents.values()
            for image in document["images"]
            for a in document["annotations"]
            if a["image_id"] == image["id"] and names[a["category_id"]] == row["name"]
        ]
        assert sum(row["n_boxes"].values()) == len(of_class)
        sides = [(a["bbox"][2] * a["bbox"][3]) ** 0.5 for _, a in of_class]
        shares = [a["bbox"][2] * a["bbox"][3] / image["width"] / image["height"] for image, a in of_class]
        assert row["median_side_px"] == pytest.approx(np.median(sides))
        assert row["median_share"] == pytest.approx(np.median(shares))
    assert sum(size["n_images"] for size in figures["image_sizes"]) == 14 and figures["n_image_sizes"] == 4


def test_check_shows_layout_counts_and_findings(tiny_folder: Path, home: Path) -> None:
    ran = run_cli("data", "check", tiny_folder)
    assert (ran.code, ran.err) == (0, "")
    next_step = f"next:  cst-search launch --data {tiny_folder} --budget-mem 6GB"
    said = (f"{tiny_folder}: coco", "square", "image sizes: 96x64 (", "train.json", "[image-without-boxes]: 3.png",
            next_step)  # fmt: skip
    assert [part for part in said if part not in ran.out] == []
    known = json.loads(run_cli("data", "check", tiny_folder, "--json").out)
    assert known["is_sound"] and known["format"] == "coco" and known["missing_splits"] == []
    assert known["notes"][0] == {
        "kind": "image-without-boxes", "split": "train", "count": 1, "examples": ["3.png"], "why": ""
    }  # fmt: skip
    assert not (home / "studies.db").exists()


def test_check_of_a_set_with_faults_shows_figures_and_faults(tiny_folder: Path, tmp_path: Path, home: Path) -> None:
    folder = layouts.ours(tiny_folder, tmp_path / "set")
    document = json.loads((folder / "train.json").read_text())
    document["annotations"][0]["bbox"][2] = -5
    (folder / "train.json").write_text(json.dumps(document))
    ran = run_cli("data", "check", folder, "--json")
    known = json.loads(ran.out)
    assert (ran.code, known["is_sound"]) == (2, False)
    assert [(fault["kind"], fault["count"]) for fault in known["faults"]] == [("box-no-area", 1)]
    assert known["splits"]["train"]["n_boxes"] == len(document["annotations"]) - 1
    said = run_cli("data", "check", folder).out
    assert "[box-no-area]" in said and "next:" not in said


def test_check_of_a_set_without_validation_names_the_option(tiny_folder: Path, tmp_path: Path, home: Path) -> None:
    folder = layouts.single_json(tiny_folder, tmp_path / "set")
    ran = run_cli("data", "check", folder)
    assert ran.code == 2 and "--val-fraction 0.2 (recipe field val_fraction)" in ran.out
    known = json.loads(run_cli("data", "check", folder, "--val-fraction", "0.25", "--json").out)
    assert known["is_sound"] and [s["n_images"] for s in known["splits"].values()] == [9, 3]
    assert (home / "val-splits.json").is_file()


def test_check_finds_leaks(tiny_folder: Path, tmp_path: Path, home: Path) -> None:
    folder = layouts.ours(tiny_folder, tmp_path / "set")
    (folder / "val" / "1.png").unlink()
    os.link(folder / "train" / "1.png", folder / "val" / "1.png")
    notes = json.loads(run_cli("data", "check", folder, "--json").out)["notes"]
    assert ("leak", "val", ["1.png (also in train)"]) in [(n["kind"], n["split"], n["examples"]) for n in notes]


# --- the contact sheet -----------------------------------------------------------------------------------------------


def test_the_sheet_shows_every_class_and_is_the_same_for_a_seed(tiny_data: DetectionData, tmp_path: Path) -> None:
    for seed in range(5):
        chosen = choose(tiny_data, 4, seed)
        assert {label for shown in chosen for label in shown.entry.labels} == {1, 2, 3}
        assert len(chosen) == 4 and chosen == choose(tiny_data, 4, seed)
    assert choose(tiny_data, 4, 0) != choose(tiny_data, 4, 1)
    assert len(choose(tiny_data, 100)) == 14
    assert draw_sheet(tiny_data, tmp_path / "a.png", seed=1) == draw_sheet(tiny_data, tmp_path / "b.png", seed=1)
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_boxes_lie_on_the_picture_as_training_sees_it(tmp_path: Path) -> None:
    """A black square on white, in a picture that EXIF turns: its box frames it."""
    pixels = np.full((160, 320, 3), 255, np.uint8)
    pixels[40:80, 200:280] = 0  # stored; shown turned by 90 degrees: 160x320, x 80..120, y 200..280
    exif = Image.Exif()
    exif[0x0112] = 6
    for split in ("train", "val"):
        (tmp_path / split).mkdir()
        Image.fromarray(pixels).save(tmp_path / split / f"{split}.png", exif=exif)
        (tmp_path / f"{split}.json").write_text(json.dumps({
            "images": [{"id": 1, "file_name": f"{split}.png", "width": 160, "height": 320}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [80, 200, 40, 80]}],
            "categories": [{"id": 1, "name": "a"}],
        }))  # fmt: skip
    draw_sheet(load_data(tmp_path)[0], tmp_path / "sheet.png", 1)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)
    black = np.argwhere((sheet[30:330, 6:166] < 40).all(axis=2))
    frame = np.argwhere((np.abs(sheet[30:330, 6:166] - colour_of(1)) < 5).all(axis=2))
    assert len(black) > 1000
    assert np.abs(frame.min(0)[1] - black.min(0)[1]) <= 3 and np.abs(frame.max(0) - black.max(0)).max() <= 3


@pytest.mark.parametrize("name", ["there.png", "sheet.jpg", "nowhere/sheet.png"])
def test_a_sheet_that_cannot_be_is_one_message(tiny_folder: Path, tmp_path: Path, home: Path, name: str) -> None:
    (tmp_path / "there.png").write_text("mine")
    ran = run_cli("data", "check", tiny_folder, "--sheet", tmp_path / name)
    assert ran.code == 2 and "--sheet" in ran.message and name in ran.message and ran.out == ""
    assert (tmp_path / "there.png").read_text() == "mine"


def test_check_draws_the_sheet(tiny_folder: Path, tmp_path: Path, home: Path) -> None:
    ran = run_cli("data", "check", tiny_folder, "--sheet", tmp_path / "sheet.png")
    assert ran.code == 0 and f"14 images with their boxes: {tmp_path / 'sheet.png'}" in ran.out
    assert Image.open(tmp_path / "sheet.png").width == 6 * 326 + 6


# --- convert ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["ours", "roboflow", "yolo", "voc"])
@pytest.mark.parametrize("link", [False, True])
def test_a_converted_set_is_the_same(tiny_folder: Path, tmp_path: Path, home: Path, layout: str, link: bool) -> None:
    folder = layouts.WRITERS[layout](tiny_folder, tmp_path / layout)
    ran = run_cli("data", "convert", folder, tmp_path / "out", *(["--link"] if link else []))
    assert (ran.code, ran.err) == (0, "")
    data, expected = load_data(tmp_path / "out")[0], load_data(folder)[0]
    assert boxes(data) == boxes(expected) and data.class_names == expected.class_names
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["train", "train.json", "val", "val.json"]
    written = [entry.path for entry in data.splits["train"].images]
    read = [entry.path for entry in expected.splits["train"].images]
    assert [os.path.samefile(*pair) for pair in zip(written, read, strict=True)] == [link] * 8
    assert not list(tmp_path.glob(".*part"))


def test_a_made_validation_split_is_written_out(tiny_folder: Path, tmp_path: Path, home: Path) -> None:
    folder = layouts.single_json(tiny_folder, tmp_path / "set")
    ran = run_cli("data", "convert", folder, tmp_path / "out", "--val-fraction", "0.25", "--json")
    known = json.loads(ran.out)
    assert (known["n_images"], known["n_classes"], known["read_with"]) == ({"train": 9, "val": 3}, 3, [])
    expected = load_data(folder, ReadOptions(val_fraction=0.25))[0]
    assert boxes(load_data(tmp_path / "out")[0]) == boxes(expected)


def test_images_in_folders_of_one_name_stay_apart(tmp_path: Path, home: Path) -> None:
    for place in "abc":
        (tmp_path / f"set/images/{place}").mkdir(parents=True)
        (tmp_path / f"set/labels/{place}").mkdir(parents=True)
        Image.new("RGB", (20, 10), (ord(place), 0, 0)).save(tmp_path / f"set/images/{place}/0.png")
        (tmp_path / f"set/labels/{place}/0.txt").write_text("0 0.5 0.5 0.5 0.5")
    (tmp_path / "set/data.yaml").write_text("train: [images/a, images/b]\nval: images/c\nnames: [cat]")
    assert run_cli("data", "convert", tmp_path / "set", tmp_path / "out").code == 0
    data = load_data(tmp_path / "out")[0]
    assert [image.file_name for image in data.splits["train"].images] == ["a/0.png", "b/0.png"]
    assert boxes(data) == boxes(load_data(tmp_path / "set")[0])


def test_what_a_file_cannot_say_is_said(tmp_path: Path, home: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 3  # 180 degrees: the size does not tell
    for seed, split in enumerate(("train", "val")):
        (tmp_path / "set" / split).mkdir(parents=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "set" / split / "0.png", exif=exif)
        document = {
            "images": [{"id": 1, "file_name": "0.png", "width": 30, "height": 20}],
            "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [2, 3, 4, 5]}],
            "categories": [{"id": 1, "name": "a"}],
        }
        (tmp_path / "set" / f"{split}.json").write_text(json.dumps(document))
    ran = run_cli("data", "convert", tmp_path / "set", tmp_path / "out", "--exif", "shown")
    assert ran.code == 0 and ran.out.endswith("read it with --exif shown\n")
    shown = ReadOptions(exif="shown")
    assert boxes(load_data(tmp_path / "out", shown)[0]) == boxes(load_data(tmp_path / "set", shown)[0])


def test_crowds_stay_crowds(tiny_folder: Path, tmp_path: Path, home: Path) -> None:
    folder = layouts.ours(tiny_folder, tmp_path / "set")
    for split in ("train", "val"):
        document = json.loads((folder / f"{split}.json").read_text())
        for annotation in document["annotations"][1:]:
            annotation["iscrowd"] = 1
        (folder / f"{split}.json").write_text(json.dumps(document))
    assert run_cli("data", "convert", folder, tmp_path / "out").code == 2
    known = json.loads(run_cli("data", "convert", folder, tmp_path / "out", "--crowd", "ignore", "--json").out)
    assert known["read_with"] == ["--crowd ignore"]
    options = ReadOptions(crowd="ignore")
    assert boxes(load_data(tmp_path / "out", options)[0]) == boxes(load_data(folder, options)[0])
    known = json.loads(run_cli("data", "convert", folder, tmp_path / "all", "--crowd", "as-objects", "--json").out)
    assert known["read_with"] == []
    data = load_data(tmp_path / "all")[0]
    assert boxes(data) == boxes(load_data(folder, ReadOptions(crowd="as-objects"))[0])
    assert not any(any(image.iscrowd) for image in data.splits["train"].images)


@pytest.mark.parametrize(
    ("why", "said"),
    [
        ("a folder that is not empty", "OUT must be a new folder"),
        ("a file", "OUT must be a new folder"),
        ("no data", "has no split"),
        ("faults", "--skip-bad"),
        ("a folder that cannot be", "cannot be written"),
    ],
)
def test_convert_refuses_and_writes_nothing(tiny_folder: Path, tmp_path: Path, home: Path, why: str, said: str) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    (tmp_path / "empty").mkdir()
    folder = layouts.ours(tiny_folder, tmp_path / "set")
    if why == "faults":
        (folder / "train" / "1.png").unlink()  # it is a link to the file of all tests
        (folder / "train" / "1.png").write_text("no image")
    source = tmp_path / "empty" if why == "no data" else folder
    out = {
        "a folder that is not empty": "full",
        "a file": "full/mine.txt",
        "a folder that cannot be": "full/mine.txt/x",
    }
    before = sorted(path for path in tmp_path.rglob("*") if home not in path.parents and path != home)
    ran = run_cli("data", "convert", source, tmp_path / out.get(why, "out"))
    assert ran.code == 2 and said in ran.message and ran.out == ""
    assert sorted(path for path in tmp_path.rglob("*") if home not in path.parents and path != home) == before
    assert (tmp_path / "full" / "mine.txt").read_text() == "mine"


def test_skip_bad_converts_the_rest(tiny_folder: Path, tmp_path: Path, home: Path) -> None:
    folder = layouts.ours(tiny_folder, tmp_path / "set")
    (folder / "train" / "1.png").unlink()
    ran = run_cli("data", "convert", folder, tmp_path / "out", "--skip-bad")
    assert ran.code == 0 and "[image-missing]" in ran.out
    assert len(load_data(tmp_path / "out")[0].splits["train"].images) == 7
