"""Options of the commands that run trials, as `launch` and `resume` take them."""

from __future__ import annotations

import time

import pytest
from studies import drawn_info

from cst_search.commands.launch import _end_of
from cst_search.commands.options import LaunchOptions, ReadingOptions, ResumeOptions, declared, resumed
from cst_search.commands.study_setup import base_recipe
from cst_search.config.recipe import READING_FIELDS, Recipe
from cst_search.errors import StudyError, UserError
from cst_search.study.records import LaunchRecord
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


def test_a_resumed_launch_ends_as_the_last_one_unless_an_option_differs() -> None:
    def launch(kind: str, **settings: object) -> LaunchRecord:
        return LaunchRecord("id", kind, "2026-01-01", settings)

    last = launch("launch", until="converged")
    info = drawn_info(launches=(launch("launch"), last, launch("confirm", until=None)))
    assert resumed(info, 30, ResumeOptions.read()).until == "converged"
    assert resumed(info, 30, ResumeOptions.read(until="trials")).until == "trials"
    earlier = drawn_info(launches=(launch("launch"),))  # of a version without this option
    assert resumed(earlier, 30, ResumeOptions.read()).until is None


def test_no_trial_starts_after_the_time_limit() -> None:
    now = time.monotonic()
    assert _end_of([], now - 10, 9.5)() and not _end_of([], now, 60)()
    assert not _end_of([], now - 10**6, None)()


def test_an_option_on_reading_sets_the_recipes_field_and_an_omitted_one_leaves_it() -> None:
    """The recipe is what workers, `resume` and `train` get, so a choice of how data are read must be in it."""

    def recipe_of(**given: object) -> Recipe:
        return base_recipe(LaunchOptions.read(recipe=Recipe(exif="stored", weights="none"), **given), None)

    assert recipe_of().exif == "stored"
    assert recipe_of(settings=["exif=auto"]).exif == "auto"
    assert recipe_of(settings=["exif=auto"], exif="shown").exif == "shown"
    assert set(READING_FIELDS) == set(declared(ReadingOptions))
    with pytest.raises(UserError, match="--exif must be one of auto, shown, stored; got 'turned'"):
        LaunchOptions.read(exif="turned")
