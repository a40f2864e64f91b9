"""Commands about a data set: `data check`, `data convert`."""

from __future__ import annotations

from pathlib import Path
from shlex import quote
from typing import Annotated, Any

import typer

from cst_search.cli.app import HomeOption, JsonOption, SkipBadOption, data_app, out, print_json, say
from cst_search.cli.options import takes
from cst_search.commands.options import ReadingOptions
from cst_search.config.catalog import home_of

FolderArgument = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the data set.", show_default=False)]


@data_app.command()
@takes(ReadingOptions)
def check(
    *,
    folder: FolderArgument,
    sheet: Annotated[
        Path | None,
        typer.Option(
            "--sheet", metavar="FILE", help="Draw images with their boxes into this new PNG file.", show_default=False
        ),
    ] = None,
    home: HomeOption = None,
    json_: JsonOption = False,
    **given: Any,
) -> None:
    """Show how a data set is understood: layout, classes, counts, sizes, boxes, leaks, faults. Starts no search."""
    from cst_search.commands import data_sets
    from cst_search.report.data_tables import class_table, size_line, split_table

    reading = ReadingOptions.read(**given)
    checked = data_sets.check(folder, reading, home_of(home), sheet)
    if json_:
        print_json(checked.to_dict())
    else:
        say(f"{checked.data.folder}: {checked.figures['format']}")
        out.print(split_table(checked.figures))
        out.print(class_table(checked.figures))
        say(size_line(checked.figures))
        say(checked.report.render())
        if checked.sheet is not None:
            say(f"{checked.n_on_sheet} images with their boxes: {checked.sheet}")
        if "val" in checked.missing:
            say("a search also needs a validation split: --val-fraction 0.2 (recipe field val_fraction) makes one")
        elif checked.missing:
            say("a search also needs a training split")
        elif checked.is_sound and reading == ReadingOptions():  # a search would read it in the same way
            say(f"next:  cst-search launch --data {quote(str(folder))} --budget-mem 6GB")
    if not checked.is_sound:
        raise typer.Exit(2)


@data_app.command()
@takes(ReadingOptions)
def convert(
    *,
    folder: FolderArgument,
    target: Annotated[Path, typer.Argument(metavar="OUT", help="New folder to write.", show_default=False)],
    link: Annotated[bool, typer.Option("--link", help="Make hard links to the images instead of copies.")] = False,
    skip_bad: SkipBadOption = False,
    home: HomeOption = None,
    json_: JsonOption = False,
    **given: Any,
) -> None:
    """Write a data set in this project's layout: train.json, val.json, and the images beside them."""
    from cst_search.commands import data_sets

    reading = ReadingOptions.read(**given)
    data, report = data_sets.convert(folder, target, reading, home_of(home), skip_bad=skip_bad, link=link)
    summary, needed = data.summary(), data_sets.options_to_read(data, reading)
    if json_:
        counts = {name: summary[name] for name in ("n_images", "n_boxes", "n_classes")}
        print_json({"out": str(target.absolute()), **counts, "read_with": needed})
        return
    if report.faults or report.notes:
        say(report.render())
    for split, n_images in summary["n_images"].items():
        say(f"{target / f'{split}.json'}: {n_images} images, {summary['n_boxes'][split]} boxes")
    if needed:
        say(f"read it with {' '.join(needed)}")
