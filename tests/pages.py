"""A made-up study for the report page, and a browser to look at it with."""

from __future__ import annotations

import math
import random
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cst_search.config.loading import load_space
from cst_search.config.recipe import Recipe
from cst_search.memory.estimate import CONTEXT_WITH_BLAS_BYTES
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.records import Budget, StudyInfo, TrialRecord

EPOCHS = 4
# method: (mAP it reaches, GB it takes, trainable parameters): made up, but in the order that is expected
METHODS = {
    "full": (0.405, 9.6, 41_000_000),
    "partial": (0.392, 6.3, 30_000_000),
    "conv_adapter": (0.386, 5.6, 17_900_000),
    "conv_lora": (0.378, 5.3, 18_100_000),
    "norm": (0.362, 5.1, 17_700_000),
    "cst": (0.374, 3.9, 18_600_000),
    "lst": (0.355, 3.6, 18_300_000),
    "head": (0.331, 3.1, 2_400_000),
}


def made_info(n: int = 60, name: str = "petl-6gb", seed: int = 6, **changes: Any) -> StudyInfo:
    """``n`` trials of every state in the shipped space of twelve methods, of which eight occur; one is confirmed."""
    space, rng, budget = load_space("petl"), random.Random(seed), Budget(6_000_000_000, None)
    trials = []
    while len(trials) < n:
        config = space.sample(rng)
        if config["method"] not in METHODS:
            continue
        number = len(trials)
        quality, gigabytes, params = METHODS[config["method"]]
        memory = round(gigabytes * rng.uniform(0.72, 1.12) * 1e9)
        state = "complete" if memory <= 6e9 else "infeasible"
        if state == "complete" and number % 6 == 4:
            state = ("pruned", "failed", "pruned", "running", "interrupted")[number // 6 % 5]
        n_epochs = {"complete": EPOCHS, "pruned": 2, "failed": 1}.get(state, 0)
        # only the learning rate and the batch matter, apart from the method
        best = quality - 0.03 * abs(math.log10(config["lr"] / 3e-3)) - 0.01 * math.log2(config["batch_size"])
        curve = [max(0.01, best * (1 - 0.5**epoch) + rng.gauss(0, 0.004)) for epoch in range(1, n_epochs + 1)]
        history = [{"epoch": i, "loss": 2.0 / i, "images_per_second": 9.0, "map": q, "map50": q + 0.19}
                   for i, q in enumerate(curve, 1)]  # fmt: skip
        if state == "failed":
            history = [{"epoch": 1, "loss": 2.0, "images_per_second": 9.0}]
        known = state in ("complete", "pruned")
        trials.append(TrialRecord(
            trial=number, state=state, config=config, history=history,
            map=curve[-1] if known else None, map50=curve[-1] + 0.19 if known else None,
            device_bytes=memory, context_bytes=CONTEXT_WITH_BLAS_BYTES,
            memory_source="predicted" if state == "infeasible" else "measured",
            trainable_params=round(params * rng.uniform(0.7, 1.1)), petl_params=round(params * 0.02),
            seconds=rng.uniform(200, 900) if known else None, feasible=memory <= 6e9, ran=state != "infeasible",
            reason={"infeasible": f"predicted {memory / 1e9:.2f} GB is over the budget of 6 GB",
                    "failed": "the loss is not finite at step 212; a lower lr or a longer warmup usually helps",
                    "pruned": "behind 7 of 9 trials after epoch 2"}.get(state),
            notes=("features were read from the cache",) if number % 10 == 0 else (),
        ))  # fmt: skip
    info = StudyInfo(
        name=name,
        objectives=tuple(OBJECTIVES[key] for key in ("map", "device_bytes", "trainable_params")),
        budget=budget,
        reference_point={"map": 0.0, "device_bytes": 6e9, "trainable_params": 5e7},
        recipe=Recipe(detector="fasterrcnn", backbone="resnet50", search_epochs=EPOCHS).to_dict(),
        space=space.source,
        data="data/voc-mini",
        seed=0,
        sampler="pareto",
        target_device="NVIDIA GeForce RTX 2060 (6 GB)",
        started="2026-05-04T09:30:00+00:00",
        trials=tuple(trials),
        **changes,
    )
    return confirmed(info)


def confirmed(info: StudyInfo) -> StudyInfo:
    """The best trial with two more seeds."""
    front = info.front()
    if not front:
        return info
    best, last = front[0], len(info.trials)
    again = tuple(
        replace(best, trial=last + i, repeat_of=best.trial, seed=i, repeat_epochs=EPOCHS, map=(best.map or 0) + off)
        for i, off in ((1, 0.02), (2, 0.04))
    )
    return replace(info, repeats=again)


@contextmanager
def chromium() -> Iterator[Any]:
    """Playwright's driver of Debian's Chromium; skips where either is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine: the page is not rendered")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


def browse(path: Path) -> tuple[str, str]:
    """The page's DOM after its scripts ran, and what it wrote to the console, a line each that begins with CONSOLE."""
    lines: list[str] = []
    with chromium() as browser:
        page = browser.new_page()
        page.on("console", lambda message: lines.append(f"CONSOLE {message.text}"))
        page.on("pageerror", lambda error: lines.append(f"CONSOLE {error}"))
        page.goto(path.as_uri())
        page.wait_for_timeout(300)
        return page.content(), "\n".join(lines)
