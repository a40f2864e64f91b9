"""A split as its annotations list it: images, boxes as they are written, and boxes as they are used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from cst_search.data.decoding import PLAIN, Decoding


@dataclass(slots=True)
class WrittenBox:
    """One well-formed annotation entry, before its box is read in a form of boxes and held to its image.

    Attributes:
        numbers: the four numbers of ``bbox``, in the form that the file has them in; or x, y, w, h of `segmentation`.
        is_bounds: `numbers` are the bounds of the segmentation, because there is no ``bbox``.
        in_pixels: `numbers` are x, y, w, h in pixels, whatever the form of the file's boxes.
        area: square pixels of the outline, as the file gives it, or None.
        rotation: degrees about the box's centre; None: the fifth number of ``bbox``, of unknown meaning.
    """

    name: str  # of the annotation, for messages
    numbers: tuple[float, ...]
    category_id: int
    iscrowd: int  # 0 or 1
    is_bounds: bool = False
    in_pixels: bool = False
    area: float | None = None
    rotation: float | None = 0.0
    segmentation: Any = None


@dataclass(slots=True)
class Box:
    xywh: tuple[float, ...]  # in pixels, clipped to the image
    category_id: int
    iscrowd: int  # 0 or 1
    area: float  # square pixels: of the outline if the file gives it, else of the box


@dataclass
class ListedImage:
    """A well-formed image entry with its boxes. `usable` becomes False if the image must be dropped."""

    image_id: int
    file_name: str
    path: str  # absolute, links resolved; never opened if it is outside the data folder; empty until it is looked for
    width: int  # 0, with the height: not in the annotation file
    height: int
    file_stamp: tuple[int, int] = (0, 0)  # size in bytes, mtime in ns
    written: list[WrittenBox] = field(default_factory=list)
    boxes: list[Box] = field(default_factory=list)  # the valid ones of `written`; empty until `boxes.place_boxes`
    usable: bool = True
    digest: str = ""  # BLAKE2b of the file's content; empty until it is decoded
    decoding: Decoding = PLAIN
    exif: str = "auto"  # as in `formats.source.SplitSource`


@dataclass
class ListedSplit:
    """A well-formed annotation file."""

    name: str
    categories: dict[int, str]
    images: list[ListedImage]
    n_images: int  # entries in the file, valid or not
    n_boxes: int  # likewise, without copies
