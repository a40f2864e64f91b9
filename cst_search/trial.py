"""One trial: a recipe and a dataset in, a result out. It does not know that it is searched for.

It needs torch, torchvision and pycocotools only, and runs alone:

    python -m cst_search.trial trials/demo.yaml --data DIR     (PyYAML to read the recipe)
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from cst_search.data import CocoImages, DetectionData, coco_ground_truth, loader
from cst_search.detector import build_detector, count_parameters
from cst_search.engine import (
    NonFiniteLoss,
    Scores,
    choose_precision,
    evaluate,
    make_optimiser,
    make_schedule,
    train_one_epoch,
)
from cst_search.memory import CONTEXT_BYTES
from cst_search.petl import get_method
from cst_search.recipe import Recipe


@dataclass(frozen=True)
class TrialResult:
    """What a trial ended with.

    Attributes:
        outcome: ``complete``; ``oom`` (memory ran out); ``nonfinite`` (loss or gradient not a number). The last two are
            results with a reason, not exceptions.
        map, map50: of the last evaluation, 0..1; None when none was reached.
        device_bytes, reserved_bytes, active_bytes: measured peaks on a GPU, None on a CPU. See DESIGN words: active is
            live tensors, reserved the caching allocator's, device adds the context.
        seconds: wall time; ``train_seconds`` is the part spent in training and evaluation.
        history: one dict per epoch: epoch, loss, lr, images_per_second, and map, map50 where evaluated.
        final: further figures of the last evaluation, per split.
    """

    outcome: str
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

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def choose_device(name: str = "auto") -> torch.device:
    """``auto`` is CUDA where there is one, else the CPU."""
    return torch.device(("cuda" if torch.cuda.is_available() else "cpu") if name == "auto" else name)


def run_trial(
    recipe: Recipe,
    data: DetectionData,
    *,
    epochs: int | None = None,
    device: str = "auto",
    report: Callable[[dict[str, Any]], None] | None = None,
    keep: Callable[[nn.Module], None] | None = None,
    final_splits: tuple[str, ...] = ("val",),
) -> TrialResult:
    """Train a recipe on ``train`` and evaluate it on ``val``.

    The same recipe, data, device and number of threads give the same result on a CPU, bit for bit.

    Args:
        epochs: passes over the training split; None: the recipe's full length.
        report: called after every epoch with that epoch's dict of ``history``.
        keep: called once with the trained model.
        final_splits: splits whose full scores go into ``final``; one beside ``val`` costs its evaluation.

    Returns:
        A result also when memory runs out or the loss is not finite; every other fault is raised.
    """
    begun = time.perf_counter()
    epochs = recipe.epochs if epochs is None else epochs
    target = choose_device(device)
    if target.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(target)
    model = build_detector(recipe, len(data.class_names))
    petl_params, trainable_params = count_parameters(model)
    history: list[dict[str, Any]] = []
    scores: dict[str, Scores] = {}
    outcome, reason = "complete", None
    work_begun = time.perf_counter()
    try:
        model.to(target)
        for entry, score in _epochs(model, recipe, data, epochs, target):
            history.append(entry)
            if score is not None:
                scores["val"] = score
            if report is not None:
                report(entry)
        for split in final_splits:
            if split not in scores and split in data.splits:
                scores[split] = _evaluate(model, recipe, data, _images(recipe, data, split), target)
    except torch.OutOfMemoryError as error:
        outcome, reason = "oom", str(error).splitlines()[0]
    except NonFiniteLoss as error:
        outcome, reason = "nonfinite", str(error)
    train_seconds = time.perf_counter() - work_begun
    if keep is not None and outcome == "complete":
        keep(model)
    val = scores.get("val")
    reserved = torch.cuda.max_memory_reserved(target) if target.type == "cuda" else None
    return TrialResult(
        outcome=outcome,
        petl_params=petl_params,
        trainable_params=trainable_params,
        map=val.map if val else None,
        map50=val.map50 if val else None,
        loss=history[-1]["loss"] if history else None,
        device_bytes=reserved + CONTEXT_BYTES if reserved is not None else None,
        reserved_bytes=reserved,
        active_bytes=torch.cuda.max_memory_allocated(target) if target.type == "cuda" else None,
        images_per_second=history[-1]["images_per_second"] if history else None,
        seconds=time.perf_counter() - begun,
        train_seconds=train_seconds,
        epochs=len(history),
        reason=reason,
        device=torch.cuda.get_device_name(target) if target.type == "cuda" else "cpu",
        history=history,
        final={split: asdict(score) for split, score in scores.items()},
    )


def _images(recipe: Recipe, data: DetectionData, split: str) -> CocoImages:
    return CocoImages(
        data.splits[split],
        image_size_px=recipe.image_size_px,
        max_size_px=recipe.max_size_px,
        hflip=recipe.hflip and split == "train",
    )


def _epochs(
    model: nn.Module, recipe: Recipe, data: DetectionData, epochs: int, device: torch.device
) -> Iterator[tuple[dict[str, Any], Scores | None]]:
    """Yield (history entry, scores of ``val`` if it was evaluated) after every epoch."""
    precision = choose_precision(recipe.precision, device)
    train, val = _images(recipe, data, "train"), _images(recipe, data, "val")
    n_batches = -(-len(train) // recipe.batch_size)
    lr = recipe.lr if recipe.lr is not None else get_method(recipe.method).lr
    optimiser = make_optimiser(model, lr, recipe.weight_decay)
    schedule = make_schedule(optimiser, epochs * -(-n_batches // recipe.accumulate), recipe.warmup)
    scaler = torch.amp.GradScaler(device.type, enabled=precision.scaled)
    for epoch in range(epochs):
        stats = train_one_epoch(
            model,
            loader(
                train,
                batch_size=recipe.batch_size,
                shuffle=True,
                seed=recipe.seed,
                epoch=epoch,
                workers=recipe.loader_workers,
                pin_memory=device.type == "cuda",
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
        score = None
        if (epoch + 1) % recipe.eval_every == 0 or epoch + 1 == epochs:
            score = _evaluate(model, recipe, data, val, device)
            entry |= {"map": score.map, "map50": score.map50}
        yield entry, score


def _evaluate(
    model: nn.Module, recipe: Recipe, data: DetectionData, images: CocoImages, device: torch.device
) -> Scores:
    return evaluate(
        model,
        loader(images, batch_size=recipe.batch_size, shuffle=False, seed=0, workers=recipe.loader_workers),
        coco_ground_truth(images.split),
        data.category_ids,
        device=device,
        precision=choose_precision(recipe.precision, device),
    )


def main() -> None:
    import argparse
    import json

    import yaml

    from cst_search.data import load_data

    parser = argparse.ArgumentParser(description="Run one trial without ray, optuna or mlflow and print its result.")
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--data", required=True)
    parser.add_argument("--epochs", type=int)
    args = parser.parse_args()
    data, _ = load_data(args.data)
    recipe = Recipe(**yaml.safe_load(args.recipe.read_text()))
    result = run_trial(recipe, data, epochs=args.epochs, report=lambda entry: print(json.dumps(entry), flush=True))
    print(json.dumps(result.to_dict(), indent=2))


if __name__ == "__main__":
    main()
