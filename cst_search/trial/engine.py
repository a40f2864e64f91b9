"""The two loops of a trial: train for one epoch, evaluate. They take everything they need as arguments."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cst_search.errors import RunError
from cst_search.trial.coco_eval import MAX_DETECTIONS, CocoFigures, coco_figures


class NonFiniteLoss(RunError):
    """The loss or the gradient became NaN or infinite; further steps would only spread it."""


@dataclass(frozen=True)
class EpochStats:
    """Statistics of one epoch: mean loss per image, images per second, number of updates, largest gradient norm."""

    loss: float
    images_per_second: float
    n_updates: int
    max_grad_norm: float


@dataclass(frozen=True)
class Scores(CocoFigures):
    """COCO's figures of a split, and the speed of detection in it."""

    images_per_second: float


@dataclass(frozen=True)
class Detections:
    """Detections in one image, best first: boxes x1, y1, x2, y2 in pixels of the file, scores 0..1, labels 1..K."""

    image_id: int
    boxes_xyxy: list[list[float]]
    scores: list[float]
    labels: list[int]


@dataclass(frozen=True)
class Precision:
    """Numeric precision of a step: autocast's dtype (None: fp32); ``scaled`` if gradients need scaling (fp16)."""

    dtype: torch.dtype | None
    scaled: bool


def choose_precision(name: str, device: torch.device) -> Precision:
    """Return the precision of a name. ``auto`` is bf16 if the device has it, else fp16 on CUDA; fp32 on a CPU."""
    if name == "auto":
        if device.type != "cuda":
            name = "fp32"
        else:
            name = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if name == "fp16" and device.type != "cuda":
        name = "bf16"  # a CPU has no fp16 training kernels, but it can autocast to bf16
    dtype = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    return Precision(dtype, scaled=name == "fp16")


class _AdamW(torch.optim.AdamW):
    """AdamW without the wrappers of torch's compiler, whose import takes 1.4 s as the first optimiser is made.

    The wrappers tell the compiler to leave these methods out. Nothing here is compiled.
    """

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
    zero_grad = inspect.unwrap(torch.optim.AdamW.zero_grad)
    add_param_group = inspect.unwrap(torch.optim.AdamW.add_param_group)
    state_dict = inspect.unwrap(torch.optim.AdamW.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.AdamW.load_state_dict)


def make_optimiser(model: nn.Module, lr: float, weight_decay: float) -> torch.optim.AdamW:
    """Make AdamW for the trainable parameters, with weight decay on weights but not on norms, biases and gates.

    A parameter with at most one dimension larger than 1 gets no decay. Side-Tuning's reference code likewise gives its
    merge weights none.
    """
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (plain if parameter.squeeze().ndim < 2 else decayed).append(parameter)
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]
    return _AdamW([group for group in groups if group["params"]], lr=lr)


def make_lr_schedule(
    optimiser: torch.optim.Optimizer, n_updates: int, warmup: float
) -> torch.optim.lr_scheduler.LambdaLR:
    """Make a schedule of linear warm-up over the first ``warmup`` share of updates, then half a cosine down to zero.

    Source: Loshchilov 2017.
    """
    n_warm = max(1, round(warmup * n_updates)) if warmup > 0 else 0

    def factor(update: int) -> float:
        if update < n_warm:
            return (update + 1) / n_warm
        return 0.5 * (1 + math.cos(math.pi * min(1.0, (update - n_warm) / max(1, n_updates - n_warm))))

    return torch.optim.lr_scheduler.LambdaLR(optimiser, factor)


def _to(device: torch.device, images: list[Tensor], targets: list[dict[str, Any]]) -> tuple[list[Tensor], list[dict]]:
    return (
        [image.to(device, non_blocking=True) for image in images],
        [{key: target[key].to(device, non_blocking=True) for key in ("boxes", "labels")} for target in targets],
    )


def _loss(
    model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]], precision: Precision
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the total loss of a batch that is on the device, and its parts by name."""
    with torch.autocast(images[0].device.type, dtype=precision.dtype, enabled=precision.dtype is not None):
        parts = model(images, targets)
    return torch.stack([value.float() for value in parts.values()]).sum(), parts


def losses(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[dict[str, Any]]]],
    *,
    device: torch.device,
    precision: Precision,
) -> Iterator[Tensor]:
    """Yield the training loss of each batch, for callers that need its gradient. Trains nothing."""
    model.train()
    for images, targets in batches:
        yield _loss(model, *_to(device, images, targets), precision)[0]


def train_one_epoch(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[dict[str, Any]]]],
    optimiser: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    scaler: torch.amp.GradScaler,
    *,
    device: torch.device,
    precision: Precision,
    accumulate: int,
    clip_norm: float,
    n_batches: int,
    after_step: Callable[[int], None] | None = None,
) -> EpochStats:
    """Train on every batch once. A shorter last accumulation group makes an update too.

    Args:
        after_step: called after each batch with the number of batches so far.

    Raises:
        NonFiniteLoss: the loss or gradient is not finite; raised before the update that would have used it.
    """
    model.train()
    parameters = [p for p in model.parameters() if p.requires_grad]
    begun, n_images, loss_sum, n_updates, max_norm = time.perf_counter(), 0, 0.0, 0, 0.0
    for index, (images, targets) in enumerate(batches):
        images, targets = _to(device, images, targets)
        loss, parts = _loss(model, images, targets, precision)
        value = float(loss.detach())
        if not math.isfinite(value):
            each = ", ".join(f"{name} {float(part.detach()):g}" for name, part in parts.items())
            raise NonFiniteLoss(
                f"the loss is {value:g} at batch {index + 1} ({each}); a lower lr or clip_norm may help"
            )
        # the last group may be shorter than `accumulate`; its mean is over the batches it has
        group = min(accumulate, n_batches - index // accumulate * accumulate)
        scaler.scale(loss / group).backward()
        n_images, loss_sum = n_images + len(images), loss_sum + value * len(images)
        if (index + 1) % accumulate == 0 or index + 1 == n_batches:
            scaler.unscale_(optimiser)
            norm = float(nn.utils.clip_grad_norm_(parameters, clip_norm))
            if math.isfinite(norm):
                max_norm = max(max_norm, norm)
            elif not precision.scaled:  # a GradScaler skips such a step by itself and lowers its scale
                raise NonFiniteLoss(f"the gradient is {norm:g} at batch {index + 1}; a lower lr may help")
            scale = scaler.get_scale()
            scaler.step(optimiser)
            scaler.update()
            optimiser.zero_grad(set_to_none=True)
            if scaler.get_scale() >= scale:  # a lower scale means that the scaler skipped the step
                schedule.step()
                n_updates += 1
        if after_step is not None:
            after_step(index + 1)
    seconds = time.perf_counter() - begun
    return EpochStats(loss_sum / max(1, n_images), n_images / max(seconds, 1e-9), n_updates, max_norm)


@torch.no_grad()
def detect(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[dict[str, Any]]]],
    *,
    device: torch.device,
    precision: Precision,
) -> Iterator[Detections]:
    """Run a detector over batches. Each target holds ``image_id`` and ``scale_xy``, see `images.CocoImages`."""
    model.eval()
    for images, targets in batches:
        images = [image.to(device, non_blocking=True) for image in images]
        with torch.autocast(device.type, dtype=precision.dtype, enabled=precision.dtype is not None):
            outputs = model(images)
        for target, output in zip(targets, outputs, strict=True):
            sx, sy = target["scale_xy"]
            known = output["labels"] > 0  # 0 is background, which RetinaNet and FCOS can predict
            boxes = output["boxes"][known].float().cpu() * torch.tensor([sx, sy, sx, sy])
            scores, labels = output["scores"][known].float().tolist(), output["labels"][known].tolist()
            yield Detections(int(target["image_id"]), boxes.tolist(), scores, labels)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[list[Tensor], list[dict[str, Any]]]],
    ground_truth: dict[str, Any],
    category_ids: tuple[int, ...],
    *,
    device: torch.device,
    precision: Precision,
    max_detections: int = MAX_DETECTIONS,
) -> Scores:
    """Run a detector and evaluate its detections as COCO does.

    Args:
        batches: batches as for training, but without flips; see `detect`.
        ground_truth: COCO annotation dictionary.
        category_ids: COCO ids; label i + 1 is category_ids[i].
        max_detections: the best detections of an image that count, in each class by itself.
    """
    begun, n_images, detections = time.perf_counter(), 0, []
    for found in detect(model, batches, device=device, precision=precision):
        n_images += 1
        for (x1, y1, x2, y2), score, label in zip(found.boxes_xyxy, found.scores, found.labels, strict=True):
            detections.append(
                {
                    "image_id": found.image_id,
                    "category_id": category_ids[label - 1],
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "score": score,
                }
            )
    seconds = time.perf_counter() - begun
    figures = coco_figures(ground_truth, detections, max_detections=max_detections)
    return Scores(**vars(figures), images_per_second=n_images / max(seconds, 1e-9))
