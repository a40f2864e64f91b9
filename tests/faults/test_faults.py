"""What goes wrong on one machine, with real processes: nothing that was finished is lost, nothing is counted twice."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import postgres as postgres_of_tests
import psutil
import pytest
import warm
from searches import MADE_UP, Place, Search
from studies import run_cli

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import load

LIBFAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


def name_of(process: psutil.Process) -> str:
    """Of one that runs; empty: it has ended."""
    try:
        return "" if process.status() == psutil.STATUS_ZOMBIE or not process.is_running() else process.cmdline()[0]
    except (psutil.Error, IndexError):
        return ""


# --- the search's own process -----------------------------------------------------------------------------------------


def test_the_driver_is_killed_with_ray(place: Place) -> None:
    with place.search("--workers", "2", trials=8, seconds=0.3) as one:
        one.until(lambda: len(place.notes()) >= 7)
        one.kill()
        one.wait()
        before = place.finished()
        deadline = time.monotonic() + 30
        while left := list(filter(None, map(name_of, one.family.values()))):
            assert time.monotonic() < deadline, f"they outlive the search: {left}"
            time.sleep(0.1)
    assert before and place.info().counts()["interrupted"]
    again = place.run("--in-process", trials=8, command="resume")
    place.check(8, before)
    assert "started (again)" in again.output
    assert place.runs() == dict.fromkeys(place.finished(), 1)


def test_a_trials_process_is_killed_and_it_is_tried_again(place: Place) -> None:
    """The worker that trains is killed; of another trial both times, so that it fails with a reason."""
    with place.search("--workers", "1", trials=4, seconds=0.7) as one:
        one.until("trial 1 started")
        one.until(lambda: len(place.notes()) >= 3)
        os.kill(place.notes()[-1]["pid"], signal.SIGKILL)
        one.until("trial 1: its worker process ended; it is tried again, once")
        one.until("trial 1 complete")
        before = place.finished()
        one.until("trial 2 started")
        for times in (1, 2):
            one.until(lambda n=times: one.output.count("trial 2 started") == n)
            n_notes = len(place.notes())
            one.until(lambda n=n_notes: len(place.notes()) > n)
            os.kill(place.notes()[-1]["pid"], signal.SIGKILL)
        assert one.wait() == 0
    place.check(4, before, ("complete", "failed"))
    failed = place.finished()[2]
    assert failed.state == "failed" and failed.reason.startswith("its worker process ended twice")
    assert place.runs() == dict.fromkeys(place.finished(), 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_first_signal_ends_it_in_time_and_a_second_at_once(place: Place, number: int) -> None:
    """Trials hang; the search does not wait for them. The study is as it was, and goes on."""
    with place.search("--workers", "1", trials=12, seconds=0.4) as one:
        one.until(lambda: len(place.finished()) >= 2)
        (place.home / "hang").touch()
        one.until("trial 2 started")
        time.sleep(0.5)
        before, begun = place.finished(), time.monotonic()
        one.kill(number)
        if number == signal.SIGTERM:
            time.sleep(0.3)
            one.kill(number)
        assert one.wait(40) == 130
        took = time.monotonic() - begun
        assert took < (5 if number == signal.SIGTERM else 20), took
        assert f"continue with:  cst-search resume faults --home {place.home}" in one.output
        assert "SIGTERM received at" not in one.output and "PC: @" not in one.output  # the stack of Ray's handler
        assert not [name for name in map(name_of, one.family.values()) if name]
    assert before.items() <= place.finished().items()
    if number == signal.SIGINT:
        return  # it is told to go on after the harder end
    (place.home / "hang").unlink()
    place.run("--in-process", trials=12, command="resume")
    place.check(12, before)


def test_rays_own_processes_are_killed(place: Place) -> None:
    """First the one, then the other; each time one message, and no process outlives the search by 2 s."""
    before: dict[int, Any] = {}
    for kind, command in (("raylet", "launch"), ("gcs_server", "resume")):
        with place.search("--workers", "1", trials=10, command=command, seconds=0.3) as one:
            n_wanted = len(before) + 2
            one.until(lambda n=n_wanted: len(place.finished()) >= n)
            (place.home / "hang").touch()
            before = place.finished()
            (victim,) = [process for process in one.relatives() if name_of(process).endswith(f"/{kind}")]
            victim.kill()
            begun = time.monotonic()
            assert one.wait(20) == 1, one.output
            assert time.monotonic() - begun < 10  # 2 s, where nothing else runs
            while any(map(name_of, one.family.values())) and time.monotonic() - begun < 20:
                time.sleep(0.2)
            assert not [name for name in map(name_of, one.family.values()) if name]
        assert f"Ray's own process {kind} has ended" in one.output
        assert f"finished trials are kept; continue with:  cst-search resume faults --home {place.home}" in one.output
        (place.home / "hang").unlink()
    place.run("--in-process", trials=10, command="resume")
    place.check(10, before)


def test_a_confirmation_that_mlflow_does_not_answer_ends_in_time(place: Place) -> None:
    """MLflow gets half of the time that there is, and all of it is over in 15 s. SIGHUP is as good as SIGTERM."""
    place.run("--in-process", trials=2)
    before = place.finished()
    with socket.create_server(("127.0.0.1", 0)) as silent:  # it takes calls and never answers
        uri = f"http://127.0.0.1:{silent.getsockname()[1]}"
        command = [str(MADE_UP), str(place.home), "0.3", "confirm", "faults", "--home", str(place.home), "--storage",
                   place.storage, "--device", "cpu", "--in-process", "--seeds", "100",
                   "--tracking-uri", uri]  # fmt: skip
        one = Search(command, place.env)
        try:
            one.until("trial 3 complete")
            begun = time.monotonic()
            one.kill(signal.SIGHUP)
            assert one.wait(60) == 130, one.output
        finally:
            one.process.kill()
        assert time.monotonic() - begun < 15 + 5
    # on a busy machine the rest takes longer than the other half, and is cut off
    assert "are kept" in one.output and "the same command" in one.output
    assert before.items() <= place.finished().items()


# --- what a trial meets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "more", "recipe", "state", "reason"),
    [
        ("out of memory", ["--limit-mem", "30MB"], {"image_size_px": 512, "max_size_px": 512}, "infeasible",
         "out of memory"),
        ("a loss that is not finite", ["--no-stop-early"],
         {"method": "cst", "detector": "retinanet", "lr": (9.0, 9.9), "clip_norm": 1e6, "warmup": 0.0,
          "eval_every": 99, "search_epochs": 30},
         "failed", "a lower lr"),
    ],
)  # fmt: skip
def test_trials_that_end_badly_are_outcomes(
    place: Place, why: str, more: list[str], recipe: dict[str, Any], state: str, reason: str
) -> None:
    """Each has a record with its reason; the search comes to its end, and says that nothing completed."""
    with place.search("--in-process", *more, trials=3, seconds=None, **recipe) as one:
        assert one.wait() == 1, one.output
    assert "no trial completed within the budget" in one.output
    place.check(3, {}, (state,))
    reasons = [r.reason or "" for r in place.finished().values()]
    assert all(reason in one for one in reasons), reasons
    assert place.runs() == dict.fromkeys(place.finished(), 1)


def test_an_image_that_breaks_in_the_middle(place: Place, tiny_folder: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(tiny_folder, data)
    victim = sorted((data / "train").iterdir())[0]
    whole = victim.read_bytes()
    with place.search(
        "--in-process", "--cache-size", "0", "--no-stop-early", trials=4, seconds=None, data=data, search_epochs=4
    ) as one:
        one.until("trial 1 started")
        victim.write_bytes(whole[: len(whole) // 3])
        one.until("failed: ")
        victim.write_bytes(whole)
        assert one.wait() == 0
    failed = [r for r in place.finished().values() if r.state == "failed"]
    assert failed and all(victim.name in (r.reason or "") for r in failed)
    place.check(4, {}, ("complete", "failed"))


def test_a_damaged_checkpoint(place: Place) -> None:
    """The trial begins anew, says so, and comes to the same result as if it had never been cut off.

    Other kinds of damage: tests/trial/test_checkpoints.py.
    """
    checkpoint = place.home / "faults" / "checkpoints" / "0.pt"
    with place.search("--in-process", "--stop-early", trials=2, seconds=None, search_epochs=20) as one:
        one.until(checkpoint.exists)
        one.kill()
        one.wait()
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 0xFF
    checkpoint.write_bytes(content)
    again = place.run("--in-process", trials=2, seconds=None, command="resume")
    place.check(2, {}, ("complete", "pruned"))
    assert "trial 0: began anew: 0.pt was left aside, as it" in again.output


def test_a_clock_that_jumps(place: Place) -> None:
    """The wall clock goes a day forward, then two back, while the search runs."""
    if LIBFAKETIME is None:
        pytest.skip("libfaketime is not installed")
    clock = place.home / "clock"
    clock.write_text("+0")
    # it looks once a second: at each of the millions of times that Python asks, starting would take a minute
    env = {"LD_PRELOAD": str(LIBFAKETIME), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_CACHE_DURATION": "1",
           "DONT_FAKE_MONOTONIC": "1"}  # fmt: skip

    def days() -> set[int]:
        """That epochs ended on, from the first."""
        stamps = [note["at"] for note in place.notes()]
        return {round((stamp - stamps[0]) / 86400) for stamp in stamps}

    with place.search("--in-process", trials=9, seconds=0.4, env=env) as one:
        one.until("trial 1 started")
        clock.write_text("+1d")
        one.until(lambda: 1 in days())
        before = place.finished()
        clock.write_text("-1d")
        assert one.wait() == 0, one.output
    place.check(9, before)
    assert all(0 <= r.seconds < 60 for r in place.finished().values())
    assert place.info().launches[0].state == "ended"
    assert days() == {0, 1, -1}  # the clock did jump, there and back


# --- what is around ---------------------------------------------------------------------------------------------------


def files_with(secret: str, *folders: Path) -> list[str]:
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    return [str(path) for path in paths if secret.encode() in path.read_bytes()]


def test_postgresql_is_restarted(tmp_path: Path, place: Place) -> None:
    """And its password, which the command holds, gets into nothing: what is printed, kept, exported, logged by Ray."""
    if postgres_of_tests.find_binaries() is None:
        pytest.skip("PostgreSQL is not installed")
    with postgres_of_tests.server() as server:
        place.storage = server.database("studies")
        with place.search("--workers", "1", trials=12, seconds=0.2) as one:
            one.until(lambda: len(place.notes()) >= 6)
            command_lines = " ".join(word for process in one.relatives() for word in process.cmdline())
            sessions = {Path(found) for found in re.findall(r"/\S*/session_[\d_-]+(?=/logs)", command_lines)}
            server.stop("immediate")
            one.until("is away", 60)
            server.start()
            one.until("is back after", 60)
            before = place.finished()
            assert one.wait() == 0, one.output
        place.check(12, before)
        assert place.runs() == dict.fromkeys(place.finished(), 1)
        where = ("faults", "--storage", place.storage, "--home", place.home)
        said = [one.output]
        for command in (("export", *where, "-o", place.home / "best.yaml", "--no-verify"), ("sync", *where),
                        ("front", *where, "-o", place.home / "page"), ("status", *where, "--json")):  # fmt: skip
            ran = run_cli(*command)
            assert ran.code == 0, ran
            said += [ran.out, ran.err]
    assert postgres_of_tests.PASSWORD not in "".join(said)
    assert (place.home / "best.yaml").exists() and (place.home / "page" / "front.html").exists()
    assert len(sessions) == 1 and files_with("raylet", *sessions) and files_with("cst.trial", place.home)
    assert files_with(postgres_of_tests.PASSWORD, place.home, *sessions) == []


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Callable[[bool], None]]:
    """A small file system at ``small``, and the means to fill it and to make room."""
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(small)], capture_output=True).returncode:
        pytest.skip("no file system can be mounted here")

    def fill(full: bool) -> None:
        if not full:
            (small / "filler").unlink()
            return
        with suppress(OSError), (small / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(4096))

    try:
        yield fill
    finally:
        subprocess.run(["umount", "-l", str(small)], check=True)


def test_the_disk_of_the_study_is_full(place: Place, full_disk: Callable[[bool], None]) -> None:
    place.storage = f"sqlite:///{place.home / 'small' / 'studies.db'}"
    with place.search("--workers", "1", trials=12, seconds=0.2) as one:
        one.until(lambda: len(place.notes()) >= 6)
        full_disk(True)
        assert one.wait() == 1
    assert "cannot be written: " in one.output and "full" in one.output
    assert "make room, then continue with `cst-search resume`" in one.output
    full_disk(False)
    before = place.finished()
    assert before
    place.run("--in-process", trials=12, command="resume")
    place.check(12, before)


def test_the_disk_of_the_checkpoints_is_full(place: Place, full_disk: Callable[[bool], None]) -> None:
    """Trials go on without them."""
    folder = place.home / "faults"
    folder.mkdir()
    (folder / "checkpoints").symlink_to(place.home / "small")
    full_disk(True)
    with place.search("--in-process", "--stop-early", trials=3, seconds=None, search_epochs=8) as one:
        assert one.wait() == 0
    place.check(3, {}, ("complete", "pruned"))
    assert "its checkpoint could not be written: " in one.output, one.output


def test_mlflows_server_goes_and_comes(place: Place) -> None:
    port = postgres_of_tests.free_port()
    uri = f"http://127.0.0.1:{port}"
    backend = f"sqlite:///{place.home / 'mlflow.db'}"
    words = ["-m", "mlflow", "server", "--backend-store-uri", backend, "--port", str(port), "--host",
               "127.0.0.1", "--workers", "1", "--artifacts-destination", str(place.home / "artifacts")]  # fmt: skip

    without_jobs = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}  # for which it starts eight processes

    def serve() -> Any:
        with open(os.devnull, "w") as nowhere:
            server = warm.start(words, without_jobs, nowhere)
        deadline = time.monotonic() + 60
        while subprocess.run(["curl", "-sf", f"{uri}/health"], capture_output=True).returncode:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        return server

    def end(server: Any) -> None:
        for process in psutil.Process(server.pid).children(recursive=True) if server.poll() is None else ():
            process.kill()
        server.kill()
        server.wait()

    server = serve()
    try:
        with place.search("--in-process", "--tracking-uri", uri, trials=20, seconds=0.4) as one:
            one.until("trial 4 started")
            end(server)
            at = len(place.finished())
            one.until("MLflow did not take a record", 60)
            one.until(lambda: len(place.finished()) >= at + 5, 30)  # the search does not wait
            hang = place.home / "hang"
            hang.touch()  # or a busy machine's search is over before the server is there again
            server = serve()
            hang.unlink()
            assert one.wait() == 0
        assert "View run" not in one.output
        if "cst-search sync faults" in one.output:  # a busy machine's server has not taken all of it in a minute
            where = ("--storage", place.storage, "--home", place.home, "--tracking-uri", uri)
            ran = run_cli("sync", "faults", *where)
            assert ran.code == 0, ran
        place.check(20, {})
        assert place.runs(uri) == dict.fromkeys(place.finished(), 1)
    finally:
        end(server)


class Driver(psutil.Process):
    """What benchmarks/load.py uses of `psutil.Popen`, forked."""

    def __init__(self, command: list[str], *, stdout: IO[str], stderr: int) -> None:
        assert command[0] == sys.executable and stderr == subprocess.STDOUT
        self.forked = warm.start(command[1:], dict(os.environ), stdout)
        super().__init__(self.forked.pid)

    def poll(self) -> int | None:
        return self.forked.poll()

    @property
    def returncode(self) -> int | None:
        return self.forked.returncode


def test_many_trials_and_random_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """benchmarks/load.py, with fewer trials: none is lost, none is there twice."""
    out = tmp_path / "load.json"
    words = ["load.py", "--trials", "30", "--kills", "2", "--workers", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(load.psutil, "Popen", Driver)
    load.main()
    found = json.loads(out.read_text())
    assert found["n_ran"] == found["mlflow_runs"] == sum(found["states"].values()) == 30
    assert found["configurations_twice"] == found["mlflow_runs_twice"] == 0 and found["killed"] >= 1
    assert set(found["states"]) <= {"complete", "failed"} and found["states"]["complete"] >= 28
