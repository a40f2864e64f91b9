"""Commands about several tasks together: `allocate`, `pack`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cst_search.cli.app import (
    DETECTORS,
    CacheOption,
    DeviceOption,
    HomeOption,
    JsonOption,
    SettingsOption,
    SkipBadOption,
    StorageOption,
    StudiesArgument,
    TrackingOption,
    app,
    console_of,
    open_study,
    out,
    print_json,
    say,
)
from cst_search.errors import check_choice

if TYPE_CHECKING:
    from rich.console import Console

    from cst_search.commands.allocate import Allocation
    from cst_search.commands.train_plan import TrainedPlan
    from cst_search.config.recipe import Recipe
    from cst_search.detector.bundle import Bundle
    from cst_search.study.allocation import Bounds, Plan
    from cst_search.study.records import StudyInfo


BudgetStorageOption = Annotated[
    str | None,
    typer.Option(
        "--budget-storage", metavar="SIZE", help="Storage of the trained tensors of all tasks together, e.g. 20MB."
    ),
]
BudgetFlopsOption = Annotated[
    str | None,
    typer.Option(
        "--budget-flops",
        metavar="FLOPS",
        help="Operations per image for all tasks together, e.g. 200GFLOP; a shared pass counts once.",
    ),
]
WeightOption = Annotated[
    list[str] | None,
    typer.Option("--weight", metavar="STUDY=NUMBER", help="Weight of a study in the mean, e.g. chess=2. Repeatable."),
]


@app.command(rich_help_panel=DETECTORS)
def allocate(
    studies: StudiesArgument,
    budget_storage: BudgetStorageOption = None,
    budget_flops: BudgetFlopsOption = None,
    maximise: Annotated[
        str,
        typer.Option(
            "--maximise", metavar="mean|worst", help="mean: mean mAP over the tasks; worst: lowest mAP of any task."
        ),
    ] = "mean",
    weight: WeightOption = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "--out", "-o", metavar="DIR",
            help="Folder for the recipes, one for each study (with --train default: plan)."
        ),
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train the recipes (each with --set), and pack them into a bundle.")
    ] = False,
    settings: SettingsOption = None,
    device: DeviceOption = "auto",
    skip_bad: SkipBadOption = False,
    cache_size: CacheOption = None,
    home: HomeOption = None,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    json_: JsonOption = False,
) -> None:  # fmt: skip
    """Divide a budget among tasks: the best choice of one point from each study, solved exactly."""
    from cst_search.commands import allocate as command

    check_choice("--maximise", maximise, command.GOALS)
    names = list(dict.fromkeys(studies))
    weights = command.read_weights(weight or (), names)
    bounds = command.parse_bounds(budget_storage, budget_flops)
    infos = [open_study(name, home, storage).info() for name in names]
    found = command.allocate_studies(infos, bounds, maximise, weights)  # type: ignore[arg-type]
    folder = output or (Path("plan") if train else None)
    files = {} if folder is None else command.write_recipes(infos, found.plan, folder)
    report = command.plan_report(infos, found, maximise, files)  # type: ignore[arg-type]
    if not json_:
        _show_plan(infos, found, bounds, maximise)
    if train and folder is not None:
        trained = _train(files, folder, settings or (), console_of(json_), device=device, skip_bad=skip_bad,
                         cache_size=cache_size, home=home, tracking_uri=tracking_uri)  # fmt: skip
        report |= _trained_report(trained)
    if json_:
        print_json(report)
    elif train:
        say(f"next:  cst-search predict {quote(str(trained.bundle.folder))} IMAGES")
    else:
        from cst_search.commands.next_steps import study_flags
        from cst_search.config.catalog import home_of

        for i, (name, path) in enumerate(files.items()):
            say(f"{'       ' if i else 'next:  '}cst-search train {quote(str(path))} --out {quote(name)}"
                f"{study_flags(home_of(home))}")  # fmt: skip


def _show_plan(infos: Sequence[StudyInfo], found: Allocation, bounds: Bounds, goal: str) -> None:
    from cst_search.report.tables import plan_table
    from cst_search.units import format_bytes, format_flops

    def takes(plan: Plan, of_storage: int | None = None, of_flops: int | None = None) -> str:
        words = format_bytes(plan.total_bytes) + (f" of {format_bytes(of_storage)}" if of_storage else "")
        if bounds.flops is None:
            return words
        return f"{words}, {format_flops(plan.total_flops)}" + (f" of {format_flops(of_flops)}" if of_flops else "")

    out.print(plan_table(infos, found.plan))
    say(f"{goal} map {found.plan.value:.3f} in {takes(found.plan, bounds.storage_bytes, bounds.flops)}, "
        f"plus the detector that they start from")  # fmt: skip
    for of, better in found.better.items():
        what = "storage" if of == "storage_bytes" else "operations"
        more = f"the next better plan by more {what}" if len(found.better) > 1 else "the next better plan"
        if better is not None:
            say(f"{more}: {better.value:.3f} in {takes(better)}")
        else:
            say(f"more {what}{' alone' if len(found.better) > 1 else ''} would not help")


def _trained_report(trained: TrainedPlan) -> dict[str, Any]:
    bundle = trained.bundle
    runs = {
        name: {"run": str(run), "bytes": bundle.tasks[name]["bytes"], **trained.metrics[name]["final"]}
        for name, run in trained.runs.items()
    }
    return {"bundle": {"folder": str(bundle.folder), "total_bytes": bundle.total_bytes()}, "trained": runs}


def _train(
    files: Mapping[str, Path], folder: Path, settings: Sequence[str], console: Console, *, device: str, skip_bad: bool,
    cache_size: str | None, home: Path | None, tracking_uri: str | None,
) -> TrainedPlan:  # fmt: skip
    from cst_search.commands.options import ReadingOptions, parse_cache
    from cst_search.commands.output import line_printer
    from cst_search.commands.train import train
    from cst_search.commands.train_plan import train_plan
    from cst_search.config.catalog import home_of

    def train_one(recipe: Recipe, run: Path) -> dict[str, Any]:
        return train(
            recipe, run, data=None, settings=(), device=device, skip_bad=skip_bad, home=home_of(home),
            tracking_uri=tracking_uri, cache_bytes=parse_cache(cache_size), reading=ReadingOptions(), is_alone=False,
            console=console,
        )  # fmt: skip

    return train_plan(files, settings, folder, train_one, line_printer(console))


@app.command(rich_help_panel=DETECTORS)
def pack(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...",
            help="Folders that `train` wrote; each becomes a task of that name. With --mlflow or --onnx also a bundle.",
            show_default=False,
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "--out", "-o", metavar="DIR",
            help="New folder, or an existing bundle to add to (default: bundle; with --mlflow or --onnx none).",
            show_default=False,
        ),
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option("--drop", metavar="TASK", help="Task to remove first. Repeatable.")
    ] = None,
    mlflow: Annotated[
        Path | None,
        typer.Option("--mlflow", metavar="DIR", help="New folder for one MLflow model of all tasks."),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option("--onnx", metavar="FILE", help="New ONNX file with all tasks; needs the extra `onnx`."),
    ] = None,
    json_: JsonOption = False,
) -> None:  # fmt: skip
    """Pack trained detectors into one folder: the base they share once, and what each one trained."""
    from contextlib import nullcontext

    from cst_search.commands import pack as command

    for option, path in (("--mlflow", mlflow), ("--onnx", onnx)):
        if path is not None:
            command.check_new(option, path)
    is_kept = output is not None or bool(drop) or (mlflow is None and onnx is None)
    folder = output or Path("bundle")
    with nullcontext(command.pack(runs or (), folder, drop or ())) if is_kept else command.opened(runs or ()) as bundle:
        if onnx is not None:
            command.write_onnx_file(bundle, onnx)
        if mlflow is not None:
            command.write_mlflow_model(bundle, mlflow)
        written = {"bundle": folder if is_kept else None, "mlflow": mlflow, "onnx": onnx}
        _say_packed(bundle, {name: path for name, path in written.items() if path is not None}, json_)


def _say_packed(bundle: Bundle, written: Mapping[str, Path], json_: bool) -> None:
    """Report what `pack` wrote."""
    from cst_search.units import format_bytes

    if json_:
        print_json(
            {"tasks": bundle.tasks, "bases": bundle.bases, "total_bytes": bundle.total_bytes()}
            | {name: str(path) for name, path in written.items()}
        )
        return
    for name, entry in (*bundle.bases.items(), *bundle.tasks.items()):
        say(f"{name}: {format_bytes(entry['bytes'])}")
    say(f"{len(bundle.tasks)} task(s) on {len(bundle.bases)} base(s), {format_bytes(bundle.total_bytes())}")
    if "onnx" in written:
        say(f"{written['onnx']}: {format_bytes(written['onnx'].stat().st_size)}")
    if "bundle" in written and bundle.tasks:
        say(f"next:  cst-search predict {written['bundle']} IMAGES")
    if "mlflow" in written:
        say(f"next:  mlflow models serve -m {written['mlflow']} --env-manager local --host 127.0.0.1 --port 5001")
