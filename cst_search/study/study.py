"""A study in its database: its spec and all its trials. Choosing the next trial is the job of `search`.

The study's database is the single source of truth. It has every suggested trial with its configuration, predicted cost
and result, so anyone with the storage URL can continue, report or rebuild. Reading it loads no sampler.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from pathlib import Path
from types import NoneType
from typing import Any

import optuna

from cst_search.config.recipe import stored_fields
from cst_search.config.search_space import Space, renamed_dimensions
from cst_search.errors import StudyError, did_you_mean
from cst_search.study.database_urls import sqlite_url
from cst_search.study.launch_registry import Launches, now
from cst_search.study.objectives import BOUNDS, OBJECTIVES
from cst_search.study.optuna_cache import OptunaCache, hold_in_cache, release_in_cache
from cst_search.study.reader import TrialReader
from cst_search.study.records import Budget, LaunchRecord, StudyInfo, StudySpec, TrialRecord
from cst_search.study.storage import Storage, alone, check_storage, experimental, open_storage, study_names
from cst_search.study.stored_form import (
    NUMBER,
    NUMBER_OR_NONE,
    DamagedError,
    check_kind,
    check_object,
    check_optional,
    read_of,
)

ETA = 2  # default of early stopping for a new study
_FORMAT = 3  # version of the stored form; a reader refuses a newer one
_STUDY = "cst_study"  # user attribute of the study: format, version, time and spec

_DIRECTION = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}

optuna.logging.set_verbosity(optuna.logging.ERROR)


def list_studies(url: str, *, make: bool = False) -> list[str]:
    """Return the names of the cst-search studies in a storage, by creation. Raises StudyError if there is no storage.

    Args:
        make: create a storage that does not exist yet, rather than raise.
    """
    storage = open_storage(url, make=make)
    names = study_names(storage, having=_STUDY)
    storage.engine.dispose()
    return names


class Study:
    """A study in its storage. `create` creates or continues one, `open` reads an existing one.

    Attributes:
        url: URL of the storage.
        storage: the storage; None for Optuna's own, in memory.
        spec: the settings that define the study.
        started: time of creation in UTC, ISO 8601.
        reader: the reader of its trials, with those read so far.
        launch_registry: its launches, including this process's own.
    """

    def __init__(self, study: optuna.Study, url: str, storage: optuna.storages.BaseStorage) -> None:
        self._study, self.url = study, url
        self.storage = storage if isinstance(storage, Storage) else None
        self.name = study.study_name
        with read_of(f"study {self.name!r}"):
            stored = check_object(study.user_attrs[_STUDY], _STUDY, format=int)
            if stored["format"] > _FORMAT:
                by = stored.get("version", "of a later version")
                raise StudyError(
                    f"study {self.name!r} was written by cst-search {by}, which is newer; update cst-search"
                )
            check_object(stored, _STUDY, started=str, spec=dict)
            self.spec = _spec_of(stored["spec"])
        self.started: str = stored["started"]
        self.space = Space.from_dict(self.spec.space, where=f"space of study {self.name!r}")
        self.launch_registry = Launches(study, self.storage)
        self.reader = TrialReader(study, self.storage, self.spec.full_epochs, self.spec.budget)

    @classmethod
    def open(cls, url: str, name: str) -> Study:
        """Open an existing study. Raises StudyError, which names the existing studies."""
        storage = open_storage(url)
        try:
            study = optuna.load_study(study_name=name, storage=_cached(storage))
        except KeyError:
            there = list_studies(url)
            which = (
                f"it has {', '.join(map(repr, there[-10:]))}{did_you_mean(name, there)}"
                if there
                else "it has none yet; `cst-search launch` makes one"
            )
            raise StudyError(f"there is no study {name!r} in {check_storage(url)}; {which}") from None
        with read_of(f"study {name!r}"):
            is_ours = _STUDY in study.user_attrs
        if not is_ours:
            raise StudyError(f"study {name!r} in {check_storage(url)} is not one of cst-search")
        return cls(study, url, storage)

    @classmethod
    def create(cls, url: str, name: str, spec: StudySpec) -> Study:
        """Create the study, or continue an existing one that has the same objectives, space, recipe and data.

        Raises:
            StudyError: the study exists and differs; the message says in what.
        """
        from cst_search import __version__

        storage = open_storage(url, make=True)
        directions = [_DIRECTION[o.goal] for o in spec.objectives]
        with alone(storage, name):  # another launch must not find it half created
            try:
                study = optuna.create_study(storage=_cached(storage), study_name=name, directions=directions)
            except optuna.exceptions.DuplicatedStudyError:
                storage.engine.dispose()
                found = cls.open(url, name)
                found._check_same(spec)
                return found
            plain = replace(spec, eta=ETA if spec.eta is None else spec.eta).to_dict()
            stamp = {"format": _FORMAT, "version": __version__, "started": now(), "spec": plain}
            study.set_user_attr(_STUDY, stamp)
            with experimental():
                study.set_metric_names([o.name for o in spec.objectives])
            return cls(study, url, storage)

    def _check_same(self, spec: StudySpec) -> None:
        new, old = spec.to_dict(), self.spec.to_dict()
        budgets = spec.budget, self.spec.budget
        bounds = [b.flag for b in BOUNDS if len({getattr(budget, b.field) for budget in budgets}) > 1]
        named = {"objectives": "--objectives", "budget": "/".join(bounds), "recipe": "--recipe",
                 "space": "--space", "data": "--data", "limit_bytes": "--limit-mem",
                 "eta": "--stop-early/--eta", "prior": "--prior",
                 "inputs": "--data (classes, most boxes or image sizes differ)"}  # fmt: skip
        for each in (new, old):
            each["space"] = renamed_dimensions(each["space"], f"space of study {self.name!r}")
        if spec.eta is None:
            new["eta"] = old["eta"]
        if spec.prior is None:
            new["prior"] = old["prior"]
        if not old["inputs"]:  # created before inputs were stored
            new["inputs"] = old["inputs"]
        differs = [flag for key, flag in named.items() if new[key] != old[key]]
        if differs:
            raise StudyError(
                f"study {self.name!r} exists and was made with another {', '.join(differs)}; "
                f"continue it with the same ones, or choose another --study name"
            )

    def optuna_study(self) -> optuna.Study:
        """Return the underlying Optuna study, for reading only. A trial told to it directly is not one of ours."""
        return self._study

    def rescued_url(self) -> str | None:
        """Return the URL of the copy that is used since the study's file vanished; None: the file is there."""
        path = None if self.storage is None else self.storage.rescued
        return None if path is None else sqlite_url(path)

    # --- launches ---------------------------------------------------------------------------------------------------

    def launches(self) -> tuple[LaunchRecord, ...]:
        """Return launches and confirmations that stored their settings, by start time."""
        return self.launch_registry.described()

    def n_wanted(self) -> int | None:
        """Return the total trials that the last launch asked for; None: there was no launch."""
        said = [
            n for each in self.launches() if each.kind == "launch" and isinstance(n := each.settings.get("trials"), int)
        ]
        return said[-1] if said else None

    def others_at_work(self) -> int:
        """Return the number of trials that other launches are running now."""
        self.reader.read()
        others = self.launch_registry.live() - {self.launch_registry.id}
        return sum(suggested.launch in others for suggested in self.reader.suggested().values())

    # --- trials -----------------------------------------------------------------------------------------------------

    def record(self, number: int) -> TrialRecord:
        """Return the current record of one trial."""
        self.reader.read(number)
        return self.reader.record(number, self.launch_registry.live)

    def hold(self, trial: optuna.Trial) -> None:
        """Mark an unfinished trial as changed by this launch only: it is not read again before each suggestion."""
        self.reader.hold(trial.number)
        self.reader.read(trial.number)  # as it is now: it may have waited in the queue
        hold_in_cache(self._study, trial)

    def release(self, trial: optuna.Trial) -> None:
        """Undo `hold`."""
        self.reader.release(trial.number)
        release_in_cache(self._study, trial)

    def is_ours(self, number: int) -> bool:
        """Return whether a trial is still this launch's: one that seemed dead (its host slept) loses its trials."""
        self.reader.read(number)  # an Optuna trial caches what it once read
        suggested = self.reader.suggested_of(number)
        return suggested is not None and suggested.launch == self.launch_registry.id

    def finished(self, since: int = 0) -> Sequence[TrialRecord]:
        """Return finished trials and repeats from the ``since``-th on, in the order in which this process read them.

        Reads nothing from the database: telling a result, `record` and `info` read what is new, from all processes.
        """
        return self.reader.finished[since:]

    def first_running(self) -> int:
        """Return the number below which no trial is running, without reading; see `TrialReader.first_running`."""
        return self.reader.first_running()

    def info(self) -> StudyInfo:
        """Return the study as plain values, with trials ordered by number."""
        self.reader.read(held=True)
        records = self.reader.records(self.launch_registry.live)
        return StudyInfo(
            **vars(self.spec),
            name=self.name,
            started=self.started,
            trials=tuple(record for record in records if record.repeat_of is None),
            repeats=tuple(record for record in records if record.repeat_of is not None),
            launches=self.launches(),
        )


def _cached(storage: optuna.storages.BaseStorage) -> optuna.storages.BaseStorage:
    return OptunaCache(storage) if isinstance(storage, Storage) else storage


def _spec_of(stored: Mapping[str, Any]) -> StudySpec:
    """Read the settings of a study from their stored form. Raises DamagedError."""
    kinds = {"budget": dict, "reference_point": dict, "recipe": dict, "space": dict, "objectives": list, "data": str,
             "seed": int, "sampler": str, "target_device": str}  # fmt: skip
    spec = check_object(stored, f"the spec in {_STUDY}", **kinds)
    optional = {"inputs": dict, "limit_bytes": NUMBER_OR_NONE, "prior": (list, NoneType)}
    check_optional(spec, f"the spec in {_STUDY}", optional)
    for name, value in spec["reference_point"].items():
        check_kind(value, f"{name!r} of the reference point", NUMBER)
    for name, value in spec["budget"].items():
        check_kind(value, f"{name!r} of the budget", NUMBER_OR_NONE)
    unknown = [name for name in spec["objectives"] if name not in OBJECTIVES]
    unknown += [name for name in spec["objectives"] if name not in spec["reference_point"]]
    unknown += [name for name in spec["budget"] if name not in {f.name for f in fields(Budget)}]
    unknown += [name for name in spec if name not in {f.name for f in fields(StudySpec)}]
    if unknown or not spec["objectives"]:
        raise DamagedError(f"the spec in {_STUDY} is damaged, with: {', '.join(map(repr, unknown)) or 'no objective'}")
    spec["objectives"] = tuple(OBJECTIVES[name] for name in spec["objectives"])
    spec["budget"] = Budget(**spec["budget"])
    spec["eta"] = spec.get("eta") or 0
    spec["prior"] = None if spec.get("prior") is None else tuple(map(str, spec["prior"]))
    spec["recipe"] = stored_fields(spec["recipe"])
    check_object(spec["recipe"], "the recipe", search_epochs=int, seed=int)
    return StudySpec(**spec)


def open_study(name: str | None, home: Path, storage: str | None = None) -> Study:
    """Open a study by name, in a storage or in the one in ``home``; None: the study that was made last.

    Raises StudyError, which names existing studies.
    """
    url = _existing_storage(home, storage)
    return Study.open(url, names_of_studies(home, storage)[-1] if name is None else name)


def names_of_studies(home: Path, storage: str | None = None) -> list[str]:
    """Return the names of all studies in a storage, or in the one in ``home``; the one that was made last is last.

    Raises StudyError if there is none.
    """
    url = _existing_storage(home, storage)
    names = list_studies(url)
    if not names:
        raise StudyError(f"there are no studies in {check_storage(url)} yet; `cst-search launch` makes one")
    return names


def _existing_storage(home: Path, storage: str | None) -> str:
    if storage is None and not (home / "studies.db").exists():
        raise StudyError(f"there are no studies in {home} yet; `cst-search launch` makes one, --home looks elsewhere")
    return storage or default_storage(home)


def default_storage(home: Path) -> str:
    """Return the URL of the SQLite database in ``home``, beside the records of the studies."""
    return sqlite_url(home / "studies.db")
