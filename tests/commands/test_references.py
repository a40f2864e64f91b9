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
    assert head == {"method": "head", "working_bytes": 400, "device_bytes": 400, "map": 0.5}  # not 16, over the budget


def test_without_a_front_there_is_nothing_to_compare() -> None:
    assert references(drawn_info(trials=(), inputs=INPUTS)) == []
