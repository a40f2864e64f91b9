"""Locations of files: shipped recipes, search spaces and page templates, and the folder of studies.

In a wheel the shipped ones lie inside the package (`pyproject.toml` forces them there), in a checkout or editable
install beside it.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal

from cst_search.errors import ConfigError, did_you_mean

Kind = Literal["trials", "search_spaces", "dashboards"]
_PACKAGE = Path(__file__).parents[1]


def shipped_folder(kind: Kind) -> Path:
    """Return the folder of one kind of shipped files."""
    for base in (_PACKAGE, _PACKAGE.parent):
        if (base / kind).is_dir():
            return base / kind
    raise ConfigError(f"this installation lacks its folder {kind!r}; reinstall cst-search")


def shipped(kind: Kind, name: str) -> Path:
    """Return the path of a shipped file, adding ``.yaml`` to a name without a suffix. It may not exist."""
    return shipped_folder(kind) / (name if "." in name else f"{name}.yaml")


def names(kind: Kind) -> list[str]:
    """Return the sorted names of the shipped YAML files of one kind, without suffix."""
    return sorted(path.stem for path in shipped_folder(kind).glob("*.yaml"))


def find(kind: Kind, name: str) -> Path:
    """Return the path of a user's own file (given as a path) or of a shipped one (a bare name). Raises ConfigError."""
    path = own_path(name)
    if path.is_file():
        return path
    if path.name == name and shipped(kind, name).is_file():
        return shipped(kind, name)
    noun = {"trials": "recipe", "search_spaces": "search space", "dashboards": "dashboard"}[kind]
    raise ConfigError(
        f"{noun} {name!r} is neither a file nor a shipped one; shipped: {', '.join(names(kind))}"
        f"{did_you_mean(name, names(kind))}"
    )


def own_path(text: str) -> Path:
    """Return a path as a user types it, with ``~`` expanded. Raises ConfigError if there is no such user."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ConfigError(f"{text}: there is no such user; write the folder out") from None


def check_folder(flag: str, folder: Path) -> None:
    """Raise ConfigError if a folder, or the place it would be created in, is not writable: before work is lost."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise ConfigError(
            f"{flag} {folder}: cannot be written ({there}: {error.strerror}); choose a folder of yours"
        ) from error


def study_folder(home: Path, study: str) -> Path:
    """Return the folder of a study in ``home``. Raises ConfigError if the name leads out of it."""
    within, folder = (Path(os.path.normpath(path.absolute())) for path in (home, home / study))
    if within not in folder.parents or "\0" in study:
        raise ConfigError(
            f"study {study!r} has a name that leads out of {home}, where its files go; nothing is written"
        )
    return home / study


def home_of(home: Path | str | None) -> Path:
    """Return the folder of ``--home``, or the default one."""
    return default_home() if home is None else own_path(str(home))


def default_home() -> Path:
    """Return the folder of studies and the demo data: $CST_SEARCH_HOME, else ``cst-runs`` in the current folder."""
    return Path(os.environ.get("CST_SEARCH_HOME") or "cst-runs")
