"""What a search is compared with: full fine-tuning, and the head alone. Costs are exact, mAP is known where trained."""

from __future__ import annotations

from typing import Any

from cst_search.commands.budget_survey import Estimator
from cst_search.config.loading import make_recipe
from cst_search.errors import ConfigError
from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.states import TrialState

METHODS = ("full", "head")
_TAKEN_OVER = ("batch_size", "image_size_px", "max_size_px")  # from the best point, so that the costs compare


def references(info: StudyInfo) -> list[dict[str, Any]]:
    """Return ``method``, ``working_bytes``, ``device_bytes`` and ``map`` of each method of `METHODS`.

    If the study has trained the method, these are of its trial of the highest mAP; else ``map`` is None, and the cost
    is predicted at the batch and image size of the point of the best mAP. Empty without a front.
    """
    front = info.front()
    return [found for method in METHODS if (found := _reference(info, front[0], method))] if front else []


def _reference(info: StudyInfo, best: TrialRecord, method: str) -> dict[str, Any] | None:
    complete = [record for record in info.trials if record.state == TrialState.COMPLETE and record.feasible]
    trained = [record for record in complete if record.config.get("method") == method]
    if trained:
        record = max(trained, key=lambda record: info.over_seeds(record).mean or 0.0)
        figures = {name: getattr(record, name) for name in ("working_bytes", "device_bytes")}
        return {"method": method, **figures, "map": info.over_seeds(record).mean}
    if not info.inputs:  # the study is of a version that did not store what costs depend on
        return None
    taken = {name: best.config[name] for name in _TAKEN_OVER if name in best.config}
    sizes = tuple((int(height), int(width)) for height, width in info.inputs["sizes"])
    try:
        recipe = make_recipe(info.recipe, f"recipe of study {info.name!r}")
        cost = Estimator(recipe, info.inputs["n_classes"], sizes, info.inputs["max_boxes"])({"method": method, **taken})
    except ConfigError:  # the recipe does not go with this method
        return None
    return {"method": method, "working_bytes": cost.working_bytes, "device_bytes": cost.device_bytes, "map": None}
