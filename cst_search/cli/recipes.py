"""Commands about one recipe: `train`, `predict`, `estimate`, `ls`, `cp`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from cst_search.cli import completion
from cst_search.cli.app import (
    BEFORE,
    DETECTORS,
    CacheOption,
    DeviceOption,
    HomeOption,
    JsonOption,
    QuietOption,
    SettingsOption,
    SkipBadOption,
    TrackingOption,
    app,
    console_of,
    err,
    loading,
    out,
    print_json,
    say,
)
from cst_search.cli.options import launch_option, takes
from cst_search.commands.options import ReadingOptions, parse_cache
from cst_search.config.catalog import home_of
from cst_search.errors import ConfigError
from cst_search.trial.result import Outcome
from cst_search.units import parse_count
from cst_search.visible import in_line

_MOST_LINES = 20  # images that `predict` names on a terminal


@app.command(rich_help_panel=DETECTORS)
@takes(ReadingOptions)
def train(
    *,
    recipe: Annotated[
        str,
        typer.Argument(
            help="Recipe: an exported file or a shipped name.", show_default=False, autocompletion=completion.recipes
        ),
    ],
    output: Annotated[
        Path, typer.Option("--out", "--output", "-o", metavar="DIR", help="Folder for weights, metrics and recipe.")
    ],
    data: Annotated[
        str | None, typer.Option("--data", metavar="DIR", help="Folder of the data set (default: the recipe's).")
    ] = None,
    settings: SettingsOption = None,
    device: DeviceOption = "auto",
    skip_bad: SkipBadOption = False,
    tracking_uri: TrackingOption = None,
    cache_size: CacheOption = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", metavar="N", min=1, help="CPU threads (default: torch's, one for each core)."),
    ] = None,
    home: HomeOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
    **given: Any,
) -> None:
    """Train a recipe at full length and save the trained weights."""
    console = console_of(json_, quiet)
    with loading(console):
        from cst_search.commands.train import train as run

    result = run(
        recipe, output, data=data, settings=settings or (), device=device, skip_bad=skip_bad, home=home_of(home),
        tracking_uri=tracking_uri, cache_bytes=parse_cache(cache_size),
        reading=ReadingOptions.read(**given), threads=threads, console=console,
    )  # fmt: skip
    if json_:
        print_json(result)
    if result["outcome"] != Outcome.COMPLETE:
        err.print(f"cst-search: training ended: {result['reason']}", markup=False, highlight=False)
        raise typer.Exit(1)


@app.command(rich_help_panel=DETECTORS)
def predict(
    paths: Annotated[
        list[Path],
        typer.Argument(
            metavar="RUN... IMAGE...",
            help="Folders that `train` or `pack` wrote, or weights files; then images, folders of images, or videos.",
            show_default=False,
        ),
    ],
    output: Annotated[
        Path, typer.Option("--out", "--output", "-o", metavar="DIR", help="Folder for drawn pictures or videos.")
    ] = Path("predictions"),
    draw: Annotated[
        bool,
        typer.Option("--draw/--no-draw", help="Draw boxes, classes and scores into copies of the images or videos."),
    ] = True,
    score: Annotated[
        float, typer.Option("--score", metavar="SCORE", min=0.0, max=1.0, help="Minimum score of a reported box.")
    ] = 0.5,
    max_pixels: Annotated[str | None, launch_option("max_pixels")] = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
) -> None:
    """Detect objects with a trained detector, or with several at once, and draw them into a folder.

    On a terminal it shows a line per image; in a pipe, a file or with --json the boxes as JSON.
    """
    with loading():
        from cst_search.commands.video import is_video
        from cst_search.detector.bundle import is_bundle
        from cst_search.trial.inference import predict as predict_one
        from cst_search.trial.multi_inference import predict_tasks, split_runs
        from cst_search.trial.pictures import SHEET

    runs, images = split_runs(paths)
    several = len(runs) > 1 or is_bundle(runs[0])
    limit = None if max_pixels is None else parse_count(max_pixels)
    if any(map(is_video, images)):
        if several or not all(map(is_video, images)):
            raise ConfigError("a video takes one run, and no image beside it; use a command for each")
        _predict_videos(runs[0], images, output if draw else None, score=score, device=device, max_pixels=limit)
        return
    with err.status("loading ...") if err.is_terminal else nullcontext() as status:
        options: dict[str, Any] = {
            "score": score,
            "device": device,
            "max_pixels": limit,
            "progress": None if status is None else lambda done, n: status.update(f"{done} of {n} images"),
        }
        folder = output if draw else None
        results = predict_tasks(runs, images, folder, **options) if several else predict_one(
            runs[0], images, folder, **options
        )  # fmt: skip
    print_json(results) if json_ or not out.is_terminal else _say_detections(results)
    found = [one for result in results for one in (result["tasks"].values() if several else [result])]
    if draw:
        sheet = f"; {SHEET} {'in each ' * several}shows them side by side" if len(results) > 1 else ""
        where = f"{output}, a folder for each task" if several else str(output)
        err.print(f"{len(found)} picture(s) in {where}{sheet}", markup=False, highlight=False, soft_wrap=True)
    _say_empty(found, "picture" if several else "image", score)


def _say_empty(found: Sequence[Mapping[str, Any]], what: str, score: float) -> None:
    n_empty = sum(not one["detections"] for one in found)
    if n_empty:
        err.print(f"{n_empty} of {len(found)} {what}(s) have nothing of --score {score:g} or more", highlight=False)


def _say_detections(results: Sequence[Mapping[str, Any]]) -> None:
    """Print a line per image with classes and scores, for the first images: all boxes of a folder flood a terminal."""
    lines = [
        f"{result['image']}{f' ({task})' if task else ''}: "
        + (", ".join(f"{each['class']} {each['score']:.2f}" for each in one["detections"]) or "nothing")
        for result in results
        for task, one in result.get("tasks", {"": result}).items()
    ]
    for line in lines[:_MOST_LINES]:
        say(in_line(line))
    if len(lines) > _MOST_LINES:
        say(f"... and {len(lines) - _MOST_LINES} more; --json has all, with boxes")


def _predict_videos(run: Path, videos: Sequence[Path], output: Path | None, **options: Any) -> None:
    """Print a line of JSON per frame, at once: a video may be longer than memory is large."""
    from cst_search.commands.video import predict_videos

    n_frames, copies = 0, dict[str, None]()
    with err.status("loading ...") if err.is_terminal else nullcontext() as status:
        if status is not None:
            options["progress"] = lambda done, n: status.update(f"{done} of {n or 'unknown'} frames")
        for found in predict_videos(run, videos, output, **options):
            typer.echo(json.dumps(found))
            n_frames += 1
            copies[found["copy"]] = None
    where = f" in {', '.join(copies)}" if output is not None else ""
    err.print(f"{n_frames} frame(s){where}", markup=False, highlight=False, soft_wrap=True)


FitOption = Annotated[
    str | None,
    typer.Option(
        "--fit",
        metavar="SIZE",
        help="Also show the largest settings of each method that fit into this memory, e.g. 6GB.",
    ),
]
CardOption = Annotated[
    str | None,
    typer.Option(
        "--device",
        metavar="GPU",
        help='Predict for a GPU by name and show what fits on it: "RTX 3060 12GB", T4 ...',
    ),
]
CompareOption = Annotated[
    str | None,
    typer.Option(
        "--compare",
        metavar="METHOD,...",
        help="Also compare methods side by side, e.g. cst,head,full (without a list: all).",
        autocompletion=completion.methods,
    ),
]
TasksOption = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        metavar="N,...",
        help="Also show storage, peak memory and operations of this many detectors at inference, e.g. 1,5,20.",
    ),
]


@app.command(rich_help_panel=BEFORE)
def estimate(
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            metavar="RECIPE",
            help="Recipe: a shipped name or a YAML file.",
            autocompletion=completion.recipes,
        ),
    ] = "resnet50",
    settings: SettingsOption = None,
    n_classes: Annotated[
        int, typer.Option("--classes", metavar="N", min=1, max=100_000, help="Number of classes, without background.")
    ] = 80,
    max_boxes: Annotated[
        int, typer.Option("--max-boxes", metavar="N", min=1, max=100_000, help="Maximum number of boxes in an image.")
    ] = 100,
    fit: FitOption = None,
    device: CardOption = None,
    compare: CompareOption = None,
    tasks: TasksOption = None,
    json_: JsonOption = False,
) -> None:
    """Predict the memory and parameters that training a recipe needs, and what fits on a GPU. Needs no GPU itself."""
    from cst_search.commands import estimate as estimates

    with err.status("predicting ...") if err.is_terminal else nullcontext():
        found = estimates.estimate(
            recipe,
            settings or (),
            n_classes=n_classes,
            max_boxes=max_boxes,
            fit=fit,
            device=device,
            compare=compare,
            tasks=tasks,
        )
    if json_:
        print_json(found.report())
        return
    for part in estimates.tables(found):
        out.print(part)


@app.command(rich_help_panel=BEFORE)
def ls(json_: JsonOption = False) -> None:
    """List shipped recipes, search spaces and detectors, and methods, detectors and formats of other packages."""
    from cst_search import plugins
    from cst_search.config import catalog
    from cst_search.config.recipe import COCO_DETECTORS, DETECTORS

    found = {kind: catalog.names(kind) for kind in ("trials", "search_spaces")}
    others = [plugin for kind in plugins.KINDS for plugin in plugins.found(kind)]
    if json_:
        names = ("kind", "name", "package", "version", "value")
        plugged = [{name: getattr(plugin, name) for name in names} for plugin in others]
        print_json(found | {"detectors": list(DETECTORS), "plugins": plugged})
        return
    for kind, label in (("trials", "recipes"), ("search_spaces", "search spaces")):
        say(f"{label}:")
        for name in found[kind]:
            first = catalog.shipped(kind, name).read_text(encoding="utf-8").splitlines()[0]  # type: ignore[arg-type]
            say(f"  {name:<12} {first.lstrip('# ')}")
    say("detectors:")
    for name in DETECTORS:
        say(f"  {name:<13} weights: COCO on resnet50 (torchvision's {COCO_DETECTORS[name]}), IMAGENET on any ResNet")
    if others:
        say("plug-ins (`cst-search doctor` tries them):")
        for plugin in others:
            say(f"  {plugin.name:<12} {plugin.kind.removesuffix('s')} of {plugin.source} ({plugin.value})")


@app.command(rich_help_panel=BEFORE)
def cp(
    name: Annotated[
        str,
        typer.Argument(
            help="Name of a shipped recipe or search space.", show_default=False, autocompletion=completion.shipped
        ),
    ],
    target: Annotated[Path, typer.Argument(help="File or folder to write to.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing file.")] = False,
    json_: JsonOption = False,
) -> None:
    """Copy a shipped recipe or search space, to edit it."""
    import shutil

    from cst_search.config import catalog
    from cst_search.errors import did_you_mean

    kinds = [kind for kind in ("trials", "search_spaces") if name in catalog.names(kind)]
    if not kinds:
        known = [n for kind in ("trials", "search_spaces") for n in catalog.names(kind)]
        near = did_you_mean(name, known)
        raise ConfigError(f"nothing shipped is called {name!r}; there are {', '.join(known)}{near}")
    path = target / f"{name}.yaml" if target.is_dir() else target
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; choose another name or give --force")
    try:
        shutil.copyfile(catalog.shipped(kinds[0], name), path)  # type: ignore[arg-type]
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    if json_:
        print_json({"name": name, "kind": kinds[0], "path": str(path)})
    else:
        say(f"{path}")
