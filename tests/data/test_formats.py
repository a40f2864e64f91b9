"""Layouts and formats: each gives the images, boxes and classes that its tool means."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import layouts
import pytest
import torch
from PIL import Image
from torchvision.ops import box_convert

from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.images import CocoImages
from cst_search.data.options import ReadOptions
from cst_search.errors import DataError

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
SETS = ("bccd", "chess", "road-signs", "eggs", "cards", "rice-pests", "arithmetic")


def picture(path: Path, size: tuple[int, int] = (40, 20), seed: int = 0, **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.frombytes("RGB", size, bytes((17 * seed + i) % 256 for i in range(3 * size[0] * size[1]))).save(
        path, **options
    )
    return path


def coco(*file_names: str, size: tuple[int, int] = (40, 20)) -> str:
    """One box of class cat in each image."""
    return json.dumps({
        "images": [
            {"id": i, "file_name": name, "width": size[0], "height": size[1]} for i, name in enumerate(file_names)
        ],
        "annotations": [
            {"id": i, "image_id": i, "category_id": 1, "bbox": [4, 5, 10, 8]} for i in range(len(file_names))
        ],
        "categories": [{"id": 1, "name": "cat"}],
    })  # fmt: skip


def write(folder: Path, **files: str) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def boxes(data: DetectionData, split: str = "train") -> dict[str, list[tuple[str, tuple[float, ...]]]]:
    """File name -> (class, box) of each object."""
    return {
        image.file_name: [
            (data.class_names[label - 1], tuple(round(value, 6) for value in box))
            for label, box in zip(image.labels, image.boxes_xywh, strict=True)
        ]
        for image in data.splits[split].images
    }


# --- COCO's JSON files -----------------------------------------------------------------------------------------------

# what it is, the annotation files, the image folders; train first
COCO_LAYOUTS = [
    ("plain names in annotations/", "annotations/train.json annotations/val.json", "images/train images/val"),
    ("valid", "annotations/train.json annotations/valid.json", "train valid"),
    ("validation, capitals", "Annotations/Train.json Annotations/Validation.json", "Train Validation"),
    ("folders in another case than the files", "train.json val.json", "Train Val"),
    ("words around the split", "annotations_train.json val_annotations.json", "images images"),
    ("CVAT, two subsets", "annotations/instances_Train.json annotations/instances_Validation.json",
     "images/Train images/Validation"),
    ("FiftyOne", "train/labels.json validation/labels.json", "train/data validation/data"),
    ("Roboflow", "train/_annotations.coco.json valid/_annotations.coco.json", "train valid"),
    ("a file in each split, images below", "train/annotations.json val/annotations.json", "train/images val/images"),
    ("labelme2coco with a split: the images beside the files", "train.json val.json", ". ."),
    ("images one level deeper", "train.json val.json", "train/images val/images"),
]  # fmt: skip


@pytest.mark.parametrize(("annotations", "images"), [row[1:] for row in COCO_LAYOUTS], ids=[r[0] for r in COCO_LAYOUTS])
def test_coco_layouts(tmp_path: Path, annotations: str, images: str) -> None:
    for seed, (file, place, name) in enumerate(zip(annotations.split(), images.split(), "tv", strict=True)):
        picture(tmp_path / place / f"{name}.png", seed=seed)
        write(tmp_path, **{file: coco(f"{name}.png")})
    data, report = load_data(tmp_path)
    assert {split: boxes(data, split) for split in ("train", "val")} == {
        "train": {"t.png": [("cat", (4, 5, 10, 8))]},
        "val": {"v.png": [("cat", (4, 5, 10, 8))]},
    }
    assert report.notes == ()


SINGLE = [
    ("CVAT", "annotations/instances_default.json", "images"),
    ("CVAT of today", "annotations/instances_default.json", "images/default"),
    ("Label Studio", "result.json", "images"),
    ("labelme2coco", "dataset.json", "."),
    ("labelme's own converter", "annotations.json", "JPEGImages"),
    ("FiftyOne", "labels.json", "data"),
    ("Roboflow without a split", "_annotations.coco.json", "."),
]


@pytest.mark.parametrize(("file", "images"), [row[1:] for row in SINGLE], ids=[row[0] for row in SINGLE])
def test_a_single_file_is_the_training_split(tmp_path: Path, file: str, images: str) -> None:
    picture(tmp_path / images / "t.png")
    write(tmp_path, **{file: coco("t.png"), "notes.json": '{"categories": []}', "broken.json": "{"})
    data, _ = load_data(tmp_path, need=("train",))
    assert boxes(data) == {"t.png": [("cat", (4, 5, 10, 8))]}


@pytest.mark.parametrize("name", ["images/t.png", "images\\t.png"])
def test_label_studio_names_files_with_their_folder(tmp_path: Path, name: str) -> None:
    picture(tmp_path / "images" / "t.png")
    write(tmp_path, **{"result.json": coco(name)})
    data, _ = load_data(tmp_path, need=("train",))
    assert list(boxes(data).values()) == list(FOUND.values())
    assert data.splits["train"].images[0].path == (tmp_path / "images" / "t.png").resolve()


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["train.json", "annotations/train.json"], ["for train", "train.json, annotations/train.json", "Move"]),
        (["train.json", "Train.json"], ["for train", "Train.json, train.json"]),
        (["val.json", "valid.json"], ["for val"]),
        (["train/labels.json", "train/_annotations.coco.json"], ["for train"]),
        (["result.json", "dataset.json"], ["for train", "dataset.json, result.json"]),
    ],
)
def test_two_files_for_a_split_are_one_message(tmp_path: Path, files: list[str], says: list[str]) -> None:
    picture(tmp_path / "images" / "t.png")
    write(tmp_path, **{file: coco("t.png") for file in files})
    with pytest.raises(DataError) as caught:
        load_data(tmp_path)
    assert [part for part in says if part not in str(caught.value)] == []


def of_roboflow(**changes: Any) -> dict[str, Any]:
    content = json.loads(coco("t.png"))
    content["categories"] = [
        {"id": 0, "name": "pets", "supercategory": "none"},
        {"id": 1, "name": "cat", "supercategory": "pets"},
    ]
    return content | changes


def test_the_category_of_roboflows_project_is_no_class(tmp_path: Path) -> None:
    picture(tmp_path / "t.png")
    write(tmp_path, **{"_annotations.coco.json": json.dumps(of_roboflow())})
    data, report = load_data(tmp_path, need=("train",))
    assert (data.class_names, data.category_ids) == (("cat",), (1,))
    assert data.splits["train"].images[0].labels == (1,)
    assert [(note.kind, note.examples) for note in report.notes] == [("category-of-project", ("pets",))]


@pytest.mark.parametrize(
    "content",
    [
        of_roboflow(annotations=[{"id": i, "image_id": 0, "category_id": i, "bbox": [4, 5, 10, 8]} for i in (0, 1)]),
        of_roboflow(categories=[{"id": 0, "name": "pets"}, {"id": 1, "name": "cat", "supercategory": "pets"}]),
        of_roboflow(categories=[{"id": i, "name": n, "supercategory": "none"} for i, n in enumerate(("pets", "cat"))]),
    ],
    ids=["it has objects", "not marked as a parent", "not the parent of the others"],
)
def test_another_category_0_stays_a_class(tmp_path: Path, content: dict[str, Any]) -> None:
    picture(tmp_path / "t.png")
    write(tmp_path, **{"_annotations.coco.json": json.dumps(content)})
    assert load_data(tmp_path, need=("train",))[0].class_names == ("pets", "cat")


# --- YOLO ------------------------------------------------------------------------------------------------------------


def yolo_folder(folder: Path, config: str, images: str = "images/train images/val") -> Path:
    """An image with one row in each place: a box from (10, 5) to (30, 15) of class 1, in 40x20."""
    for seed, place in enumerate(images.split()):
        picture(folder / place / "a.png", seed=seed)
        write(folder, **{f"{place.replace('images', 'labels')}/a.txt": "1 0.5 0.5 0.5 0.5\n"})
    write(folder, **{"data.yaml": config})
    return folder


DOG = [("dog", (10, 5, 20, 10))]
YOLO_CONFIGS = [
    ("a list of names", "train: images/train\nval: images/val\nnames: [cat, dog]\nnc: 2", ""),
    ("numbered names", "train: images/train\nval: images/val\nnames: {0: cat, 1: dog}", ""),
    ("numbers out of order", "train: images/train\nval: images/val\nnames:\n  1: dog\n  0: cat", ""),
    ("Roboflow's ../", "train: ../train/images\nval: ../valid/images\nnames: [cat, dog]", "train/images valid/images"),
    ("path of Ultralytics' folder", "path: ../datasets/x\ntrain: images/train\nval: images/val\nnames: [cat, dog]", ""),
    ("path of another machine", "path: /content/x\ntrain: images/train\nval: images/val\nnames: [cat, dog]", ""),
    ("absolute paths of another machine",
     "train: /content/x/images/train\nval: C:\\x\\images\\val\nnames: [cat, dog]", ""),
    ("a path below", "path: set\ntrain: images/train\nval: images/val\nnames: [cat, dog]",
     "set/images/train set/images/val"),
    ("labels beside the images", "train: pictures/a\nval: pictures/b\nnames: [cat, dog]", "pictures/a pictures/b"),
    ("a list of folders", "train: [images/train]\nval: [images/val]\nnames: [cat, dog]", ""),
]  # fmt: skip


@pytest.mark.parametrize(("config", "places"), [row[1:] for row in YOLO_CONFIGS], ids=[row[0] for row in YOLO_CONFIGS])
def test_yolo_configs(tmp_path: Path, config: str, places: str) -> None:
    data, report = load_data(yolo_folder(tmp_path, config, places or "images/train images/val"))
    assert data.class_names == ("cat", "dog")
    for split in ("train", "val"):
        [found] = boxes(data, split).values()
        assert found == DOG
    assert {note.kind for note in report.notes} == {"class-without-boxes"}


def test_yolo_lists_of_images_and_of_folders(tmp_path: Path) -> None:
    config = "train: [images/one, images/two]\nval: val.txt\nnames: [cat, dog]"
    yolo_folder(tmp_path, config, "images/one images/two images/val")
    write(tmp_path, **{"val.txt": "./images/val/a.png\n\n"})
    data, _ = load_data(tmp_path)
    assert boxes(data) == {"images/one/a.png": DOG, "images/two/a.png": DOG}
    assert boxes(data, "val") == {"images/val/a.png": DOG}
    write(tmp_path, **{"val.txt": "/home/me/set/images/val/a.png\nimages/val/gone.png\n"})
    with pytest.raises(DataError, match=r"image-missing\]: images/val/gone.png"):
        load_data(tmp_path)


CONFIG = "train: images/train\nval: images/val\nnames: [cat, dog]"


def test_a_form_of_boxes_is_refused_where_the_format_has_one(tmp_path: Path) -> None:
    folder = yolo_folder(tmp_path, CONFIG)
    with pytest.raises(DataError, match=r"--boxes xyxy .*is for COCO files; .* is in the format yolo"):
        load_data(folder, ReadOptions(boxes="xyxy"))
    for form in ("auto", "xywh"):  # xywh: recipes of earlier versions
        data, _ = load_data(folder, ReadOptions(boxes=form))
        assert boxes(data) == {"a.png": DOG}


ROWS = [
    ("box", "0 0.5 0.5 0.5 0.5", [("cat", (10, 5, 20, 10))]),
    ("class as a decimal number", "1.0 0.5 0.5 0.5 0.5", DOG),
    ("no row: an image without objects", "\n", []),
    ("outline", "1 0.25 0.25 0.75 0.25 0.5 0.75", DOG),
    ("rotated box: four corners", "1 0.5 0.25 0.75 0.5 0.5 0.75 0.25 0.5", DOG),
    ("an edge that six decimals miss", "0 0.166667 0.5 0.333333 0.999999", [("cat", (0, 0, 13.333340, 20))]),
    ("blank lines, tabs, a byte order mark", "\ufeff\n1\t0.5 0.5  0.5 0.5\n\n", DOG),
]  # fmt: skip


@pytest.mark.parametrize(("row", "expected"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_yolo_rows(tmp_path: Path, row: str, expected: list[Any]) -> None:
    yolo_folder(tmp_path, CONFIG)
    picture(tmp_path / "images/train/b.png", seed=5)
    (tmp_path / "labels/train/b.txt").write_text(row)
    data, report = load_data(tmp_path)
    assert boxes(data)["b.png"] == expected
    assert "box-clipped" not in {note.kind for note in report.notes}


def test_yolo_keypoints_stand_behind_the_box(tmp_path: Path) -> None:
    yolo_folder(tmp_path, CONFIG + "\nkpt_shape: [2, 3]")
    (tmp_path / "labels/train/a.txt").write_text("1 0.5 0.5 0.5 0.5 0.1 0.1 2 0.9 0.9 2\n")
    assert boxes(load_data(tmp_path)[0]) == {"a.png": DOG}


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ("1 0.5 0.5 0.5", "box-malformed"),  # three numbers
        ("1 0.5 0.5 0.5 0.5 0.9", "box-malformed"),  # a prediction, with its score
        ("1 a b c d", "box-malformed"),
        ("7 0.5 0.5 0.5 0.5", "category-unknown"),
        ("0.5 0.5 0.5 0.5 0.5", "annotation-entry"),  # half a class
        ("cat 0.5 0.5 0.5 0.5", "annotation-entry"),
        ("1 1.1 0.5 0.5 0.5", "box-outside"),
        ("1 0.5 0.5 0 0.5", "box-no-area"),
    ],
)
def test_a_bad_row_is_named_with_its_file_and_line(tmp_path: Path, row: str, kind: str) -> None:
    yolo_folder(tmp_path, CONFIG)
    (tmp_path / "labels/train/a.txt").write_text(f"1 0.5 0.5 0.5 0.5\n{row}\n")
    with pytest.raises(DataError) as caught:
        load_data(tmp_path)
    assert f"[{kind}]" in str(caught.value)
    assert "a.txt line 2" in str(caught.value)
    data, report = load_data(tmp_path, skip_bad=True)
    assert (boxes(data), report.n_dropped_boxes) == ({"a.png": DOG}, 1)


def test_yolo_images_without_a_file_are_kept_and_files_without_an_image_are_named(tmp_path: Path) -> None:
    yolo_folder(tmp_path, CONFIG)
    picture(tmp_path / "images/train/empty.png", seed=7)
    write(tmp_path, **{"labels/train/gone.txt": "0 0.5 0.5 0.5 0.5", "images/train/readme.md": "x"})
    data, report = load_data(tmp_path)
    assert boxes(data) == {"a.png": DOG, "empty.png": []}
    found = {note.kind: note.examples for note in report.notes}
    assert found["annotations-without-image"] == ("labels/train/gone.txt",)
    assert found["image-without-boxes"] == ("empty.png",)


def test_yolo_shares_are_those_of_the_picture_as_shown(tmp_path: Path) -> None:
    yolo_folder(tmp_path, CONFIG)
    turned = Image.Exif()
    turned[0x0112] = 6  # stored 40x20, shown 20x40
    picture(tmp_path / "images/train/a.jpg", seed=3, exif=turned)
    (tmp_path / "images/train/a.png").unlink()
    for exif in ("auto", "shown"):
        [image] = load_data(tmp_path, ReadOptions(exif=exif))[0].splits["train"].images
        assert ((image.width, image.height), image.boxes_xywh) == ((20, 40), ((5, 10, 10, 20),))
    with pytest.raises(DataError, match="--exif shown"):
        load_data(tmp_path, ReadOptions(exif="stored"))


def test_label_studios_yolo_has_a_list_of_classes(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.png")
    write(tmp_path, **{"labels/a.txt": "1 0.5 0.5 0.5 0.5", "classes.txt": "cat\ndog\n", "notes.json": "{}"})
    assert boxes(load_data(tmp_path, need=("train",))[0]) == {"a.png": DOG}


def test_cvats_yolo_has_darknets_settings(tmp_path: Path) -> None:
    for split, name in (("train", "a"), ("valid", "b")):
        picture(tmp_path / f"obj_{split}_data/{name}.png", seed=ord(name))
        write(tmp_path, **{f"obj_{split}_data/{name}.txt": "1 0.5 0.5 0.5 0.5",
                           f"{split}.txt": f"data/obj_{split}_data/{name}.png\n"})  # fmt: skip
    settings = "classes = 2\ntrain = data/train.txt\nvalid = data/valid.txt\nnames = data/obj.names\nbackup = backup/\n"
    write(tmp_path, **{"obj.data": settings, "obj.names": "cat\ndog\n"})
    data, report = load_data(tmp_path)
    assert (boxes(data), boxes(data, "val")) == ({"obj_train_data/a.png": DOG}, {"obj_valid_data/b.png": DOG})
    assert {note.kind for note in report.notes} == {"class-without-boxes"}
    (tmp_path / "obj.names").unlink()
    with pytest.raises(DataError, match=r"obj\.names must be there"):
        load_data(tmp_path)


def test_settings_of_something_else_are_no_data_set(tmp_path: Path) -> None:
    write(tmp_path, **{"config.yaml": "train: {lr: 0.1}\nval: {every: 2}", "ImageSets/Main/train.txt": "a\n",
                       "Annotations/a.xml": voc_xml()})  # fmt: skip
    picture(tmp_path / "JPEGImages/a.png")
    assert boxes(load_data(tmp_path, need=("train",))[0]) == FOUND


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ("names: [cat]\ntrain: images/nowhere", "names 'images/nowhere', which is not in"),
        ("names: [cat]\ntrain: ../../..", "which is not in"),
        ("names: [cat]\ntrain: /etc", "names '/etc', which is not in"),
        ("names: {0: cat, 2: dog}\ntrain: images/train", "from 0 without a gap"),
        ("names: [cat]\nnc: 3\ntrain: images/train", "nc is 3, and there are 1 names"),
        ("names: cat\ntrain: images/train", "must have 'names'"),
        ("train: images/train", "must have 'names'"),
        ("train: [", "must be YAML"),
        ("names: [a, b]\ntrain: images/train\nkpt_shape: 3", "'kpt_shape'"),
    ],
)
def test_what_is_wrong_with_data_yaml_is_one_message(tmp_path: Path, config: str, says: str) -> None:
    with pytest.raises(DataError, match=r"data\.yaml") as caught:
        load_data(yolo_folder(tmp_path, config))
    assert says in str(caught.value)


def test_words_of_yaml_are_names(tmp_path: Path) -> None:
    """In YAML 1.1, no and 1 are not texts."""
    config = "train: images/train\nval: images/val\nnames: [no, 1, '']"
    assert load_data(yolo_folder(tmp_path, config))[0].class_names == ("no", "1")


def test_a_split_without_any_label_file_names_where_it_looked(tmp_path: Path) -> None:
    yolo_folder(tmp_path, CONFIG)
    (tmp_path / "labels").rename(tmp_path / "lables")
    with pytest.raises(DataError, match=r"no label file for any of 1 images; looked for labels/train/a\.txt"):
        load_data(tmp_path)


# --- Pascal VOC ------------------------------------------------------------------------------------------------------

CAT = [("cat", (4.0, 5.0, 14.0, 13.0))]
FOUND = {"a.png": [("cat", (4, 5, 10, 8))]}


def voc_xml(name: str = "a.png", objects: list[Any] = CAT, database: str = "Unknown", size: Any = (40, 20)) -> str:
    return layouts.voc_xml({"file_name": name, "width": size[0], "height": size[1]}, objects, database)


VOC_LAYOUTS = [
    ("Pascal VOC", "Annotations/a.xml JPEGImages/a.png ImageSets/Main/train.txt"),
    ("CVAT", "Annotations/a.xml JPEGImages/a.png ImageSets/Main/Train.txt"),
    ("no lists", "Annotations/a.xml JPEGImages/a.png"),
    ("other names", "annotations/a.xml images/a.png"),
    ("labelImg: beside the images", "a.xml a.png"),
    ("Roboflow", "train/a.xml train/a.png"),
    ("folders in the split", "train/annotations/a.xml train/images/a.png"),
    ("splits in the folders", "Annotations/train/a.xml JPEGImages/train/a.png"),
]


@pytest.mark.parametrize("files", [row[1] for row in VOC_LAYOUTS], ids=[row[0] for row in VOC_LAYOUTS])
def test_voc_layouts(tmp_path: Path, files: str) -> None:
    for name in files.split():
        if name.endswith(".png"):
            picture(tmp_path / name)
        else:
            write(tmp_path, **{name: voc_xml() if name.endswith(".xml") else "a\n"})
    data, report = load_data(tmp_path, need=("train",))
    assert boxes(data) == FOUND
    assert [note.kind for note in report.notes] == ["corners-from-0"]


def voc_folder(folder: Path, *files: str, **names: str) -> Path:
    """XML files 0.xml, 1.xml, ... beside their images in train/."""
    for i, content in enumerate(files):
        picture(folder / "train" / f"{i}.png", seed=i)
        write(folder, **{f"train/{i}.xml": content})
    write(folder, **names)
    return folder


@pytest.mark.parametrize(
    ("why", "database", "corners", "expected"),
    [
        ("VOC's development kit", "The VOC2007 Database", (1, 1, 40, 20), (0, 0, 40, 20)),
        ("Roboflow", "roboflow.com", (5, 6, 14, 13), (4, 5, 10, 8)),
        ("labelImg", "Unknown", (5, 6, 14, 13), (5, 6, 9, 7)),
        ("a 0 cannot be counted from 1", "The VOC2007 Database", (0, 0, 40, 20), (0, 0, 40, 20)),
        ("nor can a fraction", "roboflow.com", (4.5, 5, 14, 13), (4.5, 5, 9.5, 8)),
    ],
)  # fmt: skip
def test_the_files_say_what_corners_mean(
    tmp_path: Path, why: str, database: str, corners: tuple[float, ...], expected: tuple[float, ...]
) -> None:
    first = voc_xml(objects=[("cat", (7, 7, 9, 9))], database=database)
    folder = voc_folder(tmp_path, first, voc_xml(objects=[("cat", corners)], database=database))
    data, report = load_data(folder, need=("train",))
    assert boxes(data)["1.png"] == [("cat", expected)], why
    from_1 = "corners-from-1" in {note.kind for note in report.notes}
    assert boxes(data)["0.png"] == [("cat", (6, 6, 3, 3) if from_1 else (7, 7, 2, 2))], "all files are read alike"


def test_difficult_objects_are_crowds(tmp_path: Path) -> None:
    content = voc_xml(objects=CAT * 2).replace("<difficult>0", "<difficult>1", 1)
    [image] = load_data(voc_folder(tmp_path, content), need=("train",))[0].splits["train"].images
    assert image.iscrowd == (1, 0)


def test_classes_are_sorted_unless_a_list_has_their_order(tmp_path: Path) -> None:
    names = [(name, (4.0, 5.0, 14.0, 13.0)) for name in ("owl", "cat", "dog")]
    folder = voc_folder(tmp_path, voc_xml(objects=names))
    assert load_data(folder, need=("train",))[0].class_names == ("cat", "dog", "owl")
    write(folder, **{"labelmap.txt": "# label:color_rgb:parts:actions\nbackground:0,0,0::\nowl:1,1,1::\ndog:2,2,2::\n"})
    assert load_data(folder, need=("train",))[0].class_names == ("owl", "dog", "cat")


def test_classes_of_all_splits_have_one_order(tmp_path: Path) -> None:
    for seed, (split, name) in enumerate((("train", "owl"), ("valid", "cat"))):
        picture(tmp_path / split / "a.png", seed=seed)
        write(tmp_path, **{f"{split}/a.xml": voc_xml(objects=[(name, (4.0, 5.0, 14.0, 13.0))])})
    data, _ = load_data(tmp_path)
    assert data.class_names == ("cat", "owl")
    assert [data.splits[split].images[0].labels for split in ("train", "val")] == [(2,), (1,)]


def test_the_image_has_the_name_of_its_file(tmp_path: Path) -> None:
    """``<filename>`` is left from before images were renamed; without an image of the name it is all there is."""
    folder = voc_folder(tmp_path, voc_xml(name="old.jpg"))
    assert list(boxes(load_data(folder, need=("train",))[0])) == ["0.png"]
    (folder / "train/0.png").rename(folder / "train/old.jpg")
    assert list(boxes(load_data(folder, need=("train",))[0])) == ["old.jpg"]


def test_images_that_nobody_annotated_are_left_out_with_a_note(tmp_path: Path) -> None:
    folder = voc_folder(tmp_path, voc_xml(), voc_xml(objects=[]))
    picture(folder / "train" / "new.png", seed=9)
    data, report = load_data(folder, need=("train",))
    assert {name: len(found) for name, found in boxes(data).items()} == {"0.png": 1, "1.png": 0}
    assert ("image-without-annotations", ("new.png",)) in [(note.kind, note.examples) for note in report.notes]


BAD_XML = [
    ("a bomb", '<!DOCTYPE a [<!ENTITY b "bb"><!ENTITY c "&b;&b;">]><annotation>&c;</annotation>', "document type"),
    ("a file of the machine", '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><annotation>&b;</annotation>',
     "document type"),
    ("cut off", voc_xml()[:-20], "is no XML"),
    ("empty", "", "is no XML"),
]  # fmt: skip


@pytest.mark.parametrize(("content", "says"), [row[1:] for row in BAD_XML], ids=[row[0] for row in BAD_XML])
def test_bad_xml_is_a_fault_of_its_image(tmp_path: Path, content: str, says: str) -> None:
    folder = voc_folder(tmp_path, voc_xml(), content)
    with pytest.raises(DataError, match="annotations-unreadable") as caught:
        load_data(folder, need=("train",))
    assert "1.xml" in str(caught.value) and says in str(caught.value)
    assert list(boxes(load_data(folder, need=("train",), skip_bad=True)[0])) == ["0.png"]


def test_a_listed_image_without_a_file_is_a_fault(tmp_path: Path) -> None:
    picture(tmp_path / "JPEGImages/a.png")
    write(tmp_path, **{"Annotations/a.xml": voc_xml(), "ImageSets/Main/train.txt": "a\nb\n"})
    with pytest.raises(DataError, match=r"annotations-missing\]: b\.xml"):
        load_data(tmp_path, need=("train",))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("<xmin>4</xmin>", ""),
        lambda text: text.replace("<xmin>4</xmin>", "<xmin>four</xmin>"),
        lambda text: text.replace("<xmin>4</xmin>", "<xmin>nan</xmin>"),
        lambda text: text.replace("bndbox", "robndbox"),
    ],
)
def test_a_box_without_four_numbers_is_named_with_its_file(tmp_path: Path, change: Callable[[str], str]) -> None:
    folder = voc_folder(tmp_path, voc_xml(), change(voc_xml()))
    with pytest.raises(DataError, match=r"box-malformed\]: 1\.png \(1\.xml object 1\)"):
        load_data(folder, need=("train",))


def test_a_list_may_hold_marks_and_trainval(tmp_path: Path) -> None:
    for seed, name in enumerate("abc"):
        picture(tmp_path / f"JPEGImages/{name}.png", seed=seed)
        write(tmp_path, **{f"Annotations/{name}.xml": voc_xml(f"{name}.png")})
    write(tmp_path, **{"ImageSets/Main/trainval.txt": "a  1\nb.png\n", "ImageSets/Main/test.txt": "c -1\n",
                       "ImageSets/Main/cat_train.txt": "c 1\n"})  # fmt: skip
    data, _ = load_data(tmp_path, need=("train", "test"))
    assert {split: list(boxes(data, split)) for split in data.splits} == {"train": ["a.png", "b.png"],
                                                                          "test": ["c.png"]}  # fmt: skip


# --- one set, five layouts -------------------------------------------------------------------------------------------


N_DECODED = 16  # images of a split whose tensors are compared, too


def targets(data: DetectionData) -> dict[str, tuple[tuple[int, int], tuple[int, ...], torch.Tensor]]:
    """Digest of the file -> size, labels, and corners of the boxes in pixels."""
    found = {}
    for entry in (entry for split in data.splits.values() for entry in split.images):
        corners = box_convert(torch.tensor(entry.boxes_xywh).reshape(-1, 4), "xywh", "xyxy")
        found[entry.digest] = (entry.width, entry.height), entry.labels, corners
    return found


def items(data: DetectionData, digests: set[str]) -> dict[str, tuple[torch.Tensor, dict[str, Any]]]:
    """Digest of the file -> the item that a trial trains on."""
    found = {}
    for split in data.splits.values():
        images = CocoImages(split, image_size_px=160, max_size_px=256, hflip=False, cache_bytes=0)
        found |= {entry.digest: images[i] for i, entry in enumerate(split.images) if entry.digest in digests}
    return found


#: Largest distance between corners in pixels. YOLO rounds to six decimals of a side of up to 640 px, then x and
#: w / 2 add up; VOC to 0.01 px, and the sets have two decimals. COCO's numbers are the same, but for float32.
CORNER_PX = {"single_json": 1e-4, "roboflow": 1e-4, "yolo": 1e-3, "voc": 1e-4}
LAYOUTS = tuple(CORNER_PX)


# each set in two layouts in turn, so that each layout has three sets or four
@pytest.mark.parametrize(("number", "name"), enumerate(SETS), ids=SETS)
@pytest.mark.skipif(not SHARED.is_dir(), reason="the real data sets are not in ../shared/data")
def test_a_set_is_the_same_in_every_layout(
    number: int, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = SHARED / name
    if os.stat(source).st_dev != os.stat(tmp_path).st_dev:
        monkeypatch.setattr(os, "link", lambda a, b: Path(b).write_bytes(Path(a).read_bytes()))
    expected = load_data(layouts.ours(source, tmp_path / "ours"))[0]
    wanted = targets(expected)
    some = {entry.digest for split in expected.splits.values() for entry in split.images[:N_DECODED]}
    wanted_items = items(expected, some)
    for layout in (LAYOUTS[number % len(LAYOUTS)], LAYOUTS[(number + 1) % len(LAYOUTS)]):
        distance = CORNER_PX[layout]
        options = ReadOptions(val_fraction=0.25 if layout == "single_json" else None)
        data, report = load_data(layouts.WRITERS[layout](source, tmp_path / layout), options)
        assert data.class_names == expected.class_names, layout
        found, found_items = targets(data), items(data, some)
        assert found.keys() == wanted.keys() and found_items.keys() == wanted_items.keys()
        for split in ("train", "val") if layout != "single_json" else ():  # that has a split of its own
            assert [e.digest for e in data.splits[split].images] == [e.digest for e in expected.splits[split].images]
        for digest, (size, labels, corners) in found.items():
            assert (size, labels) == wanted[digest][:2]
            torch.testing.assert_close(corners, wanted[digest][2], rtol=0, atol=distance)
        for digest, (image, target) in found_items.items():
            assert torch.equal(image, wanted_items[digest][0])
            assert torch.equal(target["labels"], wanted_items[digest][1]["labels"])
            torch.testing.assert_close(target["boxes"], wanted_items[digest][1]["boxes"], rtol=0, atol=distance)
        assert "box-clipped" not in {note.kind for note in report.notes}
