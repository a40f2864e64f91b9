"""Bundle of trained detectors in a folder: each base once, the trained tensors of every task, and a manifest.

    cells.safetensors, cards.safetensors       the files that `cst-search train` wrote
    base-0123456789abcdef.safetensors          the detector that both start from
    bundle.json                                sizes, hashes, classes, methods

A task is added or dropped without a change to the files of the others. Every file is checked against its SHA-256
before anything of it is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cst_search.detector.build import start_of
from cst_search.detector.pretrained import Start, save_start, start_identity
from cst_search.detector.trained_file import TrainedFile, read_trained, weights_file
from cst_search.errors import ConfigError

FORMAT = "cst-search/bundle-1"
MANIFEST = "bundle.json"
_NAME_RULE = "of a-z, A-Z, 0-9, '-', '_' and '.', not begin with a dot, and have at most 100 characters"


class Bundle:
    """A bundle on disk.

    Attributes:
        tasks: by name ``file``, ``bytes``, ``sha256``, ``base`` (None: a random one, drawn from the recipe's seed),
            ``classes`` and ``method``.
        bases: by name ``file``, ``bytes``, ``sha256``.
    """

    def __init__(self, folder: Path) -> None:
        """Open a bundle, or prepare a new one where there is no folder. Raises ConfigError if there is something else.

        Nothing is written before `add`.
        """
        self.folder = folder
        self.tasks: dict[str, dict[str, Any]] = {}
        self.bases: dict[str, dict[str, Any]] = {}
        if is_bundle(folder):
            self._read()
        elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ConfigError(f"{folder} must be a bundle or a new folder; it has no {MANIFEST}")

    def _read(self) -> None:
        path = self.folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["format"] != FORMAT:
                raise ValueError(f"format {content['format']!r}, expected {FORMAT!r}")
            self.tasks, self.bases = dict(content["tasks"]), dict(content["bases"])
            for entry in (*self.tasks.values(), *self.bases.values()):
                if not _is_plain(entry["file"]) or not isinstance(entry["sha256"], str):
                    raise ValueError(f"file {entry['file']!r}")
            for name, task in self.tasks.items():
                if not _is_plain(name) or (task["base"] is not None and task["base"] not in self.bases):
                    raise ValueError(f"task {name!r}")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{path} is no manifest that this version reads ({type(error).__name__}: {error})"
            ) from error

    def total_bytes(self) -> int:
        """Return the bytes of all files but the manifest."""
        return sum(entry["bytes"] for entry in (*self.tasks.values(), *self.bases.values()))

    def add(self, name: str, run: Path) -> None:
        """Copy a run into the bundle, and the detector that it starts from if the bundle lacks it; see `change`."""
        self.change([(name, run)])

    def change(self, runs: Sequence[tuple[str, Path]], drop: Sequence[str] = ()) -> None:
        """Drop tasks, then add runs under names. Everything is checked first, so it is all done or nothing.

        Raises:
            ConfigError: a name is taken, unknown or no file name, or a run or its base cannot be read.
        """
        drop = list(dict.fromkeys(drop))
        for name in drop:
            self._check_known(name)
        self._check_free([name for name, _ in runs], drop)
        read: list[tuple[str, Path, dict[str, Any]]] = []
        starts: dict[str, Start] = {}
        for name, run in runs:
            if is_bundle(run):
                raise ConfigError(f"{run} is a bundle, and only runs can be added to one; name the runs it was made of")
            trained = read_trained(weights_file(run))
            start = start_of(trained.recipe)
            base = None if start is None else f"base-{start_identity(start)}"
            if start is not None and base is not None:
                starts[base] = start
            about = {"base": base, "classes": list(trained.class_names), "method": trained.recipe.method}
            read.append((name, trained.path, about))
        for name in drop:
            self.drop(name)
        for name, path, about in read:
            self._put(name, path, about, starts)

    def _put(self, name: str, path: Path, about: dict[str, Any], starts: Mapping[str, Start]) -> None:
        """Copy a file of trained weights, and its base unless that is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        base = about["base"]
        if base is not None and base not in self.bases:
            file = self.folder / f"{base}.safetensors"
            save_start(starts[base], file)
            self.bases[base] = _entry(file)
        file = self.folder / f"{name}.safetensors"
        part = file.with_suffix(".part")
        shutil.copyfile(path, part)
        os.replace(part, file)
        self.tasks[name] = _entry(file) | about
        self._write()

    def _check_free(self, names: Sequence[str], drop: Sequence[str]) -> None:
        """Raise ConfigError if new names are unsuitable, or not different; case does not count, as on some disks."""
        for name in names:
            check_task_name(name)
        folded = [name.casefold() for name in names]
        twice = [name for name in names if folded.count(name.casefold()) > 1]
        if twice:
            raise ConfigError(
                f"runs of one bundle must be folders of different names; twice: {', '.join(dict.fromkeys(twice))}"
            )
        for name in self.tasks:
            if name not in drop and name.casefold() in folded:
                raise ConfigError(
                    f"{self.folder} has a task {name!r} already; drop it first, or rename the folder of the run"
                )

    def holds(self, name: str, run: Path) -> bool:
        """Return whether a task's file is intact and equals that of a run. Raises ConfigError if the run has none."""
        task = self.tasks[name]
        return self._fault(task) is None and _sha256(weights_file(run)) == task["sha256"]

    def drop(self, name: str) -> None:
        """Delete a task, and its base if no other task needs it. Raises ConfigError if there is none of that name."""
        self._check_known(name)
        task = self.tasks.pop(name)
        unused = [base for base in self.bases if all(other["base"] != base for other in self.tasks.values())]
        files = [task["file"], *(self.bases.pop(base)["file"] for base in unused)]
        self._write()  # first: a file too many does no harm
        for file in files:
            (self.folder / file).unlink(missing_ok=True)

    def _check_known(self, name: str) -> None:
        if not is_bundle(self.folder):
            raise ConfigError(f"{self.folder} is no bundle, so there is no task to drop; name its folder with -o")
        if name not in self.tasks:
            raise ConfigError(f"{self.folder} has no task {name!r}; it has {', '.join(self.tasks) or 'none'}")

    def check(self) -> None:
        """Raise ConfigError, naming every file that is missing or damaged, or if there is no task."""
        if not self.tasks:
            raise ConfigError(f"{self.folder} has no tasks; add runs to it first")
        faults = [fault for entry in (*self.tasks.values(), *self.bases.values()) if (fault := self._fault(entry))]
        if faults:
            raise ConfigError(f"bundle {self.folder}: {'; '.join(faults)}. Pack it again from the runs")

    def trained(self, name: str) -> TrainedFile:
        """Return a task's file; its recipe starts from the base in the bundle. Call `check` before.

        Raises ConfigError if the file cannot be read.
        """
        task = self.tasks[name]
        found = read_trained(self.folder / task["file"])
        if task["base"] is None:
            return found
        weights = str(self.folder / self.bases[task["base"]]["file"])
        return found._replace(recipe=replace(found.recipe, weights=weights))

    def _fault(self, entry: Mapping[str, Any]) -> str | None:
        path = self.folder / entry["file"]
        if not path.is_file():
            return f"{entry['file']} is missing"
        return None if _sha256(path) == entry["sha256"] else f"{entry['file']} is damaged or was exchanged (SHA-256)"

    def _write(self) -> None:
        content = {"format": FORMAT, "total_bytes": self.total_bytes(), "tasks": self.tasks, "bases": self.bases}
        part = self.folder / f".{MANIFEST}.part"
        part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(part, self.folder / MANIFEST)


def is_bundle(path: Path) -> bool:
    """Return whether a folder holds a bundle."""
    return (path / MANIFEST).is_file()


def check_task_name(name: str) -> None:
    """Raise ConfigError if a task cannot have this name."""
    if not _is_plain(name):
        raise ConfigError(f"the name of a task must be {_NAME_RULE}; got {name!r}")


def _entry(file: Path) -> dict[str, Any]:
    return {"file": file.name, "bytes": file.stat().st_size, "sha256": _sha256(file)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_plain(name: Any) -> bool:
    """Return whether a name can be that of a file in the folder, on any system."""
    return (
        isinstance(name, str)
        and 0 < len(name) <= 100
        and name[0] != "."
        and all(c.isalnum() or c in "-_." for c in name)
    )
