"""Files of Ray on this machine, which Ray leaves open to all users: session folders 0777, its token 0644.

Whoever may write to the sockets of a session, or has the token, can run code as the user who searches.
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cst_search.errors import RunError

# an address of AF_UNIX has at most 107 bytes, of which Ray takes this much below the folder:
# /ray/session_2026-11-29_20-29-28_911685_4194304/sockets/plasma_store
_MOST_BYTES = 107 - 69


def private_folder() -> Path:
    """Return the private folder for the files of this user's Ray, created if missing.

    It is below ``RAY_TMPDIR`` or the folder for temporary files, or below ``/tmp`` where that path is too long for
    sockets. A name that somebody else has taken there is avoided.

    Raises:
        RunError: no folder can be made.
    """
    for path in _places():
        with suppress(OSError):
            path.mkdir(mode=0o700, exist_ok=True)
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
                path.chmod(0o700)
                return path
    raise RunError("Ray needs a folder of its own, and none can be made in /tmp; --in-process does without")


def _places() -> Iterator[Path]:
    name = f"cst-ray-{os.geteuid()}"
    for parent in (os.environ.get("RAY_TMPDIR"), tempfile.gettempdir(), "/tmp"):
        for own in (name, f"{name}-{secrets.token_hex(3)}"):
            if parent and len(os.fsencode(path := Path(parent).absolute() / own)) <= _MOST_BYTES:
                yield path


def token_file() -> Path:
    """Return the file in which Ray looks for its token, and writes a new one if there is none."""
    return Path(os.environ.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")


def keep_token_private() -> None:
    """Give Ray's token file to its owner alone; make it, where Ray would make one for all to read.

    Where it cannot be made, as the user has no home folder, it is made in Ray's private folder and named to Ray.
    """
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_MODE", "token").lower() != "token":
        return
    try:
        _make_token(token_file())
    except OSError:
        if "RAY_AUTH_TOKEN_PATH" not in os.environ:  # otherwise Ray says what is wrong with it
            path = private_folder() / "auth_token"
            _make_token(path)
            os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _make_token(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        made = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        if is_open_to_others(path):
            with suppress(OSError):  # somebody else's, which only its owner can close
                path.chmod(0o600)
        return
    with os.fdopen(made, "w") as file:
        file.write(secrets.token_hex(32))


def is_open_to_others(path: Path) -> bool:
    """Return whether other users may read or write a file or folder."""
    return path.exists() and bool(path.stat().st_mode & 0o077)
