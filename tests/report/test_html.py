"""The report's files: what the page holds, that it is self-contained, and that names are text in it."""

from __future__ import annotations

import json
import math
import struct

import pytest
from made_up_reports import EVIL, Page, embedded, make_report, nothing_finished

from cst_search.report.figure import picture
from cst_search.report.html import write_front


def test_three_files_are_written_and_the_folder_is_made(tmp_path):
    written = write_front(make_report(), tmp_path / "new" / "pareto")
    assert {ending: path.name for ending, path in written.items()} == {
        "html": "front.html",
        "png": "front.png",
        "json": "front.json",
    }
    assert all(path.is_file() for path in written.values())


def test_json_is_the_report_with_null_for_nan(tmp_path):
    report = make_report()
    report["all"][0]["map"] = math.inf
    text = write_front(report, tmp_path)["json"].read_text()
    back = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert back["all"][0]["map"] is None
    assert [t["map"] for t in back["all"]] == [t["map"] if math.isfinite(t["map"]) else None for t in report["all"]]
    assert all("history" not in t for t in back["all"])  # thousands of lines that only the page needs
    assert {**back, "all": None} == {**report, "all": None}


def test_image_has_the_promised_size(tmp_path):
    head = write_front(make_report(), tmp_path)["png"].read_bytes()[:24]
    assert struct.unpack(">II", head[16:24]) == (1600, 1000)  # IHDR of PNG: width, height


def test_page_is_self_contained(tmp_path):
    page = Page(write_front(make_report(), tmp_path)["html"])
    loads = [(tag, name, attrs[name]) for tag, attrs in page.tags for name in ("src", "href", "data") if name in attrs]
    assert loads == []
    assert "link" not in {tag for tag, _ in page.tags}
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy and policy.startswith("default-src 'none'") and "http" not in policy


def test_page_says_what_a_person_needs(tmp_path):
    report = make_report()
    text = Page(write_front(report, tmp_path)["html"]).text
    for wanted in (
        "resnet50-voc-6gb",
        "data/voc-mini",
        "6 GB",
        "2026-05-04 09:30 UTC",
        f"trial {report['knee']}",
        "cst-search export resnet50-voc-6gb --pick knee -o best.yaml",
        "cst-search train best.yaml --data data/voc-mini --out trained",
    ):
        assert wanted in text


def test_what_people_typed_is_escaped_everywhere(tmp_path):
    report = make_report(study=EVIL)
    report |= {"data": f"a b{EVIL}", "target_device": EVIL, "recipe": {EVIL: EVIL}, "version": EVIL, "started": EVIL}
    for trial in report["all"]:
        trial["reason"] = EVIL
        trial["config"][EVIL] = f"{EVIL}<b>$x$</b>"
    written = write_front(report, tmp_path)
    raw = written["html"].read_text()
    assert EVIL not in raw
    page = Page(written["html"])
    assert sum(tag == "script" for tag, _ in page.tags) == 2  # the data, the program
    assert f"cst-search export '{EVIL}' --pick knee" in page.text
    assert "the knee" in page.text and "the best mAP" not in page.text
    assert f"--data 'a b{EVIL}'" in page.text
    assert embedded(written["html"])["reasons"] == [EVIL]


def test_where_the_knee_says_little_the_page_suggests_the_best(tmp_path):
    report = make_report()
    best = max(report["front"], key=lambda row: row["map"])
    report |= {"suggested_pick": "best", "suggested": best["trial"]}
    assert report["knee"] != best["trial"]
    written = write_front(report, tmp_path)["html"]
    text = " ".join(Page(written).text.split())
    assert f"trial {best['trial']}the best mAP" in text and "--pick best -o best.yaml" in text
    assert "--pick knee" not in text
    assert embedded(written)["suggested"] == best["trial"], "the trial whose details are shown first"


def test_a_dollar_in_a_name_is_no_formula(tmp_path):
    write_front(make_report(study=r"$\\frac{", n=6), tmp_path)  # matplotlib would refuse this as mathematics


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (make_report(0), "No trial has finished yet"),  # just started
        (nothing_finished(4), "did not fit the budget"),  # the budget is too small for this space
    ],
)
def test_study_without_a_front(tmp_path, report, message):
    written = write_front(report, tmp_path)
    text = Page(written["html"]).text
    assert message in text
    assert "cst-search status resnet50-voc-6gb" in text
    assert "--pick knee" not in text
    assert written["png"].stat().st_size > 0


def test_front_of_one_point(tmp_path):
    report = make_report()
    report["front"] = [row for row in report["front"] if row["trial"] == report["knee"]]
    report["all"] = [trial for trial in report["all"] if trial["trial"] == report["knee"]]
    drawn = picture(report)
    assert len(drawn["line"]) == 1
    assert drawn["x_range"][0] < drawn["knee"]["x"] < drawn["x_range"][1]
    assert drawn["y_range"][0] < drawn["knee"]["y"] < drawn["y_range"][1]
    write_front(report, tmp_path)


def test_a_configuration_without_a_method_and_a_trial_without_counts(tmp_path):
    report = make_report()
    for trial in [*report["all"], *report["front"]]:
        trial["config"] = {"lr": 0.001}
        trial["trainable_params"] = trial["petl_params"] = None
    write_front(report, tmp_path)
