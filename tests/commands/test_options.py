"""Options of the commands that run trials, as `launch` and `resume` take them."""

from __future__ import annotations

import time

import pytest
from studies import drawn_info

from cst_search.commands.launch import _deadline
from cst_search.commands.options import LaunchOptions, ResumeOptions, resumed
from cst_search.errors import StudyError
from cst_search.study.study import ETA


@pytest.mark.parametrize(
    ("given", "eta"),
    [
        ({}, None),  # as in the study
        ({"eta": 3}, 3),
        ({"stop_early": True}, ETA),
        ({"stop_early": True, "eta": 3}, 3),
        ({"stop_early": False}, 0),
    ],
    ids=str,
)
def test_early_stopping_is_the_studys_unless_an_option_differs(given: dict[str, object], eta: int | None) -> None:
    assert LaunchOptions.read(**given).early_stopping_eta == eta


def test_a_resumed_launch_has_the_settings_of_its_study() -> None:
    info = drawn_info(limit_bytes=10**9, seed=7, data="/somewhere")
    options = resumed(info, 5, ResumeOptions.read(workers=2))
    assert (options.limit_mem, options.seed, options.data, options.budget) == (10**9, 7, "/somewhere", info.budget)
    assert (options.trials, options.workers, options.study, options.of_study) == (5, 2, "drawn", info)
    assert options.objectives == "map,device_bytes" and options.early_stopping_eta is None
    assert resumed(info, 5, ResumeOptions.read(trials=9)).trials == 9
    assert resumed(drawn_info(), None, ResumeOptions.read(trials=9)).data is None  # the demo
    with pytest.raises(StudyError, match="give --trials N"):
        resumed(info, None, ResumeOptions.read())


def test_no_trial_starts_after_the_time_limit() -> None:
    now = time.monotonic()
    assert _deadline(now - 10, 9.5)() and not _deadline(now, 60)()
    assert not _deadline(now - 10**6, None)()
