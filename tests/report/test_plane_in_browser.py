"""The plane of the report page in a real browser: axes, colours, marks, and what is chosen in it in all views."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from browser import N, apart, chosen, drawn, place
from pages import METHODS

from cst_search.report.html import write_front
from cst_search.report.summary import page_report
from cst_search.study.records import StudyInfo
from cst_search.units import format_bytes

# --- the plane -------------------------------------------------------------------------------------------------------


def test_points_are_where_and_what_they_should_be(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    """Ink on the canvas, in the front's colour; higher is better mAP, further right more memory."""
    page = show(front)
    numbers = apart(page, [r.trial for r in info.front()], 3)
    ink = """(numbers) => { const { width, height } = scatter.base, k = devicePixelRatio;
        const { data } = scatter.base.getContext('2d').getImageData(0, 0, width, height);
        return numbers.map((t) => trials.trial.indexOf(t)).map((i) => {
            const at = 4 * (Math.round(scatter.py[i] * k) * width + Math.round(scatter.px[i] * k));
            return [...data.slice(at, at + 4)]; }); }"""
    page.select_option("#shade", "")
    drawn(page)
    accent = [0x0B, 0x6B, 0xCB, 255]
    assert page.evaluate(ink, numbers) == [accent] * 3
    places = {number: place(page, number) for number in numbers}
    records = {number: info.by_number(number) for number in numbers}
    by_memory = sorted(numbers, key=lambda t: records[t].device_bytes)  # type: ignore[union-attr]
    assert by_memory == sorted(numbers, key=lambda t: places[t][0])
    assert sorted(numbers, key=lambda t: info.over_seeds(records[t]).mean) == sorted(
        numbers, key=lambda t: -places[t][1]
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("key", ["map50", "trainable_params", "petl_params", "seconds"])
def test_any_two_metrics(show: Callable[..., Any], front: Path, info: StudyInfo, key: str) -> None:
    page = show(front)
    page.select_option("#x", key)
    drawn(page)
    at = page.evaluate(
        """Object.fromEntries([...trials.trial.keys()]
            .filter((i) => !isNaN(scatter.px[i]) && data.columns[scatter.x][i] !== null)
            .map((i) => [trials.trial[i], scatter.px[i]]))"""
    )
    value = {
        t: info.over_seeds(r, key).mean if key == "map50" else getattr(r, key)
        for t in map(int, at)
        if (r := info.by_number(t))
    }
    order = sorted(at, key=lambda t: at[t])
    assert len(order) > 30
    assert all(value[int(a)] <= value[int(b)] * (1 + 1e-5) for a, b in pairwise(order))
    expected = "no front of the study" if key in ("map50", "petl_params", "seconds") else "also weighs working memory"
    assert expected in page.locator("#notes").text_content()


def test_any_dimension_as_axis_and_as_colour(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    methods = [m for m in METHODS if any(r.config["method"] == m for r in info.trials)]
    assert page.input_value("#shade") == "method"  # several were tried: which is which is seen at once
    swatches = page.locator("#keys button")
    assert sorted(swatches.all_text_contents()) == sorted(methods)
    tones = page.eval_on_selector_all("#keys .dot", "(all) => all.map((dot) => dot.style.background)")
    assert len(set(tones)) == len(methods)
    over = page.evaluate("trials.trial.filter((t, i) => looks[groupOf(i).key].faint)")
    assert over == [r.trial for r in info.trials if r.state == "infeasible"]  # grey, whatever the colours mean
    page.locator("#keys button", has_text="cst").focus()
    page.keyboard.press("Enter")
    drawn(page)
    assert chosen(page) == {r.trial for r in info.trials if r.config["method"] == "cst"}
    assert page.evaluate("document.activeElement.dataset.value") == "cst"  # the legend did not lose the focus
    page.keyboard.press("Enter")
    drawn(page)
    assert len(chosen(page)) == N
    page.select_option("#x", "lr")
    drawn(page)
    lr = page.evaluate(
        "[...scatter.px.keys()].filter((i) => scatter.px[i] > 0).map((i) => [trials.trial[i], scatter.px[i]])"
    )
    order = [info.by_number(t).config["lr"] for t, _ in sorted(lr, key=lambda pair: pair[1])]  # type: ignore[union-attr]
    assert len(order) > 60 and all(a <= b * 1.001 for a, b in pairwise(order))
    assert page.evaluate("scatter.lines()") == [] and "there is no line" in page.locator("#notes").text_content()
    page.select_option("#x", "method")
    drawn(page)
    at = page.evaluate(
        """Object.fromEntries([...scatter.px.keys()].filter((i) => scatter.px[i] > 0)
            .map((i) => [trials.trial[i], scatter.xText.labels[Math.round(scatter.fromX(scatter.px[i]))]]))"""
    )
    assert len(at) > 60 and all(info.by_number(int(t)).config["method"] == name for t, name in at.items())  # type: ignore[union-attr]
    page.select_option("#x", "working_bytes")
    drawn(page)
    assert page.evaluate("scatter.view[0][1]") > 10e9  # full fine-tuning, which no trial is of, has its mark
    assert "full fine-tuning was completed" in page.locator("#notes").text_content()
    head = next(r.trial for r in info.front() if r.config["method"] == "head")
    assert any(f"head alone: trial {head}" in label for label in page.evaluate("rings().map((ring) => ring.label)"))
    page.select_option("#x", "trainable_params")  # what the size showed
    drawn(page)
    assert page.input_value("#size") == "working_bytes"
    assert page.locator("#size option[value=delta_bytes]").count() == 0  # none of these trials has it


def test_the_same_metric_on_both_axes_changes_them(show: Callable[..., Any], front: Path) -> None:
    page = show(front)
    page.select_option("#y", "working_bytes")
    assert (page.input_value("#x"), page.input_value("#y")) == ("map", "working_bytes")
    drawn(page)
    box = page.evaluate("scatter.box")
    y = page.evaluate("scatter.toY(5.2e9)")
    assert box["top"] < y < box["bottom"]  # the budget is drawn on the axis that has it
    assert page.evaluate("scatter.columns[scatter.y] === data.columns.working_bytes")


def test_memory_is_said_with_the_device_memory_it_is_of(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    record = info.front()[1]
    page.evaluate("(t) => open(trials.trial.indexOf(t))", record.trial)
    words = f"{format_bytes(record.working_bytes)} of {format_bytes(record.device_bytes)}"
    assert words in page.locator("#detail").text_content()
    row = page.locator("#trials tr", has=page.locator(f"[data-trial='{record.trial}']"))
    assert words in row.text_content()
    lines = page.evaluate("(t) => describe(trials.trial.indexOf(t))", record.trial)
    assert f"memory {words} (measured)" in lines and not any(line.startswith("device memory") for line in lines)
    assert page.evaluate("scatter.budgets.working_bytes") == {
        "value": 5_200_000_000, "label": "budget 6 GB (800 MB of it fixed)",
    }  # fmt: skip
    page.select_option("#x", "device_bytes")  # it can still be looked at
    drawn(page)
    assert page.evaluate("scatter.columns[scatter.x] === data.columns.device_bytes")


def small_and_large(info: StudyInfo) -> StudyInfo:
    """The same with a tenth of the working memory and a fiftieth of the parameters in every other trial."""
    trials = tuple(
        r if r.trial % 2 else replace(r, device_bytes=r.context_bytes + round((r.working_bytes or 0) / 10),
                                      trainable_params=round((r.trainable_params or 0) / 50))
        for r in info.trials
    )  # fmt: skip
    return replace(info, trials=trials, repeats=())


def test_costs_that_span_much_have_logarithmic_axes(show: Callable[..., Any], info: StudyInfo, tmp_path: Path) -> None:
    page = show(write_front(page_report(small_and_large(info)), tmp_path)["html"])
    drawn(page)
    logs = page.evaluate("Object.fromEntries(metrics.map((m) => [m.key, m.log]))")
    assert {key for key in logs if logs[key]} == {"device_bytes", "working_bytes", "trainable_params", "petl_params"}
    # equal ratios have equal distances, and a place in px leads back to its value
    at = page.evaluate("[2e8, 4e8, 8e8].map((v) => scatter.toX(v))")
    assert at[1] - at[0] == pytest.approx(at[2] - at[1]) and at[1] - at[0] > 20
    assert page.evaluate("scatter.fromX(scatter.toX(4e8))") == pytest.approx(4e8)
    assert page.evaluate("scatter.xText.labels.length") >= 3 and page.evaluate("scatter.xText.unit") == ""
    assert all(label.endswith(("MB", "GB")) for label in page.evaluate("scatter.xText.labels"))
    # zoom and pan keep what is in the middle or under the pointer
    page.evaluate("scatter.scaleBy(0.5)")
    drawn(page)
    low, high = page.evaluate("scatter.view[0]")
    middle = math.sqrt(low * high)
    page.evaluate("scatter.setMode('pan')")
    page.locator("#front").scroll_into_view_if_needed()
    box = page.locator("#front").bounding_box()
    x, y = box["x"] + page.evaluate("(v) => scatter.toX(v)", middle), box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + 60, y)
    page.mouse.up()
    drawn(page)
    assert box["x"] + page.evaluate("(v) => scatter.toX(v)", middle) == pytest.approx(x + 60, abs=1)
    page.select_option("#x", "trainable_params")
    drawn(page)
    assert page.evaluate("scatter.view[0][0]") > 0


def test_the_line_is_the_front_of_the_plane(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    line = page.evaluate("scatter.frontier(members).map((i) => trials.trial[i])")
    points = [
        (r.working_bytes, info.over_seeds(r).mean, r.trial) for r in info.trials if r.state == "complete" and r.feasible
    ]
    best = [(m, q, t) for m, q, t in points if not any(a <= m and b >= q and (a, b) != (m, q) for a, b, _ in points)]  # type: ignore[operator]
    assert line == [t for _, _, t in sorted(best)]
    assert len(line) > 3
    for swapped in (False, True):  # whichever way round: every corner is worse than both of its neighbours
        if swapped:
            page.select_option("#y", "working_bytes")
        signs = (-1, 1) if swapped else (1, -1)  # of a cost
        steps = page.evaluate("scatter.corners(scatter.frontier(members))")
        assert len(steps) == 2 * len(line) - 1
        for before, corner, after in zip(steps[::2], steps[1::2], steps[2::2], strict=False):
            assert all(s * c >= max(s * a, s * b) for s, c, a, b in zip(signs, corner, before, after, strict=True))


def test_third_metric_as_size_and_as_colour(show: Callable[..., Any], front: Path) -> None:
    page = show(front)
    spread = (
        "(() => { const r = [...scatter.radius].filter((v) => v > 4.6); return Math.max(...r) / Math.min(...r); })()"
    )
    assert page.evaluate(spread) > 1.5
    page.select_option("#size", "")
    page.select_option("#shade", "seconds")
    drawn(page)
    assert page.evaluate(spread) == pytest.approx(1, abs=0.01)
    assert "time" in page.locator("#keys").text_content() and page.locator("#keys .ramp").count() == 1


def test_the_legend_hides_a_kind_of_trial(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    before = chosen(page)
    page.locator("[data-group=infeasible]").click()
    gone = {r.trial for r in info.trials if r.state == "infeasible"}
    assert gone and chosen(page) == before - gone
    assert page.locator("[data-group=infeasible]").get_attribute("aria-pressed") == "false"


pytestmark = pytest.mark.usefixtures("no_picture")


# --- linked views ----------------------------------------------------------------------------------------------------


def test_brushing_an_axis_dims_the_other_trials(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    page.select_option("#state", "")
    track = page.locator(".axis[aria-label=lr] .track")
    track.scroll_into_view_if_needed()
    box = track.bounding_box()
    x = box["x"] + box["width"] / 2
    page.mouse.move(x, box["y"] + 0.1 * box["height"])  # the end itself would be a thumb
    page.mouse.down()
    page.mouse.move(x, box["y"] + box["height"] / 4)
    page.mouse.move(x, box["y"] + box["height"] / 2)
    page.mouse.up()
    drawn(page)
    low = math.sqrt(1e-4 * 2e-2)  # the axis is logarithmic: its middle is the geometric mean of its ends
    high = low * 200**0.4
    expected = {r.trial for r in info.trials if low * 1.05 <= r.config["lr"] <= high / 1.05}
    found = chosen(page)
    near = {r.trial for r in info.trials if low / 1.05 <= r.config["lr"] <= high * 1.05}
    assert expected <= found <= near
    assert 0 < len(found) < N
    assert page.locator("#chosen").text_content() == f"{len(found)} of {N} trials chosen"
    rows = page.eval_on_selector_all(
        "#trials tbody tr:not(.gap)",
        "(all) => all.map((r) => [Number(r.querySelector('.trial').dataset.trial), r.classList.contains('dim')])",
    )
    assert rows and all(dim is (number not in found) for number, dim in rows)
    page.locator("#brushed").check()
    assert page.locator("#count").text_content() == f"{len(found)} of {N}"
    page.locator("#clear").click()
    assert len(chosen(page)) == N


def test_axes_fit_or_can_be_scrolled(show: Callable[..., Any], front: Path) -> None:
    page = show(front)
    sizes = "(() => { const box = byId('parallel'); return [box.scrollWidth, box.clientWidth]; })()"
    wide, box = page.evaluate(sizes)
    assert wide <= box
    shown_axes = page.locator(".axis").evaluate_all("(all) => all.map((a) => a.getAttribute('aria-label'))")
    assert shown_axes[:3] == ["map", "working_bytes", "trainable_params"] and {"lr", "method"} <= set(shown_axes)
    assert page.locator("#axes-shown").text_content() == f"{len(shown_axes)} of {page.evaluate('axes.length')} axes"
    page.select_option("#dimensions", "*")
    wide, box = page.evaluate(sizes)
    assert wide > box and page.evaluate("byId('parallel').tabIndex") == 0  # arrow keys scroll it


def test_an_axis_by_keyboard_and_what_lacks_the_dimension(
    show: Callable[..., Any], front: Path, info: StudyInfo
) -> None:
    page = show(front)
    page.select_option("#dimensions", "cst")
    drawn(page)
    cst = {r.trial for r in info.trials if r.config["method"] == "cst"}
    assert chosen(page) == cst and cst
    page.select_option("#dimensions", "*")
    drawn(page)
    assert len(chosen(page)) == N
    assert page.locator(".axis[aria-label='cst.reduction'] .absent").count() == 1
    thumb = page.locator(".axis[aria-label='cst.reduction'] .thumb.to")
    thumb.focus()
    for _ in range(3):
        page.keyboard.press("ArrowDown")
    drawn(page)
    assert thumb.get_attribute("aria-valuetext") == "4"  # of 1 2 4 8 16 32
    assert chosen(page) == {r.trial for r in info.trials if r.config.get("cst.reduction", 99) <= 4}
    page.keyboard.press("Escape")
    drawn(page)
    assert len(chosen(page)) == N
    page.locator(".axis[aria-label='cst.gate_init'] .thumb.to").focus()  # a range around 0, which is not "absent"
    page.keyboard.press("ArrowDown")
    drawn(page)
    found = chosen(page)
    assert found == {t for t in cst if info.by_number(t).config["cst.gate_init"] <= -1.39 + 0.98 * 2.78}  # type: ignore[union-attr]


@pytest.mark.parametrize("mode", ["box", "lasso"])
def test_selecting_in_the_plane_chooses_lines_and_rows(show: Callable[..., Any], front: Path, mode: str) -> None:
    page = show(front)
    page.locator(f"[data-mode={mode}]").click() if mode == "lasso" else None
    page.locator("#front").scroll_into_view_if_needed()
    outer, box = page.locator("#front").bounding_box(), page.evaluate("scatter.box")
    left, top = outer["x"] + box["left"], outer["y"] + box["top"]
    right, bottom = outer["x"] + (box["left"] + box["right"]) / 2, outer["y"] + box["bottom"]
    corners = [(left, top + 1), (right, top + 1), (right, bottom), (left, bottom)]
    page.mouse.move(*corners[0])
    page.mouse.down()
    for corner in corners[1:] if mode == "lasso" else corners[2:3]:
        page.mouse.move(*corner)
    page.mouse.up()
    drawn(page)
    middle = (box["left"] + box["right"]) / 2
    inside = set(
        page.evaluate(
            """([x, y]) => [...trials.trial.keys()].filter((i) => scatter.px[i] <= x && scatter.py[i] <= y)
                .map((i) => trials.trial[i])""",
            [middle, box["bottom"]],
        )
    )
    assert 5 < len(inside) < N and chosen(page) == inside
    page.locator("#front").focus()
    page.keyboard.press("Escape")
    assert len(chosen(page)) == N
