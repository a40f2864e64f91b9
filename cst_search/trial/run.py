"""One trial: a recipe and a dataset in, a result out. It does not know that it is searched for.

It needs torch, torchvision and pycocotools only, and runs alone:

    python -m cst_search.trial trials/demo.yaml --data DIR     (PyYAML to read the recipe)
"""

from __future__ import annotations

import gc
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from cst_search.config.recipe import DEVICES, Recipe
from cst_search.data.coco import CocoImages, DetectionData, coco_ground_truth, loader
from cst_search.data.disk_cache import Cache, Store, default_bound
from cst_search.detector.build import build_detector, count_parameters, prepare
from cst_search.errors import ConfigError, check_choice
from cst_search.memory.estimate import CONTEXT_BYTES
from cst_search.petl import get_method
from cst_search.trial.checkpoints import Training, Unusable, restore, save
from cst_search.trial.engine import (
    NonFiniteLoss,
    Scores,
    choose_precision,
    evaluate,
    losses,
    make_optimiser,
    make_schedule,
    train_one_epoch,
)
from cst_search.trial.feature_cache import FrozenFeatures, following, frozen_features
from cst_search.trial.memory_limit import MemoryLimit, memory_limit
from cst_search.trial.outcome import Outcome
from cst_search.units import format_bytes

_SAVES = 5  # parts of a trial, after each of which but the last its checkpoint is written, rungs aside


@dataclass(frozen=True)
class TrialResult:
    """What a trial ended with.

    Attributes:
        outcome: ``complete``; ``stopped`` (``report`` said so); ``oom`` (memory ran out); ``nonfinite`` (loss or
            gradient not a number). The last two are results with a reason, not exceptions.
        map, map50: of the last evaluation, 0..1; None when none was reached.
        device_bytes, reserved_bytes, active_bytes: measured peaks on a GPU, None on a CPU. See DESIGN words: active is
            live tensors, reserved the caching allocator's, device adds the context; of ``oom``, device adds what was
            refused too.
        limit_bytes, held_bytes: what the trial was held to, and the most it had of that: of the allocator on a GPU, of
            what a process grew by on a CPU. See `memory_limit`.
        stage, asked_bytes: of ``oom``, what it was doing, and the allocation that was refused, if its message says so.
        seconds: wall time; ``train_seconds`` is the part spent in training and evaluation.
        history: one dict per epoch: epoch, loss, grad_norm, images_per_second; map, map50 where evaluated; at a rung
            seconds so far, and on a GPU the peaks so far.
        final: further figures of the last evaluation, per split.
        notes: what the cache did and why, and what was odd about the checkpoint, one line each.
        resumed_epochs: epochs that a checkpoint held. Seconds, peaks and history are those of the whole trial.
    """

    outcome: Outcome
    petl_params: int
    trainable_params: int
    map: float | None = None
    map50: float | None = None
    loss: float | None = None
    device_bytes: int | None = None
    reserved_bytes: int | None = None
    active_bytes: int | None = None
    images_per_second: float | None = None
    seconds: float = 0.0
    train_seconds: float = 0.0
    epochs: int = 0
    reason: str | None = None
    device: str = "cpu"
    history: list[dict[str, Any]] = field(default_factory=list)
    final: dict[str, Any] = field(default_factory=dict)
    limit_bytes: int | None = None
    held_bytes: int | None = None
    asked_bytes: int | None = None
    stage: str | None = None
    notes: list[str] = field(default_factory=list)
    resumed_epochs: int = 0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU. To be called before anything is on the GPU."""
    device = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)
    if device.type == "cuda":
        _expand_segments()
    return device


def _expand_segments() -> None:
    """Have CUDA's allocator grow its segments, if nobody has set how it works.

    It then held 1.02 to 1.28 times what lives, without it 1.03 to 1.64 times (40 configurations on an H100,
    benchmarks/results/). Under WSL an allocation that is refused can come as another error then, so not there.
    """
    names = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF")  # the second is that of torch 2.9 and later
    if sys.platform == "linux" and "microsoft" not in platform.release().lower() and torch.version.hip is None:
        if not any(name in os.environ for name in names):
            os.environ[names[0]] = "expandable_segments:True"


def check_device(name: str) -> torch.device:
    """The device of ``--device``. Raises ConfigError: there is no GPU."""
    check_choice("--device", name, DEVICES)
    device = choose_device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: torch sees no GPU here; use --device cpu or check the driver with nvidia-smi")
    return device


def allowance(bound_bytes: int, device: torch.device, flag: str) -> int:
    """What `run_trial` is to be held to for a bound on its process: on a GPU the context is taken off.

    Raises:
        ConfigError: nothing would be left, naming the flag.
    """
    if device.type != "cuda":
        return bound_bytes
    if bound_bytes <= CONTEXT_BYTES:
        raise ConfigError(
            f"{flag} must be above the {format_bytes(CONTEXT_BYTES)} that CUDA itself takes of a GPU; "
            f"got {format_bytes(bound_bytes)}"
        )
    return bound_bytes - CONTEXT_BYTES


@dataclass
class _Work:
    """What a trial has reached; it is read after a trial that broke, too.

    ``before`` holds what it took before the checkpoint that it goes on from: seconds and peaks.
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
        """Seconds and peaks of the whole trial so far; a peak is None where nothing is measured."""
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


def run_trial(
    recipe: Recipe,
    data: DetectionData,
    *,
    epochs: int | None = None,
    device: str = "auto",
    report: Callable[[dict[str, Any]], object] | None = None,
    keep: Callable[[nn.Module], None] | None = None,
    final_splits: tuple[str, ...] = ("val",),
    memory_limit_bytes: int | None = None,
    cache: Cache | None = None,
    rungs: tuple[int, ...] = (),
    checkpoint: Path | None = None,
) -> TrialResult:
    """Train a recipe on ``train`` and evaluate it on ``val``.

    The same recipe, data, device and number of threads give the same result on a CPU, bit for bit, also when the trial
    was stopped or killed on the way and went on from its checkpoint.

    Args:
        epochs: passes over the training split; None: the recipe's full length.
        report: called after every epoch with that epoch's dict of ``history``, and again with the last one when the
            trial goes on from a checkpoint. If it returns False the trial ends there.
        keep: called once with the trained model.
        final_splits: splits whose full scores go into ``final``; one beside ``val`` costs its evaluation.
        memory_limit_bytes: what the trial is held to, see `memory_limit`: the allocator on a GPU, the growth of this
            process on a CPU, where all of the process is bound by it.
        cache: where to keep resized images and the maps of a frozen body; None: images in this process, maps nowhere.
        rungs: epochs after which it is evaluated whatever ``eval_every`` says, and its checkpoint is written.
        checkpoint: the file, written at every fifth of the epochs too. If it is there the trial goes on from it; one
            that cannot be used is noted in the result.

    Returns:
        A result also when memory runs out or the loss is not finite; every other fault is raised.
    """
    work = _Work()
    target = choose_device(device)
    if target.type == "cuda":
        gc.collect()  # of a trial that raised
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(target)
    store = None if cache is None else Store(cache)
    outcome, reason, asked = Outcome.COMPLETE, None, None
    with memory_limit(target, memory_limit_bytes) as limit:
        work.limit = limit
        if limit.kind == "process":  # one that loads images inherits it, and, refused a thread, would never answer
            recipe = replace(recipe, loader_workers=0)
        try:
            _train_and_score(
                work, recipe, data, recipe.epochs if epochs is None else epochs, target, report, final_splits, store,
                rungs, checkpoint,
            )  # fmt: skip
            outcome = Outcome.STOPPED if work.stopped else Outcome.COMPLETE
        except NonFiniteLoss as error:
            outcome, reason = Outcome.NONFINITE, str(error)
        except Exception as error:
            refusal = limit.refusal(error)
            if refusal is None:
                raise
            outcome, reason, asked = Outcome.OOM, refusal.reason, refusal.asked_bytes
    # the exception is gone, and with it the frames that held tensors
    train_seconds = work.taken(target)["train_seconds"]
    if work.model is None:  # it could not even be built
        with torch.device("meta"):
            petl_params, trainable_params = count_parameters(
                build_detector(recipe, len(data.class_names), shapes_only=True)
            )
    else:
        petl_params, trainable_params = count_parameters(work.model)
        if keep is not None and outcome == Outcome.COMPLETE:
            keep(work.model)
    val, history = work.scores.get("val"), work.history
    taken = work.taken(target)
    reserved = taken["reserved_bytes"]
    result = TrialResult(
        outcome=outcome,
        petl_params=petl_params,
        trainable_params=trainable_params,
        map=val.map if val else None,
        map50=val.map50 if val else None,
        loss=history[-1]["loss"] if history else None,
        device_bytes=reserved + (asked or 0) + CONTEXT_BYTES if reserved is not None else None,
        reserved_bytes=reserved,
        active_bytes=taken["active_bytes"],
        images_per_second=history[-1]["images_per_second"] if history else None,
        seconds=taken["seconds"],
        train_seconds=train_seconds,
        epochs=len(history),
        reason=reason,
        device=torch.cuda.get_device_name(target) if target.type == "cuda" else "cpu",
        history=history,
        final={split: asdict(score) for split, score in work.scores.items()},
        limit_bytes=limit.limit_bytes,
        held_bytes=taken["held_bytes"],
        asked_bytes=asked,
        stage=work.stage if outcome == Outcome.OOM else None,
        notes=[*([] if store is None else store.notes), *work.notes],
        resumed_epochs=work.before.get("epochs", 0),
    )
    if outcome != Outcome.COMPLETE:  # the next trial in this process finds it as this one did
        work.model = None
        gc.collect()
        if target.type == "cuda":
            torch.cuda.empty_cache()
    return result


def _train_and_score(
    work: _Work, recipe: Recipe, data: DetectionData, epochs: int, device: torch.device,
    report: Callable[[dict[str, Any]], object] | None, final_splits: tuple[str, ...], store: Store | None,
    rungs: tuple[int, ...], checkpoint: Path | None,
) -> None:  # fmt: skip
    model = build_detector(recipe, len(data.class_names))
    work.model, work.trained_from = model, time.perf_counter()
    model.to(device)
    work.stage = "preparing the method"
    prepare(model, recipe, _image_losses(model, recipe, data, device, store))
    for entry in _epochs(work, model, recipe, data, epochs, device, store, rungs, checkpoint):
        if report is not None and report(entry) is False:
            work.stopped = True
            return
    for split in final_splits:
        if split not in work.scores and split in data.splits:
            work.stage = f"evaluating {split}"
            work.scores[split] = _evaluate(model, recipe, data, _images(recipe, data, split, store), device)


def _images(recipe: Recipe, data: DetectionData, split: str, store: Store | None) -> CocoImages:
    return CocoImages(
        data.splits[split],
        image_size_px=recipe.image_size_px,
        max_size_px=recipe.max_size_px,
        hflip=recipe.hflip and split == "train",
        store=store,
    )


def _image_losses(
    model: nn.Module, recipe: Recipe, data: DetectionData, device: torch.device, store: Store | None
) -> Iterator[Tensor]:
    """The training loss of one image after the other, in the order of the first epoch."""
    images = loader(_images(recipe, data, "train", store), batch_size=1, shuffle=True, seed=recipe.seed)
    yield from losses(model, images, device=device, precision=choose_precision(recipe.precision, device))


def _epochs(
    work: _Work, model: nn.Module, recipe: Recipe, data: DetectionData, epochs: int, device: torch.device,
    store: Store | None, rungs: tuple[int, ...], checkpoint: Path | None,
) -> Iterator[dict[str, Any]]:  # fmt: skip
    """Yield the history's entry after every epoch, and first the last one of a checkpoint."""
    precision = choose_precision(recipe.precision, device)
    train, val = (_images(recipe, data, split, store) for split in ("train", "val"))
    n_batches = -(-len(train) // recipe.batch_size)
    lr = recipe.lr if recipe.lr is not None else get_method(recipe.method).lr
    optimiser = make_optimiser(model, lr, recipe.weight_decay)
    schedule = make_schedule(optimiser, epochs * -(-n_batches // recipe.accumulate), recipe.warmup)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.scaled)
    evaluated = {epoch for epoch in range(1, epochs + 1) if epoch % recipe.eval_every == 0 or epoch in (*rungs, epochs)}
    features = frozen_features(
        model, recipe, store, {train: epochs, val: len(evaluated)}, device=device, precision=precision
    )
    part = -(-epochs // _SAVES)
    saved = {*rungs, *range(part, epochs, part)}
    training = Training(model, optimiser, schedule, scaler, device)
    identity = _identity(recipe, data, epochs, device)
    if checkpoint is not None and _go_on(work, checkpoint, identity, training):
        # whoever decided whether to stop there may have been killed before it was known
        yield work.history[-1]
    for epoch in range(len(work.history), epochs):
        work.stage = f"training, epoch {epoch + 1}"
        stats = train_one_epoch(
            model,
            following(
                features,
                train,
                loader(
                    train,
                    batch_size=recipe.batch_size,
                    shuffle=True,
                    seed=recipe.seed,
                    epoch=epoch,
                    workers=recipe.loader_workers,
                    pin_memory=device.type == "cuda",
                ),
            ),
            optimiser,
            schedule,
            scaler,
            device=device,
            precision=precision,
            accumulate=recipe.accumulate,
            clip_norm=recipe.clip_norm,
            n_batches=n_batches,
        )
        entry: dict[str, Any] = {
            "epoch": epoch + 1,
            "loss": stats.loss,
            "images_per_second": stats.images_per_second,
            "grad_norm": stats.max_grad_norm,
        }
        if epoch + 1 in evaluated:
            work.stage = f"evaluating, epoch {epoch + 1}"
            work.scores["val"] = score = _evaluate(model, recipe, data, val, device, features)
            entry |= {"map": score.map, "map50": score.map50}
        work.history.append(entry)
        taken = work.taken(device) if epoch + 1 in saved else {}
        if epoch + 1 in rungs:
            entry["seconds"] = taken["seconds"]
            if (reserved := taken["reserved_bytes"]) is not None:
                entry |= {"device_bytes": reserved + CONTEXT_BYTES, "reserved_bytes": reserved,
                          "active_bytes": taken["active_bytes"]}  # fmt: skip
        if checkpoint is not None and epoch + 1 in saved:  # before the report: who stops it may end this process
            _write(work, checkpoint, identity, training, taken)
        yield entry
    if features is not None:
        features.detach()


def _identity(recipe: Recipe, data: DetectionData, epochs: int, device: torch.device) -> dict[str, Any]:
    """What must be the same for a trial to go on from a checkpoint."""
    return {
        "recipe": recipe.to_dict(),
        "epochs": epochs,
        "classes": list(data.class_names),
        "images": {name: len(split.images) for name, split in data.splits.items()},
        "device": device.type,
    }


def _write(work: _Work, path: Path, identity: dict[str, Any], training: Training, taken: dict[str, Any]) -> None:
    scores = {split: asdict(score) for split, score in work.scores.items()}
    found = {"history": work.history, "scores": scores, "before": taken | {"epochs": len(work.history)}}
    try:
        save(path, identity, training, found)
    except (OSError, RuntimeError) as error:  # RuntimeError: torch's, when the disk is full
        work.notes.append(f"its checkpoint could not be written: {str(error).splitlines()[0]}")


def _go_on(work: _Work, path: Path, identity: dict[str, Any], training: Training) -> bool:
    """Bring a trial to where its checkpoint was written; False: there is none, or none that can be used."""
    if not path.exists():
        return False
    try:
        found = restore(path, identity, training)
    except Unusable as error:
        work.notes.append(f"began anew: {path.name} was left aside, as {error}")
        return False
    work.history, work.before = found["history"], found["before"]
    work.scores = {split: Scores(**score) for split, score in found["scores"].items()}
    return True


def _evaluate(
    model: nn.Module, recipe: Recipe, data: DetectionData, images: CocoImages, device: torch.device,
    features: FrozenFeatures | None = None,
) -> Scores:  # fmt: skip
    batches = loader(images, batch_size=recipe.batch_size, shuffle=False, seed=0, workers=recipe.loader_workers)
    return evaluate(
        model,
        following(features, images, batches),
        coco_ground_truth(images.split),
        data.category_ids,
        device=device,
        precision=choose_precision(recipe.precision, device),
    )


def main() -> None:
    import argparse
    import json

    import yaml

    from cst_search.data.coco import load_data
    from cst_search.errors import UserError
    from cst_search.units import parse_bytes

    parser = argparse.ArgumentParser(description="Run one trial without ray, optuna or mlflow and print its result.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--limit-mem", help="as in cst-search launch, such as 6GB")
    parser.add_argument("--cache", type=Path, help="folder to keep resized images and frozen maps in, up to 10 GB")
    args = parser.parse_args()
    try:
        limit = args.limit_mem and allowance(parse_bytes(args.limit_mem), choose_device(), "--limit-mem")
        data, _ = load_data(args.data)
        recipe = Recipe.from_dict(yaml.safe_load(args.recipe.read_text()))
    except UserError as error:
        parser.exit(error.exit_code, f"{error}\n")
    result = run_trial(
        recipe, data, epochs=args.epochs, memory_limit_bytes=limit,
        cache=args.cache and Cache(args.cache, default_bound(args.cache)),
        report=lambda entry: print(json.dumps(entry), flush=True),
    )  # fmt: skip
    print(json.dumps(result.to_dict(), indent=2))
