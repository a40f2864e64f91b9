"""The import path without the working folder, which may hold a ``torch.py`` of somebody else's. Standard library only.

Python puts the working folder first on the path for ``python -m`` and ``python -c``, and Ray on that of its workers.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def safe_path() -> list[str]:
    """Return ``sys.path`` without the working folder, unless PYTHONPATH names it or this package lies in it."""
    here = os.path.realpath(os.curdir)
    named = [folder for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep) if folder]
    kept = {os.path.realpath(folder) for folder in [*named, str(Path(__file__).parents[1])]}
    return [folder for folder in sys.path if os.path.realpath(folder or os.curdir) != here or here in kept]


def program(module: str, function: str) -> list[str]:
    """Return the command that calls one of our functions in a new process with this one's import path."""
    code = f"import sys; sys.path[:] = {safe_path()!r}; from {module} import {function}; {function}()"
    return [sys.executable, "-c", code]


def leave_working_folder() -> None:
    """Take the working folder off the path of this process and of every Python that it starts."""
    sys.path[:] = safe_path()
    os.environ["PYTHONSAFEPATH"] = "1"
    if "PYTHONPATH" in os.environ:  # an empty entry of it, as in ``$PYTHONPATH:/folder``, is the working folder too
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, os.environ["PYTHONPATH"].split(os.pathsep)))
