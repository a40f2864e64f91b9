"""Images with more than 100 objects: the limit of detections follows the data."""

from __future__ import annotations

from pathlib import Path

import pytest
from coco_folders import write_folder, write_split

from cst_search.commands.dataset import settle_detections
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData, load_data
from cst_search.data.density import detections_needed, with_detections


@pytest.mark.parametrize(
    ("max_boxes", "needed"),
    [(0, 100), (93, 100), (100, 100), (101, 200), (187, 200), (188, 300), (900, 1000), (936, 1100)],
)
def test_the_limit_has_room_for_false_detections(max_boxes: int, needed: int) -> None:
    assert detections_needed(max_boxes) == needed


def dense(folder: Path, n: int) -> DetectionData:
    write_folder(folder, [{"bbox": [10, 20, 30, 40]}])
    write_split(folder, "val", [{"bbox": [3 * (i % 30), 2 * (i // 30), 2, 1.5]} for i in range(n)])
    return load_data(folder)[0]


def test_a_recipe_gets_what_the_densest_split_needs(tmp_path: Path) -> None:
    data = dense(tmp_path, 400)
    assert with_detections(Recipe(), data).detections_per_image == 500
    assert with_detections(Recipe(detections_per_image=100), data).detections_per_image == 100, "a choice stays"
    exported = Recipe(origin={"study": "s"})
    assert with_detections(exported, data) == exported, "its trials had 100"


def test_a_recipe_for_sparse_images_is_unchanged(tmp_path: Path) -> None:
    assert with_detections(Recipe(), dense(tmp_path, 100)) == Recipe()


def test_a_launch_says_what_it_does(tmp_path: Path) -> None:
    data, said = dense(tmp_path, 400), []
    assert settle_detections(Recipe(), data, said.append).detections_per_image == 500
    assert settle_detections(Recipe(), data, said.append, is_study=True) == Recipe(), "its trials had 100"
    assert said == [
        "up to 500 detections an image (detections_per_image), as images have up to 400 objects",
        "note: images have up to 400 objects, and detections_per_image 100 leaves the rest undetected",
    ]
    sparse = dense(tmp_path / "sparse", 100)
    assert settle_detections(Recipe(), sparse, said.append) == Recipe()
    assert len(said) == 2
