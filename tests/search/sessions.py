"""Sessions of tests: quick ones in memory, ones with rungs, and what Optuna has stored of one."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
import warm
from studies import (
    fake_estimate,
    make_spec,
    scored,
    shorter_rungs,
)

from cst_search.config.recipe import Recipe
from cst_search.search.session import SearchSession
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.records import Budget
from cst_search.study.study import Study

BUDGET = 1000  # bytes; see fake_estimate
CONSTRAINTS = ("memory", "params", "finite")  # of every trial; others where they are bounded


def objectives(*names: str) -> Any:
    return tuple(OBJECTIVES[name] for name in names)


def in_memory(**changes: Any) -> SearchSession:
    """A quick study that nobody else can open: optuna's storage without a database."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cst_search.study.study.open_storage", lambda url, make=False: optuna.storages.InMemoryStorage())
        session = SearchSession(Study.create("", "quick", make_spec(**changes)))
    session.suggester.begin()  # as a launch does: seeded, so that a test is the same every time
    return session


def ask(session: SearchSession, estimate: Any = fake_estimate, **options: Any) -> Any:
    return session.ask(estimate, **options)


def as_optuna_has_it(session: SearchSession) -> list[Any]:
    return optuna.load_study(study_name=session.study.name, storage=session.study.url).get_trials()


STOPS = Recipe(detector="fcos", backbone="resnet18", weights="none", search_epochs=4).to_dict()


def with_rungs(make: Callable[..., Study] = in_memory, *arguments: Any, **changes: Any) -> SearchSession:
    """A study whose trials of 4 epochs are compared after epochs 1 and 2, where one in two goes on."""
    values = {"eta": 2, "recipe": STOPS, "objectives": objectives("map"), "budget": Budget(10_000, None)} | changes
    with shorter_rungs():  # for who has no fixture
        session = make(*arguments, **values)
    session.begin_launch()
    assert session.rungs == (1, 2)
    return session


def reaches(session: SearchSession, number: int, epoch: int, quality: float, **more: Any) -> bool:
    """Report an epoch; when the study stops the trial there, tell that it ended."""
    entry = {"epoch": epoch, "loss": 1 / epoch, "images_per_second": 9.0, "map": quality, "map50": quality, **more}
    goes_on = session.progress(number, entry)
    if not goes_on:
        session.tell(number, {"outcome": "stopped"})
    return goes_on


def begin(session: SearchSession, quality: float, **more: Any) -> tuple[int, bool]:
    """The number of a new trial that has reached epoch 1, and whether it goes on."""
    number = ask(session).trial
    return number, reaches(session, number, 1, quality, **more)


def complete(session: SearchSession, number: int, *quality: float) -> Any:
    """Report the rest of the epochs and the end."""
    for epoch, value in enumerate(quality, 5 - len(quality)):
        assert reaches(session, number, epoch, value)
    return session.tell(number, scored(quality[-1], history=list(session.study.record(number).history)))


def run_until_killed(script: str, home: Path) -> None:
    """Run a script that kills itself, in a process of its own, with the folder of tests and the home as arguments."""
    path = home / "dies.py"
    path.write_text(textwrap.dedent(script))
    process = warm.start([str(path), str(Path(__file__).parents[1]), str(home)], dict(os.environ))
    assert process.wait(120) == -9
