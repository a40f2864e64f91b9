"""The page of several studies: joint front, what differs, what storage buys."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from made_up_reports import Page, make_report
from pages import made_info

from cst_search.commands.allocate import points_of
from cst_search.errors import ConfigError
from cst_search.report.html import write_comparison
from cst_search.report.summary import page_report
from cst_search.study.allocation import Bounds, allocate
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.pareto import front, hypervolume


def test_comparison_uses_one_reference_point_and_the_joint_front(tmp_path):
    a, b = page_report(made_info(60, "a", seed=1)), page_report(made_info(60, "b", seed=2))
    b["compared_reference"] = {"map": 0.1, "working_bytes": 4.2e9, "trainable_params": 9e7}
    written = write_comparison([a, b], tmp_path)
    result = json.loads(written["json"].read_text())
    assert result["reference"] == {"map": 0.0, "device_bytes": 6e9, "trainable_params": 9e7}  # the worst of each
    assert result["warnings"] == []
    corner = {"map": 0.0, "working_bytes": 5.2e9, "trainable_params": 9e7}
    assert result["compared_reference"] == corner
    objectives = [OBJECTIVES[name] for name in ("map", "device_bytes", "trainable_params")]
    rows = [[row["map_mean"], row["working_bytes"], row["trainable_params"]] for r in (a, b) for row in r["front"]]
    n = len(a["front"])
    for study, own in zip(result["studies"], (rows[:n], rows[n:]), strict=True):
        assert study["volume"] == pytest.approx(hypervolume(own, objectives, list(corner.values())))
    joint = front(rows, objectives)
    assert [s["on_joint"] for s in result["studies"]] == [sum(i < n for i in joint), sum(i >= n for i in joint)]
    assert len(joint) < len(rows)
    text = Page(written["html"]).text
    assert f"{result['studies'][0]['volume']:.4f}" in text and "data/voc-mini" in text


@pytest.mark.parametrize(
    ("key", "value", "said", "has_volume"),
    [
        ("data", "elsewhere", "data differ", False),
        ("objectives", [{"name": "map", "goal": "max"}], "objectives differ", False),
        ("recipe", {"search_epochs": 9}, "different numbers of epochs", True),
        ("budget", {"memory_bytes": None, "params": None}, "budgets differ", True),
        ("target_device", "another", "different devices", True),
    ],
)
def test_comparison_says_what_differs(tmp_path, key, value, said, has_volume):
    reports = [page_report(made_info(30, name)) for name in "ab"]
    reports[1][key] = value
    written = write_comparison(reports, tmp_path)
    result = json.loads(written["json"].read_text())
    assert len(result["warnings"]) == 1 and said in result["warnings"][0]
    assert said in Page(written["html"]).text
    assert (result["reference"] is not None) is has_volume


def test_comparison_of_different_data_shows_what_storage_buys(tmp_path):
    infos = [
        replace(made_info(40, name, seed=seed), data=f"data/{name}") for name, seed in (("cells", 1), ("cards", 2))
    ]
    written = write_comparison([page_report(info) for info in infos], tmp_path)
    storage = json.loads(written["json"].read_text())["storage"]
    tasks = {info.name: points_of(info) for info in infos}
    assert storage["studies"] == ["cells", "cards"]
    for goal in storage["goals"]:
        assert 2 < len(goal["plans"]) <= 21
        for plan in goal["plans"]:
            best = allocate(tasks, Bounds(plan["bytes"]), goal["key"])
            assert best is not None and best.value == pytest.approx(plan[goal["key"]])
            chosen = [info.by_number(trial) for info, trial in zip(infos, plan["trials"], strict=True)]
            assert plan["bytes"] == sum(4 * record.trainable_params for record in chosen)
            qualities = [info.brief(r)["map_mean"] for info, r in zip(infos, chosen, strict=True)]
            assert plan["worst"] == pytest.approx(min(qualities))
    assert "One storage budget for all of them" in Page(written["html"]).text


def test_comparison_of_the_same_data_has_nothing_to_divide(tmp_path):
    written = write_comparison([page_report(made_info(30, name)) for name in "ab"], tmp_path / "same")
    assert json.loads(written["json"].read_text())["storage"] is None
    assert "One storage budget" not in Page(written["html"]).text
    empty = replace(made_info(30, "b"), trials=(), repeats=(), data="elsewhere")
    written = write_comparison([page_report(made_info(30, "a")), page_report(empty)], tmp_path / "empty")
    assert json.loads(written["json"].read_text())["storage"] is None


@pytest.mark.parametrize("names", [[], ["a"], ["a", "a"]])
def test_comparison_takes_different_studies(tmp_path, names):
    with pytest.raises(ConfigError, match="two or more different studies"):
        write_comparison([make_report(6, name) for name in names], tmp_path)
