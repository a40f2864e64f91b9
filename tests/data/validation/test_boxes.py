"""Boxes as people write them: what training and evaluation get, or the one fault that says what to do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_folders import HEIGHT, SOUND, WIDTH, noted, targets, truth, write_folder, write_split

from cst_search.data.dataset import load_data
from cst_search.data.options import ReadOptions
from cst_search.data.validation.box_kinds import to_xywh
from cst_search.errors import DataError

# --- forms ------------------------------------------------------------------------------------------------------------

N = 24
_RNG = np.random.default_rng(1)
XYWH = np.hstack([_RNG.integers(0, 60, (N, 1)), _RNG.integers(0, 50, (N, 1)), _RNG.integers(8, 30, (N, 2))]).astype(
    float
)
SIZES = np.array([WIDTH, HEIGHT], dtype=float)
FORMS = {
    "xyxy": np.hstack([XYWH[:, :2], XYWH[:, :2] + XYWH[:, 2:]]),
    "cxcywh": np.hstack([XYWH[:, :2] + XYWH[:, 2:] / 2, XYWH[:, 2:]]),
}
FORMS |= {
    "normalised": XYWH / np.tile(SIZES, 2),
    "normalised-xyxy": FORMS["xyxy"] / np.tile(SIZES, 2),
    "normalised-cxcywh": FORMS["cxcywh"] / np.tile(SIZES, 2),
}


def entries(boxes: np.ndarray, n_images: int = 6, **fields: Any) -> list[dict[str, Any]]:
    return [{"bbox": box.tolist(), "image_id": 1 + i % n_images, **fields} for i, box in enumerate(boxes)]


def expected_targets(n_images: int = 6) -> list[list[list[float]]]:
    return [FORMS["xyxy"][i::n_images].tolist() for i in range(n_images)]


@pytest.mark.parametrize("form", FORMS)
def test_another_form_is_one_fault_and_its_switch_reads_it(tmp_path: Path, form: str) -> None:
    folder = write_folder(tmp_path, entries(FORMS[form]), n_images=6)
    write_split(folder, "val", entries(FORMS[form], 1))
    with pytest.raises(DataError) as caught:
        load_data(folder, skip_bad=True)
    lines = str(caught.value).splitlines()
    found = [line for line in lines if "[" in line and "]: " in line]
    assert [line.split()[0] for line in found] == ["train", "val"], "one finding a split, no single boxes"
    assert all("[box-form]" in line and f"--boxes {form}" in line and f" {N} of {N} fit" in line for line in found)
    assert lines[-1] == "Correct these first, --skip-bad cannot leave them out: box-form"

    data, report = load_data(folder, ReadOptions(boxes=form))
    assert not report.faults
    assert targets(data) == expected_targets()
    assert np.allclose([box for box, _ in truth(data, "val")], XYWH)


def test_boxes_that_fit_several_forms_are_asked_about(tmp_path: Path) -> None:
    """In the middle of their images, centres could be corners as well."""
    centred = [{"bbox": [0.4, 0.4, 0.2, 0.25]}, {"bbox": [0.5, 0.45, 0.3, 0.2]}]
    with pytest.raises(DataError) as caught:
        load_data(write_folder(tmp_path, centred))
    assert "as x y w h 2 of 2 fit: --boxes normalised or as centre x, centre y, w, h 2 of 2 fit" in str(caught.value)
    assert "--boxes normalised-cxcywh" in str(caught.value)


@pytest.mark.parametrize(("given", "written"), [("xyxy", "xywh"), ("normalised", "xywh"), ("xyxy", "normalised")])
def test_splits_in_different_forms_are_one_fault(tmp_path: Path, given: str, written: str) -> None:
    forms = FORMS | {"xywh": XYWH}
    folder = write_folder(tmp_path, entries(forms[given]), n_images=6)
    write_split(folder, "val", entries(forms[written], 1))
    with pytest.raises(DataError) as caught:
        load_data(folder, ReadOptions(boxes=given), skip_bad=True)
    found = [line for line in str(caught.value).splitlines() if "[box-" in line]
    assert [line.split()[0] for line in found] == ["val"]
    assert "[box-form]" in found[0] and f"--boxes {written}; splits of one set must have one form" in found[0]


def test_areas_of_normalised_boxes_are_pixels(tmp_path: Path) -> None:
    """COCO's figures by size of objects need them so, whatever the file says."""
    folder = write_folder(tmp_path, entries(FORMS["normalised"], area=0.01), n_images=6)
    write_split(folder, "val", entries(FORMS["normalised"], 1))
    data, _ = load_data(folder, ReadOptions(boxes="normalised"))
    areas = [area for image in data.splits["val"].images for area in image.areas]
    assert np.allclose(areas, XYWH[:, 2] * XYWH[:, 3])


def test_sound_boxes_are_no_other_form(tmp_path: Path) -> None:
    data, report = load_data(write_folder(tmp_path, entries(XYWH), n_images=6))
    assert targets(data) == expected_targets()
    assert noted(report) == {}
    assert load_data(tmp_path, ReadOptions(boxes="xywh"))[0].splits == data.splits


def test_areas_tell_corners_in_the_upper_left(tmp_path: Path) -> None:
    """No box runs out of its image, but `area` is that of x1 y1 x2 y2."""
    corners = np.array([[5, 6, 20, 30], [7, 3, 30, 20], [1, 2, 40, 35]], dtype=float)
    boxes = [{"bbox": box.tolist(), "area": (box[2] - box[0]) * (box[3] - box[1])} for box in corners]
    with pytest.raises(DataError, match=r"'area' of 3 of 3 is that between two corners; .* 3 of 3 fit: --boxes xyxy"):
        load_data(write_folder(tmp_path, boxes))
    data, _ = load_data(tmp_path, ReadOptions(boxes="xyxy"))
    assert targets(data) == [corners.tolist()]


def test_without_areas_they_are_a_hint(tmp_path: Path) -> None:
    corners = np.hstack([XYWH[:, :2] / 4, XYWH[:, :2] / 4 + XYWH[:, 2:]])
    folder = write_folder(tmp_path, entries(corners), n_images=6)
    data, report = load_data(folder)
    assert noted(report) == {("train", "box-form-unsure"): N}
    assert f"{N} of {N} fit, too: --boxes xyxy" in report.render()
    assert np.allclose(truth(data)[0][0], corners[0]), "as COCO has it"
    sized = [entry | {"area": entry["bbox"][2] * entry["bbox"][3]} for entry in entries(corners)]
    assert noted(load_data(write_folder(tmp_path, sized, n_images=6))[1]) == {}, "an area that fits answers it"


def test_boxes_in_one_corner_are_a_hint(tmp_path: Path) -> None:
    """Percent, or pixels of smaller images, look so."""
    report = load_data(write_folder(tmp_path, entries(XYWH / 2), n_images=6, size=(300, 300)))[1]
    assert noted(report) == {("train", "box-corner"): N}
    assert "at most 100: percent?" in report.render()


def test_a_few_wrong_boxes_are_no_form(tmp_path: Path) -> None:
    boxes = entries(XYWH)
    boxes[3]["bbox"] = [90, 70, 95, 78]
    with pytest.raises(DataError, match=r"\[box-outside\]: 4.png \(annotation 4\): bbox \[90, 70, 95, 78\] in 100x80"):
        load_data(write_folder(tmp_path, boxes, n_images=6))


def test_boxes_without_end_are_compared_too(tmp_path: Path) -> None:
    boxes = [{"bbox": [1e308, 1e308, 1e308, 1e308], "area": 1e308}] * 3
    with pytest.raises(DataError, match=r"\[box-outside\]"):
        load_data(write_folder(tmp_path, boxes))


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_turned_back(form: str) -> None:
    assert np.allclose(to_xywh(form, FORMS[form], np.tile(SIZES, (N, 1))), XYWH)


# --- rotated ----------------------------------------------------------------------------------------------------------


def rotated(degrees: float, **fields: Any) -> dict[str, Any]:
    return {"bbox": [30, 30, 40, 20], "attributes": {"occluded": False, "rotation": degrees}, **fields}


def test_rotated_boxes_are_one_fault_with_two_ways_out(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [rotated(90), rotated(330), rotated(0), rotated(180), SOUND])
    with pytest.raises(DataError, match=r"2  boxes are rotated.*: 2 of 5 have a rotation") as caught:
        load_data(folder, skip_bad=True)
    assert "--rotated enclose" in str(caught.value)

    data, _ = load_data(folder, ReadOptions(rotated="enclose"))
    root = 3**0.5 / 2
    w, h = 40 * root + 10, 20 + 20 * root
    assert np.allclose(
        targets(data)[0][:2], [[40, 20, 60, 60], [50 - w / 2, 40 - h / 2, 50 + w / 2, 40 + h / 2]], atol=1e-3
    )
    assert targets(data)[0][2:] == [[30, 30, 70, 50]] * 2 + [[10, 20, 40, 60]]

    data, _ = load_data(folder, ReadOptions(rotated="ignore"))
    assert targets(data)[0][:4] == [[30, 30, 70, 50]] * 4


def test_a_box_of_five_numbers_is_rotated(tmp_path: Path) -> None:
    """What the fifth means differs between files, so only an outline says where the object is."""
    outline = [[20, 20, 60, 30, 50, 50]]
    folder = write_folder(tmp_path, [{"bbox": [30, 30, 40, 20, 0.3], "segmentation": outline}, SOUND])
    with pytest.raises(DataError, match="0 of 2 have a rotation, 1 a bbox of five numbers"):
        load_data(folder)
    assert targets(load_data(folder, ReadOptions(rotated="enclose"))[0])[0][0] == [20, 20, 60, 50]
    write_folder(tmp_path, [{"bbox": [30, 30, 40, 20, 0.3]}, SOUND])
    with pytest.raises(DataError, match="1 of 2 have five numbers and no segmentation"):
        load_data(folder, ReadOptions(rotated="enclose"))
    assert targets(load_data(folder, ReadOptions(rotated="ignore"))[0])[0][0] == [30, 30, 70, 50]


# --- crowds -----------------------------------------------------------------------------------------------------------

# as CVAT and others export a mask: 20 x 40 pixels at (10, 20), column by column
MASK = {"size": [HEIGHT, WIDTH], "counts": [10 * HEIGHT + 20, *[40, 40] * 19, 40, 20 + 70 * HEIGHT]}


def crowd(**fields: Any) -> dict[str, Any]:
    return {"iscrowd": 1, "bbox": [10, 20, 20, 40], "segmentation": MASK, "area": 800, **fields}


def test_a_set_of_crowds_stops_and_the_switch_makes_objects_of_them(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [crowd(), crowd(), SOUND])
    with pytest.raises(DataError, match=r"\[crowd-most\]: 2 of 3") as caught:
        load_data(folder, skip_bad=True)
    assert "--crowd as-objects" in str(caught.value)

    data, report = load_data(folder, ReadOptions(crowd="as-objects"))
    assert targets(data) == [[[10, 20, 30, 60]] * 2 + [[10, 20, 40, 60]]]
    assert truth(data) == [([10, 20, 20, 40], 0)] * 2 + [([10, 20, 30, 40], 0)]
    assert noted(report) == {("train", "crowd-as-objects"): 2}
    assert data.summary()["n_boxes"]["train"] == 3

    data, report = load_data(folder, ReadOptions(crowd="ignore"))
    assert targets(data) == [[[10, 20, 40, 60]]]
    assert noted(report) == {("train", "crowd"): 2}


def test_a_few_crowds_are_ignored_with_a_note(tmp_path: Path) -> None:
    data, report = load_data(write_folder(tmp_path, [crowd(), SOUND]))
    assert targets(data) == [[[10, 20, 40, 60]]]
    assert truth(data) == [([10, 20, 20, 40], 1), ([10, 20, 30, 40], 0)]
    assert [n.detail for n in report.notes if n.kind == "crowd"] == ["1 of 2"]


# --- edges ------------------------------------------------------------------------------------------------------------


def test_boxes_over_the_edge_are_clipped_and_counted(tmp_path: Path) -> None:
    """5 px over an edge, as tools that let a box be dragged there write it; and one that ends within rounding."""
    data, report = load_data(write_folder(tmp_path, [{"bbox": [-5, 10, 30, 20]}, {"bbox": [60, 50, 40.5, 30]}]))
    assert targets(data) == [[[0, 10, 25, 30], [60, 50, 100, 80]]]
    assert truth(data) == [([0, 10, 25, 20], 0), ([60, 50, 40, 30], 0)]
    assert noted(report) == {("train", "box-cut"): 1, ("train", "box-clipped"): 1}


def test_a_box_below_a_pixel_is_said(tmp_path: Path) -> None:
    boxes = [{"bbox": [0.5, 0.5, 0.25, 0.25]}, SOUND, SOUND]
    assert noted(load_data(write_folder(tmp_path, boxes))[1]) == {("train", "box-tiny"): 1}


# --- sizes ------------------------------------------------------------------------------------------------------------


def swapped_folder(folder: Path, boxes: list[list[float]], n_images: int = 2) -> Path:
    entries = [{"bbox": box, "image_id": 1 + i % n_images} for i, box in enumerate(boxes)]
    write_folder(folder, entries, n_images=n_images)
    document = json.loads((folder / "train.json").read_text())
    for image in document["images"]:
        image["width"], image["height"] = image["height"], image["width"]
    (folder / "train.json").write_text(json.dumps(document))
    return folder


def test_swapped_sizes_are_those_of_the_images_if_boxes_say_so(tmp_path: Path) -> None:
    """A box ends at 95 of 100 pixels: it cannot be for a width of 80."""
    data, report = load_data(swapped_folder(tmp_path, [[65, 20, 30, 40], [10, 20, 30, 40]]))
    assert targets(data) == [[[65, 20, 95, 60]], [[10, 20, 40, 60]]]
    assert [(image.width, image.height) for image in data.splits["train"].images] == [(WIDTH, HEIGHT)] * 2
    assert noted(report) == {("train", "size-swapped"): 2}
    assert "1 of 2 boxes fit their images only so" in report.render()


@pytest.mark.parametrize(
    ("boxes", "why"),
    [
        ([[10, 20, 30, 40], [10, 20, 30, 40]], "of 2 boxes 0 fit the file's size alone, 0 that of the images alone"),
        ([[10, 50, 30, 45], [10, 20, 30, 40]], "of 2 boxes 1 fit the file's size alone, 0 that of the images alone"),
        ([[10, 50, 30, 45], [65, 20, 30, 40]], "of 2 boxes 1 fit the file's size alone, 1 that of the images alone"),
        ([], "of 0 boxes 0 fit"),
    ],
)
def test_swapped_sizes_are_one_fault_otherwise(tmp_path: Path, boxes: list[list[float]], why: str) -> None:
    with pytest.raises(DataError) as caught:
        load_data(swapped_folder(tmp_path, boxes), skip_bad=True)
    [line] = [line for line in str(caught.value).splitlines() if "[sizes-swapped]" in line]
    assert line.split()[:2] == ["train", "2"]
    assert why in line
    assert "--sizes image" in str(caught.value)


def test_sizes_of_the_file_can_be_passed_over(tmp_path: Path) -> None:
    folder = swapped_folder(tmp_path, [[10, 20, 30, 40]] * 2)
    data, report = load_data(folder, ReadOptions(sizes="image"))
    assert [(image.width, image.height) for image in data.splits["train"].images] == [(WIDTH, HEIGHT)] * 2
    assert targets(data) == [[[10, 20, 40, 60]]] * 2
    assert noted(report) == {("train", "image-size-missing"): 2, ("val", "image-size-missing"): 1}


def test_a_few_swapped_sizes_are_single_faults(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, [SOUND], n_images=3)
    document = json.loads((folder / "train.json").read_text())
    document["images"][0] |= {"width": HEIGHT, "height": WIDTH}
    (folder / "train.json").write_text(json.dumps(document))
    with pytest.raises(DataError, match=r"1  image is not as large .* \[image-size\]: 1.png \(.* swapped"):
        load_data(folder)
