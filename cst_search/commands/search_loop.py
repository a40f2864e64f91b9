"""The running part of a launch: workers, and what happens as each trial finishes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from cst_search.study.study import Study
from cst_search.study.tally import Tally

if TYPE_CHECKING:
    from cst_search.tracking.mlflow_record import MlflowRecord


def follow(study: Study, record: MlflowRecord) -> Callable[[], tuple[float, int]]:
    """What a launch does after every finished trial: it takes what is new, tells MLflow, and returns what `View` shows.

    What the study has read is enough, see `Study.finished`: a finish must not cost more because there were many.
    """
    tally, n_taken = Tally(study.info()), 0

    def on_finished() -> tuple[float, int]:
        nonlocal n_taken
        new = study.finished(since=n_taken)
        n_taken += len(new)
        tally.add(new, study.first_running())
        record.add(study.name, new, tally)
        return tally.front.volume, tally.n_rejected

    return on_finished
