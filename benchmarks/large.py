"""Measure the cost of a growing study: suggestion, recording, front, status and resume at 100, 1,000, 10,000 trials.

    python benchmarks/large.py --out benchmarks/results/large-sqlite.json
    python benchmarks/large.py --storage postgresql+psycopg://HOST/NAME --out benchmarks/results/large-postgresql.json

The trials are made up and pass through the study's own code: configurations of the space `cst`, of which the budget
excludes some, predicted costs, five epochs of history, and occasionally an out-of-memory or failed trial. They are
created in memory and copied into the database in one transaction, as are their runs in MLflow. Then every operation is
timed as a launch and the command line perform it. Each figure is the median of its repetitions, in milliseconds of wall
time, which other load and the disk lengthen, and of CPU time over all threads.
"""

from __future__ import annotations

import argparse
import functools
import gc
import io
import json
import math
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any
from unittest import mock

import mlflow
import optuna
import sqlalchemy
import torch
from rich.console import Console

from cst_search.commands.budget_survey import Estimator
from cst_search.commands.search_loop import follow
from cst_search.config.loading import load_recipe, load_space
from cst_search.memory.estimate import Estimate, InputShape
from cst_search.report.html import write_front
from cst_search.report.progress import View
from cst_search.report.summary import front_report, page_report
from cst_search.search.samplers import SAMPLERS
from cst_search.search.session import SearchSession
from cst_search.study import pareto
from cst_search.study import study as studies
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.records import Budget, LaunchRecord, StudyInfo, StudySpec
from cst_search.study.study import Study
from cst_search.tracking.mlflow_record import MlflowRecord

SHAPE, N_CLASSES = InputShape(128, 128, 8), 3  # the demo's
BUDGET = Budget(memory_bytes=720_000_000)  # demo trials of the space need 690 to 760 MB
N_GP = 200  # the GP sampler takes n^3; Optuna advises up to 500 trials, and above 200 one suggestion takes seconds


# --- a study of n trials --------------------------------------------------------------------------------------------


def make_spec(sampler: str = "random") -> StudySpec:
    return StudySpec(
        objectives=tuple(OBJECTIVES[name] for name in ("map", "device_bytes", "trainable_params")),
        budget=BUDGET,
        reference_point={"map": 0.0, "device_bytes": 720e6, "trainable_params": 2.5e6},
        recipe=load_recipe("demo").to_dict(),
        space=json.loads(json.dumps(load_space("cst", load_recipe("demo")).source)),
        data="demo",
        seed=0,
        sampler=sampler,
        target_device="CUDA GPU (generic)",
        inputs={"n_classes": N_CLASSES, "max_boxes": 8, "sizes": [[128, 128]]},
    )


def estimator() -> Estimator:
    """Return the estimator that a launch uses."""
    return Estimator(load_recipe("demo"), N_CLASSES, ((SHAPE.height_px, SHAPE.width_px),), SHAPE.max_boxes)


def rough_estimator() -> Callable[[dict[str, Any]], Estimate]:
    """Return a fast estimator, for ten thousand trials: one trace per value of what affects memory most."""
    exact, names = estimator(), ("batch_size", "image_size_px", "cst.reduction", "head")

    @functools.cache
    def of(key: tuple[Any, ...]) -> Estimate:
        return exact({"method": "cst", **dict(zip(names, key, strict=True))})

    return lambda config: of(tuple(config[name] for name in names))


def made_up_result(config: Mapping[str, Any], estimate: Mapping[str, Any], rng: random.Random) -> dict[str, Any]:
    """Return a made-up `TrialResult.to_dict()` of five epochs: better with more parameters and an lr near 5e-3."""
    outcome = rng.choices(("complete", "oom", "nonfinite", "failed"), (90, 4, 3, 3))[0]
    if outcome != "complete":
        return {"outcome": outcome, "reason": f"made up: {outcome}", "history": [], "final": {}, "seconds": 3.0}
    reach = 0.5 * (1 - math.exp(-estimate["petl_params"] / 2e5)) - 0.1 * abs(math.log10(config["lr"] / 5e-3))
    best = min(0.95, max(0.01, reach + rng.gauss(0.1, 0.03)))
    history = [
        {"epoch": e, "loss": 2.0 / e + rng.random() * 0.1, "lr": config["lr"], "images_per_second": 50 + rng.random()}
        | ({"map": best * (0.6 + 0.08 * e), "map50": min(1.0, 1.4 * best)} if e in (3, 5) else {})
        for e in range(1, 6)
    ]
    scores = {"map": best, "map50": min(1.0, 1.4 * best), "map75": best, "map_small": None, "map_medium": best,
              "map_large": best, "per_class": {"disc": best, "square": best, "star": best},
              "images_per_second": 80.0}  # fmt: skip
    return {
        "outcome": "complete", "petl_params": estimate["petl_params"],
        "trainable_params": estimate["trainable_params"], "map": best, "map50": min(1.0, 1.4 * best),
        "loss": history[-1]["loss"], "device_bytes": None, "reserved_bytes": None, "active_bytes": None,
        "images_per_second": 50.0, "seconds": 20 + 10 * rng.random(), "train_seconds": 20.0, "epochs": 5,
        "reason": None, "device": "cpu", "history": history, "final": {"val": scores}, "limit_bytes": None,
        "held_bytes": None, "asked_bytes": None, "stage": None,
    }  # fmt: skip


def make_trials(n: int) -> list[optuna.trial.FrozenTrial]:
    """Make n finished trials with `ask` and `tell` of a study in memory."""
    with mock.patch.object(studies, "open_storage", lambda url, make=False: optuna.storages.InMemoryStorage()):
        study = Study.create("", "made up", make_spec())
    session = SearchSession(study)
    session.begin_launch()
    rng, estimate = random.Random(0), rough_estimator()
    while True:
        suggestion = session.ask(estimate)
        assert suggestion is not None
        session.tell(suggestion.trial, made_up_result(suggestion.config, suggestion.estimate, rng))
        if suggestion.trial >= n - 1:
            return study.optuna_study().get_trials(deepcopy=False)[:n]


def fill(url: str, name: str, trials: list[optuna.trial.FrozenTrial]) -> None:
    """Create a study with these trials in one transaction; Optuna's own way takes a minute per thousand."""
    study_id = Study.create(url, name, make_spec()).optuna_study()._study_id
    engine = sqlalchemy.create_engine(url)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    rows: dict[str, list[dict[str, Any]]] = {key: [] for key in ("params", "values", "user", "system")}
    with engine.begin() as connection:
        connection.execute(tables.tables["trials"].insert(), [
            {"number": t.number, "study_id": study_id, "state": t.state.name, "datetime_start": t.datetime_start,
             "datetime_complete": t.datetime_complete}
            for t in trials
        ])  # fmt: skip
        table = tables.tables["trials"].c
        found = connection.execute(sqlalchemy.select(table.trial_id, table.number).where(table.study_id == study_id))
        ids = {number: trial_id for trial_id, number in found}
        for t in trials:
            own = {"trial_id": ids[t.number]}
            rows["params"] += [
                own | {
                    "param_name": key, "param_value": t.distributions[key].to_internal_repr(value),
                    "distribution_json": optuna.distributions.distribution_to_json(t.distributions[key]),
                } for key, value in t.params.items()
            ]  # fmt: skip
            rows["values"] += [
                own | {"objective": i, "value": v if math.isfinite(v) else None,
                       "value_type": "FINITE" if math.isfinite(v) else "INF_POS" if v > 0 else "INF_NEG"}
                for i, v in enumerate(t.values or [])
            ]  # fmt: skip
            rows["user"] += [own | {"key": k, "value_json": json.dumps(v)} for k, v in t.user_attrs.items()]
            rows["system"] += [own | {"key": k, "value_json": json.dumps(v)} for k, v in t.system_attrs.items()]
        for key, table_name in (("params", "trial_params"), ("values", "trial_values"),
                                ("user", "trial_user_attributes"), ("system", "trial_system_attributes")):  # fmt: skip
            if rows[key]:
                connection.execute(tables.tables[table_name].insert(), rows[key])
    engine.dispose()


def fill_mlflow(uri: str, artifacts: Path, url: str, name: str) -> None:
    """Create the study's runs in MLflow: a few by `MlflowRecord.sync`, all others as copies of the first's rows."""
    info = Study.open(url, name).info()
    front = {record_.trial for record_ in info.front()}
    few = replace(info, trials=info.trials[:1])
    record = MlflowRecord(uri, artifacts, warn=print)
    record.start(info, LaunchRecord("made-up", "launch", info.started, {"trials": len(info.trials)}))
    record.sync(few)
    assert record.close(600)
    engine = sqlalchemy.create_engine(uri)
    tables = sqlalchemy.MetaData()
    tables.reflect(engine)
    experiment = mlflow.MlflowClient(uri).get_experiment_by_name(name)
    (first,) = mlflow.MlflowClient(uri).search_runs([experiment.experiment_id], "tags.`cst.kind` = 'trial'")
    with engine.begin() as connection:
        for table_name in ("runs", "tags", "params", "metrics", "latest_metrics"):
            table = tables.tables[table_name]
            template = [
                dict(row._mapping)
                for row in connection.execute(table.select().where(table.c.run_uuid == first.info.run_id))
            ]
            copies = []
            for record_ in info.trials[1:]:
                run = {"run_uuid": uuid.uuid5(uuid.NAMESPACE_OID, f"{name} {record_.trial}").hex}
                for row in template:
                    changed = dict(row) | run
                    if row.get("key") == "cst.trial":
                        changed["value"] = str(record_.trial)
                    elif row.get("key") == "cst.pareto":
                        changed["value"] = str(record_.trial in front).lower()
                    copies.append(changed)
            connection.execute(table.insert(), copies)
    engine.dispose()


# --- timing ---------------------------------------------------------------------------------------------------------


class Clock:
    """Context that measures wall and CPU time of its block (all threads), in milliseconds."""

    def __init__(self, collect: bool = True) -> None:
        self.collect = collect

    def __enter__(self) -> Clock:
        if self.collect:
            gc.collect()
        self.begun = time.perf_counter(), time.process_time()
        return self

    def __exit__(self, *error: object) -> None:
        self.wall = 1000 * (time.perf_counter() - self.begun[0])
        self.cpu = 1000 * (time.process_time() - self.begun[1])


class _TimedSampler(optuna.samplers.BaseSampler):
    """Wraps a sampler and adds up its time, which includes reading the trials that it models."""

    def __init__(self, sampler: optuna.samplers.BaseSampler) -> None:
        self.sampler, self.wall, self.cpu = sampler, 0.0, 0.0

    def _timed(self, name: str, *arguments: Any) -> Any:
        with Clock(collect=False) as clock:
            result = getattr(self.sampler, name)(*arguments)
        self.wall, self.cpu = self.wall + clock.wall, self.cpu + clock.cpu
        return result

    def infer_relative_search_space(self, *a: Any) -> Any:
        return self._timed("infer_relative_search_space", *a)

    def sample_relative(self, *a: Any) -> Any:
        return self._timed("sample_relative", *a)

    def sample_independent(self, *a: Any) -> Any:
        return self._timed("sample_independent", *a)

    def before_trial(self, *a: Any) -> Any:
        return self._timed("before_trial", *a)

    def after_trial(self, *a: Any) -> Any:
        return self._timed("after_trial", *a)


class Figures:
    """Measurements by name, with medians at the end."""

    def __init__(self) -> None:
        self.all: dict[str, list[tuple[float, float]]] = {}

    def note(self, name: str, wall: float, cpu: float | None = None) -> None:
        self.all.setdefault(name, []).append((wall, wall if cpu is None else cpu))

    def take(self, name: str, call: Callable[[], Any], repeat: int = 1) -> Any:
        for _ in range(repeat):
            with Clock() as clock:
                result = call()
            self.note(name, clock.wall, clock.cpu)
        return result

    def medians(self) -> dict[str, dict[str, float]]:
        return {
            name: {"wall_ms": round(statistics.median(w for w, _ in rows), 2),
                   "cpu_ms": round(statistics.median(c for _, c in rows), 2)}
            for name, rows in self.all.items()
        }  # fmt: skip


def measure(url: str, name: str, home: Path, n: int, repeat: int) -> dict[str, Any]:
    figures = Figures()
    work(url, name, home, [s for s in SAMPLERS if s != "gp" or n <= N_GP], figures, repeat)
    info = figures.take("read the study", lambda: Study.open(url, name).info(), repeat)
    figures.take("front, hypervolume, knee", lambda: front_report(info), repeat)
    figures.take("hypervolume by trial", lambda: growth(info), repeat)
    files = figures.take("page, image, JSON", lambda: write_front(page_report(info), home / "page"))
    commands = (["status", name], ["status", name, "--json"], ["front", name, "--json"], ["list"], ["list", "--json"])
    for command in commands:
        figures.note(" ".join(["cst-search", *command]).replace(f" {name}", ""), *run(command, url, home))
    return {
        "figures": figures.medians(),
        "n_front": len(info.front()),
        "bytes": {path.name: path.stat().st_size for path in files.values()},
    }


def growth(info: StudyInfo) -> list[float]:
    return pareto.hypervolume_by_trial(info.values(), info.objectives, info.reference)


def work(url: str, name: str, home: Path, samplers: Sequence[str], figures: Figures, repeat: int) -> None:
    """Continue the study as a launch does: ``repeat`` suggestions of each sampler, each told at once."""
    rng, estimate = random.Random(0), estimator()
    with Clock() as clock:
        study = Study.open(url, name)
        session = SearchSession(study)
        session.begin_launch()
    figures.note("resume", clock.wall, clock.cpu)
    # the first suggestion of a launch waits for this
    figures.take("resume: Optuna's own reading", lambda: study.optuna_study().get_trials(deepcopy=False))
    record = MlflowRecord(f"sqlite:///{home / 'mlflow.db'}", home / "artifacts", warn=print)
    record.start(study.info(), session.describe_launch({"trials": 10**6}))
    on_finished = follow(study, record)
    figures.take("resume: tally", on_finished)
    figures.take("resume: MLflow's thread", lambda: delivered(record))
    view = View(
        Console(file=io.StringIO()), title="", n_trials=10**6, n_workers=1, n_done=0, epochs=5, on_finished=on_finished
    )
    spent = [0.0, 0.0]

    def timed_estimate(config: dict[str, Any]) -> Estimate:
        with Clock(collect=False) as clock:
            cost = estimate(config)
        spent[:] = [clock.wall, clock.cpu]
        return cost

    timed_estimate.roughly = estimate.roughly  # type: ignore[attr-defined]
    for sampler in samplers:
        # no budget, so that no suggestion is rejected
        study.spec = replace(study.spec, sampler=sampler, budget=Budget())
        session.suggester.bounds = Budget()
        timed_sampler = study.optuna_study().sampler = _TimedSampler(session.suggester.sampler())
        for i in range(repeat + 1):
            timed_sampler.wall = timed_sampler.cpu = 0.0
            with Clock() as clock:
                suggestion = session.ask(timed_estimate)
            assert suggestion is not None
            result = made_up_result(suggestion.config, suggestion.estimate, rng)
            if i == 0:  # warms the caches of this process
                session.tell(suggestion.trial, result)
                continue
            figures.note(f"suggest: sampler {sampler}", timed_sampler.wall, timed_sampler.cpu)
            figures.note("suggest: predicted cost", *spent)
            rest = (clock.wall - timed_sampler.wall - spent[0], clock.cpu - timed_sampler.cpu - spent[1])
            figures.note("suggest: storing it, and all else", *rest)
            told = figures.take("record: tell", lambda s=suggestion, r=result: session.tell(s.trial, r))
            figures.take("record: tally and screen", lambda t=told: view.finished(t))
            figures.take("record: MLflow's thread", lambda: delivered(record))
    session.end_launch()
    record.close()


def delivered(record: MlflowRecord) -> None:
    done = threading.Event()
    record._calls.put(done.set)
    done.wait()


def run(command: list[str], url: str, home: Path) -> tuple[float, float]:
    """Run the command line in a process of its own. Returns its (wall, CPU) time in milliseconds."""
    words = [sys.executable, "-m", "cst_search.cli", *command, "--storage", url, "--home", str(home)]
    begun, before = time.perf_counter(), os.times()
    subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return 1000 * (time.perf_counter() - begun), 1000 * cpu


def show(rows: Mapping[int, Mapping[str, Any]], what: str) -> str:
    names = list(dict.fromkeys(name for row in rows.values() for name in row["figures"]))
    lines = [f"{what}, ms".ljust(34) + "".join(f"{n:>12,}" for n in rows)]
    for name in names:
        found = (row["figures"].get(name, {}).get(f"{what}_ms") for row in rows.values())
        lines.append(name.ljust(34) + "".join(f"{'-' if value is None else f'{value:,.1f}':>12}" for value in found))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", default="100,1000,10000", help="sizes, with commas")
    parser.add_argument("--storage", help="database URL; studies named large-N are made in it [default: SQLite]")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--home", type=Path, help="folder to work in, new or empty [default: a temporary one]")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    sizes = [int(word) for word in args.trials.split(",")]
    made = make_trials(max(sizes))
    rows: dict[int, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(dir=args.home) as folder:
        for n in sizes:
            home, name = Path(folder) / str(n), f"large-{n}"
            home.mkdir()
            url = args.storage or f"sqlite:///{home / 'studies.db'}"
            fill(url, name, made[:n])
            fill_mlflow(f"sqlite:///{home / 'mlflow.db'}", home / "artifacts", url, name)
            rows[n] = measure(url, name, home, n, args.repeat)
            print(f"{n} trials done", file=sys.stderr, flush=True)
    print(show(rows, "wall"), show(rows, "cpu"), sep="\n\n")
    for n, row in rows.items():
        print(f"{n:,} trials: {row['n_front']} on the front; bytes {row['bytes']}")
    result = {
        "date": date.today().isoformat(), "database": sqlalchemy.make_url(args.storage or "sqlite://").drivername,
        "python": platform.python_version(), "optuna": optuna.__version__, "mlflow": mlflow.__version__,
        "sqlalchemy": sqlalchemy.__version__, "cpus": os.cpu_count(), "load": os.getloadavg(), "repeat": args.repeat,
        "sizes": rows,
    }  # fmt: skip
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
