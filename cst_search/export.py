"""From a point of the front to a recipe that is complete by itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cst_search.config import make_recipe, write_yaml
from cst_search.errors import ConfigError, StudyError
from cst_search.recipe import Recipe
from cst_search.results import StudyInfo, TrialRecord
from cst_search.units import format_bytes, format_count


def pick_trial(info: StudyInfo, pick: str) -> TrialRecord:
    """``knee``, ``best`` (highest mAP on the front) or ``trial=N`` (complete). Raises ConfigError, StudyError."""
    if pick.startswith("trial="):
        number = pick.removeprefix("trial=")
        record = info.by_number(int(number)) if number.isdecimal() else None
        complete = [r.trial for r in info.trials if r.state == "complete"]
        if record is None or record.trial not in complete:
            state = f"is {record.state}" if record else "does not exist"
            raise ConfigError(f"--pick {pick}: trial {number} {state}; complete are {complete}")
        return record
    if pick not in ("knee", "best"):
        raise ConfigError(f"--pick takes knee, best or trial=N; got {pick!r}")
    front = info.front()
    if not front:
        raise StudyError(
            f"study {info.name!r} has no feasible complete trial yet; run `cst-search launch --study {info.name}`"
        )
    if pick == "best":
        return front[0]
    knee = info.knee()
    return next(record for record in front if record.trial == knee)


def exported_recipe(info: StudyInfo, record: TrialRecord) -> Recipe:
    """The study's recipe with the trial's configuration, and where it comes from."""
    recipe = make_recipe(info.recipe, f"recipe of study {info.name!r}").configured(record.config)
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
    return make_recipe(recipe.to_dict() | {"origin": origin}, f"trial {record.trial} of {info.name!r}")


def export(info: StudyInfo, pick: str, path: Path) -> TrialRecord:
    """Write the recipe of the picked trial. Raises ConfigError, StudyError."""
    record = pick_trial(info, pick)
    recipe = exported_recipe(info, record)
    header = (
        f"cst-search train {path.name} --data {recipe.data} --out {path.stem}\n\n"
        f"Trial {record.trial} of study {info.name}: map {record.map:.3f} after {len(record.history)} epochs, "
        f"{format_bytes(record.device_bytes)} ({record.memory_source}), "
        f"{format_count(record.trainable_params)} trainable parameters."
    )
    try:
        write_yaml(path, recipe.to_dict(), header)
    except OSError as error:
        raise ConfigError(f"--output {path}: cannot be written: {error.strerror}") from error
    return record
