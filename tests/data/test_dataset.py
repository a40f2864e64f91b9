"""Datasets are built in tmp_path with tiny images; each fault is planted in one victim image."""

from __future__ import annotations

import json
import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from coco_folders import picture
from PIL import Image

from cst_search.data.dataset import DetectionData, coco_ground_truth, load_data
from cst_search.data.formats import find_splits
from cst_search.data.pixels import inspect_image
from cst_search.data.validation.boxes import clipped
from cst_search.data.validation.findings import FAULTS, Findings
from cst_search.errors import DataError

WIDTH, HEIGHT = 48, 32
BCCD = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "bccd"


def document(file_names: list[str]) -> dict[str, Any]:
    """One box of category 7 per image; ids from 1. Category ids have holes and are not in order."""
    return {
        "images": [
            {"id": i, "file_name": name, "width": WIDTH, "height": HEIGHT} for i, name in enumerate(file_names, 1)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 7, "bbox": [4, 6, 10, 12], "area": 120, "iscrowd": 0}
            for i in range(1, len(file_names) + 1)
        ],
        "categories": [{"id": 9, "name": "cat"}, {"id": 7, "name": "dog"}],
    }


def write(folder: Path, **splits: dict[str, Any]) -> Path:
    for name, doc in splits.items():
        (folder / f"{name}.json").write_text(json.dumps(doc))
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """train/ with a.jpg, b.jpg and val/ with v.jpg; nothing wrong."""
    for seed, name in enumerate(["train/a.jpg", "train/b.jpg", "val/v.jpg"]):
        picture(tmp_path / "ds" / name, seed=seed)
    return write(tmp_path / "ds", train=document(["a.jpg", "b.jpg"]), val=document(["v.jpg"]))


def kinds(text: str) -> set[str]:
    return {kind for kind in FAULTS if f"[{kind}]" in text}


# --- faults, one table -----------------------------------------------------------------------------------------------


class Victim(NamedTuple):
    doc: dict[str, Any]
    folder: Path  # the image folder
    image: dict[str, Any]
    annotation: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / self.image["file_name"]


class Row(NamedTuple):
    kind: str
    why: str
    plant: Callable[[Victim], object]
    drops: str = "image"  # or box: what --skip-bad leaves out
    example: str = "victim"  # part of the example in the report


def cut(n_bytes: int) -> Callable[[Victim], object]:
    return lambda v: v.path.write_bytes(v.path.read_bytes()[:-n_bytes])


def rename(name: str) -> Callable[[Victim], object]:
    return lambda v: v.image.update(file_name=name)


def bbox(*values: Any) -> Callable[[Victim], object]:
    return lambda v: v.annotation.update(bbox=list(values))


def link_outside(v: Victim) -> None:
    secret = v.folder.parents[1] / "secret.jpg"
    picture(secret)
    v.path.unlink()
    v.path.symlink_to(secret)


def link_folder_outside(v: Victim) -> None:
    elsewhere = v.folder.parents[1] / "elsewhere"
    picture(elsewhere / "victim.jpg")
    (v.folder / "link").symlink_to(elsewhere)
    v.image["file_name"] = "link/victim.jpg"


def bomb(v: Victim) -> None:
    Image.new("1", (10_000, 9_000)).save(v.path, format="PNG")  # 90 million pixels in some ten kB
    v.image.update(width=10_000, height=9_000)


def oriented(path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture(path, exif=exif)


def upside_down(v: Victim) -> None:
    oriented(v.path, 3)


def turned_and_resized(v: Victim) -> None:
    oriented(v.path, 6)
    v.image.update(width=WIDTH * 2, height=HEIGHT * 2)


def swap_size(v: Victim) -> None:
    v.image.update(width=HEIGHT, height=WIDTH)


def annotation_is(value: Any) -> Callable[[Victim], object]:
    def plant(v: Victim) -> None:
        v.doc["annotations"][v.doc["annotations"].index(v.annotation)] = value

    return plant


def append(key: str, **changes: Any) -> Callable[[Victim], object]:
    def plant(v: Victim) -> None:
        v.doc[key].append({**(v.image if key == "images" else v.annotation), **changes})

    return plant


SKIPPABLE = [
    Row("image-missing", "never copied", lambda v: v.path.unlink()),
    Row("image-missing", "a folder of that name", lambda v: (v.path.unlink(), v.path.mkdir())),
    Row("image-missing", "no file can have this name", rename("victim\0.jpg")),
    Row("image-missing", "half a surrogate: JSON can write it, UTF-8 cannot", rename("victim\ud800.jpg")),
    Row("image-unreadable", "text under an image's name", lambda v: v.path.write_text("hello")),
    Row("image-unreadable", "empty file, as a full disk leaves it", lambda v: v.path.write_bytes(b"")),
    Row("image-truncated", "JPEG cut by half: a broken download", cut(800), example="truncated"),
    Row("image-truncated", "JPEG that lacks its last 20 bytes: draft mode must read to the end", cut(20)),
    Row("image-truncated", "PNG cut", lambda v: (picture(v.path, format="PNG"), cut(200)(v))),
    Row("image-unreadable", "EPS would start Ghostscript",
        lambda v: Image.new("RGB", (WIDTH, HEIGHT)).save(v.path, format="EPS"), example="not one of JPEG PNG"),
    Row("image-too-large", "decompression bomb", bomb, example="10000x9000: --max-pixels 90000000"),
    Row("exif-unclear", "upside down: which way up is no question of size", upside_down, example="orientation 3"),
    Row("image-size", "resized after annotating", lambda v: picture(v.path, WIDTH // 2, HEIGHT // 2)),
    Row("image-size", "width and height swapped", swap_size, example="swapped"),
    Row("image-size", "turned, and resized after annotating", turned_and_resized, example="EXIF"),
    Row("path-outside", "parent folder", rename("../val/v.jpg"), example="../val/v.jpg"),
    Row("path-outside", "absolute", rename(os.path.abspath(__file__)), example="/"),
    Row("path-outside", "a link to a file elsewhere", link_outside),
    Row("path-outside", "a linked folder", link_folder_outside),
    Row("path-outside", "the folder itself", rename("."), example="."),
    Row("image-entry", "a width in words", lambda v: v.image.update(width="wide"),
        example='images[1] (victim.jpg): width is "wide", expected a whole number'),
    Row("image-entry", "no file_name", lambda v: v.image.pop("file_name"), example="file_name is null, expected"),
    Row("image-id-twice", "another file under the id: its boxes cannot be told apart",
        append("images", file_name="good.jpg"), example="good.jpg"),
    Row("annotation-entry", "a list", annotation_is([1, 2]), "box", "]: [1, 2], expected an object"),
    Row("annotation-entry", "image_id is a name", lambda v: v.annotation.update(image_id="victim"), "box",
        'annotation 2: image_id is "victim", expected a whole number'),
    Row("annotation-entry", "category_id is null", lambda v: v.annotation.update(category_id=None), "box",
        "victim.jpg (annotation 2): category_id is null, expected a whole number"),
    Row("annotation-entry", "iscrowd of 2", lambda v: v.annotation.update(iscrowd=2), "box",
        "iscrowd is 2, expected 0 or 1"),
    Row("image-unknown", "its image was removed", lambda v: v.annotation.update(image_id=999), "box",
        "annotation 2: image_id is 999, expected the id of a listed image"),
    Row("category-unknown", "category 8 was removed", lambda v: v.annotation.update(category_id=8), "box",
        "category_id is 8, expected the id of a listed category"),
    Row("box-malformed", "three numbers", bbox(1, 2, 3), "box", "bbox is [1, 2, 3], expected four finite numbers"),
    Row("box-malformed", "five numbers, one of them null", bbox(1, 2, 3, 4, None), "box"),
    Row("box-malformed", "NaN, which Python's JSON reads", bbox(1, 2, float("nan"), 4), "box"),
    Row("box-malformed", "an integer beyond float", bbox(1, 2, 10**400, 4), "box"),
    Row("box-malformed", "no bbox", lambda v: v.annotation.pop("bbox"), "box",
        "bbox is null and there is no segmentation"),
    Row("box-malformed", "an outline of one and a half points",
        lambda v: v.annotation.update(bbox=[], segmentation=[[1, 2, 3]]), "box", "the polygon [1, 2, 3], expected"),
    Row("box-no-area", "a click", bbox(4, 6, 0, 12), "box"),
    Row("box-no-area", "drawn from right to left", bbox(20, 6, -10, 12), "box"),
    Row("box-no-area", "inside the margin of 1 px only: nothing is left after clipping", bbox(-1, 6, 1, 12), "box"),
    Row("box-outside", "4 of 10 px are inside", bbox(WIDTH - 4, 6, 10, 12), "box", "bbox [44, 6, 10, 12] in 48x32"),
    Row("box-outside", "above the image", bbox(4, -30, 10, 12), "box"),
]  # fmt: skip


def plant(folder: Path, rows: list[Row]) -> Path:
    """A dataset with one victim per row and one good image."""
    names = [f"victim{i}.jpg" if len(rows) > 1 else "victim.jpg" for i in range(len(rows))]
    for seed, name in enumerate(["train/good.jpg", "val/v.jpg", *(f"train/{name}" for name in names)]):
        picture(folder / name, seed=seed)
    doc = document(["good.jpg", *names])
    for i, row in enumerate(rows, 1):
        row.plant(Victim(doc, folder / "train", doc["images"][i], doc["annotations"][i]))
    return write(folder, train=doc, val=document(["v.jpg"]))


@pytest.mark.parametrize("row", SKIPPABLE, ids=lambda row: f"{row.kind}: {row.why}")
def test_fault_is_named_and_skipped(tmp_path: Path, row: Row) -> None:
    folder = plant(tmp_path / "ds", [row])
    with pytest.raises(DataError, match="--skip-bad") as caught:
        load_data(folder)
    assert kinds(str(caught.value)) == {row.kind}

    data, report = load_data(folder, skip_bad=True)
    [fault] = report.faults
    assert (fault.kind, fault.split, fault.count) == (row.kind, "train", 1)
    assert row.example in fault.examples[0]
    kept = {image.file_name: len(image.labels) for image in data.splits["train"].images}
    victim = {} if row.drops == "image" else {"victim.jpg": 0}
    assert kept == {"good.jpg": 1} | victim
    n_listed = 3 if row.kind == "image-id-twice" else 2
    assert (report.n_dropped_images, report.n_dropped_boxes) == (n_listed - len(kept), 1)


def test_all_faults_in_one_report(tmp_path: Path) -> None:
    rows = [row for row in SKIPPABLE if row.why != "a linked folder"]  # it and "a link" would be one count more
    folder = plant(tmp_path / "ds", rows)
    with pytest.raises(DataError) as caught:
        load_data(folder)
    assert kinds(str(caught.value)) == {row.kind for row in rows}

    data, report = load_data(folder, skip_bad=True)
    expected = {kind: sum(row.kind == kind for row in rows) for kind in {row.kind for row in rows}}
    assert {fault.kind: fault.count for fault in report.faults} == expected
    assert [fault.kind for fault in report.faults] == [kind for kind in FAULTS if kind in expected], "order of FAULTS"
    assert all(len(fault.examples) == min(3, fault.count) for fault in report.faults)
    boxed = [image.file_name for image in data.splits["train"].images if image.labels]
    assert boxed == ["good.jpg"]
    assert "left out: " in report.render()


def drop_key(key: str) -> Callable[[Path], object]:
    return lambda folder: edit(folder, lambda doc: doc.pop(key))


def edit(folder: Path, change: Callable[[dict[str, Any]], object], split: str = "train") -> None:
    doc = json.loads((folder / f"{split}.json").read_text())
    change(doc)
    write(folder, **{split: doc})


STRUCTURAL = [
    ("annotations", "train.json is not JSON", lambda f: (f / "train.json").write_text('{"images": [')),
    ("annotations", "train.json is not JSON", lambda f: (f / "train.json").write_bytes(b"\xff\xd8\xff\xe0 a JPEG")),
    ("annotations", "train.json is not JSON", lambda f: (f / "train.json").write_text("[" * 100_000)),  # nesting
    ("annotations", "must hold an object, holds a list", lambda f: (f / "train.json").write_text("[]")),
    ("annotations", "has no 'images'", drop_key("images")),
    ("annotations", "has no 'annotations'", drop_key("annotations")),  # as COCO's own image_info_test files
    ("annotations", "has no 'categories'", drop_key("categories")),
    ("annotations", "'images' must be a list, is an object", lambda f: edit(f, lambda d: d.update(images={}))),
    ("category-entry", "'categories' is empty", lambda f: edit(f, lambda d: d.update(categories=[]))),
    ("category-entry", "categories[0]: name is null, expected a text",
     lambda f: edit(f, lambda d: d["categories"][0].update(name=None))),
    ("category-entry", 'categories[0]: id is "x", expected a whole number',
     lambda f: edit(f, lambda d: d["categories"][0].update(id="x"))),
    ("category-id-twice", "9 (cat, fox)",
     lambda f: edit(f, lambda d: d["categories"].append({"id": 9, "name": "fox"}))),
    ("category-name-twice", "cat", lambda f: edit(f, lambda d: d["categories"].append({"id": 8, "name": "cat"}))),
    ("categories-differ", "hound (1 boxes)",
     lambda f: edit(f, lambda d: d["categories"][1].update(name="hound"), "val")),
    ("categories-differ", "dogs (1 boxes; nearest there: dog)",
     lambda f: edit(f, lambda d: d["categories"][1].update(name="dogs"), "val")),
    ("empty-split", "0 of 0 images", lambda f: edit(f, lambda d: d.update(images=[], annotations=[]))),
    ("empty-split", "0 of 0 boxes", lambda f: edit(f, lambda d: d.update(annotations=[]))),
    ("empty-split", "0 of 1 images", lambda f: (f / "val" / "v.jpg").unlink()),  # only after dropping
    # a crowd teaches nothing: training leaves it out
    ("crowd-most", "1 of 1", lambda f: edit(f, lambda d: d["annotations"][0].update(iscrowd=1), "val")),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "says", "break_it"), STRUCTURAL, ids=[f"{k}: {s}" for k, s, _ in STRUCTURAL])
def test_structural_faults_cannot_be_skipped(folder: Path, kind: str, says: str, break_it: Callable) -> None:
    break_it(folder)
    with pytest.raises(DataError, match="--skip-bad cannot") as caught:
        load_data(folder, skip_bad=True)
    assert kind in kinds(str(caught.value))
    assert says in str(caught.value)


def test_one_broken_file_does_not_hide_the_others(folder: Path) -> None:
    (folder / "train.json").write_text("{")
    (folder / "val" / "v.jpg").write_bytes(b"")
    with pytest.raises(DataError) as caught:
        load_data(folder)
    assert kinds(str(caught.value)) >= {"annotations", "image-unreadable"}


def test_repeated_entries_are_counted_and_the_first_is_kept(folder: Path) -> None:
    edit(folder, lambda d: (d["images"].append(d["images"][0]), d["annotations"].append(d["annotations"][0])))
    data, report = load_data(folder, skip_bad=True)
    assert [(f.kind, f.count) for f in report.faults] == [("image-id-twice", 1)]
    assert ("annotation-twice", 1) in [(n.kind, n.count) for n in report.notes]
    assert [(e.file_name, e.labels) for e in data.splits["train"].images] == [("a.jpg", (1,)), ("b.jpg", (1,))]


def test_a_file_outside_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [row for row in SKIPPABLE if row.kind == "path-outside"]
    folder = plant(tmp_path / "ds", rows[:2] + rows[3:])
    opened = []
    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", lambda self: (opened.append(self.name), read_bytes(self))[1])
    load_data(folder, skip_bad=True)
    assert sorted(opened) == ["good.jpg", "v.jpg"]  # of the images; annotations are read by `read_regular`


def test_links_and_subfolders_inside_are_fine(folder: Path) -> None:
    picture(folder / "train" / "sub" / "deep.jpg", seed=9)
    (folder / "train" / "a.jpg").unlink()
    (folder / "train" / "a.jpg").symlink_to("sub/deep.jpg")
    (folder / "train").rename(folder / "store")
    (folder / "train").symlink_to("store")  # the image folder itself may be a link: who made the folder made it
    edit(folder, lambda d: d["images"][1].update(file_name="sub/../sub/deep.jpg"))
    data, report = load_data(folder)
    assert not report.faults
    assert {e.path for e in data.splits["train"].images} == {(folder / "store" / "sub" / "deep.jpg").resolve()}
    assert [(n.kind, n.count) for n in report.notes if n.kind == "file-twice"] == [("file-twice", 1)]


@pytest.mark.parametrize(
    ("box", "expected", "kind"),
    [
        ((0, 0, 100, 50), (0, 0, 100, 50), None),  # the whole image
        ((-1, -1, 102, 52), (0, 0, 100, 50), "box-clipped"),  # 1 px over every edge
        ((90.5, 40, 10.25, 5), (90.5, 40, 9.5, 5), "box-clipped"),
        ((90.5, 40, 11, 5), (90.5, 40, 9.5, 5), "box-cut"),  # 1.5 px over
        ((-2.5, 0, 5, 5), (0, 0, 2.5, 5), "box-cut"),  # half of it is inside
        ((-2.6, 0, 5, 5), None, "box-outside"),
        ((-2, -2, 5, 5), None, "box-outside"),  # 36 %
        ((5, 5, 1e-3, 5), None, "box-no-area"),  # its corners are one number in float32 after resizing
    ],
)
def test_clipped(box: Any, expected: tuple[float, ...] | None, kind: str | None) -> None:
    got, got_kind = clipped(box, 100, 50)
    assert got_kind == kind
    if expected:
        assert got == expected


def test_notes_do_not_stop(folder: Path) -> None:
    picture(folder / "train" / "c.jpg", seed=3)
    oriented(folder / "train" / "b.jpg", 6)
    (folder / "val" / "v.jpg").write_bytes((folder / "train" / "a.jpg").read_bytes())  # a copy under another name
    doc = document(["a.jpg", "b.jpg", "c.jpg"])
    doc["annotations"][0]["bbox"] = [-0.5, 6, 10, 12]
    del doc["annotations"][2]
    write(folder, train=doc)
    _, report = load_data(folder)
    notes = {(n.split, n.kind): (n.count, n.examples[0]) for n in report.notes}
    assert notes == {
        ("train", "box-clipped"): (1, "a.jpg (annotation 1)"),
        ("train", "image-without-boxes"): (1, "c.jpg"),
        ("train", "class-without-boxes"): (1, "cat"),
        ("train", "exif-stored"): (1, "b.jpg"),
        ("val", "leak"): (1, "v.jpg (also in train)"),
        ("val", "class-without-boxes"): (1, "cat"),
    }
    assert not report.faults


def test_no_control_characters_reach_the_terminal() -> None:
    found = Findings(FAULTS)
    found.add("image-missing", "train", "\x1b[2Jx\n" + "y" * 500)
    [fault] = found.collected()
    assert fault.examples[0].startswith("?[2Jx?y")
    assert len(fault.examples[0]) == 160


def test_progressive_grey_and_cmyk_files_are_read_to_the_end(tmp_path: Path) -> None:
    """Draft mode decodes a JPEG at an eighth of its size; it must accept and refuse what a full decode does."""
    for mode, options in [("RGB", {}), ("RGB", {"progressive": True}), ("L", {}), ("CMYK", {})]:
        path = tmp_path / "x.jpg"
        noise = Image.frombytes("L", (203, 155), random.Random(1).randbytes(203 * 155))
        noise.convert(mode).save(path, **options)
        whole = path.read_bytes()
        assert inspect_image(str(path))[:2] == (203, 155)
        for n_bytes in (1, 2, 10, 100, len(whole) // 2):
            path.write_bytes(whole[:-n_bytes])
            assert inspect_image(str(path))[0] == "image-truncated", (mode, options, n_bytes)


# --- cache of the check ----------------------------------------------------------------------------------------------


def test_cache_spares_decoding_and_sees_changes(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "checked.json"
    counts = [load_data(folder, cache=cache)[1].n_from_cache for _ in range(2)]
    assert counts == [0, 3]
    picture(folder / "train" / "a.jpg", WIDTH // 2, HEIGHT // 2)
    with pytest.raises(DataError, match="image-size"):
        load_data(folder, cache=cache)
    edit(folder, lambda d: d["images"][1].update(width=WIDTH + 1))  # the pixels are known, the document is new
    with pytest.raises(DataError, match=f"says {WIDTH + 1}x{HEIGHT}, is {WIDTH}x{HEIGHT}"):
        load_data(folder, cache=cache)
    assert [path.name for path in cache.parent.iterdir()] == ["checked.json"], "no temporary file is left"


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"version": 0}', b'{"version": 2, "images": {"x": 3}}', b"\xff"]
)
def test_a_damaged_cache_counts_as_empty(folder: Path, tmp_path: Path, content: bytes) -> None:
    cache = tmp_path / "checked.json"
    cache.write_bytes(content)
    assert load_data(folder, cache=cache)[1].n_from_cache == 0
    assert load_data(folder, cache=cache)[1].n_from_cache == 3


def test_a_cache_that_cannot_be_written_is_a_note(folder: Path) -> None:
    _, report = load_data(folder, cache=folder / "train.json" / "checked.json")  # a file where a folder should be
    assert [note.kind for note in report.notes if note.kind == "cache"] == ["cache"]


def test_broken_images_are_not_remembered(folder: Path, tmp_path: Path) -> None:
    cut_off = folder / "train" / "a.jpg"
    cut_off.write_bytes(cut_off.read_bytes()[:-100])
    for _ in range(2):
        with pytest.raises(DataError, match="image-truncated"):
            load_data(folder, cache=tmp_path / "checked.json")


# --- layouts ---------------------------------------------------------------------------------------------------------

LAYOUTS = [
    (["train.json", "train/", "val.json", "val/", "test.json", "test/"],
     {"train": "train", "val": "val", "test": "test"}),
    (["train.json", "val.json", "images/"], {"train": "images", "val": "images"}),
    (["annotations/instances_train2017.json", "annotations/instances_val2017.json", "annotations/captions_val2017.json",
      "train2017/", "val2017/", "test2017/"], {"train": "train2017", "val": "val2017"}),  # COCO 2017 as downloaded
    (["annotations/instances_train2017.json", "images/train2017/", "images/val2017/",
      "annotations/instances_val2017.json"], {"train": "images/train2017", "val": "images/val2017"}),
    (["annotations/instances_train.json", "annotations/instances_val.json", "images/"],
     {"train": "images", "val": "images"}),
    (["train/_annotations.coco.json", "valid/_annotations.coco.json"], {"train": "train", "val": "valid"}),  # Roboflow
]  # fmt: skip


def lay_out(folder: Path, names: list[str]) -> Path:
    for name in names:
        path = folder / name
        (path if name.endswith("/") else path.parent).mkdir(parents=True, exist_ok=True)
        if not name.endswith("/"):
            path.write_text("{}")
    return folder


@pytest.mark.parametrize(("names", "expected"), LAYOUTS)
def test_layouts(tmp_path: Path, names: list[str], expected: dict[str, str]) -> None:
    found = find_splits(lay_out(tmp_path, names))
    assert {split: str(source.images.relative_to(tmp_path)) for split, source in found.items()} == expected
    assert all(source.annotations.is_file() for source in found.values())


@pytest.mark.parametrize(
    ("names", "says"),
    [
        # two years side by side
        (["annotations/instances_train2014.json", "annotations/instances_train2017.json", "train2014/", "train2017/"],
         ["instances_train2014.json", "instances_train2017.json"]),
        (["train.json", "train/_annotations.coco.json"], ["train.json", "train/_annotations.coco.json"]),
        (["train.json", "val.json"], ["no image folder", "images/train"]),
        (["labels/", "photo.jpg"], ["no split", "labels/", "photo.jpg", "_annotations.coco.json"]),
        (["train.json", "train/"], ["no val split", "train.json", "instances_train2017.json"]),
        ([], ["an empty folder"]),
    ],
)  # fmt: skip
def test_what_is_missing_or_doubled_is_named(tmp_path: Path, names: list[str], says: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        load_data(lay_out(tmp_path, names))
    for part in says:
        assert part in str(caught.value)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        load_data(tmp_path / "nowhere")


def test_need_chooses_the_splits_that_must_be_there(tmp_path: Path) -> None:
    picture(tmp_path / "test" / "x.jpg")
    write(tmp_path, test=document(["x.jpg"]))
    data, _ = load_data(tmp_path, need=("test",))
    assert list(data.splits) == ["test"]


# --- what is loaded --------------------------------------------------------------------------------------------------


def test_labels_summary_and_ground_truth(folder: Path) -> None:
    edit(folder, lambda d: d["annotations"][1].update(category_id=9, image_id=1, id=0, bbox=[1, 2, 3, 4], iscrowd=1))
    data, _ = load_data(folder)
    assert (data.class_names, data.category_ids) == (("dog", "cat"), (7, 9)), "ordered by id, not as written"
    [first, second] = data.splits["train"].images
    assert (first.labels, first.iscrowd, first.areas) == ((1, 2), (0, 1), (120, 120))
    assert (second.labels, second.boxes_xywh) == ((), ())
    assert data.summary() == {
        "n_classes": 2,
        "n_images": {"train": 2, "val": 1},
        "n_boxes": {"train": 1, "val": 1},
        "max_boxes": 1,
        "largest_image_px": (WIDTH, HEIGHT),
    }
    truth = coco_ground_truth(data.splits["train"])
    assert [image["id"] for image in truth["images"]] == [1, 2]
    assert [(a["id"], a["image_id"], a["category_id"], a["iscrowd"], a["bbox"]) for a in truth["annotations"]] == [
        (1, 1, 7, 0, [4, 6, 10, 12]),
        (2, 1, 9, 1, [1, 2, 3, 4]),
    ]
    json.dumps(truth)
    assert isinstance(pickle.loads(pickle.dumps(data)), DetectionData), "it travels to workers"


def test_ground_truth_scores_itself_as_perfect(folder: Path) -> None:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    data, _ = load_data(folder)
    truth = COCO()
    truth.dataset = coco_ground_truth(data.splits["train"])
    truth.createIndex()
    found = truth.loadRes([{**a, "score": 1.0} for a in truth.dataset["annotations"]])
    scores = COCOeval(truth, found, "bbox")
    for step in (scores.evaluate, scores.accumulate, scores.summarize):
        step()
    assert scores.stats[0] == 1.0


# --- real data -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not BCCD.is_dir(), reason="the BCCD blood-cell images are not in ../shared/data/bccd")
def test_bccd_loads_without_a_fault(tmp_path: Path) -> None:
    cache = tmp_path / "checked.json"
    data, report = load_data(BCCD, cache=cache)
    assert (report.faults, report.n_from_cache) == ((), 0)
    assert data.class_names == ("WBC", "RBC", "Platelets")
    assert data.summary() == {  # counted in the annotation files
        "n_classes": 3,
        "n_images": {"train": 205, "val": 87, "test": 72},
        "n_boxes": {"train": 2804, "val": 1137, "test": 945},
        "max_boxes": 30,
        "largest_image_px": (640, 480),
    }
    assert load_data(BCCD, cache=cache)[1].n_from_cache == 364
