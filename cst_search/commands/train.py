"""Train a recipe at full length with the trial code of a search, and write weights, metrics and recipe."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from cst_search.commands.budget_survey import estimator
from cst_search.commands.checks import check_tracking
from cst_search.commands.dataset import open_data, settle_detections
from cst_search.commands.options import ReadingOptions
from cst_search.commands.output import line_printer
from cst_search.config.catalog import check_folder, own_path
from cst_search.config.loading import RecipeLike, Settings, apply_settings, load_recipe, shown_name, write_yaml
from cst_search.config.recipe import Recipe
from cst_search.cores import busy_words, n_cores
from cst_search.data.dataset import DetectionData
from cst_search.data.disk_cache import Cache, open_cache
from cst_search.detector.build import check_weights
from cst_search.detector.weights import save_trained
from cst_search.errors import ConfigError
from cst_search.petl import get_method
from cst_search.report.progress import FOR_DEVELOPERS
from cst_search.report.training import TrainingProgress
from cst_search.study.wording import format_quality
from cst_search.trial.cost import with_recompute
from cst_search.trial.device import check_device
from cst_search.trial.result import TrialResult
from cst_search.trial.run import run_trial
from cst_search.units import format_bytes, format_count, format_seconds


def train(
    given: RecipeLike,
    folder: Path,
    *,
    data: str | None,
    settings: Settings,
    device: str,
    skip_bad: bool,
    home: Path,
    tracking_uri: str | None,
    cache_bytes: int | None = None,
    reading: ReadingOptions,
    threads: int | None = None,
    is_alone: bool = True,
    console: Console,
) -> dict[str, Any]:
    """Train and write ``weights.safetensors``, ``metrics.json`` and ``recipe.yaml``. Returns the metrics.

    A checkpoint is written to the folder after every fifth of the epochs. If the folder holds nothing else, training
    continues from it. A recipe that a study exported is recorded in that study's MLflow experiment.

    Args:
        threads: CPU threads; None: torch's default, one for each core.
        is_alone: False if other trainings follow; then the next command is not suggested.
    """
    say = line_printer(console)
    recipe = _checked_recipe(given, settings, device, data, reading)
    check_tracking(tracking_uri, home)
    checkpoint = folder / "checkpoint.pt"
    _check_free(folder, checkpoint)
    check_folder("--home", home)
    detection = open_data(recipe, home, skip_bad=skip_bad, say=say, also=("test",))
    recipe = settle_detections(recipe, detection, say)
    recipe = _settle_recompute(recipe, detection, device, say)
    start, _ = check_weights(recipe, detection.class_names)  # unsuitable weights fail before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    cache, line = open_cache(home, cache_bytes, n_trials=1)
    say(line)
    say(f"{recipe.detector} {recipe.backbone}, {recipe.method}, {recipe.epochs} epoch(s) on {recipe.data}")
    say(start)
    _set_threads(threads, device, say)

    weights = folder / "weights.safetensors"
    result = _fit(recipe, detection, weights, checkpoint, device, cache, console)
    metrics = result.to_dict()
    _write_files(folder, recipe, metrics)
    _say_result(result, weights, say, is_alone)
    for path in folder.glob(f"{checkpoint.name}*"):  # with half-written ones of a killed process
        path.unlink()
    _record(recipe, metrics, folder, home, tracking_uri, say)
    return metrics


def _fit(
    recipe: Recipe, detection: DetectionData, weights: Path, checkpoint: Path, device: str, cache: Cache | None,
    console: Console,
) -> TrialResult:  # fmt: skip
    """Train as a trial of a search does, write the weights, and show how far it is."""
    say = line_printer(console)
    with _ending_with_advice(checkpoint, say), TrainingProgress(console, recipe.epochs) as progress:
        return run_trial(
            recipe,
            detection,
            device=device,
            report=lambda entry: say(_epoch_line(entry, recipe.epochs)),
            keep=lambda model: save_trained(model, recipe, detection.class_names, weights),
            final_splits=("val", "test"),
            cache=cache,
            checkpoint=checkpoint,
            on_step=progress,
        )


@contextmanager
def _ending_with_advice(checkpoint: Path, say: Callable[[str], None]) -> Iterator[None]:
    """Say after Ctrl-C how the training goes on."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint.exists():
            say(f"the same command goes on from {checkpoint}")
        raise


def _settle_recompute(recipe: Recipe, data: DetectionData, device: str, say: Callable[[str], None]) -> Recipe:
    """Return the recipe with what it recomputes to fit into the GPU that it trains on, if that is ``auto``."""
    gpu = check_device(device)
    if gpu.type != "cuda":
        return recipe
    estimate, n_bytes = estimator(recipe, data), torch.cuda.get_device_properties(gpu).total_memory
    config = with_recompute({}, recipe, lambda choice: estimate(choice).device_bytes, n_bytes)
    if config.get("recompute", "none") != "none":
        say(f"recompute: auto is {config['recompute']}, to fit into the {format_bytes(n_bytes)} of the GPU")
    return recipe.configured(config)


def _set_threads(threads: int | None, device: str, say: Callable[[str], None]) -> None:
    """Set the CPU threads of this process, and warn if other programs leave no core to them."""
    # torch knows nothing of a container's CPU quota
    torch.set_num_threads(threads or min(torch.get_num_threads(), n_cores()))
    if check_device(device).type != "cpu":
        return
    used = torch.get_num_threads()
    say(f"on {n_cores()} CPU core(s) with {used} thread(s)")
    if busy := busy_words():
        advice = "; with --threads 1 its threads do not wait for one another" if used > 1 else ""
        say(f"note: other programs keep this machine busy ({busy}), so it will take longer{advice}")


def _write_files(folder: Path, recipe: Recipe, metrics: dict[str, Any]) -> None:
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2), encoding="utf-8")
    header = f"cst-search train recipe.yaml --out DIR\n\nmap {metrics['map']} on val after {metrics['epochs']} epochs"
    write_yaml(folder / "recipe.yaml", recipe.to_dict(), header)


def _checked_recipe(
    given: RecipeLike, settings: Settings, device: str, data: str | None, reading: ReadingOptions
) -> Recipe:
    recipe = apply_settings(load_recipe(given), settings, shown_name(given))
    recipe = replace(recipe, **reading.reading_fields())
    get_method(recipe.method).make_options(recipe.options)
    check_device(device)
    return recipe if data is None else replace(recipe, data=data if data == "demo" else str(own_path(data).absolute()))


def _check_free(folder: Path, checkpoint: Path) -> None:
    """Raise ConfigError if a folder holds more than a checkpoint to resume from, or cannot be written."""
    taken = folder.exists() and (
        not folder.is_dir() or not all(path.name.startswith(checkpoint.name) for path in folder.iterdir())
    )
    if taken:
        raise ConfigError(f"--out {folder}: exists and is not empty; choose another folder")
    check_folder("--out", folder)


def _epoch_line(entry: dict[str, Any], n_epochs: int) -> str:
    scores = f", map {format_quality(entry['map'])}, map50 {format_quality(entry['map50'])}" if "map" in entry else ""
    speed = f"{entry['images_per_second']:.1f} images/s"
    return f"epoch {entry['epoch']}/{n_epochs}: loss {entry['loss']:.4f}, {speed}{scores}"


def _say_result(result: TrialResult, weights: Path, say: Callable[[str], None], is_alone: bool) -> None:
    for note in result.notes:
        if not note.startswith(FOR_DEVELOPERS):
            say(note)
    for split, scores in result.final.items():
        say(f"{split}: {', '.join(f'{name} {format_quality(scores[name])}' for name in ('map', 'map50', 'map75'))}")
    if weights.exists():
        say(
            f"{format_count(result.trainable_params)} trained parameters, "
            f"{format_bytes(weights.stat().st_size)} in {weights}, {format_seconds(result.seconds)}"
        )
        if is_alone:
            say(f"next:  cst-search predict {shlex.quote(str(weights.parent))} IMAGE_OR_FOLDER --out pictures")


def _record(
    recipe: Recipe, metrics: dict[str, Any], folder: Path, home: Path, tracking_uri: str | None, say: Any
) -> None:
    origin = recipe.origin
    if origin is None and tracking_uri is None:
        return  # a recipe without a study belongs to no experiment
    from cst_search.tracking.connection import default_tracking_uri
    from cst_search.tracking.mlflow_record import MlflowRecord

    uri = tracking_uri or default_tracking_uri(home)
    record = MlflowRecord(uri, home / "artifacts", warn=say)
    origin = origin or {"study": "training", "trial": None, "config": {}}
    files = [
        path
        for path in (folder / "recipe.yaml", folder / "metrics.json", folder / "weights.safetensors")
        if path.exists()
    ]
    record.training(str(origin["study"]), origin, metrics, files)
    record.close()
