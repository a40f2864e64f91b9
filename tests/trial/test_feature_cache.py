"""Maps of a frozen body: read or computed, the same to the last bit; used only where that holds and where it pays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cst_search.config.recipe import DETECTORS, USED_STAGES, Recipe
from cst_search.data.dataset import DetectionData
from cst_search.data.disk_cache import Cache, Store
from cst_search.data.images import CocoImages, loader
from cst_search.detector.build import build_detector
from cst_search.petl import METHODS
from cst_search.trial import feature_cache as module
from cst_search.trial.engine import choose_precision
from cst_search.trial.feature_cache import (
    Costs,
    Decision,
    FrozenFeatures,
    Passes,
    decide,
    following,
    frozen_features,
    is_frozen,
)
from cst_search.trial.result import TrialResult
from cst_search.trial.run import run_trial

pytestmark = pytest.mark.usefixtures("few_boxes")

Make = Callable[..., Recipe]
CPU = torch.device("cpu")
SIDE = sorted(name for name, method in METHODS.items() if method.side)


@pytest.fixture
def same_size(tiny_data: DetectionData) -> DetectionData:
    """Two thirds of the images of the tiny data, those which padded are 64 x 96 at the tests' size."""
    splits = {}
    for name, split in tiny_data.splits.items():
        images = [image for image in split.images if (image.width, image.height) in ((96, 64), (72, 64))]
        splits[name] = dataclasses.replace(split, images=(*images, *images[::-1]))
    return dataclasses.replace(tiny_data, splits=splits)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The decision is yes, whatever the clock says."""
    monkeypatch.setattr(module, "decide", lambda *a: Decision(True, "features kept: in a test"))
    monkeypatch.setattr(FrozenFeatures, "_look_again", lambda self: None)


def images_of(recipe: Recipe, data: DetectionData, split: str = "train", **options: Any) -> CocoImages:
    hflip = recipe.hflip and split == "train"
    return CocoImages(
        data.splits[split], image_size_px=recipe.image_size_px, max_size_px=recipe.max_size_px, hflip=hflip, **options
    )


def body_calls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Filled with the number of images of every pass through a body."""
    calls: list[int] = []
    forward = module.Body.forward

    def counted(self: Any, x: Tensor) -> Any:
        calls.append(len(x))
        return forward(self, x)

    monkeypatch.setattr(module.Body, "forward", counted)
    return calls


def figures(result: TrialResult) -> list[Any]:
    times = ("images_per_second", "seconds")
    return [
        {k: v for k, v in entry.items() if k not in times}
        for entry in [*result.history, *({**v} for v in result.final.values())]
    ]


# --- the same result --------------------------------------------------------------------------------------------------


# CST and LST, whose features are of stages and of blocks, with a family that reads C2 and one that does not, which is
# all that the frozen body has to do with a family; the others with one of the two. Each family once at least.
SAME = [
    ("cst", "fasterrcnn"), ("cst", "retinanet"), ("lst", "fasterrcnn"), ("lst", "fcos"),
    ("head", "fasterrcnn_v2"), ("side_tuning", "retinanet_v2"),
]  # fmt: skip


def test_every_side_method_and_every_family_is_compared() -> None:
    assert {method for method, _ in SAME} == set(SIDE) and {detector for _, detector in SAME} == set(DETECTORS)
    for method in ("cst", "lst"):
        assert {2 in USED_STAGES[detector] for name, detector in SAME if name == method} == {True, False}


@pytest.mark.parametrize(("method", "detector"), SAME)
def test_losses_and_scores_are_equal_bit_for_bit(
    tiny_recipe: Make, same_size: DetectionData, tmp_path: Path, always: None, monkeypatch: pytest.MonkeyPatch,
    method: str, detector: str,
) -> None:  # fmt: skip
    recipe = tiny_recipe(method=method, detector=detector, batch_size=2, lr=1e-2)
    plain = run_trial(recipe, same_size, epochs=2)
    calls = body_calls(monkeypatch)
    filling = run_trial(recipe, same_size, epochs=2, cache=Cache(tmp_path, 10**8))
    n_filling = len(calls)
    reading = run_trial(recipe, same_size, epochs=2, cache=Cache(tmp_path, 10**8))
    assert plain.outcome == "complete" and filling.notes == ["features kept: in a test"]
    assert figures(plain) == figures(filling) == figures(reading)
    # one that warms up, three that are measured; the last batch of an epoch may be smaller
    rest = -(-len(same_size.splits["train"].images) // 2) % 2 + 1
    assert len(calls) - n_filling <= 4 + 3 * rest < n_filling


def test_read_feature_maps_equal_computed_ones(
    tiny_recipe: Make, same_size: DetectionData, tmp_path: Path, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every map that LST reads, flipped and not, over several epochs."""
    recipe = tiny_recipe(method="lst", batch_size=2)
    model = build_detector(recipe, 3).train()
    backbone = model.backbone
    store = Store(Cache(tmp_path, 10**8))
    train = images_of(recipe, same_size, store=store)
    found = frozen_features(model, recipe, store, {train: 9}, device=CPU, precision=choose_precision("fp32", CPU))
    assert found is not None and backbone.features is found
    calls = body_calls(monkeypatch)
    read: list[list[bool]] = []  # by epoch and batch
    for epoch in range(5):
        read.append([])
        for images, targets in following(found, train, loader(train, batch_size=2, shuffle=True, seed=3, epoch=epoch)):
            x = model.transform(images)[0].tensors
            before = len(calls)
            with torch.no_grad():
                maps = found(x)
                read[-1].append(len(calls) == before)
                computed = backbone.body(x)
                assert all(torch.equal(maps[key], computed[key]) for key in maps)
                assert all(maps[key].is_contiguous() and not maps[key].requires_grad for key in maps)
                maps["image"] = x  # as the backbone does; which maps are read shows the first time
                backbone.side(maps)
                assert all(maps[f"c{stage}"] is not None for stage in backbone.used_stages)
            assert len(targets) == 2
    assert not any(read[0][:4]) and all(read[-1])


def test_reduced_precision_is_kept_as_it_is(
    tiny_recipe: Make, same_size: DetectionData, tmp_path: Path, always: None
) -> None:
    recipe = tiny_recipe(method="cst", precision="bf16", batch_size=2)
    plain = run_trial(recipe, same_size, epochs=2)
    results = [run_trial(recipe, same_size, epochs=2, cache=Cache(tmp_path, 10**8)) for _ in range(2)]
    assert all(figures(result) == figures(plain) for result in results)


def test_images_of_several_sizes(
    tiny_recipe: Make, tiny_data: DetectionData, tmp_path: Path, always: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch is read only if every image of it has the size; the figures are those without a cache."""
    recipe = tiny_recipe(method="cst", batch_size=2)
    plain = run_trial(recipe, tiny_data, epochs=5)
    read: list[tuple[int, ...]] = []
    reading = FrozenFeatures._read

    def seen(self: FrozenFeatures, *args: Any) -> Any:
        result = reading(self, *args)
        if result is not None:
            read.append(tuple(result["c3"].shape[-2:]))
        return result

    monkeypatch.setattr(FrozenFeatures, "_read", seen)
    result = run_trial(recipe, tiny_data, epochs=5, cache=Cache(tmp_path, 10**8))
    assert figures(result) == figures(plain)
    assert len(set(read)) == 1  # some were read, all of one size


# --- where it is not used ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", sorted(set(METHODS) - set(SIDE)))
def test_a_trained_backbone_is_always_computed(
    tiny_recipe: Make, same_size: DetectionData, tmp_path: Path, method: str
) -> None:
    recipe = tiny_recipe(method=method)
    model = build_detector(recipe, 3)
    assert not is_frozen(model.backbone.body)
    store = Store(Cache(tmp_path, 10**8))
    train = images_of(recipe, same_size)
    precision = choose_precision("fp32", CPU)
    assert frozen_features(model, recipe, store, {train: 1}, device=CPU, precision=precision) is None
    assert model.backbone.features is None


def test_nothing_is_left_behind(tiny_recipe: Make, same_size: DetectionData, tmp_path: Path, always: None) -> None:
    kept: list[Any] = []
    run_trial(tiny_recipe(), same_size, epochs=1, cache=Cache(tmp_path, 10**8), keep=kept.append)
    assert kept[0].backbone.features is None
    plain = build_detector(tiny_recipe(), 3)
    assert list(kept[0].state_dict()) == list(plain.state_dict())


def test_no_room_is_said_and_computed(tiny_recipe: Make, same_size: DetectionData, tmp_path: Path) -> None:
    recipe = tiny_recipe(batch_size=2)
    result = run_trial(recipe, same_size, epochs=2, cache=Cache(tmp_path, 200_000))
    assert figures(result) == figures(run_trial(recipe, same_size, epochs=2))
    assert len(result.notes) == 1 and "do not fit" in result.notes[0]


def test_augmented_images_are_computed_which_one_note_says(
    tiny_recipe: Make, same_size: DetectionData, tmp_path: Path, always: None
) -> None:
    recipe = tiny_recipe(batch_size=2, augment="light")
    result = run_trial(recipe, same_size, epochs=2, cache=Cache(tmp_path, 10**8))
    assert result.notes == ["features computed: augmentation changes the images in every epoch"]
    assert n_features(tmp_path) == 0 and len(list(tmp_path.glob("pixels-*"))) == 2
    assert figures(result) == figures(run_trial(recipe, same_size, epochs=2))
    # where there would be no features anyway, there is nothing to say
    assert run_trial(tiny_recipe(method="full", augment="light"), same_size, cache=Cache(tmp_path, 10**8)).notes == []
    only_flipped = tiny_recipe(batch_size=2, augment="light", scale_jitter=1.0, photometric=0.0)
    assert run_trial(only_flipped, same_size, cache=Cache(tmp_path, 10**8)).notes == ["features kept: in a test"]


def test_a_folder_that_cannot_be_used_is_one_note(tiny_recipe: Make, same_size: DetectionData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    result = run_trial(tiny_recipe(batch_size=2), same_size, epochs=2, cache=Cache(tmp_path / "file" / "x", 10**8))
    assert result.outcome == "complete"
    assert [note.partition(":")[0] for note in result.notes] == ["cache off", "features computed"]


def test_a_slow_disk_turns_the_cache_off(
    tiny_recipe: Make, same_size: DetectionData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "decide", lambda *a: Decision(True, "features kept: in a test"))
    clock: Iterator[int] = iter(range(10**9))
    # every look at the clock is a second later: computing takes a second a batch, and so does reading
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    look_again = FrozenFeatures._look_again

    def slow(self: FrozenFeatures) -> None:
        self._read_seconds *= 3
        look_again(self)

    monkeypatch.setattr(FrozenFeatures, "_look_again", slow)
    recipe = tiny_recipe(batch_size=2)
    run_trial(recipe, same_size, epochs=2, cache=Cache(tmp_path, 10**8))
    result = run_trial(recipe, same_size, epochs=3, cache=Cache(tmp_path, 10**8))
    assert [note.partition(":")[0] for note in result.notes] == ["features kept", "features computed from now on"]
    assert figures(result) == figures(run_trial(recipe, same_size, epochs=3))


# --- the key ----------------------------------------------------------------------------------------------------------


def n_features(folder: Path) -> int:
    return len(list(folder.glob("features-*")))


CHANGES = [
    ({}, False, "the same trial again"),
    ({"lr": 1e-4, "epochs": 3, "seed": 4}, False, "what the body does not see"),
    ({"method": "head"}, False, "reads some of the same maps"),
    ({"batch_size": 3}, True, "kernels are chosen by it"),
    ({"precision": "bf16"}, True, "other numbers"),
    ({"image_size_px": 32}, True, "other images"),
    ({"hflip": False}, True, "no mirrored slots"),
    ({"weights": "none"}, True, "another body"),
]


@pytest.mark.parametrize("changes, is_other, why", CHANGES)
def test_what_makes_another_key(
    tiny_recipe: Make, same_size: DetectionData, tmp_path: Path, changes: dict[str, Any], is_other: bool, why: str
) -> None:
    cache = Cache(tmp_path, 10**8)
    run_trial(tiny_recipe(method="cst", batch_size=2), same_size, epochs=1, cache=cache)
    before = n_features(tmp_path)
    run_trial(tiny_recipe(**({"method": "cst", "batch_size": 2} | changes)), same_size, epochs=1, cache=cache)
    assert before > 0 and (n_features(tmp_path) > before) == is_other, why


# --- the decision -----------------------------------------------------------------------------------------------------

FAST = Costs(compute=0.030, write=0.003, read=0.001)
FLIPPED, VAL = Passes(200, 5, 2), Passes(60, 2, 1)
ROWS = [
    (FAST, [FLIPPED, VAL], 1, True, "two views computed once, three passes read"),
    (FAST, [Passes(200, 2, 2)], 1, False, "two views and two passes: nothing left to read"),
    (FAST, [Passes(200, 2, 1)], 1, True, "without flips the second pass reads"),
    (FAST, [Passes(200, 1, 1)], 1, False, "one pass"),
    (FAST, [Passes(200, 1, 2)], 8, True, "one pass, but other trials to come"),
    (FAST, [Passes(200, 1, 2, filled=1.0)], 1, True, "an earlier trial filled it"),
    (Costs(0.030, 0.003, 0.031), [Passes(200, 5, 1, filled=1.0)], 9, False, "reading is slower"),
    (Costs(0.002, 0.050, 0.001), [Passes(200, 4, 1)], 1, False, "writing takes more than the rest gives"),
    (Costs(0.030, 0.0, 0.0295), [Passes(200, 5, 1, filled=1.0)], 9, False, "a gain below 5 % is noise"),
    (FAST, [Passes(200, 5, 2, share=0.0)], 9, False, "no batch of one size"),
    (FAST, [], 1, False, "nothing to read"),
    (FAST, [Passes(0, 5, 2)], 1, False, "no images"),
]


@pytest.mark.parametrize("costs, passes, n_trials, use, why", ROWS)
def test_decision(costs: Costs, passes: list[Passes], n_trials: int, use: bool, why: str) -> None:
    decision = decide(costs, passes, n_trials, 10**9, True)
    assert decision.use == use, (why, decision)
    assert decision.why.startswith("features kept: 1 GB" if use else "features computed: ") and "\n" not in decision.why


def test_decision_is_no_without_room() -> None:
    assert decide(FAST, [FLIPPED], 9, 10**9, False) == Decision(
        False, "features computed: 1 GB of them do not fit into what --cache-size leaves"
    )


def test_the_figure_of_a_decision() -> None:
    """200 images, 5 passes, both views: 1000 * 30 ms without; 400 * 33 ms + 800 * 1 ms = 14 s of 30 s with."""
    assert "53% less time in the body" in decide(FAST, [FLIPPED], 1, 10**9, True).why
