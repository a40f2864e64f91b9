"""The report page in a real browser: its views, their links, the keyboard, a sandboxed frame, hostile names."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from pages import EPOCHS, METHODS, chromium, made_info

from cst_search.report import html as dashboard
from cst_search.report.html import write_comparison, write_front
from cst_search.report.summary import page_report
from cst_search.study.method_summary import by_method
from cst_search.study.records import StudyInfo
from cst_search.units import format_bytes

N = 90
SCRIPT = "</script><script>document.title='OWNED'</script>"
EVIL = f"\"'><img src=x onerror=\"document.title='OWNED'\">{SCRIPT}$x$ {{{{7*7}}}}"


@pytest.fixture(scope="module", autouse=True)
def no_picture() -> Iterator[None]:
    """`write_front` also paints a PNG, half a second each, which nobody looks at here; see test_dashboard."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dashboard, "paint", lambda *_: None)
        yield


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as found:
        yield found


@pytest.fixture(scope="module")
def info() -> StudyInfo:
    return made_info(N)


@pytest.fixture(scope="module")
def front(info: StudyInfo, no_picture: None, tmp_path_factory: pytest.TempPathFactory) -> Path:
    head = next(record for record in info.front() if record.config["method"] == "head")
    compared = [
        {"method": "full", "trial": None, "map": None, "working_bytes": 10**10, "device_bytes": 11 * 10**9},
        {"method": "head", "trial": head.trial, "map": head.map, "working_bytes": head.working_bytes,
         "device_bytes": head.device_bytes},
    ]  # fmt: skip
    report = page_report(info) | {"references": [one | {"differs": {}} for one in compared]}
    return write_front(report, tmp_path_factory.mktemp("front"))["html"]


@pytest.fixture
def show(browser: Any) -> Iterator[Callable[..., Any]]:
    """Open a file. At the end: it wrote nothing to the console, failed nowhere and asked the network for nothing."""
    contexts, faults, requests = [], [], []

    def show(path: Path, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1200, "height": 900}} | options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: faults.append(message.text))
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("dialog", lambda dialog: faults.append(f"dialog {dialog.message}"))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(path.as_uri())
        drawn(page)
        return page

    yield show
    for context in contexts:
        context.close()
    assert faults == []
    assert [url for url in requests if not url.startswith(("file:", "blob:", "data:"))] == []


def drawn(page: Any) -> None:
    """Wait until what was asked for is on the canvas: two frames."""
    page.evaluate("new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def place(page: Any, trial: int) -> tuple[float, float]:
    """Where the trial's point is, in px of the window, scrolled into sight."""
    page.locator("#front").scroll_into_view_if_needed()
    box = page.locator("#front").bounding_box()
    x, y = page.evaluate("(t) => { const i = trials.trial.indexOf(t); return [scatter.px[i], scatter.py[i]]; }", trial)
    return box["x"] + x, box["y"] + y


def apart(page: Any, among: list[int], n: int) -> list[int]:
    """Trials whose points lie under no other."""
    near = """(among) => among.filter((t) => { const i = trials.trial.indexOf(t);
        const { px, py, radius } = scatter;
        const clear = (j) => !(Math.hypot(px[i] - px[j], py[i] - py[j]) < 2 + radius[i] + radius[j]);
        return !isNaN(px[i]) && [...px.keys()].every((j) => j === i || clear(j)); })"""
    found = page.evaluate(near, among)
    assert len(found) >= n
    return found[:n]


def chosen(page: Any) -> set[int]:
    return set(page.evaluate("[...activity.keys()].filter((i) => activity[i]).map((i) => trials.trial[i])"))


def shown(page: Any) -> dict[str, str]:
    """What the panel says: figures and configuration."""
    pairs = page.eval_on_selector_all(
        "#detail dl div", "(all) => all.map((d) => [...d.children].map((c) => c.textContent))"
    )
    return {label: text for label, text in pairs}


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
