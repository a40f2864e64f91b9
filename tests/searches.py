"""A search in a process of its own, with made-up or real trials, and what it left."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import warm
from mlflow import MlflowClient

from cst_search.errors import StudyError
from cst_search.study.records import StudyInfo
from cst_search.study.study import Study
from cst_search.tracking.connection import default_tracking_uri

MADE_UP = Path(__file__).parent / "faults" / "made_up.py"


class Search:
    """``python WORDS`` in a process of its own, whose output is read as it comes."""

    def __init__(self, words: list[str], env: dict[str, str]) -> None:
        self.process = warm.start(words, os.environ | {"COLUMNS": "200"} | env)
        self.pid = self.process.pid
        self.lines: list[str] = []
        self.family: dict[int, psutil.Process] = {}
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def relatives(self) -> list[psutil.Process]:
        """Processes that it started, at any depth."""
        found = psutil.Process(self.pid).children(recursive=True)
        self.family.update({process.pid: process for process in found})
        return found

    def until(self, text: str | Callable[[], bool], seconds: float = 120) -> None:
        """Wait for a line with the text, or for a condition."""
        deadline = time.monotonic() + seconds
        while not (text in self.output if isinstance(text, str) else text()):
            if self.process.poll() is not None:
                self._reader.join(5)
                if isinstance(text, str) and text in self.output:
                    break
                raise AssertionError(f"it ended with {self.process.returncode} without {text!r}:\n{self.output}")
            assert time.monotonic() < deadline, f"no {text!r} in {seconds} s:\n{self.output}"
            time.sleep(0.02 if isinstance(text, str) else 0.2)  # conditions read databases
        if self.process.poll() is None:
            self.relatives()

    def kill(self, number: int = signal.SIGKILL) -> None:
        self.process.send_signal(number)

    def wait(self, seconds: float = 180) -> int:
        code = self.process.wait(seconds)
        self._reader.join(5)
        assert "Traceback" not in self.output, self.output
        return code


class Place:
    """A home with a study ``faults``, and the commands on it."""

    def __init__(self, home: Path, flags: Callable[..., list[str]], storage: str | None = None) -> None:
        self.home, self._flags = home, flags
        self.storage = storage or f"sqlite:///{home / 'studies.db'}"
        self.env: dict[str, str] = {}  # of every search

    @contextmanager
    def search(
        self, *more: str, trials: int, seconds: float | None = 0.05, command: str = "launch",
        env: dict[str, str] | None = None, **recipe: Any,
    ) -> Iterator[Search]:  # fmt: skip
        """Start ``launch`` or ``resume``; it is ended with the block, with all that it started.

        Args:
            seconds: of an epoch of a made-up trial; None: real trials.
        """
        program = ["-m", "cst_search.cli"] if seconds is None else [str(MADE_UP), str(self.home), str(seconds)]
        if command == "launch":
            where = [*self._flags(self.home, **recipe), "--study", "faults"]
        else:
            where = ["faults", "--home", str(self.home), "--device", "cpu"]
        arguments = [*program, command, *where, "--trials", str(trials), "--storage", self.storage]
        one = Search([*arguments, *more], self.env | (env or {}))
        try:
            yield one
        finally:
            if one.process.poll() is None:
                one.relatives()
                one.process.kill()
            one.process.wait()
            for relative in one.family.values():
                if relative.is_running():  # false when the number belongs to another process now
                    relative.kill()

    def run(self, *more: str, **options: Any) -> Search:
        """Run one to its end, which is a good one."""
        with self.search(*more, **options) as one:
            assert one.wait() == 0, one.output
        return one

    def info(self) -> StudyInfo:
        return Study.open(self.storage, "faults").info()

    def finished(self) -> dict[int, Any]:
        try:
            trials = self.info().trials
        except StudyError:  # not made yet
            return {}
        return {r.trial: r for r in trials if r.ran and r.state not in ("running", "interrupted")}

    def notes(self) -> list[dict[str, Any]]:
        """Epochs of made-up trials, in the order of their ends."""
        path = self.home / "notes.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def runs(self, uri: str | None = None) -> Counter[int]:
        """How many MLflow runs each trial has."""
        client = MlflowClient(uri or default_tracking_uri(self.home))
        experiment = client.get_experiment_by_name("faults")
        assert experiment is not None
        found = client.search_runs([experiment.experiment_id], "tags.`cst.kind` = 'trial'", max_results=5000)
        return Counter(int(run.data.tags["cst.trial"]) for run in found)

    def check(self, n_trials: int, before: dict[int, Any], states: tuple[str, ...] = ("complete",)) -> None:
        """What the issue promises of every fault: finished trials lost 0, counted twice 0."""
        info, after = self.info(), self.finished()
        assert before.items() <= after.items(), "a finished trial is lost, or another"
        assert info.n_ran() == len(after) == n_trials
        assert {r.state for r in after.values()} <= set(states)
        configs = [json.dumps(r.config, sort_keys=True) for r in after.values()]
        assert len(set(configs)) == len(configs)
        assert info.counts()["running"] == info.counts()["interrupted"] == 0
