"""The picture of the report: which trials are drawn where, as what, on which axes."""

from __future__ import annotations

import math

import pytest
from made_up_reports import confirmed, make_report, points

from cst_search.report.figure import picture
from cst_search.report.html import write_front
from cst_search.report.labels import GROUPS, budget_lines, has_log_axis, headline, is_log, plain
from cst_search.report.page_data import page_data
from cst_search.study.objectives import OBJECTIVES


def test_the_headline_says_what_was_found_and_what_it_saves() -> None:
    best = {"trial": 4, "map": 0.61, "working_bytes": 65_000_000, "n_seeds": 1}
    point = {"trial": 3, "map": 0.572, "working_bytes": 20_000_000, "n_seeds": 1}
    report = {"context_bytes": 665_000_000, "budget": {"memory_bytes": 700_000_000, "params": None}}
    assert headline(report | {"front": [point]}) == "0.572 mAP in 20 MB beyond the fixed cost"
    report["front"] = [best, point]
    full = {"method": "full", "working_bytes": 65_000_000, "device_bytes": 730_000_000, "map": None, "differs": {}}
    head = {"method": "head", "working_bytes": 15_000_000, "device_bytes": 680_000_000, "map": 0.43, "differs": {}}
    full, head = (one | {"beside": 3} for one in (full, head))
    assert headline(report | {"references": [full, head]}) == (
        "0.572 mAP in 20 MB beyond the fixed cost; full fine-tuning needs 65 MB, above the budget; "
        "the head alone needs 15 MB and reaches 0.430"
    )
    other = head | {"differs": {"image_size_px": [128, 256], "batch_size": [2, 4]}}
    assert headline(report | {"references": [other]}) == (
        "0.572 mAP in 20 MB beyond the fixed cost; the head alone, at 128 px instead of 256 px and with batches of 2 "
        "instead of 4, needs 15 MB and reaches 0.430"
    )
    confirmed = point | {"n_seeds": 3, "map_mean": 0.5, "map_std": 0.01}
    assert headline(report | {"context_bytes": 0, "front": [confirmed]}) == "0.500 mAP in 20 MB"


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
    full, head = (one | {"beside": report["front"][0]["trial"]} for one in (full, head))
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
