"""Launches that are killed, interrupted, continued, or end early: no trial is lost, and none runs twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import psutil
import pytest
import warm
from launches import SPACE, children, read
from studies import Ran, run_cli

from cst_search.config.loading import write_yaml
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.report.progress import View
from cst_search.study.outlook import Outlook
from cst_search.study.records import StudyInfo
from cst_search.study.study import Study
from cst_search.trial.run import run_trial


@contextmanager
def started(*arguments: str) -> Iterator[Any]:
    """A launch in a process of its own; whatever it started is ended with the block."""
    process: Any = warm.start(["-m", "cst_search.cli", "launch", *arguments], dict(os.environ))
    family: dict[int, psutil.Process] = {}
    process.family = family  # type: ignore[attr-defined]
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        process.stdout.close()
        for relative in family.values():
            if relative.is_running():  # false when the number belongs to another process now
                relative.kill()


def until(process: Any, text: str) -> str:
    """Read the output up to a line with the text; note the processes that there are."""
    seen = ""
    for line in process.stdout:
        seen += line
        if text in line:
            process.family.update({p.pid: p for p in psutil.Process(process.pid).children(recursive=True)})
            return seen
    raise AssertionError(f"the launch ended without {text!r}:\n{seen}")


def finished(info: StudyInfo) -> dict[int, Any]:
    return {r.trial: r for r in info.trials if r.state not in ("running", "interrupted")}


def flags_of(base: Callable[..., list[str]], home: Path) -> list[str]:
    changes: dict[str, Any] = {"method": "head", "search_epochs": 6}
    return [*base(home, "lr", **changes), "--study", "cut", "--trials", str(N_TRIALS), "--no-stop-early"]


N_TRIALS = 4


def check_the_end(home: Path, before: StudyInfo, ran: Ran) -> None:
    """The last launch ended well: nothing lost, nothing twice, what was cut off finished."""
    assert ran.code == 0, ran
    done = read(home, "cut")
    assert finished(before).items() <= finished(done).items()  # what was finished stays as it was
    assert done.n_ran() == N_TRIALS == len(done.trials)
    assert [record.trial for record in done.trials] == list(range(N_TRIALS))
    assert {record.state for record in done.trials} == {"complete"}
    for record in before.trials:
        if record.state == "interrupted":
            assert done.by_number(record.trial).config == record.config  # type: ignore[union-attr]
            assert f"trial {record.trial} started (again)" in ran.out
    assert children(home, "cut") == Counter(range(N_TRIALS))


def test_a_search_that_is_killed_loses_nothing(tmp_path: Path, base: Callable[..., list[str]]) -> None:
    """Also of a trial that was at work, though nothing is stopped early."""
    flags = [*flags_of(base, tmp_path), "--in-process"]
    checkpoint = tmp_path / "cut" / "checkpoints" / "1.pt"
    with started(*flags) as process:
        while not checkpoint.exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    killed = read(tmp_path, "cut")
    assert [record.state for record in killed.trials] == ["complete", "interrupted"]
    check_the_end(tmp_path, killed, run_cli("launch", *flags))
    assert resumed_epochs(tmp_path, 1) >= 2 and not checkpoint.parent.exists()


def resumed_epochs(home: Path, trial: int) -> int:
    """That a checkpoint held."""
    storage = optuna.storages.RDBStorage(f"sqlite:///{home / 'studies.db'}")
    result = optuna.load_study(study_name="cut", storage=storage).trials[trial].user_attrs["cst_result"]
    return int(result["resumed_epochs"])


def test_a_killed_trial_goes_on_from_its_checkpoint(
    tmp_path: Path, base: Callable[..., list[str]], mlflow_tables: Path, tiny_data: DetectionData,
    tiny_recipe: Callable[..., Recipe],
) -> None:  # fmt: skip
    """kill -9 in the middle of a trial; then to the end, with trials that are stopped early."""
    shutil.copy(mlflow_tables, tmp_path)
    changes: dict[str, Any] = {"method": "head", "search_epochs": 20}
    flags = [*base(tmp_path, "lr", **changes), "--study", "cut", "--in-process", "--trials", "3"]
    checkpoint = tmp_path / "cut" / "checkpoints" / "0.pt"
    with started(*flags) as process:
        seen = until(process, "trial 0 started")
        assert "of the trials that reach epoch 5, 10, one in 2 goes on" in seen
        while not checkpoint.exists():
            assert process.poll() is None
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait(30) == -signal.SIGKILL
    (killed,) = read(tmp_path, "cut").trials
    assert killed.state == "interrupted"

    ran = run_cli("launch", *flags)
    assert ran.code == 0, ran
    assert "one in 2 goes on" in ran.out and "trial 0 started (again)" in ran.out
    info = read(tmp_path, "cut")
    assert info.n_ran() == len(info.trials) == 3 and info.trials[0].state == "complete"
    assert {record.state for record in info.trials} <= {"complete", "pruned"}
    assert {r.trial for r in info.front()} <= {r.trial for r in info.trials if r.state == "complete"}
    assert resumed_epochs(tmp_path, 0) >= 1
    through = run_trial(
        tiny_recipe(**changes).configured(killed.config), tiny_data, epochs=20, device="cpu", rungs=(5, 10)
    )
    for entry, expected in zip(info.trials[0].history, through.history, strict=True):
        assert [entry[name] for name in ("epoch", "loss", "map")] == [expected[n] for n in ("epoch", "loss", "map")]
    assert not checkpoint.parent.exists()
    assert children(tmp_path, "cut") == Counter(range(3))
    # all were told to optuna; nothing is left to do
    again = run_cli("launch", *flags, "--no-stop-early")
    assert again.code == 2 and "was made with another --stop-early/--eta" in again.message
    again = run_cli("launch", *flags)
    assert again.code == 2 and "already has 3 trials" in again.message


def test_stopping_early_where_there_is_nothing_to_stop(tmp_path: Path, base: Callable[..., list[str]]) -> None:
    ran = run_cli("launch", "--in-process", *base(tmp_path, "lr", method="head"), "--trials", 1, "--stop-early")
    assert ran.code == 0, ran
    assert "note: early stopping has nothing to stop, as trials are 1 epoch(s) long" in ran.out


def test_a_search_that_has_converged_ends(
    tmp_path: Path, base: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    outlook = Outlook(gain=0.0123, noise=0.2)
    monkeypatch.setattr("cst_search.search.session.has_converged", lambda _outlooks, n_trials: n_trials >= 2)
    monkeypatch.setattr(StudyInfo, "outlook", lambda _info: outlook)
    monkeypatch.setattr("cst_search.study.records.LEAST_SAID", 2)
    flags = ["--study", "enough", "--until", "converged", "--trials", 40]
    ran = run_cli("launch", "--in-process", *base(tmp_path, "lr", method="head"), *flags)
    assert ran.code == 0, ran
    assert "study enough has converged; the search ends after 2 of 40 trials" in ran.out
    assert str(outlook) in ran.out and read(tmp_path, "enough").n_ran() == 2


def test_ctrl_c_ends_a_search_and_keeps_it(
    tmp_path: Path, base: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = [*flags_of(base, tmp_path), "--in-process", "--objectives", "map", "--budget-mem", "80GB",
             "--time-limit", "1d"]  # fmt: skip
    original = View.progressed

    def interrupt(self: View, trial: int, entry: Any) -> None:
        original(self, trial, entry)
        if trial == 1:
            signal.raise_signal(signal.SIGINT)

    # a shell lets the jobs that it starts in the background ignore it, this test among them
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(View, "progressed", interrupt)
            ran = run_cli("launch", *flags)
    finally:
        signal.signal(signal.SIGINT, before)
    assert ran.code == 130, ran
    assert f"continue with:  cst-search resume cut --home {tmp_path}" in ran.out and "stopped after" in ran.out
    stopped = read(tmp_path, "cut")
    assert [record.state for record in stopped.trials] == ["complete", "interrupted"]
    assert (tmp_path / "cut" / "front.html").exists()  # what there is is reported
    assert "--budget-mem 80 GB is above everything in this space" in ran.out and "so it excludes nothing" in ran.out
    check_the_end(tmp_path, stopped, run_cli("resume", "cut", "--home", tmp_path, "--device", "cpu", "--in-process"))


def test_resume_takes_all_from_the_study(tmp_path: Path, tiny_folder: Path, tiny_recipe: Callable[..., Recipe]) -> None:
    """The files of recipe and space are gone; the data may not be another."""
    home, data = tmp_path / "home", tmp_path / "data"
    home.mkdir()
    shutil.copytree(tiny_folder, data)
    recipe, space = tmp_path / "recipe.yaml", tmp_path / "space.yaml"
    write_yaml(recipe, tiny_recipe(method="head", batch_size=1).to_dict(), "test")
    write_yaml(space, {"methods": ["head"], "shared": {"lr": SPACE["shared"]["lr"]}}, "test")
    flags = ["--home", home, "--device", "cpu", "--in-process"]
    ran = run_cli(
        "launch", *flags, "--data", data, "--recipe", recipe, "--space", space, "--study", "on", "--trials", 2,
        "--seed", 3, "--budget-mem", "5GB", "--objectives", "map,device_bytes", "--sampler", "random",
    )  # fmt: skip
    assert ran.code == 0, ran
    before = read(home, "on")
    recipe.unlink(), space.unlink()

    ran = run_cli("resume", "on", *flags)
    assert ran.code == 2 and "study 'on' already has 2 trials, so nothing is left to do" in ran.message
    ran = run_cli("resume", "on", *flags, "--trials", 3, "--json")
    assert ran.code == 0, ran
    assert json.loads(ran.out)["trials"]["complete"] == 3
    after = read(home, "on")
    assert replace(after, trials=(), launches=()) == replace(before, trials=(), launches=())
    assert after.trials[:2] == before.trials and len(after.launches) == 1 + len(before.launches) == 2
    assert Study.open(f"sqlite:///{home / 'studies.db'}", "on").n_wanted() == 3
    ran = run_cli("resume", "on", *flags)  # the last launch wanted three
    assert ran.code == 2 and "already has 3 trials" in ran.message

    ran = run_cli("resume", "off", *flags)
    assert ran.code == 2 and "there is no study 'off'" in ran.message and "'on'" in ran.message
    for path in data.glob("*.json"):
        coco = json.loads(path.read_text())
        coco["categories"].append({"id": 99, "name": "another"})
        path.write_text(json.dumps(coco))
    ran = run_cli("resume", "on", *flags, "--trials", 4)
    assert ran.code == 2 and "was made with another --data (classes, most boxes or image sizes differ)" in ran.message
    data.rename(tmp_path / "moved")
    ran = run_cli("resume", "on", *flags, "--trials", 4)
    assert ran.code == 2 and str(data) in ran.message
