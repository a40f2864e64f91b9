"""Measure the wall time of one search: a launch beside the plain script `stock.py`, on the embedded demo.

    python benchmarks/wall.py --trials 24 --out benchmarks/results/wall-NAME.json        (each with its own sampler)
    python benchmarks/wall.py --same --trials 24 --out benchmarks/results/wall-same-NAME.json      (the same trials)

Every side is a process of its own with a fresh home, in which the demo's images are already drawn. Wall time runs from
its start to its end, with imports, Ray, databases and, for a launch, the report page and the export. The trials
themselves measure the seconds of training and evaluation, which are divided by the workers. The rest is not training:
starting, waiting, recording, and workers without a trial while another one ends its last.

Two samplers choose configurations of different cost, so their totals reflect luck as much as machinery. With --same
every side runs one list, that of the launch's random sampler. `pool` runs it too, with multiprocessing alone, which no
search with these workers can beat by much. The mAPs of a configuration must then agree.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

HERE = Path(__file__).resolve().parent
SIDES = {
    "launch": "cst-search launch",
    "stock": "stock.py",
    "stock-reuse": "stock.py --reuse-actors",
    "pool": "multiprocessing.Pool, nothing else",
}
_CLI = "from cst_search.cli import main; main()"
# no side sends telemetry
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "RAY_USAGE_STATS_ENABLED": "0"}


# --- the sides -------------------------------------------------------------------------------------------------------


def command(side: str, home: Path, points: Path | None, args: argparse.Namespace) -> list[str]:
    shared = ["--home", str(home), "--trials", str(args.trials), "--workers", str(args.workers)]
    shared += [word for setting in args.set for word in ("--set", setting)]
    threads = ["--threads", str(threads_of(args.workers))]
    if side == "launch":
        same = ["--sampler", "random", "--no-stop-early"] if args.same else []
        return [sys.executable, "-c", _CLI, "launch", *shared, "--space", "cst", "--device", "cpu", "--study", "wall",
                "--seed", str(args.seed), *same]  # fmt: skip
    listed = ["--points", str(points)] if points else []
    if side == "pool":
        return [sys.executable, str(HERE / "wall.py"), "--pool", *shared, *threads, *listed]
    reuse = ["--reuse-actors"] if side == "stock-reuse" else []
    return [sys.executable, str(HERE / "stock.py"), *shared, *threads, "--seed", str(args.seed), *listed, *reuse]


def threads_of(n_workers: int) -> int:
    """Return the CPU threads per trial, as a launch sets them."""
    n_cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, n_cores // n_workers)


def trials_of_launch(home: Path) -> list[dict[str, Any]]:
    """Return the trials of a launch's study in the form that stock.py prints."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study = optuna.load_study(study_name="wall", storage=f"sqlite:///{home}/studies.db")
    trials = []
    for attrs in (trial.user_attrs for trial in study.get_trials() if "cst_result" in trial.user_attrs):
        result, estimate = attrs["cst_result"], attrs["cst_suggested"]["estimate"]
        # for a trial stopped early only the whole time is known, which includes building the model
        trial = {"map": result.get("map"), "train_seconds": result.get("train_seconds") or result.get("seconds")}
        trial |= {key: estimate[key] for key in ("device_bytes", "trainable_params")}
        trials.append({"config": attrs["cst_suggested"]["config"]} | trial)
    return trials


def as_points(trials: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Convert configurations of a launch to those of stock.py, whose choices are scalars and whose method is fixed."""
    return [
        {key: "".join(map(str, value)) if isinstance(value, list) else value for key, value in trial["config"].items()
         if key != "method"}
        for trial in trials
    ]  # fmt: skip


def run_process(name: str, words: Sequence[str], home: Path) -> tuple[str, float]:
    """Run a side's program, whose output goes to a file in ``home``. Returns what it printed, and its seconds."""
    with (home / "output.txt").open("w") as output:
        begun = time.perf_counter()
        code = subprocess.run(words, stdout=output, stderr=subprocess.STDOUT, env=os.environ | _QUIET).returncode
        seconds = time.perf_counter() - begun
    said = (home / "output.txt").read_text()
    if code != 0:
        raise SystemExit(f"{name} ended with {code}:\n{said[-3000:]}")
    return said, seconds


def printed_trials(said: str) -> list[dict[str, Any]]:
    """Return the trials that stock.py printed. Ray may print more after its last line."""
    found: list[dict[str, Any]] = json.loads(said[said.rindex('[{"config"') :].splitlines()[0])
    return found


def run_side(side: str, home: Path, points: Path | None, args: argparse.Namespace) -> dict[str, Any]:
    """Run the search of one side from start to end."""
    load = os.getloadavg()[0]
    said, wall = run_process(SIDES[side], command(side, home, points, args), home)
    trials = trials_of_launch(home) if side == "launch" else printed_trials(said)
    return shares(wall, trials, args.workers) | {"side": side, "load_before": load, "trials": trials}


def shares(wall: float, trials: Sequence[Mapping[str, Any]], n_workers: int) -> dict[str, float]:
    """Return seconds of wall time, of training and evaluation (divided by workers), of the rest, and its share."""
    training = sum(trial["train_seconds"] or 0.0 for trial in trials) / n_workers
    return {
        "n_trials": len(trials),
        "wall_seconds": wall,
        "training_seconds": training,
        "rest_seconds": wall - training,
        "rest_share": 1 - training / wall,
    }


# --- the floor -------------------------------------------------------------------------------------------------------


def _trial_of_pool(job: tuple[dict[str, Any], Any, Any, int]) -> dict[str, Any]:
    import torch

    from cst_search.trial.run import run_trial

    config, recipe, data, threads = job
    torch.set_num_threads(threads)
    stages = tuple(map(int, config["cst.mtc_stages"]))
    configured = recipe.configured(config | {"method": "cst", "cst.mtc_stages": stages})
    result = run_trial(configured, data, epochs=recipe.search_epochs, device="cpu")
    return {"config": config, "map": result.map, "train_seconds": result.train_seconds}


def pool(args: argparse.Namespace) -> None:
    from cst_search.config.loading import apply_settings, load_recipe
    from cst_search.data.dataset import load_data
    from cst_search.data.demo import write_demo

    data, _ = load_data(write_demo(args.home / "demo-data"))
    recipe = apply_settings(load_recipe("demo"), args.set, "demo")
    jobs = [(config, recipe, data, args.threads) for config in json.loads(args.points.read_text())]
    with multiprocessing.get_context("spawn").Pool(args.workers) as processes:
        print(json.dumps(list(processes.imap(_trial_of_pool, jobs))))


# --- the table -------------------------------------------------------------------------------------------------------


TIMES = ("wall_seconds", "training_seconds", "rest_seconds")


def summary(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per side: means over its rounds, and their ratios to those of the launch."""
    rows = []
    for side in SIDES:
        own = [run for run in runs if run["side"] == side]
        if not own:
            continue
        row = {"side": side, "rounds": len(own), "n_trials": own[0]["n_trials"]}
        row |= {key: sum(run[key] for run in own) / len(own) for key in TIMES}
        walls = [run["wall_seconds"] for run in own]
        row |= {
            "rest_share": row["rest_seconds"] / row["wall_seconds"],
            "wall_low": min(walls),
            "wall_high": max(walls),
        }
        rows.append(row)
    base = next((row for row in rows if row["side"] == "launch"), None)
    if base is not None:
        for row in rows:
            row |= {f"{key}_of_launch": row[key] / base[key] for key in (*TIMES, "rest_share")}
    return rows


def agreement(runs: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Count the configurations that ran on several sides, and those of them with equal mAP on all sides."""
    maps: dict[str, list[float | None]] = {}
    for run in runs:
        for trial in run["trials"]:
            config = as_points([trial])[0]
            maps.setdefault(json.dumps(config, sort_keys=True), []).append(trial["map"])
    shared = [values for values in maps.values() if len(values) == len(runs)]
    return {"configurations": len(shared), "with_one_map": sum(len(set(values)) == 1 for values in shared)}


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    lines = [
        "| side | trials | wall time | training | not training | share | wall of launch | rest of launch |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ratio = {
            key: f"{row[key]:.2f} x" if key in row else "-"
            for key in ("wall_seconds_of_launch", "rest_seconds_of_launch")
        }
        low_high = f" ({row['wall_low']:.0f} to {row['wall_high']:.0f})" if row["rounds"] > 1 else ""
        lines.append(
            f"| {SIDES[row['side']]} | {row['n_trials']} | {row['wall_seconds']:.1f} s{low_high} "
            f"| {row['training_seconds']:.1f} s | {row['rest_seconds']:.1f} s | {row['rest_share']:.1%} "
            f"| {ratio['wall_seconds_of_launch']} | {ratio['rest_seconds_of_launch']} |"
        )
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return the properties of the machine that timings depend on."""
    libraries = ("cst-search", "torch", "ray", "optuna", "mlflow")
    return {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": platform.processor() or platform.machine(),
        "n_cores": threads_of(1),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in libraries},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--workers", type=int, default=threads_of(1), help="trials at a time [one a core]")
    parser.add_argument("--rounds", type=int, default=1, help="of every side; their order turns round each time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--same", action="store_true", help="every side runs the same configurations")
    parser.add_argument("--sides", help=f"some of {','.join(SIDES)} [all; without --same no pool]")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="a field of the recipe")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--pool", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--home", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--points", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.pool:
        return pool(args)
    sides = args.sides.split(",") if args.sides else [side for side in SIDES if args.same or side != "pool"]
    if set(sides) - set(SIDES) or (not args.same and "pool" in sides) or (args.same and sides[0] != "launch"):
        parser.error(f"--sides takes {', '.join(SIDES)}; pool needs --same, and --same needs launch first")

    from cst_search.data.demo import write_demo

    runs: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="wall-") as folder:
        drawn = write_demo(Path(folder) / "demo-data")
        points = Path(folder) / "points.json"
        for i in range(args.rounds):
            for side in sides if i % 2 == 0 else reversed(sides):
                home = Path(folder) / f"{i}-{side}"
                shutil.copytree(drawn, home / "demo-data")
                run = run_side(side, home, points if args.same else None, args) | {"round": i}
                if side == "launch" and args.same and not points.exists():
                    points.write_text(json.dumps(as_points(run["trials"])))
                runs.append(run)
                print(f"round {i + 1}, {SIDES[side]}: {run['wall_seconds']:.1f} s, of it {run['rest_seconds']:.1f} s "
                      f"not training (load before: {run['load_before']:.1f})", flush=True)  # fmt: skip
    rows = summary(runs)
    print(table(rows))
    result = machine() | {"trials": args.trials, "workers": args.workers, "settings": args.set, "seed": args.seed}
    result |= {"same": args.same, "rows": rows, "runs": runs}
    if args.same:
        result["maps"] = agreement(runs)
        print("configurations with one map on all sides: {with_one_map} of {configurations}".format(**result["maps"]))
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
