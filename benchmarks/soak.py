"""Disturb a search for hours, once a minute: no finished trial may be lost or counted twice, and nothing may grow.

    nohup nice python benchmarks/soak.py --minutes 120 --out benchmarks/results/soak-NAME.json &

This is a real launch by the command line on Ray; only its trials are made up (tests/faults/made_up.py), and sleep. It
has a PostgreSQL and an MLflow server of its own; where PostgreSQL is not installed, or with --sqlite, its storage is a
SQLite file. Every minute one thing goes wrong for some seconds (`Faults`), in a random order, each kind as often as the
others; every tenth minute the launch itself ends, and is continued by the command that it printed. At the end the study
is completed without faults, and counted.

Beside the JSON, a file .jsonl has the figures of each minute as they come.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import sqlalchemy

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

import postgres
from load import MADE_UP, count, database_bytes
from wall import machine

from cst_search.errors import StudyError
from cst_search.redaction import shown_address
from cst_search.study.database_urls import sqlite_url
from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.storage import open_storage
from cst_search.study.study import Study

STUDY = "soak"
EPOCHS, EPOCH_SECONDS = 9, 3.0
ENDS_EVERY = 10  # minutes between faults that end the launch
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "OMP_NUM_THREADS": "1",
          "COLUMNS": "500"}  # fmt: skip


class Place:
    """The folder, database and record of the search, and the launch that works on it now."""

    def __init__(self, folder: Path, server: postgres.Server | None) -> None:
        self.folder, self.server = folder, server
        self.storage = sqlite_url(folder / "studies.db") if server is None else server.database(STUDY)
        self._address = folder / "storage.address"  # a file, as the address has a password
        self._address.write_text(self.storage)
        self._scratch = folder / "t"  # short, for Ray's sockets
        self._scratch.mkdir()
        self._mlflow_port = postgres.free_port()
        self.tracking_uri = f"http://127.0.0.1:{self._mlflow_port}"
        self.n_launches = 0
        self._cpu: dict[int, float] = {}  # seconds by process
        storage = ["--storage", f"@{self._address}"]
        self._go_on = ["resume", STUDY, "--home", str(folder), *storage]
        self.mlflow = self.start_mlflow()
        self.launch = self.start([
            "launch", "--study", STUDY, "--home", str(folder), *storage, "--trials", "100000", "--workers", "2",
            "--set", f"search_epochs={EPOCHS}", "--device", "cpu", "--cache-size", "0",
        ])  # fmt: skip

    # --- processes -------------------------------------------------------------------------------------------------

    def start(self, words: list[str]) -> psutil.Popen:
        self.n_launches += 1
        command = [sys.executable, str(MADE_UP), str(self.folder), str(EPOCH_SECONDS), *words]
        env = os.environ | _QUIET | {"TMPDIR": str(self._scratch)}
        with self.output_file.open("w") as output:
            return psutil.Popen([*command, "--tracking-uri", self.tracking_uri], stdout=output,
                                stderr=subprocess.STDOUT, env=env, preexec_fn=hear_hangup)  # fmt: skip

    def go_on(self, *more: str) -> None:
        """Continue by the command that the last launch printed, or where it could not, by the one before."""
        printed = re.findall(r"continue with:  cst-search (.*)", self.output)
        if printed:
            self._go_on = shlex.split(printed[-1].replace(shown_address(self.storage), f"@{self._address}"))
        self.launch = self.start([*self._go_on, *more])

    def start_mlflow(self) -> psutil.Popen:
        command = ["-m", "mlflow", "server", "--backend-store-uri", sqlite_url(self.folder / "mlflow.db"), "--port",
                   str(self._mlflow_port), "--host", "127.0.0.1", "--workers", "1", "--artifacts-destination",
                   str(self.folder / "artifacts")]  # fmt: skip
        server = psutil.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                              env=os.environ | _QUIET)  # fmt: skip
        wait_for(lambda: is_answered(f"{self.tracking_uri}/health"), 600)
        return server

    def kill_mlflow(self) -> None:
        for process in [*self.mlflow.children(recursive=True), self.mlflow]:
            process.kill()
        self.mlflow.wait()

    def is_at_work(self) -> bool:
        """Return whether the launch has handed out a trial, or has ended."""
        return " started" in self.output or self.launch.poll() is not None

    def family(self) -> list[psutil.Process]:
        """Return what the launch has started, at any depth."""
        with suppress(psutil.Error):
            return list(self.launch.children(recursive=True))
        return []

    def end(self) -> None:
        for process in [*self.family(), self.launch]:
            with suppress(psutil.Error):
                process.kill()
        with suppress(psutil.Error):
            self.kill_mlflow()

    # --- what there is -----------------------------------------------------------------------------------------------

    @property
    def output_file(self) -> Path:
        return self.folder / f"output-{self.n_launches}.txt"

    @property
    def output(self) -> str:
        return self.output_file.read_text(errors="replace")

    def info(self) -> StudyInfo | None:
        """Return the study; None: the first launch has not made it yet."""
        try:
            study = Study.open(self.storage, STUDY)
        except StudyError:
            return None
        try:
            return study.info()
        finally:
            if study.storage is not None:
                study.storage.engine.dispose()

    def cpu_seconds(self) -> float:
        """Return the CPU time so far of all but PostgreSQL, as far as processes lived until somebody looked."""
        for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
            with suppress(psutil.Error):
                times = process.cpu_times()
                self._cpu[process.pid] = times.user + times.system
        return sum(self._cpu.values())

    def figures(self) -> dict[str, Any]:
        """Return memory and open files of the launch, and sizes of what is on the disk."""
        found: dict[str, Any] = {"launch": self.n_launches, "cpu_seconds": round(self.cpu_seconds(), 1)}
        with suppress(psutil.Error):
            found |= {"launch_bytes": self.launch.memory_info().rss, "open_files": self.launch.num_fds(),
                      "threads": self.launch.num_threads(), "processes": len(self.family())}  # fmt: skip
        left = [path.stat().st_size for path in self._scratch.rglob("*") if path.is_file() and not path.is_symlink()]
        return found | {"database_bytes": database_bytes(self.storage), "scratch_bytes": sum(left),
                        "mlflow_bytes": (self.folder / "mlflow.db").stat().st_size}  # fmt: skip


class Faults:
    """What goes wrong. Each method does it, undoes it and returns what it hit."""

    def __init__(self, place: Place, rng: random.Random) -> None:
        self.place, self.rng = place, rng
        self.passing: list[Callable[[], str]] = [
            self.worker_killed, self.process_frozen, self.study_locked, self.tables_locked, self.mlflow_killed,
        ]  # fmt: skip
        if place.server is not None:
            self.passing.append(self.postgresql_restarted)
        self.ending = [self.launch_killed, self.launch_terminated, self.raylet_killed, self.launch_hung_up]

    def in_turn(self) -> Iterator[Callable[[], str]]:
        """Yield the fault of each minute."""
        ends, passing = 0, list[Callable[[], str]]()
        while True:
            for _ in range(ENDS_EVERY - 1):
                passing = passing or self.rng.sample(self.passing, len(self.passing))
                yield passing.pop()
            yield self.ending[ends % len(self.ending)]
            ends += 1

    def _sleep(self, least: float = 3, most: float = 15) -> str:
        seconds = self.rng.uniform(least, most)
        time.sleep(seconds)
        return f"{seconds:.0f} s"

    # --- that pass -------------------------------------------------------------------------------------------------

    def worker_killed(self) -> str:
        notes = self.place.folder / "notes.jsonl"
        lines = notes.read_text().splitlines() if notes.exists() else []
        for pid in {json.loads(line)["pid"]: None for line in reversed(lines[-4:])}:
            with suppress(psutil.Error):
                psutil.Process(pid).kill()
                return "of the trial that reported last"
        return "none was there"

    def process_frozen(self) -> str:
        process = self.rng.choice([self.place.launch, *self.place.family()])
        with suppress(psutil.Error):
            name = process.name()
            process.suspend()
            try:
                return f"{name}, {self._sleep()}"
            finally:
                process.resume()
        return "it had just ended"

    def study_locked(self) -> str:
        storage = open_storage(self.place.storage)
        with storage.alone(STUDY):
            return self._sleep()

    def tables_locked(self) -> str:
        engine = sqlalchemy.create_engine(self.place.storage, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            if self.place.server is None:
                connection.exec_driver_sql("BEGIN EXCLUSIVE")
            else:
                connection.exec_driver_sql("LOCK TABLE studies, trials, trial_user_attributes")
            return self._sleep()

    def mlflow_killed(self) -> str:
        self.place.kill_mlflow()
        slept = self._sleep()
        self.place.mlflow = self.place.start_mlflow()
        return slept

    def postgresql_restarted(self) -> str:
        assert self.place.server is not None
        mode = self.rng.choice(["fast", "immediate"])
        self.place.server.stop(mode)
        slept = self._sleep()
        self.place.server.start()
        return f"{mode}, {slept}"

    # --- that end the launch ---------------------------------------------------------------------------------------

    def launch_killed(self) -> str:
        return self._ended(self.place.launch.kill)

    def launch_terminated(self) -> str:
        return self._ended(self.place.launch.terminate)

    def launch_hung_up(self) -> str:
        return self._ended(lambda: self.place.launch.send_signal(signal.SIGHUP))

    def raylet_killed(self) -> str:
        def kill() -> None:
            for process in self.place.family():
                with suppress(psutil.Error):
                    if process.name() == "raylet":
                        process.kill()

        return self._ended(kill)

    def _ended(self, end: Callable[[], None]) -> str:
        """End the launch, wait until all of it is gone, and continue."""
        self.place.cpu_seconds()  # what it used so far
        begun, family = time.monotonic(), self.place.family()
        end()
        code = self.place.launch.wait(120)
        _, alive = psutil.wait_procs(family, 30)
        took = time.monotonic() - begun
        self.place.go_on()
        return f"exit code {code}, all gone after {took:.0f} s" + (f", {len(alive)} stayed" if alive else "")


class Watch:
    """What was found each minute: figures, and what may not be.

    Attributes:
        faults: what may not be, in words; empty is well.
    """

    def __init__(self, place: Place, journal: Path) -> None:
        self.place, self._journal = place, journal
        self.faults: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self._finished: dict[int, TrialRecord] = {}
        journal.unlink(missing_ok=True)

    def look(self, minute: float, what: str = "", detail: str = "") -> None:
        """Note the figures, after a fault."""
        info = self.place.info()
        after = {} if info is None else finished(info)
        lost = [number for number, record in self._finished.items() if after.get(number) != record]
        self._finished = after
        if lost:
            self.faults.append(f"minute {minute:.1f}: trials {lost} are lost, or have changed")
        if self.place.launch.poll() is not None:
            end = " / ".join(self.place.output.splitlines()[-4:])
            self.faults.append(f"minute {minute:.1f}: the launch ended with {self.place.launch.returncode}: {end}")
            self.place.go_on()
        traceback = f"launch {self.place.n_launches} printed a traceback"
        if "Traceback" in self.place.output and traceback not in self.faults:
            self.faults.append(traceback)
        row = {"minute": round(minute, 1), "fault": what, "detail": detail, "finished": len(after), "lost": len(lost)}
        self.rows.append(row | self.place.figures())
        with self._journal.open("a") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")

    def result(self) -> dict[str, Any]:
        ran = [row for row in self.rows if row["fault"]]
        each = ("launch_bytes", "open_files", "threads", "processes")
        settled = [row for row in self.rows if all(row.get(key) for key in each)]
        of_launch = {n: [row for row in settled if row["launch"] == n] for n in {row["launch"] for row in settled}}
        spans = [  # a minute after its start, when all is imported, and at its end
            {"launch": n, "minutes": round(rows[-1]["minute"] - rows[1]["minute"], 1)}
            | {key: [rows[1][key], rows[-1][key]] for key in each}
            for n, rows in of_launch.items() if len(rows) > 2
        ]  # fmt: skip
        return {
            "faults_of_the_search": self.faults, "faults": dict(Counter(row["fault"] for row in ran)),
            "launches": self.place.n_launches, "launch_by_launch": spans, "minutes": self.rows,
        }  # fmt: skip


def finished(info: StudyInfo) -> dict[int, TrialRecord]:
    """Return the trials that ended."""
    return {r.trial: r for r in info.trials if r.ran and not r.waits and r.state not in ("running", "interrupted")}


def hear_hangup() -> None:
    """Take back what `nohup` has done: the launch is to hear SIGHUP."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


def is_answered(url: str) -> bool:
    try:
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def wait_for(condition: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"not in {seconds:.0f} s")
        time.sleep(0.5)


def disturb(place: Place, watch: Watch, minutes: float, seed: int) -> None:
    """One fault a minute, and a look at what there is before the next."""
    wait_for(lambda: (place.folder / "notes.jsonl").exists(), 300)
    begun, turns = time.monotonic(), Faults(place, random.Random(seed)).in_turn()
    watch.look(0)
    while (now := time.monotonic()) < begun + 60 * minutes:
        # one that begins is not disturbed: without its database it ends with a message, and nothing is begun
        wait_for(place.is_at_work, 900)
        time.sleep(30)
        fault = next(turns)
        try:
            detail = fault()
        except Exception as error:  # the others are to come all the same
            detail = f"{type(error).__name__}: {error}"
            watch.faults.append(f"minute {(now - begun) / 60:.1f}: {fault.__name__}: {detail}")
        time.sleep(max(0.0, now + 60 - time.monotonic()))
        watch.look((time.monotonic() - begun) / 60, fault.__name__.replace("_", " "), detail)


def complete(place: Place, watch: Watch) -> dict[str, Any]:
    """End the launch, run what it left to its end without faults, and count."""
    place.launch.terminate()
    place.launch.wait(120)
    info = place.info()
    assert info is not None
    place.go_on("--trials", str(2 + sum(r.ran or r.state in ("running", "interrupted") for r in info.trials)))
    code = place.launch.wait(900)
    if code:
        watch.faults.append(f"the last launch ended with {code}: {place.output[-1000:]}")
    info = place.info()
    assert info is not None
    if missing := [n for n, record in watch._finished.items() if finished(info).get(n) != record]:
        watch.faults.append(f"at the end trials {missing} are lost, or have changed")
    found = count(info, place.tracking_uri)
    without_outcome = info.counts()["running"] + info.counts()["interrupted"]
    for what, n in (("configurations are there twice", found["configurations_twice"]),
                    ("runs are in MLflow twice", found["mlflow_runs_twice"]),
                    ("trials have no run in MLflow", found["n_ran"] - found["mlflow_runs"]),
                    ("trials have no outcome", without_outcome)):  # fmt: skip
        if n:
            watch.faults.append(f"at the end {n} {what}")
    return found


@contextmanager
def made(sqlite: bool) -> Iterator[Place]:
    with ExitStack() as stack:
        has_server = not sqlite and postgres.find_binaries() is not None
        server = stack.enter_context(postgres.server()) if has_server else None
        folder = Path(tempfile.mkdtemp(prefix="soak-", dir="/tmp"))
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        place = Place(folder, server)
        stack.callback(place.end)
        yield place


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--sqlite", action="store_true", help="a SQLite file as the storage")
    parser.add_argument("--seed", type=int, default=0, help="of the order of faults [%(default)s]")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    with made(args.sqlite) as place:
        watch = Watch(place, args.out.with_suffix(".jsonl"))
        found: dict[str, Any] = {}
        try:
            disturb(place, watch, args.minutes, args.seed)
            found = complete(place, watch)
        except Exception as error:  # what there is by then is written all the same
            watch.faults.append(f"the soak itself ended: {type(error).__name__}: {error}")
        result = {
            "machine": machine(), "storage": "SQLite" if place.server is None else "PostgreSQL",
            "minutes_asked": args.minutes, "seconds": round(time.monotonic() - begun),
            "cpu_seconds": round(place.cpu_seconds()), "epoch_seconds": EPOCH_SECONDS, "epochs": EPOCHS,
        } | found | watch.result()  # fmt: skip
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({key: value for key, value in result.items() if key != "minutes"}, indent=1))
    if watch.faults:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
