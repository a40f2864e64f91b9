"""A tenth of the demo's images, for tests that train on it and do not look at what is learned."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from cst_search.data.demo import write_demo

SIZE = {"n_train": 24, "n_val": 8}
_IN_A_PROCESS = f"from cst_search.data.demo import write_demo\nwrite_demo.__kwdefaults__ |= {SIZE!r}\n"


def use_smaller_demo(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """Use it in this process and in every one that is started, by a module in ``folder`` that Python imports first."""
    (folder / "smaller").mkdir()
    (folder / "smaller" / "sitecustomize.py").write_text(_IN_A_PROCESS)
    path = [str(folder / "smaller"), *filter(None, [os.environ.get("PYTHONPATH")])]
    patch.setenv("PYTHONPATH", os.pathsep.join(path))
    for name, value in SIZE.items():
        patch.setitem(write_demo.__kwdefaults__, name, value)
