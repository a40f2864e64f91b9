"""What a person sees of a study in MLflow's own pages: a real server, a real browser."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from studies import make_study, run_one, scored

import cst_search
from cst_search.commands.report_files import export_best, write_report
from cst_search.study.records import StudyInfo
from cst_search.tracking.connection import default_tracking_uri
from cst_search.tracking.mlflow_record import MlflowRecord
from cst_search.tracking.views import TAG, is_ours

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium")
HOSTILE = "a <script>document.title='taken'</script> **b** | `c`"
# of MLflow's own page: it asks for the user of a server that has none, and its charts are drawn once before they
# have a size
KNOWN = (
    ("the server responded with a status of 404", "users/current"),
    ("ResizeObserver loop",),
    ("NaN", "static-files"),
    ("attribute height: A negative value", "static-files"),
)


@dataclass
class Looked:
    """A study in a running MLflow, and a browser's page."""

    info: StudyInfo
    base: str
    experiment: str
    launch: str  # its run
    page: Any
    said: Path  # what `cst-search ui` printed
    errors: list[str] = field(default_factory=list)

    def open(self, where: str) -> Any:
        self.page.goto("about:blank")  # a change behind the # alone would load nothing
        self.page.goto(f"{self.base}/#/experiments/{self.experiment}{where}")
        return self.page


@pytest.fixture(scope="module")
def looked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Looked]:
    home = tmp_path_factory.mktemp("home")
    session = make_study(home, HOSTILE[:60])
    session.begin_launch()
    for quality, used in ((0.3, 500), (0.5, 700), (0.4, 600), (0.2, 650), (0.1, 900)):
        run_one(session, scored(quality, device_bytes=used), cst__reduction=4, batch_size=4, lr=0.002 + quality / 100)
    session.enqueue({"method": "cst", "cst.reduction": 1, "batch_size": 8})  # over the budget
    run_one(session, {"outcome": "failed", "reason": HOSTILE})
    mirror = MlflowRecord(default_tracking_uri(home), home / "artifacts", warn=pytest.fail)
    mirror.start(session.study.info(), session.describe_launch({"name": HOSTILE}))
    mirror.sync(session.study.info())
    session.end_launch()
    info = session.study.info()
    files = write_report(info, home / "report")
    pages = [files[kind] for kind in ("html", "png", "json")]
    mirror.finish(info, {"pareto": pages, "export": export_best(info, files)}, "FINISHED")
    assert mirror.close()
    client = MlflowClient(default_tracking_uri(home))
    experiment = client.get_experiment_by_name(info.name)
    assert experiment is not None
    (launch,) = client.search_runs([experiment.experiment_id], "tags.`cst.kind` = 'launch'")

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "cst_search.cli", "ui", "--home", str(home), "--port", str(port)]
    there = home / "working-folder"
    there.mkdir()
    (there / "numpy.py").write_text("open('imported', 'w')\nraise ImportError\n")
    environment = os.environ | {"PYTHONPATH": str(Path(cst_search.__file__).parents[1])}
    with (home / "ui.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=there, start_new_session=True)
    try:
        base = f"http://127.0.0.1:{port}"
        _wait_for(f"{base}/health", server)
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
            page = browser.new_page(viewport={"width": 1700, "height": 1300})
            page.set_default_timeout(60_000)
            seen = Looked(info, base, experiment.experiment_id, launch.info.run_id, page, home / "ui.log")
            page.on("pageerror", lambda error: seen.errors.append(str(error)))
            page.on(
                "console",
                lambda line: seen.errors.append(f"{line.text} {line.location}") if line.type == "error" else None,
            )
            yield seen
            browser.close()
    finally:
        os.killpg(server.pid, 15)
        server.wait(30)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.3)
    pytest.fail(f"MLflow did not start: exit code {server.poll()}")


def names_of_rows(page: Any) -> list[str]:
    """From top to bottom, which is not their order in the document."""
    links = page.locator(".ag-row a[href*='/runs/']")
    links.first.wait_for()
    return [link.inner_text() for link in sorted(links.all(), key=lambda link: link.bounding_box()["y"])]


def test_the_server_imports_nothing_from_the_working_folder(looked: Looked) -> None:
    assert os.listdir(looked.said.parent / "working-folder") == ["numpy.py"]


def test_the_view_of_the_front_shows_exactly_the_front(looked: Looked) -> None:
    assert f"the front of {looked.info.name}:  {looked.base}/#/experiments/" in looked.said.read_text()
    assert "&workflowType=machine_learning" in looked.said.read_text()  # else it opens on language models
    page = looked.open("/runs")
    page.get_by_role("button", name="Views").click()
    page.get_by_text("Pareto front", exact=True).click()
    page.wait_for_url("**viewStateShareKey=cst-front**")
    page.get_by_text(f"{len(looked.info.front())} matching runs").wait_for()
    shown = names_of_rows(page)
    assert sorted(int(name.split()[0]) for name in shown) == sorted(r.trial for r in looked.info.front())
    best = looked.info.front()[0]
    assert shown[0] == f"{best.trial} cst r4 mtc[{','.join(map(str, best.config['cst.mtc_stages']))}] map .500 700B"
    heads = " ".join(page.locator(".ag-header-cell").all_inner_texts())
    assert all(word in heads for word in ("map", "working_mb", "trainable_params", "cst.state"))


def test_the_charts_are_there_at_once(looked: Looked) -> None:
    page = looked.open("/runs?viewStateShareKey=cst-trials&compareRunsMode=CHART")
    page.get_by_text("working_mb vs. map").first.wait_for()
    page.get_by_text("Parallel Coordinates").first.wait_for()
    page.locator(".js-plotly-plot .scatterlayer .points path").first.wait_for()
    dots = page.locator(".js-plotly-plot").first.locator(".scatterlayer .points path")
    assert dots.count() == sum(record.map is not None for record in looked.info.trials)


def test_the_launch_describes_the_front(looked: Looked) -> None:
    page = looked.open(f"/runs/{looked.launch}")
    page.get_by_text("Show more").click()
    note = page.get_by_text("trials on the front", exact=False).first
    note.wait_for()
    table = page.locator("table").filter(has_text="trainable").first
    cells = [row.locator("td").all_inner_texts() for row in table.locator("tbody tr").all()]
    front = looked.info.front()
    assert [int(row[0].split()[0]) for row in cells] == [record.trial for record in front]
    assert [float(row[1]) for row in cells] == [round(record.map or 0.0, 3) for record in front]
    knees = [int(row[0].split()[0]) for row in cells if "knee" in row[5]]
    assert knees == [looked.info.knee()]
    picture = page.locator("img[src*='front-small.png']")
    picture.wait_for()
    page.wait_for_function("() => document.querySelector(\"img[src*='front-small']\").naturalWidth == 880")
    # a link leads to the trial's run
    table.locator("a").first.click()
    page.wait_for_url("**/runs/*")
    page.get_by_text("cst.pareto").first.wait_for()


def test_the_page_is_rendered_among_the_artifacts(looked: Looked) -> None:
    page = looked.open(f"/runs/{looked.launch}/artifacts/pareto/front.html")
    frame = page.frame_locator("iframe").first
    frame.locator("h1").filter(has_text="a <script>").wait_for()
    frame.locator("#front canvas, #front svg").first.wait_for()  # its chart, drawn by its own script
    assert frame.locator("tbody tr").count() >= len(looked.info.front())


def test_hostile_names_stay_text_and_nothing_failed(looked: Looked) -> None:
    """After all of the above."""
    page = looked.open(f"/runs/{looked.launch}")
    page.get_by_text("Show more").wait_for()
    assert page.title() != "taken"
    assert [error for error in looked.errors if not any(all(part in error for part in known) for known in KNOWN)] == []


def test_a_view_that_a_person_changed_stays_theirs(tmp_path: Path) -> None:
    session = make_study(tmp_path)
    session.begin_launch()
    run_one(session, scored(0.4))
    launch = session.describe_launch({})
    uri = default_tracking_uri(tmp_path)

    def start() -> dict[str, str]:
        mirror = MlflowRecord(uri, tmp_path / "artifacts", warn=pytest.fail)
        mirror.start(session.study.info(), launch)
        assert mirror.close()
        experiment = MlflowClient(uri).get_experiment_by_name("made")
        assert experiment is not None
        return {key: value for key, value in experiment.tags.items() if key.startswith(TAG)}

    first = start()
    assert len(first) == 2 and all(map(is_ours, first.values()))
    theirs = json.dumps(json.loads(first[f"{TAG}cst-front"]) | {"updatedAt": 1795454860765})
    MlflowClient(uri).set_experiment_tag("1", f"{TAG}cst-front", theirs)
    run_one(session, scored(0.5), batch_size=4)
    second = start()
    assert second[f"{TAG}cst-front"] == theirs
    assert second[f"{TAG}cst-trials"] != first[f"{TAG}cst-trials"]  # the dimensions have become known
