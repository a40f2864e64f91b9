"""The report page's arithmetic in node, which needs no browser: see page_scripts.test.mjs."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cst_search.units import format_bytes, format_count, format_flops, format_seconds

VALUES = (0, 1, 60, 999, 1000, 3_600, 7_322, 12_345, 999_499, 999_500, 1_234_567, 665_000_000, 5_200_000_000)
FORMATS = {"bytes": format_bytes, "count": format_count, "flops": format_flops, "seconds": format_seconds}


def test_scripts_of_the_page() -> None:
    node = shutil.which("node") or shutil.which("nodejs")
    if node is None:
        pytest.skip("no node on this machine: the page's scripts are tested in the browser only")
    texts = {kind: [(value, words(value)) for value in VALUES] for kind, words in FORMATS.items()}
    texts["flops"] = texts["flops"][4:]  # in millions and more, as operations of an image are
    texts["seconds"] += [(59.6, format_seconds(59.6))]
    file = Path(__file__).with_name("page_scripts.test.mjs")
    ran = subprocess.run(
        [node, "--test", str(file)],
        env=os.environ | {"UNITS": json.dumps(texts)}, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
