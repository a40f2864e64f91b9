"""Faults and notes of a data set, collected by kind and split, and the report that lists them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Fault -> (its text in the report, True if --skip-bad may drop it), in the order of the report.
FAULTS: dict[str, tuple[str, bool]] = {
    "annotations": ("the annotation file cannot be used", False),
    "annotations-unreadable": ("the annotation file of an image cannot be read", True),
    "annotations-missing": ("image is listed, and has no annotation file", True),
    "category-entry": ("category without a whole-number id and a name", False),
    "category-id-twice": ("two categories with one id", False),
    "category-name-twice": ("two categories with one name", False),
    "categories-differ": ("categories are not those of the first split", False),
    "image-entry": (
        "image entry without a whole-number id and a file_name, or with a size that is no number",
        True,
    ),
    "image-id-twice": ("two images with one id", True),
    "path-outside": ("file_name leaves the image folder", True),
    "image-missing": ("image file is missing", True),
    "image-unreadable": ("image cannot be decoded", True),
    "image-truncated": ("image file is cut off at its end; --truncated use reads what is there", True),
    "image-too-large": ("image has more pixels than max_pixels allows, as a decompression bomb has", True),
    "image-size": ("image is not as large as the annotation file says", True),
    "exif-unclear": (
        "image has an EXIF orientation, and no size says which picture its boxes lie on; give --exif shown (as viewers "
        "turn it) or --exif stored",
        True,
    ),
    "grey-range": (
        "grey values of more than 8 bits, and it is unclear which is white; give --white-level",
        False,
    ),
    "annotation-entry": ("annotation entry of the wrong form", True),
    "annotation-id-twice": ("two annotations with one id", True),
    "image-unknown": ("annotation of an image that is not listed", True),
    "category-unknown": ("annotation of a category that is not listed", True),
    "box-malformed": ("bbox is not four finite numbers", True),
    "box-no-area": ("box has no area", True),
    "box-outside": ("box lies more than 1 px outside its image", True),
    "empty-split": ("no image or no box is left", False),
}
NOTES: dict[str, str] = {
    "box-clipped": "box hangs over the edge by at most 1 px; it was clipped",
    "leak": "the same image is in several splits; scores will flatter",
    "file-twice": "the same file is listed under several image ids",
    "image-without-boxes": "image without boxes; it is kept",
    "class-without-boxes": "class without a single box in this split",
    "exif-shown": "image is turned by its EXIF orientation, as boxes lie on the picture as shown",
    "exif-stored": "image is not turned by its EXIF orientation, as boxes lie on the picture as stored; if they were "
    "drawn in a browser, look at some and give --exif shown",
    "image-size-missing": "the annotation file has no width and height; those of the image are used",
    "image-cut-off": "image file is cut off at its end; what is missing is grey or black",
    "image-transparent": "image has transparent pixels, which are read as opaque in the colour stored under them",
    "grey-scaled": "grey scale of more than 8 bits is scaled to 8",
    "annotations-without-image": "annotation file without an image of its name; it is not used",
    "image-without-annotations": "image without an annotation file; it is not used",
    "corners-from-0": "corners in the XML files are read as positions from 0",
    "corners-from-1": "corners in the XML files are read as numbers of pixels from 1, both in the box",
    "category-of-project": "Roboflow's category with the name of the project is no class; it is left out",
    "split-off": "validation images are split off from train",
    "split-not-saved": "the choice of validation images could not be saved; the next start makes the same one again",
    "cache": "the list of checked images could not be saved; the next start checks again",
}
N_EXAMPLES = 3  # examples shown per kind of fault


@dataclass(frozen=True)
class Fault:
    """One kind of fault or note in one split."""

    kind: str  # a key of FAULTS or NOTES
    split: str  # train | val | test
    count: int
    examples: tuple[str, ...]  # the first few, printable

    def __str__(self) -> str:
        says = FAULTS[self.kind][0] if self.kind in FAULTS else NOTES[self.kind]
        more = ", ..." if self.count > len(self.examples) else ""
        return f"{self.split:<6}{self.count:>7}  {says} [{self.kind}]: {', '.join(self.examples)}{more}"


@dataclass(frozen=True)
class DataReport:
    """Result of the validation. Faults stop the work unless they are skipped; notes never do."""

    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]
    places: tuple[str, ...]  # "train: annotation file, image folder", one per split
    n_images: int  # listed in all splits
    n_boxes: int  # annotations listed in all splits
    n_dropped_images: int = 0  # 0 unless skip_bad
    n_dropped_boxes: int = 0  # boxes of dropped images included; 0 unless skip_bad
    n_from_cache: int = 0  # image files that the cache knows, so they were not decoded

    def render(self) -> str:
        """Return a plain-text table with one line per split and kind."""
        n_faults = sum(fault.count for fault in self.faults)
        lines = [f"{self.n_images} images, {self.n_boxes} boxes, {n_faults} {'fault' if n_faults == 1 else 'faults'}"]
        lines += [f"  {place}" for place in self.places]
        if self.faults:
            lines += ["faults:", *(f"  {fault}" for fault in self.faults)]
        if self.notes:
            lines += ["notes:", *(f"  {note}" for note in self.notes)]
        if self.n_dropped_images or self.n_dropped_boxes:
            lines.append(f"left out: {self.n_dropped_images} images, {self.n_dropped_boxes} boxes")
        return "\n".join(lines)


class Findings:
    """Collection of faults or notes by kind and split, in the order in which the kinds are declared."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self._kinds = list(kinds)
        self._found: dict[tuple[str, str], tuple[int, list[str]]] = {}

    def add(self, kind: str, split: str, example: object) -> None:
        count, examples = self._found.get((split, kind), (0, []))
        if len(examples) < N_EXAMPLES:
            examples.append(_printable(str(example)))
        self._found[split, kind] = (count + 1, examples)

    def collected(self) -> tuple[Fault, ...]:
        splits = list(dict.fromkeys(split for split, _ in self._found))
        found = sorted(self._found.items(), key=lambda item: (splits.index(item[0][0]), self._kinds.index(item[0][1])))
        return tuple(Fault(kind, split, count, tuple(examples)) for (split, kind), (count, examples) in found)


def _printable(text: str, limit: int = 100) -> str:
    """Return a name without control characters, as it comes from a file and goes to the terminal."""
    text = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."
