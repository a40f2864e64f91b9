"""Outcome and result of a trial, as typed values. Standard library only: the study reads them without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """Outcome of training and evaluating one configuration.

    Each member is the string that results and studies store, and prints as that string.
    """

    __repr__ = str.__repr__

    #: trained for all its epochs and evaluated
    COMPLETE = "complete"
    #: ended at a rung by early stopping; it may resume from its checkpoint
    STOPPED = "stopped"
    #: the loss became infinite or NaN
    NONFINITE = "nonfinite"
    #: refused memory by the device or by its limit
    OOM = "oom"
    #: any other fault, such as a worker process that died
    FAILED = "failed"


@dataclass(frozen=True, kw_only=True)
class TrialFigures:
    """Figures of a trial, in its result and in the study's record of it. A figure that the trial did not reach is None.

    A figure is declared here alone: results store it, and `study.records.TrialRecord` has it, under this name.

    Attributes:
        map, map50: mAP@[.50:.95] and AP50 of the last evaluation, 0..1.
        loss, images_per_second: figures of the last epoch; loss is the mean per image.
        active_bytes: measured peak of live tensors; None on a CPU, as are the next two.
        reserved_bytes: measured peak of the caching allocator.
        device_bytes: reserved bytes plus the CUDA context; if ``oom``, plus the refused allocation.
        seconds: wall time of the whole trial; ``train_seconds`` is the part spent in training and evaluation.
        epochs: epochs trained, those from a checkpoint included.
        reason: explanation for people if the outcome is not ``complete``.
        device: name of the GPU, or ``cpu``.
        history: one dict per epoch: epoch, loss, grad_norm, images_per_second; map, map50 where evaluated; at a rung
            the seconds so far, and on a GPU the peaks so far.
        final: scores of the last evaluation, by split (`engine.Scores`).
        limit_bytes: memory limit of the trial: of the allocator on a GPU, of the growth of the process on a CPU.
        held_bytes: peak of the memory that ``limit_bytes`` bounds. See `memory_limit`.
        asked_bytes: if ``oom``, size of the refused allocation, where the message states it.
        stage: if ``oom``, activity of the trial at that moment.
        notes: lines on what the cache did and why, and on irregularities of the checkpoint.
        resumed_epochs: epochs that came from a checkpoint. Seconds, peaks and history cover the whole trial.
    """

    map: float | None = None
    map50: float | None = None
    loss: float | None = None
    device_bytes: int | None = None
    reserved_bytes: int | None = None
    active_bytes: int | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    train_seconds: float | None = None
    epochs: int | None = None
    reason: str | None = None
    device: str | None = None
    history: Sequence[Mapping[str, Any]] = field(default_factory=list)
    final: Mapping[str, Any] = field(default_factory=dict)
    limit_bytes: int | None = None
    held_bytes: int | None = None
    asked_bytes: int | None = None
    stage: str | None = None
    notes: Sequence[str] = field(default_factory=list)
    resumed_epochs: int = 0


#: Names of the figures, as results store them.
FIGURES = tuple(one.name for one in fields(TrialFigures))


@dataclass(frozen=True)
class TrialResult(TrialFigures):
    """Result of one trial: how it ended, the parameters it trained, and its figures.

    Attributes:
        outcome: how the trial ended: ``complete``; ``stopped`` (``report`` returned False); ``oom`` (memory ran out);
            ``nonfinite`` (loss or gradient NaN or infinite). The last two are results with a reason, not exceptions.
        petl_params: parameters that the method adds to the backbone or opens in it.
        trainable_params: all trainable parameters: method, neck and head.
    """

    outcome: Outcome
    petl_params: int
    trainable_params: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON: the result's own fields, then the figures."""
        plain = asdict(self)
        figures = {name: plain.pop(name) for name in FIGURES}
        return plain | figures
