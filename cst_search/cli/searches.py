"""Commands that search: `launch`, `resume`, `confirm`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from cst_search.cli import completion
from cst_search.cli.app import (
    AddressOption,
    CacheOption,
    DeviceOption,
    HomeOption,
    InProcessOption,
    JsonOption,
    QuietOption,
    SkipBadOption,
    StorageOption,
    StudyArgument,
    TimeLimitOption,
    TrackingOption,
    WorkersOption,
    app,
    console_of,
    err,
    only_checking,
    open_study,
    print_json,
)
from cst_search.config.catalog import home_of


@app.command()
def launch(
    budget_mem: Annotated[
        str | None, typer.Option("--budget-mem", help="Most device memory, such as 6GB or 6GiB.")
    ] = None,
    budget_params: Annotated[
        str | None, typer.Option("--budget-params", help="Most trainable parameters, such as 2M.")
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="COCO-format folder [default: the embedded demo].")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            help="What is held fixed: a shipped name or a YAML file "
            "[default: demo; with --data, resnet50 on a GPU, small on a CPU].",
            autocompletion=completion.recipes,
        ),
    ] = None,
    space: Annotated[
        str,
        typer.Option("--space", help="What may vary: a shipped name or a YAML file.", autocompletion=completion.spaces),
    ] = "cst",
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a field of the recipe: name=value. Repeatable.", autocompletion=completion.settings
        ),
    ] = None,
    study: Annotated[
        str | None,
        typer.Option("--study", help="Name; an existing one is continued.", autocompletion=completion.studies),
    ] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials that the study shall have in the end.")] = 16,
    time_limit: TimeLimitOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1, help="Of the sampler and of every trial.")] = 0,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    objectives: Annotated[
        str, typer.Option("--objectives", help="From map, device_bytes, trainable_params, map50, petl_params.")
    ] = "map,device_bytes,trainable_params",
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            help="pareto, pareto-no-prior, tpe, nsga2, gp or random "
            "[default: pareto, or tpe where it cannot search for --objectives].",
            autocompletion=completion.one_of("pareto", "pareto-no-prior", "tpe", "nsga2", "gp", "random"),
            show_default=False,
        ),
    ] = None,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    skip_bad: SkipBadOption = False,
    in_process: InProcessOption = False,
    address: AddressOption = None,
    limit_mem: Annotated[
        str | None,
        typer.Option(
            "--limit-mem",
            help="Hold each trial to this: device memory on a GPU [default there: --budget-mem], "
            "growth of its process on a CPU [default there: no limit].",
        ),
    ] = None,
    cache_size: CacheOption = None,
    stop_early: Annotated[
        bool | None,
        typer.Option(
            "--stop-early/--no-stop-early",
            help="Stop trials part-way unless they are among the best 1/eta there [default: as the study, else yes].",
            show_default=False,
        ),
    ] = None,
    eta: Annotated[
        int | None, typer.Option("--eta", min=2, help="Stop early with this eta [default: as the study, else 2].")
    ] = None,
    home: HomeOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Search for the best configurations within a budget."""
    from cst_search.commands.options import launch_options

    options = launch_options(
        budget_mem=budget_mem, budget_params=budget_params, data=data, recipe=recipe, space=space, settings=settings,
        study=study, trials=trials, time_limit=time_limit, seed=seed, workers=workers, device=device,
        objectives=objectives, sampler=sampler, home=home, storage=storage, tracking_uri=tracking_uri,
        skip_bad=skip_bad, in_process=in_process, address=address, limit_mem=limit_mem, cache_size=cache_size,
        stop_early=stop_early, eta=eta,
    )  # fmt: skip
    if only_checking.get():
        return
    from cst_search.commands.launch import launch as run

    _end_of_search(run(options, console_of(json_, quiet)), json_)


@app.command()
def resume(
    study: StudyArgument,
    trials: Annotated[
        int | None, typer.Option("--trials", min=1, help="Trials that it shall have in the end [default: as it was].")
    ] = None,
    time_limit: TimeLimitOption = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    skip_bad: SkipBadOption = False,
    in_process: InProcessOption = False,
    address: AddressOption = None,
    cache_size: CacheOption = None,
    home: HomeOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Go on with a search where it ended or died, as it was made: data, recipe, space and budget are the study's."""
    opened = open_study(study, home, storage)
    from cst_search.commands.launch import launch as run
    from cst_search.commands.options import resumed

    options = resumed(
        opened, home_of(home), trials, time_limit=time_limit, workers=workers, device=device, storage=storage,
        tracking_uri=tracking_uri, skip_bad=skip_bad, in_process=in_process, address=address, cache_size=cache_size,
    )  # fmt: skip
    _end_of_search(run(options, console_of(json_, quiet)), json_)


def _end_of_search(result: Any, json_: bool) -> None:
    """What a launch prints for a program, and its exit code."""
    from cst_search.report.summary import front_report

    if json_:
        print_json(front_report(result.info) | {"seconds": result.seconds, "interrupted": result.interrupted})
    if result.interrupted:
        raise typer.Exit(130)
    if not result.info.front():
        err.print(
            "cst-search: no trial completed within the budget; see the reasons with `cst-search status`", markup=False
        )
        raise typer.Exit(1)


@app.command()
def confirm(
    study: StudyArgument,
    seeds: Annotated[
        int,
        typer.Option(
            "--seeds",
            min=2,
            max=100,
            help="Seeds that each point shall have in the end. The trial of the search is one of them, so 3 means two "
            "more runs; none with another --epochs, where it does not count.",
        ),
    ] = 3,
    epochs: Annotated[
        str,
        typer.Option(
            "--epochs",
            help="Length of a run: search (that of the front's trials, to which it is compared), full (that of "
            "`train`) or a number. Only the search's changes the front; others are compared with their own kind.",
        ),
    ] = "search",
    picks: Annotated[
        str, typer.Option("--picks", help="front, knee, best, or numbers of complete trials such as 3,7.")
    ] = "front",
    data: Annotated[
        str | None, typer.Option("--data", help="Where the study's data is now [default: where it was].")
    ] = None,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    skip_bad: SkipBadOption = False,
    in_process: InProcessOption = False,
    address: AddressOption = None,
    home: HomeOption = None,
    quiet: QuietOption = False,
    json_: JsonOption = False,
) -> None:
    """Train the front's points again with other seeds, and say which of them are still on the front."""
    opened = open_study(study, home, storage)
    from cst_search.commands.confirm import ConfirmOptions
    from cst_search.commands.confirm import confirm as run

    options = ConfirmOptions(
        home=home_of(home),
        seeds=seeds,
        epochs=epochs,
        picks=picks,
        data=data,
        workers=workers,
        device=device,
        tracking_uri=tracking_uri,
        skip_bad=skip_bad,
        in_process=in_process,
        address=address,
    )
    result = run(opened, options, console_of(json_, quiet))
    if json_:
        print_json(result.report)
    if result.interrupted:
        raise typer.Exit(130)
    if result.n_planned and not result.n_completed:
        err.print("cst-search: no repeat completed; see the reasons with `cst-search status`", markup=False)
        raise typer.Exit(1)
