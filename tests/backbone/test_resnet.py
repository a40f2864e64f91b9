"""The body: torchvision's ResNet at width 1, stages with or without autograd, and what may be loaded into it."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torchvision.ops.misc import FrozenBatchNorm2d
from trial_fixtures import random_body_state

from cst_search.backbone.resnet import STAGES, Body, FrozenNorm, fingerprint, load_weights
from cst_search.config.recipe import BACKBONES
from cst_search.errors import ConfigError

WIDTH = 0.125


def images(n: int = 2, height: int = 64, width: int = 64) -> torch.Tensor:
    return torch.randn(n, 3, height, width, generator=torch.Generator().manual_seed(0))


# --- torchvision's ResNet --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BACKBONES)
def test_tensors_are_torchvisions_by_name_and_shape(name: str) -> None:
    with torch.device("meta"):
        ours = Body(name, frozen_norm=False).state_dict()
        theirs = getattr(torchvision.models, name)().state_dict()
    shapes = {key: value.shape for key, value in theirs.items() if not key.startswith("fc.")}
    assert {key: value.shape for key, value in ours.items()} == shapes


def test_features_are_torchvisions_bit_for_bit() -> None:
    body = Body("resnet18", frozen_norm=True).eval()
    state = random_body_state("resnet18", 1.0)
    body.load_state_dict({key: value for key, value in state.items() if "num_batches" not in key})
    theirs = torchvision.models.resnet18(norm_layer=FrozenBatchNorm2d)
    theirs.load_state_dict(state, strict=False)
    returned = {"maxpool": "c1", "layer1": "c2", "layer2": "c3", "layer3": "c4", "layer4": "c5"}
    extract = torchvision.models._utils.IntermediateLayerGetter(theirs.eval(), returned)
    with torch.no_grad():
        ours, expected = body(images()), extract(images())
    assert list(ours) == ["c1", "c2", "c3", "c4", "c5"]
    assert all(torch.equal(ours[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("name", "width", "channels"),
    [
        ("resnet18", 1.0, (64, 64, 128, 256, 512)),  # torchvision's
        ("resnet50", 1.0, (64, 256, 512, 1024, 2048)),
        ("resnet18", 0.25, (16, 16, 32, 64, 128)),
        ("resnet18", 0.3, (16, 16, 40, 80, 152)),  # rounded to multiples of 8
        ("resnet50", 0.05, (8, 32, 32, 64, 96)),  # never below 8 in a convolution; four times that come out of a block
    ],
)
def test_width_multiplies_the_channels(name: str, width: float, channels: tuple[int, ...]) -> None:
    with torch.device("meta"):
        body = Body(name, width)
    assert body.stage_channels == channels
    assert body.shape((3, 4, 5)).stage_channels == channels


def test_the_shape_counts_parameters_not_buffers() -> None:
    with torch.device("meta"):
        frozen, live = Body("resnet50"), Body("resnet50", frozen_norm=False)
    assert live.shape((3,)).n_params == 23_508_032  # torchvision's 25,557,032 less the classifier's 2,049,000
    assert frozen.shape((3,)).n_params == 23_508_032 - 53_120  # PETL-FACTS 2.3: the affine part of its norms


# --- stages ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(64, 64), (65, 97)])  # odd sizes: every stage rounds up
def test_features_have_the_strides_that_are_documented(size: tuple[int, int]) -> None:
    features = Body("resnet18", WIDTH)(images(1, *size))
    for key, stride in zip(("c1", "c2", "c3", "c4", "c5"), (4, 4, 8, 16, 32), strict=True):
        assert features[key].shape[2:] == tuple(-(-side // stride) for side in size)


def test_taps_hand_out_every_block_and_change_nothing() -> None:
    body = Body("resnet34", WIDTH)
    plain = body(images())
    body.taps_blocks = True
    tapped = body(images())
    assert [key for key in tapped if key.startswith("c4.")] == [f"c4.{j}" for j in range(6)]
    assert all(torch.equal(plain[key], tapped[key]) for key in plain)
    assert torch.equal(tapped["c4.5"], tapped["c4"])


@pytest.mark.parametrize("grad_from", range(len(STAGES) + 1))
@pytest.mark.parametrize("frozen_norm", [True, False])
def test_only_stages_from_grad_from_on_train(grad_from: int, frozen_norm: bool) -> None:
    body = Body("resnet18", WIDTH, frozen_norm)
    body.grad_from = grad_from
    body.train()
    before = {key: value.clone() for key, value in body.state_dict().items()}
    features = body(images())
    assert [value.requires_grad for value in features.values()] == [i >= grad_from for i in range(len(STAGES))]
    after = body.state_dict()
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}  # statistics
    trained = {child for stage in STAGES[grad_from:] for child in stage if child.startswith(("bn", "layer"))}
    assert moved == (set() if frozen_norm else trained)


def test_no_grad_outside_wins_over_grad_from() -> None:
    body = Body("resnet18", WIDTH)
    body.grad_from = 0
    with torch.no_grad():
        assert not any(value.requires_grad for value in body(images()).values())


# --- FrozenNorm ------------------------------------------------------------------------------------------------------


def filled(norm: FrozenBatchNorm2d) -> FrozenBatchNorm2d:
    generator = torch.Generator().manual_seed(1)
    for name, tensor in norm.named_buffers():
        tensor.uniform_(0.2 if name == "running_var" else -2, 2, generator=generator)
    return norm


def test_frozen_norm_is_torchvisions_bit_for_bit_in_fp32() -> None:
    x = torch.randn(2, 16, 9, 7)
    assert torch.equal(filled(FrozenNorm(16))(x), filled(FrozenBatchNorm2d(16))(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frozen_norm_stays_in_the_type_of_its_input(dtype: torch.dtype) -> None:
    x = torch.randn(2, 16, 9, 7).to(dtype)
    assert filled(FrozenBatchNorm2d(16))(x).dtype == torch.float32  # torchvision's does not: the reason for ours
    out = filled(FrozenNorm(16))(x)
    assert out.dtype == dtype
    torch.testing.assert_close(out.float(), filled(FrozenBatchNorm2d(16))(x), rtol=0.02, atol=0.05)


# --- loading ---------------------------------------------------------------------------------------------------------

STATE = random_body_state("resnet18", WIDTH)


def as_safetensors(path: Path) -> None:
    save_file(STATE, path)


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("w.safetensors", as_safetensors),
        ("w.pt", lambda path: torch.save(STATE, path)),
        ("w.pth", lambda path: torch.save(STATE, path)),
        ("w.pt", lambda path: torch.save({"model": STATE, "epoch": 3}, path)),  # torchvision's reference scripts
        ("w.pt", lambda path: torch.save({"state_dict": STATE}, path)),  # Lightning and others
        # a whole detector's file: the body stands below a prefix, the rest is not ours
        (
            "w.pt",
            lambda path: torch.save(
                {f"backbone.body.{key}": value for key, value in STATE.items()} | {"head.x": torch.ones(1)}, path
            ),
        ),
        # torchvision's own files carry a classifier
        ("w.pt", lambda path: torch.save(STATE | {"fc.weight": torch.ones(10, 4)}, path)),
        # files older than torch 0.4.1 do not count batches
        ("w.pt", lambda path: torch.save({k: v for k, v in STATE.items() if "num_batches" not in k}, path)),
        ("w.pt", lambda path: torch.save({k: v.double() for k, v in STATE.items()}, path)),  # another precision
    ],
)
@pytest.mark.parametrize("frozen_norm", [True, False])
def test_weights_are_loaded(tmp_path: Path, name: str, write: Callable[[Path], object], frozen_norm: bool) -> None:
    write(tmp_path / name)
    body = Body("resnet18", WIDTH, frozen_norm)
    digest = load_weights(body, "resnet18", str(tmp_path / name))
    for key, value in body.state_dict().items():
        assert value.dtype == STATE[key].dtype
        assert torch.equal(value, STATE[key]) or "num_batches" in key
    assert digest == fingerprint(body)


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


REFUSED: list[tuple[str, Callable[[Path], object], str]] = [
    ("no-such-file.pt", lambda path: None, "there is no file"),
    ("folder.pt", lambda path: path.mkdir(), "there is no file"),
    ("pickle.pt", lambda path: path.write_bytes(pickle.dumps(Bomb(path.parent / "boom"), 2)), "cannot be read"),
    ("zip.pt", lambda path: torch.save({"x": Bomb(path.parent / "boom")}, path), "cannot be read"),
    ("a.safetensors", lambda path: path.write_bytes(pickle.dumps(Bomb(path.parent / "boom"), 2)), "cannot be read"),
    ("text.pt", lambda path: path.write_text("hello"), "cannot be read"),
    ("empty.safetensors", lambda path: path.write_bytes(b""), "cannot be read"),
    ("list.pt", lambda path: torch.save([torch.ones(1)], path), "must hold a dictionary of tensors"),
    ("numbers.pt", lambda path: torch.save({"conv1.weight": 3}, path), "must hold a dictionary of tensors"),
    ("few.pt", lambda path: torch.save({"conv1.weight": STATE["conv1.weight"]}, path), "are missing (first: ['bn1."),
    (
        "wide.pt",
        lambda path: torch.save(random_body_state("resnet18", 0.25), path),
        "have another shape (first: ['conv1.weight'",
    ),
    # resnet34 begins like resnet18, block for block: it would load, and be neither
    ("deep.pt", lambda path: torch.save(random_body_state("resnet34", WIDTH), path), "are unknown (first: ['layer1.2."),
]


@pytest.mark.parametrize(("name", "write", "says"), REFUSED, ids=[name for name, *_ in REFUSED])
def test_what_does_not_fit_is_refused_and_nothing_runs(
    tmp_path: Path, name: str, write: Callable[[Path], object], says: str
) -> None:
    write(tmp_path / name)
    body = Body("resnet18", WIDTH)
    before = fingerprint(body)
    with pytest.raises(ConfigError) as raised:
        load_weights(body, "resnet18", str(tmp_path / name))
    assert says in str(raised.value)
    assert not (tmp_path / "boom").exists()
    assert fingerprint(body) == before  # nor half loaded


def test_the_message_names_the_remedy(tmp_path: Path) -> None:
    torch.save(random_body_state("resnet18", 0.25), tmp_path / "w.pt")
    with pytest.raises(ConfigError, match="check `backbone` and `width`, or use weights: none"):
        load_weights(Body("resnet18", WIDTH), "resnet18", str(tmp_path / "w.pt"))


def test_none_leaves_the_random_start() -> None:
    body = Body("resnet18", WIDTH)
    before = fingerprint(body)
    assert load_weights(body, "resnet18", "none") == before


def test_imagenet_asks_torchvision(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the network: what is checked is which weights are asked for, and that the file's hash is."""
    asked: list[Any] = []

    def answer(self: Any, *args: Any, **options: Any) -> dict[str, torch.Tensor]:
        asked.append((str(self), options.get("check_hash")))
        return random_body_state("resnet18", 1.0)

    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", answer)
    body = Body("resnet18")
    load_weights(body, "resnet18", "IMAGENET")
    assert asked == [("ResNet18_Weights.IMAGENET1K_V1", True)]
    assert torch.equal(body.conv1.weight, random_body_state("resnet18", 1.0)["conv1.weight"])  # type: ignore[arg-type]


def test_the_fingerprint_sees_one_bit_and_one_name() -> None:
    def module(value: float, name: str = "a") -> nn.Module:
        holder = nn.Module()
        holder.register_buffer(name, torch.tensor([1.0, value]))
        return holder

    digest = fingerprint(module(2.0))
    assert len(digest) == 16 and digest == fingerprint(module(2.0))
    assert digest != fingerprint(module(float(torch.nextafter(torch.tensor(2.0), torch.tensor(3.0)))))
    assert digest != fingerprint(module(2.0, "b"))
