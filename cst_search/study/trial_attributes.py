"""What the study's database holds of a trial, and what that means: pure functions of stored attributes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cst_search.config.recipe import renamed_fields
from cst_search.study.fast_reads import StoredTrial
from cst_search.study.records import TrialRecord
from cst_search.study.states import TrialState
from cst_search.trial.outcome import Outcome
from cst_search.units import format_bytes

SUGGESTED = "cst_suggested"  # its configuration, predicted cost and launch
PROGRESS = "cst_progress"  # of one that has not ended: its history, and whether it is stopped at a rung
RESULT = "cst_result"  # `TrialResult.to_dict` and what became of it


@dataclass(frozen=True)
class Repeat:
    """A trial's configuration to be trained again, with another seed or for another length."""

    repeat_of: int
    seed: int
    epochs: int


def trial_record(trial: StoredTrial, live_launches: Collection[str], full_epochs: int) -> TrialRecord:
    """A trial that was suggested, as the product shows it.

    Args:
        live_launches: a trial of another that has not ended is interrupted.
        full_epochs: of a trial of the search.
    """
    suggested, result = trial.user_attrs[SUGGESTED], trial.user_attrs.get(RESULT)
    estimate = suggested["estimate"]
    is_running = trial.state == "RUNNING" and suggested["launch"] in live_launches
    record = TrialRecord(
        trial=trial.number,
        state=TrialState.RUNNING if is_running else TrialState.INTERRUPTED,
        config=tuples(suggested["config"]),
        device_bytes=estimate["device_bytes"],
        reserved_bytes=estimate["reserved_bytes"],
        active_bytes=estimate["active_bytes"],
        trainable_params=estimate["trainable_params"],
        petl_params=estimate["petl_params"],
        memory_correction=suggested.get("correction", {}).get("factor", 1.0),
        repeat_of=suggested.get("repeat_of"),
        seed=suggested.get("seed"),
        epochs=suggested.get("epochs"),
        launch=suggested["launch"],
    )
    if result is None or not trial.is_finished:
        progress = trial.user_attrs.get(PROGRESS, {"history": [], "stopped": False})
        result = so_far(progress["history"]) | {"state": record.state, "ran": True}
        if progress["stopped"]:
            result |= {"state": TrialState.PRUNED, "waits": True, "reason": stopped_at(result, full_epochs)}
    names = (
        "map", "map50", "loss", "device_bytes", "reserved_bytes", "active_bytes", "memory_source",
        "images_per_second", "seconds", "reason", "ran", "history", "notes", "waits",
    )  # fmt: skip
    return replace(
        record,
        state=TrialState(result["state"]),
        feasible=result["state"] == TrialState.COMPLETE,  # see tell: else a constraint is violated
        **{name: result[name] for name in names if result.get(name) is not None},
    )


def stopped_at(result: Mapping[str, Any], full_epochs: int) -> str:
    """The reason of a trial that was stopped early."""
    return f"stopped after epoch {result['epoch']} of {full_epochs}"


def so_far(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What is known of a trial that has not ended: of each figure the last that an epoch had."""
    found: dict[str, Any] = {"history": list(history), "outcome": Outcome.STOPPED}
    for entry in history:
        found |= {name: value for name, value in entry.items() if value is not None}
    return found | {"memory_source": "measured" if "device_bytes" in found else "predicted"}


def memory_ratio(suggested: Mapping[str, Any], result: Mapping[str, Any]) -> list[float]:
    """[reserved bytes on a GPU over those that the arithmetic alone had predicted], or [] where nothing was measured.

    A trial that ran out of memory needed at least what it held and what it was refused.
    """
    measured = result.get("reserved_bytes")
    predicted = suggested["estimate"]["reserved_bytes"] / suggested.get("correction", {}).get("factor", 1.0)
    if not measured:
        return []
    if result["outcome"] == Outcome.OOM:
        measured = max(measured, (result.get("held_bytes") or 0) + (result.get("asked_bytes") or 0))
        return [measured / predicted] if measured > predicted else []
    return [measured / predicted] if result["outcome"] in (Outcome.COMPLETE, Outcome.STOPPED) else []


def as_repeat(suggested: Mapping[str, Any]) -> Repeat | None:
    """What a trial repeats; None: it is one of the search."""
    if suggested.get("repeat_of") is None:
        return None
    return Repeat(suggested["repeat_of"], suggested["seed"], suggested["epochs"])


def refused(result: Mapping[str, Any]) -> tuple[float, str]:
    """(by what share a trial that ran out of memory went above its limit at least, its reason in words)."""
    stage, limit, held, asked = (result.get(key) for key in ("stage", "limit_bytes", "held_bytes", "asked_bytes"))
    reason = f"out of memory{f' ({stage})' if stage else ''}: {result.get('reason')}"
    if limit is None or held is None:
        return 0.0, reason
    return (held + (asked or 0)) / limit - 1, f"{reason}; it held {format_bytes(held)} of {format_bytes(limit)}"


def tuples(config: Mapping[str, Any]) -> dict[str, Any]:
    """A stored configuration: lists are tuples again, and recipe fields have the names of today."""
    return {key: tuple(value) if isinstance(value, list) else value for key, value in renamed_fields(config).items()}
