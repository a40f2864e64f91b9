"""Full fine-tuning and the head alone, beside what a search found."""

from __future__ import annotations

from dataclasses import replace

from studies import drawn_info

from cst_search.commands.references import references
from cst_search.config.recipe import Recipe
from cst_search.memory.estimate import CONTEXT_BYTES, worst_input
from cst_search.trial.cost import predict

INPUTS = {"n_classes": 3, "max_boxes": 5, "sizes": [[480, 640]]}
RECIPE = Recipe(image_size_px=256, max_size_px=320, batch_size=2)


def test_costs_are_predicted_at_the_batch_and_image_of_the_best_point() -> None:
    info = drawn_info(recipe=RECIPE.to_dict(), inputs=INPUTS)
    trials = tuple(replace(r, config={**r.config, "batch_size": 4, "cst.reduction": 2}) for r in info.trials)
    found = references(replace(info, trials=trials))
    assert [one["method"] for one in found] == ["full", "head"] and all(one["map"] is None for one in found)
    for one in found:
        recipe = replace(RECIPE, method=one["method"], batch_size=4)
        cost = predict(recipe, 3, worst_input(recipe, ((480, 640),), 5))
        assert (one["working_bytes"], one["device_bytes"]) == (cost.working_bytes, cost.device_bytes)
        assert one["device_bytes"] - one["working_bytes"] == CONTEXT_BYTES
    assert found[0]["working_bytes"] > found[1]["working_bytes"]


def test_a_method_that_was_trained_has_its_map() -> None:
    info = drawn_info()
    trials = tuple(replace(r, config={"method": "head"}) if r.trial in (13, 14, 16) else r for r in info.trials)
    (head,) = references(replace(info, trials=trials))  # this study has no inputs, so that no cost can be predicted
    wanted = {"method": "head", "trial": 13, "working_bytes": 400, "device_bytes": 400, "map": 0.5, "differs": {}}
    assert head == head | wanted  # not 16, over the budget
    assert head["trainable_params"] == info.by_number(13).trainable_params  # type: ignore[union-attr]


def test_a_trained_method_is_compared_at_the_same_image_size() -> None:
    """Trial 13 has the better mAP, but at another size; only without a trial of the same size is it taken, and said."""
    info = drawn_info(recipe=RECIPE.to_dict())
    sizes = {14: {}, 13: {"image_size_px": 512, "batch_size": 8}}  # 14: the recipe's, as the best point
    changed = {number: {"method": "head", **size} for number, size in sizes.items()}
    trials = tuple(replace(r, config=changed.get(r.trial, r.config)) for r in info.trials)
    (head,) = references(replace(info, trials=trials))
    assert (head["trial"], head["differs"]) == (14, {})
    (head,) = references(replace(info, trials=tuple(r for r in trials if r.trial != 14)))
    assert (head["trial"], head["differs"]) == (13, {"image_size_px": [512, 256], "batch_size": [8, 2]})


def test_without_a_front_there_is_nothing_to_compare() -> None:
    assert references(drawn_info(trials=(), inputs=INPUTS)) == []
