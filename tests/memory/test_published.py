"""The prediction against training memory that detectron2 and mmdetection published: benchmarks/published.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import published

RESULTS = Path(published.__file__).parent / "results" / "published.json"


def test_published_figures_are_predicted_within_their_tolerances() -> None:
    stored = json.loads(RESULTS.read_text())["rows"]
    for row, result in zip(published.ROWS, stored, strict=True):
        figures = published.predicted(row)
        assert figures["buckets"] == pytest.approx(row.gib, rel=row.tolerance), row
        assert figures == pytest.approx(result["predicted"], rel=0.01), f"{row}: benchmarks/published.py --out ... anew"
    assert sum(row.tolerance <= 0.05 for row in published.ROWS) >= 12
