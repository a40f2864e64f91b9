"""Draw detections: one picture per image, and a contact sheet of them all."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image, ImageDraw, ImageFont

from cst_search.data.contact_sheet import TILE_PX, tiled
from cst_search.data.dataset import ImageEntry
from cst_search.data.decoding import decode

SHEET = "contact-sheet.png"
N_ON_SHEET = 24
_LEAST_PX = 480  # short side of a picture: below, a legible label would be as large as the objects
_MOST_OVERLAP = 0.5  # intersection over union above which the worse of two drawn boxes is left out, of any class
# colours that colour-blind people can distinguish: Okabe and Ito, Color Universal Design, 2008
_COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7")


class Box(NamedTuple):
    """Corners in pixels."""

    x1: float
    y1: float
    x2: float
    y2: float

    def overlap(self, other: Box) -> float:
        """Return the area that two boxes share."""
        width = min(self.x2, other.x2) - max(self.x1, other.x1)
        height = min(self.y2, other.y2) - max(self.y1, other.y1)
        return max(0.0, width) * max(0.0, height)

    @property
    def area(self) -> float:
        return max(0.0, self.x2 - self.x1) * max(0.0, self.y2 - self.y1)

    def iou(self, other: Box) -> float:
        """Return intersection over union, 0..1."""
        shared = self.overlap(other)
        return shared / union if (union := self.area + other.area - shared) > 0 else 0.0


def picture_names(images: Sequence[Path]) -> list[Path]:
    """Return a relative path for the picture of each image, no two equal for different images.

    It is the name of the image with the ending ``png``. If two images have one name, it is the path from the folder
    that all images share; if they differ by their ending only, they keep it (``1.jpg.png``).
    """
    paths = [Path(os.path.abspath(path)) for path in images]
    names = {path: Path(path.stem) for path in paths}
    if len(set(names.values())) < len(names):
        common = os.path.commonpath([path.parent for path in names])
        names = {path: path.relative_to(common).with_suffix("") for path in names}
    often = Counter(names.values())
    taken, found = {Path(SHEET)}, {}
    for path, name in names.items():
        base = name if often[name] == 1 else name.with_name(path.name)
        picture, n = base.with_name(f"{base.name}.png"), 1
        while picture in taken:
            n += 1
            picture = base.with_name(f"{base.name}-{n}.png")
        taken.add(picture)
        found[path] = picture
    return [found[path] for path in paths]


def draw_detections(
    entry: ImageEntry, detections: Sequence[Mapping[str, Any]], class_names: Sequence[str], picture: Path
) -> None:
    """Write an image with its detections to a PNG; a small image is enlarged by a whole factor."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    image = decode(entry.path, (entry.width, entry.height), entry.decoding)
    scale = max(1, -(-_LEAST_PX // min(image.size)))
    image = image.resize((image.width * scale, image.height * scale), Image.Resampling.BICUBIC) if scale > 1 else image
    draw_on(image, detections, class_names, scale)
    image.save(picture)


def draw_on(
    image: Image.Image, detections: Sequence[Mapping[str, Any]], class_names: Sequence[str], scale: int = 1
) -> None:
    """Draw detections, as `inference.reported` gives them, on an image that is ``scale`` times as large as theirs.

    Of boxes that lie on each other only the best is drawn, whatever their classes. Labels stand beside the boxes where
    there is room.
    """
    shown = distinct(detections)
    boxes = [_drawn_box(one["box"], scale) for one in shown]
    draw = ImageDraw.Draw(image)
    line = max(1, round(min(image.size) / 240))
    font = ImageFont.load_default(max(12, min(image.size) / 36))
    labels: list[Box] = []
    for i, (one, box) in enumerate(zip(shown, boxes, strict=True)):
        colour = _COLOURS[class_names.index(one["class"]) % len(_COLOURS)]
        draw.rectangle(box, outline=colour, width=line)
        text = f"{one['class']} {one['score']:.2f}"
        left, top, right, bottom = draw.textbbox((0, 0), text, font=font)
        size = (right - left + 2 * line, bottom - top + 2 * line)
        label = label_place(box, size, image.size, [*labels, *boxes[:i], *boxes[i + 1 :]])
        labels.append(label)
        draw.rectangle(label, fill=colour)
        draw.text((label.x1 + line - left, label.y1 + line - top), text, fill="black", font=font)


def _drawn_box(corners: Sequence[float], scale: int) -> Box:
    x1, y1, x2, y2 = (scale * value for value in corners)
    return Box(x1, y1, max(x1, x2), max(y1, y2))


def distinct(detections: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Return the detections, best first, without those that overlap a better one of any class."""
    kept: list[Mapping[str, Any]] = []
    for one in sorted(detections, key=lambda one: -one["score"]):
        if all(Box(*one["box"]).iou(Box(*better["box"])) <= _MOST_OVERLAP for better in kept):
            kept.append(one)
    return kept


def label_place(box: Box, size: tuple[float, float], image_size: tuple[int, int], others: Sequence[Box]) -> Box:
    """Return the place of a label of a (width, height): above, below or beside its box, where it covers least.

    It lies within the image; if there is no room around the box, at its upper edge.

    Args:
        others: labels and boxes that it shall not cover.
    """
    width, height = size
    left = min(max(0.0, box.x1), max(0.0, image_size[0] - width))
    top = min(max(0.0, box.y1), max(0.0, image_size[1] - height))
    corners = [(left, box.y1 - height), (left, box.y2), (box.x2, top), (box.x1 - width, top)]
    places = [Box(x, y, x + width, y + height) for x, y in corners]
    inside = [p for p in places if min(p.x1, p.y1) >= 0 and p.x2 <= image_size[0] and p.y2 <= image_size[1]]
    within = Box(left, top, left + width, top + height)
    return min(inside, key=lambda place: sum(map(place.overlap, others)), default=within)


def write_sheet(pictures: Sequence[tuple[Path, bool]], folder: Path) -> Path | None:
    """Write a contact sheet of pictures; None: there are fewer than two.

    Args:
        pictures: each with whether something was found in it; those come first on the sheet.
    """
    if len(pictures) < 2:
        return None
    chosen = sorted(pictures, key=lambda one: not one[1])[:N_ON_SHEET]
    tiles = []
    for path, _ in chosen:
        with Image.open(path) as image:
            image.thumbnail((TILE_PX, TILE_PX))
            tiles.append((path.relative_to(folder).with_suffix("").as_posix(), image.convert("RGB")))
    tiled(tiles).save(folder / SHEET)
    return folder / SHEET
