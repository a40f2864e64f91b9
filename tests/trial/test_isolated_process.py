"""A trial in a process of its own: what it gives, what it leaves, and every way in which that process can end."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import warm
from test_run import without_times

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.trial import isolated_process as trial_process
from cst_search.trial.isolated_process import run_in_own_process
from cst_search.trial.memory_limit import CPU_IS_LIMITED
from cst_search.trial.result import TrialResult
from cst_search.trial.run import run_trial

Make = Callable[..., Recipe]
MB = 10**6
pytestmark = pytest.mark.skipif(not CPU_IS_LIMITED, reason="only Linux limits the memory of a CPU process")


@pytest.fixture(scope="module", autouse=True)
def _no_server_outlives_the_tests() -> Iterator[None]:
    yield
    trial_process.stop()


@pytest.fixture
def run(tiny_recipe: Make, tiny_data: DetectionData) -> Callable[..., dict[str, Any]]:
    """``run(limit_mb, report, **changes of the recipe)``. Images one by one need about 17 MB."""

    def start(limit_mb: int, report: Any = lambda entry: None, **changes: Any) -> dict[str, Any]:
        recipe = tiny_recipe(**{"method": "head", "batch_size": 1} | changes)
        return run_in_own_process(
            recipe, tiny_data, epochs=2, threads=1, memory_limit_bytes=limit_mb * MB, report=report
        )

    return start


def server() -> psutil.Process:
    assert trial_process._server is not None
    return psutil.Process(trial_process._server._process.pid)


def test_it_gives_what_a_trial_gives(tiny_recipe: Make, tiny_data: DetectionData, run: Any) -> None:
    reported: list[dict[str, Any]] = []
    found = run(10_000, reported.append)
    here = run_trial(tiny_recipe(method="head", batch_size=1), tiny_data, epochs=2)
    limits = ("limit_bytes", "held_bytes")
    assert found.keys() == here.to_dict().keys()
    assert found["limit_bytes"] == 10_000 * MB and 5 * MB < found["held_bytes"] < 200 * MB
    assert reported == found["history"]
    same = without_times(TrialResult(**found | dict.fromkeys(limits)))
    assert same == without_times(here)


def test_out_of_memory_is_a_result_and_leaves_the_next_trial_intact(run: Any) -> None:
    before = run(10_000)
    small, small_again = run(6), run(6)
    after = run(10_000)
    for result in (small, small_again):
        assert result["outcome"] == "oom" and result["reason"]
        assert result["stage"] and result["map"] is None
        assert result["limit_bytes"] == 6 * MB
        assert 4 * MB < result["held_bytes"] + (result["asked_bytes"] or 0) and result["held_bytes"] <= 6 * MB
        assert (result["petl_params"], result["trainable_params"]) == (after["petl_params"], after["trainable_params"])
    assert after["outcome"] == before["outcome"] == "complete"
    assert (after["loss"], after["map"]) == (before["loss"], before["map"])
    assert abs(after["held_bytes"] - before["held_bytes"]) < 2 * MB
    assert server().children() == []  # each trial's process has ended, the server is the same


def test_a_trial_that_is_told_to_stop_leaves_the_server_as_it_is(run: Any) -> None:
    whole = run(10_000)
    pid = server().pid
    stopped = run(10_000, lambda entry: entry["epoch"] != 1)
    assert (stopped["outcome"], stopped["reason"], stopped["epochs"]) == ("stopped", None, 1)
    assert stopped["history"][0]["loss"] == whole["history"][0]["loss"]
    assert run(10_000)["outcome"] == "complete" and server().pid == pid and server().children() == []


def test_a_late_answer_is_not_taken_for_a_request(run: Any) -> None:
    """The trial was killed after it had reported, and the server saw that first."""
    assert run(10_000)["outcome"] == "complete"
    assert trial_process._server is not None
    trial_process._server._send(trial_process._GO_ON)
    assert run(10_000)["outcome"] == "complete"


def test_it_goes_on_from_its_checkpoint(tiny_recipe: Make, tiny_data: DetectionData, tmp_path: Path) -> None:
    def run(stop_at: int) -> dict[str, Any]:
        return run_in_own_process(
            tiny_recipe(method="head", batch_size=1), tiny_data, epochs=2, threads=1, memory_limit_bytes=10**10,
            report=lambda entry: entry["epoch"] != stop_at, rungs=(1,), checkpoint=tmp_path / "1.pt",
        )  # fmt: skip

    assert run(stop_at=1)["outcome"] == "stopped"
    ended = run(stop_at=0)
    assert (ended["outcome"], ended["resumed_epochs"], ended["notes"]) == ("complete", 1, [])


def test_loader_processes_are_not_used_under_a_limit(run: Any) -> None:
    """One that is refused memory may never answer (seen: no thread for its queue), and the trial would wait on."""
    seen: list[int] = []
    result = run(10_000, lambda entry: seen.append(len(server().children(recursive=True))), loader_workers=2)
    assert result["outcome"] == "complete" and seen == [1, 1]


def test_what_a_trial_raises_is_a_result(run: Any) -> None:
    result = run(10_000, weights="/nowhere.pt")
    assert result["outcome"] == "failed"
    assert result["reason"].startswith("ConfigError: weights must be DEFAULT, COCO")


@pytest.mark.parametrize(
    ("what", "said"),
    [
        (lambda: server().children(), "its process ended by SIGKILL, when it held"),
        (lambda: [server()], "the process that runs the trials ended"),
    ],
    ids=["the trial", "the server"],
)
def test_a_process_that_is_killed_is_a_result_and_the_next_trial_runs(run: Any, what: Any, said: str) -> None:
    result = run(10_000, lambda entry: [process.kill() for process in what()])
    assert (result["outcome"], said in result["reason"]) == ("failed", True), result
    assert run(10_000)["outcome"] == "complete"


def test_ctrl_c_ends_the_trial_at_once(run: Any) -> None:
    family: list[psutil.Process] = []

    def interrupt(entry: Any) -> None:
        family.extend([server(), *server().children()])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(10_000, interrupt)
    assert len(family) == 2
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []


FAKE = """
import sys; sys.path[:] = {path!r}
import os, signal, time, torch
import cst_search.trial.run as trial
def run_trial(recipe, data, *, memory_limit_bytes, **options):
    with trial.memory_limit(torch.device("cpu"), memory_limit_bytes):
        held = torch.ones(int(memory_limit_bytes * recipe.lr), dtype=torch.uint8)
        time.sleep(0.2)
        os.kill(os.getpid(), signal.SIGSEGV)
trial.run_trial = run_trial
from cst_search.trial.isolated_process import serve
serve()
"""


def test_a_crash_counts_as_running_out_when_the_limit_was_near(run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A library that uses what it was refused: a segmentation fault, seen in 6 of 450 trials."""
    trial_process.stop()
    monkeypatch.setattr(trial_process, "program", lambda *_: [sys.executable, "-c", FAKE.format(path=sys.path)])
    try:
        full, empty = run(100, lr=0.95), run(100, lr=0.3)
    finally:
        trial_process.stop()
    assert (full["outcome"], full["limit_bytes"]) == ("oom", 100 * MB)
    assert 95 * MB <= full["held_bytes"] <= 100 * MB
    assert full["reason"].startswith("its process ended by SIGSEGV, when it held 9") and "of 100 MB" in full["reason"]
    assert empty["outcome"] == "failed" and 30 * MB <= empty["held_bytes"] < 40 * MB


ORPHAN = """
import sys
sys.path[:] = {path!r}
from cst_search.data.dataset import load_data
from cst_search.config.recipe import Recipe
from cst_search.trial.isolated_process import run_in_own_process
import cst_search.trial.isolated_process as module
recipe = Recipe(**{recipe!r})
run_in_own_process(recipe, load_data({folder!r})[0], epochs=1000, threads=1, memory_limit_bytes=10**10,
                   report=lambda entry: print(module._server._process.pid, flush=True))
"""


def test_nothing_is_left_when_the_worker_is_killed(tiny_recipe: Make, tiny_folder: Path, tmp_path: Path) -> None:
    code = ORPHAN.format(path=sys.path, recipe=tiny_recipe(method="head").to_dict(), folder=str(tiny_folder))
    (tmp_path / "orphan.py").write_text(code)
    worker = warm.start([str(tmp_path / "orphan.py")], dict(os.environ))
    assert worker.stdout is not None
    left = psutil.Process(int(worker.stdout.readline()))
    family = [left, *left.children(recursive=True)]
    assert len(family) == 2
    worker.kill()
    worker.wait()
    worker.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=10)
    assert alive == []
