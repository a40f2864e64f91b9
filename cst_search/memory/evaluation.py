"""Memory of a trial's evaluation: detection in a batch, beside weights and optimiser. Standard library only.

It mostly needs less than training, whose forward pass it repeats without autograd. A two-stage detector can need more:
it classifies more regions than in training, and decodes a box for each of them and each class.
"""

from __future__ import annotations

from dataclasses import replace

from cst_search.memory.estimate import StepBytes
from cst_search.memory.inference import run_detection
from cst_search.memory.plan import MemoryPlan, StepShape
from cst_search.memory.tape import Tape


def with_evaluation(trained: StepBytes, tape: Tape, step: StepShape, plan: MemoryPlan) -> StepBytes:
    """Return the bytes of a process that trains and evaluates: of whichever of the two needs more.

    Args:
        tape: empty, by the rules of the device; with a trace if ``trained`` has one.
        step: of the batch that is evaluated.
    """
    run_detection(tape, step, plan)
    process = trained.process and replace(trained.process, evaluation=tape.trace or ())
    parts = {"weights": trained.parts["weights"], "optimiser": 8 * trained.trainable_params, "evaluation": tape.peak}
    if "blas_workspace" in trained.parts:
        parts["blas_workspace"] = trained.parts["blas_workspace"]
    if sum(parts.values()) <= trained.active_bytes:
        return replace(trained, process=process)
    return replace(trained, parts=parts, process=process)
