"""Check a large search of empty trials, some of them killed: every trial must count exactly once, and nothing may bend.

    python benchmarks/load.py --trials 1000 --kills 20 --out benchmarks/results/load-NAME.json     (about 5 minutes)
    python benchmarks/load.py --trials 1000 --nodes 4 --workers 16 --kills 20 --out ...
    python benchmarks/load.py --trials 10000 --slots 1000 --kills 3 --out ...

This is a real launch by the command line; only the trials are made up. They run

* 8 at a time by Ray on this machine, and processes of trials are killed at random moments;
* with --nodes, on a Ray cluster of so many nodes on this machine, with PostgreSQL: the same;
* with --slots, so many at a time without processes of their own (slots.py): one in a hundred loses its worker, and the
  launch itself is killed and continued. That is for numbers for which a machine has no memory.

Twenty times as it goes it notes seconds, the memory and CPU time of the launch, the size of the databases, and how far
MLflow is behind; a file .jsonl beside the JSON has these rows as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy
from mlflow import MlflowClient

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import postgres
import ray_machines
from wall import machine

from cst_search.study.records import StudyInfo
from cst_search.study.study import Study, default_storage
from cst_search.tracking.connection import default_tracking_uri

STUDY = "load"
ROOT = Path(__file__).resolve().parents[1]
MADE_UP, SLOTS = ROOT / "tests" / "faults" / "made_up.py", ROOT / "benchmarks" / "slots.py"
LOSS = 0.01  # share of trials without a process that lose their worker
N_ROWS = 20


@dataclass
class Place:
    """Where a search runs: its folder and database, and the nodes of its cluster, if it has one."""

    home: Path
    storage: str
    flags: list[str] = field(default_factory=list)
    cluster: ray_machines.Machine | None = None
    launch: psutil.Popen | None = None

    def end(self) -> None:
        """Kill the launch, if it runs."""
        if self.launch is not None and self.launch.poll() is None:
            self.launch.kill()
            self.launch.wait()

    def n_ended(self) -> int:
        """Return the number of trials that ended, without a look at the database."""
        with suppress(OSError):
            return (self.home / "ended").stat().st_size
        with suppress(OSError):
            return (self.home / "notes.jsonl").read_bytes().count(b"\n")
        return 0

    def workers(self, driver: psutil.Process) -> list[psutil.Process]:
        """Return the processes that run trials now."""
        above = [driver] if self.cluster is None else [psutil.Process(node.pid) for node in self.cluster.processes]
        found = []
        for process in (one for parent in above for one in parent.children(recursive=True)):
            with suppress(psutil.Error):
                if "ImplicitFunc" in "".join(process.cmdline()[:1]):
                    found.append(process)
        return found

    def row(self, driver: psutil.Process, begun: float) -> dict[str, Any]:
        """Return what a search has and takes by now."""
        times = driver.cpu_times()
        n_ended, n_in_mlflow = self.n_ended(), runs_in_mlflow(self.home / "mlflow.db")
        return {
            "trials": n_ended, "seconds": round(time.monotonic() - begun, 2),
            "cpu_seconds": round(times.user + times.system, 2), "driver_bytes": driver.memory_info().rss,
            "database_bytes": database_bytes(self.storage), "mlflow_behind": n_ended - n_in_mlflow,
        }  # fmt: skip


def database_bytes(url: str) -> int:
    """Return the size of a database, with SQLite's log."""
    path = sqlalchemy.make_url(url).database or ""
    if url.startswith("sqlite"):
        return sum(file.stat().st_size for file in Path(path).parent.glob(f"{Path(path).name}*"))
    with sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool).connect() as connection:
        return int(connection.exec_driver_sql("SELECT pg_database_size(current_database())").scalar_one())


def runs_in_mlflow(path: Path) -> int:
    """Return how many trials have a run in a file of MLflow."""
    with suppress(sqlite3.Error), closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as database:
        return int(database.execute("SELECT count(*) FROM tags WHERE key = 'cst.trial'").fetchone()[0])
    return 0


def start(place: Place, args: argparse.Namespace, words: Sequence[str]) -> psutil.Popen:
    where = ["--home", str(place.home), "--storage", place.storage, "--trials", str(args.trials), "--device", "cpu",
             *place.flags]  # fmt: skip
    if args.slots:
        program = [str(SLOTS), str(place.home), str(args.slots), str(LOSS)]
        where.append("--in-process")
    else:
        program = [str(MADE_UP), str(place.home), str(args.seconds)]
        where += ["--workers", str(args.workers)]
    with (place.home / "output.txt").open("a") as output:
        command = [sys.executable, *program, *words, *where]
        place.launch = psutil.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    return place.launch


def search(place: Place, args: argparse.Namespace, journal: Path | None) -> dict[str, Any]:
    """Run the search, killing processes of trials, or the launch itself, at random."""
    rng = random.Random(args.seed)
    moments = sorted(rng.sample(range(args.trials // 20, args.trials * 9 // 10), args.kills))
    begun, first, killed = time.monotonic(), 0.0, 0
    rows: list[dict[str, Any]] = []
    new = ["launch", "--study", STUDY, "--set", "search_epochs=1", "--no-stop-early", "--sampler", args.sampler,
           "--cache-size", "0"]  # fmt: skip
    driver, is_killed = start(place, args, new), False
    while driver.poll() is None or is_killed:
        time.sleep(0.1)
        if is_killed:
            driver.wait()
            driver, is_killed = start(place, args, ["resume", STUDY]), False
        n = place.n_ended()
        first = first or (time.monotonic() if n else 0.0)
        with suppress(psutil.Error):
            if n and (not rows or n >= rows[-1]["trials"] + args.trials // N_ROWS):
                rows.append(place.row(driver, begun))
                if journal is not None:
                    with journal.open("a") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
            while moments and n >= moments[0]:
                moments.pop(0)
                victims = [driver] if args.slots else place.workers(driver)
                if victims:
                    rng.choice(victims).kill()
                    killed, is_killed = killed + 1, bool(args.slots)
    ended = time.monotonic()
    if driver.returncode:
        raise SystemExit((place.home / "output.txt").read_text()[-5000:])
    return {"seconds": ended - begun, "trials_per_second": args.trials / (ended - (first or begun)), "killed": killed,
            "rows": rows}  # fmt: skip


def count(info: StudyInfo, tracking_uri: str) -> dict[str, Any]:
    """Count the trials that the study and MLflow have."""
    configs = Counter(json.dumps(r.config, sort_keys=True) for r in info.trials if r.ran)
    client = MlflowClient(tracking_uri)
    experiment, runs, token = client.get_experiment_by_name(info.name), Counter[str](), None
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
    }  # fmt: skip


@contextmanager
def made(args: argparse.Namespace) -> Iterator[Place]:
    """Yield an empty place; with nodes, their cluster has been started."""
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="load-")))
        if not args.nodes:
            place = Place(home, default_storage(home))
            stack.callback(place.end)
            yield place
            return
        server = stack.enter_context(postgres.server())
        # Ray's sockets have names of at most 107 bytes
        folder = Path(tempfile.mkdtemp(prefix="cst-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        cluster = ray_machines.Machine(folder)
        stack.callback(lambda: cluster.end(*cluster.processes))
        n_cpus = f"--num-cpus={args.workers // args.nodes}"
        cluster.start("head", f"{n_cpus} --temp-dir={folder}/ray")
        for n in range(1, args.nodes):
            cluster.start("node", n_cpus, f"127.0.0.{2 + n}")
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": cluster.token}
        place = Place(home, server.database(STUDY), ["--address", cluster.address], cluster)
        stack.callback(place.end)
        yield place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=8, help="trials at a time [%(default)s]")
    parser.add_argument("--nodes", type=int, default=0, help="of a cluster on this machine, with PostgreSQL [none]")
    parser.add_argument("--slots", type=int, default=0, help="trials at a time, without processes of their own [none]")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=0.0, help="of a trial [%(default)s]")
    parser.add_argument("--sampler", default="random")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    journal = None if args.out is None else args.out.with_suffix(".jsonl")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended by SIGTERM"))  # with the cluster and its database
    with made(args) as place:
        found = {"machine": machine(), "load_before": os.getloadavg(), **vars(args)}
        del found["out"]
        found |= search(place, args, journal)
        found |= count(Study.open(place.storage, STUDY).info(), default_tracking_uri(place.home))
        found |= {
            "database_bytes": database_bytes(place.storage), "mlflow_bytes": (place.home / "mlflow.db").stat().st_size,
            "tried_again": (place.home / "output.txt").read_text().count("it is tried again, once"),
        }  # fmt: skip
    text = json.dumps(found, indent=1)
    print(text)
    if args.out:
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
