"""Jitter of training images: the boxes follow the pixels, sizes never grow, and (seed, epoch, image) decides alone."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as F

from cst_search.config.augmentation import PRESETS, Augmentation
from cst_search.config.recipe import Recipe
from cst_search.data import augmentation as module
from cst_search.data.augmentation import MIN_VISIBLE_SHARE, augment
from cst_search.data.dataset import ImageEntry, Split
from cst_search.data.disk_cache import Cache, Store
from cst_search.data.images import CocoImages, loader
from cst_search.memory.estimate import worst_input

NONE, LIGHT, STRONG = PRESETS["none"], PRESETS["light"], PRESETS["strong"]
WIDEST = Augmentation(scale_jitter=4.0, photometric=1.0)
SCALE = Augmentation(scale_jitter=2.0)
COLOUR = Augmentation(photometric=1.0)
# of three objects on grey; no change of colour takes one for another, or for the canvas
COLOURS = {1: (230, 20, 20), 2: (20, 200, 20), 3: (20, 20, 230)}
BOXES = ((5.0, 4.0, 19.0, 20.0), (40.0, 30.0, 24.0, 12.0), (66.0, 2.0, 12.0, 16.0))  # xywh


def split_of(folder: Path, sizes: list[tuple[int, int]], boxes: tuple[Any, ...] = BOXES) -> Split:
    """Images of (width, height) with the objects at ``boxes``."""
    entries = []
    for i, (width, height) in enumerate(sizes):
        pixels = np.full((height, width, 3), 128, np.uint8)
        for label, (x, y, w, h) in enumerate(boxes, 1):
            pixels[int(y) : int(y + h), int(x) : int(x + w)] = COLOURS[label]
        path = folder / f"{i}.png"
        Image.fromarray(pixels).save(path)
        n = len(boxes)
        labels, areas = tuple(range(1, n + 1)), tuple(w * h for *_, w, h in boxes)
        entries.append(ImageEntry(i + 1, path.name, path, width, height, boxes, labels, (0,) * n, areas))
    return Split("train", folder / "x.json", folder, tuple(entries))


@pytest.fixture
def split(tmp_path: Path) -> Split:
    return split_of(tmp_path, [(80, 48), (80, 60), (96, 48), (100, 80), (81, 57)])


def images_of(split: Split, augmentation: Augmentation = STRONG, *, hflip: bool = True, **options: Any) -> CocoImages:
    return CocoImages(split, image_size_px=48, max_size_px=96, hflip=hflip, augmentation=augmentation, **options)


Item = tuple[int, bytes, list[list[float]], list[int]]


def items(images: CocoImages, *, n_epochs: int = 3, seed: int = 5, workers: int = 0, first: int = 0) -> list[Item]:
    return [
        (target["image_id"], image.numpy().tobytes(), target["boxes"].tolist(), target["labels"].tolist())
        for epoch in range(first, n_epochs)
        for batch, targets in loader(images, batch_size=2, shuffle=True, seed=seed, epoch=epoch, workers=workers)
        for image, target in zip(batch, targets, strict=True)
    ]


# --- what decides -----------------------------------------------------------------------------------------------------


def test_without_augmentation_the_tensors_are_those_of_before_it_was_there(tmp_path: Path) -> None:
    """The digest is that of the commit before (80dd276), of flipped images at their own size."""
    entries = []
    for i, (w, h) in enumerate([(60, 40), (40, 40), (40, 52), (57, 40)]):
        pixels = (np.arange(3 * w * h) * (i + 3) % 251).astype(np.uint8).reshape(h, w, 3)
        path = tmp_path / f"{i}.png"
        Image.fromarray(pixels).save(path)
        boxes = ((3.0, 5.0, 10.0, 20.0), (1.5, 2.0, 30.25, 8.0))
        entries.append(ImageEntry(i + 1, path.name, path, w, h, boxes, (1, 2), (0, 0), (200.0, 242.0)))
    split = Split("train", tmp_path / "x.json", tmp_path, tuple(entries))
    images = CocoImages(split, image_size_px=40, max_size_px=60, hflip=True)
    digest = hashlib.blake2b(digest_size=8)
    for epoch in range(3):
        for batch, targets in loader(images, batch_size=2, shuffle=True, seed=5, epoch=epoch):
            for image, target in zip(batch, targets, strict=True):
                for tensor in (image, target["boxes"], target["labels"]):
                    digest.update(tensor.numpy().tobytes())
                digest.update(repr((target["image_id"], target["scale_xy"], target["is_flipped"])).encode())
    assert digest.hexdigest() == "3eed653770d883f2"


@pytest.mark.parametrize("augmentation", [LIGHT, STRONG, SCALE, COLOUR])
def test_the_same_images_for_any_number_of_workers(split: Split, augmentation: Augmentation) -> None:
    before = torch.get_rng_state()
    alone = items(images_of(split, augmentation))
    assert items(images_of(split, augmentation), workers=2) == alone
    assert items(images_of(split, augmentation), first=2) == alone[2 * len(split.images) :], "as after a resume"
    assert torch.equal(torch.get_rng_state(), before), "the global generator is left alone"


def test_the_same_images_for_any_number_of_threads() -> None:
    """A process that loads images has one."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (3, 301, 403), dtype=np.uint8)
    n_threads, found = torch.get_num_threads(), []
    try:
        for n in (1, 2, 3):
            torch.set_num_threads(n)
            found.append([augment(pixels, torch.empty(0, 4), STRONG, np.random.default_rng(s))[0] for s in range(9)])
    finally:
        torch.set_num_threads(n_threads)
    assert all(np.array_equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("augmentation", [LIGHT, STRONG, SCALE, COLOUR])
def test_epochs_and_seeds_differ(split: Split, augmentation: Augmentation) -> None:
    images = images_of(split, augmentation, hflip=False)
    seen = set()
    for seed in (0, 1):
        for epoch in range(6):
            images.set_epoch(epoch, seed)
            seen.add(images[0][0].numpy().tobytes())
    assert len(seen) > 9


def test_flips_are_those_without_augmentation(split: Split) -> None:
    def flips(images: CocoImages) -> list[bool]:
        return [target["is_flipped"] for epoch in range(8) for _, ts in loader(
            images, batch_size=2, shuffle=False, seed=1, epoch=epoch) for target in ts]  # fmt: skip

    assert flips(images_of(split, STRONG)) == flips(images_of(split, NONE))
    assert not any(flips(images_of(split, STRONG, hflip=False)))


def test_a_stronger_preset_shifts_no_draw() -> None:
    """Zoomed in with one preset is zoomed in with the other, at the same place."""
    pixels = np.random.default_rng(0).integers(0, 256, (3, 60, 80), dtype=np.uint8)
    boxes = torch.tensor([[30.0, 20, 50, 40]])
    for seed in range(20):
        light, strong, scale = (
            augment(pixels, boxes, how, np.random.default_rng(seed))[1] for how in (LIGHT, STRONG, SCALE)
        )
        assert torch.equal(strong, scale), "colours leave boxes alone"
        extent = [(found[:, 2:] - found[:, :2]).prod() for found in (light, strong)]
        assert (extent[0] - 400) * (extent[1] - 400) >= 0


def test_pixels_are_kept_without_augmentation(split: Split, tmp_path: Path) -> None:
    """Trials with and without augmentation share the disk cache, which holds the images as they are."""
    cached = [images_of(split, how, store=Store(Cache(tmp_path / "cache", 10**8))) for how in (STRONG, NONE)]
    assert cached[0].content_key() == cached[1].content_key()
    assert items(cached[0]) == items(images_of(split, STRONG, cache_bytes=0))
    for entry in split.images:
        entry.path.unlink()
    assert items(cached[0]) != items(cached[1]), "both read what one has written"
    assert len(list((tmp_path / "cache").glob("pixels-*"))) == 1


# --- boxes and pixels -------------------------------------------------------------------------------------------------


def framed(image: torch.Tensor, label: int) -> list[float]:
    """The extent (xyxy) of the pixels that are more of an object's colour than of anything else."""
    channel = image[label - 1] - image[[c for c in range(3) if c != label - 1]].max(0).values
    ys, xs = (channel > 0.2).nonzero(as_tuple=True)
    return [xs.min().item(), ys.min().item(), xs.max().item() + 1, ys.max().item() + 1]


@pytest.mark.parametrize("augmentation", [LIGHT, STRONG, SCALE, COLOUR])
def test_boxes_frame_their_pixels_and_keep_their_class(split: Split, augmentation: Augmentation) -> None:
    images = images_of(split, augmentation)
    dropped = 0
    for epoch in range(12):
        images.set_epoch(epoch, 3)
        for i in range(len(images)):
            image, target = images[i]
            height, width = image.shape[-2:]
            boxes, labels = target["boxes"], target["labels"].tolist()
            assert len(boxes) == len(labels) == len(target["iscrowd"]) and sorted(set(labels)) == labels
            assert 0 <= image.min() and image.max() <= 1
            assert (boxes >= 0).all() and (boxes[:, 2:] <= torch.tensor([width, height])).all()
            assert (boxes[:, 2:] > boxes[:, :2]).all()
            for label, box in zip(labels, boxes.tolist(), strict=True):
                # half of a blurred edge, and what an enlargement rounds
                assert framed(image, label) == pytest.approx(box, abs=2)
            dropped += 3 - len(boxes)
    assert (dropped > 5) == (augmentation.scale_jitter > 1.5)


def test_zooming_reaches_its_ends_and_no_further(split: Split) -> None:
    images = images_of(split, SCALE, hflip=False)
    plain = images_of(split, NONE, hflip=False)
    factors = []
    for epoch in range(200):
        images.set_epoch(epoch, 0)
        _, target = images[3]
        for label, box in zip(target["labels"], target["boxes"], strict=True):
            before = plain[3][1]["boxes"][label - 1]
            low, high = box.min() > 0, (box[2:] < torch.tensor([60, 48])).all()
            if low and high:  # not clipped
                factors.append(((box[2] - box[0]) / (before[2] - before[0])).item())
    assert 0.49 < min(factors) < 0.55 and 1.7 < max(factors) < 2.05
    assert 0.35 < sum(f < 1 for f in factors) / len(factors) < 0.75, "clipped ones are among the large"


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    # torch cannot shrink to 1 x 1; a recipe's images have a long side of at least 32
    hw=st.tuples(st.integers(1, 90), st.integers(1, 90)).filter(lambda hw: max(hw) >= 8),
    boxes=st.lists(st.tuples(*[st.floats(0, 1)] * 4), max_size=6),
)
def test_whatever_the_image_some_box_is_left_and_none_is_below_the_share(
    seed: int, hw: tuple[int, int], boxes: list[tuple[float, ...]]
) -> None:
    """Also an object that fills the image, and one that is a fraction of a pixel."""
    height, width = hw
    size = torch.tensor([width, height, width, height], dtype=torch.float64)
    ends = torch.tensor(boxes, dtype=torch.float64).reshape(-1, 2, 2).sort(1).values.reshape(-1, 4)
    xyxy = (ends * size).float()
    xyxy = xyxy[(xyxy[:, 2:] - xyxy[:, :2] > 1e-3).all(1)]
    pixels = np.zeros((3, height, width), np.uint8)
    before = xyxy.clone()
    new, found, kept = augment(pixels, xyxy, WIDEST, np.random.default_rng(seed))
    assert new.shape == pixels.shape and new.dtype == np.uint8
    assert torch.equal(xyxy, before) and not pixels.any(), "the arguments are not written to"
    assert len(found) == len(kept) and bool(kept) == bool(len(xyxy)) and kept == sorted(set(kept))
    assert (found >= 0).all() and (found <= size.float()).all() and (found[:, 2:] > found[:, :2]).all()
    scale = 4.0 ** (2 * module._Draws(np.random.default_rng(seed)).scale - 1)
    if scale > 1 and not torch.equal(found, xyxy):
        area = found.double()[:, 2:].sub(found[:, :2]).prod(1) / xyxy.double()[kept, 2:].sub(xyxy[kept, :2]).prod(1)
        enlarged = height / max(1, round(height / scale)) * width / max(1, round(width / scale))
        assert (area >= (MIN_VISIBLE_SHARE - 0.02) * enlarged).all()  # 0.02: float32 of a thousandth of a pixel


def test_a_window_below_the_share_drops_the_box_and_one_above_keeps_it() -> None:
    window = module._Window(top=10, left=10, height=20, width=20)
    boxes = torch.tensor([[0.0, 10, 20, 20], [0.0, 10, 14, 20], [12.0, 12, 14, 14], [40.0, 40, 50, 50]])
    shares = module._visible_share(boxes, window)
    torch.testing.assert_close(shares, torch.tensor([0.5, 4 / 14, 1.0, 0.0]))
    assert (shares >= MIN_VISIBLE_SHARE).tolist() == [True, True, True, False]


MOVED = [
    (0, 10, 100, 30.0, 36.0, 26, "the least way to all of it"),
    (90, 10, 100, 30.5, 36.0, 30, "from the other side, the start rounded down"),
    (28, 10, 100, 30.0, 36.0, 28, "it is there"),
    (0, 10, 100, 30.0, 60.0, 30, "a longer object: the window lies in it"),
    (80, 10, 100, 30.0, 60.0, 50, "from the other side"),
    (0, 10, 40, 35.0, 40.0, 30, "at the end of the image"),
]


@pytest.mark.parametrize("start, length, end, low, high, expected, why", MOVED)
def test_a_window_is_moved_to_an_object(
    start: int, length: int, end: int, low: float, high: float, expected: int, why: str
) -> None:
    assert module._moved(start, length, end, low, high) == expected, why


def test_the_one_object_of_an_image_stays_in_sight() -> None:
    pixels, box = np.zeros((3, 100, 100), np.uint8), torch.tensor([[90.0, 90, 98, 99]])
    extents = []
    for seed in range(60):
        _, found, kept = augment(pixels, box, Augmentation(scale_jitter=4.0), np.random.default_rng(seed))
        assert kept == [0]
        extents.append((found[0, 2] - found[0, 0]).item())
    assert max(extents) > 24, "and it is zoomed in to"


def test_the_canvas_is_nothing_to_the_detector() -> None:
    """Normalised it is nearly 0, which a batch is padded with."""
    draws = module._Draws(np.random.default_rng(0))
    shown = module._shrunk(torch.full((3, 32, 32), 255, dtype=torch.uint8), (32, 32), 0.5, draws)
    assert shown.shape == (3, 32, 32) and (shown == 255).all(0).sum() == 16 * 16
    transform = GeneralizedRCNNTransform(32, 32, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    canvas = transform.normalize(shown.float() / 255)[:, (shown != 255).all(0)]
    assert canvas.shape[1] == 32 * 32 - 16 * 16 and canvas.abs().max() < 0.02


@pytest.mark.parametrize("factor", [0.5, 0.9, 1.0, 1.4])
def test_contrast_is_torchvisions(factor: float) -> None:
    image = torch.from_numpy(np.random.default_rng(1).integers(0, 256, (3, 37, 41), dtype=np.uint8))
    difference = module._adjust_contrast(image, factor).int() - F.adjust_contrast(image, factor).int()
    assert difference.abs().max() <= 1  # it rounds the grey of every pixel down, before the mean


# --- the bound --------------------------------------------------------------------------------------------------------


def test_a_padded_batch_is_never_larger_than_predicted(split: Split) -> None:
    sizes = tuple({(entry.height, entry.width) for entry in split.images})
    for scale_jitter in (1.25, 2.0, 4.0):
        recipe = Recipe(image_size_px=48, max_size_px=96, augment="strong", scale_jitter=scale_jitter)
        worst = worst_input(recipe, sizes, max_boxes=3)
        transform = GeneralizedRCNNTransform(recipe.image_size_px, recipe.max_size_px, [0.5] * 3, [0.2] * 3)
        images, plain = images_of(split, recipe.augmentation), images_of(split, NONE)
        for epoch in range(6):
            pairs = zip(
                *(loader(x, batch_size=3, shuffle=True, seed=0, epoch=epoch) for x in (images, plain)), strict=True
            )
            for (batch, targets), (plain_batch, _) in pairs:
                assert [x.shape for x in batch] == [x.shape for x in plain_batch]
                padded = transform(batch, [dict(t) for t in targets])[0].tensors
                assert padded.shape == transform(plain_batch)[0].tensors.shape
                assert padded.shape[-2] <= worst.height_px and padded.shape[-1] <= worst.width_px
                assert max(len(t["boxes"]) for t in targets) <= worst.max_boxes
