"""The report page in a real browser: one trial, the table, the keyboard, a sandboxed frame, hostile names."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import EVIL, N, apart, chosen, drawn, place, shown
from pages import EPOCHS, made_info

from cst_search.report.html import write_comparison, write_front
from cst_search.report.summary import page_report
from cst_search.study.method_summary import by_method
from cst_search.study.records import StudyInfo

# --- one trial -------------------------------------------------------------------------------------------------------


def test_a_click_on_a_point_shows_that_trial(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    for number in apart(page, [r.trial for r in info.front() if not info.repeated.get(r.trial)], 2):
        page.mouse.click(*place(page, number))
        record = info.by_number(number)
        assert record and page.locator("#detail-title").text_content() == f"Trial {number}"
        panel = shown(page)
        assert set(record.config) <= set(panel)
        assert panel["method"] == record.config["method"] and panel["mAP"] == f"{record.map:.3f}"
        assert float(panel["lr"]) == pytest.approx(record.config["lr"], rel=5e-3)
        command = f"cst-search export petl-6gb --pick trial={number} -o best.yaml"
        assert page.locator("#command").input_value() == command
        drawn_epochs = page.locator("#curve-loss svg path[fill]:not([fill=none])").count()
        assert drawn_epochs == len(record.history) == EPOCHS


def test_a_trial_that_cannot_be_exported_says_so(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    failed = next(record for record in info.trials if record.state == "failed")
    page.evaluate("(t) => open(trials.trial.indexOf(t))", failed.trial)
    assert page.locator("#command").is_hidden() and page.locator("#no-export").is_visible()
    assert failed.reason in page.locator("#detail-reason").text_content()
    assert "no mAP was recorded" in page.locator("#curve-map").text_content()


def test_several_trials_are_compared_in_one_chart(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    first, second = apart(page, [r.trial for r in info.front()], 2)
    page.mouse.click(*place(page, first))
    page.locator("#pin").click()
    page.mouse.click(*place(page, second))
    assert page.locator("#pins .chip").all_text_contents() == [f"trial {first}\u00d7", f"trial {second}"]
    strokes = page.eval_on_selector_all(
        "#curve-map path[fill=none]",
        "(all) => all.map((p) => [p.getAttribute('stroke'), p.getAttribute('stroke-dasharray')])",
    )
    assert len(strokes) == 2 and strokes[0][0] != strokes[1][0] and strokes[0][1] != strokes[1][1]
    page.locator(f"[aria-label='do not compare trial {first}']").click()
    assert page.locator("#pins .chip").all_text_contents() == [f"trial {second}"]
    page.keyboard.down("Shift")
    page.mouse.click(*place(page, first))
    page.keyboard.up("Shift")
    assert page.evaluate("pinned.map((i) => trials.trial[i])") == [first]


def test_a_confirmed_trial_has_a_bar(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    (number,) = info.repeated
    page.evaluate("""() => { window.bars = []; const draw = scatter.drawBars;
        scatter.drawBars = function (c, i, ...rest) { window.bars.push(trials.trial[i]);
            draw.call(this, c, i, ...rest); };
        scatter.draw(); }""")
    assert page.evaluate("window.bars") == [number]
    page.evaluate("(t) => open(trials.trial.indexOf(t))", number)
    sample = info.over_seeds(info.by_number(number))  # type: ignore[arg-type]
    assert shown(page)["mAP"] == f"{sample.mean:.3f} \u00b1 {sample.std:.3f} (3 seeds)"


pytestmark = pytest.mark.usefixtures("no_picture")


# --- the table -------------------------------------------------------------------------------------------------------


def numbers(page: Any) -> list[int]:
    return page.eval_on_selector_all("#trials .trial", "(all) => all.map((b) => Number(b.dataset.trial))")


def test_the_table_sorts_filters_and_opens(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    on_front = {r.trial for r in info.front()}
    assert set(numbers(page)) == on_front
    header = page.locator("#trials th", has_text="mAP").first
    header.locator("button").click()  # best first
    drawn(page)
    by_map = sorted(on_front, key=lambda t: -info.over_seeds(info.by_number(t)).mean)  # type: ignore[arg-type,operator]
    assert numbers(page) == by_map and header.get_attribute("aria-sort") == "descending"
    header.locator("button").click()
    drawn(page)
    assert numbers(page) == by_map[::-1] and header.get_attribute("aria-sort") == "ascending"
    page.select_option("#state", "failed")
    drawn(page)
    failed = {r.trial for r in info.trials if r.state == "failed"}
    assert set(numbers(page)) == failed
    page.locator("#trials .trial").first.focus()
    page.keyboard.press("Enter")
    assert page.locator("#detail-title").text_content() == f"Trial {numbers(page)[0]}"
    assert page.evaluate("document.activeElement.id") == "detail-title"
    page.select_option("#state", "front")
    page.locator("#trials th", has_text="lr").locator("button").click()
    drawn(page)
    assert numbers(page) == sorted(on_front, key=lambda t: info.by_number(t).config["lr"])  # type: ignore[union-attr]
    titles = page.locator("#trials th").all_text_contents()
    row = page.locator("#trials tbody tr", has_text="cst").first
    cells = dict(zip(titles, row.locator("td").all_text_contents(), strict=True))
    config = info.by_number(int(cells["trial"].removeprefix("knee "))).config  # type: ignore[union-attr]
    assert cells["batch_size"] == str(config["batch_size"])
    assert f"reduction {config['cst.reduction']}, " in cells["options of the method"]
    sorted_by = page.evaluate(
        """[...document.querySelectorAll('#trials th button')].map((button) => {
            button.click(); return document.querySelector('#trials [aria-sort]').textContent; })"""
    )
    assert sorted_by == titles and len(titles) > 12


def test_thousands_of_rows_are_not_in_the_document(show: Callable[..., Any], tmp_path: Path) -> None:
    many = made_info(1200, seed=1)
    page = show(write_front(page_report(many), tmp_path)["html"])
    page.select_option("#state", "")
    drawn(page)
    assert page.locator("#trials tbody tr").count() < 60
    first = set(numbers(page))
    page.evaluate("byId('trials').scrollTop = 1e6")
    drawn(page)
    drawn(page)
    last = set(numbers(page))
    assert not first & last and page.locator("#trials tr[aria-rowindex='1201']").count() == 1
    assert page.locator("#trials table").get_attribute("aria-rowcount") == "1201"


def check_csv(text: str, info: StudyInfo) -> None:
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [int(row["trial"]) for row in rows] == [r.trial for r in info.trials]
    on_front = {r.trial for r in info.front()}
    for row, record in zip(rows, info.trials, strict=True):
        assert row["state"] == record.state and row["reason"] == (record.reason or "")
        assert row["on_front"] == str(record.trial in on_front).lower()
        for name in ("map", "map50", "device_bytes", "working_bytes", "trainable_params", "petl_params", "seconds"):
            value = getattr(record, name)
            assert row[name] == "" if value is None else float(row[name]) == pytest.approx(value, rel=1e-5)
        sample = info.over_seeds(record)
        if sample.n > 1:
            assert (row["n_seeds"], float(row["map_mean"])) == ("3", pytest.approx(sample.mean, rel=1e-5))
        for key in info.trials[0].config.keys() | record.config.keys():
            value = record.config.get(key)
            if isinstance(value, float):
                assert float(row[key]) == pytest.approx(value, rel=1e-5)
            else:
                text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
                assert row[key] == ("" if value is None else text)


def test_csv_holds_every_trial(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    with page.expect_download() as download:
        page.locator("#csv").click()
    assert download.value.suggested_filename == "petl-6gb.csv"
    check_csv(Path(download.value.path()).read_text(encoding="utf-8"), info)


# --- where it is looked at -------------------------------------------------------------------------------------------


def test_by_keyboard_alone(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.id") == "front":
            break
    assert page.evaluate("document.activeElement.id") == "front"
    assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # focus can be seen
    page.keyboard.press("Home")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    order = page.evaluate(
        """[...trials.trial.keys()].filter((i) => !isNaN(scatter.px[i]))
            .sort((a, b) => scatter.px[a] - scatter.px[b] || a - b).map((i) => trials.trial[i])"""
    )
    assert page.locator("#spoken").text_content().startswith(f"trial {order[2]}:")
    page.keyboard.press("Enter")
    assert page.locator("#detail-title").text_content() == f"Trial {order[2]}"
    page.keyboard.press("Space")
    assert page.evaluate("pinned.map((i) => trials.trial[i])") == [order[2]]
    view = page.evaluate("scatter.view[0][1] - scatter.view[0][0]")
    page.keyboard.press("+")
    drawn(page)
    assert page.evaluate("scatter.view[0][1] - scatter.view[0][0]") < view
    names = page.evaluate(
        """[...document.querySelectorAll('button, select, input, textarea, [tabindex]')]
            .filter((e) => !(e.textContent.trim() || e.getAttribute('aria-label') || e.labels?.length))
            .map((e) => e.outerHTML)"""
    )
    assert names == []  # each control has a name for a screen reader
    # which takes what lies within a picture for a part of it, and reads all of a status aloud
    assert page.locator("#pins button").count() == 1
    assert page.locator("[role=img] :is(button, a, input, h3), [role=status] button").count() == 0


def test_in_the_sandbox_of_mlflow(show: Callable[..., Any], front: Path, info: StudyInfo, tmp_path: Path) -> None:
    """A frame with sandbox="allow-scripts" of a blob: no storage, no downloads, an origin of its own."""
    outer = tmp_path / "outer.html"
    outer.write_text("<!DOCTYPE html><body style='margin:0'></body>")
    page = show(outer)
    page.evaluate(
        """(html) => { const frame = document.createElement('iframe'); frame.sandbox = 'allow-scripts';
        frame.style = 'border:0;width:1190px;height:880px';
        frame.src = URL.createObjectURL(new Blob([html], { type: 'text/html' })); document.body.append(frame);
        return new Promise((done) => (frame.onload = done)); }""",
        front.read_text(),
    )
    frame = page.frames[1]
    assert frame.evaluate("window.origin") == "null"
    drawn(frame)
    assert frame.evaluate("scatter.px.filter((x) => !isNaN(x)).length") > 50
    frame.locator("#csv").click()
    check_csv(frame.locator("#csv-text").input_value(), info)
    frame.locator("#copy").click()
    frame.wait_for_function("byId('copied').textContent")
    assert frame.locator("#copied").text_content() in ("copied", "selected: press Ctrl+C")
    chosen_text = "(() => { const f = byId('command'); return f.value.slice(f.selectionStart, f.selectionEnd); })()"
    assert frame.evaluate(chosen_text).startswith("cst-search export petl-6gb --pick trial=")


@pytest.mark.parametrize("n", [12, N])
def test_a_phone_needs_no_scrolling_sideways(show: Callable[..., Any], front: Path, tmp_path: Path, n: int) -> None:
    path = front if n == N else write_front(page_report(made_info(n)), tmp_path)["html"]
    page = show(path, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]") == [390, 390]
    chart = page.locator("#front").bounding_box()
    assert chart["y"] + chart["height"] < 844  # what was found and its picture are the first screen
    number = apart(page, page.evaluate("trials.trial"), 1)[0]
    page.touchscreen.tap(*place(page, number))
    assert page.locator("#detail-title").text_content() == f"Trial {number}"
    assert page.evaluate("getComputedStyle(byId('front')).touchAction") == "pan-y"  # a finger scrolls the page
    reports = [page_report(made_info(n, name)) for name in ("a", "b" * 30)]
    page = show(write_comparison(reports, tmp_path)["html"], viewport={"width": 390, "height": 844}, is_mobile=True)
    assert page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]") == [390, 390]


def test_dark_mode(show: Callable[..., Any], front: Path) -> None:
    looks = {}
    for scheme in ("light", "dark"):
        page = show(front, color_scheme=scheme)
        looks[scheme] = page.evaluate("[getComputedStyle(document.body).backgroundColor, looks.front.colour]")
    assert looks["light"][0] != looks["dark"][0] and looks["light"][1] != looks["dark"][1]
    page.emulate_media(color_scheme="light")  # while it is open
    page.wait_for_function("(was) => looks.front.colour !== was", arg=looks["dark"][1])


def test_hours_and_hypervolume(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    page = show(front)
    assert page.locator("#hypervolume path").count() == 2
    page.locator("[name=volume][value=hours]").check()
    text = page.locator("#hypervolume").text_content()
    assert "GPU hours" in text
    hours = sum(record.seconds or 0 for record in info.trials) / 3600
    spent = page.evaluate("data.columns.seconds.reduce((a, b) => a + (b ?? 0), 0) / 3600")
    assert spent == pytest.approx(hours, rel=1e-4)


def test_which_method(show: Callable[..., Any], front: Path, info: StudyInfo) -> None:
    """A row for each method that was tried, with its best trial, which a click shows; the others are named."""
    page, rows = show(front), [row for row in by_method(info) if row["trials"]]
    section = page.locator("section[aria-label=Methods]")
    assert section.locator("tbody th").all_text_contents() == [row["method"] for row in rows]
    chosen = rows[2]["trial"]
    section.locator(f"[data-method-trial='{chosen}']").click()
    assert page.locator("#detail-title").text_content() == f"Trial {chosen}"
    picks = ",".join(str(row["trial"]) for row in rows if row["state"] == "complete")
    said = " ".join(section.locator(".caption").all_text_contents())
    assert f"confirm {info.name} --picks {picks}" in said and "Not tried: side_tuning, bitfit, ssf" in said


def test_importance_is_a_table_or_says_why_not(show: Callable[..., Any], front: Path, tmp_path: Path) -> None:
    rows = show(front).locator(".shares tbody tr")
    assert rows.count() >= 10 and "%" in rows.first.text_content()
    report = page_report(made_info(12))
    few = show(write_front(report, tmp_path)["html"])
    assert few.locator(".shares").count() == 0
    n = report["importance"]["n"]
    assert 0 < n < 12 and f"Too few trials to say: {n} were trained" in few.locator("main").text_content()


def test_hostile_names_are_text(show: Callable[..., Any], tmp_path: Path) -> None:
    """Of the study, its data, a device, a value of the configuration, a reason and a note."""
    base = made_info(30, EVIL)
    trials = tuple(replace(r, reason=f"{EVIL}\n2", notes=(EVIL,), config={**r.config, EVIL: EVIL}) for r in base.trials)
    trials = (replace(trials[0], reason="=1+1"), *trials[1:])
    evil = replace(base, trials=trials, data=EVIL, target_device=EVIL, recipe={"search_epochs": EPOCHS, EVIL: EVIL})
    path = write_front(page_report(evil), tmp_path)["html"]
    page = show(path)
    assert page.title() == f"{EVIL} - Pareto front"  # what a script that ran would have changed
    assert page.locator("script").count() == 2 and page.locator("img").count() == 0
    assert EVIL in page.locator("h1").text_content()
    number = apart(page, [r.trial for r in evil.front()], 1)[0]
    page.mouse.move(*place(page, number))
    assert "onerror" in page.locator("#tip").text_content() and page.locator("#tip img").count() == 0
    page.mouse.click(*place(page, number))
    assert shown(page)[EVIL] == EVIL
    page.select_option("#dimensions", "*")
    page.select_option("#state", "")
    page.wait_for_timeout(100)
    assert page.title() == f"{EVIL} - Pareto front" and page.locator("img").count() == 0
    with page.expect_download() as download:  # quotes, commas and line ends within a cell
        page.locator("#csv").click()
    text = Path(download.value.path()).read_bytes().decode()
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert [(row["reason"], row[EVIL]) for row in rows[1:]] == [(f"{EVIL}\n2", EVIL)] * 29
    assert rows[0]["reason"] == "'=1+1"  # a spreadsheet would compute it


@pytest.mark.parametrize("kept", [[], ["infeasible"], ["complete"], ["failed", "running"]])
def test_studies_without_some_kinds_of_trial(show: Callable[..., Any], tmp_path: Path, kept: list[str]) -> None:
    base = made_info(40)
    some = replace(base, trials=tuple(r for r in base.trials if r.state in kept), repeats=())
    page = show(write_front(page_report(some), tmp_path)["html"])
    assert ("No trial has finished yet" in page.locator("main").text_content()) is ("complete" not in kept)
    if kept:
        assert len(chosen(page)) == len(some.trials)


def test_one_trial(show: Callable[..., Any], tmp_path: Path) -> None:
    base = made_info(40)
    one = replace(base, trials=(base.front()[0],), repeats=())
    page = show(write_front(page_report(one), tmp_path)["html"])
    low, high = page.evaluate("scatter.view[0]")
    assert low < one.trials[0].working_bytes < high  # type: ignore[operator]
    assert page.locator("#trials th").all_text_contents() == ["trial", "state"]  # all else is equal in all
    assert f"batch_size {one.trials[0].config['batch_size']}," in page.locator("#constants").text_content()


def test_comparison_draws_a_line_a_study(show: Callable[..., Any], tmp_path: Path) -> None:
    reports = [page_report(made_info(60, name, seed=seed)) for name, seed in (("a<b>", 1), ("b", 2), ("c", 3))]
    page = show(write_comparison(reports, tmp_path)["html"])
    lines = page.evaluate(
        "scatter.lines().map((l) => [l.label, l.members.length, l.colour, l.dash.join(), looks[0].shape])"
    )
    assert [line[0] for line in lines] == ["a<b>", "b", "c"]
    assert [line[1] for line in lines] == [len(report["front"]) for report in reports]
    assert len({line[2] for line in lines}) == len({line[3] for line in lines}) == 3
    assert len(set(page.evaluate("looks.map((l) => l.shape)"))) == 3
    page.select_option("#x", "trainable_params")
    page.locator("#legend button").first.click()
    drawn(page)
    assert page.evaluate("[...scatter.px].filter((x) => !isNaN(x)).length") <= sum(len(r["front"]) for r in reports[1:])
    page.locator("#front").focus()
    page.keyboard.press("Home")
    assert page.locator("#spoken").text_content().startswith(("b: trial", "c: trial"))


def test_comparison_draws_what_storage_buys(show: Callable[..., Any], tmp_path: Path) -> None:
    infos = [replace(made_info(60, name, seed=seed), data=name) for name, seed in (("a<b>", 1), ("cards", 2))]
    page = show(write_comparison([page_report(info) for info in infos], tmp_path)["html"])
    chart = page.locator("#storage")
    assert chart.locator("path[fill=none]").count() == 2  # a line for each goal
    n_plans = page.evaluate("data.storage.goals.map((goal) => goal.plans.length)")
    assert chart.locator("path").count() == 2 + sum(n_plans)
    assert "all tasks together, MB" in chart.text_content()
    chart.scroll_into_view_if_needed()
    box = chart.locator("path[fill=none]").first.bounding_box()
    page.mouse.move(box["x"] + 1, box["y"] + box["height"] - 1)  # the smallest plan
    words = page.locator("#tip").text_content()
    first = page.evaluate("data.storage.goals[0].plans[0]")
    assert f"a<b> trial {first['trials'][0]}, cards trial {first['trials'][1]}" in words
    page.locator("summary").first.click()
    assert page.locator("details[open] tbody tr").count() == n_plans[0]
