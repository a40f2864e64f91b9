"""A few steps on the worst batch: what the batch is, what is reported, and that it runs where there is little."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cst_search.commands.dataset import image_sizes
from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.data.dataset import DetectionData, load_data
from cst_search.detector.build import build_detector, count_parameters
from cst_search.errors import ConfigError
from cst_search.memory.estimate import CONTEXT_BYTES, InputShape, worst_input
from cst_search.trial import measure as module
from cst_search.trial.cost import predict
from cst_search.trial.engine import EpochStats
from cst_search.trial.measure import Batch, dataset_batch, measure, read_recipe, synthetic_batch

Make = Callable[..., Recipe]
CPU = torch.device("cpu")

# --- the batch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("why", "sizes", "batch_size", "expected"),
    [
        ("the largest that the recipe allows", (), 2, (64, 96)),
        ("lying images", ((480, 640),), 2, (64, 96)),
        ("upright ones", ((640, 480),), 2, (96, 64)),
        ("both: no single image is as large", ((480, 640), (640, 480)), 2, (96, 96)),
        ("both, one at a time", ((480, 640), (640, 480)), 1, (64, 96)),
        ("a very wide one", ((100, 640),), 3, (32, 96)),
        ("square", ((50, 50),), 2, (64, 64)),
    ],
)
def test_a_synthetic_batch_has_the_worst_shape(
    tiny_recipe: Make, why: str, sizes: tuple[tuple[int, int], ...], batch_size: int, expected: tuple[int, int]
) -> None:
    recipe = tiny_recipe(batch_size=batch_size)
    shape = worst_input(recipe, sizes, max_boxes=7)
    batch = synthetic_batch(recipe, shape, 3)
    assert (batch.shape.height_px, batch.shape.width_px) in (expected, expected[::-1] if batch_size == 1 else expected)
    assert batch_size == 1 or batch.shape == dataclasses.replace(shape, image_px=None)
    assert len(batch.images) == len(batch.targets) == batch_size
    for image, target in zip(batch.images, batch.targets, strict=True):
        height, width = image.shape[1:]
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        assert len(x1) == 7  # every image is as full as the fullest
        assert (x1 >= 0).all() and (y1 >= 0).all() and (x2 <= width).all() and (y2 <= height).all()
        assert (x2 - x1 >= 8).all() and (y2 - y1 >= 8).all()
        assert target["labels"].min() >= 1 and target["labels"].max() <= 3
    # what the detector itself makes of it
    padded, _ = build_detector(recipe, 3).transform(list(batch.images))  # type: ignore[operator]
    assert tuple(padded.tensors.shape[-2:]) == (batch.shape.height_px, batch.shape.width_px)


def test_a_synthetic_batch_is_the_same_every_time_and_may_be_empty(tiny_recipe: Make) -> None:
    one, other = (synthetic_batch(tiny_recipe(), InputShape(64, 96, 0), 3) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(one.images, other.images, strict=True))
    assert all(target["boxes"].shape == (0, 4) for target in one.targets)


def test_a_shape_that_the_recipe_cannot_give(tiny_recipe: Make) -> None:
    with pytest.raises(ConfigError, match="got 64 x 960, which would be resized to 64 x 96"):
        synthetic_batch(tiny_recipe(), InputShape(64, 960, 1), 3)


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_a_batch_of_the_dataset_is_its_worst(tiny_recipe: Make, tiny_data: DetectionData, batch_size: int) -> None:
    recipe = tiny_recipe(batch_size=batch_size)
    batch = dataset_batch(recipe, tiny_data)
    expected = dataclasses.replace(
        worst_input(recipe, image_sizes(tiny_data), tiny_data.summary()["max_boxes"]), image_px=None
    )
    assert expected == InputShape(96, 96, 3)
    assert batch.shape == (expected if batch_size > 1 else InputShape(96, 64, 3))
    for image, target in zip(batch.images, batch.targets, strict=True):
        assert len(target["boxes"]) == len(target["labels"]) == 3
        assert (target["boxes"].amax(0) <= torch.tensor([*image.shape[:0:-1]] * 2)).all()
    assert not torch.equal(batch.images[0], torch.zeros_like(batch.images[0]))


# --- the steps ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("detector", DETECTORS)
def test_what_is_reported_on_a_cpu(tiny_recipe: Make, detector: str) -> None:
    recipe = tiny_recipe(detector=detector)
    shape = InputShape(64, 96, 5)
    found = measure(recipe, 3, synthetic_batch(recipe, shape, 3), steps=3, device=CPU)
    assert (found.outcome, found.reason, found.device, found.steps) == ("complete", None, "cpu", 3)
    assert (found.petl_params, found.trainable_params) == count_parameters(build_detector(recipe, 3))
    assert (found.height_px, found.width_px, found.max_boxes, found.batch_size) == (64, 96, 5, 2)
    assert found.loss is not None and found.loss > 0 and found.step_seconds is not None and found.step_seconds > 0
    assert (found.memory_source, found.predicted_bytes) == (
        "predicted",
        predict(recipe, 3, shape, evaluates=False).device_bytes,
    )
    assert found.device_bytes is found.reserved_bytes is found.active_bytes is found.process_bytes is None


@pytest.mark.parametrize(
    ("accumulate", "steps", "done"),
    [
        (1, 1, 2),  # in the second step the optimiser has its state
        (1, 5, 5),
        (2, 2, 4),
        (64, 2, 4),  # more than two a time take no more memory
    ],
)
def test_there_are_steps_enough_for_the_peak(
    tiny_recipe: Make, monkeypatch: pytest.MonkeyPatch, accumulate: int, steps: int, done: int
) -> None:
    seen: list[Any] = []

    def train(model: Any, batches: Any, *args: Any, **options: Any) -> EpochStats:
        seen.append((len(list(batches)), options["n_batches"], options["accumulate"]))
        return EpochStats(1.0, 1.0, 1, 1.0)

    monkeypatch.setattr(module, "train_one_epoch", train)
    recipe = tiny_recipe(accumulate=accumulate)
    measure(recipe, 3, synthetic_batch(recipe, InputShape(64, 96, 1), 3), steps=steps, device=CPU)
    assert seen == [(done, done, min(2, accumulate))]


def test_a_loss_that_is_not_finite_is_an_outcome(tiny_recipe: Make) -> None:
    recipe = tiny_recipe()
    batch = synthetic_batch(recipe, InputShape(64, 96, 2), 3)
    broken = Batch(tuple(image * torch.nan for image in batch.images), batch.targets)
    found = measure(recipe, 3, broken, device=CPU)
    assert (found.outcome, found.loss) == ("nonfinite", None)
    assert found.reason is not None and found.reason.startswith("the loss is nan at batch 1")


# --- a GPU ----------------------------------------------------------------------------------------------------------

MIB = 2**20


class Model(torch.nn.Linear):
    def to(self, device: Any) -> Model:  # type: ignore[override]
        return self


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch, tiny_recipe: Make) -> Callable[..., module.Measured]:
    """``on_gpu(smi, error)``: measure as on a GPU of 10,000 MiB with what nvidia-smi prints, by query."""

    def run(smi: list[tuple[str, str]], error: Exception | None = None, **options: Any) -> module.Measured:
        answers = list(smi)

        def ask(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
            query, text = answers.pop(0)
            assert query in command[1]
            if text == "absent":
                raise FileNotFoundError
            return subprocess.CompletedProcess(command, 0, stdout=text)

        def train(*args: Any, **_: Any) -> EpochStats:
            if error is not None:
                raise error
            return EpochStats(1.0, 1.0, 1, 1.0)

        free = iter([(9500 * MIB, 0), (8000 * MIB, 0)])
        for name, function in {
            "get_device_properties": lambda device: SimpleNamespace(total_memory=10_000 * MIB, uuid="7-7"),
            "current_device": lambda: 0,
            "get_device_name": lambda device: "a GPU",
            "mem_get_info": lambda device: next(free),
            "max_memory_reserved": lambda device: 1400 * MIB,
            "max_memory_allocated": lambda device: 1200 * MIB,
            "memory_stats": lambda device: {},
            "reset_peak_memory_stats": lambda device: None,
            "empty_cache": lambda: None,
            "is_bf16_supported": lambda including_emulation: True,
            "get_per_process_memory_fraction": lambda device: 1.0,
            "set_per_process_memory_fraction": lambda fraction, device: None,
        }.items():
            monkeypatch.setattr(torch.cuda, name, function, raising=False)
        monkeypatch.setattr(module.subprocess, "run", ask)
        monkeypatch.setattr(module, "build_detector", lambda *a, **o: Model(2, 2))
        monkeypatch.setattr(module, "count_parameters", lambda model: (1, 2))
        monkeypatch.setattr(module, "prepare", lambda *a: None)
        monkeypatch.setattr(module, "train_one_epoch", train)
        recipe = tiny_recipe()
        batch = synthetic_batch(recipe, InputShape(64, 96, 1), 3)
        found = measure(recipe, 3, batch, device=torch.device("cuda"), **options)
        assert answers == []
        return found

    return run


BEFORE = ("--query-gpu", "GPU-7-7, 300\nGPU-8, 0\n")


@pytest.mark.parametrize(
    ("why", "smi", "n_mib", "source"),
    [
        (
            "the driver lists the process",
            [BEFORE, ("--query-compute-apps", f"1, 5\n{os.getpid()}, 1890\n")],
            1890,
            "nvidia-smi",
        ),
        (
            "in a container it lists others' numbers: the device's own before and after",
            [BEFORE, ("--query-compute-apps", "1, 1890\n"), ("--query-gpu", "GPU-7-7, 2250\nGPU-8, 9\n")],
            1950,
            "nvidia-smi of the device",
        ),
        (
            "or no figure",
            [BEFORE, ("--query-compute-apps", f"{os.getpid()}, [N/A]\n"), ("--query-gpu", "GPU-7-7, 2250\n")],
            1950,
            "nvidia-smi of the device",
        ),
        (
            "there is no nvidia-smi",
            [("--query-gpu", "absent"), ("--query-compute-apps", "absent"), ("--query-gpu", "absent")],
            1500,
            "mem_get_info without context",
        ),
    ],
)
def test_what_the_device_says_of_the_process(
    on_gpu: Any, why: str, smi: list[tuple[str, str]], n_mib: int, source: str
) -> None:
    found = on_gpu(smi)
    assert (found.process_bytes, found.process_source) == (n_mib * MIB, source)
    assert (found.device, found.memory_source) == ("a GPU", "measured")
    assert (found.active_bytes, found.reserved_bytes) == (1200 * MIB, 1400 * MIB)
    assert found.device_bytes == 1400 * MIB + CONTEXT_BYTES


def test_running_out_of_memory_is_an_outcome(on_gpu: Any) -> None:
    smi = [BEFORE, ("--query-compute-apps", f"{os.getpid()}, 1890")]
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB.")
    found = on_gpu(smi, error, memory_limit_bytes=1410 * MIB + CONTEXT_BYTES)
    assert (found.outcome, found.asked_bytes, found.limit_bytes) == ("oom", 20 * MIB, 1410 * MIB)
    assert found.device_bytes == 1420 * MIB + CONTEXT_BYTES
    assert on_gpu([BEFORE, ("--query-compute-apps", f"{os.getpid()}, 1890")]).limit_bytes is None
    with pytest.raises(RuntimeError, match="a bug"):
        on_gpu([BEFORE], RuntimeError("a bug"))


# --- alone ----------------------------------------------------------------------------------------------------------


def run(*arguments: Any, blocked: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys\n"
        f"blocked = {blocked!r}\n"
        "class Refuse:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in blocked: raise ModuleNotFoundError('blocked: ' + name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "from cst_search.trial.measure import main\n"
        "main()\n"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})


def test_it_runs_where_there_is_nothing_but_torch_and_torchvision(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe = tiny_recipe(weights="none", options={"mtc_stages": [5]})
    (tmp_path / "recipe.json").write_text(json.dumps(recipe.to_dict()))
    services = ("pycocotools", "yaml", "safetensors", "ray", "optuna", "mlflow", "pydantic", "typer", "rich", "psutil")
    done = run(tmp_path / "recipe.json", "--n-classes", 3, "--height", 64, "--width", 96, "--boxes", 4, "--steps", 3,
               blocked=services)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = done.stdout.splitlines()
    found = json.loads(line)
    assert found.keys() == {field.name for field in dataclasses.fields(module.Measured)}
    assert (found["outcome"], found["steps"], found["max_boxes"], found["n_classes"]) == ("complete", 3, 4, 3)


@pytest.fixture
def recipe_file(tiny_recipe: Make, tmp_path: Path) -> Path:
    (tmp_path / "recipe.json").write_text(json.dumps(tiny_recipe().to_dict()))
    return tmp_path / "recipe.json"


def call(monkeypatch: pytest.MonkeyPatch, *arguments: Any) -> int:
    """`main` in this process: its exit code."""
    monkeypatch.setattr(sys, "argv", ["measure", *map(str, arguments)])
    with pytest.raises(SystemExit) as end:
        module.main()
    return int(end.value.code or 0)


def test_the_dataset_decides_where_it_is_given(
    recipe_file: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call(monkeypatch, recipe_file, "--data", tiny_folder, "--device", "cpu", "--no-weights") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["n_classes"], found["max_boxes"], found["height_px"], found["width_px"]) == (3, 3, 96, 96)
    assert found["steps"] == 2  # without a GPU there is no memory to measure


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere.json"], "nowhere.json: must hold a recipe"),
        (["{recipe}", "--height", "64"], "--height and --width are given together or not at all"),
        (["{recipe}", "--steps", "0"], "--steps must be a whole number from 1 on; got 0"),
        (["{recipe}", "--boxes", "-1"], "--boxes must be a whole number from 0 on; got -1"),
        (["{recipe}", "--height", "64", "--width", "640"], "which would be resized to 64 x 96"),
        (["{recipe}", "--budget-mem", "6 apples"], "a memory size must be a positive number with a unit"),
        (["{recipe}", "--data", "nowhere"], "the dataset must be a folder; there is no folder nowhere"),
    ],
)
def test_a_mistake_is_one_message(
    recipe_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str],
    said: str,
) -> None:  # fmt: skip
    assert call(monkeypatch, *(word.format(recipe=recipe_file) for word in arguments)) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.out == ""


@pytest.mark.parametrize("text", ["[1, 2]", "{", '{"detector": "yolo"}', '{"colour": 1}'])
def test_a_file_that_is_no_recipe(tmp_path: Path, text: str) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ConfigError):
        read_recipe(tmp_path / "x.json")


def test_a_recipe_in_yaml(tiny_recipe: Make, tmp_path: Path, tiny_folder: Path) -> None:
    (tmp_path / "x.yaml").write_text(json.dumps(tiny_recipe().to_dict()))  # JSON is YAML
    assert read_recipe(tmp_path / "x.yaml") == tiny_recipe()
    assert load_data(tiny_folder)[0].class_names  # the folder that it names
