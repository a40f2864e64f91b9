"""Check a data set without a search, and convert it to our layout."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cst_search.commands.options import ReadingOptions
from cst_search.config.recipe import Recipe
from cst_search.data.contact_sheet import draw_sheet
from cst_search.data.dataset import DetectionData, Split, coco_ground_truth, load_data, read_data
from cst_search.data.decoding import UPRIGHT
from cst_search.data.formats import find_splits
from cst_search.data.options import ReadOptions
from cst_search.data.statistics import describe
from cst_search.data.validation.findings import DataReport, Fault
from cst_search.errors import ConfigError


@dataclass(frozen=True)
class Checked:
    """Result of `check`: a data set, its report and its figures.

    Attributes:
        figures: `statistics.describe`, and ``format``.
        missing: splits that a search needs and the folder lacks.
        sheet: the contact sheet, if one was drawn.
        n_on_sheet: images on it.
    """

    data: DetectionData
    report: DataReport
    figures: Mapping[str, Any]
    missing: tuple[str, ...]
    sheet: Path | None = None
    n_on_sheet: int = 0

    @property
    def is_sound(self) -> bool:
        """True if a search with the same options would start on it."""
        return not self.missing and not self.report.faults

    def to_dict(self) -> dict[str, Any]:
        """Return everything as a dict ready for JSON."""
        return {
            "folder": str(self.data.folder),
            "is_sound": self.is_sound,
            "missing_splits": list(self.missing),
            **self.figures,
            "faults": list(map(_finding, self.report.faults)),
            "notes": list(map(_finding, self.report.notes)),
            "sheet": None if self.sheet is None else str(self.sheet),
        }


def _finding(fault: Fault) -> dict[str, Any]:
    return {"kind": fault.kind, "split": fault.split, "count": fault.count, "examples": list(fault.examples),
            "why": fault.why}  # fmt: skip


def read_options(reading: ReadingOptions) -> ReadOptions:
    """Return how data are read without a recipe: its defaults, and what was given."""
    return ReadOptions.of(Recipe(**reading.reading_fields()))


def check(folder: Path, reading: ReadingOptions, home: Path, sheet: Path | None = None) -> Checked:
    """Read a data set, count what is in it, and draw a contact sheet.

    Raises:
        UserError: there is nothing to read, or the sheet cannot be written.
    """
    if sheet is not None and (sheet.suffix.lower() != ".png" or sheet.exists()):
        raise ConfigError(f"--sheet must be a new file that ends with .png; got {sheet}")
    options = read_options(reading)
    data, report = read_data(
        folder, options, skip_bad=False, cache=home / "checked-images.json", need=(), also=("train", "val", "test")
    )
    formats = sorted({source.format for source in find_splits(folder).values()})
    n_on_sheet = 0
    if sheet is not None:
        try:
            n_on_sheet = len(draw_sheet(data, sheet))
        except OSError as error:
            raise ConfigError(f"--sheet {sheet} cannot be written: {error.strerror or error}") from None
    missing = tuple(name for name in ("train", "val") if name not in data.splits)
    return Checked(data, report, {"format": "/".join(formats), **describe(data)}, missing, sheet, n_on_sheet)


def convert(
    folder: Path, out: Path, reading: ReadingOptions, home: Path, *, skip_bad: bool, link: bool
) -> tuple[DetectionData, DataReport]:
    """Write a data set in our layout: ``train.json``, ``val.json`` (``test.json``) and a folder of images for each.

    Args:
        out: new folder. It appears when all of it is written.
        link: make hard links instead of copies of the images.

    Returns:
        What was written, and the report of what was read.

    Raises:
        UserError: the data set has faults, or the folder exists or cannot be written.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"OUT must be a new folder, as nothing is overwritten; {out} exists")
    data, report = load_data(
        folder, read_options(reading), skip_bad=skip_bad, cache=home / "checked-images.json", also=("test",)
    )
    part = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        for name, split in data.splits.items():
            _write_split(split, part, name, link)
        os.replace(part, out)
    except OSError as error:
        shutil.rmtree(part, ignore_errors=True)
        remedy = "; leave out --link, which needs both folders on one file system" if link else ""
        raise ConfigError(f"{out} cannot be written: {error.strerror or error}{remedy}") from None
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return data, report


def _write_split(split: Split, out: Path, name: str, link: bool) -> None:
    """Write one annotation file and its images, which keep their names below the folder that all of them share."""
    (out / name).mkdir()
    document = coco_ground_truth(split)
    root = os.path.commonpath([entry.path.parent for entry in split.images])
    for entry, listed in zip(split.images, document["images"], strict=True):
        listed["file_name"] = entry.path.relative_to(root).as_posix()
        target = out / name / listed["file_name"]
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():  # else it is listed twice
            os.link(entry.path, target) if link else shutil.copyfile(entry.path, target)
    (out / f"{name}.json").write_text(json.dumps(document))


def options_to_read(data: DetectionData, reading: ReadingOptions) -> list[str]:
    """Return the options that a converted set must be read with: what its files cannot say."""
    given = reading.reading_fields()
    kept = ("exif", "max_pixels", "truncated", "white_level")
    needed: dict[str, Any] = {name: given[name] for name in kept if name in given}
    if needed.get("exif", "auto") == "auto":  # the size alone does not tell a turn by 180 degrees
        needed.pop("exif", None)
        if any(entry.decoding.turn != UPRIGHT for split in data.splits.values() for entry in split.images):
            needed["exif"] = "shown"
    # answers to what the boxes themselves leave open, and still do
    needed |= {name: value for name, value in (("crowd", "ignore"), ("boxes", "xywh")) if given.get(name) == value}
    return [f"--{name.replace('_', '-')} {value}" for name, value in needed.items()]
