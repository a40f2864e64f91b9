"""Fixtures for the command line."""

from __future__ import annotations

from pathlib import Path

import pytest
from read_study import fill
from studies import make_study


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with one study: two points on the front, one dominated, one failed, one running."""
    home = tmp_path / "home"
    home.mkdir()
    fill(make_study(home, "<script>alert(1)</script>"))
    return home
