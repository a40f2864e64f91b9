"""The detector shipped for the demo: small, of the demo recipe's shape, and trained on the source domain."""

from __future__ import annotations

import json
import sys
from functools import cache
from pathlib import Path

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

from cst_search import detector
from cst_search.config.recipe import Recipe
from cst_search.data.demo import CATEGORIES
from cst_search.detector import build_detector

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "tools"))

from source_domain import CLASS_NAMES  # noqa: E402  (of tools/, which is no package)
from train_demo_backbone import evaluate  # noqa: E402
from train_demo_detector import load_source  # noqa: E402

FILE = Path(detector.__file__).parent / "weights" / "demo-detector.safetensors"


@cache
def metadata() -> dict[str, str]:
    with safe_open(FILE, "pt") as file:
        return dict(file.metadata())


def network() -> nn.Module:
    """The demo recipe's network for the source classes, its pyramid and heads random."""
    content = yaml.safe_load((ROOT / "trials" / "demo.yaml").read_text())
    recipe = Recipe.from_dict(content | {"weights": "demo", "neck": "train", "head": "train", "method": "head"})
    return build_detector(recipe, len(CLASS_NAMES)).eval()


def test_the_file_is_small_and_says_where_it_comes_from() -> None:
    assert FILE.stat().st_size < 8_000_000
    assert metadata().keys() >= {"format", "what", "class_names", "script", "command", "source_map", "date"}
    assert {tensor.dtype for tensor in load_file(FILE).values()} == {torch.float16}


def test_its_classes_are_the_source_domain_and_none_of_the_demo() -> None:
    assert tuple(json.loads(metadata()["class_names"])) == CLASS_NAMES
    assert not set(CATEGORIES) & {word for name in CLASS_NAMES for word in name.split()}


def test_every_tensor_of_the_demo_network_is_in_the_file() -> None:
    state = load_file(FILE)
    assert all(tensor.isfinite().all() for tensor in state.values())
    assert network().load_state_dict(state, strict=False) == ([], [])


def test_it_detects_on_images_that_it_has_not_seen() -> None:
    images, targets = load_source(5_000_000, n_rich=4, n_plain=8, workers=1)
    model, n_labels = network(), len(CLASS_NAMES) + 1
    untrained = evaluate(model, images, targets, n_labels)[0]
    model.load_state_dict(load_file(FILE))
    assert evaluate(model, images, targets, n_labels)[0] > untrained + 0.1
