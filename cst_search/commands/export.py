"""Write a point of the front as a self-contained recipe, after a short training run that verifies it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cst_search.commands.next_steps import train_command
from cst_search.commands.output import Say
from cst_search.config.loading import make_recipe, write_yaml
from cst_search.config.recipe import Recipe
from cst_search.errors import ConfigError, RunError, StudyError
from cst_search.import_path import program
from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.states import TrialState
from cst_search.study.wording import format_quality, no_trial_yet, over_seeds_words
from cst_search.trial.cost import with_former_recompute
from cst_search.trial.result import Outcome
from cst_search.units import format_bytes, format_count, format_seconds


def pick_trial(info: StudyInfo, pick: str | None) -> TrialRecord:
    """Return the trial that ``--pick`` names: ``knee``, ``best`` or ``trial=N``; None: the one that `front` suggests.

    ``best`` has the highest mAP on the front, where confirmed points count with the mean over their seeds. Trial N must
    be complete. Raises ConfigError, StudyError.
    """
    pick = info.suggested_pick() if pick is None else pick
    if pick.startswith("trial="):
        number = pick.removeprefix("trial=")
        record = info.by_number(int(number)) if number.isdecimal() and len(number) < 10 else None
        complete = [r.trial for r in info.trials if r.state == TrialState.COMPLETE]
        if record is None or record.trial not in complete:
            state = f"is {record.state}" if record else "does not exist"
            raise ConfigError(f"--pick {pick[:40]}: trial {number[:34]} {state}; complete are {complete}")
        return record
    if pick not in ("knee", "best"):
        raise ConfigError(f"--pick takes knee, best or trial=N; got {pick!r}")
    if (picked := info.picked(pick)) is None:
        raise StudyError(no_trial_yet(info))
    return picked


def exported_recipe(info: StudyInfo, record: TrialRecord) -> Recipe:
    """Return the study's recipe with the trial's configuration and its origin."""
    recipe = make_recipe(info.recipe, f"recipe of study {info.name!r}")
    recipe = recipe.configured(with_former_recompute(record.config, recipe))
    origin: dict[str, Any] = {
        "study": info.name,
        "trial": record.trial,
        "config": dict(record.config),
        "searched_epochs": len(record.history),
        "map": record.map,
        "map50": record.map50,
        "device_bytes": record.device_bytes,
        "memory_source": record.memory_source,
        "trainable_params": record.trainable_params,
        "petl_params": record.petl_params,
    }
    brief = info.brief(record)
    if brief["n_seeds"] > 1:
        origin |= {key: brief[key] for key in ("n_seeds", "map_mean", "map_std")}
    return make_recipe(recipe.to_dict() | {"origin": origin}, f"trial {record.trial} of {info.name!r}")


def export(info: StudyInfo, pick: str | None, path: Path, verified: Mapping[str, Any] | None = None) -> TrialRecord:
    """Write the recipe of the picked trial. Raises ConfigError, StudyError.

    Args:
        verified: result of `verify`. It goes into ``origin``, and the memory it measured replaces the record's.
    """
    record = pick_trial(info, pick)
    recipe = exported_recipe(info, record)
    if verified is not None:
        origin = {**(recipe.origin or {}), "verified": dict(verified)}
        if verified["memory_source"] == "measured":
            origin |= {key: verified[key] for key in ("device_bytes", "memory_source")}
        recipe = make_recipe(recipe.to_dict() | {"origin": origin}, f"trial {record.trial} of {info.name!r}")
    confirmed = over_seeds_words(info.brief(record))
    header = (
        f"{train_command(info, path.name)}\n\n"
        f"Trial {record.trial} of study {info.shown_name}: map {format_quality(record.map)} after "
        f"{len(record.history)} epochs, {confirmed + ', ' if confirmed else ''}{format_bytes(record.device_bytes)} "
        f"({record.memory_source}), {format_count(record.trainable_params)} trainable parameters."
    )
    try:
        write_yaml(path, recipe.to_dict(), header)
    except OSError as error:
        raise ConfigError(f"--output {path}: cannot be written: {error.strerror}") from error
    return record


def export_verified(
    info: StudyInfo, pick: str | None, path: Path, home: Path, *, verify_first: bool = True,
    say: Say = lambda line: None,
) -> tuple[TrialRecord, dict[str, Any] | None]:  # fmt: skip
    """Verify the picked trial, then write its recipe. Returns the trial and the result of `verify`.

    Args:
        say: gets a line at the beginning of the verification, and while it lasts.

    Raises:
        ConfigError, StudyError: there is no such trial, or the file cannot be written.
        RunError: the trial differs from its record, or does not train.
    """
    record = pick_trial(info, pick)
    check_output(path)
    verified = None
    if verify_first:
        with _telling(f"verifying trial {record.trial}: a few training steps on the worst batch", say):
            verified = verify(info, record, home)
    return export(info, pick, path, verified), verified


def check_output(path: Path) -> None:
    """Raise ConfigError if a file cannot be written there, before work that would be lost."""
    there = next(parent for parent in path.absolute().parents if parent.exists())
    if path.is_dir() or not there.is_dir() or not os.access(there, os.W_OK):
        raise ConfigError(f"--output {path}: cannot be written; choose a file in a folder of yours")


# --- verified -------------------------------------------------------------------------------------------------------

_TELL_SECONDS = 10.0


@contextmanager
def _telling(what: str, say: Say) -> Iterator[None]:
    """Say what is being done, and every `_TELL_SECONDS` for how long."""
    over, begun = threading.Event(), time.monotonic()

    def tell() -> None:
        while not over.wait(_TELL_SECONDS):
            say(f"still verifying, {format_seconds(time.monotonic() - begun)}")

    say(f"{what} ...")
    teller = threading.Thread(target=tell, name="verifying", daemon=True)
    teller.start()
    try:
        yield
    finally:
        over.set()
        teller.join()


def verify(info: StudyInfo, record: TrialRecord, home: Path) -> dict[str, Any]:
    """Train a configuration for a few steps in a fresh process, on the worst batch of the study's dataset.

    On a GPU the process is limited to the budget, as the trial was. Without a GPU the steps still show that it trains,
    and the memory is the predicted one.

    Args:
        home: folder of the demo dataset and of the cache of checked images.

    Returns:
        ``device``, ``torch``, ``data`` (dataset or synthetic), ``steps``, ``step_seconds``, ``loss``, ``device_bytes``
        and ``memory_source``, as `export` takes them.

    Raises:
        RunError: the configuration does not train, its parameters differ from the record, or its memory is above the
            budget; the message has the figures.
        StudyError: the dataset is gone, and the study does not hold its image sizes.
    """
    recipe, budget = exported_recipe(info, record), info.budget.memory_bytes
    inputs = _inputs(info, recipe, home)
    with tempfile.TemporaryDirectory(prefix="cst-search-") as folder:
        file = Path(folder) / "recipe.json"
        file.write_text(json.dumps(recipe.to_dict()), encoding="utf-8")
        command = [*program("cst_search.trial.measure", "main"), str(file), *inputs]
        if budget is not None:
            command += ["--budget-mem", f"{budget}B"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    found = _figures(done)
    measured = found["memory_source"] == "measured"
    by_device = found["process_source"] == "nvidia-smi"  # measured for this process, context included
    n_bytes = found["process_bytes" if by_device else "device_bytes"] if measured else found["predicted_bytes"]
    faults = []
    if found["outcome"] == Outcome.OOM and measured:
        n_bytes = max(n_bytes, found["device_bytes"])
        faults.append(f"memory ran out ({found['reason']})")
    elif found["outcome"] != Outcome.COMPLETE:
        faults.append(f"it does not train here: {found['reason']}")
    for name, label in (("trainable_params", "trainable parameters"), ("petl_params", "parameters of the method")):
        if found[name] != getattr(record, name):
            faults.append(f"it has {found[name]:,} {label}, in the record {getattr(record, name):,}")
    # memory that the trial measured outweighs a prediction made now
    if budget is not None and n_bytes > budget and (measured or record.memory_source == "predicted"):
        faults.append(
            f"it needs {format_bytes(n_bytes)} ({found['memory_source']}) on {found['device']}, {n_bytes - budget:,} "
            f"bytes above the budget of {format_bytes(budget)}"
        )
    if faults:
        raise RunError(
            f"trial {record.trial} of study {info.name!r} was not exported: {'; '.join(faults)}. "
            f"Pick another one, or write it as it is recorded with --no-verify"
        )
    kept = {name: found[name] for name in ("device", "torch", "steps", "step_seconds", "loss", "memory_source")}
    return kept | {"device_bytes": n_bytes, "data": "dataset" if inputs[0] == "--data" else "synthetic"}


def _inputs(info: StudyInfo, recipe: Recipe, home: Path) -> list[str]:
    """Return the arguments that give `measure` its input: the study's dataset, or noise of its sizes if it is gone."""
    folder = Path(recipe.data)
    if recipe.data == "demo":
        from cst_search.data.demo import write_demo

        folder = write_demo(home / "demo-data")
    if folder.is_dir():
        return ["--data", str(folder), "--cache", str(home / "checked-images.json")]
    if not info.inputs:  # the study is of a version that did not store them
        raise StudyError(
            f"the dataset of study {info.name!r} is not at {folder}, and an export is verified with it; "
            f"put it there, or give --no-verify"
        )
    from cst_search.memory.estimate import worst_input

    sizes = tuple((int(height), int(width)) for height, width in info.inputs["sizes"])
    shape = worst_input(recipe, sizes, info.inputs["max_boxes"])
    values = {"n-classes": info.inputs["n_classes"], "height": shape.height_px, "width": shape.width_px,
              "boxes": shape.max_boxes}  # fmt: skip
    return [word for name, value in values.items() for word in (f"--{name}", str(value))]


def _figures(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """Parse the JSON line that `measure` printed. Raises RunError with its output if there is none."""
    lines = done.stdout.strip().splitlines()
    if lines and lines[-1].startswith("{"):
        return json.loads(lines[-1])
    said = done.stderr.strip().splitlines()
    why = said[-1] if said else "it said nothing"
    if done.returncode < 0:
        why = f"its process ended by {signal.Signals(-done.returncode).name}, perhaps as this machine's memory ran out"
    raise RunError(f"the configuration could not be verified: {why}. --no-verify writes it as it is recorded")
