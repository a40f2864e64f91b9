"""Predicted memory of a training step, without a GPU, weights or data. Standard library only.

The step is replayed in shapes alone (`tape.py`, `training_step.py`). This gives the peak of its live tensors and of the
workspaces of cuDNN and cuBLAS, to within a few percent of a real step, in a few milliseconds. In bytes:

    active   = weights + optimiser state + max(step, update) + cuBLAS's workspaces
    reserved = what the caching allocator holds after two such steps, simulated (`reserved.py`, `allocator.py`)
    device   = reserved + context

Where hundreds of candidates are only ranked, a factor stands for the simulation:

    reserved = active * FRAGMENTATION + SLACK_BYTES

Device memory is what a process takes from the GPU, and what budgets and placement use. A part of its CUDA context is a
fixed cost, there before the first tensor. What cuBLAS adds to the context, where matrices are multiplied, is not: it
counts as working memory,

    working  = device - fixed cost

by which configurations are compared: 20 MB and 40 MB of it differ by a factor of two, and by 2 % of device memory.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from cst_search.config.recipe import Recipe
from cst_search.data.resize import resized_hw
from cst_search.memory.allocator import MIN_BLOCK_BYTES
from cst_search.memory.correction import Correction
from cst_search.memory.gpu_costs import GENERIC, GpuCosts, constants
from cst_search.memory.parts import count_trained, count_values
from cst_search.memory.plan import MemoryPlan, StepShape
from cst_search.memory.reserved import Process
from cst_search.memory.resnet_shapes import BackboneShape
from cst_search.memory.tape import Tape
from cst_search.memory.training_step import load_images, neck_layers, training_step

_CONSTANTS = constants()
FRAGMENTATION = _CONSTANTS["fragmentation"]
SLACK_BYTES = int(_CONSTANTS["slack_bytes"])
CONTEXT_BYTES = GENERIC.context_bytes
CONTEXT_WITH_BLAS_BYTES = GENERIC.context_with_blas_bytes
BLAS_WORKSPACE_BYTES = GENERIC.blas_workspace_bytes
# operations that autocast runs in fp32 on CUDA (PyTorch, "Automatic Mixed Precision", CUDA ops: autocast to float32)
CUDA_FP32_OPS = frozenset({"group_norm", "bce", "pow"})


def context_of(breakdown: Mapping[str, int] | None) -> int:
    """Return the fixed cost in an estimate's device bytes: the CUDA context without what cuBLAS adds to it.

    Args:
        breakdown: of an estimate, which may have been stored by a version with other constants; None: not stored, by a
            version that counted cuBLAS always.
    """
    return CONTEXT_WITH_BLAS_BYTES if breakdown is None else breakdown.get("context", 0)


def process_context_of(breakdown: Mapping[str, int]) -> int:
    """Return all of the CUDA context in an estimate's device bytes, with what cuBLAS adds to it."""
    return context_of(breakdown) + breakdown.get("blas_context", 0)


@dataclass(frozen=True)
class InputShape:
    """Worst training batch: padded height and width in pixels, and the most boxes in one image.

    Attributes:
        image_px: padded height and width of the largest image by itself; None: those of the batch.
    """

    height_px: int
    width_px: int
    max_boxes: int
    image_px: tuple[int, int] | None = None

    @property
    def image(self) -> InputShape:
        """The largest image by itself."""
        return self if self.image_px is None else InputShape(*self.image_px, self.max_boxes)


@dataclass(frozen=True)
class Estimate:
    """Predicted memory of one training step in bytes; ``breakdown`` adds up to ``device_bytes``.

    Attributes:
        delta_bytes, inference_bytes, flops, marginal_flops: of the trained detector on one image, see
            `inference.InferenceCost`; None: not predicted.
    """

    device_bytes: int
    reserved_bytes: int
    active_bytes: int
    trainable_params: int
    petl_params: int
    breakdown: Mapping[str, int]
    target_device: str = GENERIC.target
    delta_bytes: int | None = None
    inference_bytes: int | None = None
    flops: int | None = None
    marginal_flops: int | None = None

    @property
    def working_bytes(self) -> int:
        """Device bytes without the fixed cost."""
        return self.device_bytes - context_of(self.breakdown)

    def corrected(self, correction: Correction) -> Estimate:
        """Return the estimate with a study's correction of reserved bytes; the CUDA context is unchanged."""
        reserved = round(self.reserved_bytes * correction.factor)
        change = reserved - self.reserved_bytes
        if not change:
            return self
        parts = dict(self.breakdown, correction=change)
        return replace(self, reserved_bytes=reserved, device_bytes=self.device_bytes + change, breakdown=parts)


def worst_input(recipe: Recipe, sizes: tuple[tuple[int, int], ...] = (), max_boxes: int = 100) -> InputShape:
    """Return the largest padded batch that a dataset can give.

    Args:
        sizes: distinct (height, width) of the dataset's images in pixels; empty: the largest that the recipe allows, in
            landscape (COCO: 800 x 1344).
        max_boxes: most boxes in one image (COCO's training images: 93).

    torchvision scales the short side to image_size_px unless the long side would pass max_size_px, pads a batch to its
    largest height and width, and rounds up to a multiple of 32.
    """
    if not sizes:
        sizes = ((recipe.image_size_px, recipe.max_size_px),)
    resized = [resized_hw(h, w, recipe.image_size_px, recipe.max_size_px) for h, w in sizes]
    padded = [(-(-h // 32) * 32, -(-w // 32) * 32) for h, w in resized]
    largest = max(padded, key=lambda size: (size[0] * size[1], size))
    return InputShape(max(h for h, _ in padded), max(w for _, w in padded), max_boxes, largest)


@dataclass(frozen=True)
class StepBytes:
    """Bytes of a training step.

    Attributes:
        parts: named parts in bytes, which add up to the peak of live tensors.
        kept: bytes that autograd keeps of the forward pass.
        multiplies: True if matrices are multiplied outside of convolutions, so that cuBLAS is loaded.
        process: allocations of the training process; None: not traced.
    """

    parts: Mapping[str, int]
    kept: int
    petl_params: int
    trainable_params: int
    multiplies: bool
    process: Process | None = None

    @property
    def active_bytes(self) -> int:
        return sum(self.parts.values())


def step_bytes(
    step: StepShape,
    plan: MemoryPlan,
    petl_params: int,
    *,
    half: bool,
    accumulates: bool,
    fp32_ops: frozenset[str] = CUDA_FP32_OPS,
    block: int = MIN_BLOCK_BYTES,
    sums_in_place: bool = True,
    workspaces: bool = True,
    gpu: GpuCosts = GENERIC,
    traced: bool = False,
) -> StepBytes:
    """Predict the live bytes of one training step; by default by CUDA's rules.

    Args:
        petl_params: parameters that the method adds to or opens in the backbone.
        half: True for autocast to a dtype of two bytes.
        accumulates: True if gradients are accumulated over several steps before the optimiser runs.
        fp32_ops, block, sums_in_place: see `tape.Tape`.
        workspaces: True to count the workspaces of cuDNN and cuBLAS, these as ``gpu`` has them.
        traced: True to trace the allocations of the process too.
    """
    parts_of = ((neck_layers(step), step.neck_part), (step.head_layers(step), step.head_part))
    trainable_params = petl_params + sum(count_trained(*each) for each in parts_of)
    trainable = 4 * trainable_params
    weights = 4 * (body_values(step.shape, plan, petl_params) + sum(count_values(*each) for each in parts_of))

    new_tape = partial(
        Tape, half=half, fp32_ops=fp32_ops, block=block, sums_in_place=sums_in_place, conv_copies=workspaces
    )
    # with accumulation the gradients of the first step exist when the second runs
    last = _Pass(new_tape(adds_up=accumulates, trace=[] if traced else None), step, plan)
    peak = last.tape.peak + (trainable if accumulates else 0)
    images = step.batch * 3 * step.height_px * step.width_px * 4
    # AdamW's foreach update holds the gradients and one temporary list beside its two states
    update = images + 2 * trainable
    parts = {"weights": weights, "optimiser": 2 * trainable, "images": images}
    kept = last.kept
    if peak >= update:
        parts |= {"activations": kept, "gradients_and_transients": peak - images - kept}
    else:
        parts |= {"gradients": trainable, "update_transients": trainable}
    start = None
    if plan.start is not None:
        start = start_pass(new_tape(drops=True, trace=[] if traced else None), step, plan.start)
        if weights + start.tape.peak > sum(parts.values()):  # the start pass runs before the optimiser exists
            parts, kept = {"weights": weights, "start": start.tape.peak}, 0
    if workspaces and last.tape.multiplies:
        parts["blas_workspace"] = gpu.blas_workspace_bytes
    process = None
    if traced:
        passes = [_Pass(new_tape(trace=[]), step, plan), last] if accumulates else [last]
        process = _process(passes, start, [*_split_up(step.shape, weights - trainable)])
    return StepBytes(parts, kept, petl_params, trainable_params, last.tape.multiplies, process)


def _process(passes: Sequence[_Pass], start: _Pass | None, frozen: list[int]) -> Process:
    """Return the allocations of a training process; ``frozen``: bytes of each tensor that is not trained."""
    trained = passes[0].tape.gradients
    return Process(
        weights=[*frozen, *trained],
        trained=trained,
        passes=[each.trace for each in passes],
        start=[] if start is None else start.trace,
    )


def estimate_of(step: StepBytes, *, expandable: bool = True, gpu: GpuCosts = GENERIC) -> Estimate:
    """Return the estimate of a step: its live bytes, the allocator's share and the CUDA context.

    Args:
        step: of the same GPU. If its process was traced, the allocator is simulated, else a factor stands for it.
        expandable: True if the allocator uses expandable segments.
    """
    active = step.active_bytes
    if step.process is None:
        reserved = round(active * FRAGMENTATION) + SLACK_BYTES
    else:
        reserved = step.process.reserved_bytes(expandable=expandable, workspace_bytes=gpu.blas_workspace_bytes // 2)
    reserved = max(round(reserved * gpu.reserved_factor), active)
    # what cuBLAS adds to the context is no fixed cost: configurations that multiply no matrices do without it
    blas = {"blas_context": gpu.context_with_blas_bytes - gpu.context_bytes} if step.multiplies else {}
    breakdown = {**step.parts, "allocator": reserved - active, **blas, "context": gpu.context_bytes}
    device = reserved + process_context_of(breakdown)
    return Estimate(device, reserved, active, step.trainable_params, step.petl_params, breakdown, gpu.target)


class _Pass:
    """Forward and backward pass, replayed on a new tape."""

    def __init__(self, tape: Tape, step: StepShape, plan: MemoryPlan) -> None:
        given = load_images(tape, step)
        self.tape, self.kept = tape, training_step(tape, step, plan, given)
        # as it is now: what ends with the tape and the images is left allocated
        self.trace, tape.trace = tape.trace or [], None


def start_pass(tape: Tape, step: StepShape, plan: MemoryPlan) -> _Pass:
    """Run `petl.Method.prepare`: one image, forward and backward, gradients dropped.

    The peak is somewhat above the real one, since in the real pass the pyramid and the heads are frozen.
    """
    return _Pass(tape, replace(step, batch=1), plan)


def _split_up(shape: BackboneShape, nbytes: int) -> Iterator[int]:
    """Split the bytes of frozen parameters and buffers into tensors: those of the body, in its order, then one more."""
    for size in _body_tensors(shape):
        if nbytes <= size:
            break
        yield size
        nbytes -= size
    if nbytes > 0:
        yield nbytes


def _body_tensors(shape: BackboneShape) -> Iterator[int]:
    """Yield the bytes of each parameter and buffer of a body as built: convolutions, each with its norm."""
    convs = [(147 * shape.stage_channels[0], shape.stage_channels[0])]
    convs += [(c.c_in * c.c_out * c.kernel**2, c.c_out) for block in shape.blocks() for c in block.convs]
    for n, c_out in convs:
        yield 4 * n
        yield from [4 * c_out] * 4


def body_values(shape: BackboneShape, plan: MemoryPlan, petl_params: int) -> int:
    """Return the number of values in parameters and buffers of body and side network."""
    # four per channel of a norm: weight, bias, mean and variance, as parameters or buffers
    own = shape.n_params + (4 if shape.frozen_norm else 2) * shape.n_norm_channels()
    opened = plan.trained_from <= 5 or plan.norm in ("bias", "affine")
    return own if opened else own + petl_params
