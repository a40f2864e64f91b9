"""What `recompute: auto` stands for: without a budget, with one, in a search, and in what earlier versions stored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from studies import FakeEstimate, make_study, scored

from cst_search.commands import train
from cst_search.commands.budget_survey import estimator
from cst_search.commands.estimate import estimate
from cst_search.commands.export import export
from cst_search.config.loading import load_recipe
from cst_search.config.recipe import Recipe
from cst_search.data.dataset import DetectionData
from cst_search.detector.build import build_detector
from cst_search.execution.task import Task, execute
from cst_search.study.objectives import OBJECTIVES
from cst_search.study.records import Budget
from cst_search.trial import run
from cst_search.trial.cost import predict, recomputed_part, with_former_recompute, with_recompute

Make = Callable[..., Recipe]
NEEDS = {"none": 100, "neck": 60, "all": 50}  # bytes
SPACE = {"methods": ["cst", "head"], "shared": {"batch_size": {"choice": [1, 2]}}}


def needs(config: Mapping[str, Any]) -> int:
    return NEEDS[config["recompute"]] * int(config.get("batch_size", 1))


@pytest.mark.parametrize(
    ("method", "budget", "spares_memory", "expected"),
    [
        ("cst", None, False, "none"),
        ("cst", 100, False, "none"),  # exactly on the budget
        ("cst", 99, False, "neck"),
        ("cst", 59, False, "all"),
        ("cst", 49, False, "all"),  # over the budget in any case: what needs least
        ("cst", None, True, "neck"),  # the side network is there to save memory
        ("cst", 100, True, "neck"),
        ("cst", 59, True, "all"),
        ("head", None, True, "none"),
        ("full", 99, True, "neck"),
    ],
)
def test_auto_recomputes_what_the_budget_needs(
    method: str, budget: int | None, spares_memory: bool, expected: str
) -> None:
    config = {"method": method, "batch_size": 1}
    settled = with_recompute(config, Recipe(), needs, budget, spares_memory=spares_memory)
    assert settled == config | {"recompute": expected}
    explicit = config | {"recompute": "all"}
    assert with_recompute(explicit, Recipe(), needs, budget, spares_memory=spares_memory) == explicit


def test_without_a_budget_nothing_is_recomputed(tiny_recipe: Make) -> None:
    for method in ("cst", "full"):
        recipe = tiny_recipe(method=method)
        assert recipe.recompute == "auto" and recomputed_part(recipe) == "none"
        assert predict(recipe, 3) == predict(replace(recipe, recompute="none"), 3)
    assert not build_detector(tiny_recipe(), 3).backbone.fpn.recompute  # type: ignore[union-attr]
    assert build_detector(tiny_recipe(recompute="neck"), 3).backbone.fpn.recompute  # type: ignore[union-attr]


def test_an_estimate_recomputes_where_it_would_exceed_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cst_search.petl.method_names", lambda: ("cst", "head"))  # of twelve
    recipe = replace(load_recipe("demo"), image_size_px=512, max_size_px=512)
    without, neck = (estimate(replace(recipe, recompute=part)).guess for part in ("none", "neck"))
    assert neck.device_bytes < without.device_bytes
    for budget, part, expected in (
        (without.device_bytes, "none", without),
        (without.device_bytes - 1, "neck", neck),
        (None, "none", without),
    ):
        found = estimate(recipe, fit=None if budget is None else f"{budget}B")
        assert found.config["recompute"] == part and found.guess == expected
        if found.fit is not None:
            row = next(row for row in found.fit.methods if row.method == "cst")
            assert row.fits and row.device_bytes == expected.device_bytes


def price(config: dict[str, Any]) -> FakeEstimate:
    return FakeEstimate(needs(config), trainable_params=1)


@pytest.mark.parametrize(
    ("objectives", "parts"),
    [
        (
            ("map", "trainable_params"),
            {("cst", 1): "none", ("cst", 2): "neck", ("head", 1): "none", ("head", 2): "neck"},
        ),
        (("map", "device_bytes"), {("cst", 1): "neck", ("cst", 2): "neck", ("head", 1): "none", ("head", 2): "neck"}),
    ],
)
def test_a_trial_and_its_recipe_say_what_it_recomputes(
    tmp_path: Path, objectives: tuple[str, ...], parts: dict[tuple[str, int], str]
) -> None:
    chosen = tuple(OBJECTIVES[name] for name in objectives)
    session = make_study(tmp_path, space=SPACE, budget=Budget(120), objectives=chosen)
    session.begin_launch()
    while (found := session.ask(price, max_rejects=20)) is not None:  # type: ignore[arg-type]
        config = found.config
        assert config["recompute"] == parts.pop((config["method"], config["batch_size"]))
        assert found.estimate["device_bytes"] == needs(config) <= 120
        session.tell(found.trial, scored(0.3))
        assert session.study.record(found.trial).config["recompute"] == config["recompute"]
        export(session.study.info(), f"trial={found.trial}", tmp_path / "best.yaml")
        assert load_recipe(tmp_path / "best.yaml").recompute == config["recompute"]
    assert not parts  # each configuration once


def test_a_trial_of_an_earlier_version_keeps_its_meaning(
    tmp_path: Path, tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It recomputed the neck of a side network, and did not store that."""
    session = make_study(tmp_path, space=SPACE, budget=Budget(None))
    session.begin_launch()
    found = session.ask(price)  # type: ignore[arg-type]
    assert found is not None
    while found.config["method"] != "cst":
        found = session.ask(price)  # type: ignore[arg-type]
        assert found is not None
    session.tell(found.trial, scored(0.3))
    former = {key: value for key, value in found.config.items() if key != "recompute"}
    recipe = Recipe.from_dict(session.study.spec.recipe)
    for config, part in ((former, "neck"), (former | {"method": "head"}, "none"), ({"recompute": "all"}, "all")):
        assert with_former_recompute(config, recipe)["recompute"] == part

    ran: list[Recipe] = []
    monkeypatch.setattr(run, "run_trial", lambda recipe, *args, **options: ran.append(recipe))
    execute(Task(recipe, tiny_data, epochs=1, device="cpu", threads=0), 0, former, lambda entry: True)
    assert ran[0].recompute == "neck"

    # an exported recipe has the origin, and may say auto
    exported = replace(recipe, recompute="auto", origin={"study": "old"})
    assert recomputed_part(exported) == "neck" and recomputed_part(replace(exported, method="head")) == "none"
    assert with_recompute({}, exported, needs, 10**9) == {}
    assert predict(exported, 3) == predict(replace(exported, recompute="neck", origin=None), 3)
    record = replace(session.study.record(found.trial), config=former)
    info = replace(session.study.info(), trials=[record])
    export(info, f"trial={found.trial}", tmp_path / "old.yaml")
    assert load_recipe(tmp_path / "old.yaml").recompute == "neck"

    # and it is not handed out again: it is known under the same key as the configuration of today
    keys = []
    for config in (former, found.config):
        session.suggester._chosen.clear()
        session.suggester.note(config)
        keys.append(set(session.suggester._chosen))
    assert keys[0] == keys[1]


def test_training_on_a_gpu_recomputes_what_its_memory_needs(
    tiny_recipe: Make, tiny_data: DetectionData, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    recipe = tiny_recipe(batch_size=8, image_size_px=256, max_size_px=256)
    without = estimator(recipe, tiny_data)({}).device_bytes
    assert train._settle_recompute(recipe, tiny_data, "cpu", said.append) == recipe
    monkeypatch.setattr(train, "check_device", lambda name: torch.device("cuda"))
    for gpu_bytes, part in ((without, "none"), (without - 1, "neck")):
        gpu = SimpleNamespace(total_memory=gpu_bytes)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device, gpu=gpu: gpu)
        assert train._settle_recompute(recipe, tiny_data, "cuda", said.append).recompute == part
        assert bool(said) == (part == "neck")
