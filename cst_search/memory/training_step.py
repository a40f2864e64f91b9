"""Training step of a detector as shapes: input images, forward pass, backward pass.

Mirrors `trial.engine` and torchvision's detectors on a `Tape`. Standard library only.
"""

from __future__ import annotations

from cst_search.memory.backbone_step import run_backbone
from cst_search.memory.parts import LayerShape
from cst_search.memory.plan import MemoryPlan, StepShape
from cst_search.memory.tape import ShapeTensor, Tape


def load_images(tape: Tape, step: StepShape) -> list[ShapeTensor]:
    """Copy a batch to the device."""
    return [tape.tensor(3, step.height_px, step.width_px) for _ in range(step.batch)]


def training_step(tape: Tape, step: StepShape, plan: MemoryPlan, given: list[ShapeTensor]) -> int:
    """Run forward and backward pass; gradients stay. Return the bytes that autograd kept of the forward pass.

    Args:
        given: images, from `load_images`.
    """
    _forward(tape, step, plan, given)
    tape.end_forward()
    kept = tape.live - sum(image.storage.nbytes for image in given)
    tape.backward()
    return kept


def _forward(tape: Tape, step: StepShape, plan: MemoryPlan, given: list[ShapeTensor]) -> None:
    images = transform(tape, step, given)
    levels = run_backbone(tape, step, plan, images)
    tape.op((1,), *step.heads(tape, step, levels))  # their sum


def transform(tape: Tape, step: StepShape, given: list[ShapeTensor]) -> ShapeTensor:
    """Normalise, resize (which copies even if the size stays the same), and pad into one batch."""
    scaled = []
    for image in given:
        normal = tape.tensor(*image.shape)
        scaled.append(tape.tensor(*image.shape))
        del normal
    return tape.tensor(step.batch, 3, step.height_px, step.width_px)


def neck_layers(step: StepShape) -> list[LayerShape]:
    """Return the convolutions of the pyramid; tests compare their parameters with built models."""
    c, used = step.channels, [step.shape.stage_channels[s - 1] for s in step.shape.used_stages]
    normed, plain = {"bias": False, "norm": True, "statistics": True}, {"bias": True}
    kind = normed if step.neck_norm else plain
    layers = [LayerShape(c_in, c, **kind) for c_in in used] + [LayerShape(c, c, 3, **kind)] * len(used)
    if not step.pooled:
        layers += [LayerShape(used[-1] if step.p6_from_c5 else c, c, 3), LayerShape(c, c, 3)]
    return layers
