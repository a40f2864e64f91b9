"""Reports of a study as plain values: the shapes that other programs rely on."""

from __future__ import annotations

import json
from typing import Any

import pytest
from studies import drawn_info

from cst_search.report.summary import front_report, page_report
from cst_search.study.objectives import OF_INFERENCE
from cst_search.study.states import TrialState


def shape(value: Any) -> Any:
    """Keys down to the leaves; of a list, the keys of its entries."""
    if isinstance(value, dict):
        return {key: shape(item) for key, item in value.items()}
    if isinstance(value, list):
        return [shape(value[0])] if value else []
    return type(value).__name__


def test_front_json_has_the_documented_keys() -> None:
    report = json.loads(json.dumps(front_report(drawn_info())))
    for entry in report["front"]:
        assert isinstance(entry.pop("config"), dict)
    assert shape(report) == {
        "study": "str",
        "objectives": [{"name": "str", "goal": "str"}],
        "budget": {"memory_bytes": "int", "params": "NoneType", "delta_bytes": "NoneType", "flops": "NoneType"},
        "trials": dict.fromkeys(("total", "complete", "pruned", "infeasible", "failed", "running", "repeats"), "int"),
        "reference_point": {"map": "float", "device_bytes": "float"},
        "hypervolume": "float",
        "compared_reference": {"map": "float", "working_bytes": "float"},
        "context_bytes": "int",
        "knee": "int",
        "methods": [],
        "importance": {"n": "int", "fewest": "int", "dimensions": []},
        "suggested_pick": "str",
        "suggested": "int",
        "front": [
            {
                "trial": "int",
                "map": "float",
                "map50": "float",
                "device_bytes": "int",
                "working_bytes": "int",
                "memory_source": "str",
                "trainable_params": "int",
                "petl_params": "int",
                **dict.fromkeys(OF_INFERENCE, "NoneType"),  # records of a version without them
                "n_seeds": "int",
                "map_mean": "float",
                "map_std": "NoneType",
                "map50_mean": "float",
                "map50_std": "NoneType",
            }
        ],
    }
    assert report["trials"]["running"] == 2  # the interrupted one runs again
    states = {state: n for state, n in report["trials"].items() if state not in ("total", "repeats")}
    assert sum(states.values()) == report["trials"]["total"]


def test_the_page_gets_every_trial() -> None:
    report = page_report(drawn_info())
    assert {entry["trial"] for entry in report["all"] if entry["on_front"]} == {10, 11, 12, 15}
    assert {entry["state"] for entry in report["all"]} == set(TrialState)
    volumes = [value for _, value in report["hypervolume_by_trial"]]
    assert volumes == sorted(volumes) and volumes[-1] == pytest.approx(report["hypervolume"])
    assert [trial for trial, _ in report["hypervolume_by_trial"]] == list(range(10, 23))
