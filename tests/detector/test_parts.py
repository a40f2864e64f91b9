"""Neck and heads in every mode: what is trained, what is kept, what is saved, and what can be merged."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from test_build import batches, speak_up, train
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from cst_search.config.recipe import DETECTORS, HEAD_CHOICES, NECK_CHOICES, Recipe
from cst_search.data.dataset import DetectionData
from cst_search.detector import parts
from cst_search.detector.build import build_detector, count_parameters, merge, trained_tensors
from cst_search.detector.pyramid import Pyramid
from cst_search.detector.registry import get_detector
from cst_search.detector.weights import load_trained, save_trained
from cst_search.errors import ConfigError
from cst_search.memory.estimate import InputShape
from cst_search.trial.cost import predict

Make = Callable[..., Recipe]
CLASSES = ("square", "disc", "bar")
MODES = list(itertools.product(NECK_CHOICES, HEAD_CHOICES))
# every pair of modes on one detector in turn, and the leanest pair on all
EACH = [(DETECTORS[i % len(DETECTORS)], *modes) for i, modes in enumerate(MODES)]
EACH += [(detector, "frozen", "predictor") for detector in DETECTORS if (detector, "frozen", "predictor") not in EACH]
each = pytest.mark.parametrize(("detector", "neck", "head"), EACH)
families = pytest.mark.parametrize("detector", DETECTORS)


@pytest.fixture(scope="session")
def bases(tiny_recipe: Make, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return the file of a whole detector of a kind, which names something."""
    folder = tmp_path_factory.mktemp("detectors")

    def path(detector: str) -> Path:
        file = folder / f"{detector}.pt"
        if not file.exists():
            model = build_detector(tiny_recipe(detector=detector, method="head"), len(CLASSES))
            speak_up(model)
            torch.save(model.state_dict(), file)
        return file

    return path


@pytest.fixture
def make(tiny_recipe: Make, bases: Callable[[str], Path]) -> Make:
    """Return recipes that start from a trained detector."""

    def recipe(**changes: Any) -> Recipe:
        values = {"detector": "fcos", "method": "cst", "lora_rank": 3} | changes
        return tiny_recipe(weights=str(bases(values["detector"])), **values)

    return recipe


def part_of(name: str, recipe: Recipe) -> str:
    """Return the part of a detector that a tensor belongs to: body, side, neck, last or head."""
    if name.startswith(("backbone.body.", "backbone.side.")):
        return name.split(".")[1]
    if name.startswith("backbone.fpn."):
        return "neck"
    return "last" if name.startswith(get_detector(recipe.detector).last_layers) else "head"


def expected_trained(name: str, mode: str) -> bool:
    """Return whether a mode trains a tensor of neck or heads, from the tensor's name."""
    if mode == "lora":
        return "lora_" in name
    # a GroupNorm of torchvision's towers is at 1, 4, 7 ...: a weight of one dimension
    return mode == "train" or (mode == "norm" and name.endswith("bias"))


@each
@pytest.mark.usefixtures("few_boxes")
def test_training_moves_what_a_mode_trains_and_not_one_bit_else(
    make: Make, tiny_data: DetectionData, detector: str, neck: str, head: str
) -> None:
    recipe = make(detector=detector, neck=neck, head=head)
    model = build_detector(recipe, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    train(model, batches(tiny_data), lr=1e-2)
    moved = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert moved <= set(trained_tensors(model))
    for name, value in before.items():
        part = part_of(name, recipe)
        mode = {"neck": neck, "head": head, "body": "frozen"}.get(part, "train")
        trained = expected_trained(name, mode) or (mode == "norm" and value.ndim == 1)
        # statistics that come from a trained detector stay
        trained = trained and not name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert (name in trained_tensors(model)) == trained, name
        if trained and "lora_A" not in name:  # A moves once B is no longer zero
            assert name in moved or part == "side", name


@each
def test_counts_equal_the_formula(make: Make, detector: str, neck: str, head: str) -> None:
    recipe = make(detector=detector, neck=neck, head=head)
    expected = predict(recipe, 3, InputShape(64, 96, 5))
    model = build_detector(recipe, 3)
    assert count_parameters(model) == (expected.petl_params, expected.trainable_params)
    assert sum(value.numel() for value in trained_tensors(model).values()) == expected.trainable_params


@each
def test_step_0_gives_the_detections_of_the_trained_detector(make: Make, detector: str, neck: str, head: str) -> None:
    models = [
        build_detector(make(detector=detector, **changes), 3)
        for changes in ({"method": "head"}, {"neck": neck, "head": head})
    ]
    for model in models:
        torch.manual_seed(5)
        speak_up(model)  # class layers are new
        model.eval()
    images = [torch.rand(3, 64, 80), torch.rand(3, 96, 70)]
    with torch.no_grad():
        plain, ours = models[0](images), models[1](images)
    for expected, found in zip(plain, ours, strict=True):
        assert len(expected["boxes"]) > 10
        assert all(torch.equal(found[key], expected[key]) for key in ("boxes", "labels", "scores"))


TRAINED = [("norm", "norm"), ("lora", "lora"), ("frozen", "predictor")]


# every pair of family and modes; of each family and of each mode both ways to recompute
@pytest.mark.parametrize(
    ("detector", "neck", "head", "recompute"),
    [
        (detector, *modes, ("none", "neck")[(d + m) % 2])
        for d, detector in enumerate(DETECTORS)
        for m, modes in enumerate(TRAINED)
    ],
)
@pytest.mark.usefixtures("few_boxes")
def test_lean_layers_give_the_same_gradients(
    make: Make, tiny_data: DetectionData, detector: str, neck: str, head: str, recompute: str
) -> None:
    (images, targets), *_ = batches(tiny_data)
    found = []
    for lean in (True, False):
        how = {"memsave": lean, "recompute": recompute if lean else "none"}
        model = build_detector(make(detector=detector, neck=neck, head=head, **how), 3).train()
        for module in model.modules():  # so that gradients reach all of the side network
            if isinstance(module, nn.Conv2d) and not module.weight.any():
                nn.init.constant_(module.weight, 1e-2)
        torch.manual_seed(3)
        sum(model(images, targets).values()).backward()
        found.append({name: p.grad for name, p in model.named_parameters() if p.requires_grad})
    lean_grads, stock = found
    assert lean_grads.keys() == stock.keys()
    for name, grad in stock.items():
        assert grad is not None and torch.allclose(lean_grads[name], grad, rtol=1e-4, atol=1e-6), name


def kept_bytes(model: nn.Module, data: DetectionData) -> int:
    """Return the bytes of different storages that autograd keeps of a forward pass, parameters left out."""
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}
    sizes: dict[int, int] = {}
    alive = []

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            sizes[storage.data_ptr()] = storage.nbytes()
            alive.append(tensor)
        return tensor

    images, targets = batches(data)[0]
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        torch.manual_seed(0)
        losses = model.train()(images, targets)
    assert losses
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("neck", "normed", "lean", "is_held"),
    [
        ("frozen", False, True, False),  # convolutions keep their weights alone
        ("norm", False, True, False),  # the gradient of a bias reads no input
        ("frozen", True, True, False),
        ("norm", True, True, True),  # that of a norm's scale does
        ("lora", False, True, True),
        ("train", False, True, True),
        ("frozen", False, False, True),
    ],
)
def test_a_recomputed_pyramid_holds_its_inputs_only_where_it_would_keep_others(
    neck: str, normed: bool, lean: bool, is_held: bool
) -> None:
    fpn = Pyramid([8], 4, LastLevelMaxPool(), nn.BatchNorm2d if normed else None)
    fpn.recompute = True
    if neck != "train":
        parts._set_trained([*fpn.modules()], neck, 2)
    if lean and neck != "train":
        parts._make_lean(fpn, [*fpn.modules()], relus=False)
    feature = torch.rand(1, 8, 4, 4, requires_grad=True) * 2
    storage = StorageWeakRef(feature.untyped_storage())
    levels = fpn(OrderedDict(c5=feature))
    del feature
    assert storage.expired() != is_held
    levels["0"].sum().backward()


@families
@pytest.mark.parametrize("method", ["cst", "head"])
@pytest.mark.usefixtures("few_boxes")
def test_the_less_is_trained_the_less_is_kept(make: Make, tiny_data: DetectionData, detector: str, method: str) -> None:
    """Without a side network nothing before the heads has a graph, so a frozen neck keeps nothing at all."""

    def kept(neck: str, head: str) -> int:
        recipe = make(detector=detector, method=method, neck=neck, head=head, recompute="none")
        return kept_bytes(build_detector(recipe, 3), tiny_data)

    all_trained, norm, leanest = kept("train", "train"), kept("norm", "norm"), kept("frozen", "predictor")
    assert leanest <= norm < all_trained
    assert kept("lora", "lora") >= norm  # the updates read every input
    if method == "head":
        no_neck = kept("frozen", "train")
        assert no_neck < all_trained


@pytest.mark.parametrize(
    ("detector", "method"), [(detector, ("head", "conv_lora")[i % 2]) for i, detector in enumerate(DETECTORS)]
)
@pytest.mark.usefixtures("few_boxes")
def test_merged_low_rank_updates_leave_a_plain_detector(
    make: Make, tiny_data: DetectionData, detector: str, method: str
) -> None:
    recipe = make(detector=detector, method=method, neck="lora", head="lora")
    model = build_detector(recipe, 3)
    train(model, batches(tiny_data), lr=1e-2)
    x = torch.rand(2, 3, 64, 96)
    model.eval()
    with torch.no_grad():
        before = model.backbone(x)  # type: ignore[operator]
        merge(model, recipe)
        plain = build_detector(make(detector=detector, method="head"), 3).eval()
        plain.load_state_dict(model.state_dict())  # strict: torchvision's names
        after = plain.backbone(x)  # type: ignore[operator]
    start = build_detector(recipe, 3).eval()
    with torch.no_grad():
        assert not torch.allclose(start.backbone(x)["0"], before["0"], atol=1e-4)  # type: ignore[operator]
    assert all(torch.allclose(after[key], before[key], atol=1e-4, rtol=1e-4) for key in before)


@pytest.mark.parametrize(
    ("detector", "neck", "head"),
    [(detector, *TRAINED[(i + j) % 3]) for i, detector in enumerate(DETECTORS) for j in (0, 1)],
)
@pytest.mark.usefixtures("few_boxes")
def test_saved_weights_load_back_to_the_same_detections(
    make: Make, tiny_data: DetectionData, tmp_path: Path, detector: str, neck: str, head: str
) -> None:
    recipe = make(detector=detector, neck=neck, head=head)
    model = build_detector(recipe, 3)
    train(model, batches(tiny_data), lr=1e-2)
    path = tmp_path / "weights.safetensors"
    save_trained(model, recipe, CLASSES, path)
    again = load_trained(path).model
    images = [torch.rand(3, 64, 80)]
    with torch.no_grad():
        expected, found = model.eval()(images)[0], again(images)[0]
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_a_random_neck_must_be_trained(tiny_recipe: Make) -> None:
    for part, mode in (("neck", "frozen"), ("head", "predictor")):
        with pytest.raises(ConfigError, match=f"{part} must be train, because weights none leave .* random"):
            tiny_recipe(weights="none", **{part: mode})


def test_predicted_memory_falls_with_what_is_trained(make: Make) -> None:
    def active(neck: str, head: str) -> int:
        recipe = make(detector="fasterrcnn", method="head", neck=neck, head=head)
        return predict(recipe, 3, InputShape(320, 320, 20)).active_bytes

    assert active("frozen", "predictor") < active("norm", "norm") < active("train", "train")
