"""One trial: a recipe and a dataset in, a result out. It does not know that it is searched for.

It needs torch, torchvision and pycocotools only, and runs alone:

    python -m cst_search.trial trials/demo.yaml --data DIR     (PyYAML to read the recipe)
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.data.disk_cache import Cache, Store
from cst_search.detector.build import build_detector, count_parameters, prepare
from cst_search.trial.device import choose_device, without_context
from cst_search.trial.engine import NonFiniteLoss
from cst_search.trial.epochs import OnStep, TrialProgress, TrialSetup, evaluate_split, image_losses, run_epochs
from cst_search.trial.memory_limit import memory_limit
from cst_search.trial.result import Outcome, TrialResult

Report = Callable[[dict[str, Any]], object]


class _Ending(NamedTuple):
    outcome: Outcome
    reason: str | None = None
    asked_bytes: int | None = None


def run_trial(
    recipe: Recipe,
    data: DetectionData,
    *,
    epochs: int | None = None,
    device: str = "auto",
    report: Report | None = None,
    keep: Callable[[nn.Module], None] | None = None,
    final_splits: tuple[str, ...] = ("val",),
    memory_limit_bytes: int | None = None,
    cache: Cache | None = None,
    rungs: tuple[int, ...] = (),
    checkpoint: Path | None = None,
    recorded: Sequence[Mapping[str, Any]] | None = None,
    on_step: OnStep | None = None,
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
        memory_limit_bytes: bound of the trial's memory: of all that the process takes of a GPU; on a CPU of the growth
            of this process, see `memory_limit`.
        cache: where to keep resized images and the feature maps of a frozen backbone; None: images in this process,
            feature maps nowhere.
        rungs: epochs after which it is evaluated whatever ``eval_every`` says, and its checkpoint is written.
        checkpoint: the file, written at every fifth of the epochs too. If it exists the trial goes on from it; one
            that cannot be used is noted in the result.
        recorded: history of the trial in its study, which the checkpoint must agree with; None: it is in none.
        on_step: called after each batch; see `TrialSetup`.

    Returns:
        A result also when memory runs out or the loss is not finite; every other fault is raised.
    """
    progress, target = TrialProgress(), choose_device(device)
    if target.type == "cuda":
        gc.collect()  # of a trial that raised
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(target)
    store = None if cache is None else Store(cache)
    length = recipe.epochs if epochs is None else epochs
    setup = TrialSetup(recipe, data, length, target, store, rungs, checkpoint, recorded, on_step)
    with memory_limit(target, without_context(memory_limit_bytes, setup.context_bytes)) as progress.limit:
        if progress.limit.kind == "process":  # one that loads images inherits it, and, refused a thread, never answers
            setup = replace(setup, recipe=replace(recipe, loader_workers=0))
        ending = _attempt(progress, setup, report, final_splits)
    # the exception is gone, and with it the frames that held tensors
    return _concluded(progress, setup, ending, keep)


def _attempt(
    progress: TrialProgress, setup: TrialSetup, report: Report | None, final_splits: tuple[str, ...]
) -> _Ending:
    """Train and score; a loss that is not finite and memory that ran out are endings, every other fault is raised."""
    assert progress.limit is not None
    try:
        _train_and_score(progress, setup, report, final_splits)
    except NonFiniteLoss as error:
        return _Ending(Outcome.NONFINITE, str(error))
    except Exception as error:
        refusal = progress.limit.refusal(error)
        if refusal is None:
            raise
        return _Ending(Outcome.OOM, refusal.reason, refusal.asked_bytes)
    return _Ending(Outcome.STOPPED if progress.stopped else Outcome.COMPLETE)


def _train_and_score(
    progress: TrialProgress, setup: TrialSetup, report: Report | None, final_splits: tuple[str, ...]
) -> None:
    model = build_detector(setup.recipe, len(setup.data.class_names), setup.data.class_names)
    progress.model, progress.trained_from = model, time.perf_counter()
    model.to(setup.device)
    progress.stage = "preparing the method"
    prepare(model, setup.recipe, image_losses(model, setup))
    for entry in run_epochs(progress, model, setup):
        if report is not None and report(entry) is False:
            progress.stopped = True
            return
    for split in final_splits:
        if split not in progress.scores and split in setup.data.splits:
            progress.stage = f"evaluating {split}"
            progress.scores[split] = evaluate_split(model, setup, setup.images(split))


def _concluded(
    progress: TrialProgress, setup: TrialSetup, ending: _Ending, keep: Callable[[nn.Module], None] | None
) -> TrialResult:
    """Keep the model of a complete trial, free the memory of any other, and sum the trial up."""
    device = setup.device
    train_seconds = progress.taken(device)["train_seconds"]
    petl_params, trainable_params = _counted(progress, setup)
    if progress.model is not None and keep is not None and ending.outcome == Outcome.COMPLETE:
        keep(progress.model)
    val, history, taken = progress.scores.get("val"), progress.history, progress.taken(device)
    reserved, limit = taken["reserved_bytes"], progress.limit
    result = TrialResult(
        outcome=ending.outcome,
        petl_params=petl_params,
        trainable_params=trainable_params,
        map=val.map if val else None,
        map50=val.map50 if val else None,
        loss=history[-1]["loss"] if history else None,
        device_bytes=reserved + (ending.asked_bytes or 0) + setup.context_bytes if reserved is not None else None,
        reserved_bytes=reserved,
        active_bytes=taken["active_bytes"],
        images_per_second=history[-1]["images_per_second"] if history else None,
        seconds=taken["seconds"],
        train_seconds=train_seconds,
        epochs=len(history),
        reason=ending.reason,
        device=torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        history=history,
        final={split: asdict(score) for split, score in progress.scores.items()},
        limit_bytes=None if limit is None else limit.limit_bytes,
        held_bytes=taken["held_bytes"],
        asked_bytes=ending.asked_bytes,
        stage=progress.stage if ending.outcome == Outcome.OOM else None,
        notes=[*([] if setup.store is None else setup.store.notes), *progress.notes],
        resumed_epochs=progress.before.get("epochs", 0),
    )
    if ending.outcome != Outcome.COMPLETE:  # the next trial in this process finds it as this one did
        progress.model = None
        gc.collect()
        if device.type == "cuda":
            torch.cuda.empty_cache()
    return result


def _counted(progress: TrialProgress, setup: TrialSetup) -> tuple[int, int]:
    """(the method's parameters, all trainable ones), also of a model that could not even be built."""
    if progress.model is not None:
        return count_parameters(progress.model)
    with torch.device("meta"):
        return count_parameters(build_detector(setup.recipe, len(setup.data.class_names), shapes_only=True))
