"""Command about several tasks together: `allocate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cst_search.cli import completion
from cst_search.cli.app import HomeOption, JsonOption, StorageOption, app, open_study, out, print_json, say
from cst_search.errors import check_choice


@app.command()
def allocate(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY...", help="Studies, one for each task.", show_default=False,
            autocompletion=completion.studies,
        ),
    ],
    budget_storage: Annotated[
        str,
        typer.Option(
            "--budget-storage", help="What the trained tensors of all tasks may take together, such as 20MB.",
            show_default=False,
        ),
    ],
    maximise: Annotated[
        str, typer.Option("--maximise", help="mean: the mean mAP of the tasks; worst: the lowest of them.")
    ] = "mean",
    weight: Annotated[
        list[str] | None, typer.Option("--weight", help="Weight of a study in the mean, STUDY=2; may be repeated.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder for the recipes, one for each study.")
    ] = None,
    home: HomeOption = None,
    storage: StorageOption = None,
    json_: JsonOption = False,
) -> None:  # fmt: skip
    """Divide a storage budget among tasks: one point of each study, exactly the best choice."""
    from cst_search.commands import allocate as command
    from cst_search.units import format_bytes, parse_bytes

    check_choice("--maximise", maximise, command.GOALS)
    names = list(dict.fromkeys(studies))
    weights = command.read_weights(weight or (), names)
    budget = parse_bytes(budget_storage)
    infos = [open_study(name, home, storage).info() for name in names]
    plan, plans = command.allocate_studies(infos, budget, maximise, weights)  # type: ignore[arg-type]
    report = command.plan_report(infos, plan, plans, maximise)  # type: ignore[arg-type]
    files = {} if output is None else command.write_recipes(infos, plan, output)
    if json_:
        print_json(report | {"recipes": {name: str(path) for name, path in files.items()}})
        return
    from cst_search.report.tables import plan_table
    from cst_search.study.allocation import next_better

    out.print(plan_table(infos, plan))
    words = "mean" if maximise == "mean" else "worst"
    say(f"{words} map {plan.value:.3f} in {format_bytes(plan.total_bytes)} of {format_bytes(budget)}, "
        f"besides the detector that they start from")  # fmt: skip
    better = next_better(plan, plans)
    if better is not None:
        say(f"the next better plan: {better.value:.3f} in {format_bytes(better.total_bytes)}")
    for name, path in files.items():
        say(f"next:  cst-search train {path} --out {name}")


@app.command()
def pack(
    runs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RUN...", help="Folders that `train` wrote; each is a task of that name.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Bundle: a new folder, or a bundle that gets more tasks.")
    ] = Path("bundle"),
    drop: Annotated[
        list[str] | None, typer.Option("--drop", help="Task to take out first; may be repeated.")
    ] = None,
    json_: JsonOption = False,
) -> None:  # fmt: skip
    """Put trained detectors into one folder: what they start from once, and what each trained."""
    from cst_search.commands.pack import pack as run

    bundle = run(runs or (), output, drop or ())
    if json_:
        print_json({"tasks": bundle.tasks, "bases": bundle.bases, "total_bytes": bundle.total_bytes()})
        return
    from cst_search.units import format_bytes

    for name, entry in (*bundle.bases.items(), *bundle.tasks.items()):
        say(f"{name}: {format_bytes(entry['bytes'])}")
    say(f"{len(bundle.tasks)} task(s) on {len(bundle.bases)} base(s), {format_bytes(bundle.total_bytes())} in {output}")
    if bundle.tasks:
        say(f"next:  cst-search predict {output} IMAGES")
