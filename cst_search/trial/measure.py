"""Measure a few training steps on the worst batch: memory, time, and a finite loss. Runs by itself:

    python -m cst_search.trial.measure recipe.json --n-classes 80 --height 800 --width 1344 --boxes 100 --steps 4

prints one line of JSON. With a recipe in JSON (and weights: none or DEFAULT) it needs torch and torchvision only. The
steps are those of a trial (`engine.train_one_epoch`), in a process that has done nothing else.
"""

from __future__ import annotations

import argparse
import itertools
import os
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData, ImageEntry, Split
from cst_search.data.images import CocoImages
from cst_search.data.resize import resized_hw
from cst_search.detector.build import build_detector, count_parameters, prepare
from cst_search.errors import ConfigError, UserError
from cst_search.memory.estimate import InputShape, worst_input
from cst_search.memory.gpu_profile import local_costs
from cst_search.petl import get_method
from cst_search.trial.cost import context_bytes, predict
from cst_search.trial.device import without_context
from cst_search.trial.engine import (
    NonFiniteLoss,
    choose_precision,
    losses,
    make_lr_schedule,
    make_optimiser,
    train_one_epoch,
)
from cst_search.trial.memory_limit import memory_limit
from cst_search.trial.result import Outcome

_STRIDE = 32  # torchvision pads a batch to multiples of it
# The first step allocates the optimiser's state, and accumulated gradients are held during the next step's activations.
# With two steps per update and two updates, the peak is reached.
_ENOUGH = 2
_LEAST_BOX_PX = 8


@dataclass(frozen=True)
class Batch:
    """The batch of every step: images (3, H, W) in 0..1, and as many targets with ``boxes`` and ``labels``."""

    images: tuple[Tensor, ...]
    targets: tuple[Mapping[str, Tensor], ...]

    @property
    def shape(self) -> InputShape:
        """Return the shape of the batch as the detector pads it."""
        height, width = (max(image.shape[axis] for image in self.images) for axis in (1, 2))
        return InputShape(_padded(height), _padded(width), max(len(target["boxes"]) for target in self.targets))


@dataclass(frozen=True)
class Measured:
    """Measurements of one run.

    Attributes:
        outcome: ``complete``, ``oom`` or ``nonfinite``; the last two have a ``reason``.
        active_bytes, reserved_bytes: peaks of the caching allocator. On a CPU these, ``device_bytes`` and
            ``process_bytes`` are None.
        device_bytes: reserved bytes plus the assumed CUDA context; if ``oom``, plus the refused allocation.
        process_bytes: memory of this process at the end as the device reports it.
        process_source: origin of ``process_bytes``: ``nvidia-smi`` (of this process), ``nvidia-smi of the device`` (the
            increase since the start, correct if no other process uses the device), or ``mem_get_info without context``
            (likewise, since the context was created).
        predicted_bytes: device bytes that `cost.predict` gives for the same batch.
        step_seconds: median time of a step, without the first.
    """

    outcome: Outcome
    reason: str | None
    device: str
    torch: str
    height_px: int
    width_px: int
    max_boxes: int
    n_classes: int
    batch_size: int
    steps: int
    step_seconds: float | None
    loss: float | None
    petl_params: int
    trainable_params: int
    predicted_bytes: int
    memory_source: str
    device_bytes: int | None = None
    active_bytes: int | None = None
    reserved_bytes: int | None = None
    limit_bytes: int | None = None
    asked_bytes: int | None = None
    process_bytes: int | None = None
    process_source: str | None = None


def _train_steps(
    model: nn.Module, recipe: Recipe, batch: Batch, steps: int, device: torch.device, times: list[float]
) -> float:
    """Train on one batch and return the mean loss. Appends the time after each step to ``times``."""
    accumulate = min(recipe.accumulate, _ENOUGH)
    precision = choose_precision(recipe.precision, device)

    def after_step(_: int) -> None:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter())

    def batches() -> Iterator[tuple[list[Tensor], list[dict[str, Any]]]]:
        for _ in range(steps):
            yield list(batch.images), [dict(target) for target in batch.targets]

    model.to(device)
    first = ([batch.images[0]], [dict(batch.targets[0])])
    prepare(model, recipe, losses(model, [first], device=device, precision=precision))
    optimiser = make_optimiser(model, recipe.lr or get_method(recipe.method).lr, recipe.weight_decay)
    return train_one_epoch(
        model,
        batches(),
        optimiser,
        make_lr_schedule(optimiser, -(-steps // accumulate), recipe.warmup),
        torch.amp.GradScaler(device.type, enabled=precision.scaled),
        device=device,
        precision=precision,
        accumulate=accumulate,
        clip_norm=recipe.clip_norm,
        n_batches=steps,
        after_step=after_step,
    ).loss


def _measured_figures(
    device: torch.device, context: int, asked_bytes: int | None, process: tuple[int | None, str | None]
) -> dict[str, Any]:
    """Return the memory of this process on a GPU; a refused allocation counts as needed."""
    reserved = torch.cuda.max_memory_reserved(device)
    return {
        "memory_source": "measured",
        "device_bytes": reserved + (asked_bytes or 0) + context,
        "active_bytes": torch.cuda.max_memory_allocated(device),
        "reserved_bytes": reserved,
        "process_bytes": process[0],
        "process_source": process[1],
    }


def measure(
    recipe: Recipe,
    n_classes: int,
    batch: Batch,
    *,
    steps: int = 4,
    device: torch.device,
    memory_limit_bytes: int | None = None,
    read_weights: bool = True,
) -> Measured:
    """Train repeatedly on one batch and measure memory and time.

    Args:
        n_classes: number of classes without the background.
        steps: minimum number of steps; enough are run for two updates.
        memory_limit_bytes: memory limit, as `run.run_trial` takes it.
        read_weights: if False, use random weights of the same shapes. Memory does not depend on their values.

    Raises:
        ConfigError: the method, its options or the weights are invalid.
    """
    on_gpu = device.type == "cuda"
    used_before = _device_used()
    steps = max(steps, _ENOUGH * min(recipe.accumulate, _ENOUGH))
    outcome, reason, asked = Outcome.COMPLETE, None, None
    context = context_bytes(recipe, n_classes, gpu=local_costs()) if on_gpu else 0
    loss: float | None = None
    if on_gpu:
        free_before = torch.cuda.mem_get_info(device)[0]
        torch.cuda.reset_peak_memory_stats(device)
    model = build_detector(recipe, n_classes, shapes_only=not read_weights)
    petl_params, trainable_params = count_parameters(model)
    times = [time.perf_counter()]
    with memory_limit(device, without_context(memory_limit_bytes, context)) as limit:
        try:
            loss = _train_steps(model, recipe, batch, steps, device, times)
        except NonFiniteLoss as error:
            outcome, reason = Outcome.NONFINITE, str(error)
        except Exception as error:
            refusal = limit.refusal(error)
            if refusal is None:
                raise
            outcome, reason, asked = Outcome.OOM, refusal.reason, refusal.asked_bytes
    seconds = [after - before for before, after in itertools.pairwise(times)]
    figures: dict[str, Any] = {"memory_source": "predicted"}
    if on_gpu:
        figures = _measured_figures(device, context, asked, _process_used(device, used_before, free_before))
    shape = batch.shape
    return Measured(
        outcome=outcome, reason=reason, loss=loss,
        device=torch.cuda.get_device_name(device) if on_gpu else "cpu", torch=torch.__version__,
        height_px=shape.height_px, width_px=shape.width_px, max_boxes=shape.max_boxes,
        n_classes=n_classes, batch_size=len(batch.images),
        steps=len(seconds), step_seconds=statistics.median(seconds[1:] or seconds) if seconds else None,
        petl_params=petl_params, trainable_params=trainable_params,
        predicted_bytes=predict(recipe, n_classes, shape, evaluates=False).device_bytes,
        limit_bytes=limit.limit_bytes, asked_bytes=asked, **figures,
    )  # fmt: skip


# --- the worst batch ------------------------------------------------------------------------------------------------


def synthetic_batch(recipe: Recipe, shape: InputShape, n_classes: int) -> Batch:
    """Make a fixed batch of noise with a given padded shape, where every image has the largest number of boxes.

    A detector resizes its images, so one image size cannot give every padded shape: 1344 x 1344 at 800 px takes a batch
    of portrait and landscape images. These alternate; a batch of one has the larger.

    Raises:
        ConfigError: the recipe's image size gives no such batch.
    """
    short = recipe.image_size_px
    one = _fitted(recipe, shape.height_px, shape.width_px)
    upright = _fitted(recipe, shape.height_px, min(short, shape.width_px))
    lying = _fitted(recipe, min(short, shape.height_px), shape.width_px)
    is_one = (_padded(one[0]), _padded(one[1])) == (_padded(shape.height_px), _padded(shape.width_px))
    sizes = [one] if is_one else sorted((upright, lying), key=lambda hw: -hw[0] * hw[1])
    found = tuple(_padded(max(size[axis] for size in sizes)) for axis in (0, 1))
    if found != (_padded(shape.height_px), _padded(shape.width_px)):
        raise ConfigError(
            f"height and width must be of a batch at image_size_px {short}, max_size_px {recipe.max_size_px}; "
            f"got {shape.height_px} x {shape.width_px}, which would be resized to {found[0]} x {found[1]}"
        )
    generator = torch.Generator().manual_seed(0)
    images, targets = [], []
    for i in range(recipe.batch_size):
        height, width = sizes[i % len(sizes)]
        images.append(torch.rand(3, height, width, generator=generator))
        room = torch.tensor([width, height], dtype=torch.float32)
        # sides are uniform from 8 px to half of the image's
        sides = _LEAST_BOX_PX + torch.rand(shape.max_boxes, 2, generator=generator) * (room / 2 - _LEAST_BOX_PX)
        corner = torch.rand(shape.max_boxes, 2, generator=generator) * (room - sides)
        labels = torch.randint(1, n_classes + 1, (shape.max_boxes,), generator=generator)
        targets.append({"boxes": torch.cat([corner, corner + sides], dim=1), "labels": labels})
    return Batch(tuple(images), tuple(targets))


def dataset_batch(recipe: Recipe, data: DetectionData) -> Batch:
    """Make the worst batch of a dataset: its tallest and its widest image in turn.

    A batch of one has the larger of them. Every image gets the boxes of the image with the most, scaled in proportion.
    """
    entries = [entry for split in data.splits.values() for entry in split.images]

    def size(entry: ImageEntry) -> tuple[int, int]:
        return _fitted(recipe, entry.height, entry.width)

    ends = [max(entries, key=lambda entry: size(entry)[axis]) for axis in (0, 1)]
    ends.sort(key=lambda entry: -size(entry)[0] * size(entry)[1])
    crowded = max(entries, key=lambda entry: len(entry.labels) - sum(entry.iscrowd))
    split = Split("measure", data.folder, data.folder, (*ends, crowded))
    images = CocoImages(
        split, image_size_px=recipe.image_size_px, max_size_px=recipe.max_size_px, hflip=False, cache_bytes=0
    )
    most = images[2][1]
    own = _of(images[2][0])
    chosen = [images[i % 2][0] for i in range(recipe.batch_size)]
    targets = [{"boxes": most["boxes"] * (_of(image) / own), "labels": most["labels"]} for image in chosen]
    return Batch(tuple(chosen), tuple(targets))


def _of(image: Tensor) -> Tensor:
    """Return (width, height, width, height) of an image, the factors that its boxes scale with."""
    return torch.tensor([image.shape[2], image.shape[1]] * 2, dtype=torch.float32)


def _padded(n_pixels: int) -> int:
    return -(-n_pixels // _STRIDE) * _STRIDE


def _fitted(recipe: Recipe, height: int, width: int) -> tuple[int, int]:
    return resized_hw(height, width, recipe.image_size_px, recipe.max_size_px)


# --- memory as the device reports it ---------------------------------------------------------------------------------


def _nvidia_smi(query: str) -> list[list[str]]:
    """Return the rows of an ``nvidia-smi`` query, or none if it fails."""
    command = ["nvidia-smi", query, "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return [[cell.strip() for cell in line.split(",")] for line in done.stdout.splitlines() if line.strip()]


def _device_used() -> dict[str, int]:
    """Return the bytes in use on each device by UUID, without the CUDA context that torch's query would create."""
    return {uuid: int(mib) * 2**20 for uuid, mib in _nvidia_smi("--query-gpu=uuid,memory.used") if mib.isdecimal()}


def _process_used(device: torch.device, used_before: Mapping[str, int], free_before: int) -> tuple[int, str]:
    """Return (bytes that this process holds, their source), see `Measured`. A container may hide the process."""
    for pid, mib in _nvidia_smi("--query-compute-apps=pid,used_memory"):
        if pid == str(os.getpid()) and mib.isdecimal():
            return int(mib) * 2**20, "nvidia-smi"
    uuid = f"GPU-{getattr(torch.cuda.get_device_properties(device), 'uuid', '?')}"
    used = _device_used()
    if uuid in used and uuid in used_before:
        return used[uuid] - used_before[uuid], "nvidia-smi of the device"
    return free_before - torch.cuda.mem_get_info(device)[0], "mem_get_info without context"


# --- command line ----------------------------------------------------------------------------------------------------


def read_recipe(path: Path) -> Recipe:
    """Read a recipe from JSON, or from YAML if PyYAML is installed. Raises ConfigError."""
    import json

    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text)
        else:
            import yaml

            content = yaml.safe_load(text)
        return Recipe.from_dict(content, by_hand=True)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{path}: must hold a recipe: {error}") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Train a few steps on the worst batch and print what they took, as one line of JSON.",
        epilog="Exit codes: 0 done, 1 memory ran out or the loss is not finite (see outcome), 2 change something.",
    )
    parser.add_argument("recipe", type=Path, help="JSON, or YAML with PyYAML")
    parser.add_argument("--data", type=Path, help="data set whose images make the worst batch")
    parser.add_argument("--cache", type=Path, help="with --data: JSON file that remembers checked images")
    parser.add_argument("--n-classes", type=int, default=80, help="number of classes without background [%(default)s]")
    parser.add_argument(
        "--height", type=int, help="height of the padded batch, px [default: the largest of the recipe]"
    )
    parser.add_argument("--width", type=int)
    parser.add_argument("--boxes", type=int, default=100, help="boxes in every image [%(default)s]")
    parser.add_argument(
        "--steps", type=int, help="training steps [4 on a GPU, 2 on a CPU, where no memory is measured]"
    )
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument(
        "--budget-mem", help="memory limit of the process on a GPU, as for a trial of a search, e.g. 6GB"
    )
    parser.add_argument("--no-weights", action="store_true", help="use random weights of the same shapes; read no file")
    return parser


def main() -> None:
    import json
    import sys

    from cst_search.trial.device import check_bound, choose_device
    from cst_search.units import parse_bytes

    parser = _parser()
    args = parser.parse_args()
    try:
        for name in ("n_classes", "steps", "boxes", "height", "width"):
            value, least = getattr(args, name), int(name != "boxes")
            if value is not None and value < least:
                raise ConfigError(f"--{name.replace('_', '-')} must be a whole number from {least} on; got {value}")
        if (args.height is None) != (args.width is None):
            raise ConfigError("--height and --width are given together or not at all")
        device = choose_device(args.device)
        bound = args.budget_mem and parse_bytes(args.budget_mem)
        limit = check_bound(bound, device, "--budget-mem") if bound and device.type == "cuda" else None
        recipe = read_recipe(args.recipe)
        n_classes = args.n_classes
        if args.data is not None:
            from cst_search.data.dataset import load_data
            from cst_search.data.options import ReadOptions

            data, _ = load_data(args.data, ReadOptions.of(recipe), skip_bad=True, cache=args.cache)
            n_classes, batch = len(data.class_names), dataset_batch(recipe, data)
        else:
            largest = worst_input(recipe, max_boxes=args.boxes)
            shape = InputShape(args.height or largest.height_px, args.width or largest.width_px, args.boxes)
            batch = synthetic_batch(recipe, shape, n_classes)
        found = measure(
            recipe,
            n_classes,
            batch,
            steps=args.steps or (4 if device.type == "cuda" else 2),
            device=device,
            memory_limit_bytes=limit,
            read_weights=not args.no_weights,
        )
    except UserError as error:
        parser.exit(error.exit_code, f"{error}\n")
    print(json.dumps(asdict(found)))
    sys.exit(0 if found.outcome == Outcome.COMPLETE else 1)


if __name__ == "__main__":
    main()
