"""What the person may say of a launch, and how it is read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cst_search.config.catalog import home_of
from cst_search.config.loading import RecipeLike, Settings, SpaceLike
from cst_search.config.recipe import DEVICES
from cst_search.errors import ConfigError, StudyError, check_choice
from cst_search.search.samplers import SAMPLERS
from cst_search.study.records import Budget, StudyInfo
from cst_search.study.study import ETA, Study
from cst_search.units import parse_bytes, parse_count, parse_seconds


@dataclass(frozen=True)
class LaunchOptions:
    """What the command line says. ``None``: chosen by `launch`.

    Attributes:
        limit_bytes: what the process of a trial is held to. On a GPU device bytes, and the budget's where None; on a
            CPU what it may grow by, and None is no limit: its memory is not the GPU's that the budget is about.
        cache_bytes: of images and maps that trials share, in ``home / "cache"``; 0: nothing is shared.
        eta: of early stopping; see `results.StudySpec`.
        of_study: the study to go on with, whose recipe and space are taken rather than these; see `resumed`.
        address: of the Ray cluster that runs the trials, as `cluster.Cluster` takes it; None: this machine does.
    """

    budget: Budget
    home: Path
    data: str | None = None
    recipe: RecipeLike | None = None
    space: SpaceLike = "cst"
    settings: Settings = ()
    study: str | None = None
    trials: int = 16
    time_limit_seconds: float | None = None
    seed: int = 0
    workers: int | None = None
    device: str = "auto"
    objectives: str = "map,device_bytes,trainable_params"
    sampler: str | None = None
    storage: str | None = None
    tracking_uri: str | None = None
    skip_bad: bool = False
    in_process: bool = False
    limit_bytes: int | None = None
    cache_bytes: int | None = None
    eta: int | None = None
    of_study: StudyInfo | None = None
    address: str | None = None


def launch_options(
    *,
    home: Path | str | None,
    budget_mem: str | float | None,
    budget_params: str | float | None,
    time_limit: str | float | None,
    limit_mem: str | float | None,
    cache_size: str | float | None,
    stop_early: bool | None,
    eta: int | None,
    settings: Settings | None,
    **others: Any,
) -> LaunchOptions:
    """Options as a person or a program gives them, units as text or as numbers. Raises UserError: one is misspelt.

    Args:
        others: fields of `LaunchOptions` as they are.
    """
    if eta is not None and stop_early is False:
        raise ConfigError(f"--eta {eta} says how trials are stopped early, and --no-stop-early that none is; give one")
    check_choice("--device", others["device"], DEVICES)
    if others["sampler"] is not None:
        check_choice("--sampler", others["sampler"], SAMPLERS)
    return LaunchOptions(
        budget=Budget(
            None if budget_mem is None else parse_bytes(budget_mem),
            None if budget_params is None else parse_count(budget_params),
        ),
        home=home_of(home),
        settings=settings or (),
        time_limit_seconds=None if time_limit is None else parse_seconds(time_limit),
        limit_bytes=None if limit_mem is None else parse_bytes(limit_mem),
        cache_bytes=parse_cache(cache_size),
        eta=0 if stop_early is False else eta or (ETA if stop_early else None),
        **others,
    )


def parse_cache(size: str | float | None) -> int | None:
    """Bytes of ``--cache-size``; 0: nothing is shared. Raises UnitError."""
    if size is None:
        return None
    return 0 if str(size).strip() == "0" else parse_bytes(size)


def resumed(study: Study, home: Path, n_trials: int | None, **others: Any) -> LaunchOptions:
    """Options of a launch that goes on with a study: of what it was made with nothing may change.

    Args:
        n_trials: that the study shall have in the end; None: as many as its last launch was to reach.
        others: of `launch_options`, as far as a study does not fix them; what is left out has its default.

    Raises:
        StudyError: nobody said how many.
        UserError: as `launch_options`.
    """
    unsaid = dict.fromkeys(
        ("budget_mem", "budget_params", "time_limit", "limit_mem", "cache_size", "stop_early", "eta", "settings",
         "sampler")
    )  # fmt: skip
    options = launch_options(**(unsaid | {"device": "auto", "home": home} | others))
    info = study.info()
    n_trials = n_trials or study.n_wanted()
    if n_trials is None:
        raise StudyError(f"study {info.name!r} does not say how many trials it shall have; give --trials N")
    return replace(
        options,
        trials=n_trials,
        of_study=info,
        study=info.name,
        budget=info.budget,
        data=None if info.data == "demo" else info.data,
        objectives=",".join(objective.name for objective in info.objectives),
        seed=info.seed,
        limit_bytes=info.limit_bytes,
    )
