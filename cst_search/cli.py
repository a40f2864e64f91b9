"""The command line. Every command imports what it needs inside itself: `--help` must not wait for torch.

Exit codes: 0 done, 1 the run failed, 2 the person must change something, 130 stopped by Ctrl-C.
"""

from __future__ import annotations

import errno
import json
import sys
from contextlib import nullcontext
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cst_search import __version__
from cst_search.addresses import read_address
from cst_search.catalog import default_home
from cst_search.errors import CstSearchError

app = typer.Typer(
    name="cst-search",
    help="Find the parameter-efficient fine-tuning configuration of an object detector for the GPU you really have.",
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
job_app = typer.Typer(help="Searches that were handed to a cluster with `submit`.", no_args_is_help=True)
app.add_typer(job_app, name="job")
# not a terminal (a file, a pipe): room for the tables instead of 80 columns
out = Console(width=None if sys.stdout.isatty() else 160)
err = Console(stderr=True, width=None if sys.stderr.isatty() else 160)

# what the system says of a path that a person gave and of a disk that is full; anything else is a fault of ours
_OF_A_PATH = {
    errno.EACCES, errno.EDQUOT, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOTDIR,
    errno.EPERM, errno.EROFS,
}  # fmt: skip
_ROWS = 100  # trials that `status` shows: ten thousand take seconds to draw, and nobody reads them

_only_checking: ContextVar[bool] = ContextVar("_only_checking", default=False)  # see `submit`


HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of studies and records [default: $CST_SEARCH_HOME, else ./cst-runs]"),
]


def _address_of(value: str | None) -> str | None:
    if value is not None and not value.strip():  # of a shell variable that is not set: the default would surprise
        raise typer.BadParameter("must not be empty; leave it out for the default")
    return None if value is None else read_address(value)


StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage",
        callback=_address_of,
        help="Database URL of the studies, or @FILE that holds it [default: SQLite in --home]",
    ),
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        callback=_address_of,
        help="MLflow server or database, or @FILE that holds its address [default: SQLite in --home].",
    ),
]
DeviceOption = Annotated[str, typer.Option("--device", help="auto, cpu or cuda.")]
WorkersOption = Annotated[
    int | None, typer.Option("--workers", min=1, help="Trials at a time [default: one per core; on a GPU as fit].")
]
TimeLimitOption = Annotated[
    str | None, typer.Option("--time-limit", help="Start no trial after this time, such as 30m or 8h.")
]
AddressOption = Annotated[
    str | None,
    typer.Option(
        "--address",
        help="Ray cluster that runs the trials: auto, HOST:PORT or ray://HOST:PORT [default: this machine].",
    ),
]
InProcessOption = Annotated[
    bool, typer.Option("--in-process", help="One trial after the other in this process, without Ray.")
]
SkipBadOption = Annotated[bool, typer.Option("--skip-bad", help="Drop broken images and boxes instead of stopping.")]
CacheOption = Annotated[
    str | None,
    typer.Option(
        "--cache-size",
        help="Bound of what trials share on the disk (images, maps of frozen bodies) in --home, such as 20GB; 0: off "
        "[default: 10GB or a tenth of the free disk].",
    ),
]
JobServerOption = Annotated[
    str, typer.Option("--address", help="Job server of the cluster, such as http://HEAD:8265.", show_default=False)
]
JobArgument = Annotated[str, typer.Argument(help="Its id, as `submit` printed it.", show_default=False)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
StudyArgument = Annotated[str, typer.Argument(help="Name of the study; see `cst-search list`.", show_default=False)]


def main() -> None:
    """Entry point: our own errors become one message and an exit code, never a traceback."""
    try:
        sys.argv[1:] = _with_compare_all(sys.argv[1:])
        app()
    except CstSearchError as error:
        _complain(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:  # the reader of our output, `head` say, has gone
        sys.stderr.close()
        sys.exit(0)
    except OSError as error:
        if error.errno not in _OF_A_PATH:
            raise
        _complain(f"{error.filename or 'a file'}: {error.strerror}; give another path, or make room for it")
        sys.exit(2)


def _complain(what: object) -> None:
    style = "red" if err.is_terminal else ""
    err.print(f"cst-search: {what}", markup=False, highlight=False, soft_wrap=True, style=style)


def _with_compare_all(words: list[str]) -> list[str]:
    """``--compare`` without a list means all methods; typer has no option whose value may be left out."""
    return [
        "--compare=all" if word == "--compare" and following.startswith("-") else word
        for word, following in zip(words, [*words[1:], "-"], strict=False)
    ]


def _home(home: Path | None) -> Path:
    return home or default_home()


def _print_json(value: Any) -> None:
    from math import isfinite

    def plain(item: Any) -> Any:
        if isinstance(item, float) and not isfinite(item):
            return None
        if isinstance(item, dict):
            return {key: plain(inner) for key, inner in item.items()}
        return [plain(inner) for inner in item] if isinstance(item, list | tuple) else item

    print(json.dumps(plain(value), indent=2))


def _say(text: str = "") -> None:
    out.print(text, markup=False, highlight=False, soft_wrap=True)


def _cache_bytes(text: str | None) -> int | None:
    from cst_search.units import parse_bytes

    if text is None:
        return None
    return 0 if text.strip() == "0" else parse_bytes(text)


def _check_choice(flag: str, value: str, *allowed: str) -> None:
    from cst_search.errors import ConfigError

    if value not in allowed:
        raise ConfigError(f"{flag} must be one of {', '.join(allowed)}; got {value!r}")


def _open_study(study: str, home: Path | None, storage: str | None) -> Any:
    from cst_search.suggest import Study, default_storage

    url = storage or default_storage(_home(home))
    if storage is None and not (_home(home) / "studies.db").exists():
        from cst_search.errors import StudyError

        raise StudyError(
            f"there are no studies in {_home(home)} yet; `cst-search launch` makes one, --home looks elsewhere"
        )
    return Study.open(url, study)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Show the version.", is_eager=True)] = False) -> None:
    if version:
        print(f"cst-search {__version__}")
        raise typer.Exit


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
        ),
    ] = None,
    space: Annotated[str, typer.Option("--space", help="What may vary: a shipped name or a YAML file.")] = "cst",
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a field of the recipe: name=value. Repeatable.")
    ] = None,
    study: Annotated[str | None, typer.Option("--study", help="Name; an existing one is continued.")] = None,
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials that the study shall have in the end.")] = 16,
    time_limit: TimeLimitOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**31 - 1)] = 0,
    workers: WorkersOption = None,
    device: DeviceOption = "auto",
    objectives: Annotated[
        str, typer.Option("--objectives", help="From map, device_bytes, trainable_params, map50, petl_params.")
    ] = "map,device_bytes,trainable_params",
    sampler: Annotated[
        str | None,
        typer.Option(
            "--sampler",
            help="pareto, tpe, nsga2, gp or random [default: pareto, or tpe where it cannot search for --objectives].",
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
    json_: JsonOption = False,
) -> None:
    """Search for the best configurations within a budget."""
    from cst_search.errors import ConfigError
    from cst_search.units import parse_bytes, parse_count, parse_seconds

    memory = None if budget_mem is None else parse_bytes(budget_mem)
    params = None if budget_params is None else parse_count(budget_params)
    limit_bytes = None if limit_mem is None else parse_bytes(limit_mem)
    cache_bytes = _cache_bytes(cache_size)
    limit = None if time_limit is None else parse_seconds(time_limit)
    _check_choice("--device", device, "auto", "cpu", "cuda")
    if sampler is not None:
        _check_choice("--sampler", sampler, "pareto", "tpe", "nsga2", "gp", "random")
    if eta is not None and stop_early is False:
        raise ConfigError(f"--eta {eta} says how trials are stopped early, and --no-stop-early that none is; give one")

    from cst_search.launch import LaunchOptions
    from cst_search.launch import launch as run
    from cst_search.results import Budget
    from cst_search.suggest import ETA

    options = LaunchOptions(
        budget=Budget(memory, params),
        home=_home(home),
        data=data,
        recipe=recipe,
        space=space,
        settings=tuple(settings or ()),
        study=study,
        trials=trials,
        time_limit_seconds=limit,
        seed=seed,
        workers=workers,
        device=device,
        objectives=objectives,
        sampler=sampler,
        storage=storage,
        tracking_uri=tracking_uri,
        skip_bad=skip_bad,
        in_process=in_process,
        address=address,
        limit_bytes=limit_bytes,
        cache_bytes=cache_bytes,
        eta=0 if stop_early is False else eta or (ETA if stop_early else None),
    )
    if _only_checking.get():
        return
    _end_of_search(run(options, err if json_ else out), json_)


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
    json_: JsonOption = False,
) -> None:
    """Go on with a search where it ended or died, as it was made: data, recipe, space and budget are the study's."""
    from cst_search.units import parse_seconds

    _check_choice("--device", device, "auto", "cpu", "cuda")
    cache_bytes = _cache_bytes(cache_size)
    limit = None if time_limit is None else parse_seconds(time_limit)
    opened = _open_study(study, home, storage)

    from cst_search.launch import LaunchOptions, resumed
    from cst_search.launch import launch as run

    options = LaunchOptions(
        budget=opened.spec.budget,
        home=_home(home),
        time_limit_seconds=limit,
        workers=workers,
        device=device,
        storage=storage,
        tracking_uri=tracking_uri,
        skip_bad=skip_bad,
        in_process=in_process,
        address=address,
        cache_bytes=cache_bytes,
    )
    _end_of_search(run(resumed(opened, options, trials), err if json_ else out), json_)


def _end_of_search(result: Any, json_: bool) -> None:
    """What a launch prints for a program, and its exit code."""
    from cst_search.results import front_report

    if json_:
        _print_json(front_report(result.info) | {"seconds": result.seconds, "interrupted": result.interrupted})
    if result.interrupted:
        raise typer.Exit(130)
    if not result.info.front():
        err.print(
            "cst-search: no trial completed within the budget; see the reasons with `cst-search status`", markup=False
        )
        raise typer.Exit(1)


@app.command()
def sync(
    study: StudyArgument,
    tracking_uri: TrackingOption = None,
    home: HomeOption = None,
    storage: StorageOption = None,
) -> None:
    """Bring MLflow all that it lacks of a study: runs, front, page. It may be another MLflow, and may be done again."""
    info = _open_study(study, home, storage).info()
    from cst_search.addresses import shown_address
    from cst_search.catalog import check_folder
    from cst_search.launch import check_tracking, export_best, write_report
    from cst_search.record import MlflowRecord, default_tracking_uri

    check_tracking(tracking_uri)
    check_folder("--home", _home(home))
    files = write_report(info, _home(home) / info.name)
    uri = tracking_uri or default_tracking_uri(_home(home))
    record = MlflowRecord(uri, _home(home) / "artifacts", warn=lambda line: err.print(line, markup=False))
    pages = [files[kind] for kind in ("html", "png", "json")]
    record.rebuild(info, {"pareto": pages, "export": export_best(info, files)})
    if not record.close(timeout_seconds=3600):
        raise typer.Exit(1)
    _say(f"{shown_address(uri)} has study {info.name}: {len(info.trials)} trials, {len(info.repeats)} repeats")


@app.command()
def status(
    study: StudyArgument,
    all_: Annotated[bool, typer.Option("--all", help=f"Every trial, not only the last {_ROWS}.")] = False,
    home: HomeOption = None,
    storage: StorageOption = None,
    json_: JsonOption = False,
) -> None:
    """How far a study is, and what became of each trial."""
    from rich.table import Table
    from rich.text import Text

    from cst_search.results import describe, repeat_words
    from cst_search.units import format_bytes, format_count, format_seconds

    info = _open_study(study, home, storage).info()
    if json_:
        more = ("state", "reason", "seconds", "ran")
        rows = [info.brief(r) | {name: getattr(r, name) for name in more} for r in info.trials]
        again = ("repeat_of", "seed", "epochs", *more)
        repeats = [r.brief() | {name: getattr(r, name) for name in again} for r in info.repeats]
        _print_json({"study": info.name, "trials": info.counts(), "hypervolume": info.hypervolume(), "all": rows,
                     "repeats": repeats})  # fmt: skip
        return
    table = Table(title=f"Study {info.name}", title_justify="left")
    for name in ("trial", "state", "map", "memory", "trainable", "time", "configuration or reason"):
        table.add_column(name, no_wrap=name != "configuration or reason")
    last = info.trials if all_ else info.trials[-_ROWS:]
    unfinished = [r for r in info.trials[: -len(last)] if r.state in ("running", "interrupted")] if last else []
    for record in (*unfinished, *last, *info.repeats):
        words = repeat_words(record.repeat_of, record.seed) + describe(record.config)
        table.add_row(
            str(record.trial),
            record.state,
            f"{record.map:.3f}" if record.map is not None else "-",
            format_bytes(record.device_bytes),
            format_count(record.trainable_params),
            format_seconds(record.seconds),
            Text(words + (f"\n{record.reason}" if record.reason else "")),
        )
    out.print(table)
    if n_left_out := len(info.trials) - len(last) - len(unfinished):
        _say(f"the last {_ROWS}; --all shows the {n_left_out} before them too")
    counts = ", ".join(f"{n} {state}" for state, n in info.counts().items() if n and state != "total")
    _say(f"{len(info.trials)} trials ({counts or 'none yet'}), hypervolume {info.hypervolume():.4f}")


@app.command("list")
def list_(home: HomeOption = None, storage: StorageOption = None, json_: JsonOption = False) -> None:
    """The studies in a storage."""
    from rich.table import Table
    from rich.text import Text

    from cst_search.suggest import Study, default_storage, list_studies
    from cst_search.units import format_bytes

    url = storage or default_storage(_home(home))
    names = list_studies(url) if storage or (_home(home) / "studies.db").exists() else []
    infos = [Study.open(url, name).info() for name in names]
    if json_:
        _print_json(
            [
                {
                    "study": i.name,
                    "started": i.started,
                    "data": i.data,
                    "trials": i.counts(),
                    "best_map": i.best_map(),
                    "hypervolume": i.hypervolume(),
                }
                for i in infos
            ]
        )
        return
    if not infos:
        _say(f"no studies in {_home(home) if storage is None else 'this storage'} yet; `cst-search launch` makes one")
        return
    table = Table()
    for name in ("study", "started (UTC)", "data", "complete", "best map", "budget"):
        table.add_column(name)
    for i in infos:
        best = i.best_map()
        table.add_row(
            Text(i.name), i.started[:16].replace("T", " "), Text(i.data), str(i.counts()["complete"]),
            "-" if best is None else f"{best:.3f}", format_bytes(i.budget.memory_bytes),
        )  # fmt: skip
    out.print(table)


@app.command()
def front(
    study: StudyArgument,
    home: HomeOption = None,
    storage: StorageOption = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write front.html, .png, .json here.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """The Pareto front of a study."""
    from cst_search.results import front_report

    info = _open_study(study, home, storage).info()
    if output is not None:
        from cst_search.catalog import check_folder
        from cst_search.launch import write_report

        check_folder("--output", output)
        files = write_report(info, output)
        err.print(f"wrote {', '.join(str(path) for path in files.values())}", markup=False, highlight=False)
    if json_:
        _print_json(front_report(info))
        return
    if not info.front():
        _say(f"study {study} has no feasible complete trial yet")
        return
    from cst_search.live import front_table

    out.print(front_table(info))
    _say(f"hypervolume {info.hypervolume():.4f} of 1 (reference {dict(info.reference_point)})")


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
    json_: JsonOption = False,
) -> None:
    """Train the front's points again with other seeds, and say which of them are still on the front."""

    _check_choice("--device", device, "auto", "cpu", "cuda")
    opened = _open_study(study, home, storage)
    from cst_search.confirm import ConfirmOptions
    from cst_search.confirm import confirm as run

    options = ConfirmOptions(
        home=_home(home),
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
    result = run(opened, options, err if json_ else out)
    if json_:
        _print_json(result.report)
    if result.interrupted:
        raise typer.Exit(130)
    if result.n_planned and not result.n_completed:
        err.print("cst-search: no repeat completed; see the reasons with `cst-search status`", markup=False)
        raise typer.Exit(1)


@app.command()
def export(
    study: StudyArgument,
    pick: Annotated[str, typer.Option("--pick", help="knee, best (highest map), or trial=N.")] = "knee",
    output: Annotated[Path, typer.Option("--output", "-o", help="Recipe file to write.")] = Path("best.yaml"),
    verify: Annotated[
        bool,
        typer.Option("--verify/--no-verify", help="Train a few steps on the worst batch first; refuse what differs."),
    ] = True,
    home: HomeOption = None,
    storage: StorageOption = None,
    json_: JsonOption = False,
) -> None:
    """Write a point of the front as a recipe that is complete by itself."""
    from cst_search import export as exports

    info = _open_study(study, home, storage).info()
    record = exports.pick_trial(info, pick)
    exports.check_output(output)
    verified = exports.verify(info, record, _home(home)) if verify else None
    exports.export(info, pick, output, verified)
    if json_:
        _print_json(info.brief(record) | {"recipe": str(output), "verified": verified})
        return
    from cst_search.results import over_seeds_words
    from cst_search.units import format_bytes, format_count

    if verified is not None:
        _say(
            f"verified on {verified['device']}: parameters as recorded, {verified['steps']} steps on the worst batch "
            f"(loss {verified['loss']:.3g}), memory {format_bytes(verified['device_bytes'])} "
            f"(memory_source: {verified['memory_source']})"
        )
    confirmed = over_seeds_words(info.brief(record))
    _say(
        f"trial {record.trial}: map {record.map:.3f}, {confirmed + ', ' if confirmed else ''}"
        f"{format_bytes(record.device_bytes)} ({record.memory_source}), "
        f"{format_count(record.trainable_params)} trainable -> {output}"
    )
    data = "" if info.data == "demo" else f" --data {info.data}"
    _say(f"next:  cst-search train {output}{data} --out {output.stem}")


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

    _check_choice("--device", device, "auto", "cpu", "cuda")
    from cst_search.train import train as run

    console = err if json_ else out
    result = run(recipe, output, data=data, settings=tuple(settings or ()), device=device, skip_bad=skip_bad,
                 home=_home(home), tracking_uri=tracking_uri, cache_bytes=_cache_bytes(cache_size),
                 console=console)  # fmt: skip
    if json_:
        _print_json(result)
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

    _check_choice("--device", device, "auto", "cpu", "cuda")
    from cst_search.predict import predict as run_predict

    _print_json(run_predict(run, images, output if draw else None, score=score, device=device))


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
        _print_json(estimates.report(predicted, shown, rows, fitted, card))
        return
    for part in estimates.tables(recipe, configured, predicted, rows, fitted, card):
        out.print(part)


@app.command()
def doctor(
    home: HomeOption = None,
    storage: StorageOption = None,
    tracking_uri: TrackingOption = None,
    with_ray: Annotated[bool, typer.Option("--ray/--no-ray", help="Start Ray, for some seconds.")] = True,
    json_: JsonOption = False,
) -> None:
    """Say what this machine and the given services can do, and what to do where they cannot."""
    from dataclasses import asdict

    from rich.text import Text

    from cst_search.doctor import examine
    from cst_search.record import default_tracking_uri
    from cst_search.suggest import default_storage

    url, uri = storage or default_storage(_home(home)), tracking_uri or default_tracking_uri(_home(home))
    found = []
    for finding in examine(_home(home), url, uri, with_ray=with_ray):
        found.append(finding)
        if not json_:  # as it comes: imports take seconds
            style = {"ok": "green", "note": "yellow", "fault": "red"}[finding.state]
            remedy = f"\n{'':22}{finding.remedy}" if finding.remedy else ""
            out.print(
                Text(f"{finding.state:6}", style), Text(f"{finding.name:15}{finding.text}{remedy}"), soft_wrap=True
            )
    if json_:
        _print_json([asdict(finding) for finding in found])
    if any(finding.state == "fault" for finding in found):
        raise typer.Exit(1)


@app.command()
def submit(
    words: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND ...", help="launch, resume or confirm, and its options.")
    ],
    address: JobServerOption,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Show its output until it is over; Ctrl-C leaves it running.")
    ] = True,
) -> None:
    """Hand a search to a Ray cluster, where it goes on without this machine."""
    from cst_search import submit as jobs

    _check_choice("submit's command", words[0], *jobs.COMMANDS)
    jobs.check_words(words[0], _understood(words))
    server = jobs.Jobs(address)
    job = server.submit(words)
    err.print(f"job {job} on {address}", markup=False, highlight=False)
    for verb in ("status", "logs --follow", "stop"):
        err.print(f"  cst-search job {verb} {job} --address {address}", markup=False, highlight=False, soft_wrap=True)
    if not wait:
        print(job)
        return
    try:
        server.follow(job, jobs.write_out)
    except KeyboardInterrupt:
        err.print(f"job {job} goes on; `cst-search job stop` ends it", markup=False, highlight=False)
        raise typer.Exit(130) from None
    _exit_as(server.state(job))


def _understood(words: list[str]) -> dict[str, Any]:
    """The options of a command, checked as that command checks them; nothing is run."""
    command = typer.main.get_command(app)
    root = command.make_context("cst-search", ["ls"])
    named = command.get_command(root, words[0])  # type: ignore[attr-defined]
    context = named.make_context(words[0], list(words[1:]), parent=root)
    if words[0] == "launch":
        token = _only_checking.set(True)
        try:
            named.invoke(context)
        finally:
            _only_checking.reset(token)
    return dict(context.params)


def _exit_as(state: Any) -> None:
    """End with the exit code of a job that is over."""
    if state.state != "SUCCEEDED":  # its message repeats the output
        why = state.message.partition(",")[0]
        err.print(f"cst-search: job {state.job} {state.state.lower()}: {why}", markup=False, highlight=False)
        raise typer.Exit(130 if state.state == "STOPPED" else state.exit_code or 1)


@job_app.command("status")
def job_status(job: JobArgument, address: JobServerOption, json_: JsonOption = False) -> None:
    """How a job is doing."""
    from dataclasses import asdict

    from cst_search.submit import Jobs

    state = Jobs(address).state(job)
    if json_:
        _print_json(asdict(state))
        return
    _say(f"job {job}: {state.state.lower()}, begun {state.begun}, ended {state.ended or '-'}")
    _say(f"  {state.command}")
    if state.message:
        _say(f"  {state.message}")


@job_app.command("logs")
def job_logs(
    job: JobArgument,
    address: JobServerOption,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until it is over.")] = False,
) -> None:
    """What a job has printed."""
    from cst_search.submit import Jobs, write_out

    server = Jobs(address)
    if follow:
        try:
            server.follow(job, write_out)
        except KeyboardInterrupt:
            raise typer.Exit(130) from None
    else:
        write_out(server.logs(job))


@job_app.command("stop")
def job_stop(job: JobArgument, address: JobServerOption) -> None:
    """End a job as Ctrl-C would: what is finished is kept, and `resume` goes on."""
    from cst_search.submit import Jobs

    server = Jobs(address)
    state = server.state(job)
    if state.is_over or not server.stop(job):
        _say(f"job {job} is over: {state.state.lower()}")
    else:
        _say(f"job {job} is told to end; `cst-search job status {job} --address {address}` says when it has")


@app.command()
def ui(
    home: HomeOption = None,
    port: Annotated[int, typer.Option("--port", min=1, max=65535)] = 5000,
    host: Annotated[str, typer.Option("--host", help="Loopback unless told otherwise.")] = "127.0.0.1",
) -> None:
    """Open MLflow on the record of the studies."""
    import os

    from cst_search.errors import StudyError

    folder = _home(home)
    if not (folder / "mlflow.db").exists():
        raise StudyError(f"there is no record in {folder} yet; `cst-search launch` makes one, --home looks elsewhere")
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # its job runner would be seven more processes and 1.5 GB that a viewer does not need
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    command = [
        sys.executable, "-m", "mlflow", "server", "--host", host, "--port", str(port), "--workers", "1",
        "--backend-store-uri", f"sqlite:///{(folder / 'mlflow.db').absolute()}",
        "--default-artifact-root", (folder / "artifacts").absolute().as_uri(),
    ]  # fmt: skip
    _say(f"MLflow on http://{host}:{port} in about ten seconds; Ctrl-C ends it")
    _say('the front: filter runs with  tags."cst.pareto" = "true"')
    sys.stdout.flush()
    os.execve(command[0], command, environment)  # no child that would outlive us


@app.command()
def ls(json_: JsonOption = False) -> None:
    """Shipped recipes and search spaces."""
    from cst_search import catalog

    found = {kind: catalog.names(kind) for kind in ("trials", "search_spaces")}
    if json_:
        _print_json(found)
        return
    for kind, label in (("trials", "recipes"), ("search_spaces", "search spaces")):
        _say(f"{label}:")
        for name in found[kind]:
            first = catalog.shipped(kind, name).read_text(encoding="utf-8").splitlines()[0]  # type: ignore[arg-type]
            _say(f"  {name:<12} {first.lstrip('# ')}")


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
    _say(f"{path}")


if __name__ == "__main__":
    main()
