"""A study: how it is continued and opened, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from studies import SPACE, FakeEstimate, make_study, open_session

from cst_search.config.recipe import Recipe
from cst_search.errors import StudyError
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.records import Budget
from cst_search.study.study import Study, list_studies


def objectives(*names: str) -> Any:
    return tuple(OBJECTIVES[name] for name in names)


CHANGES: list[tuple[str, dict[str, Any], str | None]] = [
    ("other objectives", {"objectives": objectives("map", "device_bytes")}, "--objectives"),
    (
        "the same in another order",
        {"objectives": objectives("device_bytes", "map", "trainable_params")},
        "--objectives",
    ),
    ("another budget", {"budget": Budget(999, None)}, "--budget-mem"),
    ("budgets that it had not", {"budget": Budget(1000, flops=7, delta_bytes=8)}, "--budget-delta/--budget-flops"),
    ("another recipe", {"recipe": Recipe(detector="retinanet").to_dict()}, "--recipe"),
    ("another space", {"space": SPACE | {"cst": {"reduction": {"choice": [1, 2]}}}}, "--space"),
    ("other data", {"data": "/elsewhere"}, "--data"),
    ("another limit", {"limit_bytes": 10**9}, "--limit-mem"),
    ("now with early stopping", {"eta": 3}, "--stop-early/--eta"),
    ("without it, as before", {"eta": 0}, None),
    ("sizes noted anew", {"inputs": {"n_classes": 3}}, None),
    ("another sampler goes on", {"sampler": "tpe"}, None),
    ("another reference point is kept", {"reference_point": {"map": 0.1}}, None),
]


@pytest.mark.parametrize(("why", "change", "flag"), CHANGES, ids=[row[0] for row in CHANGES])
def test_a_study_is_continued_with_what_it_was_made_with(
    tmp_path: Path, why: str, change: dict[str, Any], flag: str | None
) -> None:
    first = make_study(tmp_path)
    if flag is None:
        assert make_study(tmp_path, **change).study.spec == first.study.spec
        return
    with pytest.raises(StudyError) as caught:
        make_study(tmp_path, **change)
    assert f"was made with another {flag}; continue it with the same ones" in str(caught.value)


def test_all_differences_are_named(tmp_path: Path) -> None:
    make_study(tmp_path)
    with pytest.raises(StudyError, match=r"another --objectives, --budget-mem, --data;"):
        make_study(tmp_path, objectives=objectives("map"), budget=Budget(), data="/elsewhere")


def test_a_study_made_before_there_was_early_stopping(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    raw = optuna.load_study(study_name="made", storage=session.study.url)
    stamp = raw.user_attrs["cst_study"]
    del stamp["spec"]["eta"]
    raw.set_user_attr("cst_study", stamp | {"format": 2})
    old = open_session(session.study.url, "made")
    assert old.study.spec.eta == 0 and old.rungs == ()
    assert make_study(tmp_path, eta=0).study.spec == old.study.spec  # --no-stop-early is what it was made with
    with pytest.raises(StudyError, match="made with another --stop-early/--eta"):
        make_study(tmp_path, eta=3)


def test_a_study_of_a_newer_format_is_refused(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    raw = optuna.load_study(study_name="made", storage=session.study.url)
    stamp = raw.user_attrs["cst_study"]
    raw.set_user_attr("cst_study", stamp | {"format": stamp["format"] + 1, "version": "99.0"})
    with pytest.raises(StudyError, match=r"'made' was written by cst-search 99.0, which is newer; update"):
        Study.open(session.study.url, "made")


def test_a_study_of_somebody_elses_is_left_alone(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    optuna.create_study(study_name="theirs", storage=session.study.url)
    with pytest.raises(StudyError, match=r"'theirs' .* is not one of cst-search"):
        Study.open(session.study.url, "theirs")
    with pytest.raises(StudyError, match=r"'theirs' .* is not one of cst-search"):
        make_study(tmp_path, "theirs")
    assert list_studies(session.study.url) == ["made"]


def test_an_unknown_study_names_those_that_exist(tmp_path: Path) -> None:
    make_study(tmp_path, "one"), make_study(tmp_path, "two")
    with pytest.raises(StudyError, match=r"there is no study 'three' in .*; it has 'one', 'two'"):
        Study.open(f"sqlite:///{tmp_path / 'studies.db'}", "three")


def test_the_estimate_of_a_trial_is_kept(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    session.ask(lambda config: FakeEstimate(700, 70, 600, 500, 7))  # type: ignore[arg-type, return-value]
    record = session.study.info().trials[0]
    assert (record.device_bytes, record.reserved_bytes, record.active_bytes) == (700, 600, 500)
    assert (record.trainable_params, record.petl_params, record.memory_source) == (70, 7, "predicted")
