"""Entries of annotation files as exporters write them: what can be read is read, with a note."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from coco_folders import CLASSES, HEIGHT, SOUND, WIDTH, labels, noted, targets, truth, write_folder, write_split

from cst_search.data.dataset import load_data
from cst_search.data.validation.values import finite, shown, whole
from cst_search.errors import DataError

# --- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "as_whole", "as_finite"),
    [
        (3, 3, 3.0),
        (3.0, 3, 3.0),
        (3.5, None, 3.5),
        ("3", 3, 3.0),
        (" -3 ", -3, -3.0),
        ("3.0", 3, 3.0),
        ("2e2", 200, 200.0),
        ("9007199254740993", 9007199254740993, 9007199254740992.0),  # more digits than a float has
        (str(2**63), None, 2.0**63),
        (True, None, None),
        (None, None, None),
        ("", None, None),
        ("1_000", None, None),
        ("1,5", None, None),
        ("0x10", None, None),
        ("nan", None, None),
        ("1e999", None, None),
        (float("inf"), None, None),
        (10**400, None, None),
        ("\u0663", None, None),  # a digit of another script
        ([3], None, None),
    ],
)
def test_numbers(value: Any, as_whole: int | None, as_finite: float | None) -> None:
    assert (whole(value), finite(value)) == (as_whole, as_finite)


def test_values_are_shown_as_json_and_short() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    assert [shown(value) for value in (None, "x", [1.5, None], nested)] == ["null", '"x"', "[1.5, null]", "a list"]
    assert len(shown("x" * 100)) == 60


# --- annotations ------------------------------------------------------------------------------------------------------


def test_numbers_written_as_text(tmp_path: Path) -> None:
    texts = {
        "id": "1",
        "image_id": "1",
        "category_id": "2",
        "bbox": ["10", "20.5", "30", "40"],
        "iscrowd": "0",
        "area": "9",
    }
    write_split(
        tmp_path, "train", [texts, SOUND], categories=[{"id": "1", "name": "cat"}, {"id": "2", "name": "dog"}],
        document={"images": [{"id": "1", "file_name": "1.png", "width": str(WIDTH), "height": str(HEIGHT)}]},
    )  # fmt: skip
    write_split(tmp_path, "val", [SOUND])
    data, report = load_data(tmp_path)
    assert targets(data) == [[[10, 20.5, 40, 60.5], [10, 20, 40, 60]]]
    assert labels(data) == [["dog", "cat"]]
    assert data.splits["train"].images[0].areas == (9, 1200)
    assert noted(report) == {("train", "number-text"): 4}


def test_null_where_nothing_is_meant(tmp_path: Path) -> None:
    entry = {"id": None, "iscrowd": None, "area": None, "segmentation": None, "attributes": None, **SOUND}
    data, report = load_data(write_folder(tmp_path, [entry]))
    assert truth(data) == [([10, 20, 30, 40], 0)]
    assert data.splits["train"].images[0].areas == (1200,)
    assert noted(report) == {}


@pytest.mark.parametrize("missing", [{}, {"bbox": None}, {"bbox": []}])
@pytest.mark.parametrize(
    "segmentation",
    [
        [[10, 20, 40, 20, 25, 60]],
        {"size": [HEIGHT, WIDTH], "counts": [10 * HEIGHT + 20, *[40, 40] * 29, 40, 20 + 60 * HEIGHT]},
    ],
    ids=["polygon", "mask"],
)
def test_a_box_around_the_outline(tmp_path: Path, segmentation: Any, missing: dict[str, Any]) -> None:
    data, report = load_data(write_folder(tmp_path, [{"segmentation": segmentation, "area": 600, **missing}]))
    assert targets(data) == [[[10, 20, 40, 60]]]
    assert data.splits["train"].images[0].areas == (600,)
    assert noted(report) == {("train", "box-of-segmentation"): 1}


def test_a_box_around_a_normalised_outline_is_not_made(tmp_path: Path) -> None:
    """The bounds are taken as pixels, so they are below one, which is said."""
    polygon = [[0.1, 0.2, 0.4, 0.2, 0.2, 0.6]]
    _, report = load_data(write_folder(tmp_path, [{"segmentation": polygon}, SOUND]))
    assert noted(report) == {("train", "box-of-segmentation"): 1, ("train", "box-tiny"): 1}


def test_annotation_ids_that_restart_lose_no_box(tmp_path: Path) -> None:
    """As where files of single images were joined."""
    boxes = [{"id": 1 + i % 4, "image_id": 1 + i // 4, "bbox": [i, i, 10, 10]} for i in range(12)]
    for skip_bad in (False, True):
        data, report = load_data(write_folder(tmp_path, boxes, n_images=3), skip_bad=skip_bad)
        assert [len(image) for image in targets(data)] == [4, 4, 4]
        assert noted(report) == {("train", "annotation-id-twice"): 8}
        assert report.n_dropped_boxes == 0


def test_a_copy_of_an_annotation_is_read_once(tmp_path: Path) -> None:
    data, report = load_data(write_folder(tmp_path, [SOUND | {"id": 5}, SOUND | {"id": 5}, SOUND]))
    assert len(targets(data)[0]) == 2, "another id is another object"
    assert noted(report) == {("train", "annotation-twice"): 1}
    assert report.n_boxes == 3


# --- classes ----------------------------------------------------------------------------------------------------------


def test_class_names_that_are_numbers(tmp_path: Path) -> None:
    digits = [{"id": 1, "name": 0}, {"id": 2, "name": 7}]
    write_split(tmp_path, "train", [SOUND, SOUND | {"category_id": 2}], categories=digits)
    write_split(tmp_path, "val", [SOUND], categories=[{"id": 1, "name": "0"}, {"id": 2, "name": "7"}])
    data, report = load_data(tmp_path)
    assert data.class_names == ("0", "7")
    assert labels(data) == [["0", "7"]]
    assert noted(report) == {("train", "class-name-number"): 2}


OTHER_CLASSES = [
    ("other ids and order", [{"id": 7, "name": "dog"}, {"id": 9, "name": "cat"}], 9, {"class-matched": 2}),
    ("ids exchanged", [{"id": 1, "name": "dog"}, {"id": 2, "name": "cat"}], 2, {"class-matched": 2}),
    ("another case", [{"id": 1, "name": "Cat"}, {"id": 2, "name": "DOG"}], 1, {"class-matched": 2}),
    ("a space before", [{"id": 1, "name": " cat"}, {"id": 2, "name": "dog"}], 1, {"class-matched": 1}),
    ("fewer", [{"id": 1, "name": "cat"}], 1, {}),
    ("one more, without boxes", [*CLASSES, {"id": 3, "name": "animals"}], 1, {"class-only-here": 1}),
]


@pytest.mark.parametrize(("why", "classes", "cat", "notes"), OTHER_CLASSES, ids=[row[0] for row in OTHER_CLASSES])
def test_classes_are_matched_by_name(
    tmp_path: Path, why: str, classes: list[dict[str, Any]], cat: int, notes: dict[str, int]
) -> None:
    write_split(tmp_path, "train", [SOUND, SOUND | {"category_id": 2}])
    write_split(tmp_path, "val", [SOUND | {"category_id": cat}], categories=classes)
    data, report = load_data(tmp_path)
    assert labels(data, "val") == [["cat"]]
    assert data.splits["val"].class_names == ("cat", "dog")
    assert data.splits["val"].category_ids == (1, 2), "the ground truth has the ids of the training split"
    assert noted(report) == {("val", kind): n for kind, n in notes.items()}


def test_a_spelling_that_fits_two_classes_is_not_matched(tmp_path: Path) -> None:
    write_split(tmp_path, "train", [SOUND], categories=[{"id": 1, "name": "Cat"}, {"id": 2, "name": "CAT"}])
    write_split(tmp_path, "val", [SOUND], categories=[{"id": 1, "name": "cat"}])
    with pytest.raises(DataError, match=r"\[categories-differ\]: cat \(1 boxes"):
        load_data(tmp_path)


# --- splits and advice ------------------------------------------------------------------------------------------------


def broken_test_split(folder: Path) -> Path:
    write_folder(folder, [SOUND])
    write_split(folder, "test", [{"bbox": [90, 70, 95, 78]}])
    return folder


def two_files(folder: Path) -> None:
    (folder / "annotations").mkdir()
    shutil.copy(folder / "test.json", folder / "annotations" / "instances_test2017.json")


BROKEN_TESTS = [
    ("a box outside", lambda f: None, "1 box is outside"),
    ("no annotations", lambda f: write_split(f, "test", []), "1 no image or no box is left"),
    ("not JSON", lambda f: (f / "test.json").write_text("{"), "1 the annotation file cannot be used"),
    ("no images", lambda f: (f / "test" / "1.png").unlink(), "1 image file is missing"),
    ("two annotation files", two_files, "1 the annotation file cannot be used"),
    ("no image folder", lambda f: shutil.rmtree(f / "test"), "1 the annotation file cannot be used"),
    ("other classes", lambda f: write_split(f, "test", [SOUND], categories=[{"id": 1, "name": "fox"}]), "1 class with"),
]


@pytest.mark.parametrize(("why", "break_it", "says"), BROKEN_TESTS, ids=[row[0] for row in BROKEN_TESTS])
def test_a_broken_test_split_stops_only_what_reads_it(tmp_path: Path, why: str, break_it: Any, says: str) -> None:
    break_it(broken_test_split(tmp_path))
    data, report = load_data(tmp_path)
    assert list(data.splits) == ["train", "val"]
    assert targets(data) == [[[10, 20, 40, 60]]]
    assert not report.faults
    assert [(n.split, n.detail.startswith(says)) for n in report.notes if n.kind == "split-left-out"] == [
        ("test", True)
    ]
    assert set(report.counts) == {"train", "val"}
    with pytest.raises(DataError, match=r"A test split is optional: without it, the rest can be used$"):
        load_data(tmp_path, also=("test",))


def test_a_sound_test_split_is_read(tmp_path: Path) -> None:
    write_split(write_folder(tmp_path, [SOUND]), "test", [SOUND])
    data, report = load_data(tmp_path)
    assert targets(data, "test") == [[[10, 20, 40, 60]]]
    assert noted(report) == {}


def faulty(folder: Path, n_bad: int, n: int) -> Path:
    bad = {"bbox": [95, 70, 30, 30]}
    return write_folder(folder, [bad] * n_bad + [SOUND | {"id": 1000 + i} for i in range(n - n_bad)])


def test_skipping_little_is_advised_with_its_price(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_data(faulty(tmp_path, 2, 100))
    assert str(caught.value).splitlines()[-1] == (
        "Correct them (box-outside), or leave out the broken images and boxes with --skip-bad: "
        "0 of 1 images and 2 of 100 boxes of train"
    )


def test_skipping_much_is_not_advised(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_data(faulty(tmp_path, 20, 100))
    assert str(caught.value).splitlines()[-1] == (
        "Correct these: box-outside. --skip-bad would leave out a good part: 0 of 1 images and 20 of 100 boxes of train"
    )
    _, report = load_data(tmp_path, skip_bad=True)
    assert "left out: 0 of 1 images and 20 of 100 boxes of train" in report.render()


@pytest.mark.parametrize("skip_bad", [False, True])
def test_the_last_line_names_causes(tmp_path: Path, skip_bad: bool) -> None:
    """A split is empty because its images are gone."""
    write_folder(tmp_path, [SOUND])
    (tmp_path / "val" / "1.png").unlink()
    with pytest.raises(DataError) as caught:
        load_data(tmp_path, skip_bad=skip_bad)
    assert str(caught.value).splitlines()[-1] == (
        "Correct these first, --skip-bad cannot help as it would leave nothing of val: image-missing"
    )
    document = json.loads((tmp_path / "val.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps(document | {"annotations": [], "images": []}))
    with pytest.raises(DataError, match=r"--skip-bad cannot help: val must have an image with a box$"):
        load_data(tmp_path, skip_bad=skip_bad)
