"""Pictures of what a detector found: their names, their labels, the sheet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cst_search.data.dataset import ImageEntry
from cst_search.trial.pictures import (
    SHEET,
    Box,
    distinct,
    draw_detections,
    label_place,
    picture_names,
    write_sheet,
)


@pytest.mark.parametrize(
    ("images", "names"),
    [
        (["a/1.png", "a/2.jpg"], ["1.png", "2.png"]),
        (["a/1.png", "b/1.png", "b/2.png"], ["a/1.png", "b/1.png", "b/2.png"]),  # the path is kept
        (["x/a/1.png", "x/b/1.png"], ["a/1.png", "b/1.png"]),  # as far as it differs
        (["a/1.png", "a/1.jpg", "a/2.png"], ["1.png.png", "1.jpg.png", "2.png"]),
        (["a/1.png", "a/../a/1.png"], ["1.png", "1.png"]),  # the same image
        (["a/contact-sheet.jpg", "a/2.jpg"], ["contact-sheet-2.png", "2.png"]),  # the sheet's name is taken
        (["a/1.jpg", "a/1.png", "a/1.jpg.bmp"], ["1.jpg.png", "1.png.png", "1.jpg-2.png"]),
        (["1.v2.png"], ["1.v2.png"]),
        ([], []),
    ],
)
def test_every_image_has_a_picture_of_its_own(images: list[str], names: list[str]) -> None:
    assert [str(name) for name in picture_names([Path(image) for image in images])] == names


def found(score: float, *box: float, name: str = "a") -> dict[str, Any]:
    return {"class": name, "score": score, "box": list(box)}


def test_one_object_has_one_label_whatever_its_class() -> None:
    best, other_class = found(0.9, 0, 0, 10, 10), found(0.8, 0, 1, 10, 10, name="b")
    beside, half = found(0.7, 20, 0, 30, 10), found(0.6, 5, 0, 15, 10)  # half of it: a third of the union
    assert distinct([beside, other_class, half, best]) == [best, beside, half]
    assert distinct([]) == []


@pytest.mark.parametrize(
    ("box", "others", "place"),
    [
        (Box(50, 50, 80, 80), [], (50, 40)),  # above
        (Box(50, 5, 80, 80), [], (50, 80)),  # below, as there is no room above
        (Box(50, 50, 80, 80), [Box(40, 30, 90, 49)], (50, 80)),  # above is another object
        (Box(50, 0, 80, 100), [], (80, 0)),  # a high box: at the right
        (Box(65, 0, 100, 100), [], (45, 0)),  # at the left
        (Box(90, 50, 100, 80), [], (80, 40)),  # pushed into the image
        (Box(0, 0, 100, 100), [], (0, 0)),  # no room outside
    ],
)
def test_a_label_covers_no_object_where_there_is_room(box: Box, others: list[Box], place: tuple[float, float]) -> None:
    label = label_place(box, (20, 10), (100, 100), others)
    assert label == Box(*place, place[0] + 20, place[1] + 10)
    if box.area < 100 * 100:
        assert label.overlap(box) == 0


def entry(path: Path, width: int, height: int) -> ImageEntry:
    Image.fromarray(np.full((height, width, 3), 255, dtype=np.uint8)).save(path)
    return ImageEntry(0, path.name, path, width, height, (), (), (), ())


@pytest.mark.parametrize(
    ("size", "drawn"), [((60, 40), (720, 480)), ((500, 700), (500, 700)), ((479, 900), (958, 1800))]
)
def test_a_small_image_is_enlarged_before_it_is_drawn_on(
    tmp_path: Path, size: tuple[int, int], drawn: tuple[int, int]
) -> None:
    picture = tmp_path / "drawn" / "1.png"
    draw_detections(entry(tmp_path / "1.png", *size), [found(0.9, 10, 10, 30, 30)], ("a",), picture)
    with Image.open(picture) as image:
        assert image.size == drawn
        factor = drawn[0] // size[0]
        assert image.getpixel((30 * factor, 20 * factor)) == (0xE6, 0x9F, 0x00)  # the right edge of the box
        assert image.getpixel((20 * factor, 20 * factor)) == (255, 255, 255)  # its inside is free


def test_the_sheet_begins_with_pictures_on_which_something_was_found(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.png" for i in range(30)]
    for i, path in enumerate(paths):
        Image.new("RGB", (400, 200), (8 * i, 0, 0)).save(path)
    sheet = write_sheet([(path, i == 29) for i, path in enumerate(paths)], tmp_path)
    assert sheet == tmp_path / SHEET
    with Image.open(sheet) as image:
        assert image.size == (6 * 326 + 6, 4 * (160 + 24))  # 24 of them
        first = [image.getpixel((6 + i * 326 + 100, 18 + 80)) for i in range(3)]
    assert first == [(232, 0, 0), (0, 0, 0), (8, 0, 0)]
    assert write_sheet([(paths[0], True)], tmp_path) is None
