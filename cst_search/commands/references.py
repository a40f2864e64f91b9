"""References of a search: full fine-tuning, and the head alone. Costs are exact; mAP is known once trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cst_search.commands.budget_survey import Estimator
from cst_search.config.loading import make_recipe
from cst_search.errors import ConfigError
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.states import TrialState

METHODS = ("full", "head")
_COSTS = ("working_bytes", *(o.name for o in OBJECTIVES.values() if o.goal == "min"))
_TAKEN_OVER = ("batch_size", "image_size_px", "max_size_px")  # from the best point, so that the costs compare
_TOLD = ("image_size_px", "batch_size")  # what decides on mAP and memory, and is said where it differs


def references(info: StudyInfo) -> list[dict[str, Any]]:
    """Return what each method of `METHODS` costs and reaches, beside the point of the best mAP. Empty without a front.

    Returns:
        Per method its costs by name, ``map``, ``trial`` and ``differs``. If the study has trained the method, these are
        of its trial of the highest mAP at the image size of the best point, or at any size if there is none;
        ``differs`` then names a size of image or batch as [its own, the best point's]. Else ``map`` and ``trial`` are
        None, and costs are predicted at the batch and image size of the best point.
    """
    front = info.front()
    return [found for method in METHODS if (found := _reference(info, front[0], method))] if front else []


def _reference(info: StudyInfo, best: TrialRecord, method: str) -> dict[str, Any] | None:
    trained = [record for record in info.trials if record.state == TrialState.COMPLETE and record.feasible]
    trained = [record for record in trained if record.config.get("method") == method]
    if trained:
        return _trained(info, best, trained)
    if not info.inputs:  # the study is of a version that did not store what costs depend on
        return None
    taken = {name: best.config[name] for name in _TAKEN_OVER if name in best.config}
    sizes = tuple((int(height), int(width)) for height, width in info.inputs["sizes"])
    try:
        recipe = make_recipe(info.recipe, f"recipe of study {info.name!r}")
        cost = Estimator(recipe, info.inputs["n_classes"], sizes, info.inputs["max_boxes"])({"method": method, **taken})
    except ConfigError:  # the recipe does not go with this method
        return None
    return {"method": method, "trial": None, "map": None, "differs": {}} | _costs(cost)


def _trained(info: StudyInfo, best: TrialRecord, trained: Sequence[TrialRecord]) -> dict[str, Any]:
    def setting(record: TrialRecord, name: str) -> Any:
        return record.config.get(name, info.recipe.get(name))

    wanted = setting(best, "image_size_px")
    fair = [record for record in trained if setting(record, "image_size_px") == wanted]
    record = max(fair or trained, key=lambda record: info.over_seeds(record).mean or 0.0)
    pairs = {name: [setting(record, name), setting(best, name)] for name in _TOLD}
    return {
        "method": record.config["method"],
        "trial": record.trial,
        "map": info.over_seeds(record).mean,
        "differs": {name: [own, other] for name, (own, other) in pairs.items() if own != other},
    } | _costs(record)


def _costs(of: object) -> dict[str, Any]:
    return {name: getattr(of, name) for name in _COSTS}
