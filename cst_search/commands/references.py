"""References of a search: full fine-tuning, and the head alone. Costs are exact; mAP is known once trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cst_search.commands.budget_survey import Estimator
from cst_search.config.loading import make_recipe
from cst_search.config.search_space import Space
from cst_search.errors import ConfigError
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.records import StudyInfo, TrialRecord
from cst_search.study.states import TrialState

_PARTS = {"full": {"neck": "train", "head": "train"}, "head": {"neck": "frozen", "head": "predictor"}}
METHODS = tuple(_PARTS)
_COSTS = ("working_bytes", *(o.name for o in OBJECTIVES.values() if o.goal == "min"))
_TAKEN_OVER = ("batch_size", "image_size_px", "max_size_px")  # from the point, so that the costs compare
_TOLD = ("image_size_px", "batch_size")  # what decides on mAP and memory, and is said where it differs


def trained_parts(space: Space, method: str) -> dict[str, Any]:
    """Return how much of neck and head a method of `METHODS` trains as a reference, where the space has the choice."""
    chosen = {d.key: d for d in space.by_method[method]}
    return {key: value for key, value in _PARTS[method].items() if key in chosen and chosen[key].contains(value)}


def references(info: StudyInfo) -> list[dict[str, Any]]:
    """Return what each method of `METHODS` costs and reaches, beside a point of the front. Empty without a front.

    That point is the best; or, if that is full fine-tuning itself, the best of what is neither of the two.

    Returns:
        Per method its costs by name, ``map``, ``trial``, ``beside`` (trial of the point) and ``differs``. If the study
        has trained the method, these are of its trial of the highest mAP, and ``differs`` names a size of image or
        batch that is not the point's, as [its own, the point's]. Else ``map`` and ``trial`` are None, and costs are
        predicted at the batch and image size of the point.
    """
    front = info.front()
    if not front:
        return []
    found = [record for record in front if record.config.get("method") not in METHODS]
    point = found[0] if found and front[0].config.get("method") == "full" else front[0]
    both = (_reference(info, point, method) for method in METHODS)
    return [one | {"beside": point.trial} for one in both if one is not None]


def _reference(info: StudyInfo, point: TrialRecord, method: str) -> dict[str, Any] | None:
    trained = [record for record in info.trials if record.state == TrialState.COMPLETE and record.feasible]
    trained = [record for record in trained if record.config.get("method") == method]
    if trained:
        return _trained(info, point, trained)
    if not info.inputs:  # the study is of a version that did not store what costs depend on
        return None
    space = Space.from_dict(info.space, where=f"study {info.name!r}")
    taken = {name: point.config[name] for name in _TAKEN_OVER if name in point.config}
    taken |= trained_parts(space, method) if method in space.methods else {}
    sizes = tuple((int(height), int(width)) for height, width in info.inputs["sizes"])
    try:
        recipe = make_recipe(info.recipe, f"recipe of study {info.name!r}")
        cost = Estimator(recipe, info.inputs["n_classes"], sizes, info.inputs["max_boxes"])({"method": method, **taken})
    except ConfigError:  # the recipe does not go with this method
        return None
    return {"method": method, "trial": None, "map": None, "differs": {}} | _costs(cost)


def _trained(info: StudyInfo, point: TrialRecord, trained: Sequence[TrialRecord]) -> dict[str, Any]:
    def setting(record: TrialRecord, name: str) -> Any:
        return record.config.get(name, info.recipe.get(name))

    record = max(trained, key=lambda record: info.over_seeds(record).mean or 0.0)
    pairs = {name: [setting(record, name), setting(point, name)] for name in _TOLD}
    return {
        "method": record.config["method"],
        "trial": record.trial,
        "map": info.over_seeds(record).mean,
        "differs": {name: [own, other] for name, (own, other) in pairs.items() if own != other},
    } | _costs(record)


def _costs(of: object) -> dict[str, Any]:
    return {name: getattr(of, name) for name in _COSTS}
