"""Terminal tables of a data set's figures (`data.statistics.describe`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text


def split_table(figures: Mapping[str, Any]) -> Table:
    """Return one row per split."""
    table = Table(title="Splits", title_justify="left", title_style="bold")
    table.add_column("split")
    for name in ("images", "boxes", "crowds", "images without boxes", "boxes per image: least, median, most"):
        table.add_column(name, justify="right")
    for name, split in figures["splits"].items():
        least, middle, most = split["boxes_per_image"]
        counts = (str(split[key]) for key in ("n_images", "n_boxes", "n_crowd", "n_empty"))
        table.add_row(name, *counts, f"{least}, {middle:g}, {most}")
    return table


def class_table(figures: Mapping[str, Any]) -> Table:
    """Return one row per class, in the order of the labels."""
    splits = list(figures["splits"])
    table = Table(title="Classes", title_justify="left", title_style="bold")
    table.add_column("class")
    for name in (*(f"{split} boxes (images)" for split in splits), "median side", "share of the image"):
        table.add_column(name, justify="right")
    for row in figures["classes"]:
        counts = [f"{row['n_boxes'][split]} ({row['n_images'][split]})" for split in splits]
        known = row["median_side_px"] is not None
        sizes = (f"{row['median_side_px']:.0f} px", f"{100 * row['median_share']:.2g} %") if known else ("", "")
        table.add_row(Text(row["name"]), *counts, *sizes)
    return table


def size_line(figures: Mapping[str, Any]) -> str:
    """Return the image sizes in words, the most frequent first."""
    sizes = [f"{size['width']}x{size['height']} ({size['n_images']})" for size in figures["image_sizes"]]
    more = figures["n_image_sizes"] - len(sizes)
    return f"image sizes: {', '.join(sizes) or 'none'}{f', and {more} more' if more else ''}"
