"""Compare real searches at equal wall time: a launch beside the plain script `stock.py`, with the same space and seeds.

    python benchmarks/real.py --seconds 240 --out benchmarks/results/real-demo.json
    python benchmarks/real.py --data CHESS --recipe small --set image_size_px=128 --set max_size_px=213 \
      --set precision=bf16 --set search_epochs=4 --seconds 240 --out benchmarks/results/real-chess.json

For each seed a launch goes first. It starts no trial after --seconds and ends those that run; then `stock.py` searches
for as long as the launch took in all, start and report included. The launch stops trials early and keeps feature maps,
as it does by default. It has no sources (``--prior none``), since the shipped ones know the demo and these sets.

Of each side the complete trials count. Hypervolume is a study's: mAP, working memory and trained parameters, in the box
of the first launch. What is finished stands in --out; the same command goes on from there and prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wall import printed_trials, run_process

from cst_search.data.demo import write_demo
from cst_search.study import pareto
from cst_search.study.objectives import choose_objectives
from cst_search.study.states import TrialState
from cst_search.study.study import Study

HERE = Path(__file__).resolve().parent
_CLI = "from cst_search.cli import run; run()"
OBJECTIVES = choose_objectives("map,device_bytes,trainable_params")


# --- the sides -------------------------------------------------------------------------------------------------------


def run_launch(home: Path, shared: Sequence[str], seed: int, seconds: float) -> dict[str, Any]:
    """Run a launch. Returns its complete trials, and the reference point of its study."""
    flags = ["--space", "cst", "--device", "cpu", "--study", "real", "--prior", "none", "--trials", "10000"]
    words = [
        sys.executable,
        "-c",
        _CLI,
        "launch",
        *shared,
        *flags,
        "--seed",
        str(seed),
        "--time-limit",
        f"{seconds:g}s",
    ]
    _, took = run_process("the launch", words, home)
    info = Study.open(f"sqlite:///{home}/studies.db", "real").info()
    complete = [record for record in info.trials if record.state == TrialState.COMPLETE]
    points = [[record.map, record.working_bytes, record.trainable_params] for record in complete]
    return {
        "side": "launch", "seed": seed, "seconds": took, "n_started": info.n_ran(), "points": points,
        "reference": info.reference, "context_bytes": info.context_bytes,
    }  # fmt: skip


def run_stock(home: Path, shared: Sequence[str], seed: int, launch: Mapping[str, Any]) -> dict[str, Any]:
    """Run the plain script for as long as a launch took."""
    words = [sys.executable, str(HERE / "stock.py"), *shared, "--trials", "10000", "--seed", str(seed)]
    said, took = run_process("stock.py", [*words, "--seconds", f"{launch['seconds']:.0f}"], home)
    trials = printed_trials(said)
    points = [
        [trial["map"], trial["device_bytes"] - launch["context_bytes"], trial["trainable_params"]]
        for trial in trials
        if trial["map"] is not None
    ]
    return {"side": "stock", "seed": seed, "seconds": took, "n_started": len(trials), "points": points}


# --- the table -------------------------------------------------------------------------------------------------------


def figures(run: Mapping[str, Any], reference: Sequence[float]) -> dict[str, float]:
    """Return hypervolume, best mAP, points of the front, and complete trials of a run."""
    points = run["points"]
    return {
        "hypervolume": pareto.hypervolume(points, OBJECTIVES, reference) if points else 0.0,
        "best map": max((point[0] for point in points), default=0.0),
        "front": len(pareto.front(points, OBJECTIVES)) if points else 0,
        "complete": len(points),
    }


def table(runs: Sequence[Mapping[str, Any]]) -> str:
    """Return a row per seed and side. The box is that of the first launch."""
    reference = runs[0]["reference"]
    lines = ["| seed | side | seconds | trials | complete | hypervolume | best mAP | front |", "|---" * 8 + "|"]
    for run in sorted(runs, key=lambda run: (run["seed"], run["side"])):
        found = figures(run, reference)
        lines.append(
            f"| {run['seed']} | {run['side']} | {run['seconds']:.0f} | {run['n_started']} | {found['complete']} "
            f"| {found['hypervolume']:.3f} | {found['best map']:.3f} | {found['front']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, help="folder of a data set [the demo]")
    parser.add_argument("--recipe", default="demo")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="of the recipe")
    parser.add_argument("--seconds", type=float, default=240.0, help="after which a launch starts no trial")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True, help="JSON; what stands in it is not run again")
    args = parser.parse_args()
    found = json.loads(args.out.read_text()) if args.out.exists() else {"runs": []}
    runs = found["runs"]
    found |= {
        "data": args.data.name if args.data else "demo", "recipe": args.recipe, "set": args.set,
        "time_limit": args.seconds, "workers": args.workers, "machine": platform.machine(),
        "n_cores": len(os.sched_getaffinity(0)), "python": platform.python_version(),
        "versions": {name: version(name) for name in ("cst-search", "torch", "ray", "optuna", "mlflow")},
    }  # fmt: skip
    for seed in range(args.seeds):
        launch = next((run for run in runs if run["seed"] == seed and run["side"] == "launch"), None)
        for side in ("launch", "stock"):
            if any(run["seed"] == seed and run["side"] == side for run in runs):
                continue
            with tempfile.TemporaryDirectory(prefix="real-") as folder:
                home = Path(folder)
                data = args.data.absolute() if args.data else write_demo(home / "demo-data")
                shared = ["--home", str(home), "--data", str(data), "--recipe", args.recipe]
                shared += ["--workers", str(args.workers)]
                shared += [word for setting in args.set for word in ("--set", setting)]
                if side == "launch":
                    launch = run_launch(home, shared, seed, args.seconds)
                    runs.append(launch)
                else:
                    assert launch is not None
                    runs.append(run_stock(home, shared, seed, launch))
            args.out.write_text(json.dumps(found, indent=1) + "\n")
            print(f"seed {seed}, {side}: {figures(runs[-1], runs[0]['reference'])}", flush=True)
    print(table(runs))


if __name__ == "__main__":
    main()
