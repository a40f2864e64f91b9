"""Cost of a trained detector at inference, for one task and for several on one body: arithmetic on shapes.

Detection in one image is replayed on a `tape.Tape`, as a training step is in `estimate`. That gives the peak of its
live tensors and its floating-point operations. Standard library only.

    inference = weights + peak                      one detector by itself
    storage   = base + tasks * delta                tasks that start from one detector
    flops     = body + tasks * (flops - body)       tasks that leave the body as it is: one pass through it for all
    flops     = tasks * flops                       tasks that change what it computes

A multiply-add counts as two floating-point operations; biases, norms and activations are not counted. This is the
convention of `torch.utils.flop_counter`. Detection papers often give multiply-adds under the same name: half as many.

Not counted, since it depends on the image: the detections that pass the score threshold. A two-stage detector is
counted with as many regions as it lets through.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from cst_search.config.recipe import Recipe
from cst_search.memory.backbone_step import run_body, run_pyramid
from cst_search.memory.estimate import BLAS_WORKSPACE_BYTES, body_values
from cst_search.memory.parts import LayerShape, Part, count_trained, count_values
from cst_search.memory.plan import MemoryPlan, StepShape
from cst_search.memory.tape import Tape
from cst_search.memory.training_step import load_images, neck_layers, transform

_PLAIN = Part("train")
#: figures of a detector by itself that an `estimate.Estimate` has too
INFERENCE_FIGURES = ("delta_bytes", "inference_bytes", "flops", "marginal_flops")


@dataclass(frozen=True)
class InferenceCost:
    """Cost of a detector on one image.

    Attributes:
        base_bytes: stored once for all tasks: the detector that they start from, or its body where neck and heads start
            from random numbers.
        delta_bytes: stored for each task: the tensors that training changed.
        detector_bytes: stored for a detector without a base: all its tensors, the method merged.
        weights_bytes: all tensors of the detector in memory, of which ``delta_bytes`` are the task's own.
        peak_bytes: peak of the live tensors beside them.
        flops: floating-point operations.
        body_flops: those of the body.
        shares_body: True if tasks with this method share a pass through the body.
    """

    base_bytes: int
    delta_bytes: int
    detector_bytes: int
    weights_bytes: int
    peak_bytes: int
    flops: int
    body_flops: int
    shares_body: bool

    @property
    def inference_bytes(self) -> int:
        """Peak memory of one detector alone, in bytes."""
        return self.weights_bytes + self.peak_bytes

    @property
    def marginal_flops(self) -> int:
        """Floating-point operations that a further task on the same image adds."""
        return self.flops - self.body_flops if self.shares_body else self.flops

    def on_one_base(self, n: int) -> TasksCost:
        """Return the cost of n tasks that start from one detector, as `trial.multi_inference` runs them.

        It holds the feature maps of the body until the last task is done, see `inference_cost`.
        """
        return TasksCost(
            n,
            self.base_bytes + n * self.delta_bytes,
            self.inference_bytes + (n - 1) * self.delta_bytes,
            self.flops + (n - 1) * self.marginal_flops,
        )

    def apart(self, n: int) -> TasksCost:
        """Return the cost of n whole detectors that share nothing and run one after another."""
        return TasksCost(n, n * self.detector_bytes, n * self.weights_bytes + self.peak_bytes, n * self.flops)


@dataclass(frozen=True)
class TasksCost:
    """Cost of several tasks on one image: bytes in storage, peak bytes in memory, floating-point operations."""

    n_tasks: int
    storage_bytes: int
    inference_bytes: int
    flops: int


@dataclass(frozen=True)
class Detectors:
    """A way to have a detector for each of several tasks, with its cost for several numbers of tasks.

    Attributes:
        kind: ``one base`` or ``whole``, where nothing is shared.
        method: PETL method; of whole detectors it does not matter, as they cost the same once it is merged.
    """

    kind: str
    method: str | None
    costs: Sequence[TasksCost]


ADAPTERS = "conv_lora"  # adapters inside the body, to compare with


def compare_tasks(
    recipe: Recipe, counts: Sequence[int], price: Callable[[Recipe, bool], InferenceCost]
) -> list[Detectors]:
    """Return the costs of tasks with a recipe's detector, with adapters in its body, and with whole detectors.

    Args:
        counts: numbers of tasks.
        price: (recipe, whether the feature maps of the body are held for other tasks) -> cost.
    """
    methods = dict.fromkeys((recipe.method, ADAPTERS))
    rows = []
    for method in methods:
        cost = price(recipe.configured({"method": method}), True)
        rows.append(Detectors("one base", method, [cost.on_one_base(n) for n in counts]))
    whole = price(replace(recipe, method="head", options={}, neck="train", head="train"), False)
    return [*rows, Detectors("whole", None, [whole.apart(n) for n in counts])]


def inference_cost(
    step: StepShape,
    plan: MemoryPlan,
    petl_params: int,
    *,
    shares_body: bool,
    holds_features: bool = False,
    new_tape: Callable[[], Tape],
    workspaces: bool = True,
) -> InferenceCost:
    """Predict the cost of detection in one image.

    Args:
        petl_params: parameters that the method adds to or opens in the body.
        shares_body: True if the method leaves the body as it is.
        holds_features: True if the feature maps of the body are held to the end, for other tasks.
        new_tape: makes an empty tape by the rules of a device.
        workspaces: True to count the workspace of cuBLAS.
    """
    step = replace(step, batch=1)
    parts = ((neck_layers(step), step.neck_part), (step.head_layers(step), step.head_part))
    tape = new_tape()
    body_flops = run_detection(tape, step, plan, holds_features)
    workspace = BLAS_WORKSPACE_BYTES // 2 if workspaces and tape.multiplies else 0  # of the one thread that runs
    trained = petl_params + sum(count_trained(*part) for part in parts)
    body, whole = _body_bytes(step), sum(_plain_bytes(layers) for layers, _ in parts)
    values = body_values(step.shape, plan, petl_params) + sum(count_values(*part) for part in parts)
    return InferenceCost(
        base_bytes=body + (whole if step.fixed_norms else 0),
        delta_bytes=4 * trained + _statistics_bytes(step, plan, tape.norm_channels),
        detector_bytes=body + whole,
        weights_bytes=4 * values + _norm_bytes(tape.norm_channels),
        peak_bytes=tape.peak + workspace,
        flops=tape.flops,
        body_flops=body_flops,
        shares_body=shares_body,
    )


def run_detection(tape: Tape, step: StepShape, plan: MemoryPlan, holds_features: bool = False) -> int:
    """Replay detection in one batch of images. Returns the floating-point operations of the body."""
    with tape.no_grad():
        given = load_images(tape, step)
        images = transform(tape, step, given)
        features = [run_body(tape, step, plan, images)]
        body_flops = tape.flops
        held = list(features[0].values()) if holds_features else []
        levels = run_pyramid(tape, step, plan, features.pop(), images)
        (step.detect or step.heads)(tape, step, levels)
        del held
    return body_flops


def _body_bytes(step: StepShape) -> int:
    """Return the bytes of a body's tensors; each BatchNorm2d has a counter of eight bytes."""
    shape = step.shape
    n_norms = 0 if shape.frozen_norm else 1 + sum(len(block.convs) for block in shape.blocks())
    return 4 * body_values(shape, MemoryPlan(), 0) + 8 * n_norms


def _plain_bytes(layers: list[LayerShape]) -> int:
    return 4 * count_values(layers, _PLAIN) + 8 * sum(layer.statistics for layer in layers)


def _statistics_bytes(step: StepShape, plan: MemoryPlan, added: list[int]) -> int:
    """Return the bytes of the statistics that training changes.

    Args:
        added: channels of each batch norm that the method added.
    """
    channels = list(added)
    if not step.fixed_body_norms and not step.shape.frozen_norm and plan.trained_from <= 5:
        if plan.trained_from <= 1:
            channels.append(step.shape.stage_channels[0])
        blocks = step.shape.blocks(max(2, plan.trained_from))
        channels += [conv.c_out for block in blocks for conv in block.convs]
    if not step.fixed_norms:
        for layers, part in ((neck_layers(step), step.neck_part), (step.head_layers(step), step.head_part)):
            if part.mode in ("train", "norm"):
                channels += [layer.c_out for layer in layers if layer.statistics]
    return _norm_bytes(channels)


def _norm_bytes(channels: Sequence[int]) -> int:
    """Return the bytes of the statistics of batch norms: mean and variance of each channel, and a counter."""
    return sum(8 * c + 8 for c in channels)
