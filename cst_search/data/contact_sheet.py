"""Draw images of a data set with their boxes as one picture, to see whether the boxes lie on the objects."""

from __future__ import annotations

import colorsys
import random
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from cst_search.data.dataset import DetectionData, ImageEntry
from cst_search.data.decoding import decode

N_IMAGES = 24
N_COLUMNS = 6
TILE_PX = 320  # longest side of an image on the sheet
_CAPTION_PX = 18
_GAP_PX = 6
_N_NAMED = 6  # an image of so many boxes or fewer has the name of the class at each; the legend has all names
_BACKGROUND, _INK, _CROWD = "white", "black", (150, 150, 150)


class Shown(NamedTuple):
    split: str
    entry: ImageEntry


def choose(data: DetectionData, n_images: int = N_IMAGES, seed: int = 0) -> list[Shown]:
    """Return images that show every class, the rarest first, then others at random; at most ``n_images``.

    Images of the validation split come in as by chance: its boxes come from the same tool, and a class may be in it
    alone.
    """
    everything = [Shown(name, entry) for name, split in data.splits.items() for entry in split.images]
    random.Random(seed).shuffle(everything)
    everything.sort(key=lambda shown: not shown.entry.labels)  # images without boxes only if there is room
    n_with = {label: sum(label in shown.entry.labels for shown in everything)
              for label in range(1, len(data.class_names) + 1)}  # fmt: skip
    chosen: list[Shown] = []
    for label in sorted((label for label, n in n_with.items() if n), key=lambda label: (n_with[label], label)):
        if len(chosen) < n_images and not any(label in shown.entry.labels for shown in chosen):
            chosen.append(next(shown for shown in everything if label in shown.entry.labels))
    taken = {id(shown.entry) for shown in chosen}
    others = [shown for shown in everything if id(shown.entry) not in taken]
    return chosen + others[: n_images - len(chosen)]


def draw_sheet(data: DetectionData, path: Path, n_images: int = N_IMAGES, seed: int = 0) -> list[Shown]:
    """Write the sheet as PNG and return the images on it. Each image is decoded as training decodes it."""
    chosen = choose(data, n_images, seed)
    tiles = [(f"{shown.split}: {shown.entry.file_name}", _tile(shown.entry, data)) for shown in chosen]
    sheet = tiled(tiles)
    _stacked([sheet, _legend(data, sheet.width)]).save(path, format="PNG")
    return chosen


def tiled(tiles: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return captions and images, of at most `TILE_PX` each way, as one picture of up to `N_COLUMNS` columns."""
    n_columns = min(N_COLUMNS, max(1, len(tiles)))
    width = n_columns * (TILE_PX + _GAP_PX) + _GAP_PX
    return _stacked([_row(tiles[i : i + n_columns], width) for i in range(0, len(tiles), n_columns)])


def _stacked(strips: Sequence[Image.Image]) -> Image.Image:
    """Return strips of one width, one below the other."""
    sheet = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), _BACKGROUND)
    top = 0
    for strip in strips:
        sheet.paste(strip, (0, top))
        top += strip.height
    return sheet


def _row(tiles: Sequence[tuple[str, Image.Image]], width: int) -> Image.Image:
    strip = Image.new("RGB", (width, max(tile.height for _, tile in tiles) + _CAPTION_PX + _GAP_PX), _BACKGROUND)
    for i, (caption, tile) in enumerate(tiles):
        left = _GAP_PX + i * (TILE_PX + _GAP_PX)
        ImageDraw.Draw(strip).text((left, 0), _fitting(caption, TILE_PX), fill=_INK, font=_font(13))
        strip.paste(tile, (left, _CAPTION_PX))
    return strip


def _tile(entry: ImageEntry, data: DetectionData) -> Image.Image:
    picture = decode(entry.path, (entry.width, entry.height), entry.decoding)
    scale = min(TILE_PX / entry.width, TILE_PX / entry.height)
    picture = picture.resize((max(1, round(entry.width * scale)), max(1, round(entry.height * scale))))
    draw = ImageDraw.Draw(picture)
    for (x, y, w, h), label, crowd in zip(entry.boxes_xywh, entry.labels, entry.iscrowd, strict=True):
        colour = _CROWD if crowd else colour_of(label)
        left, top, right, bottom = (value * scale for value in (x, y, x + w, y + h))
        draw.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2)
        if len(entry.labels) <= _N_NAMED:
            name = f"{data.class_names[label - 1]}{' (crowd)' if crowd else ''}"
            _name(draw, _fitting(name, TILE_PX // 2), (left, top), colour, picture.size)
    return picture


def _name(
    draw: ImageDraw.ImageDraw, name: str, corner: tuple[float, float], colour: tuple[int, int, int],
    size: tuple[int, int],
) -> None:  # fmt: skip
    """Write a class above its box, or into the box where there is no room."""
    _, _, width, height = draw.textbbox((0, 0), name, font=_font(12))
    left = max(0.0, min(corner[0], size[0] - width - 2))
    top = corner[1] - height - 1 if corner[1] > height else corner[1]
    draw.rectangle((left, top, left + width + 2, top + height + 1), fill=colour)
    draw.text((left + 1, top), name, fill=_INK, font=_font(12))


def _legend(data: DetectionData, width: int) -> Image.Image:
    """Return a strip with the colour of each class."""
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    places, x, y = [], _GAP_PX, 0
    for label, name in enumerate(data.class_names, start=1):
        text = _fitting(name, width // 3)
        needed = round(draw.textlength(text, font=_font(14))) + 36
        if x + needed > width and x > _GAP_PX:
            x, y = _GAP_PX, y + 22
        places.append((x, y, label, text))
        x += needed
    strip = Image.new("RGB", (width, y + 28), _BACKGROUND)
    draw = ImageDraw.Draw(strip)
    for x, y, label, text in places:
        draw.rectangle((x, y + 4, x + 14, y + 18), fill=colour_of(label))
        draw.text((x + 19, y + 2), text, fill=_INK, font=_font(14))
    return strip


def colour_of(label: int) -> tuple[int, int, int]:
    """Return a bright colour; neighbours in the list of classes are far apart in hue (by the golden ratio)."""
    red, green, blue = colorsys.hsv_to_rgb(label * 0.618034 % 1, 0.75, 1.0)
    return round(255 * red), round(255 * green), round(255 * blue)


def _fitting(text: str, width: int) -> str:
    """Return a text as one line that is at most so wide, in pixels."""
    text = "".join(c if c.isprintable() else "?" for c in text)
    font = _font(13)
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(f"...{text}") > width:
        text = text[1:]
    return f"...{text}"


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)
