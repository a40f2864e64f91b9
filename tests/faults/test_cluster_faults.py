"""What goes wrong on a cluster: launches side by side, nodes that go and come, the head gone. Real processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from postgres import Server
from ray_machines import NODE, Machine
from searches import Place
from studies import open_session

from cst_search.errors import StudyError

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="several nodes on one machine need loopback addresses")


@pytest.fixture
def machine() -> Iterator[Machine]:
    # Ray's sockets have names of at most 107 bytes
    made = Machine(Path(subprocess.check_output(["mktemp", "-d", "/tmp/cst-XXXXXX"], text=True).strip()))
    try:
        yield made
    finally:
        made.end(*made.processes)
        shutil.rmtree(made.folder, ignore_errors=True)


@pytest.fixture
def there(place: Place, machine: Machine, postgres: Server) -> Place:
    """A place whose searches run on the machine."""
    place.storage = postgres.database(f"faults-{uuid.uuid4().hex[:8]}")
    place.env = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": machine.token}
    return place


def start_head(machine: Machine, n_cpus: int = 2) -> None:
    machine.start("head", f"--include-dashboard=false --num-cpus={n_cpus} --temp-dir={machine.folder}/ray")


def kill(process: subprocess.Popen[bytes]) -> None:
    """A node, at a stroke: all of its processes."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in family:
        one.kill()
    process.wait()


def test_two_launches_on_one_study(there: Place, machine: Machine) -> None:
    """They begin at one moment, on an empty database, and share one cluster; a confirmation is refused meanwhile."""
    start_head(machine, 4)
    flags = ["--address", machine.address, "--workers", "2"]
    hang = there.home / "hang"
    hang.touch()
    with there.search(*flags, trials=16, seconds=0.3) as first, there.search(*flags, trials=16, seconds=0.3) as second:
        for one in (first, second):
            one.until(" started", 300)
        with pytest.raises(StudyError, match="a confirmation works alone"):
            open_session(there.storage, "faults").begin_launch(kind="confirm")
        hang.unlink()
        for one in (first, second):
            assert one.wait() == 0, one.output
    there.check(16, {})
    info = there.info()
    assert len({record.launch for record in info.trials}) == len(info.launches) == 2
    epochs = Counter((note["lr"], note["epoch"]) for note in there.notes())
    assert set(epochs.values()) == {1}, "a configuration was trained twice"
    assert there.runs() == dict.fromkeys(there.finished(), 1)


def test_nodes_go_and_come_and_then_the_head_goes(there: Place, machine: Machine) -> None:
    """One search: a node is killed, another joins and gets trials, the head is killed. It goes on on a new head."""
    start_head(machine, 1)
    machine.start("node", "--num-cpus=1")
    hang = there.home / "hang"
    with there.search("--address", machine.address, trials=16, seconds=0.5) as one:
        one.until(f"{NODE}: 1 CPUs")
        one.until(lambda: len({note["pid"] for note in there.notes()}) == 2)
        kill(machine.processes.pop())
        one.until("its worker process ended; it is tried again, once")
        before = there.finished()
        hang.touch()  # until the node is there: that takes long
        machine.start("node", "--num-cpus=1")
        one.until(f"node {NODE}: 1 CPUs has joined")
        hang.unlink()
        one.until(lambda: len({note["pid"] for note in there.notes()}) >= 3)
        one.until(f"note: node {NODE} has gone")  # Ray may be slower to say so than the other is to join
        head, node = machine.processes
        kill(head)
        begun = time.monotonic()
        assert one.wait(120) == 1, one.output
        assert time.monotonic() - begun < 90
        assert "finished trials are kept" in one.output and "cst-search resume faults" in one.output
    kill(node)
    machine.processes.clear()
    at_the_end = there.finished()
    assert before.items() <= at_the_end.items() and len(at_the_end) < 16
    start_head(machine)
    there.run("--address", machine.address, trials=16, seconds=0.01, command="resume")
    there.check(16, at_the_end)
    assert there.runs() == dict.fromkeys(there.finished(), 1)
