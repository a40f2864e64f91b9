"""Recipe fields that were called otherwise once, or meant something else: what an earlier version wrote is still read.

`study-before-recompute.sql` is the database of a study that version 0.1.0 made on the demo while ``recompute`` was
called ``checkpoint``: 2 trials of one epoch, the field set in the recipe, shared in the space and of one method's own.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from studies import fake_estimate, run_cli
from torchvision.models import WeightsEnum
from trial_fixtures import random_body_state

from cst_search.config.loading import apply_settings, load_recipe, load_space, make_recipe, read_yaml
from cst_search.config.recipe import FORMER_NAMES, Recipe
from cst_search.config.search_space import Space
from cst_search.data.dataset import DetectionData
from cst_search.detector.build import build_detector
from cst_search.detector.weights import load_trained, save_trained
from cst_search.errors import ConfigError, StudyError
from cst_search.search.session import SearchSession
from cst_search.study.study import Study
from cst_search.trial.run import run_trial

Make = Callable[..., Recipe]
BOTH = "checkpoint is the former name of recompute; give recompute alone"


def former(values: dict[str, Any]) -> dict[str, Any]:
    """Values by field name, as they were written before."""
    before = {new: old for old, new in FORMER_NAMES.items()}
    return {before.get(name, name): value for name, value in values.items()}


def test_an_old_recipe_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("method: head\ncheckpoint: all\n")
    assert load_recipe(tmp_path / "mine.yaml") == Recipe(method="head", recompute="all")
    assert Recipe.from_dict(former(Recipe(recompute="neck").to_dict())) == Recipe(recompute="neck")
    assert "checkpoint" not in Recipe().to_dict()


@pytest.mark.parametrize("settings", [["checkpoint=neck"], {"checkpoint": "neck"}])
def test_an_old_setting_is_read(settings: Any) -> None:
    assert apply_settings(Recipe(), settings, "mine").recompute == "neck"


def test_a_wrong_value_is_named_as_the_field_is_called_today() -> None:
    with pytest.raises(ConfigError, match="recompute must be one of auto, none, neck, all; got 'some'"):
        apply_settings(Recipe(), ["checkpoint=some"], "mine")


def test_a_recipe_with_both_names_is_refused(tmp_path: Path) -> None:
    both = {"checkpoint": "none", "recompute": "none"}
    for read in (lambda: make_recipe(both, "mine.yaml"), lambda: Recipe.from_dict(both)):
        with pytest.raises(ConfigError, match=BOTH):
            read()
    with pytest.raises(ConfigError, match=BOTH):
        apply_settings(Recipe(), ["checkpoint=none", "recompute=none"], "mine")


def test_an_old_space_is_read() -> None:
    old = {
        "methods": ["head", "cst"],
        "shared": {"checkpoint": {"choice": ["none", "neck"]}},
        "cst": {"checkpoint": {"choice": ["neck", "all"]}},
    }
    space = load_space(old)
    assert space.source == {section: {FORMER_NAMES.get(k, k): v for k, v in rules.items()} if section != "methods"
                            else rules for section, rules in old.items()}  # fmt: skip
    assert [d.name for d in space.dimensions()] == ["method", "recompute", "cst.recompute"]
    assert space.keys() == ["method", "recompute"]
    old["cst"]["recompute"] = {"choice": ["none", "all"]}  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match=BOTH):
        load_space(old)
    with pytest.raises(ConfigError, match=f"cst: {BOTH}"):
        Space.from_dict(old)


@pytest.fixture
def old_home(tmp_path: Path) -> Path:
    """A ``--home`` with the study of an earlier version in it."""
    database = sqlite3.connect(tmp_path / "studies.db")
    database.executescript(Path(__file__).with_name("study-before-recompute.sql").read_text())
    database.close()
    return tmp_path


def test_an_old_study_is_read_and_continued(old_home: Path) -> None:
    url = f"sqlite:///{old_home / 'studies.db'}"
    study = Study.open(url, "old")
    info = study.info()
    assert [record.config["recompute"] for record in info.trials] == ["neck", "none"]
    assert not any("checkpoint" in record.config for record in info.trials)
    assert make_recipe(info.recipe, "old").recompute == "neck"
    # Optuna's parameters are named as before, or its samplers would know nothing of the trials that are there
    assert [d.name for d in study.space.dimensions()] == ["method", "lr", "checkpoint", "norm.checkpoint"]

    # written before whole detectors could be loaded: DEFAULT was torchvision's ResNet, neck and heads were trained
    assert study.spec.recipe["weights"] == "demo" and study.spec.recipe["neck"] == "train"
    spec = {key: value for key, value in vars(study.spec).items()}
    today = replace(study.spec, space=load_space(spec["space"]).source)
    assert "recompute" in today.space["shared"] and "recompute" in today.recipe
    again = Study.create(url, "old", today)  # with the same recipe and space, as they are written today
    with pytest.raises(StudyError, match="made with another --recipe;"):
        Study.create(url, "old", replace(today, recipe={**today.recipe, "recompute": "all"}))

    session = SearchSession(again)
    session.begin_launch()
    suggested = session.ask(fake_estimate)
    assert suggested is not None and suggested.config["recompute"] in ("none", "neck", "all")
    assert study.optuna_study().trials[-1].params.keys() & {"checkpoint", "norm.checkpoint"}


def test_an_old_study_is_shown_and_exported(old_home: Path) -> None:
    front = json.loads(run_cli("front", "old", "--home", old_home, "--json").out)
    assert {entry["config"]["recompute"] for entry in front["front"]} <= {"neck", "none"}
    run_cli("export", "old", "--pick", "trial=0", "-o", old_home / "best.yaml", "--no-verify", "--home", old_home)
    written = read_yaml(old_home / "best.yaml")
    assert written["recompute"] == written["origin"]["config"]["recompute"] == "neck" and "checkpoint" not in written


def test_old_weights_are_read(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe, path = tiny_recipe(method="head", recompute="all"), tmp_path / "w.safetensors"
    save_trained(build_detector(recipe, 3), recipe, ("a", "b", "c"), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata["recipe"] = json.dumps(former(json.loads(metadata["recipe"])))
    save_file(load_file(path), path, metadata=metadata)
    assert load_trained(path).recipe == recipe


def test_a_trial_goes_on_from_an_old_checkpoint(tiny_recipe: Make, tiny_data: DetectionData, tmp_path: Path) -> None:
    recipe, path = tiny_recipe(method="head"), tmp_path / "7.pt"
    options: dict[str, Any] = {"epochs": 2, "device": "cpu", "rungs": (1,), "checkpoint": path}
    run_trial(recipe, tiny_data, report=lambda entry: False, **options)
    content = torch.load(path, weights_only=True)
    identity = json.loads(content["identity"])
    content["identity"] = json.dumps(identity | {"recipe": former(identity["recipe"])}, sort_keys=True)
    torch.save(content, path)
    ended = run_trial(recipe, tiny_data, **options)
    assert ended.resumed_epochs == 1 and ended.notes == []


# --- weights: DEFAULT, which meant the ResNet alone until whole detectors could be loaded -----------------------------

NEW_FIELDS = ("neck", "head", "lora_rank", "class_init", "augment")


def before_detectors(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it was stored before it had the fields of a trained detector."""
    return {name: value for name, value in recipe.to_dict().items() if name not in NEW_FIELDS}


def test_default_weights_that_were_stored_keep_their_meaning() -> None:
    recipe = Recipe(detector="fcos", weights="DEFAULT")
    assert recipe.weights_kind == "COCO"
    assert Recipe.from_dict(before_detectors(recipe)) == replace(recipe, weights="IMAGENET")
    assert Recipe.from_dict(recipe.to_dict()) == recipe  # stored by this version
    kept = Recipe(detector="fcos", weights="none")
    assert Recipe.from_dict(before_detectors(kept)) == kept


def test_default_weights_in_a_file_mean_what_they_mean_today(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("detector: fcos\nweights: DEFAULT\n")
    assert load_recipe(path).weights_kind == "COCO"
    path.write_text("detector: fcos\nweights: DEFAULT\norigin: {study: s, trial: 3}\n")  # exported by a study
    assert load_recipe(path).weights_kind == "IMAGENET"
    assert Recipe.from_dict(read_yaml(path), by_hand=True).weights == "IMAGENET"
    path.write_text("detector: fcos\nweights: DEFAULT\nneck: train\norigin: {study: s, trial: 3}\n")
    assert load_recipe(path).weights_kind == "COCO"


def test_old_weights_with_default_are_read(tiny_recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their base hash is that of torchvision's ResNet."""
    state = random_body_state("resnet18", 1.0)
    monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **options: state)
    recipe, path = tiny_recipe(method="head", width=1.0, weights="DEFAULT"), tmp_path / "w.safetensors"
    save_trained(build_detector(recipe, 3), recipe, ("a", "b", "c"), path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    save_file(load_file(path), path, metadata=metadata | {"recipe": json.dumps(before_detectors(recipe))})
    assert load_trained(path).recipe == replace(recipe, weights="IMAGENET")
