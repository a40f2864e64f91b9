"""How a trial ended, as its worker reports it. Standard library only: the study reads it without torch."""

from __future__ import annotations

from enum import StrEnum


class Outcome(StrEnum):
    """How the training and evaluation of one configuration ended.

    Each member is the string that results and studies store, and prints as that string.
    """

    __repr__ = str.__repr__

    #: trained for all its epochs and evaluated
    COMPLETE = "complete"
    #: ended at a rung by early stopping; it may go on from its checkpoint
    STOPPED = "stopped"
    #: the loss became infinite or NaN
    NONFINITE = "nonfinite"
    #: refused memory by the device or by its limit
    OOM = "oom"
    #: any other fault, such as a worker process that died
    FAILED = "failed"
