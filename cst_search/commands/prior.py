"""Show what a study learns from other data sets, and how well its own trials agree with them."""

from __future__ import annotations

from typing import Any

from cst_search.search.sources import verdicts
from cst_search.study.study import Study


def prior_report(study: Study) -> dict[str, Any]:
    """Return the sources of a study's prior as a dict ready for JSON, the most believed first."""
    n, found = verdicts(study)
    by_weight = sorted(found, key=lambda verdict: -verdict.weight)
    return {"study": study.name, "trials": n, "sources": [vars(verdict) for verdict in by_weight]}
