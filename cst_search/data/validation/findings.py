"""Faults and notes of a data set, collected by kind and split, and the report that lists them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

# Fault -> (its text in the report, True if --skip-bad may drop it), in the order of the report.
FAULTS: dict[str, tuple[str, bool]] = {
    "annotations": ("the annotation file cannot be used", False),
    "annotations-unreadable": ("the annotation file of an image cannot be read", True),
    "annotations-missing": ("image is listed, and has no annotation file", True),
    "category-entry": ("category without a whole-number id and a name", False),
    "category-id-twice": ("two categories with one id", False),
    "category-name-twice": ("two categories with one name", False),
    "categories-differ": ("class with boxes that the training split does not have", False),
    "image-entry": (
        "image entry without a whole-number id and a file_name, or with a size that is no number",
        True,
    ),
    "image-id-twice": ("two images with one id", True),
    "path-outside": ("file_name leaves the image folder", True),
    "file-name-ambiguous": ("file_name may mean several files, or several names one file", True),
    "image-missing": ("image file is missing", True),
    "image-unreadable": ("image cannot be decoded", True),
    "image-truncated": ("image file is cut off at its end; --truncated use reads what is there", True),
    "image-too-large": ("image has more pixels than max_pixels allows, as a decompression bomb has", True),
    "image-size": ("image is not as large as the annotation file says", True),
    "sizes-swapped": ("images have width and height swapped in the annotation file", False),
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
    "image-unknown": ("annotation of an image that is not listed", True),
    "category-unknown": ("annotation of a category that is not listed", True),
    "box-malformed": ("bbox is not four finite numbers", True),
    "box-no-area": ("box has no area", True),
    "box-outside": ("box is outside its image for the most part", True),
    "box-form": ("boxes are in another form than they are read in", False),
    "box-rotated": ("boxes are rotated; the detectors find upright ones", False),
    "crowd-most": (
        "most objects are crowds (iscrowd 1; difficult in Pascal VOC), nothing to learn from",
        False,
    ),
    "empty-split": ("no image or no box is left", False),
}
FIXED = tuple(kind for kind, (_, can_be_skipped) in FAULTS.items() if not can_be_skipped)
NOTES: dict[str, str] = {
    "number-text": "number written as text; it was read as a number",
    "class-name-number": "class name is a number; it was read as a text",
    "class-matched": "class with another id or spelling than in the training split; it was matched by name",
    "class-only-here": "class without boxes that the training split does not have; it was left out",
    "annotation-twice": "annotation listed twice; it was read once",
    "annotation-id-twice": "annotation id used again; ids of annotations are not used",
    "box-of-segmentation": "no bbox; the box around the segmentation was taken",
    "box-clipped": "box hangs over the edge by at most 1 px; it was clipped",
    "box-cut": "box hangs over the edge by more, at least half of it is inside; it was clipped",
    "box-tiny": "box is smaller than a pixel",
    "box-form-unsure": "boxes may be in another form than x, y, width, height",
    "box-corner": "all boxes are in the upper left quarter of their images; are the coordinates right?",
    "crowd": "objects are crowds (iscrowd 1; difficult in Pascal VOC): ignored, neither learned nor counted as missed",
    "crowd-as-objects": "objects with iscrowd 1 are taken as objects",
    "leak": "the same image is in several splits; scores will flatter",
    "file-name-resolved": "no file has this name as it stands; the one file that it fits is used",
    "file-twice": "the same file is listed under several image ids",
    "image-without-boxes": "image without boxes; it is kept",
    "class-without-boxes": "class without a single box in this split",
    "exif-shown": "image is turned by its EXIF orientation, as boxes lie on the picture as shown",
    "exif-stored": "image is not turned by its EXIF orientation, as boxes lie on the picture as stored; if they were "
    "drawn in a browser, look at some and give --exif shown",
    "size-swapped": "image with width and height swapped in the annotation file; those of the image are used",
    "image-size-missing": "width and height are not in the annotation file, or not to be read; the image's are used",
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
    "split-left-out": "the split has faults, and nothing here reads it; it was left out",
    "cache": "the list of checked images could not be saved; the next start checks again",
}
# Fault -> what to do about it, where the text does not say it.
REMEDIES: dict[str, str] = {
    "categories-differ": "correct the name, or add the class to the training split",
    "box-form": "say which form it is (xywh: as it stands); `data check DIR --boxes FORM --sheet boxes.png` draws it",
    "sizes-swapped": "if only these numbers are wrong, --sizes image takes those of the images; if the images were "
    "turned after they were annotated, turn them back",
    "box-rotated": "--rotated enclose takes the upright box around each, --rotated ignore the box as not turned",
    "crowd-most": "--crowd as-objects takes them as objects, --crowd ignore leaves them out",
}
N_EXAMPLES = 3  # examples shown per kind of fault
# Share of the images or boxes of a split that --skip-bad may cost before the report warns of it: a box that is left
# out becomes background.
MAX_SKIPPED_SHARE = 0.05


@dataclass(frozen=True)
class Fault:
    """One kind of fault or note in one split."""

    kind: str  # a key of FAULTS or NOTES
    split: str  # train | val | test
    count: int
    examples: tuple[str, ...]  # the first few, printable
    why: str = ""  # of a finding about many at once, which has no examples

    def __str__(self) -> str:
        says = FAULTS[self.kind][0] if self.kind in FAULTS else NOTES[self.kind]
        return f"{self.split:<6}{self.count:>7}  {says} [{self.kind}]: {self.detail}"

    @property
    def detail(self) -> str:
        """The reason, or the first examples."""
        more = ", ..." if self.count > len(self.examples) else ""
        return self.why or ", ".join(self.examples) + more


class Counts(NamedTuple):
    """Images and annotations of a split, as listed and as kept."""

    images: int
    boxes: int
    kept_images: int
    kept_boxes: int

    @property
    def lost_share(self) -> float:
        """Share of images or of boxes that are dropped, whichever is larger, 0..1."""
        return max(
            1 - kept / listed if listed else 0.0
            for kept, listed in ((self.kept_images, self.images), (self.kept_boxes, self.boxes))
        )

    def lost(self) -> str:
        """Return how many are not kept, of how many."""
        images, boxes = self.images - self.kept_images, self.boxes - self.kept_boxes
        return f"{images} of {self.images} images and {boxes} of {self.boxes} boxes"


@dataclass(frozen=True)
class DataReport:
    """Result of the validation. Faults stop the work unless they are skipped; notes never do."""

    faults: tuple[Fault, ...]
    notes: tuple[Fault, ...]
    places: tuple[str, ...]  # "train: annotation file, image folder", one per split
    counts: Mapping[str, Counts]  # by split
    n_from_cache: int = 0  # image files that the cache knows, so they were not decoded

    @property
    def n_images(self) -> int:
        """Number of images listed in all splits."""
        return sum(counts.images for counts in self.counts.values())

    @property
    def n_boxes(self) -> int:
        """Number of annotations listed in all splits."""
        return sum(counts.boxes for counts in self.counts.values())

    @property
    def n_dropped_images(self) -> int:
        return sum(counts.images - counts.kept_images for counts in self.counts.values())

    @property
    def n_dropped_boxes(self) -> int:
        """Number of boxes left out, including those of dropped images."""
        return sum(counts.boxes - counts.kept_boxes for counts in self.counts.values())

    def render(self) -> str:
        """Return a plain-text table with one line per split and kind."""
        n_faults = sum(fault.count for fault in self.faults)
        lines = [f"{self.n_images} images, {self.n_boxes} boxes, {n_faults} {'fault' if n_faults == 1 else 'faults'}"]
        lines += [f"  {place}" for place in self.places]
        if self.faults:
            lines += ["faults:", *(f"  {fault}" for fault in self.faults)]
        if self.notes:
            lines += ["notes:", *(f"  {note}" for note in self.notes)]
        kinds = dict.fromkeys(finding.kind for finding in (*self.faults, *self.notes))
        if remedies := [f"  {kind}: {REMEDIES[kind]}" for kind in kinds if kind in REMEDIES]:
            lines += ["what to do:", *remedies]
        lost = [f"{counts.lost()} of {name}" for name, counts in self.counts.items() if counts.lost_share]
        if lost and not any(fault.kind in FIXED for fault in self.faults):
            lines.append(f"left out: {'; '.join(lost)}")
        return "\n".join(lines)


def refusal(report: DataReport, skip_bad: bool) -> str | None:
    """Return the report with advice if its faults stop the work, else None.

    The advice names causes: an empty split is one only if nothing else is wrong with it. It recommends ``--skip-bad``
    only where that costs little.
    """
    fixed = dict.fromkeys(fault.kind for fault in report.faults if fault.kind in FIXED and fault.kind != "empty-split")
    emptied = [fault.split for fault in report.faults if fault.kind == "empty-split"]
    causes = dict.fromkeys(fault.kind for fault in report.faults if fault.split in emptied and fault.kind not in FIXED)
    if fixed:
        advice = f"Correct these first, --skip-bad cannot leave them out: {', '.join(fixed)}"
    elif causes:
        advice = f"Correct these first, --skip-bad cannot help as it would leave nothing of {' and '.join(emptied)}"
        advice += f": {', '.join(causes)}"
    elif emptied:
        advice = f"--skip-bad cannot help: {' and '.join(emptied)} must have an image with a box"
    elif not report.faults or skip_bad:
        return None
    else:
        advice = _advice_to_skip(report)
    if {fault.split for fault in report.faults} == {"test"}:
        advice += ". A test split is optional: without it, the rest can be used"
    return f"{report.render()}\n{advice}"


def _advice_to_skip(report: DataReport) -> str:
    lost = {name: counts for name, counts in report.counts.items() if counts.lost_share}
    said = "; ".join(f"{counts.lost()} of {name}" for name, counts in lost.items())
    kinds = ", ".join(dict.fromkeys(fault.kind for fault in report.faults))
    if all(counts.lost_share <= MAX_SKIPPED_SHARE for counts in lost.values()):
        return f"Correct them ({kinds}), or leave out the broken images and boxes with --skip-bad: {said}"
    return f"Correct these: {kinds}. --skip-bad would leave out a good part: {said}"


class Findings:
    """Collection of faults or notes by kind and split, in the order in which the kinds are declared."""

    def __init__(self, kinds: Iterable[str]) -> None:
        self._kinds = list(kinds)
        self._found: dict[tuple[str, str], tuple[int, list[str]]] = {}
        self._why: dict[tuple[str, str], str] = {}

    def add(self, kind: str, split: str, example: object) -> None:
        count, examples = self._found.get((split, kind), (0, []))
        if len(examples) < N_EXAMPLES:
            examples.append(_printable(str(example)))
        self._found[split, kind] = (count + 1, examples)

    def add_count(self, kind: str, split: str, count: int, why: str) -> None:
        """Add a finding about many at once, such as all boxes of a split."""
        self._found[split, kind] = (count, [])
        self._why[split, kind] = _printable(why, limit=400)

    def has(self, split: str, kinds: Iterable[str]) -> bool:
        """Return whether a split has a finding of one of some kinds."""
        return any((split, kind) in self._found for kind in kinds)

    def take(self, split: str) -> tuple[Fault, ...]:
        """Remove the findings of a split and return them."""
        taken = tuple(fault for fault in self.collected() if fault.split == split)
        for fault in taken:
            del self._found[split, fault.kind]
        return taken

    def collected(self) -> tuple[Fault, ...]:
        splits = list(dict.fromkeys(split for split, _ in self._found))
        found = sorted(self._found.items(), key=lambda item: (splits.index(item[0][0]), self._kinds.index(item[0][1])))
        return tuple(
            Fault(kind, split, count, tuple(examples), self._why.get((split, kind), ""))
            for (split, kind), (count, examples) in found
        )


def _printable(text: str, limit: int = 160) -> str:
    """Return a name without control characters, as it comes from a file and goes to the terminal."""
    text = "".join(c if c.isprintable() else "?" for c in text[: limit + 1])
    return text if len(text) <= limit else text[: limit - 3] + "..."
