"""The two loops: schedule, optimiser groups, accumulation, clipping, what is not finite; and COCO's figures."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from cst_search.config.recipe import DETECTORS, Recipe
from cst_search.detector.build import build_detector
from cst_search.petl import METHODS
from cst_search.petl.modules.layers import OpenNorm
from cst_search.trial.engine import (
    EpochStats,
    NonFiniteLoss,
    Precision,
    choose_precision,
    evaluate,
    make_lr_schedule,
    make_optimiser,
    train_one_epoch,
)

CPU = torch.device("cpu")
FP32 = Precision(None, False)
Batch = tuple[list[Tensor], list[dict[str, Any]]]

# --- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("auto", None),  # a CPU gains nothing from half precision
        ("fp32", None),
        ("bf16", torch.bfloat16),
        ("fp16", torch.bfloat16),  # no fp16 training kernels on a CPU
    ],
)
def test_precision_on_a_cpu(name: str, dtype: torch.dtype | None) -> None:
    assert choose_precision(name, CPU) == Precision(dtype, scaled=False)


@pytest.mark.parametrize(
    ("name", "has_bf16", "expected"),
    [
        ("auto", True, Precision(torch.bfloat16, False)),
        ("auto", False, Precision(torch.float16, True)),  # a card before Ampere
        ("fp16", True, Precision(torch.float16, True)),
        ("bf16", False, Precision(torch.bfloat16, False)),  # asked for: emulated
        ("fp32", True, Precision(None, False)),
    ],
)
def test_precision_on_a_gpu(monkeypatch: pytest.MonkeyPatch, name: str, has_bf16: bool, expected: Precision) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: has_bf16)
    assert choose_precision(name, torch.device("cuda")) == expected


# --- optimiser and schedule ------------------------------------------------------------------------------------------


def rates(n_updates: int, warmup: float, lr: float = 2.0) -> list[float]:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    schedule = make_lr_schedule(optimiser, n_updates, warmup)
    seen = []
    for _ in range(n_updates):
        seen.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        schedule.step()
    return seen


@pytest.mark.parametrize(
    ("n_updates", "warmup", "n_warm"),
    [
        (20, 0.1, 2),
        (20, 0.5, 10),
        (20, 0.0, 0),  # none: the first update has the full rate
        (3, 0.1, 1),  # 0.3 updates are one
        (1, 0.1, 1),
        (1, 0.0, 0),
        (10, 0.9, 9),  # the most that a recipe allows
    ],
)
def test_warm_up_then_half_a_cosine(n_updates: int, warmup: float, n_warm: int) -> None:
    seen = rates(n_updates, warmup)
    for i, rate in enumerate(seen):
        if i < n_warm:
            expected = 2.0 * (i + 1) / n_warm
        else:
            expected = 2.0 * 0.5 * (1 + math.cos(math.pi * (i - n_warm) / (n_updates - n_warm)))
        assert rate == pytest.approx(expected, abs=1e-12)
    assert max(seen) == pytest.approx(2.0) and min(seen) > 0  # every update moves


def test_more_updates_than_announced_stay_at_zero() -> None:
    optimiser = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    schedule = make_lr_schedule(optimiser, 4, 0.0)
    for _ in range(6):
        optimiser.step()
        schedule.step()
    assert optimiser.param_groups[0]["lr"] == 0


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize(
    ("method", "options"),
    [
        *((name, {}) for name in sorted(METHODS) if not {"reduction", "gamma"} & vars(METHODS[name].options()).keys()),
        # more than one channel everywhere: a 1x1 kernel of one channel is spared, see below
        *((name, {"reduction": 2}) for name in ("lst", "side_tuning", "serial_adapter")),
        ("conv_adapter", {"gamma": 2}),
        ("cst", {"gate": "scalar", "norm": "bn", "reduction": 2}),
        ("cst", {"gate": "channel", "norm": "bn", "reduction": 2}),  # a channel gate is (C, 1, 1): told by its name
    ],
)
def test_weight_decay_spares_gates_norms_and_biases(
    tiny_recipe: Callable[..., Recipe], detector: str, method: str, options: dict[str, Any]
) -> None:
    model = build_detector(tiny_recipe(detector=detector, method=method, options=options, weights="none"), 3)
    optimiser = make_optimiser(model, 1e-3, 0.05)
    decay = {id(p): group["weight_decay"] for group in optimiser.param_groups for p in group["params"]}
    norms = {
        id(p)
        for m in model.modules()
        if isinstance(m, nn.BatchNorm2d | nn.GroupNorm | OpenNorm)
        for p in m.parameters()
    }
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert decay.keys() == {id(p) for p in trainable.values()}
    for name, parameter in trainable.items():
        # scale and shift: of SSF, and the scale of a Conv-Adapter; gates: those of Side-Tuning
        spared = name.endswith(("gate", "bias", "scale", "shift")) or ".gates." in name or id(parameter) in norms
        assert decay[id(parameter)] == (0.0 if spared else 0.05), name
    assert {group["lr"] for group in optimiser.param_groups} == {1e-3}


def test_a_convolution_with_one_input_and_one_output_is_still_decayed() -> None:
    """Squeezed, a 3x3 kernel of one channel has two dimensions; a 1x1 kernel of one channel has none and is spared."""
    model = nn.ModuleDict({"3x3": nn.Conv2d(1, 1, 3, bias=False), "1x1": nn.Conv2d(1, 1, 1, bias=False)})
    groups = make_optimiser(model, 1.0, 0.1).param_groups
    assert [(group["weight_decay"], [p.numel() for p in group["params"]]) for group in groups] == [
        (0.1, [9]),
        (0.0, [1]),
    ]


# --- training on a stand-in ------------------------------------------------------------------------------------------


class Line(nn.Module):
    """Fits w to the mean of its images; the loss is a mean over the batch, as torchvision's are."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.tensor([3.0, -2.0]))
        self.frozen = nn.Parameter(torch.ones(2), requires_grad=False)
        self.scale = scale
        self.modes: list[bool] = []

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        self.modes.append(self.training)
        x = torch.stack(images)
        error = ((self.w - x) ** 2).sum(1)
        return {"near": self.scale * error.mean(), "far": 0.5 * self.scale * (self.w**2).sum()}


def pictures(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, generator=generator) for _ in range(n)]


def in_batches(images: list[Tensor], size: int) -> list[Batch]:
    target = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64)}
    chunks = [images[i : i + size] for i in range(0, len(images), size)]
    return [(chunk, [dict(target) for _ in chunk]) for chunk in chunks]


def fit(
    model: nn.Module,
    batches: list[Batch],
    *,
    accumulate: int = 1,
    clip_norm: float = 1e9,
    lr: float = 0.1,
    after_step: Callable[[int], None] | None = None,
) -> tuple[EpochStats, torch.optim.Optimizer]:
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda update: 1 / (1 + update))
    stats = train_one_epoch(
        model, batches, optimiser, schedule, torch.amp.GradScaler("cpu", enabled=False),
        device=CPU, precision=FP32, accumulate=accumulate, clip_norm=clip_norm, n_batches=len(batches),
        after_step=after_step,
    )  # fmt: skip
    return stats, optimiser


@pytest.mark.parametrize(("size", "accumulate"), [(2, 2), (1, 4), (4, 1)])
def test_accumulation_equals_a_larger_batch(size: int, accumulate: int) -> None:
    images = pictures(12)
    whole, parts = Line(), Line()
    expected, _ = fit(whole, in_batches(images, 4))
    stats, _ = fit(parts, in_batches(images, size), accumulate=accumulate)
    torch.testing.assert_close(parts.w, whole.w)
    assert stats.n_updates == expected.n_updates == 3
    assert stats.max_grad_norm == pytest.approx(expected.max_grad_norm, rel=1e-5)


def test_a_last_shorter_group_is_stepped_with_its_own_mean() -> None:
    images = pictures(6)
    model, by_hand = Line(), Line()
    stats, _ = fit(model, in_batches(images, 2), accumulate=2)
    assert stats.n_updates == 2
    # batches 1 and 2 make one update with the first rate, batch 3 alone one with the second, a half
    fit(by_hand, in_batches(images[:4], 4))
    fit(by_hand, in_batches(images[4:], 2), lr=0.05)
    torch.testing.assert_close(model.w, by_hand.w)


@pytest.mark.parametrize(
    ("n_batches", "accumulate", "n_updates"),
    [(1, 1, 1), (1, 8, 1), (4, 2, 2), (5, 2, 3), (5, 5, 1), (5, 4, 2)],
)
def test_number_of_updates(n_batches: int, accumulate: int, n_updates: int) -> None:
    done: list[int] = []
    stats, optimiser = fit(Line(), in_batches(pictures(n_batches), 1), accumulate=accumulate, after_step=done.append)
    assert stats.n_updates == n_updates == -(-n_batches // accumulate)  # what trial announces to the schedule
    assert optimiser.param_groups[0]["lr"] == pytest.approx(0.1 / (1 + n_updates))  # one step of the schedule each
    assert done == list(range(1, n_batches + 1))


def test_the_loss_is_the_mean_over_images_not_batches() -> None:
    images = pictures(5)
    model = Line()
    stats, _ = fit(model, in_batches(images, 2), lr=0.0)  # batches of 2, 2 and 1
    with torch.no_grad():
        each = [sum(float(v) for v in model([image], [{}]).values()) for image in images]
    assert stats.loss == pytest.approx(sum(each) / 5, rel=1e-5)
    assert stats.images_per_second > 0


def test_gradients_are_clipped_to_the_norm() -> None:
    before = Line().w.detach().clone()
    model = Line(scale=1000.0)
    stats, _ = fit(model, in_batches(pictures(2), 2), clip_norm=0.5, lr=1.0)
    assert float((model.w.detach() - before).norm()) == pytest.approx(0.5, rel=1e-4)
    assert stats.max_grad_norm > 1000  # what is reported is the norm before


def test_a_small_gradient_is_not_stretched() -> None:
    model, free = Line(), Line()
    fit(model, in_batches(pictures(2), 2), clip_norm=1e6)
    fit(free, in_batches(pictures(2), 2))
    assert torch.equal(model.w, free.w)


def test_training_happens_in_train_mode_and_leaves_no_gradients() -> None:
    model = Line().eval()
    fit(model, in_batches(pictures(2), 1))
    assert model.modes == [True, True]
    assert model.w.grad is None and torch.equal(model.frozen, torch.ones(2))


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("place", [0, 2])
def test_a_loss_that_is_not_finite_stops_before_its_step(bad: float, place: int) -> None:
    images = pictures(4)
    images[place] = torch.tensor([bad, 0.0])
    model, stopped = Line(), Line()
    with pytest.raises(NonFiniteLoss, match=rf"at batch {place + 1} \(near (nan|inf), far [0-9.]+\); a lower lr"):
        fit(model, in_batches(images, 1))
    if place:
        fit(stopped, in_batches(images[:place], 1))
    assert torch.equal(model.w, stopped.w)


class Steep(Line):
    """A finite loss whose gradient is infinite, as sqrt has at 0."""

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {"loss": (self.w - self.w.detach()).sum().abs().sqrt()}


def test_a_gradient_that_is_not_finite_stops_before_its_step() -> None:
    model = Steep()
    before = model.w.detach().clone()
    with pytest.raises(NonFiniteLoss, match=r"the gradient is (nan|inf) at batch 1; a lower lr"):
        fit(model, in_batches(pictures(1), 1))
    assert torch.equal(model.w, before)


def test_under_a_scaler_such_a_step_is_skipped_and_the_scale_lowered() -> None:
    model = Steep()
    before = model.w.detach().clone()
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    optimiser = torch.optim.SGD([model.w], lr=0.1)
    stats = train_one_epoch(
        model, in_batches(pictures(1), 1), optimiser, make_lr_schedule(optimiser, 1, 0.0), scaler,
        device=CPU, precision=Precision(None, scaled=True), accumulate=1, clip_norm=1.0, n_batches=1,
    )  # fmt: skip
    assert torch.equal(model.w, before) and scaler.get_scale() == 4.0
    assert stats.max_grad_norm == 0.0


# --- evaluation ------------------------------------------------------------------------------------------------------

# two images of 40 x 30 (width x height), category ids with a hole; the boxes are (x, y, w, h) in the file's pixels
TRUTH: dict[str, Any] = {
    "info": {},
    "images": [{"id": i, "file_name": f"{i}.png", "width": 40, "height": 30} for i in (11, 12)],
    "categories": [{"id": 3, "name": "cat"}, {"id": 7, "name": "dog"}],
    "annotations": [
        {"id": 1, "image_id": 11, "category_id": 3, "bbox": [2, 4, 10, 12], "area": 120, "iscrowd": 0},
        {"id": 2, "image_id": 11, "category_id": 7, "bbox": [20, 6, 16, 20], "area": 320, "iscrowd": 0},
        {"id": 3, "image_id": 12, "category_id": 7, "bbox": [5, 5, 30, 20], "area": 600, "iscrowd": 0},
    ],
}
IDS = (3, 7)


class Oracle(nn.Module):
    """Answers from a table: one dict per image, in turn."""

    def __init__(self, answers: list[dict[str, Tensor]]) -> None:
        super().__init__()
        self.answers = list(answers)

    def forward(self, images: list[Tensor]) -> list[dict[str, Tensor]]:
        assert not self.training and not torch.is_grad_enabled()
        return [self.answers.pop(0) for _ in images]


def right_answers(sx: float = 1.0, sy: float = 1.0) -> list[dict[str, Tensor]]:
    """The truth as a detector says it, in the pixels of a batch that is resized by 1 / (sx, sy)."""
    answers = []
    for image in TRUTH["images"]:
        boxes = [a for a in TRUTH["annotations"] if a["image_id"] == image["id"]]
        xywh = torch.tensor([a["bbox"] for a in boxes], dtype=torch.float32)
        xyxy = torch.cat([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], 1) / torch.tensor([sx, sy, sx, sy])
        labels = torch.tensor([IDS.index(a["category_id"]) + 1 for a in boxes])
        answers.append({"boxes": xyxy, "labels": labels, "scores": torch.full((len(boxes),), 0.9)})
    return answers


def judge(answers: list[dict[str, Tensor]], sx: float = 1.0, sy: float = 1.0, batch_size: int = 1) -> Any:
    pairs = [(torch.zeros(3, 30, 40), {"image_id": i, "scale_xy": (sx, sy)}) for i in (11, 12)]
    chunks = [pairs[i : i + batch_size] for i in range(0, 2, batch_size)]
    batches = [([image for image, _ in chunk], [target for _, target in chunk]) for chunk in chunks]
    return evaluate(Oracle(answers), batches, TRUTH, IDS, device=CPU, precision=FP32)


@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize(
    ("sx", "sy"),
    [
        (1.0, 1.0),
        (0.5, 2.0),  # both factors, each on its own axis
        (2.0, 2.0),
    ],
)
def test_perfect_predictions_have_map_1(sx: float, sy: float, batch_size: int) -> None:
    scores = judge(right_answers(sx, sy), sx, sy, batch_size)
    assert (scores.map, scores.map50, scores.map75) == pytest.approx((1.0, 1.0, 1.0))
    assert scores.per_class == pytest.approx({"cat": 1.0, "dog": 1.0})
    assert scores.map_small == pytest.approx(1.0) and scores.map_large is None  # COCO: small below 32 * 32 px


def test_detections_need_scaling_back_to_file_pixels() -> None:
    assert judge(right_answers(2.0, 2.0)).map < 0.1


def test_no_detections_have_map_0() -> None:
    nothing = {"boxes": torch.zeros(0, 4), "labels": torch.zeros(0, dtype=torch.int64), "scores": torch.zeros(0)}
    scores = judge([dict(nothing), dict(nothing)])
    assert (scores.map, scores.map50, scores.map75) == (0.0, 0.0, 0.0)
    assert scores.per_class == {"cat": 0.0, "dog": 0.0}


def test_background_is_no_detection() -> None:
    """RetinaNet and FCOS have an output for label 0, which may win."""
    answers = right_answers()
    extra = {"boxes": torch.tensor([[0.0, 0.0, 40.0, 30.0]]), "labels": torch.tensor([0]), "scores": torch.ones(1)}
    answers = [{key: torch.cat([answer[key], extra[key]]) for key in extra} for answer in answers]
    assert judge(answers).map == pytest.approx(1.0)
    assert judge([dict(extra), dict(extra)]).map == 0.0  # and nothing else is nothing at all


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        # the two classes swapped: every box is right and every name wrong
        (lambda a: a | {"labels": 3 - a["labels"]}, 0.0),
        # moved by one box width: below IoU 0.5
        (lambda a: a | {"boxes": a["boxes"] + 12}, 0.0),
        # scores do not matter for a set without false positives
        (lambda a: a | {"scores": a["scores"] / 100}, 1.0),
    ],
)
def test_wrong_predictions(change: Callable[[dict[str, Tensor]], dict[str, Tensor]], expected: float) -> None:
    assert judge([change(answer) for answer in right_answers()]).map == pytest.approx(expected, abs=1e-6)


def test_a_known_map_between() -> None:
    """The cat is missed: AP 0 for cat and 1 for dog."""
    answers = right_answers()
    answers[0] = {key: value[1:] for key, value in answers[0].items()}
    scores = judge(answers)
    assert scores.map == pytest.approx(0.5)
    assert scores.per_class == pytest.approx({"cat": 0.0, "dog": 1.0})


def test_a_class_without_boxes_has_no_figure() -> None:
    truth = TRUTH | {"categories": [*TRUTH["categories"], {"id": 9, "name": "owl"}]}
    batch = ([torch.zeros(3, 30, 40)] * 2, [{"image_id": i, "scale_xy": (1.0, 1.0)} for i in (11, 12)])
    scores = evaluate(Oracle(right_answers()), [batch], truth, (3, 7, 9), device=CPU, precision=FP32)
    assert scores.per_class["owl"] is None and scores.map == pytest.approx(1.0)
