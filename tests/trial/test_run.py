"""One trial from end to end: the same twice, and every way it can end."""

from __future__ import annotations

import dataclasses
import json
import os
import weakref
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from cst_search.config.recipe import AUGMENTATIONS, DETECTORS, Recipe
from cst_search.data.dataset import DetectionData
from cst_search.data.images import CocoImages
from cst_search.detector.build import build_detector, count_parameters
from cst_search.errors import ConfigError
from cst_search.memory import allocator
from cst_search.memory.estimate import CONTEXT_BYTES, CONTEXT_WITH_BLAS_BYTES
from cst_search.petl import METHODS
from cst_search.trial import epochs as loop
from cst_search.trial import run as trial
from cst_search.trial.device import choose_device, without_context
from cst_search.trial.engine import EpochStats
from cst_search.trial.result import TrialResult
from cst_search.trial.run import run_trial

pytestmark = pytest.mark.usefixtures("few_boxes")

Make = Callable[..., Recipe]


def without_times(result: TrialResult) -> dict[str, Any]:
    """All that must repeat: everything but the clock."""

    def drop(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: drop(v) for k, v in value.items() if k not in ("images_per_second", "seconds", "train_seconds")}
        return [drop(item) for item in value] if isinstance(value, list) else value

    return drop(result.to_dict())


@pytest.mark.parametrize("detector", DETECTORS)
def test_the_same_recipe_gives_the_same_result_bit_for_bit(
    tiny_recipe: Make, tiny_data: DetectionData, detector: str
) -> None:
    models: list[dict[str, torch.Tensor]] = []

    def run(seed: int) -> dict[str, Any]:
        torch.rand(3)  # what was drawn before a trial must not matter
        recipe = tiny_recipe(
            detector=detector, seed=seed, epochs=1 if detector.startswith("fasterrcnn") else 2, lr=1e-2
        )
        result = run_trial(recipe, tiny_data, keep=lambda model: models.append(model.state_dict()))
        assert result.outcome == "complete" and result.map is not None
        return without_times(result)

    first, again, other = run(5), run(5), run(6)
    assert first == again
    assert all(torch.equal(models[0][name], models[1][name]) for name in models[0])
    assert first["history"] != other["history"]


# Every method, and every family with two or three of them. All pairs train and detect in tests/detector/test_build.py
# (test_an_image_without_boxes_trains, test_step_0_is_the_pre_trained_detector), and are counted in
# tests/memory/test_estimate.py (test_parameters_are_those_of_the_built_model).
@pytest.mark.parametrize(
    ("detector", "method"), [(DETECTORS[i % len(DETECTORS)], method) for i, method in enumerate(sorted(METHODS))]
)
def test_what_a_result_holds(tiny_recipe: Make, tiny_data: DetectionData, detector: str, method: str) -> None:
    recipe = tiny_recipe(detector=detector, method=method)
    reported: list[dict[str, Any]] = []
    result = run_trial(recipe, tiny_data, report=reported.append)
    assert (result.outcome, result.reason, result.epochs, result.device) == ("complete", None, 1, "cpu")
    assert (result.petl_params, result.trainable_params) == count_parameters(build_detector(recipe, 3))
    assert result.map is not None and 0 <= result.map <= 1
    assert result.loss == result.history[-1]["loss"] > 0 and result.history[-1]["grad_norm"] > 0
    assert reported == result.history
    assert result.device_bytes is result.reserved_bytes is result.active_bytes is None  # nothing is measured on a CPU
    assert 0 < result.train_seconds <= result.seconds
    assert result.final["val"]["map"] == result.map
    assert json.loads(json.dumps(result.to_dict())) == result.to_dict()  # it travels and is stored


@pytest.mark.parametrize(
    ("epochs", "eval_every", "evaluated"),
    [
        (1, 1, [1]),
        (3, 1, [1, 2, 3]),
        (3, 2, [2, 3]),  # the last epoch always
        (2, 5, [2]),
    ],
)
def test_when_it_evaluates(
    tiny_recipe: Make, tiny_data: DetectionData, epochs: int, eval_every: int, evaluated: list[int]
) -> None:
    result = run_trial(tiny_recipe(method="head", eval_every=eval_every), tiny_data, epochs=epochs)
    assert [entry["epoch"] for entry in result.history] == list(range(1, epochs + 1))
    assert [entry["epoch"] for entry in result.history if "map" in entry] == evaluated
    assert result.map == result.history[-1]["map"]


def test_the_recipes_own_length_unless_told(tiny_recipe: Make, tiny_data: DetectionData) -> None:
    recipe = tiny_recipe(method="head", epochs=2, search_epochs=1)
    steps: list[tuple[int, int, int]] = []
    result = run_trial(recipe, tiny_data, on_step=lambda *step: steps.append(step))
    assert result.epochs == 2  # `train` reads epochs; who searches passes search_epochs
    n = -(-len(tiny_data.splits["train"].images) // recipe.batch_size)
    assert steps == [(epoch, step, n) for epoch in (1, 2) for step in range(1, n + 1)]


def test_other_splits_are_scored_when_asked_for(tiny_recipe: Make, tiny_data: DetectionData) -> None:
    result = run_trial(tiny_recipe(method="head"), tiny_data, final_splits=("val", "test", "nowhere"))
    assert list(result.final) == ["val", "test"]
    assert set(result.final["test"]["per_class"]) == set(tiny_data.class_names)


def test_it_learns(tiny_recipe: Make, tiny_data: DetectionData) -> None:
    """The loss of a trial that trains falls well below that of its first epoch."""
    result = run_trial(
        tiny_recipe(method="full", weights="none", lr=5e-3, hflip=False, eval_every=99), tiny_data, epochs=8
    )
    losses = [entry["loss"] for entry in result.history]
    assert losses[-1] < 0.8 * losses[0]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `run_trial` hands to the training loop, which is not run."""
    seen: list[dict[str, Any]] = []

    def spy(model: nn.Module, batches: Any, optimiser: Any, schedule: Any, scaler: Any, **options: Any) -> EpochStats:
        steps = -(-options["n_batches"] // options["accumulate"])
        rates = []
        for _ in range(steps):
            optimiser.step()
            rates.append(optimiser.param_groups[0]["lr"])
            schedule.step()
        seen.append(options | {"rates": rates, "sizes": [len(images) for images, _ in batches], "scaler": scaler})
        return EpochStats(1.0, 1.0, steps, 1.0)

    monkeypatch.setattr(loop, "train_one_epoch", spy)
    return seen


@pytest.mark.parametrize("method", sorted(METHODS))
def test_without_an_lr_the_methods_prior_is_the_peak(
    tiny_recipe: Make, tiny_data: DetectionData, settings: list[dict[str, Any]], method: str
) -> None:
    run_trial(tiny_recipe(method=method), tiny_data)
    assert max(settings[0]["rates"]) == METHODS[method].lr
    run_trial(tiny_recipe(method=method, lr=0.02), tiny_data)
    assert max(settings[1]["rates"]) == 0.02


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "sizes"),
    [(4, 1, [4, 4]), (3, 1, [3, 3, 2]), (3, 2, [3, 3, 2]), (16, 1, [8])],
)
def test_the_schedule_spans_all_updates_of_all_epochs(
    tiny_recipe: Make,
    tiny_data: DetectionData,
    settings: list[dict[str, Any]],
    batch_size: int,
    accumulate: int,
    sizes: list[int],
) -> None:
    recipe = tiny_recipe(method="head", batch_size=batch_size, accumulate=accumulate, clip_norm=2.5, warmup=0.0, lr=1.0)
    run_trial(recipe, tiny_data, epochs=3)
    assert [call["sizes"] for call in settings] == [sizes] * 3
    assert all(call["n_batches"] == len(sizes) and call["clip_norm"] == 2.5 for call in settings)
    rates = [rate for call in settings for rate in call["rates"]]
    n = 3 * -(-len(sizes) // accumulate)
    half_cosine = [0.5 * (1 + torch.cos(torch.tensor(torch.pi * i / n)).item()) for i in range(n)]
    assert rates == pytest.approx(half_cosine, abs=1e-6)


# --- ends that are outcomes ------------------------------------------------------------------------------------------


def failing_in(monkeypatch: pytest.MonkeyPatch, epoch: int, error: BaseException) -> None:
    real, calls = loop.train_one_epoch, []

    def train_one_epoch(*args: Any, **options: Any) -> EpochStats:
        calls.append(1)
        if len(calls) == epoch:
            raise error
        return real(*args, **options)

    monkeypatch.setattr(loop, "train_one_epoch", train_one_epoch)


MIB = 2**20
OOM = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.\nGPU 0 has a total capacity of ...")


@pytest.mark.parametrize("epoch", [1, 2])
def test_running_out_of_memory_is_an_outcome(
    tiny_recipe: Make, tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch, epoch: int
) -> None:
    failing_in(monkeypatch, epoch, OOM)
    kept: list[nn.Module] = []
    recipe = tiny_recipe(method="head")
    result = run_trial(recipe, tiny_data, epochs=2, keep=kept.append)
    assert result.outcome == "oom"
    assert result.reason == "CUDA out of memory. Tried to allocate 20.00 MiB."  # one line
    assert result.epochs == epoch - 1 and (result.map is None) == (epoch == 1)
    assert result.trainable_params == count_parameters(build_detector(recipe, 3))[1]  # known all the same
    assert kept == []  # nothing is saved of a trial that broke
    assert (result.stage, result.asked_bytes) == (f"training, epoch {epoch}", 20 * 2**20)
    json.dumps(result.to_dict())


def raising(error: BaseException) -> Callable[..., Any]:
    def function(*args: Any, **options: Any) -> None:
        raise error

    return function


@pytest.mark.parametrize(
    ("module", "function", "stage"),
    [(trial, "build_detector", "building the model"), (loop, "evaluate", "evaluating, epoch 1")],
)
def test_running_out_of_memory_outside_training_is_an_outcome(
    tiny_recipe: Make, tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch, module: Any, function: str, stage: str
) -> None:
    recipe, real = tiny_recipe(method="head"), build_detector
    expected = count_parameters(build_detector(recipe, 3))
    fails = raising(OOM)
    # the parameters of a model that could not be built are counted on one without contents
    monkeypatch.setattr(module, function, lambda *a, **o: real(*a, **o) if o.get("shapes_only") else fails())
    result = run_trial(recipe, tiny_data)
    assert (result.outcome, result.stage, result.epochs) == ("oom", stage, 0)
    assert (result.petl_params, result.trainable_params) == expected


def test_an_out_of_memory_trial_leaves_no_references(
    tiny_recipe: Make, tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A traceback holds frames, and those the model: the next trial in this process must find it gone."""
    built: list[weakref.ref[nn.Module]] = []

    def build(*args: Any, **options: Any) -> nn.Module:
        model = build_detector(*args, **options)
        model.itself = [model]  # only the garbage collector can free it
        built.append(weakref.ref(model))
        return model

    monkeypatch.setattr(trial, "build_detector", build)
    recipe = tiny_recipe(method="head")
    alone = run_trial(recipe, tiny_data)
    with monkeypatch.context() as patch:
        # a new one: OOM itself would be there afterwards, with its traceback
        patch.setattr(loop, "train_one_epoch", lambda *a, **o: raising(torch.OutOfMemoryError("CUDA out of memory."))())
        assert run_trial(recipe, tiny_data).outcome == "oom"
        assert built[-1]() is None
    assert without_times(run_trial(recipe, tiny_data)) == without_times(alone)


def test_what_a_gpu_measured_when_it_ran_out(
    tiny_recipe: Make, tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peak of the allocator with what was refused, and the context: what the trial would have needed at least."""
    calls: list[Any] = []
    for name, function in {
        "empty_cache": lambda: calls.append("empty"),
        "reset_peak_memory_stats": lambda device: calls.append("reset"),
        "set_per_process_memory_fraction": lambda fraction, device: calls.append(round(fraction, 3)),
        "get_per_process_memory_fraction": lambda device: 1.0,
        "get_device_properties": lambda device: SimpleNamespace(total_memory=1000 * MIB),
        "current_device": lambda: 0,
        "get_device_name": lambda device: "a GPU",
        "memory_stats": lambda device: {},
        "max_memory_reserved": lambda device: 390 * MIB,
        "max_memory_allocated": lambda device: 350 * MIB,
    }.items():
        monkeypatch.setattr(torch.cuda, name, function, raising=False)
    monkeypatch.setattr(trial, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(trial, "_train_and_score", raising(OOM))
    result = run_trial(tiny_recipe(method="head"), tiny_data, memory_limit_bytes=400 * MIB + CONTEXT_BYTES)
    assert calls == ["empty", "reset", "empty", 0.4, 1.0, "empty"]
    assert (result.outcome, result.device) == ("oom", "a GPU")
    assert (result.limit_bytes, result.held_bytes, result.asked_bytes) == (400 * MIB, 390 * MIB, 20 * MIB)
    assert (result.active_bytes, result.reserved_bytes) == (350 * MIB, 390 * MIB)
    assert result.device_bytes == 410 * MIB + CONTEXT_BYTES


@pytest.mark.parametrize(
    ("changes", "context"),
    [
        ({}, CONTEXT_BYTES),
        ({"method": "conv_lora"}, CONTEXT_WITH_BLAS_BYTES),  # its sum of weights is a product of matrices
        ({"detector": "fasterrcnn"}, CONTEXT_WITH_BLAS_BYTES),  # its box head is linear
    ],
    ids=str,
)
def test_a_trial_on_a_gpu_is_held_to_its_bound_without_its_own_context(
    tiny_recipe: Make, tiny_data: DetectionData, changes: dict[str, Any], context: int
) -> None:
    for device, included in (("cuda", context), ("cpu", 0)):
        setup = loop.TrialSetup(tiny_recipe(**changes), tiny_data, 1, torch.device(device), None, (), None)
        assert setup.context_bytes == included
    assert without_context(6 * 10**9, context) == 6 * 10**9 - context
    assert without_context(10, context) == 1 and without_context(None, context) is None


def test_a_learning_rate_far_too_high_is_an_outcome(tiny_recipe: Make, tiny_data: DetectionData) -> None:
    recipe = tiny_recipe(detector="retinanet", lr=9.0, warmup=0.0, clip_norm=1e6, eval_every=99)
    result = run_trial(recipe, tiny_data, epochs=30)
    assert result.outcome == "nonfinite"
    assert result.reason is not None and "a lower lr" in result.reason
    assert result.epochs < 30 and result.map is None
    json.dumps(result.to_dict(), allow_nan=False)  # no NaN got into the record


@pytest.mark.parametrize("error", [RuntimeError("a bug"), KeyboardInterrupt()])
def test_every_other_fault_is_raised(
    tiny_recipe: Make, tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    failing_in(monkeypatch, 1, error)
    with pytest.raises(type(error)):
        run_trial(tiny_recipe(method="head"), tiny_data)


def test_a_wrong_recipe_is_an_error_before_any_work(tiny_recipe: Make, tiny_data: DetectionData) -> None:
    with pytest.raises(ConfigError, match="reduction"):
        run_trial(tiny_recipe(options={"reduction": 0}), tiny_data)


# --- the rest --------------------------------------------------------------------------------------------------------


def test_half_precision_on_a_cpu(tiny_recipe: Make, tiny_data: DetectionData) -> None:
    """There fp16 is bf16. Faster R-CNN only: RetinaNet and FCOS have a P7, which on tiny images is a convolution from
    2 x 2 to 1 x 1, and oneDNN's bf16 gradient of its weight now and then is what lay in memory before (torch 2.15)."""
    result = run_trial(tiny_recipe(detector="fasterrcnn", precision="fp16"), tiny_data)
    assert result.outcome == "complete" and result.loss is not None


@pytest.mark.parametrize("augment", ["none", "strong"])
def test_loader_processes_change_nothing(tiny_recipe: Make, tiny_data: DetectionData, augment: str) -> None:
    recipe = tiny_recipe(method="head", augment=augment)
    alone = run_trial(recipe, tiny_data)
    assert without_times(run_trial(dataclasses.replace(recipe, loader_workers=1), tiny_data)) == without_times(alone)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("augment", [name for name in AUGMENTATIONS if name != "none"])
def test_augmented_images_train(tiny_recipe: Make, tiny_data: DetectionData, detector: str, augment: str) -> None:
    split = tiny_data.splits["train"]
    one_step = {"train": dataclasses.replace(split, images=split.images[:2])}
    data = dataclasses.replace(tiny_data, splits=tiny_data.splits | one_step)
    recipe = tiny_recipe(detector=detector, augment=augment, method="head")
    result = run_trial(recipe, data)
    assert result.outcome == "complete" and result.loss is not None and result.loss > 0


def test_evaluation_is_never_augmented(
    tiny_recipe: Make, tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor flipped, whatever the split."""
    evaluated: list[CocoImages] = []
    evaluate = loop.evaluate_split

    def seen(model: nn.Module, setup: Any, images: CocoImages, *features: Any) -> Any:
        evaluated.append(images)
        return evaluate(model, setup, images, *features)

    for module in (trial, loop):
        monkeypatch.setattr(module, "evaluate_split", seen)
    result = run_trial(tiny_recipe(augment="strong"), tiny_data, final_splits=("train", "val", "test"))
    assert set(result.final) == {"train", "val", "test"} and len(evaluated) == 3
    assert not any(images.augmentation.changes_images or images.hflip for images in evaluated)


def test_choose_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "backend:native")  # or it would be set, and stay
    for there, expected in ((False, "cpu"), (True, "cuda")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda there=there: there)
        assert choose_device() == torch.device(expected)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize(
    ("why", "device", "kernel", "hip", "given", "expected"),
    [
        ("a GPU", "cuda", "6.1.0", None, {}, "expandable_segments:True"),
        ("a CPU has no such allocator", "cpu", "6.1.0", None, {}, None),
        ("under WSL", "cuda", "5.15.90.1-microsoft-standard-WSL2", None, {}, None),
        ("ROCm", "cuda", "6.1.0", "6.2", {}, None),
        ("the person's own", "cuda", "6.1.0", None, {"PYTORCH_CUDA_ALLOC_CONF": "backend:native"}, "backend:native"),
        ("by its newer name", "cuda", "6.1.0", None, {"PYTORCH_ALLOC_CONF": "backend:native"}, None),
    ],
)
def test_segments_of_a_gpu_grow_unless_the_person_says_how(
    monkeypatch: pytest.MonkeyPatch, why: str, device: str, kernel: str, hip: str | None, given: dict[str, str],
    expected: str | None,
) -> None:  # fmt: skip
    for name in ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"):
        monkeypatch.setenv(name, "")  # put back at the end, also where it is set meanwhile
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(allocator.sys, "platform", "linux")
    monkeypatch.setattr(allocator.platform, "release", lambda: kernel)
    monkeypatch.setattr(torch.version, "hip", hip)
    choose_device(device)
    assert os.environ.get("PYTORCH_CUDA_ALLOC_CONF") == expected


def test_evaluation_counts_as_many_detections_as_the_recipe_says(
    tiny_recipe: Make, tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits, evaluate = [], loop.evaluate

    def counted(*args: Any, **options: Any) -> Any:
        limits.append(options["max_detections"])
        return evaluate(*args, **options)

    monkeypatch.setattr(loop, "evaluate", counted)
    usual = run_trial(tiny_recipe(detector="fcos"), tiny_data)
    more = run_trial(tiny_recipe(detector="fcos", detections_per_image=900), tiny_data)
    assert limits == [100, 900]
    assert usual.loss == more.loss, "training is the same"
