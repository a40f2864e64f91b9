"""Train the recipes of a plan one after the other, and pack the trained detectors into one bundle.

A folder that holds the whole run of a recipe is left as it is, so the same command continues after a stop, and a plan
of another budget trains only the points that it does not share with earlier plans.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from cst_search.commands.output import Say
from cst_search.config.loading import Settings, apply_settings, load_recipe
from cst_search.config.recipe import Recipe
from cst_search.detector.bundle import Bundle, check_task_name
from cst_search.detector.trained_file import WEIGHTS, read_trained
from cst_search.errors import ConfigError, RunError
from cst_search.study.wording import format_quality
from cst_search.trial.result import Outcome
from cst_search.units import format_bytes

Train = Callable[[Recipe, Path], dict[str, Any]]  # `train`, from a recipe and a folder to the metrics


class TrainedPlan(NamedTuple):
    """The folder and the metrics of each task's run, and the bundle of all of them."""

    runs: dict[str, Path]
    metrics: dict[str, dict[str, Any]]
    bundle: Bundle


def train_plan(files: Mapping[str, Path], settings: Settings, folder: Path, train: Train, say: Say) -> TrainedPlan:
    """Train each recipe into ``FOLDER/runs/trial-N/NAME`` unless that was done before, then pack ``FOLDER/bundle``.

    Args:
        files: recipes by task.
        settings: fields to change in every recipe, as in `train`.

    Raises:
        ConfigError: a name or a recipe is unsuitable, data are missing, or a run's folder holds another recipe's;
            nothing was trained.
        RunError: a training ended without a result; the others are done, and nothing was packed.
    """
    recipes = {name: apply_settings(load_recipe(path), settings, path.name) for name, path in files.items()}
    runs = {name: folder / "runs" / f"trial-{_trial(recipe)}" / name for name, recipe in recipes.items()}
    done = {name: metrics for name in files if (metrics := _whole_run(recipes[name], runs[name])) is not None}
    _check(recipes, done)
    failed = []
    for place, (name, recipe) in enumerate(recipes.items(), 1):
        if name in done:
            say(f"{name} ({place} of {len(recipes)}): trained before, {runs[name]}")
            continue
        say(f"{name} ({place} of {len(recipes)}): training into {runs[name]}")
        done[name] = train(recipe, runs[name])
        if done[name]["outcome"] != Outcome.COMPLETE:
            failed.append(f"{name}: {done[name]['reason']}")
    if failed:
        raise RunError(f"not packed, as training ended without a result: {'; '.join(failed)}; the others are trained")
    bundle = pack_plan(runs, folder / "bundle")
    for name in files:
        say(f"{name}: map {format_quality(done[name]['map'])}, {format_bytes(bundle.tasks[name]['bytes'])}")
    say(f"bundle {bundle.folder}: {len(bundle.tasks)} task(s), {format_bytes(bundle.total_bytes())} with what they "
        f"start from")  # fmt: skip
    return TrainedPlan(runs, {name: done[name] for name in files}, bundle)


def pack_plan(runs: Mapping[str, Path], folder: Path) -> Bundle:
    """Pack the runs of a plan, replacing tasks of an earlier plan. Returns the bundle."""
    bundle = Bundle(folder)
    same = {name for name in bundle.tasks if name in runs and bundle.holds(name, runs[name])}
    gone = [name for name in bundle.tasks if name not in same]
    bundle.change([(name, run) for name, run in runs.items() if name not in same], gone)
    return bundle


def _trial(recipe: Recipe) -> int:
    """Return the trial of its study that a recipe is."""
    assert recipe.origin is not None  # `allocate` wrote it
    return int(recipe.origin["trial"])


def _check(recipes: Mapping[str, Recipe], done: Mapping[str, Any]) -> None:
    """Raise ConfigError for what would stop a training after hours of others."""
    for name in recipes:
        check_task_name(name)
    missing = [f"{recipe.data} of {name}" for name, recipe in recipes.items()
               if name not in done and recipe.data != "demo" and not Path(recipe.data).is_dir()]  # fmt: skip
    if missing:
        raise ConfigError(f"to train, the data must be where the study had them; missing: {', '.join(missing)}")


def _whole_run(recipe: Recipe, run: Path) -> dict[str, Any] | None:
    """Return the metrics of a recipe's finished training; None: there is none. One that failed is removed.

    Raises ConfigError if the folder holds the run of another recipe, or its weights cannot be read.
    """
    metrics_file, recipe_file = run / "metrics.json", run / "recipe.yaml"
    if not metrics_file.exists():
        return None
    try:
        metrics = json.loads(metrics_file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"{metrics_file} cannot be read ({error}); remove {run} to train again") from error
    if replace(load_recipe(recipe_file), origin=None) != replace(recipe, origin=None):
        raise ConfigError(f"{run} holds the run of another recipe; choose another --output folder, or remove it")
    if metrics["outcome"] == Outcome.COMPLETE:
        read_trained(run / WEIGHTS)
        return metrics
    for path in (metrics_file, recipe_file, run / WEIGHTS):
        path.unlink(missing_ok=True)
    return None
