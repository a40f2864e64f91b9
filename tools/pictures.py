"""Take the pictures of the documentation from a real study, with Playwright and the system's Chromium.

    pip install playwright optuna-dashboard
    cst-search launch --budget-mem 6GB --home HOME
    python tools/pictures.py HOME demo-1          (writes docs/pictures/*.png)

Each picture is reduced to few colours to keep it small; one above 200 kB is an error.
"""

from __future__ import annotations

import argparse
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

from mlflow import MlflowClient
from PIL import Image
from playwright.sync_api import Page, sync_playwright

from cst_search.study.study import Study, default_storage
from cst_search.tracking.connection import default_tracking_uri

FOLDER = Path(__file__).resolve().parents[1] / "docs/pictures"
MOST_BYTES = 200_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("home", type=Path)
    parser.add_argument("study")
    parser.add_argument("--only", default="", help="take only pictures whose name begins with this")
    given = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    FOLDER.mkdir(exist_ok=True)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1280, "height": 800}, color_scheme="light")
        for part in (page_of_front, mlflow_pages, optuna_page):
            part(page, given.home.absolute(), given.study, lambda name: keep(page, name, given.only))
        browser.close()
    shutil.copyfile(given.home / given.study / "front.png", FOLDER / "front.png")
    small(Image.open(FOLDER / "front.png"), FOLDER / "front.png", width=1100)


def keep(page: Page, name: str, only: str = "") -> None:
    if name.startswith(only):
        page.wait_for_timeout(1500)  # for elements that fade in
        small(Image.open(BytesIO(page.screenshot())), FOLDER / f"{name}.png")


def small(image: Image.Image, path: Path, width: int = 1280) -> None:
    """Write a PNG with few colours, which keep the colours of small marks apart. Exits if it is still too large."""
    plain = image.convert("RGB")
    plain.thumbnail((width, 4096))
    plain.quantize(160, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(path, optimize=True)
    if path.stat().st_size > MOST_BYTES:
        sys.exit(f"{path} has {path.stat().st_size} bytes; at most {MOST_BYTES} are wanted")
    print(path, path.stat().st_size)


def page_of_front(page: Page, home: Path, study: str, take: Callable[[str], None]) -> None:
    page.set_viewport_size({"width": 1280, "height": 1150})  # down to the end of the first chart
    page.goto((home / study / "front.html").as_uri())
    take("page")
    page.set_viewport_size({"width": 1280, "height": 800})


def mlflow_pages(page: Page, home: Path, study: str, take: Callable[[str], None]) -> None:
    client = MlflowClient(default_tracking_uri(home))
    experiment = client.get_experiment_by_name(study).experiment_id
    launch = client.search_runs([experiment], "tags.`cst.kind` = 'launch'", max_results=1)[0].info.run_id
    port = free_port()
    command = [sys.executable, "-m", "cst_search.cli", "ui", "--home", str(home), "--port", str(port)]
    with server(command, f"http://127.0.0.1:{port}/health"):
        root = f"http://127.0.0.1:{port}/#/experiments"
        page.goto(root)
        page.get_by_text("Model training").first.click()  # MLflow 3 opens on its GenAI half
        close_assistant(page)
        page.get_by_role("link", name=study).first.wait_for()
        take("mlflow-1-experiments")
        page.set_viewport_size({"width": 1280, "height": 1000})
        page.goto(f"{root}/{experiment}/runs/{launch}")
        page.get_by_text("Show more").click()
        page.locator("img[src*='front-small.png']").wait_for()
        take("mlflow-2-launch")
        page.set_viewport_size({"width": 1600, "height": 800})
        page.goto(f"{root}/{experiment}/runs?viewStateShareKey=cst-front")
        page.get_by_text("matching run").first.wait_for()
        take("mlflow-3-front")
        page.set_viewport_size({"width": 1600, "height": 1000})
        page.goto(f"{root}/{experiment}/runs?viewStateShareKey=cst-trials&compareRunsMode=CHART")
        page.get_by_text("Parallel Coordinates").first.wait_for()
        page.wait_for_timeout(3000)
        take("mlflow-4-charts")
        page.set_viewport_size({"width": 1280, "height": 800})
        page.goto(f"{root}/{experiment}/runs/{launch}/artifacts/pareto/front.html")
        page.get_by_text("front.html").first.wait_for()
        page.wait_for_timeout(3000)
        page.get_by_text("Path:").first.evaluate("line => line.remove()")  # it names a folder of this machine
        take("mlflow-5-artifacts")


def close_assistant(page: Page) -> None:
    """Close the panel on the right, if this MLflow has one."""
    page.wait_for_timeout(2000)
    if page.get_by_text("MLflow Assistant").count():
        page.get_by_label("Close").last.click()


def optuna_page(page: Page, home: Path, study: str, take: Callable[[str], None]) -> None:
    Study.open(default_storage(home), study)  # fails if there is no such study
    port = free_port()
    program = Path(sys.executable).with_name("optuna-dashboard")
    command = [str(program), f"sqlite:///{home / 'studies.db'}", "--host", "127.0.0.1", "--port", str(port)]
    with server(command, f"http://127.0.0.1:{port}/api/studies"):
        page.goto(f"http://127.0.0.1:{port}/dashboard")
        page.get_by_text(study).first.click()
        page.get_by_text("Pareto Front").first.wait_for()
        page.wait_for_timeout(3000)
        take("optuna-dashboard")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def server(command: list[str], url: str) -> Iterator[None]:
    """Run a web server for the length of the context, which starts once the server answers."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + 180
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except (urllib.error.URLError, OSError):
                if process.poll() is not None or time.monotonic() > end:
                    sys.exit(f"{' '.join(command)} does not answer on {url}")
                time.sleep(1)
        yield
    finally:
        process.terminate()
        process.wait(30)


if __name__ == "__main__":
    main()
