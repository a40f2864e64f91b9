"""Find the image files that an annotation file means by its names.

A name that stands for a file as it is needs nothing. Only for the others is the folder indexed, and compared without
letter case, Unicode form (NFC or NFD), percent-encoding, and ``\\`` in place of ``/``. Parts may be dropped from the
front of a name if they can mean nothing: they are those of the folder itself, all names have them, or they are of
another machine (an absolute path, a URL, or one that begins with ``..``). A name is never guessed: if it fits several
files, or several names fit one file, that is a fault.
"""

from __future__ import annotations

import difflib
import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from cst_search.data.validation.findings import N_EXAMPLES

_MOST_FILES = 1_000_000  # indexed: someone may give a home folder as the data set
_URL = re.compile(r"[a-z][a-z0-9+.-]*://[^/]*", re.IGNORECASE)
_DRIVE = re.compile(r"[a-z]:/", re.IGNORECASE)
_LOCAL_FILES = "?d="  # Label Studio: /data/local-files/?d=images/a.jpg


@dataclass(frozen=True)
class Located:
    """The file that a name stands for.

    Attributes:
        path: absolute path, links resolved; never opened if there is a fault.
        stamp: size in bytes, and mtime in ns.
        kind: kind of the fault, or None.
        said: how the name was interpreted if no file has exactly this name; with a fault, a hint.
    """

    path: str
    stamp: tuple[int, int] = (0, 0)
    kind: str | None = None
    said: str = ""


def locate_all(names: Sequence[str], image_folder: Path, data_folder: Path) -> dict[str, Located]:
    """Return the file of each name.

    Args:
        image_folder: folder that names are relative to; may be a link.
        data_folder: links may lead to anywhere in this folder or in the image folder, and nowhere else.
    """
    folder = _Folder(os.path.realpath(image_folder), os.path.realpath(data_folder))
    found = {name: folder.as_it_stands(name) for name in dict.fromkeys(names)}
    others = [name for name, located in found.items() if located.kind == "image-missing"]
    if not others:
        return found
    shared = _shared_folders(names)
    looked_up = {name: folder.look_up(name, shared) for name in others}
    n_names = Counter(located.path for located in (found | looked_up).values() if located.kind is None)
    n_missing = 0
    for name, located in looked_up.items():
        if located.kind is None and n_names[located.path] > 1:
            relative = os.path.relpath(located.path, folder.root)
            located = Located(located.path, kind="file-name-ambiguous", said=f"other names mean {relative} too")
        elif located.kind in ("image-missing", "path-outside"):
            n_missing += 1
            if n_missing <= N_EXAMPLES:  # no more are shown
                located = Located(located.path, kind=located.kind, said=folder.nearest(name))
        found[name] = located
    return found


@dataclass
class _Folder:
    """An image folder.

    Attributes:
        root, data_root: real paths of the image folder and of the data folder.
    """

    root: str
    data_root: str
    _real_parents: dict[str, str] = field(default_factory=dict)  # resolving every link of every file is slow

    def as_it_stands(self, name: str) -> Located:
        """Return the file of exactly this name; the fault ``image-missing`` if there is none."""
        path = os.path.join(self.root, name)
        try:
            parent, base = os.path.split(path)
            if parent not in self._real_parents:
                self._real_parents[parent] = os.path.realpath(parent)
            real = os.path.join(self._real_parents[parent], base)
            info = os.lstat(real)
            if stat.S_ISLNK(info.st_mode):
                real = os.path.realpath(real)
                info = os.stat(real)
        except (OSError, ValueError):  # ValueError: not a valid file name
            return Located(path, kind="image-missing")
        leaves = not _is_inside(os.path.normpath(path), self.root) or base in ("", ".", "..")
        if leaves or not (_is_inside(real, self.root) or _is_inside(real, self.data_root)):
            return Located(real, kind="path-outside")
        if not stat.S_ISREG(info.st_mode):
            return Located(real, kind="image-missing")
        return Located(real, (info.st_size, info.st_mtime_ns))

    def look_up(self, name: str, shared: tuple[str, ...]) -> Located:
        """Return the only file that the name can mean.

        Args:
            shared: folders with which all names begin.
        """
        parts, is_foreign = _parts(name)
        for n_dropped in range(len(parts)):
            dropped, rest = parts[:n_dropped], "/".join(parts[n_dropped:])
            if not (is_foreign or self._ends_with(dropped) or dropped == shared[:n_dropped]):
                continue
            fits = self._index.get(_key(rest), [])
            exact = [file for file in fits if _composed(file) == _composed(rest)]
            fits = exact if len(exact) == 1 else fits
            if len(fits) > 1:
                return Located("", kind="file-name-ambiguous", said=f"fits {', '.join(fits[:N_EXAMPLES])}")
            if fits:
                located = self.as_it_stands(fits[0])
                said = f"{fits[0]}: {', '.join(_differences(name, dropped, rest, fits[0]))}"
                return Located(located.path, located.stamp, located.kind, said)
        return Located(os.path.join(self.root, name), kind="path-outside" if is_foreign else "image-missing")

    def nearest(self, name: str) -> str:
        """Return a hint at the file whose name is most like this one; empty if none is."""
        base = _key("".join(_parts(name)[0][-1:]))
        by_base: dict[str, str] = {}
        for file in self._files:
            by_base.setdefault(_key(os.path.basename(file)), file)
        likely = difflib.get_close_matches(base, by_base, n=1)
        if not likely:
            return "no file has a name like it"
        return f"nearest is {os.path.relpath(by_base[likely[0]], self.root)}"

    def _ends_with(self, folders: tuple[str, ...]) -> bool:
        own = _key(self.root).split("/")
        return not folders or own[-len(folders) :] == [_key(part) for part in folders]

    @cached_property
    def _files(self) -> list[str]:
        """Real paths of the files in the image folder, then of those elsewhere in the data folder."""
        inside = list(islice(_walk(self.root), _MOST_FILES))
        if _is_inside(self.data_root, self.root):
            return inside
        elsewhere = (file for file in _walk(self.data_root) if not _is_inside(file, self.root))
        return inside + list(islice(elsewhere, _MOST_FILES - len(inside)))

    @cached_property
    def _index(self) -> dict[str, list[str]]:
        """Files of the image folder, relative to it, by what of their names counts."""
        index: dict[str, list[str]] = {}
        for file in self._files:
            if _is_inside(file, self.root):
                relative = os.path.relpath(file, self.root)
                index.setdefault(_key(relative), []).append(relative)
        return index


def _walk(folder: str) -> Iterator[str]:
    """Yield the files of a folder and its sub-folders, in the order of their names; linked folders are left out."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            yield os.path.join(parent, name)


def _is_inside(path: str, folder: str) -> bool:
    return path.startswith(folder.rstrip(os.sep) + os.sep)


def _parts(name: str) -> tuple[tuple[str, ...], bool]:
    """Return the folders and the file of a name, and True if it is a path of another machine."""
    slashed = name.replace("\\", "/")
    if url := _URL.match(slashed):
        slashed = slashed[url.end() :].partition("#")[0]
    if _LOCAL_FILES in slashed:
        slashed = "/" + unquote(slashed.partition(_LOCAL_FILES)[2])
    elif url:
        slashed = slashed.partition("?")[0]
    is_foreign = slashed.startswith(("/", "../")) or bool(url or _DRIVE.match(slashed))
    return tuple(part for part in slashed.split("/") if part not in ("", ".", "..")), is_foreign


def _shared_folders(names: Sequence[str]) -> tuple[str, ...]:
    """Return the folders with which all names begin; one name alone says nothing about others."""
    if len(set(names)) < 2:
        return ()
    folders = {_parts(name)[0][:-1] for name in names}
    same = zip(*folders, strict=False)
    n_same = next((i for i, level in enumerate(same) if len(set(level)) > 1), min(map(len, folders), default=0))
    return next(iter(folders))[:n_same] if folders else ()


def _composed(name: str) -> str:
    return unicodedata.normalize("NFC", unquote(name.replace("\\", "/")))


def _key(name: str) -> str:
    return unicodedata.normalize("NFC", _composed(name).casefold())


def _differences(name: str, dropped: tuple[str, ...], rest: str, file: str) -> list[str]:
    """Return in words how a name differs from the file that it means."""
    words = [f"without {'/'.join(dropped)}/"] if dropped else []
    words += ["with / for \\"] if "\\" in name and "\\" not in file else []
    plain, own = unquote(rest), unquote(file.replace("\\", "/"))
    words += ["percent-encoded"] if plain != rest or unquote(file) != file else []
    if plain != own:
        if _composed(rest) != _composed(file):
            words.append("other letter case")
        if plain.casefold() != own.casefold():
            words.append("other Unicode form")
    return words
