"""What training wrote: the trained tensors and nothing else; back again to the same predictions."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from test_build import STARTS
from torch import Tensor, nn
from trial_fixtures import random_body_state

from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.detector.build import build_detector, trained_tensors
from cst_search.detector.weights import load_trained, save_trained
from cst_search.errors import ConfigError, UserError
from cst_search.petl import METHODS

pytestmark = pytest.mark.usefixtures("few_boxes")

Make = Callable[..., Recipe]
CLASSES = ("square", "disc", "bar")


def disturbed(recipe: Recipe) -> nn.Module:
    """A detector as training leaves it: everything trained has moved, and it names something."""
    model = build_detector(recipe, len(CLASSES))
    with torch.no_grad():
        for name, tensor in trained_tensors(model).items():
            if tensor.is_floating_point():
                tensor += 0.05 * torch.randn_like(tensor)
            else:
                tensor += 7
            if name.endswith("cls_logits.bias"):
                tensor.zero_()
            elif name.endswith("cls_score.weight"):
                tensor *= 0.05  # or the background alone has a score
    return model.eval()


def predictions(model: nn.Module) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        return model([torch.rand(3, 64, 80, generator=generator), torch.rand(3, 96, 70, generator=generator)])


def read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()


# every pair of method and base, of family and base; each method with two families in turn
@pytest.mark.parametrize(
    ("base", "method", "detector"),
    [
        (base, method, DETECTORS[(m + b) % len(DETECTORS)])
        for m, method in enumerate(sorted(METHODS))
        for b, base in enumerate(("file", "none"))  # none: drawn again from the seed, with live statistics
    ],
)
def test_saved_weights_load_to_the_same_detections(
    tiny_recipe: Make, tmp_path: Path, detector: str, method: str, base: str
) -> None:
    changes = {} if base == "file" else {"weights": "none"}
    options = {"norm": "bn", "operator": "lst"} if method == "cst" else {}
    recipe = tiny_recipe(detector=detector, method=method, options=options, seed=3, **changes)
    model = disturbed(recipe)
    path = tmp_path / "deep" / "er" / "w.safetensors"
    save_trained(model, recipe, CLASSES, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["w.safetensors"]  # no half-written file stays

    tensors, _ = read(path)
    assert tensors.keys() == trained_tensors(model).keys()
    in_body = {name for name in tensors if name.startswith("backbone.body.")}
    assert bool(in_body) != METHODS[method].side
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    statistics = {name for name, _ in model.named_buffers() if "running_" in name or "num_batches" in name}
    assert trainable <= tensors.keys() <= trainable | statistics

    loaded, again, classes = load_trained(path)
    assert (again, classes) == (recipe, CLASSES)
    assert not any(module.training for module in loaded.modules())
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    for mine, expected in zip(predictions(loaded), predictions(model), strict=True):
        assert len(expected["boxes"]) > 0
        assert all(torch.equal(mine[key], expected[key]) for key in expected)


@pytest.mark.parametrize(("method", "options"), [row for row in STARTS if row[1]], ids=str)
@pytest.mark.parametrize("weights", ["file", "none"])
def test_saved_weights_load_with_other_options(
    tiny_recipe: Make, tmp_path: Path, method: str, options: dict[str, Any], weights: str
) -> None:
    changes = {} if weights == "file" else {"weights": weights}
    recipe = tiny_recipe(method=method, options=options, **changes)
    model = disturbed(recipe)
    save_trained(model, recipe, CLASSES, tmp_path / "w.safetensors")
    loaded, _, _ = load_trained(tmp_path / "w.safetensors")
    state = model.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())
    for mine, expected in zip(predictions(loaded), predictions(model), strict=True):
        assert all(torch.equal(mine[key], expected[key]) for key in expected)


@pytest.mark.parametrize("method", sorted(METHODS))
def test_the_hash_is_that_of_the_base_before_the_method_changed_it(tiny_recipe: Make, method: str) -> None:
    hashes = {build_detector(tiny_recipe(method=name), 3).backbone.base_hash for name in (method, "head")}
    assert len(hashes) == 1


def test_side_weights_are_far_smaller_than_the_model(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe = tiny_recipe(detector="retinanet", backbone="resnet50", width=0.25, options={"reduction": 16})
    model = build_detector(recipe, 3)
    save_trained(model, recipe, CLASSES, tmp_path / "w.safetensors")
    whole = sum(t.numel() * t.element_size() for t in model.state_dict().values())
    assert (tmp_path / "w.safetensors").stat().st_size < 0.2 * whole


def test_the_metadata_is_text_without_secrets_of_the_machine(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe = tiny_recipe()
    model = build_detector(recipe, 3)
    save_trained(model, recipe, ('a "quoted" <name>', "é", "bar"), tmp_path / "w.safetensors")
    metadata = read(tmp_path / "w.safetensors")[1]
    assert metadata.keys() == {"format", "recipe", "class_names", "base_hash"}
    assert json.loads(metadata["recipe"]) == json.loads(json.dumps(recipe.to_dict()))
    assert load_trained(tmp_path / "w.safetensors")[2] == ('a "quoted" <name>', "é", "bar")


def test_saving_replaces_an_older_file_as_a_whole(tiny_recipe: Make, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    recipe = tiny_recipe(method="head")
    save_trained(build_detector(recipe, 3), recipe, CLASSES, path)
    assert load_trained(path)[1] == recipe


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.fixture
def saved(tiny_recipe: Make, tmp_path: Path) -> tuple[Path, dict[str, Tensor], dict[str, str]]:
    """(path, tensors, metadata) of a sound file; its base is a file of its own, which a test may change."""
    torch.save(random_body_state("resnet18", 0.125), tmp_path / "base.pt")
    recipe = tiny_recipe(weights=str(tmp_path / "base.pt"))
    path = tmp_path / "w.safetensors"
    save_trained(build_detector(recipe, 3), recipe, CLASSES, path)
    return path, *read(path)


def test_another_base_is_refused(saved: tuple[Path, Any, Any], tmp_path: Path) -> None:
    state = random_body_state("resnet18", 0.125)
    state["layer4.1.bn2.running_var"][0] += 1e-3  # one statistic of a frozen norm
    torch.save(state, tmp_path / "base.pt")
    with pytest.raises(ConfigError, match=r"was trained on a base with hash [0-9a-f]{16}, .* put the same weights in"):
        load_trained(saved[0])


def test_another_random_base_is_refused(tiny_recipe: Make, tmp_path: Path) -> None:
    recipe = tiny_recipe(weights="none", method="head", seed=1)
    save_trained(build_detector(recipe, 3), recipe, CLASSES, tmp_path / "w.safetensors")
    tensors, metadata = read(tmp_path / "w.safetensors")
    metadata["recipe"] = json.dumps(recipe.to_dict() | {"seed": 2})
    save_file(tensors, tmp_path / "w.safetensors", metadata=metadata)
    with pytest.raises(ConfigError, match="was trained on a base with hash"):
        load_trained(tmp_path / "w.safetensors")


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:-50]),  # a broken copy
        lambda path: path.write_bytes(pickle.dumps(Bomb(path.parent / "boom"))),
        lambda path: torch.save({"x": Bomb(path.parent / "boom")}, path),
        lambda path: torch.save({"x": torch.ones(1)}, path),  # harmless, but a pickle all the same
    ],
    ids=["missing", "folder", "empty", "cut", "pickle", "torch-zip", "torch-zip-of-tensors"],
)
def test_what_is_no_safetensors_file_is_refused_and_nothing_runs(
    saved: tuple[Path, Any, Any], write: Callable[[Path], object]
) -> None:
    write(saved[0])
    with pytest.raises(ConfigError, match=r"cannot be read|neither a folder written by"):
        load_trained(saved[0])
    assert not (saved[0].parent / "boom").exists()


Tensors, Metadata = dict[str, Tensor], dict[str, str]


def in_recipe(metadata: Metadata, **changes: Any) -> object:
    return metadata.update(recipe=json.dumps(json.loads(metadata["recipe"]) | changes))


@pytest.mark.parametrize(
    ("why", "change", "says"),
    [
        ("plain weights", lambda t, m: m.clear(), "was not written by `cst-search train`"),
        ("another format", lambda t, m: m.update(format="cst-search/9"), "was not written by `cst-search train`"),
        ("a tensor less", lambda t, m: t.pop("backbone.side.up.c3.bias"), "missing ['backbone.side.up.c3.bias']"),
        ("a tensor more", lambda t, m: t.update(evil=torch.ones(1)), "unknown ['evil']"),
        # a frozen tensor in the file could change the base behind its hash
        (
            "a frozen tensor",
            lambda t, m: t.update({"backbone.body.conv1.weight": torch.zeros(8, 3, 7, 7)}),
            "unknown ['backbone.body.conv1.weight']",
        ),
        (
            "another shape",
            lambda t, m: t.update({"backbone.side.up.c3.bias": torch.ones(99)}),
            "shape ['backbone.side.up.c3.bias']",
        ),
        ("other classes", lambda t, m: m.update(class_names='["one"]'), "shape ['head.classification_head.cls_logits"),
        ("another method", lambda t, m: in_recipe(m, method="head", options={}), "unknown ['backbone.side."),
        ("a recipe out of range", lambda t, m: in_recipe(m, width=99.0), "width must be"),
        ("a field of a later version", lambda t, m: in_recipe(m, colour="red"), "metadata"),
        ("no recipe", lambda t, m: m.pop("recipe"), "metadata"),
        ("a recipe that is no JSON", lambda t, m: m.update(recipe="{"), "metadata"),
        ("a recipe that is a list", lambda t, m: m.update(recipe="[]"), "metadata"),
        ("no hash", lambda t, m: m.pop("base_hash"), "metadata"),
        ("a base that is gone", lambda t, m: in_recipe(m, weights="../../no-such-file.pt"), "there is no file"),
        # a downloaded file can name any path as its base: it is read as tensors, never shown, and does not fit
        ("a base that is no weights", lambda t, m: in_recipe(m, weights=os.devnull), "weights must be"),
        ("a base that is text", lambda t, m: in_recipe(m, weights=__file__), "cannot be read as tensors"),
    ],
    ids=lambda value: value.replace(" ", "-") if isinstance(value, str) and len(value) < 30 else "",
)
def test_a_file_that_does_not_fit_is_refused(
    saved: tuple[Path, Tensors, Metadata], why: str, change: Callable[[Tensors, Metadata], object], says: str
) -> None:
    path, tensors, metadata = saved
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(UserError) as raised:
        load_trained(path)
    assert says in str(raised.value)
