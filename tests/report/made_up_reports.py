"""Reports of studies that are made up, and what is drawn and embedded of them."""

from __future__ import annotations

import json
import math
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from pages import METHODS

from cst_search.study.objectives import OBJECTIVES, OF_INFERENCE
from cst_search.study.pareto import front, hypervolume, hypervolume_by_trial, knee


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
        "suggested": knee(rows, chosen),
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
