"""Checks of user input before anything is started."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from pathlib import Path
from urllib.parse import urlsplit

from cst_search.commands.options import CONVERGED, LaunchOptions
from cst_search.config.catalog import check_folder, own_path, study_folder
from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space
from cst_search.errors import ConfigError, StudyError
from cst_search.petl import get_method
from cst_search.redaction import DATABASES_OF_MLFLOW, shown_address
from cst_search.search.samplers import WITH_OUTLOOK, check_sampler, default_sampler
from cst_search.study.database_urls import check_apart, sqlite_url
from cst_search.study.objectives import Objective, choose_objectives
from cst_search.study.outlook import LEAST_TRIALS
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
    objectives = choose_objectives(options.objectives)
    if options.sampler is not None:
        check_sampler(options.sampler, objectives)
    study = options.of_study
    check_until(options, study.sampler if study else options.sampler or default_sampler(objectives))
    storage = options.storage or default_storage(options.home)
    shown_storage = check_storage(storage)
    check_tracking(options.tracking_uri, options.home, options.storage)
    if options.study is not None and study is None:
        check_name(options.study)
    # the page is written there at the end
    check_folder("--home", options.home if options.study is None else study_folder(options.home, options.study))
    return Request(tuple(objectives), storage, shown_storage)


def check_until(options: LaunchOptions, sampler: str) -> None:
    """Raise ConfigError if ``--until converged`` cannot end a search with this sampler and these trials."""
    if options.until != CONVERGED:
        return
    if sampler not in WITH_OUTLOOK:
        raise ConfigError(
            f"--until {CONVERGED} needs a sampler that says what further trials would bring, "
            f"{' or '.join(WITH_OUTLOOK)}; got --sampler {sampler}"
        )
    if options.trials <= LEAST_TRIALS:
        raise ConfigError(
            f"--until {CONVERGED} ends a search after {LEAST_TRIALS} trials at the earliest, and --trials is the most "
            f"that it takes; got --trials {options.trials}; give more"
        )


def check_tracking(uri: str | None, home: Path, storage: str | None = None) -> None:
    """Raise UserError if MLflow does not accept the address, or would write into the storage of the studies.

    The server need not answer: a study is kept without it.

    Args:
        uri: None: the database in ``home``.
        storage: database of the studies; None: that in ``home``.
    """
    if uri is not None:
        _check_address(uri)
    check_apart(storage or default_storage(home), uri or sqlite_url(home / "mlflow.db"))


def _check_address(uri: str) -> None:
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
    if not shows or not _NAME.match(name) or name.startswith("-") or name.strip(". ") == "" or name in _TAKEN:
        raise ConfigError(
            f"--study must be a name of 1 to 100 characters without slashes, not beginning with -, and none of "
            f"{', '.join(_TAKEN)}; got {name!r}"
        )


def _plain_name(text: str) -> str:
    return re.sub(r"[^\w.-]+", "-", text).strip("-.") or "study"


def new_name(storage: str, base: str) -> str:
    """Return ``base-N`` with the lowest N from 1 that no study has."""
    base = _plain_name(base)
    taken = set(list_studies(storage, make=True))
    return next(name for i in range(1, len(taken) + 2) if (name := f"{base}-{i}") not in taken)


def name_studies(each: Sequence[LaunchOptions], storage: str) -> list[LaunchOptions]:
    """Return the options with the names of their studies, where one launch has several data sets.

    With ``--study NAME`` each is ``NAME-FOLDER``, else ``FOLDER-N`` with the lowest N that is free. FOLDER is the last
    folder of the path; where two are equal, the folders above it are added until they differ.

    Raises:
        ConfigError: a data set is given twice, or a name is not possible.
    """
    if len(each) == 1 or any(options.of_study is not None for options in each):
        return list(each)
    paths = [Path("demo") if options.data in (None, "demo") else own_path(str(options.data)).resolve()
             for options in each]  # fmt: skip
    twice = sorted({str(path) for path in paths if paths.count(path) > 1})
    if twice:
        raise ConfigError(f"each --data is a study of its own; given twice: {', '.join(twice)}")
    named = []
    for options, label in zip(each, _labels(paths), strict=True):
        name = new_name(storage, label) if options.study is None else f"{options.study}-{label}"
        check_name(name)
        named.append(replace(options, study=name))
    return named


def _labels(paths: Sequence[Path]) -> list[str]:
    """Return a different name for each path, of as few of its last parts as possible."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        labels = [_plain_name("-".join(path.parts[-depth:])) for path in paths]
        few = [_plain_name(path.name) for path in paths]
        labels = [one if few.count(one) == 1 else label for one, label in zip(few, labels, strict=True)]
        if len(set(labels)) == len(labels):
            return labels
    raise ConfigError(
        f"the studies of these data sets would have equal names; launch them one by one with --study: "
        f"{', '.join(map(str, paths))}"
    )


def has_left(info: StudyInfo, n_trials: int) -> bool:
    """Return True if a study lacks trials, or some that were stopped early may still be promoted."""
    return info.n_ran() < n_trials or any(record.waits for record in info.trials)


def check_left(info: StudyInfo, n_trials: int) -> None:
    """Raise StudyError if the study has all its trials, before a launch is registered in it."""
    if not has_left(info, n_trials):
        raise StudyError(
            f"study {info.name!r} already has {info.n_ran()} trials, so nothing is left to do; give --trials above "
            f"that to go on"
        )
