"""The report page in a browser: a study with hostile names, and what is read off the page."""

from __future__ import annotations

from typing import Any

N = 90
SCRIPT = "</script><script>document.title='OWNED'</script>"
EVIL = f"\"'><img src=x onerror=\"document.title='OWNED'\">{SCRIPT}$x$ {{{{7*7}}}}"


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
