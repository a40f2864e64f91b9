"""Terminal tables: a study's trials, its front, a plan of several studies, and studies side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from cst_search.study import pareto
from cst_search.study.allocation import Plan
from cst_search.study.importance import importance, order_of
from cst_search.study.records import StudyInfo, TrialRecord, common_reference
from cst_search.study.states import TrialState
from cst_search.study.wording import (
    cost_words,
    describe,
    format_quality,
    mattered_words,
    memory_words,
    repeat_words,
    shared_values,
    shared_words,
)
from cst_search.units import format_bytes, format_count, format_seconds
from cst_search.visible import in_line

_BESIDE = 120  # least terminal width in characters for a column of configurations


def seed_cells(entry: Mapping[str, Any]) -> tuple[str, str, str]:
    """Return the cells for mean, standard deviation and number of seeds of a front's entry (`StudyInfo.brief`)."""
    mean, std = entry["map_mean"], entry["map_std"]
    return format_quality(mean), format_quality(std), str(entry["n_seeds"])


def front_table(info: StudyInfo, width: int) -> Group:
    """Return the front as a table, best mAP first, with the suggested point marked: the knee, or the best one.

    Below it are the values that all points share, and the dimensions that mattered if that is known. These come first
    in the configurations too.

    Args:
        width: terminal width in characters. On a narrow terminal the configurations are listed below the table, over
            the whole width.
    """
    front, found, suggested = info.front(), importance(info), info.suggested()
    shared = shared_values([record.config for record in front])
    sources = {record.memory_source for record in front}
    entries = [info.brief(record) for record in front]
    confirmed = any(entry["n_seeds"] > 1 for entry in entries)
    table = Table(title=f"Front of {info.shown_name}", title_justify="left", title_style="bold")
    memory = f"memory ({sources.pop()})" if len(sources) == 1 else "memory"
    seeds = ("mean", "std", "seeds") if confirmed else ()
    beside = width >= _BESIDE
    further = info.further_costs
    costs = (memory, "trainable", "petl", *(o.short for o in further))
    for name in ("trial", *seeds, "map", "map50", *costs, *(["configuration"] if beside else [])):
        table.add_column(name, justify="left" if name == "configuration" else "right")
    below = Table.grid(padding=(0, 1))
    for record, entry in zip(front, entries, strict=True):
        words = Text(describe(record.config, 20, shared, order_of(found)))
        below.add_row(f"trial {record.trial}:", words)
        table.add_row(
            Text(f"{info.suggested_pick()} {record.trial}" if record == suggested else str(record.trial)),
            *seed_cells(entry)[: len(seeds)],
            format_quality(record.map),
            format_quality(record.map50),
            memory_words(record.working_bytes, record.device_bytes) + (f" {record.memory_source}" if sources else ""),
            format_count(record.trainable_params),
            format_count(record.petl_params),
            *(cost_words(o, getattr(record, o.name)) for o in further),
            *([words] if beside else []),
            style="bold" if record == suggested else None,
        )
    parts: list[RenderableType] = [table] if beside else [table, below]
    if shared:
        parts.append(Text(shared_words(shared)))
    if mattered := mattered_words(found):
        parts.append(Text(mattered))
    return Group(*parts)


def methods_table(entries: Sequence[Mapping[str, Any]]) -> Group:
    """Return the best trial of each method (`method_summary.by_method`), and which methods no trial has tried."""
    table = Table(title="Best of each method", title_justify="left", title_style="bold")
    table.add_column("method")
    for name in ("trials", "on the front", "best trial", "map", "memory", "trainable"):
        table.add_column(name, justify="right")
    for row in entries:
        if not row["trials"]:
            continue
        stopped = ", stopped early" if row["state"] == TrialState.PRUNED else ""
        table.add_row(
            row["method"],
            str(row["trials"]),
            str(row["on_front"]),
            "-" if row["trial"] is None else f"{row['trial']}{stopped}",
            format_quality(row["map"]),
            "over the budget" if row["trial"] is None else memory_words(row["working_bytes"], row["device_bytes"]),
            format_count(row["trainable_params"]),
        )
    untried = [row["method"] for row in entries if not row["trials"]]
    return Group(table, *([Text(f"not tried: {', '.join(untried)}")] if untried else []))


def status_table(
    info: StudyInfo,
    records: Sequence[TrialRecord],
    best: TrialRecord | None,
    shared: Mapping[str, Any],
    order: Sequence[str] = (),
) -> Table:
    """Return a table with a row for each trial, the best one marked.

    Args:
        shared: values that all trials have in common, which the rows leave out.
        order: dimensions that come first; see `wording.describe`.
    """
    table = Table(title=f"Study {info.shown_name}", title_justify="left")
    further, last = info.further_costs, "configuration or reason"
    for name in ("trial", "state", "map", "memory", "trainable", *(o.short for o in further), "time", last):
        table.add_column(name, no_wrap=name != last, justify="right" if name == "trial" else "left")
    for record in records:
        words = repeat_words(record.repeat_of, record.seed) + describe(record.config, 8, shared, order)
        is_best = best is not None and record.trial == best.trial
        table.add_row(
            f"best {record.trial}" if is_best else str(record.trial),
            record.state,
            format_quality(record.map),
            memory_words(record.working_bytes, record.device_bytes),
            format_count(record.trainable_params),
            *(cost_words(o, getattr(record, o.name)) for o in further),
            format_seconds(record.seconds),
            Text(words + (f"\n{record.reason}" if record.reason else "")),
            style="bold" if is_best else None,
        )
    return table


def plan_table(infos: Sequence[StudyInfo], plan: Plan) -> Group:
    """Return the points that `study.allocation` chose, one row for each study, and below it what all have in common."""
    records = {info.name: info.by_number(plan.points[info.name].trial) for info in infos}
    shared = shared_values([record.config for record in records.values() if record is not None])
    table = Table()
    for name in ("study", "trial", "map", "adds", "configuration"):
        table.add_column(name, justify="left" if name in ("study", "configuration") else "right")
    for info in infos:
        point = plan.points[info.name]
        record = records[info.name]
        words = "" if record is None else describe(record.config, 20, shared)
        table.add_row(
            Text(info.shown_name),
            str(point.trial),
            format_quality(point.quality),
            format_bytes(point.delta_bytes),
            Text(words),
        )
    return Group(table, *([Text(shared_words(shared))] if shared else []))


def sources_table(sources: Sequence[Mapping[str, Any]]) -> Table:
    """Return the sources of a study's prior, one row each; entries as in ``cst-search prior --json``."""
    table = Table()
    table.add_column("source")
    for name in ("trials", "weight", "pairs in the wrong order"):
        table.add_column(name, justify="right")
    for source in sources:
        table.add_row(
            Text(in_line(source["name"])), str(source["n"]), f"{source['weight']:.2f}", f"{source['misranked']:.0%}"
        )
    return table


def storage_table(curve: Mapping[str, Any]) -> Table:
    """Return what storage buys several tasks: the plans of the highest mean of `storage_curve`, one row each."""
    table = Table(title="Together in one storage budget", title_justify="left", title_style="bold")
    for name in ("all tasks", "mean map", "worst map"):
        table.add_column(name, justify="right")
    for plan in next(goal["plans"] for goal in curve["goals"] if goal["key"] == "mean"):
        table.add_row(format_bytes(plan["bytes"]), format_quality(plan["mean"]), format_quality(plan["worst"]))
    return table


def comparison_table(infos: Sequence[StudyInfo]) -> Table:
    """Return a table with one row per study. Hypervolumes are comparable if all have the same reference point."""
    reference = common_reference(infos)
    table = Table(title="Side by side", title_justify="left", title_style="bold")
    table.add_column("study")
    for name in ("trials", "points", "best map", "least memory", "hypervolume", "common hypervolume"):
        table.add_column(name, justify="right")
    for info in infos:
        front, best = info.front(), info.best_map()
        least = min(front, key=lambda record: record.working_bytes or 0, default=None)
        common = None if reference is None else pareto.hypervolume(info.values(), info.objectives, reference)
        table.add_row(
            Text(info.shown_name),
            str(len(info.trials)),
            str(len(front)),
            format_quality(best),
            memory_words(least.working_bytes, least.device_bytes) if least else "-",
            f"{info.hypervolume():.4f}",
            "-" if common is None else f"{common:.4f}",
        )
    return table
