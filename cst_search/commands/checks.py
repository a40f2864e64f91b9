"""Checks of user input before anything is started."""

from __future__ import annotations

import re
from dataclasses import dataclass
from importlib.metadata import entry_points
from urllib.parse import urlsplit

from cst_search.commands.options import LaunchOptions
from cst_search.config.catalog import check_folder
from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space
from cst_search.errors import ConfigError, StudyError
from cst_search.petl import get_method
from cst_search.redaction import DATABASES_OF_MLFLOW, shown_address
from cst_search.search.samplers import check_sampler
from cst_search.study.objectives import Objective, choose_objectives
from cst_search.study.records import StudyInfo
from cst_search.study.storage import check_storage
from cst_search.study.study import default_storage, list_studies

_STORES = "mlflow.tracking_store"  # entry points of MLflow's plugins, named as their scheme


@dataclass(frozen=True)
class Request:
    """A requested launch after every check that needs no data.

    Attributes:
        storage: database URL of the studies.
        shown_storage: the same URL without its password.
    """

    objectives: tuple[Objective, ...]
    storage: str
    shown_storage: str


def check_request(options: LaunchOptions) -> Request:
    """Check the options of a launch. Raises UserError."""
    if options.of_study is not None:
        check_left(options.of_study, options.trials)
    objectives = choose_objectives(options.objectives)
    if options.sampler is not None:
        check_sampler(options.sampler, objectives)
    storage = options.storage or default_storage(options.home)
    shown_storage = check_storage(storage)
    check_tracking(options.tracking_uri)
    check_folder("--home", options.home)
    if options.study is not None:
        check_name(options.study)
    return Request(tuple(objectives), storage, shown_storage)


def check_tracking(uri: str | None) -> None:
    """Raise UserError if MLflow does not accept the address. The server need not answer: a study is kept without it."""
    if uri is None:
        return
    try:
        parts = urlsplit(uri)
        kind, server = parts.scheme.partition("+")[0], bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # the port is not a number
        kind, server = "http", False
    if kind in DATABASES_OF_MLFLOW:
        check_storage(uri, "--tracking-uri", DATABASES_OF_MLFLOW)
        return
    others = {"", "file", "databricks", "databricks-uc", "uc"} | {e.name for e in entry_points(group=_STORES)}
    if not uri.strip() or not (server if kind in ("http", "https") else kind in others):
        raise ConfigError(
            f"--tracking-uri takes a server such as http://host:5000, or a database URL such as sqlite:///mlflow.db; "
            f"got {shown_address(uri)!r}"
        )


def check_space(space: Space, recipe: Recipe, where: str) -> None:
    """Raise ConfigError if the recipe or a method rejects a value of the search space, before any trial runs."""
    for config in space.ends():
        try:
            configured = recipe.configured(config)
            get_method(configured.method).make_options(configured.options)
        except ConfigError as error:
            raise ConfigError(f"search space {where!r}, method {config['method']}: {error}") from error


_NAME = re.compile(r"^[^/\\]{1,100}$")


# names in --home that are not folders of studies
_TAKEN = ("studies.db", "mlflow.db", "artifacts", "demo-data", "checked-images.json", "val-splits.json", "cache")


def check_name(name: str) -> None:
    """Raise ConfigError if a study cannot have this name. The study's folder in --home has it too."""
    shows = name.isprintable() and len(name.encode()) <= 100  # file names end at 255 bytes, suffix included
    if not shows or not _NAME.match(name) or name.strip(". ") == "" or name in _TAKEN:
        raise ConfigError(
            f"--study must be a name of 1 to 100 characters without slashes, and none of {', '.join(_TAKEN)}; "
            f"got {name!r}"
        )


def new_name(storage: str, base: str) -> str:
    """Return ``base-N`` with the lowest N from 1 that no study has."""
    base = re.sub(r"[^\w.-]+", "-", base).strip("-.") or "study"
    taken = set(list_studies(storage, make=True))
    return next(name for i in range(1, len(taken) + 2) if (name := f"{base}-{i}") not in taken)


def check_left(info: StudyInfo, n_trials: int) -> None:
    """Raise StudyError if the study has all its trials, before a launch is registered in it."""
    if (n := info.n_ran()) >= n_trials and not any(record.waits for record in info.trials):
        raise StudyError(
            f"study {info.name!r} already has {n} trials, so nothing is left to do; give --trials above that to go on"
        )
