"""The end of a search that knows its noise: points of the front trained again with other seeds. Reads top to bottom.

A front is chosen by the best of many noisy trials, so its points were lucky. Each is trained again with seeds that were
not used yet; what a point has then is the mean over its seeds (`results.StudyInfo`), and what differs by no more than
noise is said to (`seeds`). Repeats are trials of the study, so that a confirmation goes on where it ended.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from cst_search.commands.budget_survey import Survey, expected_sharers
from cst_search.commands.checks import check_tracking
from cst_search.commands.dataset import dataset_inputs, open_data
from cst_search.commands.options import LaunchOptions
from cst_search.commands.report_files import export_best, write_report
from cst_search.commands.worker_setup import (
    check_nodes,
    connect,
    device_of,
    gpu_placement,
    make_workers,
    memory_limit_of,
)
from cst_search.config.catalog import check_folder, own_path
from cst_search.config.loading import make_recipe
from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space
from cst_search.data.coco import DetectionData
from cst_search.data.disk_cache import open_cache
from cst_search.detector.build import build_detector
from cst_search.errors import ConfigError, DataError, StudyError
from cst_search.execution.interrupt import GRACE_SECONDS, ends_in_time
from cst_search.execution.task import Task
from cst_search.execution.workers import SearchJob, Workers
from cst_search.memory.estimate import Estimate
from cst_search.redaction import shown_address
from cst_search.report.progress import View
from cst_search.report.summary import front_report
from cst_search.search.session import SearchSession
from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.states import TrialState
from cst_search.study.study import Study
from cst_search.study.trial_attributes import Repeat
from cst_search.study.verdicts import noise, quality, verdicts
from cst_search.study.wording import describe
from cst_search.trial.checkpoints import checkpoints_of
from cst_search.units import format_seconds

if TYPE_CHECKING:
    from cst_search.tracking.mlflow_record import MlflowRecord


_SAME_COMMAND = "the same command"  # is what a confirmation goes on with


@dataclass(frozen=True)
class ConfirmOptions:
    """What the command line says.

    Attributes:
        seeds: that each point shall have in the end; at the search's length the trial itself is one of them.
        epochs: ``search``, ``full`` or a number.
        picks: ``front``, ``knee``, ``best``, or trial numbers with commas.
        data: where the study's dataset is now; None: where it was.
        address: of the Ray cluster that runs them, as in `preparation.LaunchOptions`.
    """

    home: Path
    seeds: int = 3
    epochs: str = "search"
    picks: str = "front"
    data: str | None = None
    workers: int | None = None
    device: str = "auto"
    tracking_uri: str | None = None
    skip_bad: bool = False
    in_process: bool = False
    address: str | None = None


@dataclass(frozen=True)
class ConfirmResult:
    """How a confirmation ended; ``report`` is what ``--json`` prints."""

    report: dict[str, Any]
    n_planned: int
    n_completed: int
    interrupted: bool


def confirm(study: Study, options: ConfirmOptions, console: Console) -> ConfirmResult:
    """Run what is missing, record and report. Raises UserError before anything is started."""
    begun = time.monotonic()

    def say(line: str = "") -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    check_folder("--home", options.home)
    check_tracking(options.tracking_uri)
    info = study.info()
    quality(info)
    epochs = choose_epochs(info, options.epochs)
    points = choose_points(info, options.picks)
    wanted = missing(info, points, options.seeds, epochs)
    before = [record.trial for record in info.front()]
    say(
        f"study {info.name}: {len(points)} point(s), {options.seeds} seeds each at {epochs} epochs; "
        f"{len(wanted)} run(s) to do"
    )
    if wanted:
        task, workers, n_workers = _prepare(study, wanted, epochs, options, say)
        session = SearchSession(study)
        session.begin_launch(kind="confirm")
        session.plan(wanted)

    from cst_search.tracking.connection import default_tracking_uri  # mlflow takes seconds to import
    from cst_search.tracking.mlflow_record import MlflowRecord

    tracking_uri = options.tracking_uri or default_tracking_uri(options.home)
    record = MlflowRecord(tracking_uri, options.home / "artifacts", warn=say)
    interrupted = False
    with ends_in_time(_SAME_COMMAND):
        if wanted:
            say(f"MLflow {shown_address(tracking_uri)}")
            shown = {"seeds": options.seeds, "epochs": epochs, "points": [r.trial for r in points],
                     "workers": n_workers, "device": task.device, "data": task.recipe.data}  # fmt: skip
            record.start(info, session.describe_launch(shown))
            interrupted = _run(session, wanted, task, workers, n_workers, record, console)
            info = study.info()

        # also where nothing was to do: the confirmation before may have died with its last run
        report = confirm_report(info, [record.trial for record in points], epochs, before)
        folder = options.home / info.name
        files = write_report(info, folder)
        (folder / "confirm.json").write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        record.sync(info)
        record.finish(
            info,
            {
                "pareto": [files[k] for k in ("html", "png", "json")],
                "confirm": [folder / "confirm.json"],
                "export": export_best(info, files),
            },
            "KILLED" if interrupted else "FINISHED",
        )
        record.close(GRACE_SECONDS / 2 if interrupted else 60.0)
    report |= {"seconds": time.monotonic() - begun, "interrupted": interrupted}
    done = {_as_repeat(r) for r in info.repeats if r.state == TrialState.COMPLETE}
    _say_end(report, files["html"], console, say)
    return ConfirmResult(report, len(wanted), sum(repeat in done for repeat in wanted), interrupted)


# --- what to run ----------------------------------------------------------------------------------------------------


def choose_epochs(info: StudyInfo, text: str) -> int:
    """``search``, ``full`` or a number -> passes over the training split. Raises ConfigError."""
    if text == "search":
        return info.full_epochs
    if text == "full":
        return int(info.recipe["epochs"])
    if text.isdecimal() and len(text) < 10 and 1 <= int(text) <= 10_000:
        return int(text)
    raise ConfigError(f"--epochs takes search, full or a whole number from 1 to 10000; got {text[:40]!r}")


def choose_points(info: StudyInfo, picks: str) -> list[TrialRecord]:
    """The trials of ``--picks``, best first. Raises ConfigError, StudyError.

    ``front`` is the front as the search left it with the front by the means: a point that fell off after the first of
    its seeds gets the others too, and one that came onto it for that is no less in need of them.
    """
    complete = {r.trial: r for r in info.trials if r.state == TrialState.COMPLETE and r.feasible}
    front, of_search = info.front(), replace(info, repeats=()).front()
    if not front:
        raise StudyError(
            f"study {info.name!r} has no feasible complete trial yet; run `cst-search launch --study {info.name}`"
        )
    chosen: dict[int, TrialRecord] = {}
    for word in (word.strip() for word in picks.split(",")):
        if word == "front":
            found = [*front, *of_search]
        elif word == "best":
            found = front[:1]
        elif word == "knee":
            found = [complete[number] for number in [info.knee()] if number is not None]
        elif word.isdecimal() and len(word) < 10 and int(word) in complete:
            found = [complete[int(word)]]
        else:
            raise ConfigError(
                f"--picks takes front, knee, best, or numbers of complete trials within the budget; got {word[:40]!r}; "
                f"complete are {sorted(complete)}"
            )
        chosen |= {record.trial: record for record in found}
    return list(chosen.values())


def missing(info: StudyInfo, points: Sequence[TrialRecord], n_seeds: int, epochs: int) -> list[Repeat]:
    """The repeats that the points lack, a seed of each at a time: stopped early, all have about as many.

    Seeds are counted up from the study's own, which at the search's length is the trial's. A repeat that ran out of
    memory is not run again; one that failed for another reason is.
    """
    own = int(info.recipe["seed"])
    rounds: list[list[Repeat]] = [[] for _ in range(n_seeds)]
    for point in points:
        at_length = [r for r in info.repeats if r.repeat_of == point.trial and r.epochs == epochs]
        used = {r.seed for r in at_length if r.state in (TrialState.COMPLETE, TrialState.INFEASIBLE)}
        if epochs == info.full_epochs:
            used.add(own)
        unused = (seed for i in range(len(used) + n_seeds) if (seed := (own + i) % 2**31) not in used)
        for place, seed in zip(range(len(used), n_seeds), unused, strict=False):
            rounds[place].append(Repeat(point.trial, seed, epochs))
    return [repeat for one_round in rounds for repeat in one_round]


def _as_repeat(record: TrialRecord) -> Repeat | None:
    if record.repeat_of is None or record.seed is None or record.epochs is None:
        return None
    return Repeat(record.repeat_of, record.seed, record.epochs)


# --- running it -----------------------------------------------------------------------------------------------------


def _prepare(
    study: Study, wanted: Sequence[Repeat], epochs: int, options: ConfirmOptions, say: Callable[[str], None]
) -> tuple[Task, Workers, int]:
    """(what the runs share, who runs them, how many at a time), as a launch of the study would have it."""
    info = study.info()
    settings = LaunchOptions(
        budget=info.budget,
        home=options.home,
        trials=len(wanted),
        workers=options.workers,
        device=options.device,
        in_process=options.in_process,
        limit_bytes=info.limit_bytes,
        address=options.address,
    )
    cluster = connect(settings, study.url, say)
    device = device_of(options.device, cluster)
    limit = memory_limit_of(settings, device)
    recipe = make_recipe(info.recipe, f"recipe of study {info.name!r}")
    if options.data is not None:
        folder = options.data if options.data == "demo" else str(own_path(options.data).absolute())
        recipe = replace(recipe, data=folder)
    data = _same_data(info, recipe, options, say)
    build_detector(recipe, len(data.class_names))  # fetches weights for all workers; faults show here, not in trials
    trials = {record.trial: record for record in info.trials}
    again = [trials[repeat.repeat_of] for repeat in wanted]
    if cluster is not None:
        check_nodes(cluster, options.home, recipe, data, device)
        cluster.watch(_SAME_COMMAND)
    placement = None if device.type != "cuda" else gpu_placement(limit, cluster)
    survey = Survey(tuple(sorted(record.device_bytes or 0 for record in again)), (), ())
    workers, n_workers, threads = make_workers(settings, placement, recipe, survey, cluster)
    workers.prepare()
    seconds = sum((record.seconds or 0.0) * epochs / max(1, len(record.history)) for record in again) / n_workers
    say(
        f"{n_workers} worker(s) on {device}, {threads or 'all'} CPU thread(s) each; "
        f"about {format_seconds(seconds)} by the times of the search"
    )
    if placement is not None and not options.in_process:
        say(str(placement))
    space = Space.from_dict(info.space, where=f"space of study {info.name!r}")
    cache, line = open_cache(options.home.absolute(), None, expected_sharers(space, recipe, len(wanted)))
    say(line)
    # without rungs: a repeat is of full length, whatever others reached
    checkpoints = checkpoints_of(options.home, info.name)
    return Task(recipe, data, epochs, str(device), threads, limit, cache, checkpoints=checkpoints), workers, n_workers


def _run(
    session: SearchSession, wanted: Sequence[Repeat], task: Task, workers: Workers, n_workers: int, record: MlflowRecord,
    console: Console,
) -> bool:  # fmt: skip
    """Have the workers run the repeats that the study was given; whether Ctrl-C ended it."""

    study = session.study

    def on_finished() -> tuple[float, int]:
        now = study.info()
        record.sync(now)
        return now.hypervolume(), 0

    def no_estimate(config: dict[str, Any]) -> Estimate:
        raise AssertionError("a repeat has the estimate of its trial")

    view = View(
        console,
        title=f"{study.name} again with other seeds",
        n_trials=len(wanted),
        n_workers=n_workers,
        n_done=0,
        epochs=task.epochs,
        on_finished=on_finished,
    )
    # repeats do not count to the trials of the study
    n_trials = study.info().n_ran() + len(wanted)
    interrupted = False
    try:
        with view:
            workers.run(SearchJob(session, task, n_trials, no_estimate, lambda: False, view))
    except KeyboardInterrupt:
        interrupted = True
    finally:
        session.end_launch()
    return interrupted or any(
        _as_repeat(r) in wanted for r in study.info().repeats if r.state == TrialState.INTERRUPTED
    )


def _same_data(info: StudyInfo, recipe: Recipe, options: ConfirmOptions, say: Callable[[str], None]) -> DetectionData:
    """The study's dataset. Raises DataError: it is not there, has faults, or is another one as far as can be seen."""
    if recipe.data != "demo" and not Path(recipe.data).is_dir():
        raise DataError(
            f"the data of study {info.name!r} must be there to train again, and {recipe.data} is no folder; "
            f"say with --data where it is now"
        )
    data = open_data(recipe.data, options.home, skip_bad=options.skip_bad, say=say)
    found, known = dataset_inputs(data), dict(info.inputs)
    differs = [f"{key} {found[key]}, in the search {known[key]}" for key in known if found[key] != known[key]]
    if differs:
        raise DataError(
            f"the data in {recipe.data} is not that of study {info.name!r}: {'; '.join(differs)}; give the same data"
            f"{'' if options.skip_bad else ', and --skip-bad if the search had it'}"
        )
    return data


# --- after it -------------------------------------------------------------------------------------------------------


def confirm_report(info: StudyInfo, points: Sequence[int], epochs: int, before: Sequence[int]) -> dict[str, Any]:
    """The shape of ``cst-search confirm STUDY --json``.

    ``points``: as in `front_report`, with what the seeds gave at ``epochs``, the length that was confirmed;
    ``front``: that of the study, by the means at the search's length.

    Args:
        points: trials that were confirmed.
        before: trials on the front before.
    """
    name, spread = quality(info), noise(info, epochs)
    of_search = epochs == info.full_epochs
    entries = []
    for verdict in verdicts(info, points, epochs):
        record = info.by_number(verdict.trial)
        assert record is not None
        sample = info.over_seeds(record, name, epochs)
        repeats = [r for r in info.repeats if r.repeat_of == record.trial and r.epochs == epochs]
        own = [{"seed": int(info.recipe["seed"]), "trial": record.trial, name: getattr(record, name)}]
        entries.append(
            info.brief(record)
            | {"mean": sample.mean, "std": sample.std, "n_seeds": sample.n, "new_mean": sample.new_mean}
            | {
                "runs": (own if of_search else [])
                + [
                    {"seed": r.seed, "trial": r.trial, name: getattr(r, name)}
                    for r in repeats
                    if r.state == TrialState.COMPLETE
                ],
                "failed": [
                    {"seed": r.seed, "trial": r.trial, "reason": r.reason}
                    for r in repeats
                    if r.state in (TrialState.FAILED, TrialState.INFEASIBLE)
                ],
                "verdict": verdict.text,
                "on_front": verdict.on_front,
                "rival": verdict.rival,
                "difference": verdict.difference,
                "least_difference": verdict.least,
                "within_noise": verdict.in_noise,
            }
        )
    study = front_report(info)
    now = [entry["trial"] for entry in study["front"]]
    return {
        **{key: study[key] for key in ("study", "objectives", "trials", "hypervolume", "knee")},
        "metric": name,
        "epochs": epochs,
        "search_epochs": info.full_epochs,
        "noise": None if spread is None else asdict(spread),
        "points": sorted(entries, key=lambda entry: -(entry["mean"] or 0.0)),
        "front": now,
        "front_before": list(before),
        "not_confirmed": [entry["trial"] for entry in study["front"] if entry["n_seeds"] < 2],
    }


def confirm_table(report: dict[str, Any]) -> Table:
    """One line a point, the best mean first."""
    name, epochs = report["metric"], report["epochs"]
    table = Table(title=f"{report['study']}, {epochs} epochs", title_justify="left", title_style="bold")
    for column in ("trial", f"{name} of the search", "mean", "std", "n", "new seeds only", "verdict", "configuration"):
        table.add_column(column, justify="left" if column in ("verdict", "configuration") else "right")
    for entry in report["points"]:
        failed = f" + {len(entry['failed'])} failed" if entry["failed"] else ""
        table.add_row(
            str(entry["trial"]),
            *(_figure(entry[key]) for key in (name, "mean", "std")),
            f"{entry['n_seeds']}{failed}",
            _figure(entry["new_mean"]),
            Text(entry["verdict"]),
            Text(describe(entry["config"])),
        )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _say_end(report: dict[str, Any], page: Path, console: Console, say: Callable[[str], None]) -> None:
    say("")
    if report["interrupted"]:
        say(f"stopped after {format_seconds(report['seconds'])}; the same command goes on, what is finished is kept")
    console.print(confirm_table(report))
    if report["noise"] is not None:
        say(
            f"runs that differ in their seed alone: standard deviation {report['noise']['std']:.4f} "
            f"({report['noise']['dof']} degrees of freedom); within noise: less than Fisher's least significant "
            f"difference"
        )
    if report["epochs"] != report["search_epochs"]:
        say(f"compared among runs of {report['epochs']} epochs; the front, of {report['search_epochs']}, is as it was")
        return
    was, now = report["front_before"], report["front"]
    gone, come = [t for t in was if t not in now], [t for t in now if t not in was]
    say(
        f"front: {', '.join(map(str, now))}; knee {report['knee']}; hypervolume {report['hypervolume']:.4f}"
        + (f"; no longer on it: {', '.join(map(str, gone))}" if gone else "")
        + (f"; now on it: {', '.join(map(str, come))}" if come else "")
        + f"; page {page}"
    )
    if report["not_confirmed"] and not report["interrupted"]:
        say(f"on the front with one seed: {', '.join(map(str, report['not_confirmed']))}; the same command does them")
