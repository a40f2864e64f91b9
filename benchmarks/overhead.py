"""Measure the overhead of a search: 50 trials that do nothing, by a launch and by `stock.py`.

    python benchmarks/overhead.py --out benchmarks/results/overhead-NAME.json        (about 6 minutes on two cores)
    python benchmarks/overhead.py --seconds 2 --sides launch,stock-reuse --out ...     (a trial waits for 2 s)

A trial imports the modules of a real one and returns a made-up result, at once or after --seconds. At once, the search
is still busy with one trial when the next should begin, which does not happen with real trials. Everything else is
real: for a launch the study in SQLite, the MLflow record, the events and the report; for stock.py OptunaSearch, Tune's
files and the MLflow callback. Every trial notes its begin and end in its worker. With w workers, the notes give:

    start-up        from the start of the command until the first trial begins
    per trial       from the end of the w-th trial to the end of the last, over the trials between
    trial's start   from when a worker is free until the next trial begins in it; median
    the end         from the end of the last trial to the end of the command
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wall import machine

from cst_search.data.dataset import DetectionData

SIDES = {
    "function": "the trial function alone",
    "in-process": "cst-search launch --in-process",
    "launch": "cst-search launch",
    "stock-reuse-bare": "stock.py --reuse-actors, no MLflow",
    "stock-reuse": "stock.py --reuse-actors",
    "stock-bare": "stock.py, no MLflow",
    "stock": "stock.py",
}


# --- a trial that does nothing ---------------------------------------------------------------------------------------


def nothing(notes: str, seconds: float, recipe: Any, data: Any, *, report: Any = None, **_: Any) -> Any:
    """Return a made-up result of one epoch, in place of `cst_search.trial.run.run_trial`."""
    import json
    import os
    import time

    from cst_search.trial.result import TrialResult

    begun = time.time()
    time.sleep(seconds)
    score = (hash((recipe.lr, recipe.batch_size)) % 1000) / 1000
    entry = {"epoch": 1, "loss": 1.0, "images_per_second": 1.0, "map": score, "map50": score}
    if report is not None:
        report(entry)
    with open(notes, "a") as file:
        file.write(json.dumps({"pid": os.getpid(), "begun": begun, "ended": time.time()}) + "\n")
    return TrialResult("complete", 1, 1, map=score, map50=score, loss=1.0, seconds=0.0, epochs=1, history=[entry])


def arrive(notes: str, seconds: float, values: dict[str, Any]) -> DetectionData:
    """Unpickle the data, and replace the trial function by `nothing` in the process that does so."""
    import functools
    import sys

    import cst_search.trial.run
    from cst_search.data.dataset import DetectionData

    cst_search.trial.run.run_trial = functools.partial(nothing, notes, seconds)
    if "stock" in sys.modules:
        sys.modules["stock"].run_trial = cst_search.trial.run.run_trial  # type: ignore[attr-defined]
    return DetectionData(**values)


class Carrier(DetectionData):
    """Data that replaces the trial function in the worker where it is unpickled."""

    notes, seconds = "", 0.0

    def __reduce__(self) -> Any:
        return arrive, (self.notes, self.seconds, {f.name: getattr(self, f.name) for f in fields(DetectionData)})


def carried(data: DetectionData, args: argparse.Namespace) -> DetectionData:
    values = {f.name: getattr(data, f.name) for f in fields(DetectionData)}
    Carrier.notes, Carrier.seconds = str(args.home / "notes.jsonl"), args.seconds
    arrive(Carrier.notes, Carrier.seconds, values)  # for trials in this process
    return Carrier(**values)


# --- one side, in a process of its own -------------------------------------------------------------------------------


@contextlib.contextmanager
def stamped(parts: dict[str, list[float]], place: Any, *names: str) -> Iterator[None]:
    """Context in which calls of these functions store [begin, end] in ``parts``, in time.time(); the last one stays."""
    kept = {name: getattr(place, name) for name in names}

    def wrapped(name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = time.time()
            try:
                return kept[name](*args, **kwargs)
            finally:
                parts[name] = [begun, time.time()]

        return call

    for name in names:
        setattr(place, name, wrapped(name))
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(place, name, function)


def launch_side(side: str, args: argparse.Namespace) -> dict[str, Any]:
    """Run a real launch with a made-up trial function."""
    begun = time.time()
    from rich.console import Console

    from cst_search.commands import launch as launching
    from cst_search.commands import study_setup, worker_setup
    from cst_search.commands.options import LaunchOptions
    from cst_search.report.progress import View

    parts: dict[str, list[float]] = {"imports": [begun, time.time()]}
    load = study_setup.load_dataset
    study_setup.load_dataset = lambda *a: carried(load(*a), args)  # type: ignore[assignment]
    options = LaunchOptions(
        home=args.home, settings=("search_epochs=1",), space="cst", trials=args.trials, workers=args.workers,
        device="cpu", in_process=side == "in-process", study="overhead",
    )  # fmt: skip
    with contextlib.ExitStack() as stack, open(os.devnull, "w") as nowhere:
        stack.enter_context(stamped(parts, study_setup, "load_dataset", "check_weights", "survey_costs"))
        stack.enter_context(stamped(parts, study_setup, "open_or_make_study"))
        stack.enter_context(stamped(parts, worker_setup, "make_workers"))
        stack.enter_context(stamped(parts, launching, "recorded_settings", "write_report"))
        stack.enter_context(stamped(parts, View, "__enter__"))
        if side == "launch":
            begun = time.time()
            import ray

            from cst_search.execution.ray_tune import Ray

            parts["import ray"] = [begun, time.time()]
            stack.enter_context(stamped(parts, ray, "init", "shutdown"))
            stack.enter_context(stamped(parts, Ray, "prepare", "run"))
        launching.launch(options, Console(file=nowhere))
    return parts


def stock_side(side: str, args: argparse.Namespace) -> dict[str, Any]:
    import stock
    from ray.tune import Callback

    load = stock.load_data
    stock.load_data = lambda path: (carried(load(path)[0], args), None)  # type: ignore[assignment]
    if "bare" in side:
        stock.MLflowLoggerCallback = lambda *a, **k: Callback()  # type: ignore[assignment,misc]
    reuse = ["--reuse-actors"] if "reuse" in side else []
    sys.argv = [
        "stock.py",
        "--home",
        str(args.home),
        "--trials",
        str(args.trials),
        "--workers",
        str(args.workers),
        *reuse,
    ]
    stock.main()
    return {}


def function_side(args: argparse.Namespace) -> dict[str, Any]:
    from cst_search.config.loading import load_recipe
    from cst_search.data.dataset import load_data
    from cst_search.trial import run as trial

    data = carried(load_data(args.home / "demo-data")[0], args)
    recipe = load_recipe("demo")
    for _ in range(args.trials):
        trial.run_trial(recipe, data)
    return {}


def child(side: str, args: argparse.Namespace) -> None:
    one = function_side(args) if side == "function" else (stock_side if "stock" in side else launch_side)(side, args)
    (args.home / "parts.json").write_text(json.dumps(one))


# --- all of them -----------------------------------------------------------------------------------------------------


def figures(begun: float, ended: float, notes: Sequence[Mapping[str, float]], n_workers: int) -> dict[str, float]:
    """Return the four figures listed at the top of this file, in seconds, from times of one clock."""
    begins, ends = sorted(note["begun"] for note in notes), sorted(note["ended"] for note in notes)
    waits = [begin - end for begin, end in zip(begins[n_workers:], ends, strict=False)]
    return {
        "startup_seconds": begins[0] - begun,
        "per_trial_seconds": (ends[-1] - ends[n_workers - 1]) / (len(ends) - n_workers),
        "start_seconds": statistics.median(waits),
        "start_seconds_high": max(waits),
        "end_seconds": ended - ends[-1],
        "total_seconds": ended - begun,
    }


def startup(begun: float, parts: Mapping[str, Sequence[float]], first: float) -> dict[str, float]:
    """Return the parts of a launch's start-up in seconds; parallel parts are named so and are not in the sum."""
    took = {name: end - begin for name, (begin, end) in parts.items()}
    found = {
        "python, torch, torchvision": parts["imports"][1] - begun,
        "data": took["load_dataset"],
        "detector": took["check_weights"],
        "survey": took["survey_costs"],
        "ray, imported": took.get("import ray", 0.0) + took["make_workers"],
        "study": parts["recorded_settings"][0] - parts["make_workers"][1],
    }
    if "run" in parts:
        found["study"] = parts["prepare"][0] - parts["make_workers"][1]
        found["mlflow, imported"] = parts["run"][0] - parts["prepare"][1]
        found["waiting for ray.init"] = max(0.0, parts["init"][1] - parts["run"][0])
        found["until a worker has begun"] = first - max(parts["run"][0], parts["init"][1])
        found["beside: ray.init"] = took["init"]
    return found


def run_side(side: str, home: Path, args: argparse.Namespace) -> dict[str, Any]:
    words = [sys.executable, str(Path(__file__).resolve()), "--side", side, "--home", str(home), "--trials",
             str(args.trials), "--workers", str(args.workers), "--seconds", str(args.seconds)]  # fmt: skip
    # stock.py is a module here, which Ray's workers must find
    path = os.pathsep.join([str(Path(__file__).resolve().parent), *filter(None, [os.environ.get("PYTHONPATH")])])
    quiet = {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0", "PYTHONPATH": path}
    with (home / "output.txt").open("w") as output:
        begun = time.time()
        code = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, env=os.environ | quiet).returncode
        ended = time.time()
    if code != 0:
        raise SystemExit(f"{SIDES[side]} ended with {code}:\n{(home / 'output.txt').read_text()[-3000:]}")
    notes = [json.loads(line) for line in (home / "notes.jsonl").read_text().splitlines()]
    n_workers = 1 if side in ("function", "in-process") else args.workers
    parts = json.loads((home / "parts.json").read_text())
    row = {"side": side, "n_trials": len(notes), "n_processes": len({note["pid"] for note in notes})}
    row |= figures(begun, ended, notes, n_workers)
    if parts:
        row["startup"] = startup(begun, parts, min(note["begun"] for note in notes))
    return row


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| side | start-up | per trial | a trial's start (longest) | the end | in all | processes |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        lines.append(
            f"| {SIDES[row['side']]} | {row['startup_seconds']:.1f} s | {row['per_trial_seconds']:.3f} s "
            f"| {row['start_seconds']:.3f} s ({row['start_seconds_high']:.2f}) | {row['end_seconds']:.1f} s "
            f"| {row['total_seconds']:.1f} s | {row['n_processes']} |"
        )
    for row in rows:
        if "startup" in row:
            lines.append(
                f"start-up of {SIDES[row['side']]}: " + ", ".join(f"{k} {v:.1f} s" for k, v in row["startup"].items())
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=50)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.0, help="that a trial takes")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        return child(args.side, args)
    sides = args.sides.split(",")
    if set(sides) - set(SIDES) or args.trials <= args.workers:
        parser.error(f"--sides takes {', '.join(SIDES)}; --trials must be above --workers")

    from cst_search.data.demo import write_demo

    rows = []
    with tempfile.TemporaryDirectory(prefix="overhead-") as folder:
        drawn = write_demo(Path(folder) / "demo-data")
        for side in sides:
            home = Path(folder) / side
            shutil.copytree(drawn, home / "demo-data")
            rows.append(run_side(side, home, args) | {"load_after": os.getloadavg()[0]})
            print(table(rows[-1:]).splitlines()[2], flush=True)
    print("\n" + table(rows))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(
            json.dumps(machine() | {"workers": args.workers, "trial_seconds": args.seconds, "rows": rows}, indent=1)
            + "\n"
        )


if __name__ == "__main__":
    main()
