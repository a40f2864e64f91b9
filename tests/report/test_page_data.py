"""The data of the report page: every trial, its curve, the dimensions, the colours."""

from __future__ import annotations

import re
from typing import Any

import pytest
from made_up_reports import make_report
from pages import made_info

from cst_search.config.catalog import shipped_folder
from cst_search.report.html import write_front
from cst_search.report.labels import plain
from cst_search.report.page_data import page_data
from cst_search.report.summary import page_report
from cst_search.study.records import StudyInfo


def near(a: Any, b: Any, tolerance: float = 1e-5) -> bool:
    return a is b if b is None else float(a) == pytest.approx(b, rel=tolerance)


def places(dimension: dict[str, Any], info: StudyInfo) -> list[int]:
    """Of the trials that a column is of."""
    some = dimension["methods"]
    return [i for i, record in enumerate(info.trials) if not some or record.config["method"] in some]


def test_curves_name_their_epochs_where_some_are_missing():
    report = make_report()
    with_curves = [i for i, row in enumerate(report["all"]) if row["history"]][:2]
    report["all"][with_curves[0]]["history"] = [{"epoch": 2, "map": 0.25, "loss": 1.0}, {"epoch": 4, "map": 0.5}]
    curves = page_data(report)["curves"]
    assert curves["map"][with_curves[0]] == [0.25, 0.5] and curves["loss"][with_curves[0]] == [1.0, None]
    assert curves["epochs"] == {with_curves[0]: [2, 4]}  # those of the other run from 1 on


def test_columns_hold_every_trial_of_a_study():
    """Against the records, of a space in which most dimensions are absent from most trials."""
    info = made_info(90)
    data = page_data(page_report(info))
    columns = [
        dict(zip(places(d, info), d["codes" if "codes" in d else "values"], strict=True)) for d in data["dimensions"]
    ]
    assert data["trials"]["trial"] == [record.trial for record in info.trials]
    for i, record in enumerate(info.trials):
        assert data["states"][data["trials"]["state"][i]] == record.state
        code = data["trials"]["reason"][i]
        assert (data["reasons"][code] if code >= 0 else None) == record.reason
        for name in ("device_bytes", "working_bytes", "trainable_params", "petl_params", "seconds"):
            assert near(data["columns"][name][i], getattr(record, name))
        assert near(data["columns"]["map"][i], info.over_seeds(record).mean)
        found = {}
        for dimension, column in zip(data["dimensions"], columns, strict=True):
            if i in column:
                found[dimension["key"]] = dimension["labels"][column[i]] if "codes" in dimension else column[i]
        assert found.keys() == record.config.keys()
        for key, value in record.config.items():
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            assert near(found[key], value) if isinstance(value, float) else str(found[key]) == text
        curve = data["curves"]["map"][i] or []
        assert len(curve) == len(record.history)
        assert all(near(drawn, entry.get("map"), 1e-3) for drawn, entry in zip(curve, record.history, strict=True))


def test_dimensions_know_their_range_their_scale_and_their_methods():
    data = page_data(page_report(made_info(40)))
    dimensions = {dimension["key"]: dimension for dimension in data["dimensions"]}
    lr = dimensions["lr"]  # every method has one, in ranges of its own
    assert (lr["kind"], lr["log"], lr["low"], lr["high"], lr["methods"]) == ("number", True, 1e-4, 2e-2, None)
    reduction = dimensions["cst.reduction"]
    assert (reduction["labels"], reduction["methods"]) == (["1", "2", "4", "8", "16", "32"], ["cst"])
    assert dimensions["batch_size"]["labels"] == ["2", "4", "8"]
    assert dimensions["cst.gate_init"]["log"] is False


def test_dimensions_outside_the_space_are_judged_by_their_values():
    report = make_report(60)
    dimensions = {dimension["key"]: dimension["kind"] for dimension in page_data(plain(report))["dimensions"]}
    assert dimensions["lr"] == "number"  # 60 different ones
    assert dimensions["image_size_px"] == "choice" and dimensions["mtc_stages"] == "choice"


def test_hypervolume_is_kept_where_it_grew():
    report = page_report(made_info(80))
    steps = page_data(report)["volumes"]
    assert len(steps) < 40
    for i, (_, volume) in enumerate(report["hypervolume_by_trial"]):
        assert [v for place, v in steps if place <= i][-1] == pytest.approx(volume, rel=1e-5)


def test_hours_are_the_gpus_only_where_memory_was_measured():
    report = page_report(made_info(30))
    assert page_data(report)["worker"] == "GPU"
    for trial in report["all"]:
        trial["memory_source"] = "predicted"
    assert page_data(report)["worker"] == "worker"


def test_the_page_is_small(tmp_path):
    """MLflow shows artifacts up to 50 MiB; here are 0.3 kB a trial, and no library of megabytes."""
    small, large = (write_front(make_report(n), tmp_path)["html"].stat().st_size for n in (20, 1020))
    assert small < 120_000 and large - small < 300_000


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_stand_out_from_what_they_lie_on(scheme):
    """WCAG 2.2, 1.4.3 and 1.4.11: 4.5 to 1 for text, 3 to 1 for marks, lines and the borders of controls."""
    root = re.findall(r":root \{(.*?)\}", (shipped_folder("dashboards") / "page.css").read_text(), re.DOTALL)
    colours = dict(re.findall(r"--([\w-]+): #(\w{6})", root[scheme == "dark"]))

    def luminance(name):
        parts = [int(colours[name][i : i + 2], 16) / 255 for i in (0, 2, 4)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    def contrast(one, other):
        high, low = sorted((luminance(one), luminance(other)), reverse=True)
        return (high + 0.05) / (low + 0.05)

    for ground in ("page", "card", "soft"):
        assert {name for name in ("ink", "muted", "accent", "limit") if contrast(name, ground) < 4.5} == set()
        assert {
            name
            for name in ("grey", *(f"series-{i}" for i in range(6)), *(f"kind-{i}" for i in range(12)))
            if contrast(name, ground) < 3
        } == set()
