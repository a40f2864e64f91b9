"""Check a large search of empty trials, 8 at a time, some of them killed: every trial must be counted exactly once.

    python benchmarks/load.py --trials 1000 --kills 20 --out benchmarks/results/load-NAME.json     (about 5 minutes)

This is a real launch by the command line; only the trial function is made up (tests/faults/made_up.py). Processes of
trials are killed at random moments. Prints trials per second, the memory of the search's own process, and the size of
the database.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from wall import machine

from cst_search.study.study import Study, default_storage
from cst_search.tracking.connection import default_tracking_uri

MADE_UP = Path(__file__).resolve().parent.parent / "tests" / "faults" / "made_up.py"


def workers_of(driver: psutil.Process) -> list[psutil.Process]:
    """Return the processes that run trials now."""
    found = []
    for process in driver.children(recursive=True):
        with suppress(psutil.Error):
            if "ImplicitFunc" in "".join(process.cmdline()[:1]):
                found.append(process)
    return found


def search(home: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run the search, killing processes of trials at random."""
    arguments = [
        "launch", "--home", str(home), "--study", "load", "--trials", str(args.trials), "--workers", str(args.workers),
        "--set", "search_epochs=1", "--no-stop-early", "--device", "cpu", "--sampler", "random", "--cache-size", "0",
    ]  # fmt: skip
    rng, notes = random.Random(args.seed), home / "notes.jsonl"
    moments = sorted(rng.sample(range(args.trials // 20, args.trials * 9 // 10), args.kills))
    begun = time.monotonic()
    driver = psutil.Popen([sys.executable, str(MADE_UP), str(home), str(args.seconds), *arguments],
                          stdout=(home / "output.txt").open("w"), stderr=subprocess.STDOUT)  # fmt: skip
    memory: list[tuple[int, int]] = []  # trials so far, bytes
    first, killed = None, 0
    while driver.poll() is None:
        time.sleep(0.1)
        n = notes.read_bytes().count(b"\n") if notes.exists() else 0
        if n and first is None:
            first = time.monotonic()
        with suppress(psutil.Error):
            if n and (not memory or n >= memory[-1][0] + args.trials // 20):
                memory.append((n, driver.memory_info().rss))
            while moments and n >= moments[0]:
                moments.pop(0)
                at_work = workers_of(driver)
                if at_work:
                    rng.choice(at_work).kill()
                    killed += 1
    ended = time.monotonic()
    if driver.returncode:
        raise SystemExit((home / "output.txt").read_text()[-5000:])
    return {"seconds": ended - begun, "trials_per_second": args.trials / (ended - (first or begun)), "killed": killed,
            "driver_bytes": memory}  # fmt: skip


def count(home: Path) -> dict[str, Any]:
    """Count the trials that the study and MLflow have."""
    info = Study.open(default_storage(home), "load").info()
    configs = Counter(json.dumps(r.config, sort_keys=True) for r in info.trials if r.ran)
    client = MlflowClient(default_tracking_uri(home))
    experiment, runs, token = client.get_experiment_by_name("load"), Counter[str](), None
    while experiment is not None:
        page = client.search_runs([experiment.experiment_id], "tags.`cst.kind` = 'trial'", max_results=1000,
                                  page_token=token)  # fmt: skip
        runs.update(run.data.tags["cst.trial"] for run in page)
        token = page.token
        if not token:
            break
    return {
        "states": dict(Counter(r.state for r in info.trials)), "n_ran": info.n_ran(),
        "configurations_twice": sum(n > 1 for n in configs.values()),
        "mlflow_runs": len(runs), "mlflow_runs_twice": sum(n > 1 for n in runs.values()),
        "database_bytes": os.path.getsize(home / "studies.db"), "mlflow_bytes": os.path.getsize(home / "mlflow.db"),
        "tried_again": (home / "output.txt").read_text().count("it is tried again, once"),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.0, help="of a trial [%(default)s]")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="load-") as folder:
        home = Path(folder)
        found = {"machine": machine(), "trials": args.trials, "workers": args.workers} | search(home, args)
        found |= count(home)
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
