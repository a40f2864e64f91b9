"""A study in its database: what it was made with, and every trial that was tried. What to try next is `search`.

The study's database is the single source of truth. Every trial that was suggested is in it with its configuration, its
predicted cost and its result, so whoever holds the storage URL can continue, report or rebuild. Reading it loads no
sampler.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import optuna

from cst_search.config.recipe import renamed_fields
from cst_search.config.search_space import Space, renamed_dimensions
from cst_search.errors import StudyError
from cst_search.study.launch_registry import Launches, now
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.reader import TrialReader
from cst_search.study.records import Budget, LaunchRecord, StudyInfo, StudySpec, TrialRecord
from cst_search.study.storage import Storage, alone, check_storage, experimental, open_storage, study_names

ETA = 2  # of early stopping, for a study that does not say
_FORMAT = 3  # of what is stored; a reader refuses a newer one
_STUDY = "cst_study"  # user attribute of the study: format, version, time and spec

_DIRECTION = {"max": optuna.study.StudyDirection.MAXIMIZE, "min": optuna.study.StudyDirection.MINIMIZE}

optuna.logging.set_verbosity(optuna.logging.ERROR)


def list_studies(url: str, *, make: bool = False) -> list[str]:
    """Names of the studies of cst-search in a storage, in the order they were made. Raises StudyError: no storage.

    Args:
        make: make a storage that does not exist yet, rather than raise.
    """
    storage = open_storage(url, make=make)
    names = study_names(storage, having=_STUDY)
    storage.engine.dispose()
    return names


class Study:
    """One study in its storage. `create` makes it or continues it, `open` reads one that exists.

    Attributes:
        url: of the storage.
        storage: None: Optuna's own, in memory.
        spec: what the study was made with.
        started: time when it was made, in UTC, ISO 8601.
        reader: its trials, as far as they were read.
        launch_registry: its launches, and this process as one of them.
    """

    def __init__(self, study: optuna.Study, url: str, storage: optuna.storages.BaseStorage) -> None:
        self._study, self.url = study, url
        self.storage = storage if isinstance(storage, Storage) else None
        self.name = study.study_name
        stored = study.user_attrs[_STUDY]
        if stored["format"] > _FORMAT:
            raise StudyError(
                f"study {self.name!r} was written by cst-search {stored['version']}, which is newer; update cst-search"
            )
        spec = dict(stored["spec"])
        spec["objectives"] = tuple(OBJECTIVES[name] for name in spec["objectives"])
        spec["budget"] = Budget(**spec["budget"])
        spec["eta"] = spec.get("eta") or 0
        spec["recipe"] = renamed_fields(spec["recipe"])
        self.spec = StudySpec(**spec)
        self.started: str = stored["started"]
        self.space = Space.from_dict(self.spec.space, where=f"space of study {self.name!r}")
        self.launch_registry = Launches(study, self.storage)
        self.reader = TrialReader(study, self.storage, self.spec.full_epochs)

    @classmethod
    def open(cls, url: str, name: str) -> Study:
        """Open a study that exists. Raises StudyError, naming the studies that exist."""
        storage = open_storage(url)
        try:
            study = optuna.load_study(study_name=name, storage=storage)
        except KeyError:
            there = list_studies(url)
            which = (
                f"it has {', '.join(map(repr, there[-10:]))}"
                if there
                else "it has none yet; `cst-search launch` makes one"
            )
            raise StudyError(f"there is no study {name!r} in {check_storage(url)}; {which}") from None
        if _STUDY not in study.user_attrs:
            raise StudyError(f"study {name!r} in {check_storage(url)} is not one of cst-search")
        return cls(study, url, storage)

    @classmethod
    def create(cls, url: str, name: str, spec: StudySpec) -> Study:
        """Make the study, or continue it when it exists and was made with the same objectives, space, recipe and data.

        Raises:
            StudyError: it exists and differs, with what differs.
        """
        from cst_search import __version__

        storage = open_storage(url, make=True)
        directions = [_DIRECTION[o.goal] for o in spec.objectives]
        with alone(storage, name):  # another launch must not find it half made
            try:
                study = optuna.create_study(storage=storage, study_name=name, directions=directions)
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
        named = {"objectives": "--objectives", "budget": "--budget-mem/--budget-params", "recipe": "--recipe",
                 "space": "--space", "data": "--data", "limit_bytes": "--limit-mem",
                 "eta": "--stop-early/--eta",
                 "inputs": "--data (classes, most boxes or image sizes differ)"}  # fmt: skip
        for each in (new, old):
            each["space"] = renamed_dimensions(each["space"], f"space of study {self.name!r}")
        if spec.eta is None:
            new["eta"] = old["eta"]
        if not old["inputs"]:  # made before they were kept
            new["inputs"] = old["inputs"]
        differs = [flag for key, flag in named.items() if new[key] != old[key]]
        if differs:
            raise StudyError(
                f"study {self.name!r} exists and was made with another {', '.join(differs)}; "
                f"continue it with the same ones, or choose another --study name"
            )

    def optuna_study(self) -> optuna.Study:
        """The study as Optuna has it, to be read. A trial told to it from outside is no trial of cst-search."""
        return self._study

    # --- launches ---------------------------------------------------------------------------------------------------

    def launches(self) -> tuple[LaunchRecord, ...]:
        """Launches and confirmations that stored their settings, in the order of their beginning."""
        return self.launch_registry.described()

    def n_wanted(self) -> int | None:
        """Total trials that the last launch asked for; None: there was no launch."""
        said = [launch.settings["trials"] for launch in self.launches() if launch.kind == "launch"]
        return int(said[-1]) if said else None

    def others_at_work(self) -> int:
        """Number of trials that other launches are working on now."""
        self.reader.read()
        others = self.launch_registry.live() - {self.launch_registry.id}
        return sum(suggested.launch in others for suggested in self.reader.suggested().values())

    # --- trials -----------------------------------------------------------------------------------------------------

    def record(self, number: int) -> TrialRecord:
        """Record of one trial as it stands now."""
        self.reader.read(number)
        return self.reader.record(number, self.launch_registry.live)

    def is_ours(self, number: int) -> bool:
        """Return whether a trial is still this launch's: one that seems dead, as its host slept, loses its trials."""
        self.reader.read(number)  # an Optuna trial keeps what it once read
        suggested = self.reader.suggested_of(number)
        return suggested is not None and suggested.launch == self.launch_registry.id

    def finished(self, since: int = 0) -> Sequence[TrialRecord]:
        """Finished trials and repeats in the order in which this process read them, from the ``since``-th on.

        Nothing is read for it: telling a result, `record` and `info` read what is new, also of other processes.
        """
        return self.reader.finished[since:]

    def first_running(self) -> int:
        """The number below which no trial is at work, see `TrialReader.first_running`. Nothing is read for it."""
        return self.reader.first_running()

    def info(self) -> StudyInfo:
        """The study as plain values; trials in the order of their numbers."""
        self.reader.read()
        records = self.reader.records(self.launch_registry.live)
        return StudyInfo(
            **vars(self.spec),
            name=self.name,
            started=self.started,
            trials=tuple(record for record in records if record.repeat_of is None),
            repeats=tuple(record for record in records if record.repeat_of is not None),
            launches=self.launches(),
        )


def open_study(name: str, home: Path, storage: str | None = None) -> Study:
    """Open a study by name, of a storage or of the one in ``home``. Raises StudyError, naming those that exist."""
    if storage is None and not (home / "studies.db").exists():
        raise StudyError(f"there are no studies in {home} yet; `cst-search launch` makes one, --home looks elsewhere")
    return Study.open(storage or default_storage(home), name)


def default_storage(home: Path) -> str:
    """URL of a SQLite database beside the records of the studies."""
    return f"sqlite:///{os.fspath((home / 'studies.db').absolute())}"
