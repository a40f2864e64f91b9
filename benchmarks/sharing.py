"""Compare several trials at a time on one GPU with one at a time: `cst-search launch` runs the same trials twice.

    python benchmarks/sharing.py --data DIR --recipe small --trials 12 --out benchmarks/results/sharing-NAME.json

Both sides draw the same list (sampler random, the same seed, no early stopping) and differ only in --workers. Wall time
covers the whole command, with imports, Ray, databases and report. Meanwhile the GPU's memory is sampled twice a second
for the total of all trials. Each trial's own peak is compared with its prediction.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cst_search.commands.budget_survey import estimator
from cst_search.config.loading import make_recipe
from cst_search.data.dataset import load_data
from cst_search.study.study import Study

ROOT = Path(__file__).resolve().parent.parent
SIDES = {"one at a time": ["--workers", "1"], "as many as fit": []}


def run_side(name: str, args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    home = folder / name.replace(" ", "-")
    command = [sys.executable, "-m", "cst_search.cli", "launch", "--home", str(home), "--study", "s",
               "--device", "cuda", "--trials", str(args.trials), "--seed", str(args.seed), "--sampler", "random",
               "--no-stop-early", "--budget-mem", args.budget_mem, *SIDES[name]]  # fmt: skip
    for flag in ("data", "recipe", "space"):
        command += [f"--{flag}", str(value)] if (value := getattr(args, flag)) else []
    command += [word for setting in args.set for word in ("--set", setting)]
    used: list[int] = []
    over = threading.Event()
    looks = threading.Thread(target=look, args=(used, over))
    looks.start()
    begun = time.perf_counter()
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "160"})
    wall = time.perf_counter() - begun
    over.set()
    looks.join()
    if done.returncode:
        sys.exit(f"{name}: exit code {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    at_once = re.search(r"(\d+) worker\(s\)", done.stdout)
    info = Study.open(f"sqlite:///{home / 'studies.db'}", "s").info()
    recipe = make_recipe(info.recipe, "the study")
    price = estimator(recipe, load_data(args.data or home / "demo-data", skip_bad=True)[0])
    trials = [
        {
            "trial": record.trial,
            "state": record.state,
            "reason": record.reason,
            "config": dict(record.config),
            "map": record.map,
            "reserved_bytes": record.reserved_bytes,
            "predicted_reserved_bytes": price(dict(record.config)).reserved_bytes,
            "seconds": record.seconds,
            "notes": list(record.notes),
        }
        for record in info.trials
    ]
    return {
        "side": name,
        "workers": int(at_once[1]) if at_once else None,
        "wall_seconds": wall,
        "card_bytes_before": used[0] if used else None,
        "card_bytes_peak": max(used, default=None),
        "trials": trials,
    }


def look(used: list[int], over: threading.Event) -> None:
    while not over.wait(0.5):
        free, total = torch.cuda.mem_get_info()
        used.append(total - free)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="COCO-format folder [the demo]")
    parser.add_argument("--recipe", help="a shipped name or a YAML file [the default]")
    parser.add_argument("--space", help="[the default]")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    parser.add_argument("--budget-mem", default="6GB")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    torch.cuda.init()
    with tempfile.TemporaryDirectory(prefix="sharing-") as folder:
        sides = [run_side(name, args, Path(folder)) for name in reversed(SIDES)]
    for side in sides:
        ran = [trial for trial in side["trials"] if trial["seconds"]]
        peaks = [
            trial["reserved_bytes"] / trial["predicted_reserved_bytes"] for trial in ran if trial["reserved_bytes"]
        ]
        ends = {
            state: sum(t["state"] == state for t in side["trials"]) for state in {t["state"] for t in side["trials"]}
        }
        print(
            f"{side['side']:15} {side['workers']} workers: {side['wall_seconds']:.1f} s, a trial takes "
            f"{median(t['seconds'] for t in ran):.1f} s (median), {ends}; the card held "
            f"{((side['card_bytes_peak'] or 0) - (side['card_bytes_before'] or 0)) / 1e9:.2f} GB more at its peak; "
            f"reserved over predicted {min(peaks):.2f} to {max(peaks):.2f}"
        )
    print(f"ratio of wall times: {sides[1]['wall_seconds'] / sides[0]['wall_seconds']:.2f}")
    result = {
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": torch.cuda.get_device_name(),
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in ("torch", "torchvision", "ray", "optuna", "mlflow")},
        "data": Path(args.data).name if args.data else "demo",
        **{name: getattr(args, name) for name in ("recipe", "space", "set", "budget_mem", "trials", "seed")},
        "sides": sides,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
