"""Compare the images of all splits with their entries: which picture the boxes lie on, sizes, grey values.

A label tool in a browser draws boxes on the picture as its EXIF orientation shows it; others, on the picture as stored.
The size in the annotation file tells which, unless the turn keeps the size (180 degrees, mirrored, square). Such images
follow the others of the data set; where these are silent or disagree, the user is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from cst_search.data.decoding import FULL_RANGE, UPRIGHT
from cst_search.data.options import ReadOptions
from cst_search.data.pixels import BadImage, ImageFacts, inspect_images
from cst_search.data.validation.findings import Findings
from cst_search.data.validation.listed import ListedImage, ListedSplit
from cst_search.data.validation.swapped_sizes import settle_swapped


class _Checked(NamedTuple):
    split: str
    image: ListedImage
    facts: ImageFacts


def check_images(
    listed: Mapping[str, ListedSplit], options: ReadOptions, cache: Path | None, faults: Findings, notes: Findings,
    *, decode: bool,
) -> int:  # fmt: skip
    """Read the image files, and give every entry the size of its picture and how it is decoded.

    Args:
        decode: see `pixels.inspect_image`.

    Returns:
        The number of files that the cache knows.
    """
    usable = [(split.name, image) for split in listed.values() for image in split.images if image.usable]
    for _, image in usable if options.sizes == "image" else ():
        image.width = image.height = 0  # as if they were missing
    stamps = {image.path: image.file_stamp for _, image in usable}
    facts, n_from_cache, saved = inspect_images(stamps, cache, options, decode=decode)
    if not saved:
        notes.add("cache", next(iter(listed)), cache)
    found = []
    for name, image in usable:
        fact = facts[image.path]
        if isinstance(fact, BadImage):
            faults.add(fact.kind, name, f"{image.file_name} ({fact.why})")
            image.usable = False
        else:
            found.append(_Checked(name, image, fact))
    for name, split in listed.items():
        _settle_swapped(name, [checked for checked in found if checked.split == name], split, options, faults, notes)
    found = [checked for checked in found if checked.image.usable]
    white = _white_levels(found, options, faults)
    others_say = picture_of_set((image.width, image.height, fact) for _, image, fact in found)
    for checked in found:
        _settle(checked, options, others_say, white, faults, notes)
    return n_from_cache


def _settle_swapped(
    name: str, found: Iterable[_Checked], split: ListedSplit, options: ReadOptions, faults: Findings, notes: Findings
) -> None:
    """Settle the sizes that are swapped in the annotation file and not by an EXIF orientation."""
    swapped = [
        (image, facts.size("stored"))
        for _, image, facts in found
        if facts.orientation == UPRIGHT
        and image.width != image.height
        and (image.height, image.width) == facts.size("stored")
    ]
    settle_swapped(name, swapped, split.n_images, options, faults, notes)


# --- which picture ----------------------------------------------------------------------------------------------------


def picture_of(width: int, height: int, facts: ImageFacts) -> str | None:
    """Return the picture, ``shown`` or ``stored``, that has the size of the annotation file; None: both or neither."""
    fits = [picture for picture in ("shown", "stored") if facts.size(picture) == (width, height)]
    return fits[0] if len(fits) == 1 else None


def picture_of_set(images: Iterable[tuple[int, int, ImageFacts]]) -> str | None:
    """Return the picture that the sizes of a data set's images agree on; None: they are silent or disagree.

    Args:
        images: width and height in the annotation file, and the facts of each image.
    """
    said = {picture_of(*image) for image in images} - {None}
    return said.pop() if len(said) == 1 else None


def _settle(
    checked: _Checked, options: ReadOptions, others_say: str | None, white: Mapping[str, float], faults: Findings,
    notes: Findings,
) -> None:  # fmt: skip
    """Decide the size and decoding of one image; it becomes unusable if that is not possible."""
    name, image, facts = checked
    # a script may write the stored size beside boxes that were drawn on the picture as shown, but not the reverse
    pictures = ("stored",) if options.exif == "stored" else ("shown", "stored")
    if image.width and (image.width, image.height) not in map(facts.size, pictures):
        faults.add("image-size", name, f"{image.file_name} ({_sizes(image, facts)})")
        image.usable = False
        return
    rule = options.exif if options.exif != "auto" else image.exif
    said = rule if rule != "auto" else picture_of(image.width, image.height, facts) or others_say
    if facts.orientation != UPRIGHT and said is None:
        faults.add("exif-unclear", name, f"{image.file_name} (orientation {facts.orientation})")
        image.usable = False
        return
    picture = said or "stored"
    if facts.orientation != UPRIGHT:
        notes.add(f"exif-{picture}", name, image.file_name)
    if not image.width:
        notes.add("image-size-missing", name, image.file_name)
    if facts.truncated:
        notes.add("image-cut-off", name, image.file_name)
    if facts.transparent:
        notes.add("image-transparent", name, image.file_name)
    if facts.depth:
        notes.add("grey-scaled", name, f"{image.file_name} (white is {white[facts.depth]:g})")
    image.width, image.height = facts.size(picture)
    image.decoding = facts.decoding(picture, white.get(facts.depth, 0.0))
    image.digest = facts.digest


def _sizes(image: ListedImage, facts: ImageFacts) -> str:
    stored = facts.size("stored")
    text = f"says {image.width}x{image.height}, is {stored[0]}x{stored[1]}"
    if facts.orientation != UPRIGHT and (image.width, image.height) == facts.size("shown"):
        return f"{text} and with its EXIF orientation as listed: --exif shown"
    if facts.orientation != UPRIGHT:
        return f"{text}, has an EXIF orientation"
    return f"{text}: width and height are swapped" if (image.height, image.width) == stored else text


# --- grey scale of more than 8 bits -----------------------------------------------------------------------------------


def _white_levels(found: Iterable[_Checked], options: ReadOptions, faults: Findings) -> dict[str, float]:
    """Return the grey value that becomes white, by depth, and collect a fault where the values leave it open."""
    deep = [checked for checked in found if checked.facts.depth]
    levels = {}
    for depth in {checked.facts.depth for checked in deep}:
        peak = max(checked.facts.peak for checked in deep if checked.facts.depth == depth)
        level = white_level(depth, peak, options)
        for name, image, facts in deep if level is None else ():
            if facts.depth == depth:
                faults.add("grey-range", name, f"{image.file_name} (up to {facts.peak:g}; {_advice(depth, peak)})")
        levels[depth] = level or peak or 1.0
    return levels


def white_level(depth: str, peak: float, options: ReadOptions) -> float | None:
    """Return the grey value that becomes white, or None if the values leave it open.

    Without `ReadOptions.white_level` it is the end of the format's range (65535; 1 or 255 for floats), so that one
    value means one brightness in every image, those of `predict` included. Cameras of 10 to 14 bits use a small part of
    that range and would be almost black, so whole numbers must reach its upper half.

    Args:
        depth: ``int`` or ``float``.
        peak: largest value of all images.
    """
    if options.white_level is not None:
        return options.white_level
    if depth == "float":
        return next((end for end in (1.0, 255.0) if peak <= end), None)
    return FULL_RANGE if FULL_RANGE / 2 < peak <= FULL_RANGE else None


def _advice(depth: str, peak: float) -> str:
    level = 2 ** int(peak).bit_length() - 1 if depth == "int" and peak <= FULL_RANGE else peak
    return f"--white-level {level:g}"
