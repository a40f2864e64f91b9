"""What a launch decides before its first trial: memory limits, sharers, references, first trials, the sampler."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launches import SPACE, read
from studies import run_cli

from cst_search.commands import launch as launch_module
from cst_search.commands.budget_survey import Survey, augmentation_note, expected_sharers
from cst_search.commands.dataset import dataset_inputs, image_sizes
from cst_search.commands.study_setup import first_configs, reference_point
from cst_search.commands.worker_setup import memory_limit_of
from cst_search.config.recipe import Recipe
from cst_search.config.search_space import Space
from cst_search.data.dataset import DetectionData
from cst_search.errors import ConfigError
from cst_search.memory.estimate import CONTEXT_WITH_BLAS_BYTES, worst_input
from cst_search.petl import get_method
from cst_search.search.samplers import check_sampler, default_sampler
from cst_search.search.session import SearchSession
from cst_search.study.objectives import choose_objectives
from cst_search.study.records import Budget
from cst_search.trial.default_config import default_config

GB = 10**9


@pytest.mark.parametrize(
    ("budget", "memory", "params"),
    [
        (Budget(), 8 * 10**8 + 105 * 10**6 + 1, 2101),  # 5 % of the working memory, not of the context
        (Budget(850_000_000, 2050), 850_000_000, 2050),
        (Budget(6 * GB, 10**6), 8 * 10**8 + 105 * 10**6 + 1, 2101),  # a budget far above the space
    ],
)
def test_the_reference_point_is_a_little_beyond_the_space_or_the_budget(
    budget: Budget, memory: float, params: float
) -> None:
    costs = {"device_bytes": (870_000_000, 900_000_000), "trainable_params": (1000, 2000), "petl_params": (10, 20)}
    costs |= {"delta_bytes": (4000, 8000), "inference_bytes": (100, 200), "flops": (300, 400)}
    survey = Survey(costs | {"marginal_flops": (30, 40)}, context_bytes=800_000_000)
    assert reference_point(survey, budget) == pytest.approx(
        {"map": 0, "map50": 0, "device_bytes": memory, "trainable_params": params, "petl_params": 22,
         "delta_bytes": 8401, "inference_bytes": 211, "flops": 421, "marginal_flops": 43}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("why", "device", "budget", "limit", "allowed"),
    [
        ("a GPU is held to the budget", "cuda", 6 * GB, None, 6 * GB),
        ("unless told otherwise", "cuda", 6 * GB, 4 * GB, 4 * GB),
        ("also without a budget", "cuda", None, 4 * GB, 4 * GB),
        ("or to nothing", "cuda", None, None, None),
        ("a budget that lets nothing through", "cuda", 10, None, 10),
        ("the budget is about a GPU's memory, not this CPU's", "cpu", 6 * GB, None, None),
        ("a CPU's is asked for", "cpu", 6 * GB, 300, 300),
    ],
)
def test_memory_limit_of_each_trial(
    why: str, device: str, budget: int | None, limit: int | None, allowed: int | None
) -> None:
    assert memory_limit_of(Budget(budget, None), limit, torch.device(device)) == allowed


def test_a_limit_below_what_cuda_takes_is_the_persons_mistake() -> None:
    with pytest.raises(ConfigError, match=r"--limit-mem must be above the .* that CUDA itself takes of a GPU; got "):
        memory_limit_of(Budget(), CONTEXT_WITH_BLAS_BYTES, torch.device("cuda"))


def test_a_limit_that_is_no_size(tmp_path: Path) -> None:
    ran = run_cli("launch", "--limit-mem", "300 apples", "--home", tmp_path)
    assert (ran.code, "a memory size must be a positive number with a unit" in ran.message) == (2, True), ran
    assert list(tmp_path.iterdir()) == []


def test_three_sizes_stand_for_all_of_a_dataset(tiny_data: DetectionData) -> None:
    """An export where the data is not takes them: the worst batch must be that of all images."""
    rng = random.Random(0)

    def image() -> Any:
        return SimpleNamespace(height=rng.randint(20, 900), width=rng.randint(20, 900))

    for _ in range(300):
        images = [image() for _ in range(rng.choice([1, 2, 3, 10]))]
        data: Any = SimpleNamespace(
            splits={"train": SimpleNamespace(images=images)}, class_names=("a",), summary=lambda: {"max_boxes": 7}
        )
        short = rng.choice([64, 320, 800])
        recipe = Recipe(image_size_px=short, max_size_px=round(short * rng.choice([1, 1.3, 1.7])))
        sizes = tuple((height, width) for height, width in dataset_inputs(data)["sizes"])
        assert len(sizes) <= 3
        few, all_ = (worst_input(recipe, some, 7) for some in (sizes, image_sizes(data)))
        # of the largest single image they give one of three: another ratio may fill more of the bounds
        assert replace(few, image_px=None) == replace(all_, image_px=None)
    assert dataset_inputs(tiny_data) == {"n_classes": 3, "max_boxes": 3, "sizes": [[64, 96], [80, 80], [96, 64]]}


@pytest.mark.parametrize(
    "methods, shared, low, high",
    [
        (["cst"], {"lr": {"float": [1e-3, 1e-2]}}, 24, 24),  # nothing that the body sees
        (["cst", "head"], {"batch_size": {"choice": [2, 4]}}, 11, 15),  # half of them have the same
        (["cst", "full"], {"lr": {"float": [1e-3, 1e-2]}}, 8, 16),  # half of them read any
        (["full"], {"lr": {"float": [1e-3, 1e-2]}}, 1, 1),
    ],
)
def test_number_of_trials_that_share_feature_maps(
    tiny_recipe: Callable[..., Recipe], methods: list[str], shared: dict[str, Any], low: int, high: int
) -> None:
    space = Space.from_dict({"methods": methods, "shared": shared})
    assert low <= expected_sharers(space, tiny_recipe(), 24) <= high


LR = {"lr": {"float": [1e-3, 1e-2]}}
NO_MAPS = "feature maps are cached for no trial: augmentation changes the images in every epoch"


@pytest.mark.parametrize(
    ("methods", "shared", "augment", "n_sharers", "said"),
    [
        (["cst"], LR, "none", 24, None),
        (["cst", "full"], LR, "light", 1, NO_MAPS),
        (["full"], LR, "light", 1, None),  # it would share none anyway
        (["cst"], LR | {"scale_jitter": {"choice": [1.0]}, "photometric": {"choice": [0.0]}}, "light", 24, None),
        (["cst"], {"augment": {"choice": ["none", "strong"]}}, "none", 12, "for trials without augmentation only"),
    ],
)
def test_augmented_trials_share_no_maps(
    tiny_recipe: Callable[..., Recipe], methods: list[str], shared: dict[str, Any], augment: str, n_sharers: int,
    said: str | None,
) -> None:  # fmt: skip
    space, recipe = Space.from_dict({"methods": methods, "shared": shared}), tiny_recipe(augment=augment)
    assert expected_sharers(space, recipe, 24) == pytest.approx(n_sharers, abs=3 if n_sharers == 12 else 0)
    note = augmentation_note(space, recipe)
    assert note == said or (said is not None and note is not None and said in note)


def test_the_line_about_the_cache_says_that_augmented_images_have_no_maps(
    tmp_path: Path, tiny_recipe: Callable[..., Recipe]
) -> None:
    setup: Any = SimpleNamespace(
        space=Space.from_dict({"methods": ["cst"], "shared": LR}), recipe=tiny_recipe(augment="light")
    )
    for cache_size, expected in ((10**8, [NO_MAPS]), (0, [])):  # without a cache there is nothing to say of it
        said: list[str] = []
        options: Any = SimpleNamespace(home=tmp_path, cache_size=cache_size, trials=4)
        launch_module._open_cache(options, setup, 0, said.append, True)
        assert said[0].startswith("cache ") and said[1:] == expected
        said.clear()
        launch_module._open_cache(options, setup, 0, said.append, False)
        assert said == (expected or ["cache off: --cache-size 0"])  # where it is and how large only a developer asks


@pytest.mark.parametrize(
    ("budget", "said", "remedy"),
    [
        (("--budget-params", "1k"), "--budget-params 1k is below", "head: predictor train less"),
        (("--budget-flops", "1MFLOP"), "--budget-flops 1 MFLOP is below", "a smaller image_size_px"),
    ],
)
def test_a_budget_that_excludes_all_is_said_and_ends(
    tmp_path: Path,
    base: Callable[..., list[str]],
    monkeypatch: pytest.MonkeyPatch,
    budget: tuple[str, str],
    said: str,
    remedy: str,
) -> None:
    ask = SearchSession.ask
    monkeypatch.setattr(SearchSession, "ask", lambda self, *some: ask(self, *some, max_rejects=5))
    ran = run_cli("launch", "--in-process", *base(tmp_path), "--trials", 2, *budget)
    assert ran.code == 1  # it ran, and found nothing
    assert f"{said} all of" in ran.out and "few or none will fit" in ran.out and remedy in ran.out
    assert "the sampler found no further configuration within the budget" in ran.out
    assert "no trial completed within the budget" in ran.message
    info = read(tmp_path, "shapes-1")  # a name of its own: the data set's
    assert info.n_ran() == 0 and info.counts()["infeasible"] == len(info.trials) > 0


@pytest.mark.parametrize(
    ("names", "expected"),
    [("map,device_bytes", "pareto"), ("map50", "pareto"), ("map,map50", "tpe"), ("device_bytes,petl_params", "tpe")],
)
def test_default_sampler_is_the_best_that_supports_the_objectives(names: str, expected: str) -> None:
    assert default_sampler(choose_objectives(names)) == expected
    if expected == "pareto":
        check_sampler("pareto", choose_objectives(names))


@pytest.mark.parametrize(("method", "expected"), [("lst", "lst"), ("full", "head")])
def test_the_recipe_is_tried_first(method: str, expected: str, tiny_recipe: Callable[..., Recipe]) -> None:
    """Of its method, with its own options and lr; where the space has not that method, of its first, as that is."""
    space = Space.from_dict(
        {
            "methods": ["head", "lst"],
            "shared": {"lr": SPACE["shared"]["lr"]},
            "lst": {"reduction": {"choice": [4, 16]}},
        },
        where="test",
    )
    recipe = tiny_recipe(method=method, lr=0.123, options={"reduction": 16} if method == "lst" else {})
    config = default_config(space, recipe)
    assert config["method"] == expected and config["batch_size"] == recipe.batch_size
    if method == "lst":
        assert (config["lst.reduction"], config["lr"]) == (16, 0.123)
    else:
        assert config["lr"] == get_method("head").lr


@pytest.mark.parametrize(
    ("method", "space", "expected"),
    [
        ("cst", ["cst", "head", "conv_lora", "full"], ["cst", "full", "head"]),
        ("head", ["cst", "head", "full"], ["head", "full"]),
        ("cst", ["conv_lora", "cst"], ["cst"]),
    ],
)
def test_references_follow_the_recipe(
    method: str, space: list[str], expected: list[str], tiny_recipe: Callable[..., Recipe]
) -> None:
    dimensions: dict[str, Any] = {"methods": space, "shared": {"lr": SPACE["shared"]["lr"]}}
    configs = first_configs(Space.from_dict(dimensions, where="test"), tiny_recipe(method=method, lr=0.123))
    assert [config["method"] for config in configs] == expected
    assert [config["lr"] for config in configs] == [0.123, *(get_method(name).lr for name in expected[1:])]


def test_references_are_the_two_ends_of_the_space(tiny_recipe: Callable[..., Recipe]) -> None:
    shared = {
        "batch_size": {"choice": [8, 2, 4]},
        "image_size_px": {"choice": [32, 96, 64]},
        "neck": {"choice": ["lora", "train", "frozen"]},
        "head": {"choice": ["predictor", "train"]},
    }
    space = Space.from_dict({"methods": ["cst", "full", "head"], "shared": shared}, where="test")
    recipe = tiny_recipe(batch_size=4, image_size_px=64, head="predictor")
    own, full, head = first_configs(space, recipe)
    assert [own[name] for name in shared] == [4, 64, "train", "predictor"]
    assert [full[name] for name in shared] == [4, 96, "train", "train"]
    assert [head[name] for name in shared] == [2, 64, "frozen", "predictor"]


def test_references_of_a_range_take_its_ends_and_of_a_space_without_a_choice_the_recipe(
    tiny_recipe: Callable[..., Recipe],
) -> None:
    shared = {"image_size_px": {"int": [32, 96]}, "batch_size": {"int": [1, 8]}, "neck": {"choice": ["lora", "norm"]}}
    space = Space.from_dict({"methods": ["cst", "full", "head"], "shared": shared}, where="test")
    _, full, head = first_configs(space, tiny_recipe(batch_size=4, image_size_px=64))
    assert (full["image_size_px"], full["batch_size"], full["neck"], full["head"]) == (96, 4, "train", "train")
    assert (head["image_size_px"], head["batch_size"], head["neck"], head["head"]) == (64, 1, "train", "train")
