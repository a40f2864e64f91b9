"""Run the epochs of a trial, from the first one or from a checkpoint: train, evaluate, write the checkpoint, report."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cst_search.config.augmentation import PRESETS
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData, coco_ground_truth
from cst_search.data.disk_cache import Store
from cst_search.data.images import CocoImages, loader
from cst_search.detector.base import images_evaluated_at_once
from cst_search.memory.gpu_profile import local_costs
from cst_search.petl import get_method
from cst_search.trial.checkpoints import Training, Unusable, restore, save
from cst_search.trial.cost import context_bytes
from cst_search.trial.engine import (
    EpochStats,
    Precision,
    Scores,
    choose_precision,
    evaluate,
    losses,
    make_lr_schedule,
    make_optimiser,
    train_one_epoch,
)
from cst_search.trial.feature_cache import FrozenFeatures, following, frozen_features
from cst_search.trial.memory_limit import MemoryLimit

OnStep = Callable[[int, int, int], None]

_SAVES = 5  # a trial has this many parts; each but the last ends with a checkpoint, besides those at rungs


@dataclass(frozen=True)
class TrialSetup:
    """Everything that the epochs of a trial depend on, apart from the model.

    Attributes:
        epochs: number of passes over the training split.
        store: disk cache of resized images and feature maps; None: no disk cache.
        rungs: epochs after which the trial is evaluated and writes its checkpoint, whatever the recipe says.
        checkpoint: file to write and to resume from; None: no checkpoint.
        recorded: history of the trial in its study, which the checkpoint must agree with; None: it is in none.
        on_step: called after each batch with the epoch, the number of its batches so far, and how many it has.
    """

    recipe: Recipe
    data: DetectionData
    epochs: int
    device: torch.device
    store: Store | None
    rungs: tuple[int, ...]
    checkpoint: Path | None
    recorded: Sequence[Mapping[str, Any]] | None = None
    on_step: OnStep | None = None

    @cached_property
    def context_bytes(self) -> int:
        """CUDA context of the process; 0 on a CPU."""
        if self.device.type != "cuda":
            return 0
        return context_bytes(self.recipe, len(self.data.class_names), gpu=local_costs())

    @cached_property
    def precision(self) -> Precision:
        """Numeric precision of a step on this device."""
        return choose_precision(self.recipe.precision, self.device)

    @property
    def evaluated(self) -> set[int]:
        """Epochs, counted from 1, after which the trial is evaluated."""
        always = (*self.rungs, self.epochs)
        return {e for e in range(1, self.epochs + 1) if e % self.recipe.eval_every == 0 or e in always}

    @property
    def saved(self) -> set[int]:
        """Epochs, counted from 1, after which the checkpoint is written: at every fifth of the trial and at rungs."""
        part = -(-self.epochs // _SAVES)
        return {*self.rungs, *range(part, self.epochs, part)}

    def images(self, split: str, *, training: bool = False) -> CocoImages:
        """Return the images of a split, resized and (for training) flipped and augmented as the recipe says."""
        return CocoImages(
            self.data.splits[split],
            image_size_px=self.recipe.image_size_px,
            max_size_px=self.recipe.max_size_px,
            hflip=training and self.recipe.hflip,
            augmentation=self.recipe.augmentation if training else PRESETS["none"],
            store=self.store,
        )

    def identity(self) -> dict[str, Any]:
        """Return the values that must be equal for a trial to resume from a checkpoint."""
        return {
            "recipe": self.recipe.to_dict(),
            "epochs": self.epochs,
            "classes": list(self.data.class_names),
            "images": {name: len(split.images) for name, split in self.data.splits.items()},
            "device": self.device.type,
        }


@dataclass
class TrialProgress:
    """Progress of a trial; also read after a failure.

    Attributes:
        stage: present activity of the trial, for people.
        model: the detector; None until it is built.
        history: one dict per epoch, see `TrialResult`.
        scores: scores of the last evaluation, by split.
        begun, trained_from: `time.perf_counter` times in this process at which the trial and its training began.
        before: seconds and peaks of the trial up to the checkpoint it resumed from.
        stopped: ``report`` ended the trial.
    """

    stage: str = "building the model"
    model: nn.Module | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    scores: dict[str, Scores] = field(default_factory=dict)
    begun: float = field(default_factory=time.perf_counter)
    trained_from: float = field(default_factory=time.perf_counter)
    limit: MemoryLimit | None = None
    before: dict[str, Any] = field(default_factory=dict)
    stopped: bool = False
    notes: list[str] = field(default_factory=list)

    def taken(self, device: torch.device) -> dict[str, Any]:
        """Return seconds and peak bytes of the whole trial so far; a peak is None if it is not measured."""
        now = time.perf_counter()
        held = self.limit.peak_bytes() if self.limit is not None else None
        peaks = {
            "held_bytes": held,
            "reserved_bytes": held if device.type == "cuda" else None,
            "active_bytes": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        }
        return {
            "seconds": now - self.begun + self.before.get("seconds", 0.0),
            "train_seconds": now - self.trained_from + self.before.get("train_seconds", 0.0),
        } | {name: max((p for p in (peak, self.before.get(name)) if p is not None), default=None)
             for name, peak in peaks.items()}  # fmt: skip


def image_losses(model: nn.Module, setup: TrialSetup) -> Iterator[Tensor]:
    """Yield the training loss of each image, in the order of the first epoch."""
    images = loader(setup.images("train", training=True), batch_size=1, shuffle=True, seed=setup.recipe.seed)
    yield from losses(model, images, device=setup.device, precision=setup.precision)


def run_epochs(progress: TrialProgress, model: nn.Module, setup: TrialSetup) -> Iterator[dict[str, Any]]:
    """Train and evaluate, yielding the history entry of every epoch. A resumed trial first repeats its last entry."""
    recipe, train, val = setup.recipe, setup.images("train", training=True), setup.images("val")
    n_batches = -(-len(train) // recipe.batch_size)
    lr = recipe.lr if recipe.lr is not None else get_method(recipe.method).lr
    optimiser = make_optimiser(model, lr, recipe.weight_decay)
    lr_schedule = make_lr_schedule(optimiser, setup.epochs * -(-n_batches // recipe.accumulate), recipe.warmup)
    scaler = torch.amp.GradScaler(setup.device.type, enabled=setup.precision.scaled)
    evaluated, saved = setup.evaluated, setup.saved
    features = frozen_features(
        model, recipe, setup.store, {train: setup.epochs, val: len(evaluated)},
        device=setup.device, precision=setup.precision,
    )  # fmt: skip
    training = Training(model, optimiser, lr_schedule, scaler, setup.device)
    if _go_on(progress, setup, training):
        # the search may have been killed before it stored its decision on stopping here
        yield progress.history[-1]
    for epoch in range(len(progress.history) + 1, setup.epochs + 1):
        progress.stage = f"training, epoch {epoch}"
        stats = _train_epoch(training, setup, train, features, epoch, n_batches)
        entry: dict[str, Any] = {
            "epoch": epoch,
            "loss": stats.loss,
            "images_per_second": stats.images_per_second,
            "grad_norm": stats.max_grad_norm,
        }
        if epoch in evaluated:
            progress.stage = f"evaluating, epoch {epoch}"
            progress.scores["val"] = score = evaluate_split(model, setup, val, features)
            entry |= {"map": score.map, "map50": score.map50}
        progress.history.append(entry)
        taken = progress.taken(setup.device) if epoch in saved else {}
        if epoch in setup.rungs:
            entry |= _so_far(taken, setup)
        if setup.checkpoint is not None and epoch in saved:  # before the report, which may end this process
            _write(progress, setup.checkpoint, setup.identity(), training, taken)
        yield entry
    if features is not None:
        features.detach()


def _train_epoch(
    training: Training, setup: TrialSetup, train: CocoImages, features: FrozenFeatures | None, epoch: int,
    n_batches: int,
) -> EpochStats:  # fmt: skip
    recipe = setup.recipe
    batches = loader(
        train, batch_size=recipe.batch_size, shuffle=True, seed=recipe.seed, epoch=epoch - 1,
        workers=recipe.loader_workers, pin_memory=setup.device.type == "cuda",
    )  # fmt: skip
    return train_one_epoch(
        training.model,
        following(features, train, batches),
        training.optimiser,
        training.schedule,
        training.scaler,
        device=setup.device,
        precision=setup.precision,
        accumulate=recipe.accumulate,
        clip_norm=recipe.clip_norm,
        n_batches=n_batches,
        after_step=None if setup.on_step is None else lambda n: setup.on_step(epoch, n, n_batches),  # type: ignore[misc]
    )


def _so_far(taken: dict[str, Any], setup: TrialSetup) -> dict[str, Any]:
    """Return the additional figures of a history entry at a rung: seconds and peaks so far."""
    reserved = taken["reserved_bytes"]
    if reserved is None:
        return {"seconds": taken["seconds"]}
    return {"seconds": taken["seconds"], "device_bytes": reserved + setup.context_bytes,
            "reserved_bytes": reserved, "active_bytes": taken["active_bytes"]}  # fmt: skip


def _write(
    progress: TrialProgress, path: Path, identity: dict[str, Any], training: Training, taken: dict[str, Any]
) -> None:
    scores = {split: asdict(score) for split, score in progress.scores.items()}
    found = {"history": progress.history, "scores": scores, "before": taken | {"epochs": len(progress.history)}}
    try:
        save(path, identity, training, found)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's, when the disk is full
        progress.notes.append(f"its checkpoint could not be written: {str(error).splitlines()[0]}")


def _go_on(progress: TrialProgress, setup: TrialSetup, training: Training) -> bool:
    """Resume a trial from its checkpoint. Returns False if there is none, or none that can be used."""
    path = setup.checkpoint
    if path is None or not path.exists():
        return False
    try:
        found = restore(path, setup.identity(), training, setup.recorded)
    except Unusable as error:
        progress.notes.append(f"began anew: {path.name} was left aside, as {error}")
        return False
    progress.history, progress.before = found["history"], found["before"]
    progress.scores = {split: Scores(**score) for split, score in found["scores"].items()}
    return True


def evaluate_split(
    model: nn.Module, setup: TrialSetup, images: CocoImages, features: FrozenFeatures | None = None
) -> Scores:
    """Return the COCO scores of a model on the images of a split."""
    recipe = setup.recipe
    batch_size = images_evaluated_at_once(recipe.batch_size, recipe.max_detections)
    batches = loader(images, batch_size=batch_size, shuffle=False, seed=0, workers=recipe.loader_workers)
    return evaluate(
        model,
        following(features, images, batches),
        coco_ground_truth(images.split),
        setup.data.category_ids,
        device=setup.device,
        precision=setup.precision,
        max_detections=recipe.max_detections,
    )
