"""Checkpoints of trials: a resumed trial continues exactly as if it had never been interrupted. Needs torch alone.

A checkpoint holds only what training changes: the trained tensors, the optimiser, the schedule, the scaler, the states
of torch's random generators, and the results so far. The frozen rest is rebuilt from the recipe. The order of the data
depends on seed and epoch alone (`images.loader`). A file that is damaged or belongs to another trial is `Unusable`.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cst_search.config.recipe import stored_fields
from cst_search.detector.build import trained_tensors
from cst_search.input_file import check_regular, check_stored

_FORMAT = 1
_AHEAD = 2  # epochs that a checkpoint may have more than the study's record: its worker waits for each to be taken
_REST_BYTES = 64 * 10**6  # of a checkpoint beside tensors: history, states of random generators


class Unusable(Exception):
    """A trial cannot resume from its checkpoint; the message says why."""


@dataclass(frozen=True)
class Training:
    """The objects that change while a trial trains."""

    model: nn.Module
    optimiser: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    scaler: torch.amp.GradScaler
    device: torch.device


def save(path: Path, identity: Mapping[str, Any], training: Training, found: Mapping[str, Any]) -> None:
    """Write a checkpoint atomically.

    Args:
        identity: values that distinguish this trial from others, ready for JSON.
        found: results of the trial so far, ready for JSON.
    """
    device = training.device
    content = {
        "format": _FORMAT,
        "identity": _text(identity),
        "found": _text(found),
        "tensors": dict(trained_tensors(training.model)),
        "optimiser": training.optimiser.state_dict(),
        "schedule": training.schedule.state_dict(),
        "scaler": training.scaler.state_dict(),
        "rng": torch.get_rng_state(),
        "device_rng": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.save(content, part)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def restore(
    path: Path, identity: Mapping[str, Any], training: Training, recorded: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """Restore a freshly built trial from its checkpoint. Returns its results up to then.

    Args:
        recorded: history of the trial in the study, which the checkpoint must agree with; None: it has no record.

    Raises:
        Unusable: the checkpoint does not fit; the trial is unchanged.
    """
    try:
        stored = _read(path, identity, training)
        found: dict[str, Any] = json.loads(stored["found"])
        _check_history(found["history"], recorded)
    except Unusable:
        raise
    except Exception as error:  # a damaged file can raise almost any type
        raise Unusable(f"it cannot be read: {type(error).__name__}") from error
    with torch.no_grad():
        for name, tensor in trained_tensors(training.model).items():
            tensor.copy_(stored["tensors"][name])
    training.optimiser.load_state_dict(stored["optimiser"])
    training.schedule.load_state_dict(stored["schedule"])
    training.scaler.load_state_dict(stored["scaler"])
    torch.set_rng_state(stored["rng"])
    if stored["device_rng"] is not None:
        torch.cuda.set_rng_state(stored["device_rng"], training.device)
    return found


def _read(path: Path, identity: Mapping[str, Any], training: Training) -> dict[str, Any]:
    check_regular(path, 4 * sum(value.nbytes for value in trained_tensors(training.model).values()) + _REST_BYTES)
    check_stored(path)
    with zipfile.ZipFile(path) as file:  # torch.load does not verify the checksums that torch.save wrote
        if file.testzip() is not None:
            raise Unusable("it is damaged")
    stored = torch.load(path, map_location="cpu", weights_only=True)
    if stored["format"] != _FORMAT:
        raise Unusable(f"its format is {stored['format']}, not {_FORMAT}")
    if _renamed(stored["identity"]) != _text(identity):
        raise Unusable("it is another trial's")
    if _shapes(stored["tensors"]) != _shapes(trained_tensors(training.model)):
        raise Unusable("its tensors are not those of the model")
    groups = [[group["params"] for group in state["param_groups"]] for state in
              (stored["optimiser"], training.optimiser.state_dict())]  # fmt: skip
    if groups[0] != groups[1]:
        raise Unusable("its optimiser is not that of the model")
    # torch would set whatever fields a state has: only those that training changes are taken
    own = training.optimiser.state_dict()["param_groups"]
    stored["optimiser"]["param_groups"] = [
        group | {"lr": float(theirs["lr"])}
        for group, theirs in zip(own, stored["optimiser"]["param_groups"], strict=True)
    ]
    schedule = stored["schedule"]
    stored["schedule"] = training.schedule.state_dict() | {
        "last_epoch": int(schedule["last_epoch"]),
        "_step_count": int(schedule["_step_count"]),
        "_last_lr": [float(lr) for lr in schedule["_last_lr"]],
    }
    return stored


def _check_history(history: Sequence[Mapping[str, Any]], recorded: Sequence[Mapping[str, Any]] | None) -> None:
    """Raise Unusable if the scores so far are not those in the study, or of more epochs than the trial can have run."""
    if [entry["epoch"] for entry in history] != list(range(1, len(history) + 1)):
        raise Unusable("its history is not one of epochs")
    if recorded is None:
        return
    pairs = zip(history, recorded, strict=False)
    is_other = any(own.get(name) != theirs.get(name) for own, theirs in pairs for name in ("map", "map50"))
    if is_other or len(history) > len(recorded) + _AHEAD:
        raise Unusable("its history is not the one that the study has recorded")


def _renamed(identity: str) -> str:
    """Return an identity of an earlier version with today's names of the recipe fields."""
    stored = json.loads(identity)
    return _text(stored | {"recipe": stored_fields(stored["recipe"])} if "recipe" in stored else stored)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[Any, ...]]:
    return {name: (tuple(tensor.shape), tensor.dtype) for name, tensor in tensors.items()}


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)
