"""The Pareto report's files: what the image draws, what the page holds, that it is self-contained. See test_page."""

from __future__ import annotations

import json
import math
import random
import re
import struct
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from pages import METHODS, made_info

from cst_search.commands.allocate import points_of
from cst_search.config.catalog import shipped_folder
from cst_search.errors import ConfigError
from cst_search.report.figure import picture
from cst_search.report.html import write_comparison, write_front
from cst_search.report.labels import GROUPS, budget_lines, has_log_axis, headline, is_log, plain
from cst_search.report.page_data import page_data
from cst_search.report.summary import page_report
from cst_search.study.allocation import Bounds, allocate
from cst_search.study.objectives import OBJECTIVES, OF_INFERENCE
from cst_search.study.pareto import front, hypervolume, hypervolume_by_trial, knee
from cst_search.study.records import StudyInfo


def make_report(
    n: int = 24, study: str = "resnet50-voc-6gb", budget: int | None = 6_000_000_000, objectives: int = 2,
    seed: int = 6, context: int = 0,
) -> dict[str, Any]:  # fmt: skip
    """A report as `cst-search front --json` gives it, with ``n`` trials of every state."""
    rng = random.Random(seed)
    chosen = [OBJECTIVES[name] for name in ("map", "device_bytes", "trainable_params")[:objectives]]
    trials: list[dict[str, Any]] = []
    for number in range(n):
        method = rng.choice(list(METHODS))
        quality, gigabytes, params = METHODS[method]
        r = rng.choice([4, 8, 16, 32])
        memory = round(gigabytes * rng.uniform(0.72, 1.12) * 1e9)
        feasible = budget is None or memory <= budget
        state = "infeasible" if not feasible else "complete"
        if feasible and number % 6 == 4:
            state = ("pruned", "failed", "pruned", "running", "interrupted")[number // 6 % 5]
        done = state in ("complete", "pruned")
        value = quality + rng.gauss(0, 0.012) - 0.002 * r / 4 - (0.08 if state == "pruned" else 0) if done else math.nan
        trials.append({
            "trial": number,
            "state": state,
            "reason": {
                "infeasible": f"predicted {memory / 1e9:.2f} GB is over the budget of {(budget or 0) / 1e9:.3g} GB",
                "failed": "the loss is not finite at step 212; a lower lr or a longer warmup usually helps",
                "pruned": "behind 7 of 9 trials after epoch 2",
            }.get(state),
            "config": {"method": method, f"{method}.reduction": r, "lr": 10 ** rng.uniform(-4, -2.5), "batch_size": 4,
                       "image_size_px": rng.choice([480, 640, 800]), "precision": "bf16", "mtc_stages": [2, 3, 5]},
            "map": value,
            "map50": value + 0.19,
            "device_bytes": memory,
            "working_bytes": memory - context,
            "memory_source": "predicted" if state == "infeasible" else "measured",
            "trainable_params": round(params * rng.uniform(0.7, 1.1) / math.sqrt(r)),
            "petl_params": round(params * 0.02),
            "delta_bytes": round(4 * params),
            "inference_bytes": memory // 4,
            "flops": 10**11 + 10**9 * r,
            "marginal_flops": 10**10 + 10**9 * r,
            "seconds": rng.uniform(200, 900) if done else None,
            "feasible": feasible,
            "on_front": False,
            "history": [{"epoch": 1, "loss": 1.5, "map": value}] if done else [],
            "notes": [],
        })  # fmt: skip
    rows = [[t[o.compared] if t["state"] == "complete" else math.nan for o in chosen] for t in trials]
    reference = {"map": 0.0, "device_bytes": float(budget or 12e9), "trainable_params": 5e7}
    compared = {o.compared: reference[o.name] - (context if o.name == "device_bytes" else 0) for o in chosen}
    point = list(compared.values())
    for i in front(rows, chosen):
        trials[i]["on_front"] = True
    columns = ("trial", "config", "map", "map50", "device_bytes", "working_bytes", "memory_source", "trainable_params",
               "petl_params", *OF_INFERENCE)  # fmt: skip
    states = [t["state"] for t in trials]
    return {
        "study": study,
        "objectives": [{"name": o.name, "goal": o.goal} for o in chosen],
        "budget": {"memory_bytes": budget, "params": None},
        "trials": {
            "total": n,
            **{s: states.count(s) for s in ("complete", "pruned", "infeasible", "failed", "running")},
        },
        "reference_point": {o.name: reference[o.name] for o in chosen},
        "compared_reference": compared,
        "context_bytes": context,
        "hypervolume": hypervolume(rows, chosen, point),
        "knee": knee(rows, chosen),
        "suggested_pick": "knee",
        "front": [{name: t[name] for name in columns} for t in trials if t["on_front"]],
        "all": trials,
        "hypervolume_by_trial": [list(pair) for pair in enumerate(hypervolume_by_trial(rows, chosen, point))],
        "methods": [],
        "importance": {"n": n, "fewest": 20, "dimensions": []},
        "space": {},
        "recipe": {"detector": "fasterrcnn", "backbone": "resnet50", "search_epochs": 4, "seed": 0},
        "data": "data/voc-mini",
        "target_device": "NVIDIA GeForce RTX 2060 (6 GB)",
        "started": "2026-05-04T09:30:00+00:00",
        "version": "0.1.0",
    }


def test_the_headline_says_what_was_found_and_what_it_saves() -> None:
    point = {"map": 0.572, "working_bytes": 20_000_000, "n_seeds": 1}
    report = {"context_bytes": 665_000_000, "budget": {"memory_bytes": 700_000_000, "params": None}}
    assert headline(report, point) == "0.572 mAP in 20 MB beyond the fixed cost"
    full = {"method": "full", "working_bytes": 65_000_000, "device_bytes": 730_000_000, "map": None, "differs": {}}
    head = {"method": "head", "working_bytes": 15_000_000, "device_bytes": 680_000_000, "map": 0.43, "differs": {}}
    assert headline(report | {"references": [full, head]}, point) == (
        "0.572 mAP in 20 MB beyond the fixed cost; full fine-tuning needs 65 MB, above the budget; "
        "the head alone needs 15 MB and reaches 0.430"
    )
    other = head | {"differs": {"image_size_px": [128, 256], "batch_size": [2, 4]}}
    assert headline(report | {"references": [other]}, point) == (
        "0.572 mAP in 20 MB beyond the fixed cost; the head alone, at 128 px instead of 256 px and with batches of 2 "
        "instead of 4, needs 15 MB and reaches 0.430"
    )
    confirmed = point | {"n_seeds": 3, "map_mean": 0.5, "map_std": 0.01}
    assert headline(report | {"context_bytes": 0}, confirmed) == "0.500 mAP in 20 MB"


EVIL = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The tags of a page with their attributes, and the text outside scripts and styles."""

    def __init__(self, path: Path):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.quiet = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self.quiet = tag in ("script", "style")

    def handle_endtag(self, tag):
        self.quiet = False

    def handle_data(self, data):
        self.text += "" if self.quiet else data


def confirmed(report: dict[str, Any]) -> dict[str, Any]:
    """The first point of the front with three seeds, its mean 0.02 below its own value; the others as they were."""
    first = report["front"][0]["trial"]
    for trial in (t for key in ("all", "front") for t in report[key]):
        several = trial["trial"] == first
        for name in ("map", "map50"):
            trial[f"{name}_mean"] = trial[name] - 0.02 if several else trial[name]
            trial[f"{name}_std"] = 0.3 if several else None
        trial["n_seeds"] = 3 if several else 1
    return report


def nothing_finished(n: int) -> dict[str, Any]:
    """A study whose n suggestions were all over the budget."""
    report = make_report(n, budget=1_000)
    assert not report["front"]
    return report


def embedded(path: Path) -> dict[str, Any]:
    """What the page's script reads."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    assert found
    return json.loads(found[1])


def points(drawn: dict[str, Any], key: str) -> list[dict[str, Any]]:
    return next((group["points"] for group in drawn["groups"] if group["key"] == key), [])


# ---------------------------------------------------------------- the picture


def test_every_trial_is_drawn_once_in_the_group_of_its_state():
    report = make_report(200)
    drawn = picture(report)
    numbers = [point["trial"] for group in drawn["groups"] for point in group["points"]]
    assert sorted(numbers) == list(range(200))
    by_state = {trial["trial"]: trial for trial in report["all"]}
    for group in drawn["groups"]:
        for point in group["points"]:
            trial = by_state[point["trial"]]
            expected = {"complete": "front" if trial["on_front"] else "dominated"}
            expected |= {"running": "unfinished", "interrupted": "unfinished"}
            assert group["key"] == expected.get(trial["state"], trial["state"])


def test_a_measured_excess_is_infeasible_although_it_was_trained():
    report = make_report()
    trial = next(t for t in report["all"] if t["state"] == "complete" and not t["on_front"])
    trial["feasible"] = False
    (point,) = [p for p in points(picture(report), "infeasible") if p["trial"] == trial["trial"]]
    assert point["y"] == pytest.approx(trial["map"])  # it has an mAP, so it is not in the strip


def test_shapes_differ_and_not_only_colours():
    assert len({marker for _, marker in GROUPS.values()}) == len(GROUPS)


def test_axes_are_in_gigabytes_and_map():
    report = make_report()
    drawn = picture(report)
    row = report["front"][0]
    (point,) = [p for p in points(drawn, "front") if p["trial"] == row["trial"]]
    assert (point["x"], point["y"]) == (row["device_bytes"] / 1e9, row["map"])
    assert (drawn["x_label"], drawn["y_label"]) == ("working memory, GB", "COCO mAP@[.50:.95]")


def test_memory_is_drawn_without_the_context_and_the_budget_with_it():
    drawn = picture(make_report(context=800_000_000))
    x = {p["trial"]: p["x"] for group in drawn["groups"] for p in group["points"]}
    assert all(x[t["trial"]] == t["working_bytes"] / 1e9 for t in make_report(context=800_000_000)["all"])
    assert drawn["budget"] == {"x": 5.2, "label": "budget 6 GB (800 MB of it fixed)", "align": "center"}
    assert "Working memory excludes the CUDA context of 800 MB." in drawn["notes"]
    assert not any("CUDA context" in note for note in picture(make_report())["notes"])


def test_a_budget_below_the_context_has_no_line():
    report = make_report(context=800_000_000) | {"budget": {"memory_bytes": 500_000_000, "params": None}}
    assert budget_lines(report).keys() == {"device_bytes"} and picture(report)["budget"] is None


@pytest.mark.parametrize(("factor", "log"), [(1.0, False), (0.2, True)])
def test_memory_that_spans_more_than_four_times_has_a_logarithmic_axis(tmp_path, factor, log):
    report = make_report()
    trained = [trial for trial in report["all"] if not math.isnan(trial["map"])]
    least = min(trained, key=lambda trial: trial["working_bytes"])
    ratio = max(trial["working_bytes"] for trial in trained) / least["working_bytes"]
    assert 1.5 < ratio < 4
    least["working_bytes"] = round(least["working_bytes"] * factor)
    drawn = picture(report)
    assert drawn["x_log"] is log and drawn["x_label"].endswith(" (logarithmic)") is log
    assert 0 < drawn["x_range"][0] < least["working_bytes"] / 1e9  # 8 % of the span to the left of it, in its powers
    assert drawn["x_range"][1] < 20
    assert {m["key"]: m["log"] for m in page_data(plain(report))["metrics"]}["working_bytes"] is log
    write_front(report, tmp_path)


@pytest.mark.parametrize(
    ("name", "values", "log"),
    [
        ("working_bytes", [10, 40], False),
        ("working_bytes", [10, 41], True),
        ("trainable_params", [10, 41], False),
        ("trainable_params", [10, 101], True),
        ("petl_params", [0, 10, 101], False),  # `head` has none of its own
        ("map", [0.01, 0.9], False),
        ("seconds", [1, 1000], False),
        ("working_bytes", [], False),
    ],
)
def test_which_axes_are_logarithmic(name, values, log):
    assert is_log(name, values) is log
    assert has_log_axis([{name: value, "map": 0.1} for value in values], name) is log


def test_what_was_not_trained_does_not_decide_on_the_axis():
    trials = [{"working_bytes": 100, "map": None}, {"working_bytes": 10, "map": 0.2}, {"working_bytes": 12, "map": 0.3}]
    assert not has_log_axis(trials, "working_bytes") and has_log_axis(trials[:1] + trials[1:2], "map") is False
    assert has_log_axis([{**trial, "map": None} for trial in trials], "working_bytes")


def test_small_memory_is_in_megabytes():
    report = make_report(budget=None)
    for trial in report["all"]:
        trial["working_bytes"] = trial["device_bytes"] // 1000
    assert picture(report)["x_label"].startswith("working memory, MB")


def test_trials_without_a_map_are_in_the_strip():
    report = make_report(60)
    y = {p["trial"]: p["y"] for group in picture(report)["groups"] for p in group["points"]}
    for trial in report["all"]:
        assert y[trial["trial"]] == (None if math.isnan(trial["map"]) else trial["map"])


def test_axes_follow_the_objectives():
    report = make_report()
    report["objectives"] = [{"name": "map50", "goal": "max"}, {"name": "petl_params", "goal": "min"}]
    drawn = picture(report)
    assert (drawn["x_label"], drawn["y_label"]) == ("PETL parameters, M (logarithmic)", "mAP@.50")
    assert drawn["budget"] is None  # no budget limits the PETL parameters


def test_the_line_joins_the_whole_front_of_two_objectives_and_rises():
    report = make_report()
    line = picture(report)["line"]
    assert len(line) == len(report["front"]) > 2
    assert line == sorted(line)
    assert [y for _, y in line] == sorted(y for _, y in line)


def test_the_line_of_three_objectives_is_the_envelope_and_the_caption_says_so():
    report = make_report(60, objectives=3)
    drawn = picture(report)
    assert 1 < len(drawn["line"]) < len(report["front"])
    assert [y for _, y in drawn["line"]] == sorted(y for _, y in drawn["line"])
    assert any("also weighs trainable parameters" in note for note in drawn["notes"])


@pytest.mark.parametrize(
    ("budget", "drawn_at", "note"),
    [
        (6_000_000_000, 6.0, None),  # among the points
        (80_000_000_000, None, "budget 80 GB is far to the right"),  # would squash the points into a corner
        (None, None, None),  # no budget
    ],
)
def test_budget_line(budget, drawn_at, note):
    drawn = picture(make_report(budget=budget))
    assert (drawn["budget"] and drawn["budget"]["x"]) == drawn_at
    assert any("budget" in text for text in drawn["notes"]) is (note is not None)
    assert note is None or any(note in text for text in drawn["notes"])
    if drawn_at:
        assert drawn["x_range"][0] < drawn_at < drawn["x_range"][1]


def test_a_budget_label_at_the_right_edge_is_not_cut_off():
    report = make_report()
    report["all"] = [trial for trial in report["all"] if trial["working_bytes"] <= 6e9]
    drawn = picture(report)
    assert drawn["budget"]["x"] > 0.85 * drawn["x_range"][1] and drawn["budget"]["align"] == "right"


def test_what_a_search_is_compared_with_is_marked(tmp_path):
    """Full fine-tuning far over the budget widens the view; what would squeeze the rest into a corner is left out."""
    report, full = make_report(), {"method": "full", "trial": None, "map": None, "working_bytes": 9.6e9, "differs": {}}
    plain_range = picture(report)["x_range"]
    head = {"method": "head", "trial": 3, "map": 0.3, "working_bytes": 3.1e9, "device_bytes": 3.1e9, "differs": {}}
    report["references"] = [full | {"device_bytes": 9.6e9}, head]
    drawn = picture(report)
    assert drawn["references"] == [
        {"label": "full fine-tuning", "x": 9.6, "trained": False}, {"label": "head alone", "x": 3.1, "trained": True},
    ]  # fmt: skip
    assert drawn["x_range"][1] > 9.6 > plain_range[1]
    write_front(report, tmp_path)
    report["references"] = [full | {"working_bytes": 960e9, "device_bytes": 960e9}]
    assert picture(report)["references"] == [] and picture(report)["x_range"] == plain_range


def test_one_enormous_suggestion_does_not_squash_the_view():
    report = make_report()
    report["all"][0] |= {
        "state": "infeasible",
        "map": None,
        "device_bytes": 500e9,
        "working_bytes": 500e9,
        "feasible": False,
        "on_front": False,
    }
    drawn = picture(report)
    assert drawn["x_range"][1] < 20
    assert any("outside this view" in note and "500 GB" in note for note in drawn["notes"])


def test_a_trial_without_a_memory_figure_is_counted_in_the_caption():
    report = make_report()
    report["all"][0] |= {"state": "failed", "map": None, "device_bytes": None, "working_bytes": None,
                         "on_front": False}  # fmt: skip
    assert any(note.startswith("1 trial has no memory figure") for note in picture(report)["notes"])


def test_marker_sizes_grow_with_the_parameters_and_the_legend_agrees():
    report = make_report()
    drawn = picture(report)
    by_trial = {trial["trial"]: trial["trainable_params"] for trial in report["all"]}
    trained = [p for group in drawn["groups"] for p in group["points"] if p["y"] is not None]
    trained.sort(key=lambda p: by_trial[p["trial"]])
    assert [p["size"] for p in trained] == sorted(p["size"] for p in trained)
    steps = drawn["sizes"]["steps"]
    assert (steps[0]["size"], steps[-1]["size"]) == (trained[0]["size"], trained[-1]["size"])
    assert drawn["sizes"]["title"] == "trainable parameters:"


@pytest.mark.parametrize(
    ("objectives", "size"),
    [
        (["map", "device_bytes"], "trainable_params"),
        (["map", "trainable_params"], None),  # across are the parameters: a large mark would say that again
        (["map", "delta_bytes"], None),  # the stored delta is what is trainable
        (["map", "delta_bytes", "flops"], "flops"),
        (["map50", "map", "flops"], "trainable_params"),  # up is mAP50, which rises with mAP
    ],
)
def test_the_size_of_a_mark_does_not_repeat_an_axis(objectives, size):
    report = make_report()
    report["objectives"] = [{"name": name, "goal": OBJECTIVES[name].goal} for name in objectives]
    assert page_data(plain(report))["axes"]["size"] == size
    sizes = picture(report)["sizes"]
    assert (sizes is None) == (size is None) and (size != "flops" or sizes["steps"][0]["label"].endswith("GFLOP"))
    points_drawn = [p for group in picture(report)["groups"] for p in group["points"] if p["y"] is not None]
    assert (len({p["size"] for p in points_drawn}) == 1) == (size is None)


@pytest.mark.parametrize(("gigabytes", "side"), [(2.0, 1), (5.9, -1)])
def test_the_knee_label_stays_off_the_left_axis(gigabytes, side):
    report = make_report()
    for trial in report["all"]:
        if trial["trial"] == report["knee"]:
            trial["working_bytes"] = gigabytes * 1e9
    assert picture(report)["knee"]["side"] == side


def test_a_confirmed_point_is_drawn_at_its_mean_with_a_bar():
    report = confirmed(make_report())
    row, drawn = report["front"][0], picture(report)
    bars = [p for group in drawn["groups"] for p in group["points"] if p["spread"] is not None]
    (point,) = bars
    assert (point["trial"], point["y"], point["spread"]) == (row["trial"], row["map"] - 0.02, 0.3)
    assert drawn["y_range"][0] == 0.0 and drawn["y_range"][1] > point["y"] + 0.3  # the whole bar is in sight
    assert any(note.startswith("Points with a bar were confirmed") for note in drawn["notes"])
    assert not any(note.startswith("Points with a bar") for note in picture(make_report())["notes"])


# ---------------------------------------------------------------- the files


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
    report = make_report() | {"suggested_pick": "best"}
    best = max(report["front"], key=lambda row: row["map"])
    report["front"].sort(key=lambda row: -row["map"])
    text = " ".join(Page(write_front(report, tmp_path)["html"]).text.split())
    assert f"trial {best['trial']}the best mAP" in text and "--pick best -o best.yaml" in text
    assert "--pick knee" not in text


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


# ---------------------------------------------------------------- what the page holds


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


# ---------------------------------------------------------------- several studies


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
