"""Fixtures for pages in a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from browser import N, drawn
from pages import chromium, made_info

from cst_search.report import html as dashboard
from cst_search.report.html import write_front
from cst_search.report.summary import page_report
from cst_search.study.records import StudyInfo


@pytest.fixture(scope="module")
def no_picture() -> Iterator[None]:
    """`write_front` also paints a PNG, half a second each, which nobody looks at in a browser; see test_figure."""
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
    beside = {"beside": info.front()[0].trial, "differs": {}}
    report = page_report(info) | {"references": [one | beside for one in compared]}
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
