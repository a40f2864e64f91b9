"""Short text for configurations, metrics and repeats, as shown in the terminal, the page and MLflow."""

from __future__ import annotations

import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cst_search.study.importance import that_matter
from cst_search.study.objectives import Objective
from cst_search.units import format_bytes, format_count, format_flops
from cst_search.visible import in_line

if TYPE_CHECKING:
    from cst_search.study.records import StudyInfo, TrialRecord


# dimensions that a short description shows first: they tell most trials apart, and every method has them
_FIRST = ("lr", "batch_size")
_NAMED = 4  # dimensions that are named as those that mattered
_SHORT = {"batch_size": "batch", "image_size_px": "image"}


def describe(
    config: Mapping[str, Any], n_dimensions: int = 5, leave_out: Collection[str] = (), order: Sequence[str] = ()
) -> str:
    """Return a short description, e.g. ``cst, lr 0.003, batch 4, reduction 8``: learning rate and batch size first.

    Args:
        leave_out: dimensions that are not shown, as they are equal in all trials; see `shared_values`.
        order: dimensions that come next, those that matter; see `importance.that_matter`.
    """

    def show(value: Any) -> str:
        if isinstance(value, tuple | list):
            return f"[{','.join(map(str, value))}]"
        return f"{value:.2g}" if isinstance(value, float) else str(value)

    keys = [key for key in dict.fromkeys((*_FIRST, *order, *config)) if key in config and key != "method"]
    names = {key: _SHORT.get(key, key.rpartition(".")[2]) for key in keys if key not in leave_out}
    parts = [f"{name} {show(config[key])}" for key, name in names.items()]
    return in_line(", ".join([str(config.get("method", "?")), *parts[:n_dimensions]]))


def shared_values(configs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the dimensions, without the method, that all configurations have with the same value.

    They do not tell the trials apart. Empty for fewer than two configurations.
    """
    if len(configs) < 2:
        return {}
    shared = {key: value for key, value in configs[0].items() if key != "method"}
    for config in configs[1:]:
        shared = {key: value for key, value in shared.items() if key in config and config[key] == value}
    return shared


def shared_words(shared: Mapping[str, Any]) -> str:
    """Return the line below a table that leaves out shared dimensions; empty text if there are none."""
    return "in all of them: " + describe(shared, len(shared)).removeprefix("?, ") if shared else ""


def metric_words(values: Mapping[str, float]) -> str:
    """Return metrics as text such as ``map 0, device_bytes 637 MB, trainable_params 1.44M``."""

    def show(name: str, value: float) -> str:
        if name.endswith("bytes"):
            return format_bytes(value)
        if name.endswith("flops"):
            return format_flops(value)
        return format_count(value) if name.endswith("params") else f"{value:g}"

    return ", ".join(f"{name} {show(name, value)}" for name, value in values.items())


def memory_words(working_bytes: float | None, device_bytes: float | None) -> str:
    """Return working memory with the device memory that it is of: ``72 MB of 872 MB``; one figure if they are equal."""
    whole = format_bytes(device_bytes)
    return whole if working_bytes in (None, device_bytes) else f"{format_bytes(working_bytes)} of {whole}"


def mattered_words(found: Mapping[str, Any]) -> str:
    """Return the line about what mattered for mAP, of `importance`; empty text if nothing is known to."""
    shares = [f"{row['key']} {row['share']:.0%}" for row in that_matter(found)[:_NAMED]]
    return (
        f"what mattered for mAP: {', '.join(shares)} (of the variance in rank, {found['n']} trials)" if shares else ""
    )


def best_words(record: TrialRecord, quality: float | None, shared: Collection[str], order: Sequence[str] = ()) -> str:
    """Return the line about the trial with the highest mAP so far.

    Args:
        quality: its mAP, the mean over seeds if it was confirmed.
        shared, order: dimensions to leave out, and those that come first; see `describe`.
    """
    return (
        f"best so far: trial {record.trial}, map {format_quality(quality)}, "
        f"{memory_words(record.working_bytes, record.device_bytes)}, "
        f"{format_count(record.trainable_params)} trainable: {describe(record.config, leave_out=shared, order=order)}"
    )


def over_seeds_words(entry: Mapping[str, Any]) -> str:
    """Return ``map 0.561 +- 0.012 over 3 seeds`` for a front entry (`StudyInfo.brief`); empty text for one seed."""
    if entry["n_seeds"] < 2:
        return ""
    return f"map {entry['map_mean']:.3f} +- {entry['map_std']:.3f} over {entry['n_seeds']} seeds"


def repeat_words(repeat_of: int | None, seed: Any) -> str:
    """Return the prefix for a repeat's description; empty text for a trial of the search."""
    return "" if repeat_of is None else f"trial {repeat_of} again, seed {seed}: "


def format_quality(value: float | None) -> str:
    """Return an mAP or its spread (0..1) with three decimals: 0.4123 -> ``0.412``; None -> ``-``."""
    return "-" if value is None else f"{value:.3f}"


def budget_words(
    memory_bytes: int | None = None, params: int | None = None, delta_bytes: int | None = None, flops: int | None = None
) -> str:
    """Return a budget as text such as ``6 GB and 2M parameters``; ``none`` without a bound."""
    limits = [format_bytes(memory_bytes)] if memory_bytes else []
    limits += [f"{format_count(params)} parameters"] if params else []
    limits += [f"a delta of {format_bytes(delta_bytes)}"] if delta_bytes else []
    limits += [format_flops(flops)] if flops else []
    return " and ".join(limits) or "none"


def cost_words(objective: Objective, value: float | None) -> str:
    """Return the value of an objective with its unit; None -> ``-``."""
    formats = {"bytes": format_bytes, "count": format_count, "flops": format_flops, "share": format_quality}
    return formats[objective.kind](value)


def n_trials(n: int) -> str:
    """Return e.g. ``1 trial`` or ``16 trials``."""
    return "1 trial" if n == 1 else f"{n} trials"


def no_trial_yet(info: StudyInfo) -> str:
    """Return the message that a study has no point to take, with the command that continues it."""
    return (
        f"study {info.name!r} has no feasible complete trial yet; "
        f"continue it with:  cst-search resume {shlex.quote(info.shown_name)}"
    )
