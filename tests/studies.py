"""Helpers of several test files: studies with made-up results, and the command line in this process."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
import typer

from cst_search import cli
from cst_search.config.recipe import Recipe
from cst_search.memory.correction import Correction
from cst_search.memory.estimate import context_of
from cst_search.search import session as suggest
from cst_search.search.early_stopping import rung_epochs
from cst_search.search.session import SearchSession
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.records import Budget, StudyInfo, StudySpec, TrialRecord
from cst_search.study.storage import DEAD_SECONDS
from cst_search.study.study import Study, default_storage


@sqlalchemy.event.listens_for(sqlalchemy.engine.Engine, "connect")
def _do_not_wait_for_the_disk(connection: Any, _: Any) -> None:
    """Five times faster. Nothing is lost when a process is killed, only when the machine is."""
    if type(connection).__module__.startswith("sqlite3"):
        connection.execute("PRAGMA synchronous=OFF")


# two methods, so that dimensions are conditional; a tuple, a scalar and a range; an lr of its own for one method
SPACE: dict[str, Any] = {
    "methods": ["cst", "head"],
    "shared": {"batch_size": {"choice": [2, 4, 8]}, "lr": {"float": [1e-3, 2e-2], "log": True}},
    "cst": {"reduction": {"choice": [1, 2, 4, 8]}, "mtc_stages": {"choice": [[2, 3, 4, 5], [5]]}},
    "head": {"lr": {"float": [1e-4, 5e-4], "log": True}},
}


@dataclass(frozen=True)
class FakeEstimate:
    """What `memory.estimate.Estimate` has, without torch."""

    device_bytes: int
    trainable_params: int
    reserved_bytes: int = 600
    active_bytes: int = 500
    petl_params: int = 10
    breakdown: Mapping[str, int] = field(default_factory=lambda: {"weights": 1})
    target_device: str = "CUDA GPU (generic)"
    delta_bytes: int = 4000
    inference_bytes: int = 700
    flops: int = 2 * 10**9
    marginal_flops: int = 10**9

    @property
    def working_bytes(self) -> int:
        return self.device_bytes - context_of(self.breakdown)

    def corrected(self, correction: Correction) -> FakeEstimate:
        return replace(self, device_bytes=round(self.device_bytes * correction.factor))


def fake_estimate(config: Mapping[str, Any]) -> FakeEstimate:
    """100 bytes an image of the batch and 800 / reduction of the side network; 1000 bytes split the space SPACE."""
    side = 800 // config["cst.reduction"] if config["method"] == "cst" else 0
    memory, params = 100 * config.get("batch_size", 2) + side, 1000 + side
    return FakeEstimate(memory, trainable_params=params, delta_bytes=4 * params, flops=10**9 + 10**6 * side)


def make_spec(**changes: Any) -> StudySpec:
    values: dict[str, Any] = {
        "objectives": tuple(OBJECTIVES[name] for name in ("map", "device_bytes", "trainable_params")),
        "budget": Budget(1000, None),
        "recipe": Recipe(detector="fcos", backbone="resnet18", weights="none").to_dict(),
        "space": SPACE,
        "data": "demo",
        "seed": 0,
        "sampler": "random",
        "target_device": "CUDA GPU (generic)",
        "eta": 0,
    } | changes
    reference = {"map": 0.0, "map50": 0.0, "device_bytes": 1600.0, "trainable_params": 2000.0, "petl_params": 100.0,
                 "delta_bytes": 8000.0, "flops": 2e9, "marginal_flops": 2e9, "inference_bytes": 800.0}  # fmt: skip
    values.setdefault("reference_point", {o.name: reference[o.name] for o in values["objectives"]})
    return StudySpec(**values)


@contextmanager
def shorter_rungs() -> Iterator[None]:
    """Real rungs begin later than in a test of 4 epochs they could."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            suggest, "rung_epochs", lambda epochs, eta: (1, 2) if epochs in (3, 4) else rung_epochs(epochs, eta)
        )
        yield


def make_study(home: Path, name: str = "made", **changes: Any) -> SearchSession:
    """A session of a study where ``--home`` looks for it; its sampler is seeded, also before a launch begins."""
    session = SearchSession(Study.create(default_storage(home), name, make_spec(**changes)))
    session.suggester.begin()
    return session


def open_session(url: str, name: str) -> SearchSession:
    """A session of a study that exists, as another process would open it."""
    return SearchSession(Study.open(url, name))


def scored(quality: float, **more: Any) -> dict[str, Any]:
    """What a complete trial gives: `TrialResult.to_dict()` as far as it matters here."""
    history = [
        {"epoch": 1, "loss": 2.0, "images_per_second": 9.0},
        {"epoch": 2, "loss": 1.0, "images_per_second": 10.0, "map": quality, "map50": quality + 0.1},
    ]
    figures = {"loss": 1.0, "images_per_second": 10.0, "seconds": 3.0, "map": quality, "map50": quality + 0.1}
    return {"outcome": "complete", "history": history, **figures, **more}


def run_one(session: SearchSession, result: Mapping[str, Any], **wanted: Any) -> TrialRecord:
    """Ask for a configuration, ``wanted`` where it is given, and tell the result. Methods' options as ``cst__x``."""
    if wanted:
        session.enqueue({"method": "cst"} | {key.replace("__", "."): value for key, value in wanted.items()})
    suggestion = session.ask(fake_estimate)  # type: ignore[arg-type]
    assert suggestion is not None
    return session.tell(suggestion.trial, result)


def move(session: SearchSession, host: str = "elsewhere") -> None:
    """Have the study's launch be one on another host."""
    key = f"cst_launch:{session.launch_id}"
    session.study.optuna_study().set_user_attr(
        key, session.study.optuna_study().user_attrs[key] | {"host": host, "pid": 1}
    )


def stop_the_heart(session: SearchSession, seconds_ago: float = DEAD_SECONDS + 1) -> None:
    assert session.study.storage is not None
    session.study.launch_registry._ended.set()
    session.study.optuna_study().set_user_attr(
        f"cst_beat:{session.launch_id}", session.study.storage.now() - seconds_ago
    )


# map over memory, drawn by hand; the budget is 600:
#
#   map
#   .7 |                              . G: infeasible (650 measured)
#   .6 |                        A
#   .5 |            B = C       . D: as A in memory, worse in map
#   .4 |            .     E: dominated by B
#   .3 |      F
#   .2 |            H: dominated by B
#      +------+-----+-----+-----+----- memory
#            100   200   300   400
DRAWN: list[tuple[str, float | None, int, str]] = [
    ("A", 0.6, 400, "complete"),
    ("B", 0.5, 200, "complete"),
    ("C", 0.5, 200, "complete"),
    ("D", 0.5, 400, "complete"),
    ("E", 0.4, 300, "complete"),
    ("F", 0.3, 100, "complete"),
    ("G", 0.7, 650, "infeasible"),
    ("H", 0.2, 200, "complete"),
    ("failed", None, 50, "failed"),
    ("rejected", None, 900, "infeasible"),
    ("runs now", None, 50, "running"),
    ("was running", None, 50, "interrupted"),
    ("pruned early", 0.65, 50, "pruned"),
]


def drawn_info(**changes: Any) -> StudyInfo:
    """A study of the trials in `DRAWN`, numbered from 10 on."""
    trials = tuple(
        TrialRecord(
            trial=number + 10,  # numbers are not places
            state=state,
            config={"method": "cst", "cst.reduction": 8, "cst.mtc_stages": (4, 5), "lr": 0.0123456},
            map=quality,
            map50=None if quality is None else quality + 0.1,
            device_bytes=memory,
            trainable_params=7000,
            petl_params=70,
            feasible=state == "complete",
            ran=name != "rejected",
            seconds=2.0,
            reason="loss is not finite" if state == "failed" else None,
        )
        for number, (name, quality, memory, state) in enumerate(DRAWN)
    )
    values: dict[str, Any] = {
        "name": "drawn",
        "objectives": (OBJECTIVES["map"], OBJECTIVES["device_bytes"]),
        "budget": Budget(600, None),
        "reference_point": {"map": 0.0, "device_bytes": 600.0},
        "recipe": {"detector": "fcos"},
        "space": {},
        "data": "demo",
        "seed": 0,
        "sampler": "tpe",
        "target_device": "CUDA GPU (generic)",
        "started": "2026-01-01T00:00:00+00:00",
        "trials": trials,
    } | changes
    return StudyInfo(**values)


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str

    @property
    def message(self) -> str:
        """Standard error in one line, without the frame that typer draws."""
        return " ".join(self.err.translate(str.maketrans("│╭╮╰╯─", "      ")).split())


# typer builds all commands at each call: half of what a refused command takes
command_of = lru_cache(typer.main.get_command)


def run_cli(*arguments: Any) -> Ran:
    """``cst-search ARGUMENTS`` in this process. An exception that is not turned into an exit code goes through."""
    out, err = io.StringIO(), io.StringIO()
    code: Any = 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["cst-search", *map(str, arguments)])
        patch.setattr(typer.main, "get_command", command_of)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                cli.main()
            except SystemExit as end:
                code = end.code or 0
    return Ran(int(code), out.getvalue(), err.getvalue())
