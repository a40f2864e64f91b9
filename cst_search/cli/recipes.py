"""Commands about one recipe: `train`, `predict`, `estimate`, `ls`, `cp`."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any

import typer

from cst_search.cli.app import (
    CacheOption,
    DeviceOption,
    HomeOption,
    JsonOption,
    SkipBadOption,
    TrackingOption,
    app,
    cache_bytes_of,
    check_choice,
    err,
    home_of,
    out,
    print_json,
    say,
)


@app.command()
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe: an exported file, or a shipped name.", show_default=False)],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for weights, metrics and recipe.")],
    data: Annotated[str | None, typer.Option("--data", help="COCO-format folder [default: the recipe's].")] = None,
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a field: name=value. Repeatable.")] = None,
    device: DeviceOption = "auto",
    skip_bad: SkipBadOption = False,
    tracking_uri: TrackingOption = None,
    cache_size: CacheOption = None,
    home: HomeOption = None,
    json_: JsonOption = False,
) -> None:
    """Train a recipe at full length and keep the trained tensors."""

    check_choice("--device", device, "auto", "cpu", "cuda")
    from cst_search.training import train as run

    console = err if json_ else out
    result = run(recipe, output, data=data, settings=tuple(settings or ()), device=device, skip_bad=skip_bad,
                 home=home_of(home), tracking_uri=tracking_uri, cache_bytes=cache_bytes_of(cache_size),
                 console=console)  # fmt: skip
    if json_:
        print_json(result)
    if result["outcome"] != "complete":
        err.print(f"cst-search: training ended: {result['reason']}", markup=False, highlight=False)
        raise typer.Exit(1)


@app.command()
def predict(
    run: Annotated[Path, typer.Argument(help="Folder that `train` wrote, or its weights file.", show_default=False)],
    images: Annotated[list[Path], typer.Argument(help="Images, or folders of images.", show_default=False)],
    output: Annotated[Path, typer.Option("--out", "-o", help="Folder for the drawn pictures.")] = Path("predictions"),
    draw: Annotated[bool, typer.Option("--draw/--no-draw", help="Draw boxes, classes and scores into PNGs.")] = True,
    score: Annotated[float, typer.Option("--score", min=0.0, max=1.0, help="Leave out what is below.")] = 0.5,
    device: DeviceOption = "auto",
) -> None:
    """Detect objects with a trained configuration: JSON on stdout, pictures in a folder."""

    check_choice("--device", device, "auto", "cpu", "cuda")
    from cst_search.inference import predict as run_predict

    print_json(run_predict(run, images, output if draw else None, score=score, device=device))


@app.command()
def estimate(
    recipe: Annotated[str, typer.Option("--recipe", help="A shipped name or a YAML file.")] = "resnet50",
    settings: Annotated[list[str] | None, typer.Option("--set", help="Change a value: name=value. Repeatable.")] = None,
    n_classes: Annotated[int, typer.Option("--classes", min=1, max=100_000, help="Classes without background.")] = 80,
    max_boxes: Annotated[int, typer.Option("--max-boxes", min=1, max=100_000, help="Most boxes in an image.")] = 100,
    fit: Annotated[
        str | None, typer.Option("--fit", help="Also what fits into this memory, such as 6GB, method by method.")
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", help='Likewise for a card: "RTX 3060 12GB", T4, "A100 40GB" ...')
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", help="Also methods side by side, such as cst,head,full (no list: all).")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """What training a recipe will need, and what fits into a memory, before it runs. No GPU is used."""
    from cst_search.config import apply_settings, load_recipe, parse_settings
    from cst_search.devices import find_card, memory_budget
    from cst_search.fit import compare_methods, method_names, what_fits

    configured = apply_settings(load_recipe(recipe), settings or (), recipe)
    card = None if device is None else find_card(device)
    budget = memory_budget(fit, card)

    from cst_search import estimates
    from cst_search.memory import predict, worst_input
    from cst_search.petl import METHODS, get_method

    compared = None if compare is None else method_names(compare, tuple(METHODS))

    def guess(wanted: Any) -> Any:
        return predict(wanted, n_classes, worst_input(wanted, max_boxes=max_boxes))

    def needed_bytes(wanted: Any) -> int:
        return int(guess(wanted).device_bytes)

    with err.status("predicting ...") if err.is_terminal else nullcontext():
        predicted = guess(configured)
        rows = None if compared is None else compare_methods(configured, compared, guess)
        fitted = None if budget is None else what_fits(configured, tuple(METHODS), budget, needed_bytes)
    if json_:
        options = get_method(configured.method).make_options(configured.options)
        shown = {"method": configured.method} | {f"{configured.method}.{k}": v for k, v in vars(options).items()}
        shown |= {key: getattr(configured, key) for key in parse_settings(settings or ()) if "." not in key}
        print_json(estimates.report(predicted, shown, rows, fitted, card))
        return
    for part in estimates.tables(recipe, configured, predicted, rows, fitted, card):
        out.print(part)


@app.command()
def ls(json_: JsonOption = False) -> None:
    """Shipped recipes and search spaces."""
    from cst_search import catalog

    found = {kind: catalog.names(kind) for kind in ("trials", "search_spaces")}
    if json_:
        print_json(found)
        return
    for kind, label in (("trials", "recipes"), ("search_spaces", "search spaces")):
        say(f"{label}:")
        for name in found[kind]:
            first = catalog.shipped(kind, name).read_text(encoding="utf-8").splitlines()[0]  # type: ignore[arg-type]
            say(f"  {name:<12} {first.lstrip('# ')}")


@app.command()
def cp(
    name: Annotated[str, typer.Argument(help="A shipped recipe or search space.", show_default=False)],
    target: Annotated[Path, typer.Argument(help="File or folder.")] = Path("."),
    force: Annotated[bool, typer.Option("--force", help="Overwrite.")] = False,
) -> None:
    """Copy a shipped recipe or search space, to change it."""
    import shutil

    from cst_search import catalog
    from cst_search.errors import ConfigError

    kinds = [kind for kind in ("trials", "search_spaces") if name in catalog.names(kind)]
    if not kinds:
        known = [n for kind in ("trials", "search_spaces") for n in catalog.names(kind)]
        raise ConfigError(f"nothing shipped is called {name!r}; there are {', '.join(known)}")
    path = target / f"{name}.yaml" if target.is_dir() else target
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; choose another name or give --force")
    try:
        shutil.copyfile(catalog.shipped(kinds[0], name), path)  # type: ignore[arg-type]
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    say(f"{path}")
