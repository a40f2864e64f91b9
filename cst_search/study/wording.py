"""Short text for configurations, metrics and repeats, as shown in the terminal, the page and MLflow."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cst_search.units import format_bytes, format_count


def describe(config: Mapping[str, Any], n_dimensions: int = 4) -> str:
    """Return a short description: the method and its first dimensions, e.g. ``cst reduction 8, block 3x3 ...``."""

    def show(value: Any) -> str:
        if isinstance(value, tuple | list):
            return f"[{','.join(map(str, value))}]"
        return f"{value:.2g}" if isinstance(value, float) else str(value)

    parts = [f"{key.rpartition('.')[2]} {show(value)}" for key, value in config.items() if key != "method"]
    return " ".join([str(config.get("method", "?")), ", ".join(parts[:n_dimensions])]).strip()


def metric_words(values: Mapping[str, float]) -> str:
    """Return metrics as text such as ``map 0, device_bytes 637 MB, trainable_params 1.44M``."""

    def show(name: str, value: float) -> str:
        if name.endswith("bytes"):
            return format_bytes(value)
        return format_count(value) if name.endswith("params") else f"{value:g}"

    return ", ".join(f"{name} {show(name, value)}" for name, value in values.items())


def memory_words(working_bytes: float | None, device_bytes: float | None) -> str:
    """Return working memory with the device memory that it is of: ``72 MB of 872 MB``; one figure if they are equal."""
    whole = format_bytes(device_bytes)
    return whole if working_bytes in (None, device_bytes) else f"{format_bytes(working_bytes)} of {whole}"


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


def budget_words(memory_bytes: int | None, params: int | None) -> str:
    """Return a budget as text such as ``6 GB and 2M parameters``; ``none`` without a bound."""
    limits = [format_bytes(memory_bytes)] if memory_bytes else []
    limits += [f"{format_count(params)} parameters"] if params else []
    return " and ".join(limits) or "none"
