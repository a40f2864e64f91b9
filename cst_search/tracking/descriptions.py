"""Texts for people in MLflow: names of runs, and descriptions of launches and models in Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from shlex import quote
from typing import Any

from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.states import TrialState
from cst_search.study.wording import budget_words, cost_words, format_quality, memory_words, repeat_words
from cst_search.tracking.views import ON_FRONT
from cst_search.units import format_bytes, format_count, format_seconds

# abbreviations of dimensions in a run's name, which shows the first two that the method has
_SHORT = {"reduction": "r", "rank": "r", "gamma": "g", "mtc_stages": "mtc", "first_stage": "from", "stages": "last"}
_GAP = " &emsp;"  # MLflow draws tables without space between columns
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>()#+\-!|~&])")


def run_name(record: TrialRecord) -> str:
    """Name the run of a trial by number, configuration and result, e.g. ``7 cst r16 mtc[3,4,5] map .412 3.12GB``."""
    config = record.config
    parts = [str(record.trial), repeat_words(record.repeat_of, record.seed) + str(config.get("method", "?"))]
    shown = [(key.rpartition(".")[2], value) for key, value in config.items()]
    parts += [f"{_SHORT[name]}{_value(value)}" for name, value in shown if name in _SHORT][:2]
    if record.state not in (TrialState.COMPLETE, TrialState.PRUNED):
        parts.append(record.state)
    elif record.map is not None:
        parts.append(
            f"map {record.map:.3f}".replace("0.", ".") + (" stopped" if record.state == TrialState.PRUNED else "")
        )
    if record.device_bytes is not None:
        parts.append(format_bytes(record.device_bytes).replace(" ", ""))
    return " ".join(parts)


def _value(value: Any) -> str:
    return f"[{','.join(map(str, value))}]" if isinstance(value, list | tuple) else str(value)


def description(info: StudyInfo, experiment: str, run: str, runs: Mapping[int, str]) -> str:
    """Return the description of a launch: the front as a table and a picture, and commands that use it.

    Args:
        experiment: id of the experiment in MLflow.
        run: id of the launch's run, whose artifacts hold the picture.
        runs: trial -> id of its run, for links in the table.
    """
    front, counts = info.front(), info.counts()
    budget = budget_words(**asdict(info.budget))
    seconds = sum(record.seconds or 0.0 for record in info.trials)
    lines = [
        f"**{len(front)} of {counts['total']} trials on the front**, hypervolume {info.hypervolume():.4f}; "
        f"budget {budget}; data {escape(info.data)}; {escape(info.target_device)}; "
        f"{format_seconds(seconds)} of training",
        "",
    ]
    if not front:
        return "\n".join([*lines, "No trial has finished within the budget; each run's tag `cst.reason` says why."])
    further = info.further_costs
    heads = ["trial", "mAP", "mAP50", "memory", "trainable", *(o.short for o in further), ""]
    lines += ["| " + " | ".join(heads).rstrip() + " |", "|---" * len(heads) + "|"]
    knee = info.knee()
    for record in front:
        sample = info.over_seeds(record)
        quality = f"{sample.mean or 0.0:.3f}" + (f" ± {sample.std:.3f} ({sample.n} seeds)" if sample.std else "")
        name = escape(run_name(record))
        link = f"[{name}](#/experiments/{experiment}/runs/{runs[record.trial]})" if record.trial in runs else name
        lines.append(
            f"| {link}{_GAP}| {quality}{_GAP}| {format_quality(record.map50)}{_GAP}"
            f"| {memory_words(record.working_bytes, record.device_bytes)}{_GAP}"
            f"| {format_count(record.trainable_params)}{_GAP}"
            + "".join(f"| {cost_words(o, getattr(record, o.name))}{_GAP}" for o in further)
            + f"| {'**knee**' if record.trial == knee else ''} |"
        )
    pick = f"cst-search export {quote(info.name)} --pick {info.suggested_pick()} -o best.yaml"
    return "\n".join([
        *lines, "",
        f"![the front](get-artifact?path=pareto%2Ffront-small.png&run_uuid={run})", "",
        f"{code(pick)} writes a point as a recipe, "
        "`--pick trial=N` another; `cst-search train best.yaml --out trained` trains it.", "",
        "The page to explore: **Artifacts**, `pareto/front.html`. These runs as a table with charts: **Views**, "
        f"*Pareto front*, in the list of runs, or the filter `{ON_FRONT}`.",
    ])  # fmt: skip


def model_description(study: str, trial: str, epochs: int, model: str) -> str:
    """Return the description of a logged model, with code that loads it. ``model``: its id in MLflow."""
    return "\n".join([
        f"Trial {escape(trial)} of study {escape(study)} after {epochs} epochs of full training: the trained tensors; "
        "the base's weights are fetched as in training. `cst-search` must be installed where it is loaded:", "",
        "```python",
        "import mlflow",
        f'model = mlflow.pyfunc.load_model("models:/{model}")',
        'model.predict(["image.png"], params={"score": 0.3})  # a path, or an image file in base64',
        "```",
    ])  # fmt: skip


def code(text: str) -> str:
    """Return text as Markdown code on one line, between more backticks than it has in a row (CommonMark 0.31, 6.1)."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def escape(text: str) -> str:
    """Escape text so that Markdown shows it literally, on one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))
